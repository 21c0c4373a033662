"""Rigid registration of a session's scans: where one head lies relative to another, whatever the contrast.

Mattes mutual information, which asks only that equal tissue be equally bright within each scan, on a
pyramid of isotropic copies (Mattes et al., IEEE Trans Med Imaging 2003;22:120; SimpleITK). One thread
and seeded samples: equal scans give equal transforms.

A transform here is a ``(4, 4)`` matrix in RAS mm that carries a scan's world onto the reference's, so that
``transform @ scan.affine`` is its affine there: nothing is interpolated until the final grid is known.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from ..machine.errors import BadInput
from .grids import Grid, head_centre, resample
from .nifti import Scan

PYRAMID_MM = (8.0, 4.0, 2.0)
"""Voxel size of each level; at 2 mm mutual information places a head to a few tenths of a millimetre."""

SAMPLES = 60_000  # of the voxels of the finest level: more changes the answer by less than 0.05 mm
BINS = 32  # of the joint histogram, a side
HEADERS_BELIEVED_MM = 0.5
"""Nothing in the head moves further: then the headers are left as they are, and aligned scans are not interpolated."""
SAME_HEAD = 0.4  # of the smaller head must lie inside the other field of view, before and after
LARGEST_TURN_DEG = 45.0  # nobody turns further between two scans of one session
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK counts to the left and to the back


def register(moving: Scan, reference: Scan) -> np.ndarray:
    """``(4, 4)`` RAS mm: the rigid movement that carries ``moving`` onto ``reference``.

    The search starts from the headers, and from the headers with the centres of the two heads brought
    together; the better of the two at the coarsest level goes on.

    Returns
    -------
        The identity where the headers agree to :data:`HEADERS_BELIEVED_MM`.

    Raises
    ------
    BadInput
        The two scans do not overlap, or no movement of a head explains the difference.
    """
    if overlap(moving, reference) < SAME_HEAD:
        raise BadInput(f"{moving.path}: does not overlap {reference.path.name}: are both of one session?")
    centre = head_centre(reference)
    shift = np.eye(4)
    shift[:3, 3] = head_centre(moving) - centre
    candidates = [np.eye(4), shift]
    for level, mm in enumerate(PYRAMID_MM):
        pair = [_image(scan, mm) for scan in (reference, moving)]
        found = [_descend(*pair, start, centre, level) for start in candidates]
        possible = [result for result in found if _is_possible(np.linalg.inv(result[0]), moving, reference)]
        if possible:
            candidates = [min(possible, key=lambda result: result[1])[0]]
        elif mm == PYRAMID_MM[-1]:
            raise BadInput(
                f"{moving.path}: cannot be registered to {reference.path.name}: "
                "check both orientations, or leave it out"
            )
    to_reference = np.linalg.inv(candidates[0])
    corners = centre + 80 * np.array(list(product((-1, 1), repeat=3))) / np.sqrt(3)  # mm: of the brain's sphere
    moved = np.linalg.norm(apply_affine(to_reference, corners) - corners, axis=1)
    return np.eye(4) if moved.max() < HEADERS_BELIEVED_MM else to_reference


def _is_possible(transform: np.ndarray, moving: Scan, reference: Scan) -> bool:
    """Mutual information is of the overlap alone, and may be high where next to nothing overlaps."""
    turned = np.degrees(np.arccos(np.clip((np.trace(transform[:3, :3]) - 1) / 2, -1, 1)))
    return turned <= LARGEST_TURN_DEG and overlap(moving, reference, transform) >= SAME_HEAD


def overlap(moving: Scan, reference: Scan, transform: np.ndarray | None = None) -> float:
    """0 to 1: the part of either head that lies in the other scan's field of view, of the head that fits best."""
    transform = np.eye(4) if transform is None else transform
    there = _inside(moving, reference, np.linalg.inv(reference.affine) @ transform @ moving.affine)
    back = _inside(reference, moving, np.linalg.inv(transform @ moving.affine) @ reference.affine)
    return max(there, back)


def _inside(scan: Scan, other: Scan, to_other: np.ndarray) -> float:
    step = [max(1, round(4 / mm)) for mm in voxel_sizes(scan.affine)]
    thinned = scan.image[:: step[0], :: step[1], :: step[2]]
    low, high = np.percentile(thinned, (2, 98))
    voxels = apply_affine(to_other, np.argwhere(thinned > low + 0.1 * (high - low)) * step)
    fits = ((voxels > -0.5) & (voxels < np.array(other.image.shape) - 0.5)).all(1)
    return float(fits.mean()) if len(fits) else 0.0


class Copy(NamedTuple):
    """A scan for SimpleITK, and where it was scanned at all."""

    image: SimpleITK.Image
    scanned: SimpleITK.Image


def _image(scan: Scan, mm: float) -> Copy:
    """An isotropic copy along the world's axes, so that thick slices and oblique axes are no special case."""
    grid = world_grid(scan, mm)
    to_scan = np.linalg.inv(scan.affine) @ grid.affine
    everywhere = np.ones(scan.image.shape, np.uint8)
    scanned = ndimage.affine_transform(everywhere, to_scan, output_shape=grid.shape, order=0)
    return Copy(_in_simpleitk(resample(scan, grid), grid), _in_simpleitk(scanned, grid))


def _in_simpleitk(volume: np.ndarray, grid: Grid) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))  # (z, y, x)
    to_lps, mm = RAS_TO_LPS @ grid.affine, voxel_sizes(grid.affine)
    image.SetSpacing(mm)
    image.SetDirection((to_lps[:3, :3] / mm).ravel())
    image.SetOrigin(to_lps[:3, 3])
    return image


def world_grid(scan: Scan, mm: float) -> Grid:
    """Isotropic voxels along the world's axes that cover a scan's field of view, one of them on a voxel of the scan."""
    corners = apply_affine(scan.affine, list(product(*((-0.5, n - 0.5) for n in scan.image.shape))))
    low, high = corners.min(0), corners.max(0)
    on = apply_affine(scan.affine, np.round((np.array(scan.image.shape) - 1) / 2))  # the middle voxel
    before = np.floor((on - low) / mm - 0.5 + 1e-3).astype(int).clip(0)  # whole voxels that fit below it, and above
    after = np.floor((high - on) / mm - 0.5 + 1e-3).astype(int).clip(0)
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = on - before * mm
    return Grid(tuple(int(n) for n in before + after + 1), affine)


def _descend(
    fixed: Copy, moving: Copy, start: np.ndarray, centre: np.ndarray, level: int, transform=None, within=None
) -> tuple[np.ndarray, float]:
    """The reference-to-moving movement found from ``start`` (RAS), and minus its mutual information."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order; sessions run side by side anyway
    transform = SimpleITK.VersorRigid3DTransform() if transform is None else transform
    transform.SetCenter(RAS_TO_LPS[:3, :3] @ centre)
    in_lps = RAS_TO_LPS @ start @ RAS_TO_LPS
    transform.SetMatrix(in_lps[:3, :3].ravel())
    middle = np.array(transform.GetCenter())
    transform.SetTranslation(in_lps[:3, 3] + in_lps[:3, :3] @ middle - middle)

    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricFixedMask(fixed.scanned if within is None else within)
    method.SetMetricMovingMask(moving.scanned)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetInterpolator(SimpleITK.sitkLinear)
    if (share := SAMPLES / fixed.image.GetNumberOfPixels()) < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(share, seed=1)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=PYRAMID_MM[level] / 4, minStep=0.005, numberOfIterations=150, relaxationFactor=0.6,
        estimateLearningRate=method.Never,
    )  # fmt: skip
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed.image, moving.image)
    except RuntimeError:  # every sample fell outside the moving scan
        return start, np.inf
    matrix, offset = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetTranslation())
    found = np.eye(4)
    found[:3, :3] = matrix
    found[:3, 3] = middle + offset - matrix @ middle
    return RAS_TO_LPS @ found @ RAS_TO_LPS, method.GetMetricValue()


BRAIN_LITRES = 0.9, 2.1  # with the CSF around it, as the template's mask has it
BRAIN_STRETCH = 1.35  # the template's longest axis over its shortest, once laid over a brain
NODS_DEG = (-20.0, -7.0, 7.0, 20.0)  # how heads lie in scanners: the chin goes up and down more than it turns
SIZES = 0.8, 0.88, 0.96  # of a brain, along each axis; the template is larger than most
SURELY_BRAIN_MM = 55.0  # about the middle of the head: nothing but brain, whatever the head


def template_brain(scan: Scan) -> tuple[Scan, np.ndarray]:
    """The MNI152 template's brain mask, laid over a head by an affine registration.

    Scalp is cut down to the brightest of the brain first, or it takes most of the histogram's bins; and what is no
    brain by its size or shape is not followed further, because mutual information is high, too, where the template
    has swollen to fill the head.

    Returns
    -------
        The template with its affine in the scan's world, and its mask ``(x, y, z)`` bool. It knows no sulcus and no
        atrophy: off by up to a centimetre at the brain's border; :mod:`brain` goes on from it.

    Raises
    ------
    BadInput
        The best fit has no brain's size.
    """
    from nilearn import datasets  # a second of imports, needed here only

    template, brain = (load(resolution=2) for load in (datasets.load_mni152_template, datasets.load_mni152_brain_mask))
    where = np.asarray(brain.dataobj) > 0
    atlas = replace(scan, image=template.get_fdata(dtype=np.float32), affine=template.affine, path=Path("MNI152"))
    litres = where.sum() * abs(np.linalg.det(atlas.affine[:3, :3])) / 1e6
    # the template is stripped; around the brain the head would have to match nothing
    near = replace(atlas, image=ndimage.binary_dilation(where, iterations=2).astype(np.float32))
    centre, middle = head_centre(atlas), head_centre(scan)
    dimmed = _dim_scalp(scan, middle)
    candidates = []
    for nod, size in product(np.radians(NODS_DEG), SIZES):
        start = np.diag([size, size, size, 1.0])
        start[1:3, 1:3] = size * np.array([[np.cos(nod), -np.sin(nod)], [np.sin(nod), np.cos(nod)]])
        start[:3, 3] = middle - start[:3, :3] @ centre
        candidates.append(start)
    for level, mm in enumerate(PYRAMID_MM):
        fixed, moving = (_image(each, mm) for each in (atlas, dimmed))
        within = SimpleITK.Cast(_image(near, mm).image > 0.5, SimpleITK.sitkUInt8)
        finest = mm == PYRAMID_MM[-1]
        kind = (lambda: SimpleITK.AffineTransform(3)) if finest else SimpleITK.Similarity3DTransform
        found = [_descend(fixed, moving, start, centre, level, kind(), within) for start in candidates]
        found = sorted((result for result in found if _is_a_brain(result[0], litres)), key=lambda result: result[1])
        if not found:
            raise BadInput(f"{scan.path}: the MNI152 template does not fit this head: give a brain mask")
        candidates = [result[0] for result in found[: 3 if level == 0 else 1]]  # the coarsest level is easily misled
    return replace(atlas, affine=candidates[0] @ atlas.affine), where


def _dim_scalp(scan: Scan, middle: np.ndarray) -> Scan:
    step = [max(1, round(3 / mm)) for mm in voxel_sizes(scan.affine)]
    thinned = scan.image[:: step[0], :: step[1], :: step[2]]
    at = apply_affine(scan.affine, np.moveaxis(np.indices(thinned.shape), 0, -1) * step)
    near = thinned[np.linalg.norm(at - middle, axis=-1) < SURELY_BRAIN_MM]
    brightest = np.percentile(near, 99) if near.size else scan.image.max()
    return replace(scan, image=np.minimum(scan.image, np.float32(1.1 * brightest)))


def _is_a_brain(transform: np.ndarray, template_litres: float) -> bool:
    axes = np.linalg.svd(transform[:3, :3], compute_uv=False)
    low, high = BRAIN_LITRES
    return low <= template_litres * axes.prod() <= high and axes[0] <= BRAIN_STRETCH * axes[-1]
