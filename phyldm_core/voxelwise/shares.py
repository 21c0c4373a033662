"""A session's scans told apart into tissues, voxel by voxel: what in a voxel adds up to its signals.

Maps give a voxel one T1 and one T2; one that cortex and fluid share has no such pair. Its signals still add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import denoise_nl_means
from torch import Tensor

from ..composition import (
    BRAIN_PARTS,
    NEIGHBOURS,
    SCALP,
    Composition,
    brain_in,
    emptied,
    medians_of,
    own_values,
    texture_of,
)
from ..inference import Explained
from ..physics import signed_signal
from ..slices import Scans, Slices, deep_in

EMPTY, FULL = 0.12, 0.88
"""Between these sums of shares a voxel goes from empty to full: noise in air is not tissue, and the field varies."""

RARE = {("WM", "lesion"): 2.0}
"""What scans tell apart better than maps do: cortex in noise is no lesion."""

OVERFULL, UNFILLED = 0.1, 0.15
"""SD of how much more than a voxel two tissues fill, and how much less white and grey matter do: fields, no holes."""


def unmix_signals(scans: Scans, values: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` of air and of each tissue that explain scans on PD's scale: in a voxel signals add.

    So what two tissues fill is a linear least-squares fit; of :data:`NEIGHBOURS` the pair that explains most wins, with
    the signs that magnitudes may have lost. One T1 for the whole voxel is not asked for: no single one explains T1w,
    T2w and FLAIR of cortex and fluid together.

    Parameters
    ----------
    values
        ``(k, 3)``: PD, T1 (s), T2 (s) of the person's tissues.
    """
    settings = scans.settings[:1].expand(len(values), -1, -1)
    signals = signed_signal(values.T[..., None, None], settings)  # (k, m, 1, 1)
    seen, weight = scans.over_noise, scans.weight
    least = torch.full_like(seen[:, 0], float("inf"))
    filled = seen.new_zeros(len(seen), len(tissues), *seen.shape[2:])
    for (a, b), cost in (NEIGHBOURS | RARE).items():
        if not {a, b} <= {*tissues}:
            continue
        pair = [tissues.index(a), tissues.index(b)]
        one, other = signals[pair]
        for signs in _signs(one, other, scans.settings[0, :, 5] > 0):
            parts, off = _two_parts(seen * signs, weight, one, other)
            total = parts.sum(1)
            off = off + cost + ((total - 1).clamp_min(0) / OVERFULL) ** 2
            if a in BRAIN_PARTS:
                off = off + ((1 - total).clamp_min(0) / UNFILLED) ** 2
            nearer = off < least
            least = torch.where(nearer, off, least)
            filled = torch.where(nearer[:, None], 0.0, filled)
            filled[:, pair] = torch.where(nearer[:, None], parts, filled[:, pair])
    whole = filled.sum(1, keepdim=True)
    full = ((whole - EMPTY) / (FULL - EMPTY)).clamp(0, 1)
    return torch.cat([1 - full, full * filled / whole.clamp_min(1e-6)], 1)


def _signs(one: Tensor, other: Tensor, signed: Tensor) -> Iterator[Tensor]:
    """Each way ``(m, 1, 1)`` in which magnitudes of what two tissues' signals ``(m, 1, 1)`` add up to may be signed."""
    choices = [
        (1.0,) if real else (float(a),) if a == b else (float(a), float(b))
        for a, b, real in zip(one.flatten().sign(), other.flatten().sign(), signed, strict=True)
    ]
    for signs in product(*choices):
        yield one.new_tensor(signs)[:, None, None]


def _two_parts(seen: Tensor, weight: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each voxel two tissues fill ``(n, 2, y, x)``, neither less than nothing, and the misfit left."""
    aa, bb, ab = ((x * weight).sum(1) for x in (one * one, other * other, one * other))
    at_a, at_b = ((seen * x * weight).sum(1) for x in (one, other))
    det = (aa * bb - ab**2).clamp_min(1e-9)
    first, second = (at_a * bb - at_b * ab) / det, (at_b * aa - at_a * ab) / det
    alone = [(at / own.clamp_min(1e-9)).clamp_min(0) for at, own in ((at_a, aa), (at_b, bb))]
    none = first < 0, second < 0
    first = torch.where(none[1], alone[0], first.clamp_min(0))
    second = torch.where(none[0], alone[1], second.clamp_min(0))
    left = ((seen - first[:, None] * one - second[:, None] * other) ** 2 * weight).sum(1)
    return torch.stack([first, second], 1), left


NOISE_OF_SHARES = 0.05
"""Strength of the non-local means (Buades et al. 2011) that takes a scan's noise off the shares, and leaves folds."""

STRAY = 5
"""A piece of so few voxels with none but air around it is noise."""


def _without_noise(shares: Tensor, tissues: tuple[str, ...]) -> Tensor:
    settings = {"patch_size": 3, "patch_distance": 4, "h": NOISE_OF_SHARES, "fast_mode": True, "channel_axis": 0}
    found = torch.from_numpy(np.stack([denoise_nl_means(one, **settings) for one in shares.numpy()])).clamp_min(0)
    return without_strays(anatomical(found / found.sum(1, keepdim=True), tissues))


def without_strays(shares: Tensor) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` whose small pieces in air, :data:`STRAY`, are air."""
    stray = np.zeros((len(shares), *shares.shape[2:]), bool)
    for found, soft in zip(stray, (shares[:, 0] < 0.5).numpy(), strict=True):
        pieces, _ = ndimage.label(soft, np.ones((3, 3)))
        found |= (np.bincount(pieces.ravel()) <= STRAY)[pieces] & soft
    return emptied(shares, torch.from_numpy(stray)[:, None])


AIRLESS = 2
"""Voxels from the brain's rim: further inside there is no air. Noise has some there, and takes it from PD."""

MOST_AIR = 0.6
"""Outside the brain a voxel with less air than this is scalp, and so is a gap of two voxels in it. The signal of skin
is hardly above the noise of most scans."""

SCALP_SD = 0.8  # voxels, of the Gaussian over which fat and muscle of the scalp are told apart


def anatomical(shares: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` without what is in no head: air inside the brain, its tissues in the scalp, holes."""
    inner, outer = _sides(tissues)
    brain = brain_in(shares, tissues)
    full = torch.zeros_like(shares)
    full[:, inner] = shares[:, inner]
    total = full.sum(1, keepdim=True)
    shares = torch.where(deep_in(brain, AIRLESS) & (total > 0), full / total.clamp_min(1e-6), shares)
    if not outer:
        return shares
    scalp = _each(ndimage.binary_closing, np.pad((shares[:, 0].numpy() < MOST_AIR) & ~brain, ((0,), (1,), (1,))))
    scalp = scalp[:, 1:-1, 1:-1] & ~_each(ndimage.binary_dilation, brain, structure=np.ones((3, 3)))
    of_two = shares[:, outer]
    near = _smooth(of_two, 1.0)
    of_two = of_two + shares[:, inner].sum(1, keepdim=True) * near / near.sum(1, keepdim=True).clamp_min(1e-6)
    of_two = _smooth(of_two, SCALP_SD) ** 2  # squared: most of the scalp is one of the two
    known = of_two.sum(1, keepdim=True)
    air = torch.where(torch.from_numpy(scalp)[:, None], 0.0, shares[:, :1]).masked_fill(known < 1e-6, 1.0)
    outside = torch.zeros_like(shares)
    outside[:, :1], outside[:, outer] = air, (1 - air) * of_two / known.clamp_min(1e-6)
    return torch.where(torch.from_numpy(brain)[:, None], shares, outside)


def _sides(tissues: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Which shares are of the brain's tissues, and which of the scalp's; the share of air comes before all."""
    outer = [1 + tissues.index(name) for name in SCALP if name in tissues]
    return [k for k in range(1, 1 + len(tissues)) if k not in outer], outer


def _each(change: Callable, slices: NDArray, **how) -> NDArray:
    return np.stack([change(one, **how) for one in slices])


def _smooth(shares: Tensor, sd: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(shares.numpy(), (0, 0, sd, sd)))


UNSHARED = 0.9  # of a voxel: less is shared, and has no T1 of its own


def compose_scans(explained: Explained, slices: Slices, tissues: tuple[str, ...], cell: int) -> Composition:
    """Tell a session's scans apart into tissues, as :func:`composition.compose` does maps.

    White matter, grey matter and CSF have the values that the session's signals told, other tissues their mode in the
    explained maps. But PD of fat and muscle is literature's: the scalp's layers share most voxels with air and bone,
    and maps of validation people had it 3 to 14 % too low. Texture is that of the brain's voxels of one tissue.

    Parameters
    ----------
    explained
        Of ``slices``, by :func:`inference.explain`.
    """
    stack = explained.maps.stack()
    values = own_values(stack, tissues).median(0).values
    values[: len(BRAIN_PARTS)] = explained.tissues
    scans = Scans(slices.images / explained.gain[:, None, None], slices.settings, slices.observed)
    shares = _without_noise(unmix_signals(scans, values, tissues), tissues)
    inner, outer = _sides(tissues)
    values[[k - 1 for k in outer], 0] = medians_of(tissues)[[k - 1 for k in outer], 0]
    values = values.expand(len(stack), -1, -1)
    pure = (shares[:, inner].amax(1, keepdim=True) > UNSHARED).float()
    return Composition(shares, values, texture_of(stack, shares, values, pure, cell))
