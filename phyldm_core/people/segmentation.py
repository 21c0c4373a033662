"""Where brain and tissue are, told from maps or a rendered T1w alone: samples and true people are treated alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from skimage.filters import threshold_multiotsu
from torch import Tensor

from ..physics import REFERENCE, Protocol, TissueMaps, render
from ..slices import largest_piece
from ..tissue import CLASSES


def segment_tissue(t1w: ArrayLike, brain_mask: ArrayLike) -> NDArray[np.uint8]:
    """Label CSF, GM, WM (1, 2, 3; 0 elsewhere) by three-class multi-Otsu thresholds on a T1w image.

    A segmentation for judging relaxation times must not look at them: thresholds on T1 itself would make any
    sample's white matter look right. This one sees a rendered T1w only, is blind to gain, knows no anatomy,
    and is applied alike to samples and truth, so that its own errors cancel in their comparison.

    Parameters
    ----------
    t1w
        Reference T1w rendered from the maps, ``(..., y, x)``, one subject.
    brain_mask
        The same shape; outside it, no label.

    Raises
    ------
    ValueError
        Where the image inside the mask is not finite, or has fewer than three levels.
    """
    image, brain = np.asarray(t1w, dtype=float), np.asarray(brain_mask).astype(bool)
    values = image[brain]
    if not values.size or not np.isfinite(values).all():
        raise ValueError("the mask is empty, or the T1w image holds NaN or infinity inside it: mend either")
    # Clipped, so that a few bright voxels do not stretch the histogram over which the thresholds are sought.
    values = np.clip(values, *np.percentile(values, (0.5, 99.5)))
    if np.unique(values).size < 3:
        raise ValueError("the T1w image has fewer than three grey levels inside the mask: no tissue can be told apart")
    return np.where(brain, 1 + np.digitize(image, threshold_multiotsu(values, classes=3)), 0).astype(np.uint8)


def tissue_values(maps: ArrayLike, labels: ArrayLike) -> dict[tuple[str, str], NDArray]:
    """(tissue, quantity) → 1-D values: maps ``(n, 3, y, x)`` (PD, T1, T2) sorted by labels ``(n, y, x)``."""
    maps, labels = np.asarray(maps), np.asarray(labels)
    return {
        (name, quantity): maps[:, p][labels == k]
        for k, name in enumerate(CLASSES, start=1)
        for p, quantity in enumerate(("PD", "T1", "T2"))
    }


LONGER_THAN_FAT = 0.6
"""s. Fat's T1 is 0.4 s, white matter's at least 0.8 s at 3 T."""


def brain_of(maps: TissueMaps) -> Tensor:
    """``(n, y, x)`` bool: the brain of each slice, told from the maps alone: samples and truth are treated alike.

    What a proton-density-weighted scan would show above a third of water's signal, without fat, bridges of up to
    four pixels cut, the largest piece of the slice. Bone is too dark to be seen there. Where a blurred skull lets the
    scalp through, its fat is told by a T1 that no tissue of the brain comes near. And unlike PD itself, the signal is
    zero in air, where no scan tells a model what PD should be.
    """
    bright = render(maps, Protocol("spin echo", te=0.02, tr=5.0)) > 1 / 3
    return torch.from_numpy(largest_piece((bright & (maps.t1 > LONGER_THAN_FAT)).numpy()))


def segmented_values(maps: TissueMaps) -> dict[tuple[str, str], NDArray]:
    """(tissue, quantity) → 1-D values of every slice, segmented by :func:`segment_tissue` on its reference T1w.

    Slice by slice, because a generated slice stands alone. A slice without a brain gives nothing.
    """
    return tissue_values(maps.stack().numpy(), segment_slices(maps))


def segment_slices(maps: TissueMaps) -> NDArray[np.uint8]:
    """``(n, y, x)``: CSF, GM, WM = 1, 2, 3 by :func:`segment_tissue`, slice by slice, 0 without a brain."""
    t1w, brain = render(maps, REFERENCE["T1w"]).numpy(), brain_of(maps).numpy()
    labels = np.zeros(brain.shape, np.uint8)
    for i in np.flatnonzero(brain.any((1, 2))):
        labels[i] = segment_tissue(t1w[i], brain[i])
    return labels
