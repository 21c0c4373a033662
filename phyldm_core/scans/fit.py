"""Maps of PD, T1 and T2 from somebody's own scans: one session in, a volume of tissue out.

A session is prepared (one grid, one world), cut into axial slices of the network's size, and every slice is
inferred from the scans that cover it. A scan has one brightness for the whole volume, so that its slices agree.
Reading and writing files is :mod:`fit_dataset`.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from nibabel.affines import apply_affine
from scipy import ndimage

from ..calibration import explained_sd, honest_sd, posterior_sd
from ..inference import explain, infer
from ..machine.errors import BadInput
from ..physics import TissueMaps
from ..slices import Slices, brightness
from ..voxelwise.refine import refine
from ..weights import Weights
from .grids import Grid, head_centre, unsigned
from .nifti import Scan, Stored
from .prepare import TEMPLATE, Prepared, prepare_session

COVERED = 0.5
"""A scan counts in a slice where it has signal in at least this part of the brain."""

RIM_MM = 2.0
"""What weights without skull are shown around the brain mask, so that CSF does not end in a step at its border."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What was inferred of one session.

    Parameters
    ----------
    mean, sd
        Each map ``(x, y, z)`` float32: PD (water = 1), T1 (s), T2 (s), decoded from the posterior's mean, and the SD of
        decoded posterior samples with what they miss (:func:`calibration.honest_sd`). 0 outside ``brain``.
    brain
        ``(x, y, z)`` bool, where maps were inferred: the brain, or the head for weights trained on heads.
    affine
        ``(4, 4)``, voxel to RAS mm.
    trained_heights
        RAS mm (from, to): the stack of slices that the weights were trained on. Beyond it they extrapolate.
    extrapolated
        Fraction of ``brain`` that lies beyond.
    """

    mean: TissueMaps
    sd: TissueMaps
    brain: np.ndarray
    affine: np.ndarray
    trained_heights: tuple[float, float]
    extrapolated: float


class Window(NamedTuple):
    """Where slices lie in a volume ``(x, y, z)``: ``x0`` and ``y0`` may be negative, ``k`` are the heights taken."""

    x0: int
    y0: int
    k: tuple[int, ...]
    shape: tuple[int, int]  # y, x of a slice

    def of_volume(self, volume: np.ndarray) -> np.ndarray:
        """``(x, y, z)`` → ``(n, y, x)``, 0 where the window exceeds the volume."""
        out = np.zeros((len(self.k), *self.shape), volume.dtype)
        (vx, vy), (wx, wy) = self._overlap(volume.shape)
        out[:, wy, wx] = volume[vx, vy][:, :, list(self.k)].T
        return out

    def into_volume(self, slices: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """``(n, y, x)`` → ``(x, y, z)``: the inverse, 0 elsewhere."""
        volume = np.zeros(shape, slices.dtype)
        (vx, vy), (wx, wy) = self._overlap(shape)
        volume[vx, vy, list(self.k)] = slices[:, wy, wx].transpose(2, 1, 0)
        return volume

    def _overlap(self, shape) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        pairs = []
        for start, size, n in ((self.x0, self.shape[1], shape[0]), (self.y0, self.shape[0], shape[1])):
            low, high = max(start, 0), min(start + size, n)
            pairs.append((slice(low, high), slice(low - start, high - start)))
        return tuple(zip(*pairs, strict=True))


def prepare(
    scans: list[Scan],
    weights: Weights,
    mask: str | Path | np.ndarray | None = None,
    left_out: dict[Path, str] | None = None,
) -> Prepared:
    """A session on the grid of the weights, with its brain; refused is a scan whose voxels mislead its scale.

    Parameters
    ----------
    mask
        As :func:`prepare.prepare_session` takes it. None: weights trained on brains without skull get the brain
        that :mod:`brain` finds (or what a stripped scan shows), weights trained on heads the head.
    left_out
        As :func:`prepare.prepare_session` takes it.
    """
    if mask is None and not weights.head:
        mask = TEMPLATE
    return prepare_session(scans, voxel_mm=weights.voxel_mm, mask=mask, left_out=left_out, for_maps=True)


def session_slices(
    prepared: Prepared, weights: Weights, downsampling: int, k: Several[int] | None = None
) -> tuple[Slices, Window]:
    """Axial slices of a prepared session for :func:`inference.infer`, and where they lie.

    Parameters
    ----------
    downsampling
        Of the VAE; slices are of the size the weights were trained on, or larger by whole latent pixels where the
        brain is, and centred on it.
    k
        The heights to take; None: all that hold brain which a scan covers.

    Returns
    -------
        One column of ``images`` a scan, in the order of ``prepared.scans``, on no common scale. Beyond
        :data:`RIM_MM` around the brain they are 0 for weights that have never seen a skull.
    """
    brain = prepared.brain
    if k is None:
        k = np.flatnonzero(brain.any((0, 1)))
    if not len(k):
        raise BadInput(f"{prepared.scans[0].path}: no brain found in this scan: give a brain mask with --mask")
    shown = [scan.image if scan.protocol.signed else scan.image.clip(0) for scan in prepared.scans]  # splines ring
    seen = np.stack([brain & (image != 0) for image in shown]).sum((1, 2))  # (m, z) voxels
    observed = (seen >= COVERED * brain.sum((0, 1)))[:, k] & (seen[:, k] > 0)
    k, observed = np.asarray(k)[observed.any(0)], observed[:, observed.any(0)]
    if not len(k):
        raise BadInput(f"{prepared.scans[0].path}: no scan has signal where the brain is: check the brain mask")
    rim = max(1, round(RIM_MM / weights.voxel_mm))
    inside = np.ones_like(brain) if weights.head else ndimage.binary_dilation(brain, iterations=rim)
    window = _window(brain, weights.shape, downsampling, tuple(int(i) for i in k))
    images = np.stack([window.of_volume(np.where(inside, image, 0)) for image in shown], 1)
    images = torch.from_numpy(images.astype(np.float32))
    observed = torch.from_numpy(observed.T.copy())
    settings = torch.stack([scan.protocol.settings() for scan in prepared.scans]).expand(len(k), -1, -1)
    low, high = _trained_heights(prepared, weights)
    height = torch.tensor([apply_affine(prepared.affine, (0, 0, int(i)))[2] for i in k], dtype=torch.float32)
    position = 2 * (height - (low + high) / 2) / max(high - low, 1e-6)
    images = images * observed[:, :, None, None]
    return Slices(images, settings, observed, torch.zeros(len(k), dtype=torch.long), position), window


def _window(brain: np.ndarray, shape: tuple[int, int], downsampling: int, k: tuple[int, ...]) -> Window:
    starts, sizes = [], []
    for axis, wanted in ((0, shape[1]), (1, shape[0])):
        there = np.flatnonzero(brain[:, :, list(k)].any((1 - axis, 2)))
        low, high = there[0], there[-1] + 1
        size = max(wanted, downsampling * -(-(high - low) // downsampling))
        starts.append(int(round((low + high - size) / 2)))
        sizes.append(int(size))
    return Window(starts[0], starts[1], k, (sizes[1], sizes[0]))


def _trained_heights(prepared: Prepared, weights: Weights) -> tuple[float, float]:
    """RAS mm of the stack's lower and upper face, about the middle of the brain as :func:`nifti.head_centre` has it."""
    seen = unsigned(prepared.scans[0])
    if prepared.brain_known:  # the brain's top tells more than the scalp's, whose distance varies by a centimetre
        seen = replace(seen, image=prepared.brain.astype(np.float32))
    middle = float(head_centre(seen)[2])
    return middle - weights.slab_mm / 2, middle + weights.slab_mm / 2


def fit_session(
    prepared: Prepared,
    weights: Weights,
    *,
    n_samples: int = 8,
    seed: int = 0,
    refined: bool = False,
    fast: bool = False,
) -> Fit:
    """Infer PD, T1 and T2 of a whole volume: through the physics (:func:`inference.explain`), unless told otherwise.

    Parameters
    ----------
    n_samples
        Posterior samples for the SD of the encoder alone; at least 2.
    fast
        The encoder alone.
    refined
        The encoder, and :func:`refine.refine` moves every voxel to where its own signals want it; maps and SD are its.

    Raises
    ------
    BadInput
        Too few samples, no brain, or maps that are not finite.
    """
    if n_samples < 2:
        raise BadInput(f"an SD of {n_samples} samples has no meaning: ask for at least 2")
    vae = weights.vae()
    slices, window = session_slices(prepared, weights, vae.downsampling)
    scale = volume_brightness(slices)
    if not (fast or refined):
        explained = explain(vae, slices, scale=scale)
        sd = explained_sd(explained, slices, weights.calibration)
        return _whole(prepared, weights, window, explained.maps, sd)
    posterior, mean = infer(vae, slices, common_scale=False, scale=scale)
    if refined:
        inside = torch.from_numpy(window.of_volume(prepared.brain))
        mean, sd = refine(mean, slices, inside, weights.voxel_mm, common_scale=False)
    else:
        sd = posterior_sd(vae, posterior, n_samples, torch.Generator().manual_seed(seed))
        sd = honest_sd(sd, mean, slices, False, weights.calibration)
    return _whole(prepared, weights, window, mean, sd)


def _whole(prepared: Prepared, weights: Weights, window: Window, mean: TissueMaps, sd: TissueMaps) -> Fit:
    """Slices back into the volume they are of."""
    brain = np.zeros_like(prepared.brain)
    brain[:, :, list(window.k)] = prepared.brain[:, :, list(window.k)]
    mean, sd = (
        TissueMaps(*(window.into_volume(values.numpy(), brain.shape) * brain for values in maps)) for maps in (mean, sd)
    )
    if not all(np.isfinite(values).all() for values in (*mean, *sd)):
        raise BadInput(f"{prepared.scans[0].path}: its maps are not finite: check TE, TR and TI of the scans")
    low, high = _trained_heights(prepared, weights)
    height = apply_affine(prepared.affine, [(0, 0, i) for i in range(brain.shape[2])])[:, 2]
    beyond = (height < low) | (height > high)
    return Fit(mean, sd, brain, prepared.affine, (low, high), float(brain[:, :, beyond].sum() / brain.sum()))


def volume_brightness(slices: Slices) -> torch.Tensor:
    """``(n, m)``: :func:`slices.brightness` of every scan of a session, told by the heights that were trained on.

    Beyond them a slice holds other shares of tissue (no ventricle at the vertex, eyes and scalp at the base where the
    brain mask is worst), and what is bright there would darken the whole volume: T1 of white matter was 11 % off for
    one head where it is 3 % off with these slices alone. Where none of them shows a scan, all that do tell.
    """
    scale = torch.ones(slices.observed.shape)
    for m in range(scale.shape[1]):
        rows = slices.observed[:, m]
        trained = rows & (slices.position.abs() <= 1)
        rows = trained if trained.any() else rows
        if rows.any():
            part = slices[rows]
            scale[:, m] = brightness(part.images[:, [m]], part.observed[:, [m]], part.subject)[0, 0]
    return scale


def on_grid(fit: Fit, grid: Grid | Stored) -> Fit:
    """The same fit on another grid of the same world, linear between voxels of the brain.

    The weights of neighbours outside the brain go to those inside, so that no map falls off to 0 at its rim.
    """
    matrix = np.linalg.inv(fit.affine) @ grid.affine

    def move(volume):
        volume, mode = volume.astype(np.float32), "grid-constant"  # as in grids.resample
        return ndimage.affine_transform(volume, matrix, output_shape=grid.shape, order=1, mode=mode)

    share = move(fit.brain)
    brain = share > 0.5

    def move_map(volume):
        out = move(volume)
        np.divide(out, share, out=out, where=brain)
        out[~brain] = 0
        return out

    mean, sd = (TissueMaps(*(move_map(volume) for volume in maps)) for maps in (fit.mean, fit.sd))
    return Fit(mean, sd, brain, grid.affine, fit.trained_heights, fit.extrapolated)
