"""What can be said of PD, T1 and T2 without a network: rivals for the same scans, with the same physics.

From least to most that is believed beforehand: a least-squares fit of every voxel (:func:`least_squares`), with or
without the priors that the VAE is trained with; Bayes' rule over a dictionary of voxels as the cohort's brains
hold them (:func:`dictionary`); and the literature's means painted on a segmentation (:func:`literature`), which no
scan can contradict. All take one person's scans, and all are told where the brain is; the network is not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu
from torch import Tensor

from ..losses import FLUID_SPREAD, gain_per_scan
from ..physics import TissueMaps, shown_signal, signed_signal
from ..slices import Slices
from ..tissue import CLASSES, REPORTED, TISSUES, WATER_SPREAD, fluid_line, implied_pd, in_vivo_3t
from ..vae import PRIOR_MEDIANS
from .least_squares import BOUNDS, VOXELS_AT_A_TIME, into_maps, levenberg_marquardt, noise_of

# --- the scans of one person ------------------------------------------------------------------------


def segment(slices: Slices, brain: Tensor, shown: tuple[bool, ...]) -> NDArray[np.uint8]:
    """``(n, y, x)``: labels of :data:`tissue.CLASSES` (0 elsewhere) by three-class Otsu thresholds on one scan.

    The T1w if it is shown, else the first that is. Which class is which tissue follows from the order of the
    literature's signals under the scan's own protocol.
    """
    m = shown.index(True)
    image, where = slices.images[:, m].numpy(), brain.numpy()
    values = np.clip(image[where], *np.percentile(image[where], (0.5, 99.5)))
    if np.unique(values).size < 3:  # as good as empty
        return np.where(where, 2, 0).astype(np.uint8)
    expected = shown_signal(_typical(), slices.settings[:1])[0, m, 0]
    order = 1 + expected.argsort().numpy()  # tissue numbers from dark to bright
    return np.where(where, order[np.digitize(image, threshold_multiotsu(values, classes=3))], 0).astype(np.uint8)


def literature(slices: Slices, brain: Tensor, shown: tuple[bool, ...]) -> TissueMaps:
    """The literature's median PD, T1 and T2 painted on :func:`segment`: maps ``(n, y, x)``, 0 outside the brain."""
    values = torch.cat([torch.zeros(3, 1), torch.stack(_typical()).flatten(1)], 1)  # 0 for label 0
    labels = torch.from_numpy(segment(slices, brain, shown)).long()
    return TissueMaps(*(of_quantity[labels].float() for of_quantity in values))


def reference_gains(slices: Slices, brain: Tensor, shown: tuple[bool, ...]) -> Tensor:
    """``(m,)``: what each scan must be divided by if its tissue, on average, is the literature's.

    Nothing in a voxel tells a scan's gain from its PD, so that a fit without a network needs a reference tissue.
    """
    predicted = shown_signal(literature(slices, brain, shown), slices.settings)
    return gain_per_scan(predicted, slices.images, brain[:, None]).clamp_min(1e-9)


def _typical() -> TissueMaps:
    """CSF, GM and WM as an image of three voxels, each map ``(1, 1, 3)``."""
    rows = [TISSUES.index(name) for name in CLASSES]
    return TissueMaps(*torch.from_numpy(in_vivo_3t().median[rows].T)[:, None, None].float())


def _voxels(slices: Slices, brain: Tensor, shown: tuple[bool, ...], common_scale: bool, where: Tensor):
    """Signals ``(m, v)`` and their noise ``(m, 1)`` on PD's scale, and settings ``(1, m, 6)``, of the scans shown."""
    sd, gains = noise_of(slices, brain), torch.ones(slices.images.shape[1])
    if not common_scale:
        gains = reference_gains(slices, brain, shown)
    keep = torch.tensor(shown)
    signals = slices.images.transpose(0, 1)[:, where] / gains[:, None]
    return signals[keep].double(), (sd / gains)[keep, None].double(), slices.settings[:1, keep]


# --- a fit per voxel --------------------------------------------------------------------------------


@torch.no_grad()
def least_squares(
    slices: Slices,
    brain: Tensor,
    shown: tuple[bool, ...] = (True, True, True),
    common_scale: bool = True,
    priors: bool = True,
    where: Tensor | None = None,
    n_steps: int = 25,
) -> TissueMaps:
    """PD, T1 and T2 of every voxel on its own, by Levenberg–Marquardt on their logarithms inside :data:`BOUNDS`.

    Residuals are over the scan's own noise, and the model of a magnitude S in noise σ is √(S² + σ²).

    Parameters
    ----------
    slices
        Of one person.
    brain
        ``(n, y, x)`` bool: what noise and gain are told from.
    shown
        Which scans may be used.
    common_scale
        If not, each scan is first divided by its gain of :func:`reference_gains`.
    priors
        Add what the VAE is trained with, as residuals: the water line (:func:`losses.water_prior`, SD 5 %), the fluid
        line (:func:`losses.fluid_prior`, SD 30 %) and the unit log-normals about the paper's medians.
    where
        ``(n, y, x)`` bool, the voxels to fit; None: the brain's.
    n_steps
        At most so many steps from each of white matter, grey matter and CSF; the smallest sum of squares wins.

    Returns
    -------
        Maps ``(n, y, x)``, 0 elsewhere.
    """
    where = brain if where is None else where
    signals, sd, settings = _voxels(slices, brain, shown, common_scale, where)
    low, high = torch.tensor(BOUNDS).double().log().T[..., None]
    medians, (fa, fb, t1_gm) = torch.tensor(PRIOR_MEDIANS).double().log()[:, None], fluid_line()

    def residuals(measured, log_maps):  # (m, v), (3, v) → (r, v)
        pd, t1, t2 = log_maps.exp()
        model = signed_signal(TissueMaps(*(t[None, None] for t in (pd, t1, t2))), settings)[0, :, 0]
        off = [((model**2 + sd**2).sqrt() - measured) / sd]
        if priors:
            off.append((pd / implied_pd(t1)).log()[None] / WATER_SPREAD)
            line = t2.log() - fa - fb * t1.clamp_min(t1_gm).log()
            off.append((line * (t1 > t1_gm))[None] / FLUID_SPREAD)
            off.append(log_maps - medians)
        return torch.cat(off)

    found = []
    for measured in signals.split(VOXELS_AT_A_TIME, 1):
        tries = [
            levenberg_marquardt(residuals, measured, start[:, None], low, high, n_steps)
            for start in torch.stack(_typical()).flatten(1).T.double().log()
        ]
        best = torch.stack([cost for _, cost in tries]).argmin(0)
        found.append(torch.stack([log_maps for log_maps, _ in tries]).gather(0, best.expand(1, 3, -1))[0])
    return TissueMaps.from_stack(into_maps(torch.cat(found, 1).exp(), where))


# --- Bayes' rule per voxel --------------------------------------------------------------------------

TEXTURE = 0.03
"""SD of the logarithm inside a tissue, as :attr:`cohort.CohortRecipe.texture`."""


def atoms(n: int, seed: int) -> Tensor:
    """``(3, n)``: PD, T1 (s), T2 (s) of voxels as the simulated brains hold them, each of another person.

    A third is pure tissue, the rest a mixture of two, by the cohort's own rule: PD adds up, times are
    geometric means weighted by water. The truth of the cohort is drawn from the same literature, so this knows
    more than a physicist with real scans, and more than the network, which was never shown a true map.
    """
    rng = np.random.default_rng(seed)
    names = [name for tissues in REPORTED.values() for name in tissues]
    weights = np.array([3.0 if name in REPORTED else 0.5 for name in names])
    rows = np.array([TISSUES.index(name) for name in names])
    pairs = rows[rng.choice(len(rows), (n, 2), p=weights / weights.sum())]
    people = np.stack([in_vivo_3t().draw(rng) for _ in range(min(n, 500))])
    values = people[np.arange(n) % len(people)]  # (n, k, 3)
    one, two = (values[np.arange(n), pairs[:, i]] for i in (0, 1))
    share = np.where(rng.random(n) < 1 / 3, 1.0, rng.random(n))
    water = np.stack([share * one[:, 0], (1 - share) * two[:, 0]])
    pd = water.sum(0)
    times = np.exp((water[0, :, None] * np.log(one[:, 1:]) + water[1, :, None] * np.log(two[:, 1:])) / pd[:, None])
    drawn = np.column_stack([pd, times]) * np.exp(rng.normal(0, TEXTURE, (n, 3)) * [0.5, 1, 1])
    drawn[:, 0] = np.minimum(drawn[:, 0], 1.05)
    return torch.from_numpy(drawn.T)


@torch.no_grad()
def dictionary(
    slices: Slices,
    brain: Tensor,
    shown: tuple[bool, ...] = (True, True, True),
    common_scale: bool = True,
    where: Tensor | None = None,
    n_atoms: int = 4000,
    field: float = 0.04,
    seed: int = 0,
) -> tuple[TissueMaps, TissueMaps]:
    """Posterior mean of the log maps, and SD, of every voxel on its own: Bayes' rule over :func:`atoms`.

    What a voxel's signals can say if the tissue to expect is known; whatever beats it uses the voxel's neighbours.

    Parameters
    ----------
    slices, brain, shown, common_scale, where
        As :func:`least_squares`.
    field
        SD of the log receive field, which scales all scans of a voxel alike; without a common scale also of the
        error of each scan's gain. Drawn anew for each atom.

    Returns
    -------
        Maps and their SD, each ``(n, y, x)``, 0 elsewhere.
    """
    where = brain if where is None else where
    signals, sd, settings = _voxels(slices, brain, shown, common_scale, where)
    drawn, rng = atoms(n_atoms, seed), torch.Generator().manual_seed(seed)
    m = len(signals)
    clean = signed_signal(TissueMaps(*drawn[:, None, None]), settings)[0, :, 0]  # (m, k)
    off = torch.randn(1, n_atoms, generator=rng) * field
    if not common_scale:
        off = off + torch.randn(m, n_atoms, generator=rng) * field
    # A dictionary is coarse where the scans are sharp: its grain, a few per cent of the signal, counts as noise.
    sd = (sd**2 + (0.01 * signals.median(1, keepdim=True).values) ** 2).sqrt()
    expected = ((clean * off.exp()) ** 2 + sd**2).sqrt() / sd
    logs = drawn.log().T
    middle = logs.mean(0)  # moments about it, so that float32 is enough
    moments = torch.cat([logs - middle, (logs - middle) ** 2], 1).float()  # (k, 6)
    measured, expected = (signals / sd).float(), expected.float()
    half_norm = (expected**2).sum(0) / 2
    found = []
    for part in measured.split(VOXELS_AT_A_TIME // 8, 1):
        found.append(torch.softmax(torch.addmm(-half_norm, part.T, expected), 1) @ moments)  # (v, k) → (v, 6)
    mean, square = torch.cat(found).T.split(3)
    log_sd, mean = (square - mean**2).clamp_min(0).sqrt(), mean + middle[:, None]
    return tuple(TissueMaps.from_stack(into_maps(v, where)) for v in (mean.exp(), mean.exp() * log_sd))
