"""Slices of people: scans ready for a network, the truth beside them where it is known, and who is in which split."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from .tissue import NOISE_SQUARED, REPORTED

MODALITIES = ("T1w", "T2w", "FLAIR")
MAPS = ("PD", "T1", "T2")  # water = 1, s, s
SPLITS = ("train", "val", "test")
SUBSETS = {
    "+".join(names): tuple(m in names for m in MODALITIES)
    for size in range(1, len(MODALITIES) + 1)
    for names in combinations(MODALITIES, size)
}
"""The seven ways to show one, two or three scans: label → which of :data:`MODALITIES` are shown."""
ALL_SCANS = "+".join(MODALITIES)
LAYERS = ("air", "brain", "fat", "other")
"""What a head is made of, as far as scans arrive without it: stripped, or with fat suppressed."""


@dataclass
class Slices:
    """Axial slices of many people, ready for a network.

    Parameters
    ----------
    images
        ``(n, m, y, x)`` float32; a scan that does not exist is zero. Of :func:`cohort.load_scans` it lies in a file.
    settings
        ``(n, m, 6)`` of each scan, from :meth:`Protocol.settings`; effective TE where that applies.
    observed
        ``(n, m)`` bool: which scans exist.
    subject
        ``(n,)`` index of the person each slice belongs to, of the session where a real person has
        several; those of one split count from 0.
    position
        ``(n,)`` height of the slice in the stack, −1 (lowest) to 1.
    layers
        ``(n, y, x)`` uint8, numbers of :data:`LAYERS`; None where nobody knows.
    """

    images: Tensor
    settings: Tensor
    observed: Tensor
    subject: Tensor
    position: Tensor
    layers: Tensor | None = None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index) -> Slices:
        fields = (getattr(self, name) for name in self.__dataclass_fields__)
        return Slices(*(None if field is None else field[index] for field in fields))


@dataclass
class Truth:
    """What was simulated: ``maps`` ``(n, 3, y, x)`` (PD, T1 s, T2 s; 0 in air) and tissue fractions ``(n, 3, y, x)``.

    The fractions are of WM, GM and CSF (pooled as in :data:`tissue.REPORTED`).
    """

    maps: Tensor
    fractions: Tensor

    def tissue(self, name: str, purity: float = 0.9) -> Tensor:
        """``(n, y, x)`` bool: voxels that hold at least ``purity`` of "WM", "GM" or "CSF"."""
        return self.fractions[:, list(REPORTED).index(name)] >= purity

    @property
    def brain(self) -> Tensor:
        """``(n, y, x)`` bool: voxels that are at least half WM, GM or CSF."""
        return self.fractions.sum(1) >= 0.5


@dataclass
class Person:
    """One person, scanned with all three contrasts.

    Parameters
    ----------
    common, scanned
        Slices on the common scale of PD, and in scanner units with a gain per scan.
    nominal
        ``(z, m, 6)``: settings with the echo times as the scanner names them.
    """

    name: str
    head: str
    common: Slices
    scanned: Slices
    nominal: Tensor
    truth: Truth


def brightness(images: Tensor, observed: Tensor, subject: Tensor) -> Tensor:
    """``(n, m)``: what to divide each scan by before a network sees it, so that any gain drops out.

    The 95th percentile of a scan's own head over the slices of its person; 1 where there is no scan.
    """
    scale = torch.ones(observed.shape)
    for person in subject.unique():
        rows = subject == person
        for m in range(observed.shape[1]):
            if observed[rows, m].any():
                values = images[rows, m].abs()  # a real part has two signs
                scale[rows, m] = torch.quantile(values[values > 0.05 * values.max()], 0.95)
    return scale


# --- as scans arrive ------------------------------------------------------------------------------

SPOILED = {"stripped": 0.2, "fat suppressed": 0.15, "cropped": 0.15, "half": 0.1, "blurred": 0.1, "thick": 0.1}
"""How often each befalls a scan that an encoder is trained on; a smooth receive field of its own befalls all."""

FIELD_SD = 0.12
"""Of the logarithm: 98 % of a scan lies within 30 % of its middle."""

LEAST_LEFT = 0.03
"""Of a slice: below, there is nothing to learn from."""


def spoiled(image: Tensor, layers: Tensor, generator: torch.Generator, ways: Collection[str] | None = None) -> Tensor:
    """A scan ``(y, x)`` as it may arrive: receive field, stripped, fat suppressed, cropped, half covered, blurred.

    What a scan does not show is exactly 0. A scan of which too little would be left is not cut.

    Parameters
    ----------
    layers
        ``(y, x)`` uint8, numbers of :data:`LAYERS`.
    ways
        Names in :data:`SPOILED`, all of which befall it, and no receive field; None: as often as said there.
    """

    def unit(n: int = 1) -> list[float]:
        return torch.rand(n, generator=generator).tolist()

    (ny, nx), hit = image.shape, ways
    if ways is None:
        hit = {name for name, drawn in zip(SPOILED, unit(len(SPOILED)), strict=True) if drawn < SPOILED[name]}
        coarse = torch.randn(1, 1, 5, 4, generator=generator)
        field = functional.interpolate(coarse, (ny, nx), mode="bicubic", align_corners=True)[0, 0]
        image = image * (FIELD_SD * field / field.std()).exp()
    if "blurred" in hit:  # of lower resolution, or the patient moved
        size = [round(n / (1.2 + 0.8 * share)) for n, share in zip(image.shape, unit(2), strict=True)]
        smooth = {"mode": "bilinear", "align_corners": False}
        coarse = functional.interpolate(image[None, None], size, antialias=True, **smooth)
        image = functional.interpolate(coarse, (ny, nx), **smooth)[0, 0]
    if "thick" in hit:  # slices of 3 or 5 mm, cut along the other way
        width = 3 if unit()[0] < 0.5 else 5
        kernel = (width, 1) if unit()[0] < 0.5 else (1, width)
        padding = [size // 2 for size in kernel]
        image = functional.avg_pool2d(image[None], kernel, 1, padding, count_include_pad=False)[0]
    if "fat suppressed" in hit:
        fat = (layers == LAYERS.index("fat")).float()
        image = image * (1 - (0.5 + 0.5 * unit()[0]) * functional.avg_pool2d(fat[None], 3, 1, 1)[0])
    whole = image
    if "stripped" in hit:
        rim = 2 * int(4 * unit()[0]) + 1
        brain = (layers == LAYERS.index("brain")).float()
        image = image * functional.max_pool2d(brain[None], rim, 1, rim // 2)[0]
    if "cropped" in hit:
        top, bottom, left, right = (int(share * 0.25 * n) for share, n in zip(unit(4), (ny, ny, nx, nx), strict=True))
        image = functional.pad(image[top : ny - bottom, left : nx - right], (left, right, top, bottom))
    if "half" in hit:
        (share, turn, across), sizes = unit(3), (nx, ny)
        n = sizes[across < 0.5]
        kept = torch.arange(n) < (0.3 + 0.5 * share) * n
        kept = kept if turn < 0.5 else kept.flip(0)
        image = image * (kept[:, None] if across < 0.5 else kept)
    return image if (image != 0).float().mean() >= LEAST_LEFT else whole


def covered(images: Tensor) -> Tensor:
    """``(..., y, x)`` bool: where a scan holds a measurement. A stripped, cropped or missing part is exactly 0.

    Single zeros among signal are noise, so a pixel is uncovered where its 5×5 neighbourhood is empty.
    """
    there = (images != 0).float().flatten(0, -3)[:, None]
    return functional.max_pool2d(there, 5, 1, 2).view(images.shape) > 0


INSIDE = 0.12  # of a scan's brightness: where every scan is darker there is no head
NOISE_RANGE = (0.008, 0.03)  # of a scan's brightness: what its air says is kept between
SIGNAL_ERROR = 0.03
"""Of the signal: the coil's field and the signal equations are known to no better."""


def largest_piece(soft: NDArray) -> NDArray:
    """``(n, y, x)`` bool: of each slice of a mask the largest piece, once bridges of up to four pixels are cut."""
    largest = np.zeros_like(soft)
    for found, one in zip(largest, soft, strict=True):
        pieces, n = ndimage.label(ndimage.binary_erosion(one, iterations=2))
        if n:
            biggest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
            found |= ndimage.binary_dilation(biggest, iterations=3, mask=one)  # and its own fringe back
    return largest


def deep_in(brain: NDArray, voxels: int) -> Tensor:
    """``(n, 1, y, x)`` bool: further than so many voxels inside the rim of ``brain`` ``(n, y, x)``."""
    return torch.from_numpy(np.stack([ndimage.binary_erosion(one, iterations=voxels) for one in brain]))[:, None]


@dataclass(frozen=True)
class Scans:
    """Scans ``(n, m, y, x)`` over their brightness, and where they count."""

    images: Tensor
    settings: Tensor
    shown: Tensor

    def __getitem__(self, rows: Tensor) -> Scans:
        return Scans(self.images[rows], self.settings[rows], self.shown[rows])

    @cached_property
    def measured(self) -> Tensor:
        """``(n, m, y, x)`` bool: a scan that is shown, where it holds a measurement."""
        return covered(self.images) & self.shown[..., None, None]

    @cached_property
    def inside(self) -> Tensor:
        """``(n, y, x)`` bool: the head, as far as any scan shows it."""
        return ((self.images.abs() > INSIDE) & self.measured).any(1)

    @cached_property
    def counted(self) -> Tensor:
        """``(n, m, y, x)``: 1 where a scan measures the head, else 0."""
        return (self.inside[:, None] & self.measured).float()

    @cached_property
    def noise(self) -> Tensor:
        """``(m,)``: SD, told from air, where magnitudes are Rayleigh: SD² = mean square / 2."""
        air = self.measured & ~self.inside[:, None]
        square = (self.images**2 * air).sum((0, 2, 3)) / air.sum((0, 2, 3)).clamp_min(1)
        return (square / 2).sqrt().clamp(*NOISE_RANGE)

    @cached_property
    def over_noise(self) -> Tensor:
        """``(n, m, y, x)``: the signal without what the noise adds to a magnitude; a real part as it is."""
        signed = self.settings[..., 5, None, None] > 0
        square = (self.images**2 - NOISE_SQUARED * self.noise[:, None, None] ** 2).clamp_min(0)
        return torch.where(signed, self.images, square.sqrt())

    @cached_property
    def weight(self) -> Tensor:
        """``(n, m, y, x)``: 1 over the variance of noise and :data:`SIGNAL_ERROR`; 0 where nothing is measured."""
        return self.measured / (self.noise[:, None, None] ** 2 + (SIGNAL_ERROR * self.images) ** 2)
