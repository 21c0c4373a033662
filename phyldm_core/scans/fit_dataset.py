"""``phyldm fit`` from files to files: which scans make a session, and its maps as a BIDS derivative dataset.

A session's maps appear together or not at all, say what they were made from, and are made again only when
something they were made from has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..machine.errors import BadInput, in_a_sentence
from ..machine.files import sha256, to_json, write_atomically
from ..machine.lock import alone_with
from ..physics import SEQUENCES, Protocol, ProtocolError, Sequence
from ..weights import Weights
from .bids import makers, session_folder, write_dataset_description
from .doubts import untold
from .maps import write_maps
from .nifti import Header, Scan, digest, write_image
from .sessions import CHOSEN, Session, check_out, check_protocols, choose_headers, read_chosen

MAKER = "phyldm_core fit"
GRIDS = ("native", "model")
PARTIAL = ".phyldm-fit.part"
METHOD = 5  # raised when equal inputs would give other maps


@dataclass(frozen=True)
class FitOptions:
    """What a user may choose; part of every sidecar.

    Parameters
    ----------
    grid
        "native": the voxels of the first scan (T1w where there is one). "model": those of the weights.
    n_samples, seed
        Of the posterior samples behind the SD.
    mask
        A brain mask (NIfTI, in the space of the first scan) instead of the one that is found.
    refined
        Move every voxel to where its own signals want it (:mod:`refine`), from the encoder's maps.
    fast
        The encoder alone, without :func:`inference.explain`.
    """

    grid: str = "native"
    n_samples: int = 8
    seed: int = 0
    mask: Path | None = None
    refined: bool = False
    fast: bool = False


class FitOutcome(NamedTuple):
    """What became of one session."""

    session: Session
    state: str  # "done", "unchanged" or "skipped"
    said: str  # why it was skipped; else which scans were used, and what to know about the maps
    left_out: dict[str, str] = {}  # reason by file, of scans that could not be used
    doubts: tuple[str, ...] = ()  # what makes these maps doubtful, a sentence each


def parse_protocol(text: str) -> tuple[str, Protocol]:
    """``"T2w: spin echo, te 0.1, tr 3.2"`` → which scan (suffix or file name) and its protocol (s).

    ``ti`` (s) and ``flip`` (degrees) where the sequence has them; the word ``signed`` last for a real part.

    Raises
    ------
    BadInput
        The text has another form, a time twice or without a number; a :class:`physics.ProtocolError` says
        what is wrong with the times themselves.
    """
    form = (
        'write it as "T2w: spin echo, te 0.1, tr 3.2" (seconds; ti too where there is an inversion, '
        "flip in degrees of a gradient echo, the word signed last for a real part)"
    )
    name, colon, rest = text.partition(":")
    sequence, *fields = (part.strip() for part in rest.split(","))
    known = {str(s).lower(): s for s in SEQUENCES} | {"inversion recovery": Sequence.FLAIR}
    if not colon or not name.strip() or not sequence:
        raise BadInput(f"--protocol {text!r} cannot be read: {form}")
    signed = bool(fields) and fields[-1].lower() == "signed"
    times, number = {}, r"(\d{1,20}(?:\.\d*)?(?:e-?\d{1,3})?|\.\d+)"
    for field in fields[:-1] if signed else fields:
        found = re.fullmatch(rf"(te|tr|ti|flip)[\s=]*{number}\s*(ms|s|°|deg|degrees)?", field, re.IGNORECASE)
        what, unit = (found[1].lower(), (found[3] or "").lower()) if found else (None, None)
        if what in (None, *times) or unit not in ("", *(("°", "deg", "degrees") if what == "flip" else ("s", "ms"))):
            raise BadInput(f"--protocol {text!r}: {field!r} cannot be read: {form}")
        if unit == "ms":
            raise BadInput(f"--protocol {text!r}: {field!r} is in milliseconds: give {float(found[2]) / 1000:g} (s)")
        times[what] = float(found[2])
    if missing := [t for t in ("te", "tr") if t not in times]:
        raise BadInput(f"--protocol {text!r}: no {missing[0].upper()}: {form}")
    if sequence.lower() not in known:
        raise BadInput(f"--protocol {text!r}: unknown sequence {sequence!r}: choose one of {', '.join(SEQUENCES)}")
    angle = times.pop("flip", None)
    try:
        return name.strip(), Protocol(known[sequence.lower()], **times, flip_angle_deg=angle, signed=signed)
    except ProtocolError as error:
        raise BadInput(f"--protocol {text!r}: {error}") from None


# --- one after the other --------------------------------------------------------------------------


def fit_all(
    sessions: list[Session], weights: Weights, out: str | Path, protocols: dict[str, Protocol], options: FitOptions
) -> Iterator[FitOutcome]:
    """Fit every session and write its maps, yielding what became of each; one that cannot be used stops no other.

    Raises
    ------
    BadInput
        What is wrong for all of them: ``out`` belongs to something else or cannot be written, an option has no
        meaning, or a protocol is for no scan.
    """
    out = Path(out)
    if options.grid not in GRIDS:
        raise BadInput(f"unknown grid {options.grid!r}: choose {' or '.join(GRIDS)}")
    if options.n_samples < 2:
        raise BadInput(f"an SD of {options.n_samples} samples has no meaning: ask for at least 2")
    if not 0 <= options.seed < 2**63:
        raise BadInput(f"a seed must be a whole number from 0 to {2**63 - 1}")
    check_protocols(sessions, protocols)
    for session in sessions:
        check_out(out, session, "maps")
    _own_dataset(out, weights)
    for session in sessions:
        try:
            yield _fit_one(session, weights, out, protocols, options)
        except BadInput as error:
            yield FitOutcome(session, "skipped", str(error))
        except Exception as error:
            yield FitOutcome(session, "skipped", in_a_sentence(error, session.paths[0].parent))


def _own_dataset(out: Path, weights: Weights):
    """Make ``out`` a derivative dataset of ours, or see that it is one."""
    if (out / "dataset_description.json").exists():
        if not any(maker.get("Name") == MAKER for maker in makers(out)):
            raise BadInput(f"{out}: is another dataset: choose a folder of its own for the maps")
        return
    maker = {"Name": MAKER, "Version": __version__, "Description": f"weights {weights.identity[:12]}"}
    write_dataset_description(out, "PD, T1 and T2 inferred from weighted scans", derivative=True, generated_by=[maker])


def _fit_one(
    session: Session, weights: Weights, out: Path, protocols: dict[str, Protocol], options: FitOptions
) -> FitOutcome:
    left_out: dict[Path, str] = {}
    found = choose_headers(session.paths, left_out, protocols)
    with alone_with(out, session.name):
        return _fit_alone(session, found, left_out, weights, out, options)


def _fit_alone(
    session: Session, found: dict[str, list[Header]], left_out: dict[Path, str], weights: Weights, out: Path,
    options: FitOptions,
) -> FitOutcome:  # fmt: skip
    digests = {header.path: digest(header.path) for same in found.values() for header in same}
    made = _made_with(weights, options)
    considered = [_input(header, digests[header.path]) for same in found.values() for header in same]
    made["Fingerprint"] = hashlib.sha256(to_json(made | {"InputScans": considered})).hexdigest()
    anat = session_folder(out, session.subject, session.session)
    grid = "" if options.grid == "native" else f"_res-{weights.voxel_mm:g}mm".replace(".", "p")
    names = [f"{session.name}{grid}{desc}_{suffix}" for desc, suffix in
             (("", "PDmap"), ("", "T1map"), ("", "T2map"), ("_desc-sd", "PDmap"), ("_desc-sd", "T1map"),
              ("_desc-sd", "T2map"), ("_desc-brain", "mask"))]  # fmt: skip
    files = [f"{name}{ending}" for name in names for ending in (".nii.gz", ".json")]
    record = out / ".phyldm" / f"{session.name}_fit{grid}.json"
    origin = hashlib.sha256(os.fsencode(session.paths[0].absolute().parent.resolve())).hexdigest()[:16]
    _check_origin(record.parent, session, origin, set(digests.values()))
    old = _read_record(record)
    if old.get("Fingerprint") == made["Fingerprint"] and _hashes(anat, files) == old["Files"]:
        said = f"{old['Used']}: maps of these very inputs are there"
        return FitOutcome(session, "unchanged", said, old["LeftOut"], tuple(old["Doubts"]))

    from .fit import fit_session, on_grid, prepare  # seconds of imports, not for what is there already

    prepared = prepare(read_chosen(found, left_out), weights, options.mask, left_out)
    scans = prepared.scans
    provenance = {"InputScans": [_input(scan, digests[scan.path]) for scan in scans]} | made
    ways = {"n_samples": options.n_samples, "seed": options.seed, "refined": options.refined, "fast": options.fast}
    fit = fit_session(prepared, weights, **ways)
    if options.grid == "native":
        fit = on_grid(fit, scans[0].stored)
    else:
        provenance["Resolution"] = f"{weights.voxel_mm:g} mm isotropic, the grid of the weights"
    low, high = fit.trained_heights
    spread = f"standard deviation over {options.n_samples} decoded posterior samples"
    true_of, start, moved = "is the model's own, not its error", "decoded from the mean of the latent posterior", ""
    if options.refined:
        spread = "standard deviation that the scans' noise and the trust in the decoded maps leave to each voxel"
        true_of, moved = (
            "knows nothing of errors that all scans share",
            ", then moved to where the voxel's signals want it",
        )
    elif not options.fast:
        spread = "standard deviation that the scans' noise, and people's usual differences, leave to each voxel"
        start, moved = "a voxel's tissue, or what the encoder sees there", ", moved until it explains the scans"
        if "explained" in (weights.calibration or {}):
            spread += ", scaled to hold on simulated people under random protocols"
            true_of = "covers errors as large as on simulated people"
    elif weights.calibration is not None:
        spread += ", with what they missed on simulated people"
        true_of = "covers errors as large as on simulated people"
    beyond = ""
    if fit.extrapolated:
        beyond = (
            f"Weights were trained on slices between {low:.0f} and {high:.0f} mm (RAS) only; the "
            f"{fit.extrapolated:.0%} of the voxels beyond are extrapolated. "
        )
    provenance |= {
        "BrainMask": prepared.mask_from,
        "TrainedHeights": [round(low, 2), round(high, 2)],
        "ExtrapolatedFraction": round(fit.extrapolated, 4),
        "Limitation": f"{beyond}The SD {true_of}.",
    }
    part = anat / PARTIAL
    shutil.rmtree(part, ignore_errors=True)
    try:
        written = {"like": scans[0].stored, "skull_stripped": not weights.head} | provenance
        meaning = {"Description": f"{start}{moved}"}
        write_maps(part / f"{session.name}{grid}", fit.mean, fit.affine, **written | meaning)
        write_maps(part / f"{session.name}{grid}_desc-sd", fit.sd, fit.affine, **written | {"Description": spread})
        meaning = {"Type": "Brain", "Description": "where maps were inferred"}
        mask = fit.brain.astype(np.uint8)
        write_image(part / f"{names[-1]}.nii.gz", mask, fit.affine, meaning | provenance, np.uint8, scans[0].stored)
        used = "+".join(prepared.scales)
        kept = {path.name: reason for path, reason in left_out.items()}
        doubts = [f"{scan.path.name}: {doubt}" for scan in scans for doubt in scan.doubts]
        doubts += untold([scan.protocol for scan in scans])
        told = {"Fingerprint": made["Fingerprint"], "Origin": origin, "Inputs": sorted(digests.values()),
                "Files": _hashes(part, files), "Used": used, "LeftOut": kept, "Doubts": doubts}  # fmt: skip
        record.unlink(missing_ok=True)  # until it is there again, these maps are to be made
        for name in files:
            os.replace(part / name, anat / name)
        write_atomically(record, to_json(told))
    except OSError as error:
        raise BadInput(f"{anat}: cannot write ({error.strerror}): choose another folder or free some space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    notes = [f"brain from {prepared.mask_from}"]
    notes += [f"{fit.extrapolated:.0%} of it extrapolated"] if fit.extrapolated else []
    notes += [f"{scan.path.name} {note}" for scan in scans for note in scan.notes if note.startswith(CHOSEN)]
    return FitOutcome(session, "done", f"{used}: {', '.join(notes)}", kept, tuple(doubts))


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of files by name, of those that are there."""
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}


def _read_record(path: Path) -> dict:
    """What a session's maps were made from and what was written; empty where nothing is known of them."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if set(record) >= {"Fingerprint", "Files", "Used", "LeftOut", "Doubts"} else {}
    except (OSError, ValueError, TypeError):
        return {}


def _check_origin(folder: Path, session: Session, origin: str, inputs: set[str]):
    """Refuse to replace the maps of somebody else, who goes by the same name and lies in another folder."""
    for path in folder.glob(f"{session.name}_fit*.json"):
        record = _read_record(path)
        if record and record.get("Origin") != origin and not inputs & set(record.get("Inputs", ())):
            raise BadInput(
                f"{session.paths[0].parent}: maps of other scans that go by {session.name}, too, lie in "
                f"{folder.parent}: choose another --out"
            )


def _input(scan: Scan | Header, sha: str) -> dict:
    """One scan for a sidecar, with its hash and the protocol used; nobody's folders."""
    said = {"File": scan.path.name, "SHA256": sha, "Contrast": scan.suffix}
    protocol = scan.protocol
    times = {"Sequence": str(protocol.sequence), "EchoTime": protocol.te, "RepetitionTime": protocol.tr}
    if protocol.ti is not None:
        times["InversionTime"] = protocol.ti
    if protocol.flip_angle_deg is not None:
        times["FlipAngle"] = protocol.flip_angle_deg
    if protocol.signed:
        times["ComplexImageComponent"] = "REAL"
    return said | {"ProtocolUsed": times, "Notes": list(scan.notes), "Doubts": list(scan.doubts)}


def _made_with(weights: Weights, options: FitOptions) -> dict:
    """What decides the maps besides the scans: weights, options, versions."""
    import diffusers
    import torch

    return {
        "Weights": {"SHA256": weights.identity, "Profile": weights.config["profile"], "VoxelSize": weights.voxel_mm,
                    "SDCalibrated": weights.calibration is not None},
        "Method": METHOD,
        "Options": {"Grid": options.grid, "PosteriorSamples": options.n_samples, "Seed": options.seed,
                    "Refined": options.refined, "Fast": options.fast,
                    "Mask": {"File": options.mask.name, "SHA256": digest(options.mask)} if options.mask else None},
        "Versions": {"phyldm_core": __version__, "torch": torch.__version__.partition("+")[0],
                     "diffusers": diffusers.__version__},
    }  # fmt: skip
