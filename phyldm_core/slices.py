"""Slices of people: scans ready for a network, the truth beside them where it is known, and who is in which split."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .tissue import REPORTED

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


@dataclass
class Slices:
    """Axial slices of many people, ready for a network.

    Parameters
    ----------
    images
        ``(n, m, y, x)`` float32; a scan that does not exist is zero. Of :func:`cohort.load_scans` it lies in a file.
    settings
        ``(n, m, 4)``: sequence, TE, TR, TI of each scan, effective TE where that applies.
    observed
        ``(n, m)`` bool: which scans exist.
    subject
        ``(n,)`` index of the person each slice belongs to, of the session where a real person has
        several; those of one split count from 0.
    position
        ``(n,)`` height of the slice in the stack, −1 (lowest) to 1.
    """

    images: Tensor
    settings: Tensor
    observed: Tensor
    subject: Tensor
    position: Tensor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index) -> Slices:
        return Slices(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


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
        ``(z, m, 4)``: settings with the echo times as the scanner names them.
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
                values = images[rows, m]
                scale[rows, m] = torch.quantile(values[values > 0.05 * values.max()], 0.95)
    return scale
