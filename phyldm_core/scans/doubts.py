"""Images that no signal model explains, or that mislead the scale they are put on: refused or doubted by name.

First what names and sidecars say (phase, UNI, maps, contrast agent, field strength, fat suppression), then what the
voxels show. A refusal is a :class:`errors.BadInput`; a doubt is a phrase that goes with the scan to whoever reads the
maps.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import BadInput
from .bids import CONTRASTS, parse_name, words

OTHER_SUFFIX = {
    "UNIT1": "the uniform image of an MP2RAGE, a ratio of two",
    "MP2RAGE": "one inversion of an MP2RAGE",
    "ph": "a phase image",
    "real": "the real part of a complex image",
    "imaginary": "the imaginary part of a complex image",
}
"""Last words of names (BIDS's, and dcm2niix's) of what is no weighted magnitude image; "…map" is a map."""

PART_OF = {"phase": "a phase image", "real": "the real part of a complex image", "imag": "an imaginary part"}
"""Labels of BIDS's ``part-`` that are no magnitude."""

KINDS = {
    r"P|P_.+|PHASE|PHASE[_ ]?MAP|B0|RAD": "a phase image",
    r"R|R_.+|REAL|I|I_.+|IMAGINARY|MIXED": "the real or imaginary part of a complex image",
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

FAT_SUPPRESSED = re.compile(r"(^|[^a-z])(fs|fatsat|fat[_ ]?sat\w*|fat[_ ]?suppr\w*|we|spir|spair|water)([^a-z]|$)")
"""In Scan Options, Image Type and the like, lower case."""

FIELD_T = 2.5, 3.5  # of the tissue that weights are trained on
HEAD_MM = 140.0  # no adult's head is narrower, from ear to ear: a narrower field of view cuts it
THICK_MM = 6.0  # slices this thick average tissue with its neighbours

NEGATIVE = -0.05, 0.05  # refused where more than this fraction is below this fraction of the 98th percentile
FEW_VALUES = 12  # a mask or a label map has no more different values
NOISE = 0.2  # correlation of neighbours below which there is no image: a head has 0.8 and more, noise 0
SPIKE = 5.0  # times the 99.9th percentile: brighter is no tissue, fat and inflow included
SPIKED = 1e-3  # of the voxels at most; more are something else
OFFSET = 0.2  # of the 98th percentile: the darkest voxels, air and bone, have less


class NotWeighted(BadInput):
    """An image that is by its own account no weighted magnitude image."""


def refuse_by_name(path: Path, metadata: dict):
    """Refuse what name or sidecar calls anything but a weighted magnitude image.

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
    for field in ("ImageType", "ImageTypeText", "ComplexImageComponent"):
        for word in words(metadata.get(field)):
            for kind, what in KINDS.items():
                if re.fullmatch(kind, word.strip().upper()):
                    raise NotWeighted(f"{path}: is {what}, as its sidecar says ({field} {word}): leave it out")
    unit = str(metadata.get("Units", "")).strip()
    if suffix in CONTRASTS and (what := UNIT_KINDS.get(unit.lower())):
        raise NotWeighted(f"{path}: is {what}, as its sidecar says (Units {unit}): leave it out")


def contrast_agent(path: Path, metadata: dict) -> str | None:
    """What name or sidecar says was injected; None where neither says anything."""
    for said in (metadata.get("ContrastBolusIngredient"), metadata.get("ContrastBolusAgent")):
        said = " ".join(words(said)).strip()
        if said.lower() not in ("", "none", "no", "n/a", "na", "null", "false", "0", "unknown"):
            return said
    return parse_name(path)[0].get("ce")


def suppresses_fat(metadata: dict) -> str | None:
    """The words of a sidecar that say that fat is dark in this scan; None where none does."""
    for field in ("ScanOptions", "ImageType", "FatSaturation", "FatSuppression", "WaterExcitation"):
        value = metadata.get(field)
        if value is True:
            return field
        if FAT_SUPPRESSED.search(said := " ".join(words(value)).lower()):
            return f"{field} {said.upper()}"
    return None


def doubts(path: Path, metadata: dict, extent_mm: np.ndarray, voxel_mm: np.ndarray) -> tuple[str, ...]:
    """What makes maps of a scan doubtful that can be read without its voxels, a phrase each.

    Parameters
    ----------
    extent_mm, voxel_mm
        ``(3,)``, of the field of view and of a voxel, along the patient's x, y and z.
    """
    found = []
    if agent := contrast_agent(path, metadata):
        found.append(f"after a contrast agent ({agent}): T1 is short where it went")
    field = metadata.get("MagneticFieldStrength")
    low, high = FIELD_T
    if isinstance(field, bool) or not isinstance(field, (int, float, type(None))):
        found.append("MagneticFieldStrength is no number of tesla")
    elif field is not None and not low <= field <= high:
        found.append(f"at {field:g} T: weights know tissue at 3 T, and T1 depends on the field")
    if said := suppresses_fat(metadata):
        found.append(f"fat is suppressed ({said}): weights trained on heads take the scale from the scalp")
    if extent_mm[:2].min() < HEAD_MM:
        found.append(f"a field of view of {extent_mm[0]:.0f} × {extent_mm[1]:.0f} mm cuts the head")
    if voxel_mm.max() > THICK_MM:
        found.append(f"slices of {voxel_mm.max():g} mm mix tissues")
    return tuple(found)


# --- voxels ---------------------------------------------------------------------------------------


def check_voxels(image: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The image, notes, and what misleads its scale; refused is what no signal model of a positive image explains.

    A few voxels far brighter than all tissue would be the scale; they are cut down to :data:`SPIKE` times the
    99.9th percentile, and a note says so.

    Parameters
    ----------
    image
        ``(x, y, z)`` float32 as read.

    Raises
    ------
    BadInput
        Nothing is above 0; every voxel is alike; too much is negative; there are as few values as in a mask.
    """
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
