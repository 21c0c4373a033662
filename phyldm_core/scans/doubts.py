"""Images that no signal model explains, or that mislead the scale they are put on: refused or doubted by name.

First what names and sidecars say (phase, UNI, maps, contrast agent, field strength), then what the protocols of a
session leave untold, then what the voxels show. A refusal is a :class:`errors.BadInput`; a doubt is a phrase that goes
with the scan, or the session, to whoever reads the maps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Several
from pathlib import Path

import numpy as np

from ..machine.errors import BadInput
from ..physics import Protocol, TissueMaps, render
from .bids import CONTRASTS, parse_name, words

OTHER_SUFFIX = {
    "UNIT1": "the uniform image of an MP2RAGE, a ratio of two",
    "MP2RAGE": "one inversion of an MP2RAGE",
    "ph": "a phase image",
    "imaginary": "the imaginary part of a complex image",
}
"""Last words of names (BIDS's, and dcm2niix's) of what is no weighted magnitude image; "…map" is a map."""

PART_OF = {"phase": "a phase image", "imag": "an imaginary part"}
"""Labels of BIDS's ``part-`` that no signal model explains."""

REAL = r"R|R_.+|REAL"
"""Words of DICOM's Image Type for the real part, in which tissue before its null point is negative."""

IMAGE_KINDS = {
    r"P|P_.+|PHASE|PHASE[_ ]?MAP|B0|RAD": "a phase image",
    r"I|I_.+|IMAGINARY|MIXED": "the imaginary part of a complex image, or several parts in one",
    r"UNI|UNI[-_ ]?DEN|UNIFORM|UNIT1|DIVISION": "the uniform image of an MP2RAGE, a ratio of two",
    r".*MAP|ADC|FA|CBF|CBV|STD_DEVIATION": "a map of a quantity",
    r"MIP|MNIP|MINIP|MAXIMUM|MINIMUM|PROJECTION IMAGE": "a projection",
    r"SUB|SUBTRACTION|MULTIPLICATION": "calculated from several images",
    r"FAT|OPP_PHASE|OUT_PHASE|OPPOSED_PHASE": "one part of a Dixon scan",
}
"""Words of DICOM's Image Type → what such an image is."""

UNIT_KINDS = {"rad": "a phase image", "rad/s": "a field map", "hz": "a field map"} | dict.fromkeys(
    ("s", "ms", "1/s"), "a map of a quantity"
)
"""Units that a weighted image never has."""

FIELD_T = 2.5, 3.5  # of the tissue that weights are trained on
LOW_FIELD_T, HIGH_FIELD_T = 1.0, 6.5  # tissue is another one there
LARGEST_FIELD_T = 20.0  # no magnet for people has more: mT or gauss
LONGEST_STEADY_TE = 0.012  # s; in a gradient echo T2* is what decays: beyond, it decides the contrast
HEAD_MM = 140.0  # no adult's head is narrower, from ear to ear: a narrower field of view cuts it
THICK_MM = 6.0  # slices this thick average tissue with its neighbours

NEGATIVE = -0.05, 0.05  # refused where more than this fraction is below this fraction of the 98th percentile
FEW_VALUES = 12  # a mask or a label map has no more different values
NOISE = 0.2  # correlation of neighbours below which there is no image: a head has 0.8 and more, noise 0
SPIKE = 5.0  # times the 99.9th percentile: brighter is no tissue, fat and inflow included
SPIKED = 1e-3  # of the voxels at most; more are something else
OFFSET = 0.2  # of the 98th percentile: the darkest voxels, air and bone, have less


class NotWeighted(BadInput):
    """An image that is by its own account no weighted image."""


def refuse_by_name(path: Path, metadata: dict):
    """Refuse what name or sidecar calls anything but a weighted image, magnitude or real part.

    Raises
    ------
    NotWeighted
        In one sentence, with the word that told so.
    """
    entities, suffix = parse_name(path)
    what = OTHER_SUFFIX.get(suffix) or ("a map of a quantity" if suffix.endswith("map") else None)
    if what:
        raise NotWeighted(f"{path}: is {what}, as its name says (_{suffix}): give a T1w, T2w, PDw or FLAIR")
    if what := PART_OF.get(entities.get("part", "")):
        raise NotWeighted(f"{path}: is {what}, as its name says (part-{entities['part']}): give the magnitude image")
    for field, word in _kinds_said(metadata):
        for kind, what in IMAGE_KINDS.items():
            if re.fullmatch(kind, word):
                raise NotWeighted(f"{path}: is {what}, as its sidecar says ({field} {word}): leave it out")
    unit = str(metadata.get("Units", "")).strip()
    if suffix in CONTRASTS and (what := UNIT_KINDS.get(unit.lower())):
        raise NotWeighted(f"{path}: is {what}, as its sidecar says (Units {unit}): leave it out")


def is_real_part(path: Path, metadata: dict) -> bool:
    """Whether name or sidecar calls an image the real part of a complex one: it has a sign."""
    entities, suffix = parse_name(path)
    said = suffix == "real" or entities.get("part") == "real"
    return said or any(re.fullmatch(REAL, word) for _, word in _kinds_said(metadata))


def _kinds_said(metadata: dict) -> list[tuple[str, str]]:
    """Words that say what kind of image this is, in capitals, each with its field."""
    fields = ("ImageType", "ImageTypeText", "ComplexImageComponent")
    return [(field, word.strip().upper()) for field in fields for word in words(metadata.get(field))]


def contrast_agent(path: Path, metadata: dict) -> str | None:
    """What name or sidecar says was injected; None where neither says anything."""
    for said in (metadata.get("ContrastBolusIngredient"), metadata.get("ContrastBolusAgent")):
        said = " ".join(words(said)).strip()
        if said.lower() not in ("", "none", "no", "n/a", "na", "null", "false", "0", "unknown"):
            return said
    return parse_name(path)[0].get("ce")


def doubts(
    path: Path, metadata: dict, protocol: Protocol, extent_mm: np.ndarray, voxel_mm: np.ndarray
) -> tuple[str, ...]:
    """What makes maps of a scan doubtful that can be read without its voxels, a phrase each.

    Parameters
    ----------
    extent_mm, voxel_mm
        ``(3,)``, of the field of view and of a voxel, along the patient's x, y and z.
    """
    found = []
    if agent := contrast_agent(path, metadata):
        found.append(f"after a contrast agent ({agent}): T1 is short where it went")
    if (field := metadata.get("MagneticFieldStrength")) is not None:
        found += _field_doubt(field)
    if protocol.sequence.has_flip_angle and protocol.te > LONGEST_STEADY_TE:
        found.append(f"a gradient echo after {1000 * protocol.te:g} ms: it decays with T2*, which is shorter than T2")
    if extent_mm[:2].min() < HEAD_MM:
        found.append(f"a field of view of {extent_mm[0]:.0f} × {extent_mm[1]:.0f} mm cuts the head")
    if voxel_mm.max() > THICK_MM:
        found.append(f"slices of {voxel_mm.max():g} mm mix tissues")
    return tuple(found)


def _field_doubt(field) -> list[str]:
    low, high = FIELD_T
    if isinstance(field, bool) or not isinstance(field, (int, float)):
        return ["MagneticFieldStrength is no number of tesla"]
    if low <= field <= high:
        return []
    if field > LARGEST_FIELD_T:
        return [f"MagneticFieldStrength {float(field):g} cannot be in tesla"]
    if field < LOW_FIELD_T:
        return [f"at {field:g} T, low field: T1 is far shorter than the cohort's"]
    if field >= HIGH_FIELD_T:
        return [f"at {field:g} T, high field: T1 is far longer than the cohort's, and T2 shorter"]
    return [f"at {field:g} T: weights know tissue at 3 T, and T1 depends on the field"]


# --- protocols ------------------------------------------------------------------------------------

USUAL_TISSUE = {"WM": (0.69, 0.90, 0.073), "GM": (0.83, 1.34, 0.080), "CSF": (0.99, 4.3, 2.1)}
"""PD, T1 (s) and T2 (s) of :func:`tissue.three_medians`, rounded: written out because that file loads torch."""

KNOWN_BEFORE = 0.1, 0.3, 0.3
"""SD of log PD, T1 and T2 about what is usual, before any scan: water content varies far less than times do."""

SCAN_ERROR = 0.03  # of the brightest tissue's signal: noise, coil and signal equation together
STILL_UNKNOWN = 0.85  # of KNOWN_BEFORE: what is left of it, where a map is not told
UNTOLD = "these protocols hardly depend on it; its map is mostly what is usual in tissue"


def unidentified(protocols: Several[Protocol]) -> tuple[str, ...]:
    """Which of "T1" and "T2" scans of these protocols do not tell, whatever they show.

    A Cramér–Rao bound. Each scan measures white matter, grey matter and CSF as in :data:`USUAL_TISSUE` with
    :data:`SCAN_ERROR`, all times one gain that nobody knows; before, each tissue is known to :data:`KNOWN_BEFORE`. A
    time is not told where it stays unknown, on average over white and grey matter, to more than :data:`STILL_UNKNOWN`
    of what it was.
    """
    n, step = len(USUAL_TISSUE), 1e-3
    usual = np.array(list(USUAL_TISSUE.values()))
    before = np.tile(KNOWN_BEFORE, n)
    rows = []  # of the Jacobian, one a scan and tissue: after log PD, T1, T2 of each tissue come the scans' log gains
    for j, protocol in enumerate(protocols):
        signal = render(TissueMaps(*usual.T), protocol)
        change = np.zeros((n, 3 * n + len(protocols)))
        for q in range(3):
            factor = np.exp(step * np.eye(3)[q])
            more, less = (render(TissueMaps(*values.T), protocol) for values in (usual * factor, usual / factor))
            change[np.arange(n), 3 * np.arange(n) + q] = (more - less) / (2 * step)
        change[:, 3 * n + j] = signal
        rows.append(change / (SCAN_ERROR * max(np.abs(signal).max(), 1e-9)))
    known = np.diag(np.concatenate([1 / before**2, np.full(len(protocols), 1e-6)]))  # of gains next to nothing
    jacobian = np.concatenate([np.zeros((0, len(known))), *rows])
    after = np.sqrt(np.linalg.inv(jacobian.T @ jacobian + known).diagonal()[: 3 * n])
    left = (after / before).reshape(n, 3)[:2].mean(0)  # CSF's times are far from all others: they say little of these
    return tuple(name for name, share in zip(("T1", "T2"), left[1:], strict=True) if share > STILL_UNKNOWN)


def untold(protocols: Several[Protocol]) -> list[str]:
    """The doubts that :func:`unidentified` raises, a sentence each."""
    return [f"{name}: {UNTOLD}" for name in unidentified(protocols)]


# --- voxels ---------------------------------------------------------------------------------------


def check_voxels(
    image: np.ndarray, path: Path, signed: bool = False
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The image, notes, and what misleads its scale; refused is what no signal model explains.

    A few voxels far brighter than all tissue would be the scale; they are cut down to :data:`SPIKE` times the
    99.9th percentile, and a note says so.

    Parameters
    ----------
    image
        ``(x, y, z)`` float32 as read.
    signed
        A real part, whose scale is its magnitude's and which may be negative.

    Raises
    ------
    BadInput
        Nothing is above 0; every voxel is alike; too much is negative; there are as few values as in a mask.
    """
    if signed:
        size, notes, doubted = check_voxels(np.abs(image), path)
        return np.clip(image, -size.max(), size.max()), notes, doubted
    if not image.max(initial=0) > 0:
        raise BadInput(f"{path}: no voxel is above 0: give the magnitude image")
    if image.max() == image.min():
        raise BadInput(f"{path}: every voxel is {image.max():g}: there is no head in it")
    shown = image[image != 0]
    high = np.percentile(image, 98)
    bound, share = NEGATIVE
    negative = float((shown < bound * max(high, 0)).mean())
    if negative > share:
        raise BadInput(
            f"{path}: {negative:.0%} of its voxels are negative: a magnitude image has none, "
            "so give it as the scanner made it, not normalised or filtered"
        )
    few = np.unique(shown[:: max(1, shown.size // 20_000)])
    if len(few) < FEW_VALUES < shown.size:
        raise BadInput(f"{path}: has only {len(few)} different values: a mask or a label map, not a scan")
    notes, doubted = (), ()
    if image.size > 1000 and (alike := neighbours_alike(image)) < NOISE:
        doubted += (f"is noise: neighbouring voxels have nothing in common (correlation {alike:.2f}): leave it out",)
    ceiling = SPIKE * np.percentile(shown, 99.9)
    if 0 < (spikes := int((image > ceiling).sum())) <= max(1, SPIKED * image.size):
        image = np.minimum(image, np.float32(ceiling))
        notes += (f"{spikes} voxels brighter than {SPIKE:g} times the 99.9th percentile cut down to it",)
    floor = np.percentile(shown, 2) / max(np.percentile(shown, 98), 1e-30)
    if image.size > 1000 and floor > OFFSET and (image != 0).mean() > 0.9:
        what = "an offset was added, or the air around the head is cut off"
        doubted += (f"its darkest voxels have {floor:.0%} of the brightest ones' signal: {what}",)
    return image, notes, doubted


def neighbours_alike(image: np.ndarray) -> float:
    """Correlation of voxels with their neighbour in the first axis, spikes set aside."""
    capped = np.minimum(image, np.percentile(image, 99.9)).astype(np.float32)
    one, other = capped[:-1].ravel(), capped[1:].ravel()
    one, other = one - one.mean(), other - other.mean()
    return float((one @ other) / np.sqrt(max((one @ one) * (other @ other), 1e-30)))
