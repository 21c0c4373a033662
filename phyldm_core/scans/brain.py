"""Where the brain is in a head: the template says about where, the scans say exactly where.

The template's mask alone was no mask to infer tissue in: on simulated scans of five heads it cut off up to a fifth of
the grey matter and let scalp in, whose fat is brighter than all brain, so that every scan was taken to be darker than
it is. Between brain and scalp every contrast has a dark valley, bone, and the watershed between a marker inside and one
outside runs along its floor (as in FreeSurfer's: Segonne et al., NeuroImage 2004;22:1060).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from ..machine.errors import BadInput
from ..physics import Protocol, TissueMaps, render
from .doubts import USUAL_TISSUE
from .grids import Grid, resample, resample_mask
from .nifti import Scan
from .registration import template_brain, world_grid

MM = 2.0  # voxels that the border is sought on: half of them is a finer answer than any two raters agree on
SURE_MM = 6.0  # so deep in the template's mask there is brain …
REACH_MM = 12.0  # … and so far outside it there is none: atrophy and odd skulls are as much as a centimetre off
SCALP_MM = 4.0  # of the head's outermost layer are never brain
FAT = 1.5  # of the brain's 95th percentile where CSF is dark, as in a T1w: brighter is no brain (in a T2w CSF is)
DARK = 0.1  # of it, on average over the scans: bone and air
BONE_MM = 4.0  # of dark rim that may be taken off; in a T1w alone it is CSF as often, which costs that image nothing
THIN_MM = 3.0  # nerves and vessels of up to twice this are cut off
SULCUS_MM = 8.0  # and sulci of up to twice this belong to the brain


def find_brain(scans: list[Scan], head: np.ndarray, grid: Grid) -> np.ndarray:
    """``(x, y, z)`` bool on ``grid``: brain with the CSF around it, of a head that no one has stripped.

    Parameters
    ----------
    scans
        One session's, aligned, each on any grid; the first is what the template is registered to.
    head
        ``(x, y, z)`` bool on ``grid``: everything that is not air (:func:`prepare.head_mask`).

    Raises
    ------
    BadInput
        The template does not fit, or there is no brain inside it.
    """
    laid, template = template_brain(scans[0])
    work = world_grid(scans[0], MM)
    images = [(scan.suffix == "T1w" and fluid_is_dark(scan.protocol), resample(scan, work)) for scan in scans]
    brain = _within(images, resample_mask(template, laid.affine, work), resample_mask(head, grid.affine, work))
    if not brain.any():
        raise BadInput(f"{scans[0].path}: no brain found where the MNI152 template has one: give a brain mask")
    return resample_mask(brain, work.affine, grid)


def fluid_is_dark(protocol: Protocol) -> bool:
    """Whether CSF is darker than white matter under a protocol; a T1w need not be: one inverted a moment ago is not."""
    white, _, fluid = render(TissueMaps(*np.array(list(USUAL_TISSUE.values())).T), replace(protocol, signed=False))
    return bool(fluid < white)


def _within(images: list[tuple[bool, np.ndarray]], template: np.ndarray, head: np.ndarray) -> np.ndarray:
    """The brain in images of :data:`MM`, each with whether fat outshines all of it; all arrays ``(x, y, z)``."""
    sure = erode(template, SURE_MM)
    if not sure.any():
        return sure
    outside = ~dilate(template, REACH_MM) | ~erode(head, SCALP_MM)
    bright = []
    for fat_leads, image in images:
        smooth = ndimage.gaussian_filter(image, 0.4)
        relative = smooth / np.percentile(smooth[sure], 95)
        if fat_leads:
            outside |= relative > FAT
        bright.append(np.clip(relative, 0, 1))
    bright = np.mean(bright, 0)
    brain = watershed(-bright, sure + 2 * (outside & ~sure)) == 1
    beyond = ~brain
    for _ in range(round(BONE_MM / MM)):
        beyond |= ndimage.binary_dilation(beyond) & (bright < DARK) & ~sure
    core, n = ndimage.label(erode(~beyond, THIN_MM))
    if not n:
        return sure
    brain = dilate(core == np.bincount(core.ravel())[1:].argmax() + 1, THIN_MM)
    return ndimage.binary_fill_holes(erode(dilate(brain, SULCUS_MM), SULCUS_MM))


def dilate(where: np.ndarray, mm: float) -> np.ndarray:
    """All within ``mm`` of a mask on voxels of :data:`MM`."""
    return MM * ndimage.distance_transform_edt(~where) <= mm if where.any() else where


def erode(where: np.ndarray, mm: float) -> np.ndarray:
    """All of a mask that is further than ``mm`` from its border; the edge of the field of view is none."""
    return MM * ndimage.distance_transform_edt(where) > mm if not where.all() else where
