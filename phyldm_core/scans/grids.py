"""Slices and grids: where the voxels of a scan lie, and the same scan on another grid.

A slice for a network is ``(y, x)``: ``volume[:, :, k].T``. Nothing here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy  # loads ndimage when it is first asked for: rendering need not wait for it
from nibabel.affines import apply_affine, voxel_sizes

from ..machine.errors import BadInput
from .nifti import Scan

CENTRE_BELOW_TOP = 65.0  # mm; to MNI z = 12 it is 70 ± 4 from the scalp and 59 ± 3 from a stripped brain (15 heads)


class Grid(NamedTuple):
    """Where voxels lie: ``shape`` (x, y, z) and the ``affine`` of voxel indices to RAS mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def volume_to_slices(volume: np.ndarray, k: Several[int] | None = None) -> np.ndarray:
    """``(x, y, z)`` → ``(n, y, x)``: the axial slices ``k``, all by default."""
    return np.ascontiguousarray(volume.T if k is None else volume[:, :, list(k)].T)


def unsigned(scan: Scan) -> Scan:
    """A scan without the sign of a real part: what tells head from air, for whoever asks where it lies."""
    return replace(scan, image=np.abs(scan.image)) if scan.protocol.signed else scan


def head_centre(scan: Scan) -> np.ndarray:
    """RAS mm of the middle of the brain, head or no head around it: 65 mm below the top, midway across.

    Good to a centimetre, for choosing slices; it replaces no registration. Foreground is what exceeds
    a tenth of the 98th percentile (the threshold BET starts from). Where less than 130 mm of head was
    scanned, the height is the middle of what there is.
    """
    step = [max(1, round(3 / mm)) for mm in voxel_sizes(scan.affine)]  # every 3 mm tells a centre
    thinned = scan.image[:: step[0], :: step[1], :: step[2]]
    low, high = np.percentile(thinned, (2, 98))
    points = apply_affine(scan.affine, np.argwhere(thinned > low + 0.1 * (high - low)) * step)
    bottom, top = np.percentile(points[:, 2], (0.5, 99.9))
    height = max(top - CENTRE_BELOW_TOP, (top + bottom) / 2)
    level = points[abs(points[:, 2] - height) < 15]  # one level, so that neck and face do not pull
    if not len(level):
        level = points
    x, y = np.percentile(level[:, :2], (2, 98), axis=0).mean(axis=0)
    return np.array([x, y, height])


def axial_grid(
    scan: Scan,
    shape_yx: tuple[int, int],
    voxel_mm: float,
    z: int | tuple[float, float] = 8,
    slice_mm: float | None = None,
    centre: Several[float] | None = None,
) -> Grid:
    """The grid of a profile, about the brain's centre and along the world's axes.

    Parameters
    ----------
    scan
        The session's reference; its other scans go on the same grid.
    shape_yx, voxel_mm
        Size of a slice in pixels, and of a pixel.
    z
        Number of slices about the centre, or the RAS heights in mm (from, to) to cover.
    slice_mm
        Distance of the slices; ``voxel_mm`` by default.
    centre
        RAS mm; :func:`head_centre` of the scan by default.

    Returns
    -------
        Its origin is moved onto the nearest voxel centre of ``scan``, by up to half a voxel, so that
        a scan already at ``voxel_mm`` is not interpolated.
    """
    slice_mm = slice_mm or voxel_mm
    centre = np.array(head_centre(scan) if centre is None else centre, dtype=np.float64)
    if isinstance(z, int):
        n = z
    else:
        n = max(1, round((z[1] - z[0]) / slice_mm) + 1)
        centre[2] = (z[0] + z[1]) / 2
    shape = (shape_yx[1], shape_yx[0], n)
    spacing = np.array([voxel_mm, voxel_mm, slice_mm])
    origin = centre - spacing * (np.array(shape) - 1) / 2
    origin = apply_affine(scan.affine, np.round(apply_affine(np.linalg.inv(scan.affine), origin)))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


def resample(scan: Scan, grid: Grid) -> np.ndarray:
    """``(x, y, z)`` float32: a scan on another grid, 0 outside what was scanned.

    Where the grid is coarser than the scan, a Gaussian first averages what a coarse voxel would have: a voxel is a box,
    with a variance of a twelfth of its size squared, and the Gaussian's makes up the difference. Then cubic splines.
    Where every voxel of the grid is a voxel of the scan, nothing is interpolated. Where all that surrounds a voxel is
    exactly 0, as in a stripped scan, it is 0: splines ring on for ever, and networks take 0 for what was not scanned.

    Raises
    ------
    BadInput
        The scan and the grid do not overlap.
    """
    mine, wanted = voxel_sizes(scan.affine), voxel_sizes(grid.affine)
    sd = np.sqrt(np.maximum(wanted**2 - mine**2, 0) / 12) / mine
    image = scipy.ndimage.gaussian_filter(scan.image, sd) if sd.any() else scan.image
    matrix = np.linalg.inv(scan.affine) @ grid.affine
    nearest = np.round(matrix)
    order = 0 if np.allclose(matrix, nearest, atol=1e-4) else 3
    matrix = matrix if order else nearest
    laid = {"matrix": matrix, "output_shape": grid.shape}
    volume = scipy.ndimage.affine_transform(image, order=order, mode="mirror", output=np.float32, **laid)
    # "constant" would lose a slice whose place is rounded to a billionth outside the scan
    everywhere = np.ones(image.shape, np.uint8)
    volume *= scipy.ndimage.affine_transform(everywhere, order=0, mode="grid-constant", **laid)
    if order:
        there = (scan.image != 0).astype(np.float32)
        volume *= scipy.ndimage.affine_transform(there, order=1, mode="grid-constant", **laid) > 1e-3
    if not volume.any():
        raise BadInput(f"{scan.path}: does not overlap the session's other scans: nothing of it lies in these slices")
    return volume


def resample_mask(where: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """``(x, y, z)`` bool on a grid, of a mask with its affine: linear, so that no spline rings across the border."""
    matrix = np.linalg.inv(affine) @ grid.affine
    volume, mode = where.astype(np.float32), "grid-constant"  # as in resample, no slice is lost to rounding
    return scipy.ndimage.affine_transform(volume, matrix, output_shape=grid.shape, order=1, mode=mode) >= 0.5
