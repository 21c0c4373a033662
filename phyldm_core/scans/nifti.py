"""Scans in and out: NIfTI images in RAS+ with the protocol they were acquired with, as their files lay them.

A volume is ``(x, y, z)``, x towards the patient's right, y anterior, z superior, and its affine maps voxel indices to
RAS millimetres. What BIDS itself says (names, sidecars) is in :mod:`bids`, which files make a session in
:mod:`sessions`, and other grids in :mod:`grids`.
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.affines import obliquity, voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from ..machine.errors import BadInput
from ..machine.files import sha256, to_json, write_atomically
from ..physics import Protocol, Sequence, effective_te
from .bids import CONTRASTS, parse_name, protocol_from_sidecar, read_sidecar, stem
from .doubts import doubts, is_real_part, refuse_by_name
from .oasis3 import complete

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by NIfTI code: not said (so mm), metre, mm, micrometre
PLAUSIBLE_VOXEL_MM = (0.05, 20.0)
UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error)  # what a damaged file makes nibabel raise
SAME_SIZE = 0.02  # voxel sizes that differ by more are two statements, not one rounded twice
TEMPLATE_SIZE = 0.35  # by which an affine registration to a template, kept in the sform, may stretch a head
CORNERS = np.array([(x, y, z, 1.0) for x in (0, 1) for y in (0, 1) for z in (0, 1)])


class Stored(NamedTuple):
    """How a file lays its voxels, so that maps can be written onto them: axes in its own order, not turned to RAS.

    ``affine`` is to RAS mm. ``codes`` are NIfTI's of qform and sform: 0 none, 1 scanner, 2 aligned, 3 Talairach, 4 MNI.
    ``unit`` is the one of length that its header uses (``meter``, ``mm``, ``micron`` or ``unknown``).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    codes: tuple[int, int] = (1, 1)
    unit: str = "mm"


@dataclass(frozen=True, eq=False)
class Scan:
    """One weighted image and how it was acquired.

    Parameters
    ----------
    image
        ``(x, y, z)`` float32 in RAS+. Negative in a real part; slightly so too where spline resampling left it so.
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
    doubts
        What makes maps of it doubtful, one phrase each (:mod:`doubts`).
    stored
        How its file lays the voxels; None of a scan that was never in one.
    """

    image: np.ndarray
    affine: np.ndarray
    protocol: Protocol
    suffix: str
    path: Path
    sidecar: dict
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    stored: Stored | None = None


@dataclass(frozen=True, eq=False)
class Header:
    """All of a scan but its voxels, which takes milliseconds to read; fields as of :class:`Scan`."""

    path: Path
    suffix: str
    protocol: Protocol
    sidecar: dict
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    stored: Stored
    seen: tuple  # size and time of its files when the header was read


# --- in -----------------------------------------------------------------------------------------


def read_scan(path: str | Path, protocol: Protocol | None = None) -> Scan:
    """Read a NIfTI image with its BIDS sidecar, or with a protocol given by hand.

    Parameters
    ----------
    path
        ``.nii``, ``.nii.gz`` or a pair ``.hdr`` and ``.img``; any integer or float type, with or without scaling.
    protocol
        Used as it stands instead of the sidecar's: its TE is the contrast-equivalent one.

    Raises
    ------
    BadInput
        As :func:`read_header` and :func:`read_voxels`.
    """
    return read_voxels(read_header(path, protocol))


def read_header(path: str | Path, protocol: Protocol | None = None) -> Header:
    """What a scan is and how it was acquired; arguments as :func:`read_scan`.

    Raises
    ------
    BadInput
        In one sentence: the file is missing or not NIfTI; its header says 4D, one slice, no real numbers, no
        orientation, or two sizes or places at once; name or sidecar call it something else than a weighted image,
        magnitude or real part; the sidecar is missing, incomplete, in the wrong unit or contradicts itself.
    """
    path = Path(path)
    suffix = parse_name(path)[1]
    metadata, notes = complete(path, read_sidecar(path))
    seen = signature(path)
    if protocol is None and not metadata:
        raise BadInput(f"{path}: no sidecar ({stem(path)}.json): add one, or give sequence, TE, TR and TI by hand")
    nifti = _open(path)
    stored, said = _stored(nifti, path)
    if not any(stored.codes):
        raise BadInput(f"{path}: left and right are unknown (sform and qform codes are 0): set its orientation first")
    notes = said + notes
    refuse_by_name(path, metadata)
    if protocol is None:
        protocol, said = protocol_from_sidecar(metadata, suffix, path)
        notes += said
    else:
        notes += ("protocol given by hand",)
        if (instead := effective_te(protocol.te, protocol.sequence)) != protocol.te:
            notes += (f"TE {protocol.te:g} s taken as given: if nominal (varying flip angles) give {instead:g} s",)
    protocol = replace(protocol, signed=protocol.signed or is_real_part(path, metadata))
    if suffix not in CONTRASTS:
        suffix = contrast_of(protocol).replace("T2starw", "T2w")  # the doubt on T2* goes with it
    to_ras = nibabel.io_orientation(stored.affine)
    mm = voxel_sizes(stored.affine)[np.argsort(to_ras[:, 0])]
    extent = mm * np.array(stored.shape)[np.argsort(to_ras[:, 0])]
    return Header(path, suffix, protocol, metadata, notes, doubts(path, metadata, protocol, extent, mm), stored, seen)


def read_voxels(header: Header) -> Scan:
    """The scan of a header.

    Raises
    ------
    BadInput
        The file is cut short, or has changed since its header was read; a voxel is not finite, or none is above 0.
    """
    image, affine = _read_image(_open(header.path), header.stored, header.path, header.protocol.signed)
    if signature(header.path) != header.seen:
        raise BadInput(f"{header.path}: changed while it was read: run again when it is complete")
    known = {name: getattr(header, name) for name in ("protocol", "suffix", "path", "sidecar", "notes", "doubts")}
    return Scan(image=image, affine=affine, stored=header.stored, **known)


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(x, y, z)`` float32 in RAS+ and its affine, of a file without a protocol, such as a brain mask.

    Raises
    ------
    BadInput
        As :func:`read_scan`, but for the sidecar.
    """
    path = Path(path)
    nifti = _open(path)
    stored, _ = _stored(nifti, path)
    if not any(stored.codes):
        raise BadInput(f"{path}: left and right are unknown (sform and qform codes are 0): set its orientation first")
    return _read_image(nifti, stored, path)


def read_stored(path: str | Path) -> tuple[np.ndarray, Stored]:
    """Voxels float32 as a file lays them, scaled but neither turned nor checked, and how it lays them.

    Raises
    ------
    BadInput
        The file is missing, not NIfTI, cut short or not one volume.
    """
    path = Path(path)
    nifti = _open(path)
    stored, _ = _stored(nifti, path, fewest=1)
    return _voxels(nifti, path).reshape(stored.shape), stored


def parts_of(path: Path) -> list[Path]:
    """The files an image lies in: itself, and of a pair ``.hdr`` and ``.img`` the other one, too."""
    other = {".img": ".hdr", ".hdr": ".img"}.get(path.suffix.lower())
    return [path, path.with_suffix(other)] if other else [path]


def digest(path: Path) -> str:
    """SHA-256 of an image's bytes, of both its files where it has two; errors as :func:`signature`."""
    signature(path)
    return "+".join(sha256(part) for part in parts_of(path))


def signature(path: Path) -> tuple:
    """Size, time and place on the disk of an image's files: what changes when somebody writes to one."""
    try:
        stats = [part.stat() for part in parts_of(path)]
    except OSError:
        if path.is_symlink() and not path.exists():
            raise BadInput(f"{path}: a link to nothing: fetch the file it stands for (datalad get)") from None
        raise BadInput(f"{path}: no such file, or no permission to read it") from None
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def contrast_of(protocol: Protocol) -> str:
    """The suffix of a scan whose name has none, from what its protocol weights."""
    if protocol.sequence is Sequence.SPIN_ECHO:
        return "T2w" if protocol.te > 0.05 else "T1w" if protocol.tr < 1.2 else "PDw"
    if protocol.sequence is Sequence.GRADIENT_ECHO:
        return "T2starw" if protocol.te > 0.015 else "T1w"
    return "FLAIR" if protocol.sequence is Sequence.FLAIR and protocol.ti > 1.5 else "T1w"


# --- what a header says ---------------------------------------------------------------------------


def _unreadable(path: Path, error: Exception) -> BadInput:
    reason = " ".join((str(error) or type(error).__name__).split()).replace(str(path), path.name)
    return BadInput(f"{path}: not NIfTI, or cut short ({reason[:200]}): copy or convert it again")


def _open(path: Path) -> nibabel.Nifti1Pair:
    if not os.access(path, os.R_OK):
        signature(path)
        raise BadInput(f"{path}: no such file, or no permission to read it")
    try:
        with LoggingOutputSuppressor():  # what it puts right in a header is checked here, and said in one sentence
            nifti = nibabel.load(path)
    except Exception as error:  # foreign bytes: whatever a damaged header makes the library raise
        raise _unreadable(path, error) from None
    if not isinstance(nifti, nibabel.Nifti1Pair):
        raise BadInput(f"{path}: a {type(nifti).__name__}, not a NIfTI image: convert it to .nii.gz first")
    return nifti


def _stored(nifti: nibabel.Nifti1Pair, path: Path, fewest: int = 2) -> tuple[Stored, tuple[str, ...]]:
    """How the file lays its voxels, and notes; refused is what cannot be one volume in one place."""
    header, shape = nifti.header, nifti.shape
    if any(n != 1 for n in shape[3:]):
        raise BadInput(f"{path}: 4D, {np.prod(shape[3:])} volumes of {'×'.join(map(str, shape[:3]))}: give one volume")
    if len(shape) < 3 or min(shape[:3]) < fewest:
        raise BadInput(f"{path}: not a volume (shape {'×'.join(map(str, shape))}): at least {fewest} slices are needed")
    if nifti.get_data_dtype().kind not in "iuf":
        raise BadInput(f"{path}: voxels are {nifti.get_data_dtype()}, not real numbers: give the magnitude image")
    if (unit := int(header["xyzt_units"]) % 8) not in MM_PER_UNIT:  # the other bits are the unit of time
        raise BadInput(f"{path}: no unit of length has the code {unit} of its header: set xyzt_units to mm")
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not np.isfinite(nifti.affine).all() or abs(np.linalg.det(nifti.affine[:3, :3])) < 1e-18:
        raise BadInput(f"{path}: its affine is singular or not finite: correct the header's orientation")
    to_mm = np.diag([MM_PER_UNIT[unit]] * 3 + [1.0])
    affine = to_mm @ nifti.affine.astype(np.float64)
    smallest, largest = voxel_sizes(affine).min(), voxel_sizes(affine).max()
    if not PLAUSIBLE_VOXEL_MM[0] <= smallest <= largest <= PLAUSIBLE_VOXEL_MM[1]:
        raise BadInput(f"{path}: voxels of {smallest:.3g} to {largest:.3g} mm: correct the affine or its unit")
    notes = _one_place(header, affine, to_mm, codes, shape[:3], path)
    if (angle := np.degrees(obliquity(affine).max())) > 0.1:
        notes += (f"oblique by {angle:.1f}°: axes put in the nearest RAS order, affine kept oblique",)
    name = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}[unit]
    return Stored(tuple(int(n) for n in shape[:3]), affine, codes, name), notes


def _one_place(header, affine, to_mm, codes, shape, path: Path) -> tuple[str, ...]:
    """Notes where sform, qform and pixdim say different things; refused where none of them can be believed."""
    qform_code, sform_code = codes
    if not sform_code:  # nibabel made the affine of the qform and pixdim
        return ()
    notes = ()
    says, pixdim = voxel_sizes(affine), to_mm[0, 0] * np.abs(np.array(header.get_zooms()[:3], dtype=float))
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(says / pixdim - 1).max()
    if not off <= SAME_SIZE:
        sizes = " and ".join("×".join(f"{mm:.3g}" for mm in each) for each in (says, pixdim))
        if not (sform_code > 2 and off <= TEMPLATE_SIZE):
            raise BadInput(f"{path}: sform and pixdim disagree on the voxels' size ({sizes} mm): correct the header")
        notes += (f"stretched to a template by its sform ({sizes} mm)",)
    if qform_code:
        try:
            qform = to_mm @ header.get_qform()
        except Exception as error:
            return (*notes, f"sform taken, its qform is damaged ({error})")
        ends = CORNERS * [*(n - 1 for n in shape), 1]
        apart = np.linalg.norm((ends @ (qform - affine).T)[:, :3], axis=1).max()
        mirrored = np.linalg.det(qform[:3, :3]) * np.linalg.det(affine[:3, :3]) < 0
        if mirrored or (qform_code == sform_code and apart > max(1.0, says.max())):
            what = "left and right" if mirrored else f"the place of its voxels by {apart:.1f} mm"
            raise BadInput(f"{path}: sform and qform disagree on {what}: correct the header")
        if apart > 1:
            notes += (f"sform (code {sform_code}) taken, its qform (code {qform_code}) is {apart:.1f} mm elsewhere",)
    return notes


def _voxels(nifti: nibabel.Nifti1Pair, path: Path) -> np.ndarray:
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes inf
            return nifti.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:  # as in _open
        raise _unreadable(path, error) from None


def _read_image(
    nifti: nibabel.Nifti1Pair, stored: Stored, path: Path, signed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(x, y, z)`` float32 in RAS+ and its affine."""
    image = _voxels(nifti, path).reshape(stored.shape)
    if broken := int(np.count_nonzero(~np.isfinite(image))):
        raise BadInput(f"{path}: {broken} voxels are NaN or infinite: set them to 0 first")
    if not (image.any() if signed else image.max(initial=0) > 0):
        raise BadInput(f"{path}: an empty image, no voxel is above 0")
    to_ras = nibabel.io_orientation(stored.affine)
    affine = stored.affine @ nibabel.orientations.inv_ornt_aff(to_ras, image.shape)
    return np.ascontiguousarray(nibabel.apply_orientation(image, to_ras)), affine


# --- out ----------------------------------------------------------------------------------------


def write_image(
    path: str | Path,
    volume: np.ndarray,
    affine: np.ndarray,
    sidecar: dict,
    dtype=np.float32,
    like: Stored | None = None,
) -> Path:
    """Write ``path`` (``.nii.gz``) and its JSON sidecar, each whole or not at all; equal input gives equal bytes.

    Parameters
    ----------
    volume
        ``(x, y, z)`` or ``(x, y, z, channels)``, finite: background is 0, not NaN.
    affine
        ``(4, 4)``, voxel index to RAS mm; stored in float32 as NIfTI does.
    sidecar
        From :func:`bids.sidecar` or :func:`bids.map_sidecar`.
    dtype
        Type on disk. Real values in an integer type are scaled by nibabel to its range.
    like
        The file whose world this is: its unit of length and its codes are kept, so that MNI stays MNI and what had no
        orientation gets none. None: the scanner's, in mm.

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
    like = like or Stored(volume.shape[:3], affine)
    unit = {"meter": 1000.0, "micron": 0.001}.get(like.unit, 1.0)
    affine = np.diag([1 / unit] * 3 + [1.0]) @ affine
    nifti = nibabel.Nifti1Image(volume, affine, dtype=dtype)
    qform_code, sform_code = like.codes
    nifti.set_qform(affine, code=qform_code if sform_code in (0, qform_code) else 0)  # also sets pixdim
    ends = CORNERS * [*(n - 1 for n in volume.shape[:3]), 1]
    rounded = np.abs(ends @ (nifti.header.get_qform() - affine).T).max()
    if sform_code and rounded > 1e-3 * voxel_sizes(affine).min():  # a quaternion knows no shear
        nifti.header["qform_code"] = 0
    nifti.set_sform(affine if sform_code else None, code=sform_code)
    nifti.header.set_xyzt_units(like.unit, "sec")  # the validator wants a unit of time too
    # the sidecar first: an image never lacks its own
    write_atomically(path.with_name(f"{stem(path)}.json"), to_json(sidecar))
    write_atomically(path, gzip.compress(nifti.to_bytes(), compresslevel=1, mtime=0))
    return path
