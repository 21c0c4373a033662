"""One simulated person: tissue mixed into maps, and scanned.

Within a voxel **signals** add, as they do in a scanner: each tissue gives the signal of its own PD, T1 and T2, and the
sum's magnitude is what the scan shows. The maps are what a model with one compartment can hold of such a voxel
(:func:`tissue.mix`): their T1 and T2 are those of a tissue where a voxel is pure, and a convention where it is not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..physics import TissueMaps, signed_signal
from ..tissue import AIR_PD, TISSUES, mix
from .anatomy import smooth_field

LEAST_SHARE = 1e-3
"""Of a voxel: less of a tissue is not seen."""


def slice_points(recipe) -> Tensor:
    """``(z, y, x, 3)``: (x, y, z) in mm from the centre of the head, of a :class:`cohort.CohortRecipe`'s slices."""
    (ny, nx), nz = recipe.shape, recipe.n_slices
    x = (torch.arange(nx) - (nx - 1) / 2) * recipe.voxel_mm
    y = (torch.arange(ny) - (ny - 1) / 2) * recipe.voxel_mm
    z = (torch.arange(nz) - (nz - 1) / 2) * recipe.slice_mm
    zz, yy, xx = torch.meshgrid(z, y, x, indexing="ij")
    return torch.stack([xx, yy, zz], -1)


def draw_texture(shape: tuple[int, ...], sd: float, voxel_mm: float, generator: torch.Generator) -> Tensor:
    """``(3, z, y, x)``: factors by which PD, T1 and T2 vary smoothly inside a tissue."""
    texture = sd * smooth_field(shape, 12 / voxel_mm, generator, 3)
    texture[0] *= 0.5  # water content varies less inside a tissue than relaxation does
    return texture.exp()


def mixed_maps(fractions: Tensor, values: np.ndarray, texture: Tensor) -> Tensor:
    """Maps ``(z, 3, y, x)`` of fractions ``(k, z, y, x)`` and values ``(k, 3)``; 0 in air, PD at most water's."""
    maps = mix(fractions.transpose(0, 1), torch.from_numpy(values).float())
    present = maps[:, :1] > AIR_PD
    maps = maps * texture.transpose(0, 1)
    maps[:, 0].clamp_(max=1.0)
    return maps * present


def added_signals(fractions: Tensor, values: np.ndarray, texture: Tensor, settings: Tensor) -> Tensor:
    """Magnitudes ``(z, m, y, x)`` of scans with ``settings`` ``(m, 6)``: a voxel's tissues add their signals."""
    total = fractions.new_zeros(len(settings), *fractions.shape[1:])
    for share, tissue in zip(fractions, values, strict=True):
        there = share > LEAST_SHARE
        if not there.any():
            continue
        pd, t1, t2 = (texture[:, there] * torch.from_numpy(tissue).float()[:, None])[:, None, None]
        signals = signed_signal(TissueMaps(pd.clamp(max=1.0), t1, t2), settings[None])[0, :, 0]
        total[:, there] += share[there] * signals
    return total.abs().transpose(0, 1)


def add_lesions(fractions: Tensor, voxel_mm: float, generator: torch.Generator) -> Tensor:
    """Replace white matter by lesion in a few blobs a few mm wide."""
    blobs = smooth_field(fractions.shape[1:], 8 / voxel_mm, generator)[0]
    share = torch.sigmoid((blobs - 2.2) * 8)
    wm, lesion = TISSUES.index("WM"), TISSUES.index("lesion")
    out = fractions.clone()
    out[lesion] += fractions[wm] * share
    out[wm] *= 1 - share
    return out


def acquire(
    clean: Tensor, bias: float, noise: tuple[float, float], voxel_mm: float, rng, generator
) -> tuple[Tensor, np.ndarray]:
    """Receive bias, Rician noise and an arbitrary gain: ``(z, m, y, x)`` images and ``(m,)`` gains."""
    n_z, n_m, n_y, n_x = clean.shape
    field = smooth_field((n_z, n_y, n_x), 60 / voxel_mm, generator)[0]
    biased = clean * torch.exp(bias * field)[:, None]
    top = torch.quantile(biased.permute(1, 0, 2, 3).reshape(n_m, -1)[:, ::7], 0.99, dim=1)
    sd = top * torch.from_numpy(rng.uniform(*noise, n_m)).float()
    images = torch.empty_like(biased)
    for m in range(n_m):  # a scan at a time: the noise of all at once is three times the images
        two = torch.randn(2, n_z, n_y, n_x, generator=generator) * sd[m]
        images[:, m] = ((biased[:, m] + two[0]) ** 2 + two[1] ** 2).sqrt()
    gains = np.exp(rng.uniform(np.log(200), np.log(2000), n_m))
    return images * torch.from_numpy(gains).float()[None, :, None, None], gains
