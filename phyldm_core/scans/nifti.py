"""Scans in and out: NIfTI images in RAS+ with the protocol they were acquired with, slices, and grids.

A volume is ``(x, y, z)``, x towards the patient's right, y anterior, z superior, and its affine maps
voxel indices to RAS millimetres. A slice for a network is ``(y, x)``: ``volume[:, :, k].T``. What
BIDS itself says (names, sidecars, sessions) is in :mod:`bids`, whose writing functions can be had from here.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import scipy  # loads ndimage when it is first asked for: rendering need not wait for it
from nibabel.affines import apply_affine, obliquity, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ..errors import BadInput
from ..machine.files import to_json, write_atomically
from ..physics import EFFECTIVE_TE_ABOVE, Protocol, Sequence, effective_te
from .bids import (
    CONTRASTS,
    MAP_UNITS,
    bids_sessions,
    find_sessions,
    map_sidecar,
    parse_name,
    protocol_from_sidecar,
    read_sidecar,
    sidecar,
    write_dataset_description,
)

__all__ = [
    "CONTRASTS", "MAP_UNITS", "Grid", "Scan", "axial_grid", "axial_slices", "bids_sessions",
    "contrast_of", "crop_or_pad",
    "head_centre", "map_sidecar", "read_scan", "read_session", "read_volume", "resample", "sidecar",
    "slices_to_volume", "volume_to_slices", "write_dataset_description", "write_image",
]  # fmt: skip

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by NIfTI code: not said (so mm), metre, mm, micrometre
PLAUSIBLE_VOXEL_MM = (0.05, 20.0)
UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error)  # what a damaged file makes nibabel raise
CENTRE_BELOW_TOP = 65.0  # mm; to MNI z = 12 it is 70 ± 4 from the scalp and 59 ± 3 from a stripped brain (15 heads)


@dataclass(frozen=True, eq=False)
class Scan:
    """One weighted image and how it was acquired.

    Parameters
    ----------
    image
        ``(x, y, z)`` float32 in RAS+. Slightly negative values, as spline resampling leaves them, are kept.
    affine
        ``(4, 4)`` float64, voxel index to RAS mm; an oblique one stays oblique.
    protocol
        As the signal model needs it: TE is the contrast-equivalent one where the nominal TE is not.
    suffix
        "T1w", "T2w", "PDw" or "FLAIR".
    path
        Where it was read from.
    sidecar
        Every field of its sidecars, as written there.
    notes
        What had to be decided on reading, one phrase each: which field told the sequence and the TR,
        an effective TE, an oblique affine.
    """

    image: np.ndarray
    affine: np.ndarray
    protocol: Protocol
    suffix: str
    path: Path
    sidecar: dict
    notes: tuple[str, ...] = ()


# --- in -----------------------------------------------------------------------------------------


def read_scan(path: str | Path, protocol: Protocol | None = None, missing: dict | None = None) -> Scan:
    """Read a NIfTI image with its BIDS sidecar, or with a protocol given by hand.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``, any integer or float type, with or without scaling.
    protocol
        Used as it stands instead of the sidecar's: its TE is the contrast-equivalent one.
    missing
        Sidecar fields to take where the sidecar has none of that name.

    Raises
    ------
    BadInput
        In one sentence: the file is missing, is not NIfTI or is cut short; the image is 4D, one
        slice, empty, not finite or has no orientation; the sidecar is missing, incomplete, in the
        wrong unit or contradicts itself.
    """
    path = Path(path)
    suffix = parse_name(path)[1]
    metadata = read_sidecar(path)
    if protocol is None:
        if path.exists() and not metadata:
            raise BadInput(f"{path}: no sidecar ({_stem(path)}.json): add one, or give sequence, TE, TR and TI by hand")
        image, affine, notes = _read_image(path)
        metadata = (missing or {}) | metadata
        protocol, said = protocol_from_sidecar(metadata, suffix, path)
        notes = notes + said
    else:
        image, affine, notes = _read_image(path)
        notes += ("protocol given by hand",)
        if protocol.sequence is not Sequence.MPRAGE and protocol.te > EFFECTIVE_TE_ABOVE:
            instead = effective_te(protocol.te, protocol.sequence)
            notes += (f"TE {protocol.te:g} s taken as given: if nominal (varying flip angles) give {instead:g} s",)
    if suffix not in CONTRASTS:
        suffix = contrast_of(protocol)
    return Scan(image, affine, protocol, suffix, path, metadata, notes)


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(x, y, z)`` float32 in RAS+ and its affine, of a file without a protocol, such as a brain mask.

    Raises
    ------
    BadInput
        As :func:`read_scan`, but for the sidecar.
    """
    return _read_image(Path(path))[:2]


def read_session(folder: str | Path, subject: str | None = None, session: str | None = None) -> list[Scan]:
    """All scans of one session, in the order T1w, T2w, PDw, FLAIR.

    Parameters
    ----------
    folder
        A BIDS dataset, a subject's or session's folder in one, or any folder with ``…_T1w.nii.gz`` files.
    subject, session
        Labels, with or without ``sub-``/``ses-``; needed only where ``folder`` holds several.

    Raises
    ------
    BadInput
        Nothing fits, more than one session fits, or a contrast is there twice; and as :func:`read_scan`.
    """
    subject = subject and subject.removeprefix("sub-")
    session = session and session.removeprefix("ses-")
    found = find_sessions(folder)
    fitting = [(sub, ses) for sub, ses in found if subject in (None, sub) and session in (None, ses)]
    if len(fitting) != 1:
        names = [_name(*labels) for labels in fitting or found]
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        if fitting:
            raise BadInput(f"{folder}: holds {len(fitting)} sessions ({listed}): say which subject and session")
        raise BadInput(f"{folder}: no scan of {_name(subject, session)} here, only of {listed}")
    scans = {}
    for path in found[fitting[0]]:
        suffix = parse_name(path)[1]
        if suffix in scans:
            both = f"{scans[suffix].path.name} and {path.name}"
            raise BadInput(f"{path.parent}: two {suffix} scans in one session, {both}: keep one, or give single files")
        scans[suffix] = read_scan(path)
    return [scans[suffix] for suffix in CONTRASTS if suffix in scans]


def _name(subject: str | None, session: str | None) -> str:
    labels = (f"sub-{subject}" if subject else "", f"ses-{session}" if session else "")
    return " ".join(filter(None, labels)) or "somebody unnamed"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def contrast_of(protocol: Protocol) -> str:
    """The suffix of a scan whose name has none, from what its protocol weights."""
    if protocol.sequence is Sequence.SPIN_ECHO:
        return "T2w" if protocol.te > 0.05 else "T1w" if protocol.tr < 1.2 else "PDw"
    if protocol.sequence is Sequence.GRADIENT_ECHO:
        return "T2starw" if protocol.te > 0.015 else "T1w"
    return "FLAIR" if protocol.sequence is Sequence.FLAIR and protocol.ti > 1.5 else "T1w"


def _read_image(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Image ``(x, y, z)`` float32 in RAS+, its affine, and notes."""
    if not os.access(path, os.R_OK):
        raise BadInput(f"{path}: no such file, or no permission to read it")
    try:
        nifti = nibabel.load(path)
        if not isinstance(nifti, nibabel.Nifti1Pair):
            raise BadInput(f"{path}: a {type(nifti).__name__}, not a NIfTI image: convert it to .nii.gz first")
        _check_header(nifti, path)
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes inf, refused below
            image = nifti.get_fdata(dtype=np.float32, caching="unchanged")
    except UNREADABLE as error:
        reason = " ".join((str(error) or type(error).__name__).split()).replace(str(path), path.name)
        raise BadInput(f"{path}: not NIfTI, or cut short ({reason}): copy or convert it again") from None
    image = image.reshape(image.shape[:3])
    if broken := int(np.count_nonzero(~np.isfinite(image))):
        raise BadInput(f"{path}: {broken} voxels are NaN or infinite: set them to 0 first")
    if not image.max(initial=0) > 0:
        raise BadInput(f"{path}: an empty image, no voxel is above 0")

    affine = nifti.affine.astype(np.float64)
    affine[:3] *= MM_PER_UNIT[_space_unit(nifti)]
    notes = ()
    smallest, largest = voxel_sizes(affine).min(), voxel_sizes(affine).max()
    if not PLAUSIBLE_VOXEL_MM[0] <= smallest <= largest <= PLAUSIBLE_VOXEL_MM[1]:
        raise BadInput(f"{path}: voxels of {smallest:.3g} to {largest:.3g} mm: correct the affine or its unit")
    if (angle := np.degrees(obliquity(affine).max())) > 0.1:
        notes += (f"oblique by {angle:.1f}°: axes put in the nearest RAS order, affine kept oblique",)
    to_ras = nibabel.io_orientation(affine)
    affine = affine @ nibabel.orientations.inv_ornt_aff(to_ras, image.shape)
    return np.ascontiguousarray(nibabel.apply_orientation(image, to_ras)), affine, notes


def _space_unit(nifti: nibabel.Nifti1Pair) -> int:
    return int(nifti.header["xyzt_units"]) % 8  # the other bits are the unit of time


def _check_header(nifti: nibabel.Nifti1Pair, path: Path):
    """Refuse, before any voxel is read, what cannot be one 3D image of a head."""
    shape = nifti.shape
    if any(n != 1 for n in shape[3:]):
        raise BadInput(f"{path}: 4D, {np.prod(shape[3:])} volumes of {'×'.join(map(str, shape[:3]))}: give one volume")
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise BadInput(f"{path}: not a volume (shape {'×'.join(map(str, shape))}): at least 2 slices are needed")
    if nifti.get_data_dtype().kind not in "iuf":
        raise BadInput(f"{path}: voxels are {nifti.get_data_dtype()}, not real numbers: give the magnitude image")
    if _space_unit(nifti) not in MM_PER_UNIT:
        raise BadInput(
            f"{path}: no unit of length has the code {_space_unit(nifti)} of its header: set xyzt_units to mm"
        )
    if not nifti.header["sform_code"] and not nifti.header["qform_code"]:
        raise BadInput(f"{path}: left and right are unknown (sform and qform codes are 0): set its orientation first")
    if not np.isfinite(nifti.affine).all() or abs(np.linalg.det(nifti.affine[:3, :3])) < 1e-12:
        raise BadInput(f"{path}: its affine is singular or not finite: correct the header's orientation")


# --- out ----------------------------------------------------------------------------------------


def write_image(path: str | Path, volume: np.ndarray, affine: np.ndarray, sidecar: dict, dtype=np.float32) -> Path:
    """Write ``path`` (``.nii.gz``) and its JSON sidecar, each whole or not at all; equal input gives equal bytes.

    Parameters
    ----------
    volume
        ``(x, y, z)`` or ``(x, y, z, channels)``, finite: background is 0, not NaN.
    affine
        ``(4, 4)``, voxel index to RAS mm; stored in float32 as NIfTI does.
    sidecar
        From :func:`sidecar` or :func:`map_sidecar`.
    dtype
        Type on disk. Real values in an integer type are scaled by nibabel to its range.

    Raises
    ------
    BadInput
        The name does not end in .nii.gz, a voxel is not finite, or the folder cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise BadInput(f"{path}: images are written as .nii.gz: give a name that ends so")
    volume = np.asarray(volume)
    if not np.isfinite(volume).all():
        raise BadInput(f"{path}: NaN or infinite voxels are not written: set the background to 0")
    nifti = nibabel.Nifti1Image(volume, affine, dtype=dtype)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    nifti.header.set_xyzt_units("mm", "sec")  # the validator wants a unit of time too
    write_atomically(path.with_name(f"{_stem(path)}.json"), to_json(sidecar))  # first: an image never lacks its sidecar
    write_atomically(path, gzip.compress(nifti.to_bytes(), compresslevel=1, mtime=0))
    return path


# --- slices and grids ---------------------------------------------------------------------------


class Grid(NamedTuple):
    """Where voxels lie: ``shape`` (x, y, z) and the ``affine`` of voxel indices to RAS mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def volume_to_slices(volume: np.ndarray, k: Several[int] | None = None) -> np.ndarray:
    """``(x, y, z)`` → ``(n, y, x)``: the axial slices ``k``, all by default."""
    return np.ascontiguousarray(volume.T if k is None else volume[:, :, list(k)].T)


def slices_to_volume(slices: np.ndarray, affine: np.ndarray, k: range | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``(n, y, x)`` → ``(x, y, n)`` and its affine: the inverse of :func:`volume_to_slices`.

    Parameters
    ----------
    affine
        Of the volume the slices came from.
    k
        The range of slices they were, so that the stack lies where it was; all from 0 by default.
    """
    k = k or range(len(slices))
    stack = np.diag([1.0, 1.0, k.step, 1.0])
    stack[2, 3] = k.start
    return np.ascontiguousarray(slices.T), affine @ stack


def crop_or_pad(volume: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut or fill with 0 about the centre to ``shape`` (x, y, z); every kept voxel stays where it was in the world."""
    before = [(new - old) // 2 for old, new in zip(volume.shape, shape, strict=True)]
    after = [new - old - b for old, new, b in zip(volume.shape, shape, before, strict=True)]
    cut = tuple(slice(max(-b, 0), n - max(-a, 0)) for n, b, a in zip(volume.shape, before, after, strict=True))
    out = np.pad(volume[cut], [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)])
    moved = affine.copy()
    moved[:3, 3] = apply_affine(affine, [-b for b in before])
    return out, moved


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


def axial_slices(scan: Scan, grid: Grid) -> np.ndarray:
    """``(n, y, x)`` float32: a scan on a grid of :func:`axial_grid`, as :func:`resample` brings it there.

    Raises
    ------
    BadInput
        The scan and the grid do not overlap.
    """
    return volume_to_slices(resample(scan, grid))


def resample(scan: Scan, grid: Grid) -> np.ndarray:
    """``(x, y, z)`` float32: a scan on another grid, 0 outside what was scanned.

    Where the grid is coarser than the scan, a Gaussian first averages what a coarse voxel would have: a voxel is a box,
    with a variance of a twelfth of its size squared, and the Gaussian's makes up the difference. Then cubic splines.
    Where every voxel of the grid is a voxel of the scan, nothing is interpolated.

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
    volume = scipy.ndimage.affine_transform(image, matrix, output_shape=grid.shape, order=order, output=np.float32)
    if not volume.any():
        raise BadInput(f"{scan.path}: does not overlap the session's other scans: nothing of it lies in these slices")
    return volume


def resample_mask(where: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """``(x, y, z)`` bool on a grid, of a mask with its affine: linear, so that no spline rings across the border."""
    matrix = np.linalg.inv(affine) @ grid.affine
    return scipy.ndimage.affine_transform(where.astype(np.float32), matrix, output_shape=grid.shape, order=1) >= 0.5
