"""BIDS without images: what a name and a sidecar say, and how to write one.

Times are seconds at this boundary, as BIDS has them. A TR is read from whichever of BIDS's three
fields is there; for MPRAGE it must run from inversion to inversion.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..machine.errors import BadInput
from ..machine.files import read_json, to_json, write_atomically
from ..physics import SEQUENCE_OF, SEQUENCES, Protocol, ProtocolError, Sequence, effective_te
from .oasis3 import family_ti, mislabelled

CONTRASTS = tuple(SEQUENCE_OF)
"""BIDS suffixes of the weighted images that can be read: T1w, T2w, PDw, FLAIR."""

MAP_UNITS = {"PDmap": "arbitrary", "T1map": "s", "T2map": "s"}
"""Units of the maps written; PD is relative to water = 1, for which BIDS has no other word."""

INHERITS = {*CONTRASTS, *MAP_UNITS}
"""Suffixes whose sidecars may lie in the folders above; any other name has a sidecar of its own or none."""

CONTRAST_EQUIVALENT_TE = "ContrastEquivalentEchoTime"
"""Sidecar field of ours (s): the TE the signal model uses, where it differs from the nominal EchoTime."""

PULSE_SEQUENCE = {
    Sequence.MPRAGE: "MPRAGE",
    Sequence.SPIN_ECHO: "spin echo",
    Sequence.FLAIR: "inversion recovery spin echo",
    Sequence.GRADIENT_ECHO: "spoiled gradient echo",
    Sequence.INVERSION_GRADIENT_ECHO: "inversion-recovery gradient echo",
}
"""What a sidecar of ours calls them; :func:`protocol_from_sidecar` reads each as what it was."""

SHORTEST_TR = 0.05  # s; below it a TR is the spacing of an MPRAGE's small pulses, or in the wrong unit
SHORTEST_TE = 0.0005  # s; no pulse and readout of these sequences fit into less: milliseconds divided twice
SHORTEST_TI = 0.01  # s; an inversion that short inverts nothing
LONGEST_T1W_TE = 0.05  # s; beyond it T2 decides the contrast, and a gradient echo has no signal
SHORTEST_SPIN_ECHO_TE = 0.008  # s; two pulses and a readout take longer, an MPRAGE's echo does not
LONGEST_STEADY_TR = 1.2, 30.0  # s, degrees: of longer TR and smaller angle are only trains after an inversion

# What vendors call them (SequenceName, PulseSequenceType …), lower case
TRAIN = re.compile(r"mp-?_?rage|tfl|tfe|turbo ?flash|turbo ?field|bravo")  # of gradient echoes, after an inversion
GRADIENT_ECHO = re.compile(rf"{TRAIN.pattern}|spgr|gradient|gre(3d)?\b|\bflash|\bfl[23]d|ffe")
ONE_ECHO = re.compile(r"inversion[- ]recovery gradient[- ]echo")  # the one a sidecar must name, with its flip angle
UNSPOILED = re.compile(r"true?-?_?fi|tfi[23]d|\bfi[23]d|fisp|psif|fiesta|b-?_?ffe|balanced|ssfp|ciss|dess")
SPIN_ECHO = re.compile(
    r"spin[ -]?echo|tse|fse|spc|\bspace|cube|vista|rare|haste|\btir|tirm|inversion.+magnitude|\bse(\d|\b)"
)
INVERSION = re.compile(r"inversion|flair|tirm|\btir|spcir|\bstir|mp-?_?rage|\bir\b|ir-?f?spgr|bravo")


class SidecarReading(NamedTuple):
    """A protocol as the physics needs it, and what had to be decided to get there."""

    protocol: Protocol
    notes: tuple[str, ...]


# --- names and folders --------------------------------------------------------------------------


ENDING = re.compile(r"\.(nii|img|hdr)(\.gz)?$|\.json$", re.IGNORECASE)


def stem(path: Path) -> str:
    """A file's name without ``.nii.gz``, ``.nii``, ``.img``, ``.hdr`` or ``.json``: other dots belong to the name."""
    return ENDING.sub("", path.name)


def parse_name(path: Path) -> tuple[dict[str, str], str]:
    """``sub-07_ses-1_T1w.nii.gz`` → ``({"sub": "07", "ses": "1"}, "T1w")``."""
    *entities, suffix = _parts(path)
    return dict(entity.split("-", 1) for entity in entities if "-" in entity), suffix


def _parts(path: Path) -> list[str]:
    return [""] if path.name.startswith(".") else stem(path).split("_")  # a hidden file is never a scan


def session_name(subject: str | None, session: str | None) -> str:
    """``sub-01_ses-1``; what is None is left out."""
    return "_".join(filter(None, (f"sub-{subject}" if subject else "", f"ses-{session}" if session else "")))


def session_folder(root: Path, subject: str, session: str | None) -> Path:
    """Where a session's images lie in a dataset: ``sub-…/[ses-…/]anat``."""
    return root / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"


def is_bids_level(name: str) -> bool:
    """Whether a folder of this name is a level below a dataset's root that holds anatomical scans."""
    return name == "anat" or name.startswith(("sub-", "ses-"))


def ignored_by(root: Path) -> Callable[[str], bool]:
    """Whether a path in the dataset is passed by, as its ``.bidsignore`` says in the patterns of a ``.gitignore``."""
    try:
        lines = (root / ".bidsignore").read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError:
        return lambda path: False
    rules = []
    for line in (line.strip() for line in lines):
        pattern = line.removeprefix("!").removeprefix("\\")
        if not pattern.strip("/") or line.startswith("#"):
            continue
        anchored, only_folders = "/" in pattern.rstrip("/"), pattern.endswith("/")
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        parts = re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+]|.", pattern.strip("/"))
        body = "".join(wild.get(p) or (p.replace("[!", "[^") if len(p) > 1 else re.escape(p)) for p in parts)
        start, end = "" if anchored else "(?:.*/)?", "/.*" if only_folders else "(?:/.*)?"
        with contextlib.suppress(re.error):
            rules.append((re.compile(start + body + end, re.DOTALL), not line.startswith("!")))

    def ignored(path: str) -> bool:
        said = [ignore for rule, ignore in rules if rule.fullmatch(path)]
        return bool(said) and said[-1]  # the last that fits decides

    return ignored


# --- sidecars in --------------------------------------------------------------------------------


def read_sidecar(path: str | Path) -> dict:
    """What the JSON files that apply to an image say; the nearer file wins (BIDS inheritance principle).

    Applies: the file of the image's own name, and for a BIDS suffix one in its folder or above it, up to the dataset's
    root, whose name is that suffix after entities (``task-…``) that the image has, too. Empty where there is none.

    Raises
    ------
    BadInput
        A sidecar is not a JSON object, or a folder cannot be read.
    """
    path = Path(path)
    own = _parts(path)
    folders = [path.absolute().parent]
    while is_bids_level(folders[-1].name):
        folders.append(folders[-1].parent)
    metadata = {}
    for folder in reversed(folders):
        try:
            names = [name for name in os.listdir(folder) if name.lower().endswith(".json")]
        except OSError as error:
            if folder != folders[0]:
                raise BadInput(f"{folder}: cannot read this folder ({error.strerror})") from None
            continue  # told when the image is read
        candidates = []
        for name in names:
            sidecar_path = folder / name
            *entities, suffix = parts = _parts(sidecar_path)
            inherited = suffix in INHERITS and set(parts) <= set(own) and all("-" in entity for entity in entities)
            if (inherited and suffix == own[-1]) or parts == own:
                candidates.append((len(parts), sidecar_path))
        for _, sidecar_path in sorted(candidates):
            metadata |= read_json(sidecar_path)
    return metadata


def protocol_from_sidecar(metadata: dict, suffix: str, where: str | Path) -> SidecarReading:
    """The protocol a sidecar describes, with the echo time the signal model needs.

    The sequence comes from ScanningSequence, else from the names in PulseSequenceType,
    PulseSequenceName and SequenceName, else from the suffix (a T1w with inversion is an MPRAGE
    unless it is 2D or its TE ≥ 8 ms). A gradient echo without inversion is a spoiled one, unless it is named as
    a train or otherwise. TE of a variable-flip-angle train: :func:`physics.effective_te`.

    Parameters
    ----------
    metadata
        Fields of :func:`read_sidecar`.
    suffix
        BIDS suffix of the scan ("T1w" …), any other word where it is not known.
    where
        The file, for messages.

    Raises
    ------
    BadInput
        A field is missing, in the wrong unit or contradicts another, or no signal model fits.
    """
    te = _seconds(metadata, "EchoTime", where)
    ti = _seconds(metadata, "InversionTime", where) or None  # some converters write 0 for "no inversion"
    if te is None:
        raise BadInput(f"{where}: its sidecar has no EchoTime: add it in seconds, or give the protocol")
    sequence, told_by = _sequence(metadata, suffix, te, ti, where)
    tr, tr_field = _repetition_time(metadata, sequence, where)
    if sequence.inverts and ti is None:
        hint = _oasis3_ti(suffix, tr)
        raise BadInput(
            f"{where}: no InversionTime in its sidecar, needed for {sequence.value}: add it in seconds{hint}"
        )
    angle = _number(metadata, "FlipAngle", where, "degrees") if sequence.has_flip_angle else None
    if sequence.has_flip_angle and angle is None:
        raise BadInput(f"{where}: no FlipAngle in its sidecar, needed for a {sequence.value}: add it in degrees")
    try:
        nominal = Protocol(sequence, te, tr, ti if sequence.inverts else None, angle)
    except ProtocolError as error:
        raise BadInput(f"{where}: {error}") from None
    for field, value, shortest in (("EchoTime", te, SHORTEST_TE), ("InversionTime", nominal.ti or 1, SHORTEST_TI)):
        if value < shortest:
            raise BadInput(f"{where}: {field} {value:g} s is too short: did you mean {1000 * value:g} s?")
    if (sequence is Sequence.MPRAGE or suffix == "T1w") and te > LONGEST_T1W_TE:
        raise BadInput(f"{where}: EchoTime {te:g} s is too long for a T1w: did you mean {te / 1000:g} s?")
    if sequence is not Sequence.GRADIENT_ECHO and (reason := mislabelled(suffix, te, tr)):
        raise BadInput(f"{where}: TE {te:g} s, TR {tr:g} s: {reason}; rename it or leave it out")

    notes = [f"{PULSE_SEQUENCE[sequence]} told by {told_by}", f"TR from {tr_field}"]
    equivalent = _seconds(metadata, CONTRAST_EQUIVALENT_TE, where) or effective_te(te, sequence)
    if equivalent != te:
        notes.append(f"nominal TE {1000 * te:g} ms taken as a contrast-equivalent {1000 * equivalent:g} ms")
    try:
        return SidecarReading(replace(nominal, te=equivalent), tuple(notes))
    except ProtocolError as error:
        raise BadInput(f"{where}: {error}") from None


def _seconds(metadata: dict, field: str, where) -> float | None:
    return _number(metadata, field, where, "seconds")


def _number(metadata: dict, field: str, where, unit: str) -> float | None:
    value = metadata.get(field)
    if value is None:
        return None
    with contextlib.suppress(OverflowError):  # an integer of 400 digits
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    said = json.dumps(value, ensure_ascii=False)
    raise BadInput(f"{where}: {field} must be one number of {unit}, not {said[:40]}{'…' if len(said) > 40 else ''}")


def words(value) -> list[str]:
    """A field's words, whether it is a list, or one string as DICOM has it; nothing of what is no text."""
    listed = value if isinstance(value, list) else [value]
    return [word for item in listed if isinstance(item, str) for word in item.split("\\")]


def _sequence(metadata: dict, suffix: str, te: float, ti: float | None, where) -> tuple[Sequence, str]:
    """Which signal model, and what told so."""
    codes = set(re.findall(r"[A-Z]+", " ".join(words(metadata.get("ScanningSequence"))).upper()))
    fields = ("PulseSequenceType", "PulseSequenceName", "SequenceName")
    names = {field: str(metadata[field]).lower() for field in fields if metadata.get(field)}
    text = " ".join(names.values())
    inverts = ti is not None or "IR" in codes or suffix == "FLAIR" or bool(INVERSION.search(text))

    if codes & {"SE", "GR"}:
        gradient_echo, told_by = "SE" not in codes, "ScanningSequence"
    elif GRADIENT_ECHO.search(text) or SPIN_ECHO.search(text):
        gradient_echo, told_by = bool(GRADIENT_ECHO.search(text)), " and ".join(names)
    elif suffix not in CONTRASTS:
        raise BadInput(f"{where}: neither sidecar nor name tells the sequence: give it ({', '.join(SEQUENCES)})")
    elif suffix == "T1w" and not inverts:
        raise BadInput(
            f"{where}: a T1w without InversionTime and without the sequence's name can be an MPRAGE or a spin echo: "
            f"add InversionTime in seconds{_oasis3_ti(suffix, _any_tr(metadata))}, or ScanningSequence SE or GR"
        )
    else:
        planar = metadata.get("MRAcquisitionType") == "2D"
        gradient_echo, told_by = suffix == "T1w" and te < SHORTEST_SPIN_ECHO_TE and not planar, f"the suffix {suffix}"
        if suffix == "T1w":
            told_by += " and " + ("MRAcquisitionType 2D" if planar else f"TE {1000 * te:g} ms")

    if not gradient_echo:
        return (Sequence.FLAIR if inverts else Sequence.SPIN_ECHO), told_by
    if inverts:
        one = ONE_ECHO.search(text) and metadata.get("FlipAngle") is not None
        return (Sequence.INVERSION_GRADIENT_ECHO if one else Sequence.MPRAGE), told_by
    if found := UNSPOILED.search(text):
        known = ", ".join(SEQUENCES)
        raise BadInput(f"{where}: a gradient echo that is not spoiled ({found[0]}): what is known is {known}")
    angle = _number(metadata, "FlipAngle", where, "degrees")
    longest, smallest = LONGEST_STEADY_TR
    late = (_any_tr(metadata) or 0) > longest and (angle is None or angle < smallest)
    if late or TRAIN.search(text) or "MP" in " ".join(words(metadata.get("SequenceVariant"))).upper().split():
        raise BadInput(
            f"{where}: a gradient echo that looks like an MPRAGE without InversionTime: "
            f"add it in seconds{_oasis3_ti(suffix, _any_tr(metadata))}, or give the protocol"
        )
    return Sequence.GRADIENT_ECHO, told_by


def _repetition_time(metadata: dict, sequence: Sequence, where) -> tuple[float, str]:
    """TR (s) and the field it came from.

    A spin echo is excited once per repetition, prepared or not, so all three fields mean the same.
    An MPRAGE is prepared once and excited a hundred times in between.
    """
    fields = ["RepetitionTimePreparation", "RepetitionTime", "RepetitionTimeExcitation"]
    if not sequence.inverts:
        fields.reverse()
    found = {field: value for field in fields if (value := _seconds(metadata, field, where)) is not None}
    if not found:
        field = "RepetitionTimePreparation" if sequence.inverts else "RepetitionTimeExcitation"
        raise BadInput(f"{where}: no RepetitionTime or {field} in its sidecar: add it in seconds, or give the protocol")
    field, tr = next(iter(found.items()))
    between_pulses = field == "RepetitionTimeExcitation" or 0 < tr < SHORTEST_TR
    if sequence in (Sequence.MPRAGE, Sequence.INVERSION_GRADIENT_ECHO) and between_pulses:
        raise BadInput(
            f"{where}: {field} {tr:g} s of this {sequence.value} runs from excitation to excitation, but its signal "
            "depends on the time from inversion to inversion (2 to 3 s on most scanners): "
            "add that as RepetitionTimePreparation"
        )
    if 0 < tr < SHORTEST_TR and sequence is not Sequence.GRADIENT_ECHO:
        raise BadInput(f"{where}: {field} {tr:g} s is too short for a spin echo: did you mean {1000 * tr:g} s?")
    return tr, field


def _any_tr(metadata: dict) -> float | None:
    values = (metadata.get(field) for field in ("RepetitionTimePreparation", "RepetitionTime"))
    return next((value for value in values if isinstance(value, (int, float))), None)


def _oasis3_ti(suffix: str, tr: float | None) -> str:
    ti = None
    if tr is not None:
        with contextlib.suppress(BadInput):  # a missing table must not hide what is wrong with the scan
            ti = family_ti(suffix, tr)
    return f" (OASIS-3 scans with TR {tr:g} s used {ti:g} s)" if ti else ""


# --- sidecars out -------------------------------------------------------------------------------


def sidecar(protocol: Protocol, nominal_te: float | None = None, **fields) -> dict:
    """BIDS sidecar of a weighted image.

    Parameters
    ----------
    protocol
        As it was set at the scanner.
    nominal_te
        Give it where ``protocol.te`` is what the signal model used and the scanner would have named
        another: EchoTime becomes ``nominal_te``, and the reader takes ``protocol.te`` as it is. For
        an image *rendered* with TE > 0.3 s give ``protocol.te`` itself, or reading it back applies
        :func:`oasis3.effective_te`.
    **fields
        More fields, such as ``SkullStripped=True`` (derivatives need it).

    Returns
    -------
        ``RepetitionTimePreparation`` for sequences that invert, else ``RepetitionTimeExcitation``
        (BIDS keeps ``RepetitionTime`` for volumes of a series), and no ``InversionTime`` for spin echo.
    """
    out = {"PulseSequenceType": PULSE_SEQUENCE[protocol.sequence], "EchoTime": nominal_te or protocol.te}
    if nominal_te is not None:
        out[CONTRAST_EQUIVALENT_TE] = protocol.te
    out["RepetitionTimePreparation" if protocol.sequence.inverts else "RepetitionTimeExcitation"] = protocol.tr
    if protocol.ti is not None:
        out["InversionTime"] = protocol.ti
    if protocol.flip_angle_deg is not None:
        out["FlipAngle"] = protocol.flip_angle_deg  # BIDS has degrees
    if protocol.signed:
        out["ComplexImageComponent"] = "REAL"
    return out | fields


def map_sidecar(suffix: str, skull_stripped: bool, **fields) -> dict:
    """BIDS sidecar of a tissue map; ``suffix`` is "PDmap", "T1map" or "T2map"."""
    return {"Units": MAP_UNITS[suffix], "SkullStripped": skull_stripped} | fields


def write_dataset_description(
    folder: str | Path, name: str, derivative: bool, generated_by: list[dict] | None = None, **fields
) -> Path:
    """Write ``dataset_description.json``; ``generated_by`` defaults to this package and its version."""
    description = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative" if derivative else "raw",
        "GeneratedBy": generated_by or [{"Name": "phyldm_core", "Version": __version__}],
    }
    path = Path(folder) / "dataset_description.json"
    write_atomically(path, to_json(description | fields))
    return path


def makers(folder: Path) -> list[dict]:
    """Who made the dataset in a folder, as its description's GeneratedBy has it; empty where nobody can be told."""
    try:
        listed = json.loads((folder / "dataset_description.json").read_text())["GeneratedBy"]
        return [maker for maker in listed if isinstance(maker, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
