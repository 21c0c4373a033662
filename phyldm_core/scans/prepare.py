"""One session's scans on one grid: aligned, isotropic, along the world's axes, each on a scale of its own.

A scan is interpolated once: its header, its registration and the step to the new grid are one matrix.
Where a scan already lies on the grid its voxels are only divided by one number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..machine.errors import BadInput
from .bids import CONTRASTS
from .brain import find_brain
from .doubts import check_voxels
from .grids import Grid, resample, resample_mask, unsigned
from .nifti import Scan, read_volume
from .registration import register, world_grid
from .sessions import same_protocol

LOW_SIGNAL = 0.1  # of the way from the 2nd to the 98th percentile: what is brighter is head (as BET starts)
STRIPPED_ZERO = 0.3  # a stripped scan has at least this fraction of exact zeros …
STRIPPED_LITRES = 2.1  # … and no more than this of anything else: a brain has 0.9 to 1.8 l, a head 3 l or more
STRIPPED_SECTION = 212.0  # cm²: and none of its axial sections is wider: 15 brains have 154 to 201, heads 223 to 267
TEMPLATE = "template"
"""Instead of a mask: lay the MNI152 template over the head and find the brain about there (:mod:`brain`)."""


@dataclass(frozen=True)
class Prepared:
    """One session, ready for slices or for inference over the whole volume.

    Parameters
    ----------
    scans
        In the order T1w, T2w, PDw, FLAIR, all on one grid. Images are float32, divided by their
        ``IntensityScale``, and 0 where nothing was scanned; nothing is clipped or masked.
    affine
        ``(4, 4)``: RAS mm, isotropic, axial planes. The reference's own world: the first scan's.
    brain
        ``(x, y, z)`` bool; the whole head where ``mask_from`` is "head".
    skull_stripped
        Whether a scan came without its skull; ``brain`` is then what is left of it.
    transforms
        By contrast ("T1w", "T1w 2" …), ``(4, 4)`` RAS mm: carries a scan's world as read onto the reference's.
    scales
        By contrast, in the order of ``scans``: what the voxels were divided by, the 95th percentile in ``brain``.
    mask_from
        "given", "skull-stripped scan", "template" or "head".
    """

    scans: list[Scan]
    affine: np.ndarray
    brain: np.ndarray
    skull_stripped: bool
    transforms: dict[str, np.ndarray]
    scales: dict[str, float]
    mask_from: str

    @property
    def brain_known(self) -> bool:
        """False where ``brain`` is the whole head."""
        return self.mask_from != "head"


def prepare_session(
    scans: list[Scan],
    *,
    voxel_mm: float,
    mask: np.ndarray | Path | str | None = None,
    left_out: dict[Path, str] | None = None,
    for_maps: bool = False,
) -> Prepared:
    """Bring the scans of one session onto one grid.

    Parameters
    ----------
    scans
        As :func:`sessions.read_session` gives them, one a contrast. The reference is the first of T1w,
        T2w, PDw, FLAIR that is there, of several the one given first; the grid covers its field of view.
    voxel_mm
        Of the grid. One of its voxels is a voxel of the reference, so that a reference which
        already has this size and these axes is not interpolated.
    mask
        The brain: an array on the reference's voxels as read, a NIfTI file in the reference's space
        on any grid, or :data:`TEMPLATE`. None: what a stripped scan shows, else the whole head.
    left_out
        Give a dictionary, and a scan that cannot be used or registered is left out, the reason kept
        there by its path, as long as another scan remains.
    for_maps
        Refuse a scan whose voxels mislead the scale it is put on; False: the doubt goes with it.

    Raises
    ------
    BadInput
        In one sentence: no scan, two of one contrast, an image that :func:`doubts.check_voxels` refuses or whose
        scale cannot be told; scans that do not overlap or cannot be registered; a mask that does not fit.
    """
    if not scans:
        raise BadInput("no scan to prepare: give at least one T1w, T2w, PDw or FLAIR")
    if not 0.2 <= voxel_mm <= 20:
        raise BadInput(f"voxels of {voxel_mm:g} mm: give a size in millimetres, such as 1 or 2")

    def refuse(scan: Scan, error: BadInput):
        if left_out is None:
            raise error
        left_out[scan.path] = str(error)

    found: list[Scan] = []
    for scan in sorted(scans, key=lambda scan: CONTRASTS.index(scan.suffix)):
        for other in (other for other in found if other.suffix == scan.suffix):
            if same_protocol(scan.protocol, other.protocol):
                both = f"{other.path.name} and {scan.path.name}"
                raise BadInput(f"{scan.path.parent}: two {scan.suffix} scans in one session, {both}: give one of them")
        try:
            found.append(_checked(scan, for_maps))
        except BadInput as error:
            refuse(scan, error)
    if not found and len(left_out) == 1:
        raise BadInput(next(iter(left_out.values())))
    if not found:
        raise BadInput(f"{scans[0].path.parent}: none of its scans can be used: {'; '.join(left_out.values())}")
    (first, reference), *others = named(found).items()
    transforms = {first: np.eye(4)}
    aligned = {first: reference}
    for name, scan in others:
        try:
            transforms[name] = register(unsigned(scan), unsigned(reference))
            aligned[name] = replace(scan, affine=transforms[name] @ scan.affine)
        except BadInput as error:
            refuse(scan, error)

    grid = world_grid(reference, voxel_mm)
    stripped = {name: scan for name, scan in aligned.items() if is_skull_stripped(scan)}
    on_grid = {name: replace(scan, image=resample(scan, grid), affine=grid.affine) for name, scan in aligned.items()}
    magnitudes = ([unsigned(scan) for scan in some.values()] for some in (aligned, stripped, on_grid))
    brain, mask_from = _brain(*magnitudes, grid, mask)
    prepared, scales = [], {}
    for name, scan in on_grid.items():
        try:
            scales[name] = scale = intensity_scale(unsigned(scan), brain)
        except BadInput as error:
            if name == first:
                raise
            refuse(scan, error)
            continue
        notes = scan.notes + (("already skull-stripped",) if name in stripped else ())
        prepared.append(replace(scan, image=scan.image / np.float32(scale), notes=notes))
    return Prepared(prepared, grid.affine, brain, bool(stripped), transforms, scales, mask_from)


def named(scans: list[Scan]) -> dict[str, Scan]:
    """The scans of one session by contrast, as :func:`sessions.choose_headers` calls them."""
    by_name: dict[str, Scan] = {}
    for scan in scans:
        n = 1 + sum(other.suffix == scan.suffix for other in by_name.values())
        by_name[scan.suffix if n == 1 else f"{scan.suffix} {n}"] = scan
    return by_name


def _checked(scan: Scan, for_maps: bool) -> Scan:
    image, notes, misled = check_voxels(scan.image, scan.path, scan.protocol.signed)
    if for_maps and misled:
        raise BadInput(f"{scan.path}: {misled[0]}")
    return replace(scan, image=image, notes=scan.notes + notes, doubts=scan.doubts + misled)


def is_skull_stripped(scan: Scan) -> bool:
    """Whether only a brain is left: as the sidecar says, else told by exact zeros around something brain-sized."""
    if isinstance(scan.sidecar.get("SkullStripped"), bool):
        return scan.sidecar["SkullStripped"]
    left = scan.image != 0
    mm = voxel_sizes(scan.affine)
    section = left.sum((0, 1)).max() * mm[0] * mm[1] / 100
    litres = left.sum() * mm.prod() / 1e6
    return bool(1 - left.mean() >= STRIPPED_ZERO and litres <= STRIPPED_LITRES and section <= STRIPPED_SECTION)


def intensity_scale(scan: Scan, inside: np.ndarray) -> float:
    """The 95th percentile of a scan ``(x, y, z)`` where it is not dark and ``inside`` is True: one number a scan.

    No minimum is subtracted and nothing is clipped: the zero of a magnitude image means no signal, and
    the physics needs it.
    """
    values = scan.image[inside]
    values = values[values > 0]
    if not values.size:
        raise BadInput(f"{scan.path}: no signal inside the brain mask: check that mask and scan belong together")
    return float(np.percentile(values, 95))


# --- where the brain is ---------------------------------------------------------------------------


def _brain(aligned: list[Scan], stripped: list[Scan], on_grid: list[Scan], grid: Grid, mask) -> tuple[np.ndarray, str]:
    """The brain, and what told it; scans without sign."""
    reference = aligned[0]
    if mask is None and stripped:
        left = [resample_mask(scan.image != 0, scan.affine, grid) for scan in stripped]
        beyond = [~resample_mask(np.ones(scan.image.shape, bool), scan.affine, grid) for scan in stripped]
        seen = [one | other for one, other in zip(left, beyond, strict=True)]  # a slab says nothing of the rest
        brain = np.logical_and.reduce(seen) & np.logical_or.reduce(left)
        return ndimage.binary_fill_holes(brain), "skull-stripped scan"
    if mask is None:
        return head_mask(on_grid), "head"
    if isinstance(mask, str) and mask == TEMPLATE:
        if stripped:  # what is left is better than any template
            return _brain(aligned, stripped, on_grid, grid, None)
        return find_brain(aligned, head_mask(on_grid), grid), "template"
    if isinstance(mask, np.ndarray):
        if mask.shape != reference.image.shape:
            raise BadInput(f"a brain mask of shape {mask.shape} for a {reference.suffix} of {reference.image.shape}")
        drawn, where = replace(reference), mask
    else:
        image, affine = read_volume(mask)
        drawn, where = replace(reference, image=image, affine=affine, path=Path(mask)), image > 0.5
    brain = resample_mask(where != 0, drawn.affine, grid)
    if not brain.any():
        raise BadInput(f"{drawn.path}: this brain mask marks nothing in {reference.path.name}: check its affine")
    return brain, "given"


def head_mask(on_grid: list[Scan]) -> np.ndarray:
    """``(x, y, z)`` bool: the largest thing brighter than air in any of the scans, without holes."""
    bright = np.zeros(on_grid[0].image.shape, bool)
    for scan in on_grid:
        low, high = np.percentile(scan.image[scan.image > 0], (2, 98)) if (scan.image > 0).any() else (0, 0)
        bright |= scan.image > low + LOW_SIGNAL * (high - low)
    pieces, n = ndimage.label(ndimage.binary_opening(bright))
    if n == 0:
        return bright
    head = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    reach = max(1, round(6 / voxel_sizes(on_grid[0].affine)[0]))  # mm: closes the nose and the ears
    head = np.pad(head, reach)
    head = ndimage.binary_closing(head, iterations=reach)[(slice(reach, -reach),) * 3]
    return np.stack([ndimage.binary_fill_holes(level) for level in np.moveaxis(head, 2, 0)], 2)
