"""Where each tissue is: heads as fractions of tissue per voxel, and ways to turn one head into many.

Three kinds of head. The MNI152 template with the grey and white matter maps inside nilearn needs no
download. Folders of FreeSurfer-style label maps and of BrainWeb's anatomical models hold real people.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from ..machine.errors import BadInput
from ..tissue import BRAIN, TISSUES
from .label_maps import CENTRE_MNI, MINC, VENTRICLES_MNI, both_sides, read_brainweb, read_labels

MARGIN_MM = 24  # kept around the slices, so that a deformed slice still falls inside the stored block
HALF_WIDTH_MM, HALF_LENGTH_MM = 95, 115  # of the stored block: the largest of the heads fits


@dataclass
class Anatomy:
    """One head.

    Parameters
    ----------
    name
        Where it came from: an entry of :func:`find_anatomies`.
    fractions
        ``(k, z, y, x)`` float32 at 1 mm, one map per entry of :data:`tissue.TISSUES`, RAS order
        (z to superior, y to anterior, x to the right). Sums to at most 1; the rest is air.
    ventricle
        ``(z, y, x)``, smooth indicator of the lateral ventricles.

    The middle voxel is the point that the central slices are centred on.
    """

    name: str
    fractions: Tensor
    ventricle: Tensor


Folders = str | Path | Sequence[str | Path] | None
"""Where the heads are: one folder of label maps or several; none: the MNI152 template."""


def as_folders(anatomies: Folders) -> tuple[Path, ...]:
    """The folders one by one, with absolute paths."""
    given = [anatomies] if isinstance(anatomies, str | Path) else anatomies or ()
    return tuple(Path(folder).resolve() for folder in given if folder)


def in_recipe(anatomies: Folders) -> str | tuple[str, ...] | None:
    """The folders as a cohort's recipe holds them: one path, several, or None."""
    folders = tuple(str(folder) for folder in as_folders(anatomies))
    return folders if len(folders) > 1 else folders[0] if folders else None


def find_anatomies(anatomies: Folders) -> list[str]:
    """Names of the heads on offer: ``["mni152"]`` without a folder, else the label maps there, sorted in each folder.

    A head of the first folder is named as its file is, one of a further folder ``folder/file``.

    Raises
    ------
    BadInput
        A folder does not exist, holds no ``.nii``, ``.nii.gz`` or ``.mnc.gz``, or is called as another one is.
    """
    return list(_find(anatomies)) or ["mni152"]


def _find(anatomies: Folders) -> dict[str, Path]:
    folders, found = as_folders(anatomies), {}
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(
                f"--anatomies {os.path.relpath(folder)} is not a folder: give one that holds label maps in NIfTI"
            )
        if [other.name for other in folders].count(folder.name) > 1:
            raise BadInput(f"two folders of --anatomies are called {folder.name}: rename one, heads are named by it")
        files = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz", *MINC)))
        if not files:
            raise BadInput(
                f"--anatomies {os.path.relpath(folder)} holds no label map (.nii, .nii.gz, .mnc.gz): "
                "phyldm fetch synthseg gets fifteen heads"
            )
        found |= {path.name if folder == folders[0] else f"{folder.name}/{path.name}": path for path in files}
    return found


def load_anatomy(name: str, anatomies: Folders, *, slab_mm: float, head: bool, blur_mm: float) -> Anatomy:
    """Read one head, as far as the slices need it.

    Parameters
    ----------
    name, anatomies
        An entry of :func:`find_anatomies` and the folders it was found in.
    slab_mm
        Thickness of the block of slices about the centre; :data:`MARGIN_MM` is kept on both sides.
    head
        Keep skull, scalp, muscle and eyes; otherwise everything outside the brain and its CSF is air.
    blur_mm
        Width (SD) of the partial volume between tissues that a voxel of the final size sees.
    """
    half = (int(round(slab_mm / 2 + MARGIN_MM)), HALF_LENGTH_MM, HALF_WIDTH_MM)
    if name == "mni152":
        masks, ventricle = _mni152(half)
    else:
        path = _find(anatomies)[name]
        masks, ventricle = (read_brainweb if name.endswith(MINC) else read_labels)(path, half)
    fractions = np.zeros((len(TISSUES), *ventricle.shape), np.float32)
    for k, tissue in enumerate(TISSUES):
        if tissue in masks and (head or tissue in BRAIN):
            fractions[k] = masks[tissue]
    # islands of CSF in the neck and the optic canals are not brain, nor are markers beside it the head
    pieces, _ = ndimage.label(fractions.sum(0) > 0.5)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    fractions *= ndimage.binary_dilation(pieces == largest)
    for volume in fractions:
        if volume.any():
            ndimage.gaussian_filter(volume, blur_mm, output=volume)
    ventricle = ndimage.gaussian_filter(ventricle.astype(np.float32), 4.0)
    return Anatomy(name, torch.from_numpy(fractions), torch.from_numpy(ventricle))


def _mni152(half: tuple[int, int, int]):
    """Tissue fractions (z, y, x) of the MNI152 template; deep nuclei by their place in MNI space.

    The template separates grey from white matter only. A nucleus is the grey matter inside an
    ellipsoid at the nucleus's usual MNI coordinates: an approximation, good enough to give the
    nuclei relaxation times of their own.
    """
    from nilearn import datasets  # a second of imports, needed here only

    offsets = [np.arange(-h, h + 1, dtype=np.float32) + c for h, c in zip(half, CENTRE_MNI[::-1], strict=True)]
    z, y, x = offsets

    def volume(loader):
        image = loader(resolution=1)
        data = image.get_fdata(dtype=np.float32).transpose(2, 1, 0)
        start = [int(o[0] - a) for o, a in zip(offsets, image.affine[2::-1, 3], strict=True)]
        before = [max(-s, 0) for s in start]
        padded = np.pad(data, [(b, len(o)) for b, o in zip(before, offsets, strict=True)])
        return padded[tuple(slice(s + b, s + b + len(o)) for s, b, o in zip(start, before, offsets, strict=True))]

    gm, wm, brain = (
        volume(loader)
        for loader in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )

    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total * brain, wm / total * brain
    csf = np.clip(brain - gm - wm, 0, 1)
    nuclei = {  # centre and radii (mm); the template calls half of thalamus and pallidum white
        "thalamus": ((11, -19, 7), (10, 15, 10), True),
        "caudate": ((13, 11, 10), (8, 14, 14), False),
        "pallidum": ((19, -4, 0), (6, 9, 7), True),
        "putamen": ((27, 2, 2), (9, 18, 13), False),
        "hippocampus": ((27, -22, -15), (9, 20, 9), False),
    }
    masks, free = {}, np.ones_like(gm)
    for tissue, (centre, radii, white_too) in nuclei.items():
        place = both_sides(z, y, x, centre, radii) * free
        free = free - place
        masks[tissue] = (gm + wm * white_too) * place
        gm = gm * (1 - place)
        wm = wm * (1 - place * white_too)
    cerebellum = (z[:, None, None] < -14) & (y[None, :, None] < -38) & np.ones_like(gm, bool)
    stem = (
        (z[:, None, None] < -10) & (np.abs(x)[None, None, :] < 15) & (y[None, :, None] > -42) & (y[None, :, None] < -12)
    )
    masks["cerebellar GM"], masks["cerebellar WM"] = gm * cerebellum, wm * cerebellum
    masks["brain stem"] = (gm + wm) * stem * ~cerebellum
    rest = ~cerebellum & ~stem
    masks["GM"], masks["WM"], masks["CSF"] = gm * rest, wm * rest, csf
    return masks, both_sides(z, y, x, *VENTRICLES_MNI) * (csf > 0.5)


@dataclass(frozen=True)
class Deformation:
    """How far one simulated person may differ from the head they were made from."""

    rotation_deg: float = 2.0  # SD, about each axis: heads that were laid straight, or registered
    scale: float = 0.04  # SD of the logarithm, each axis
    translation_mm: float = 2.0
    coarse_mm: float = 3.0  # SD of the velocity on a 40 mm grid: lobes shift
    fine_mm: float = 1.5  # SD of the velocity on a 16 mm grid: gyri move and fold
    asymmetry: float = 0.25  # share of the velocity's SD that differs left from right: people are nearly symmetric
    ventricle_mm: float = 2.5  # SD of the widening of the lateral ventricles
    cortex: float = 0.25  # SD of the log of grey over white at their border: thicker or thinner cortex


FIELD_MM = 4  # grid of the velocity field; 16 mm details need no finer


def smooth_field(shape, spacing_voxels: float, generator: torch.Generator, channels: int = 1) -> Tensor:
    """Unit-variance smooth noise ``(channels, *shape)`` whose details are about ``spacing_voxels`` wide."""
    coarse = [max(int(np.ceil(n / spacing_voxels)) + 3, 4) for n in shape]
    noise = torch.randn(1, channels, *coarse, generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bicubic"
    field = functional.interpolate(noise, size=tuple(shape), mode=mode, align_corners=True)[0]
    return field / field.std().clamp_min(1e-6)


def deform(anatomy: Anatomy, points_mm: Tensor, spec: Deformation, generator: torch.Generator) -> Tensor:
    """Tissue fractions of a new person made from ``anatomy``, at the given points.

    Parameters
    ----------
    points_mm
        ``(d, h, w, 3)``, (x, y, z) in mm from the centre of the head.

    Returns
    -------
        ``(k, d, h, w)``, fractions of each tissue. The map from new to old head is an affine
        followed by the flow of a smooth stationary velocity (scaling and squaring, six halvings),
        so that at these amplitudes it folds nowhere.
    """
    half = points_mm.reshape(-1, 3).abs().amax(0) + 12
    size = [int(2 * h // FIELD_MM) + 2 for h in half.flip(0)]  # z, y, x

    def velocity(spacing_mm, amplitude_mm):
        field = smooth_field(size, spacing_mm / FIELD_MM, generator, 3)
        mirrored = field.flip(-1) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None, None]  # x, y, z components
        even, odd = (field + mirrored) / 2**0.5, (field - mirrored) / 2**0.5
        field = (1 - spec.asymmetry**2) ** 0.5 * even + spec.asymmetry * odd
        return amplitude_mm * functional.avg_pool3d(field[None], 3, 1, 1, count_include_pad=False)[0]

    flow = velocity(40, spec.coarse_mm) + velocity(16, spec.fine_mm)
    grid = functional.affine_grid(torch.eye(3, 4)[None], [1, 1, *size], align_corners=True)
    where = grid * half  # mm
    widen = torch.randn((), generator=generator) * spec.ventricle_mm
    flow = flow + widen * _ventricle_push(anatomy, where)
    flow = (flow / 2**6)[None]
    unit = half.view(3, 1, 1, 1)
    for _ in range(6):
        there = grid + (flow / unit).permute(0, 2, 3, 4, 1)
        flow = flow + functional.grid_sample(flow, there, align_corners=True, padding_mode="border")
    warp = functional.grid_sample(flow, (points_mm / half)[None], align_corners=True, padding_mode="border")[0]
    warped = points_mm + warp.permute(1, 2, 3, 0)
    fractions = _sample(anatomy.fractions, warped @ _affine(spec, generator).T + _shift(spec, generator))
    return _vary_cortex(fractions.clamp_min(0), spec, generator)


def _affine(spec: Deformation, generator) -> Tensor:
    angles = torch.randn(3, generator=generator) * np.deg2rad(spec.rotation_deg)
    skew = torch.zeros(3, 3)
    skew[0, 1], skew[0, 2], skew[1, 2] = angles
    return torch.linalg.matrix_exp(skew - skew.T) @ torch.diag(
        torch.exp(spec.scale * torch.randn(3, generator=generator))
    )


def _shift(spec: Deformation, generator) -> Tensor:
    return torch.randn(3, generator=generator) * spec.translation_mm


def _ventricle_push(anatomy: Anatomy, where: Tensor) -> Tensor:
    """Unit-height vector field that points towards the ventricles' inside: along it they widen."""
    gradient = torch.stack(torch.gradient(anatomy.ventricle), 0).flip(0)  # x, y, z components
    push = _sample(gradient, where[0])
    return push / push.norm(dim=0).max().clamp_min(1e-6)


def _sample(volumes: Tensor, points_mm: Tensor) -> Tensor:
    """Trilinear values of ``(k, z, y, x)`` volumes at 1 mm at ``(d, h, w, 3)`` mm from their middle; 0 outside."""
    half = torch.tensor(volumes.shape[:0:-1]) // 2  # x, y, z
    return functional.grid_sample(volumes[None], (points_mm / half)[None], align_corners=True)[0]


def _vary_cortex(fractions: Tensor, spec: Deformation, generator) -> Tensor:
    """Move the border between grey and white matter by reweighting them where both are present."""
    wm, gm = TISSUES.index("WM"), TISSUES.index("GM")
    both = fractions[wm] + fractions[gm]
    odds = torch.exp(spec.cortex * torch.randn((), generator=generator))
    shifted = odds * fractions[gm] / (odds * fractions[gm] + fractions[wm]).clamp_min(1e-6)
    out = fractions.clone()
    out[gm], out[wm] = both * shifted, both * (1 - shifted)
    return out
