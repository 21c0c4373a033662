"""The shape of a head in an axial slice, measured as a radiologist would look: ventricles, skull, cortex.

Everything is told from PD, T1 and T2 of the slice alone, the same for drawn and true people. The slices are the
central ones of the paper, through the lateral ventricles, with the whole head in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage.measure import find_contours
from skimage.morphology import convex_hull_image

from ..people.segmentation import brain_of
from ..physics import Protocol, TissueMaps, render
from ..tissue import three_medians
from . import metrics

MEASURES = ("skull_closed", "ventricle_asymmetry", "cortical_thickness", "folding")
CORE = 0.5
"""Of the brain's greatest depth: deeper lie ventricles and deep grey matter, further out cortex and its sulci."""

N_RAYS = 360
SOFT_SIGNAL = 1 / 3  # of water's signal in a PD-weighted scan: soft tissue is above, bone and air are below
GAP_RAYS = 5  # that may miss bone or scalp side by side, 7 mm of outline: in a true temple bone is a pixel thin
CUT_MM = 15.0  # nearer to the edge of the picture than this, a head may go on outside it: nothing can be said


def tissue_labels(maps: TissueMaps) -> NDArray[np.uint8]:
    """``(n, y, x)``: CSF, GM, WM = 1, 2, 3 in the brain, by T1 alone, 0 outside it.

    The limits are the geometric means of the literature's T1 of WM, GM and CSF, where equal parts of two tissues are.
    Tissue values of a person are 5 % (SD) about the literature's: far from these limits.
    """
    white, fluid = t1_limits()
    brain, t1 = brain_of(maps).numpy(), maps.t1.numpy()
    return np.where(brain, np.select([t1 > fluid, t1 > white], [1, 2], 3), 0).astype(np.uint8)


def t1_limits() -> tuple[float, float]:
    """T1 (s) between WM and GM, and between GM and CSF."""
    wm, gm, csf = (three_medians()[name][1] for name in ("WM", "GM", "CSF"))
    return float(np.sqrt(wm * gm)), float(np.sqrt(gm * csf))


def core(brain: NDArray) -> NDArray:
    """``(y, x)`` bool: the inside of one slice's brain, by depth (:data:`CORE`) under its convex hull."""
    depth = ndimage.distance_transform_edt(np.pad(convex_hull_image(brain), 1))[1:-1, 1:-1]
    return depth > CORE * depth.max()


def ventricles(labels: NDArray, inner: NDArray) -> NDArray:
    """``(y, x)`` bool: connected fluid of one slice that lies mostly in the brain's :func:`core`, ``inner``.

    Sulci and the Sylvian fissure are connected with the surface or lie outside the core; what is left of them is less
    than a tenth of the largest piece. The third ventricle and the cistern behind it come along, on the mid-line.
    """
    pieces, n = ndimage.label(labels == 1)
    inside = ndimage.mean(inner, pieces, np.arange(n + 1)) > 0.5
    area = np.bincount(pieces.ravel()) * inside
    area[0] = 0
    return ((area > 0.1 * area.max()) & inside)[pieces] & (pieces > 0)


def mid_line(brain: NDArray) -> tuple[float, float]:
    """``(a, b)`` of x = a + b·y, pixels: the straight line through the middles of the brain's rows."""
    y, x = np.nonzero(brain)
    rows = np.unique(y)
    ends = [ndimage.minimum(x, y, rows), ndimage.maximum(x, y, rows)]
    slope, start = np.polyfit(rows, np.mean(ends, 0), 1)
    return float(start), float(slope)


def asymmetry(ventricle: NDArray, brain: NDArray) -> float:
    """|left − right| / (left + right) of the area of one slice's ventricles about the mid-line; NaN without any."""
    y, x = np.nonzero(ventricle)
    if not len(x):
        return np.nan
    start, slope = mid_line(brain)
    return float(abs(np.sign(x - start - slope * y).mean()))


def skull_closed(seen: NDArray, brain: NDArray, voxel_mm: float) -> bool:
    """Whether one slice's head is one ring: looking out from the brain, first bone, then scalp, in every direction.

    A hole in the scalp, a skull that lets the scalp touch the brain, or a head without either is not closed.

    Parameters
    ----------
    seen
        ``(y, x)`` bool: soft tissue; bone and air are False.
    brain
        ``(y, x)`` bool.
    """
    (height, width), (y0, x0) = brain.shape, ndimage.center_of_mass(brain)
    angle, r = np.linspace(0, 2 * np.pi, N_RAYS, endpoint=False)[:, None], np.arange(height + width)
    y, x = (np.rint(at).astype(int) for at in (y0 + r * np.sin(angle), x0 + r * np.cos(angle)))
    pictured = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    soft, inside = seen[y, x] & pictured, brain[y, x] & pictured
    outside = pictured & (r > _last(inside))
    scalp = outside & soft
    bone = outside & ~soft & (r < _last(soft))  # dark, but before the ray's last soft tissue: not air
    cut = outside.sum(1) * voxel_mm < CUT_MM
    return _longest_run(~(scalp.any(1) & bone.any(1) | cut)) <= GAP_RAYS


def _last(rays: NDArray) -> NDArray:
    """``(n, 1)``: index of the last True of each ray, 0 without any."""
    return np.where(rays, np.arange(rays.shape[1]), 0).max(1, keepdims=True)


def _longest_run(missed: NDArray) -> int:
    """Of True side by side on a circle."""
    if missed.all():
        return len(missed)
    pieces, n = ndimage.label(np.roll(missed, -int(np.argmin(missed))))
    return int(np.bincount(pieces)[1:].max()) if n else 0


def cortex(t1: NDArray, labels: NDArray, inner: NDArray, voxel_mm: float) -> tuple[float, float]:
    """Thickness of the cortex (mm) and folding of the white matter (no unit) of one slice; NaN without white matter.

    Both rest on the length of the border between white and grey matter outside the :func:`core`, ``inner``, where grey
    matter is cortex: the line of equal T1 between the two, finer than pixels. Thickness is the area of that grey matter
    over the length of the border: where two cortices lie back to back in a closed sulcus and no fluid parts them, both
    are counted twice, while a distance across would be of two cortices. Folding is the length of the border over that
    of the convex hull of the white matter.
    """
    white = np.argwhere(labels == 3)
    if len(white) < 3:
        return np.nan, np.nan
    image = np.log(np.where(labels > 0, t1, three_medians()["GM"][1]).clip(1e-3))
    length = 0.0
    for line in find_contours(image, np.log(t1_limits()[0])):
        middle = np.rint((line[1:] + line[:-1]) / 2).astype(int)
        length += np.linalg.norm(np.diff(line, axis=0), axis=1)[~inner[tuple(middle.T)]].sum()
    if not length:
        return np.nan, np.nan
    grey = ((labels == 2) & ~inner).sum()
    hull = ConvexHull(white, qhull_options="QJ")  # jogs points that lie on one line, instead of refusing them
    return float(grey / length * voxel_mm), float(length / hull.area)  # of a plane hull, Qhull's area is the perimeter


def measure_shapes(maps: TissueMaps, voxel_mm: float) -> pandas.DataFrame:
    """:data:`MEASURES` of every slice, a row each; NaN where a slice lacks what is measured (skull: not closed)."""
    labels, rows = tissue_labels(maps), []
    seen = (render(maps, Protocol("spin echo", te=0.02, tr=5.0)) > SOFT_SIGNAL).numpy()
    for soft, t1, of in zip(seen, maps.t1.numpy(), labels, strict=True):
        brain = of > 0
        if not brain.any():
            rows.append((False, np.nan, np.nan, np.nan))
            continue
        inner = core(brain)
        closed, uneven = skull_closed(soft, brain, voxel_mm), asymmetry(ventricles(of, inner), brain)
        rows.append((closed, uneven, *cortex(t1, of, inner, voxel_mm)))
    return pandas.DataFrame(rows, columns=list(MEASURES)).astype(float)


def share_in_range(
    sets: Mapping[str, pandas.DataFrame], true: pandas.DataFrame, person: NDArray, n_halvings: int = 20, seed: int = 0
) -> pandas.DataFrame:
    """How many slices of each set are shaped as true people's are, beside true people against each other.

    The true people are split at random in two halves again and again. One half gives the range, from the 5th to the
    95th percentile of its slices; the others are counted inside it, and so is the other half, of which about nine in
    ten are: more than that no generator should reach. What could not be measured in a slice is outside.

    Parameters
    ----------
    sets
        Name → :func:`measure_shapes` of its slices.
    true, person
        :func:`measure_shapes` of true slices, and whose each is ``(n,)``.

    Returns
    -------
        Long form: metric "skull_closed" (share of slices, of each set and of all true ones) and, for the other
        measures, "within_true" (mean over halvings, their 2.5th and 97.5th percentiles, ``n`` people a half) and
        "median". The true ones' ``inputs`` are "true, other half".
    """
    rng, people, floor = np.random.default_rng(seed), np.unique(person), "true, other half"
    everyone, shares = {**sets, floor: true}, {}
    for _ in range(n_halvings):
        half = np.isin(person, rng.permutation(people)[: len(people) // 2])
        for column in MEASURES[1:]:
            if len(measured := true.loc[half, column].dropna()):
                low, high = np.percentile(measured, (5, 95))
                for name, of in (sets | {floor: true[~half]}).items():
                    shares.setdefault((column, name), []).append(of[column].between(low, high).mean())
    rows = [{"metric": "skull_closed", "inputs": name, "value": float(of.skull_closed.mean()), "n": len(of)}
            for name, of in everyone.items()]  # fmt: skip
    for (column, name), v in shares.items():
        key, measured = {"quantity": column, "inputs": name}, everyone[name][column].dropna()
        interval = metrics.Interval(float(np.mean(v)), *np.percentile(v, (2.5, 97.5)).tolist(), len(people) // 2)
        rows.append({"metric": "within_true", **key, "value": interval})
        if len(measured):
            rows.append({"metric": "median", **key, "value": float(measured.median()), "n": len(measured)})
    return metrics.long_form(rows)
