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
from ..errors import BadInput
from ..machine.files import sha256, to_json
from ..physics import SEQUENCES, Protocol, ProtocolError
from ..weights import Weights
from .bids import find_sessions, makers, parse_name, session_folder, session_name, write_dataset_description
from .maps import write_maps
from .nifti import Scan, read_scan, write_image

MAKER = "phyldm_core fit"
GRIDS = ("native", "model")
PARTIAL = ".phyldm-fit.part"
METHOD = 2  # raised when equal inputs would give other maps


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
        Move every voxel to where its own signals want it (:mod:`refine`).
    """

    grid: str = "native"
    n_samples: int = 8
    seed: int = 0
    mask: Path | None = None
    refined: bool = False


class Session(NamedTuple):
    """Scans to be fitted together, and the labels their maps go by (``session`` may be None)."""

    subject: str
    session: str | None
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return session_name(self.subject, self.session)


class FitOutcome(NamedTuple):
    """What became of one session."""

    session: Session
    state: str  # "done", "unchanged" or "skipped"
    said: str  # why it was skipped; else which scans were used, and what to know about the maps


# --- what to fit ----------------------------------------------------------------------------------


def find_scans(inputs: list[Path]) -> list[Session]:
    """The sessions that files and folders on a command line stand for.

    Files together are one session. A folder holds one or more, as :func:`bids.find_sessions` finds them.

    Raises
    ------
    BadInput
        Nothing given, or a folder without a scan.
    """
    if not inputs:
        raise BadInput("no scan given: name NIfTI files with sidecars, or a BIDS folder")
    sessions = []
    for folder in (path for path in inputs if path.is_dir()):
        for (subject, session), paths in find_sessions(folder).items():
            sessions.append(Session(_label(subject or folder.absolute().name), session, tuple(paths)))
    if files := tuple(path for path in inputs if not path.is_dir()):
        entities, suffix = parse_name(files[0])
        stem = files[0].name.partition(".")[0].removesuffix(f"_{suffix}")
        sessions.append(Session(_label(entities.get("sub", stem)), entities.get("ses"), files))
    names = [session.name for session in sessions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"{twice[0]} is there twice: fit the folders one by one, into an --out each")
    return sessions


def _label(text: str) -> str:
    """A BIDS label: letters and digits only."""
    return re.sub(r"[^0-9a-zA-Z]", "", text) or "unnamed"


def parse_protocol(text: str) -> tuple[str, Protocol]:
    """``"T2w: spin echo, te 0.1, tr 3.2"`` → which scan (suffix or file name) and its protocol (s).

    Raises
    ------
    BadInput
        The text has another form, a time twice or without a number; a :class:`physics.ProtocolError` says
        what is wrong with the times themselves.
    """
    form = 'write it as "T2w: spin echo, te 0.1, tr 3.2" (seconds; ti too where there is an inversion)'
    name, colon, rest = text.partition(":")
    sequence, *fields = (part.strip() for part in rest.split(","))
    known = {str(s).lower(): s for s in SEQUENCES}
    if not colon or not name.strip() or not sequence:
        raise BadInput(f"--protocol {text!r} cannot be read: {form}")
    times = {}
    for field in fields:
        found = re.fullmatch(r"(te|tr|ti)[\s=]*([0-9.]+(?:e-?\d+)?)\s*(ms|s)?", field, re.IGNORECASE)
        if not found or found[1].lower() in times:
            raise BadInput(f"--protocol {text!r}: {field!r} cannot be read: {form}")
        if (found[3] or "s").lower() == "ms":
            raise BadInput(f"--protocol {text!r}: {field!r} is in milliseconds: give {float(found[2]) / 1000:g} (s)")
        times[found[1].lower()] = float(found[2])
    if missing := [t for t in ("te", "tr") if t not in times]:
        raise BadInput(f"--protocol {text!r}: no {missing[0].upper()}: {form}")
    if sequence.lower() not in known:
        can = ", ".join(SEQUENCES)
        raise BadInput(f"--protocol {text!r}: maps are not inferred from {sequence!r}: it must be one of {can}")
    try:
        return name.strip(), Protocol(known[sequence.lower()], **times)
    except ProtocolError as error:
        raise BadInput(f"--protocol {text!r}: {error}") from None


def read_scans(session: Session, protocols: dict[str, Protocol]) -> list[Scan]:
    """The scans of a session, those named in ``protocols`` (by suffix or file name) with the protocol given there."""
    scans = []
    for path in session.paths:
        suffix = parse_name(path)[1]
        scans.append(read_scan(path, protocols.get(path.name, protocols.get(suffix))))
    return scans


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
    there = {key for session in sessions for p in session.paths for key in (p.name, parse_name(p)[1])}
    if unused := sorted(set(protocols) - there):
        raise BadInput(f"--protocol for {unused[0]}: no scan has this name or suffix, only {', '.join(sorted(there))}")
    _own_dataset(out, weights)
    for session in sessions:
        try:
            yield _fit_one(session, weights, out, protocols, options)
        except (BadInput, ProtocolError) as error:
            yield FitOutcome(session, "skipped", str(error))


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
    scans = read_scans(session, protocols)
    provenance = _provenance(scans, weights, options)
    anat = session_folder(out, session.subject, session.session)
    grid = "" if options.grid == "native" else f"_res-{weights.voxel_mm:g}mm".replace(".", "p")
    files = [f"{session.name}{grid}{desc}_{suffix}" for desc, suffix in
             (("", "PDmap"), ("", "T1map"), ("", "T2map"), ("_desc-sd", "PDmap"), ("_desc-sd", "T1map"),
              ("_desc-sd", "T2map"), ("_desc-brain", "mask"))]  # fmt: skip
    used = "+".join(scan.suffix for scan in scans)
    if all(_made_from(anat, name) == provenance["Fingerprint"] for name in files):
        return FitOutcome(session, "unchanged", f"{used}: maps of these very inputs are there")

    from .fit import fit_session, native_grid, on_grid, prepare  # seconds of imports, not for what is there already

    prepared = prepare(scans, weights, options.mask)
    fit = fit_session(prepared, weights, n_samples=options.n_samples, seed=options.seed, refined=options.refined)
    if options.grid == "native":
        fit = on_grid(fit, native_grid(prepared.scans[0]))
    else:
        provenance["Resolution"] = f"{weights.voxel_mm:g} mm isotropic, the grid of the weights"
    low, high = fit.trained_heights
    spread = f"standard deviation over {options.n_samples} decoded posterior samples"
    true_of, moved = "is the model's own, not its error", ""
    if options.refined:
        spread = "standard deviation that the scans' noise and the trust in the decoded maps leave to each voxel"
        true_of, moved = (
            "knows nothing of errors that all scans share",
            ", then moved to where the voxel's signals want it",
        )
    elif weights.calibration is not None:
        spread += ", with what they missed on simulated people"
        true_of = "covers errors as large as on simulated people"
    provenance |= {
        "BrainMask": prepared.mask_from,
        "TrainedHeights": [round(low, 2), round(high, 2)],
        "ExtrapolatedFraction": round(fit.extrapolated, 4),
        "Limitation": f"Weights were trained on slices between {low:.0f} and {high:.0f} mm (RAS) only; "
        f"the {fit.extrapolated:.0%} of the voxels beyond are extrapolated. The SD {true_of}.",
    }
    part = anat / PARTIAL
    shutil.rmtree(part, ignore_errors=True)
    try:
        stripped = not weights.head
        meaning = {"Description": f"decoded from the mean of the latent posterior{moved}"}
        write_maps(part / f"{session.name}{grid}", fit.mean, fit.affine, stripped, **meaning, **provenance)
        meaning = {"Description": spread}
        write_maps(part / f"{session.name}{grid}_desc-sd", fit.sd, fit.affine, stripped, **meaning, **provenance)
        meaning = {"Type": "Brain", "Description": "where maps were inferred"}
        mask = fit.brain.astype(np.uint8)
        write_image(part / f"{files[-1]}.nii.gz", mask, fit.affine, meaning | provenance, dtype=np.uint8)
        for name in files:  # an image first: until its sidecar follows, the old one says it is not of these inputs
            for ending in (".nii.gz", ".json"):
                os.replace(part / f"{name}{ending}", anat / f"{name}{ending}")
    except OSError as error:
        raise BadInput(f"{anat}: cannot write ({error.strerror}): choose another folder or free some space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    notes = [f"brain from {prepared.mask_from}", f"{fit.extrapolated:.0%} of it extrapolated"]
    return FitOutcome(session, "done", f"{used}: {', '.join(notes)}")


def _made_from(anat: Path, name: str) -> str | None:
    """The fingerprint in a written file's sidecar; None where either is missing or unreadable."""
    try:
        found = json.loads((anat / f"{name}.json").read_text()).get("Fingerprint")
    except (OSError, ValueError, AttributeError):
        return None
    return found if (anat / f"{name}.nii.gz").exists() else None


def _provenance(scans: list[Scan], weights: Weights, options: FitOptions) -> dict:
    """What the maps are made from: inputs with hashes and protocols, weights, options, versions; nobody's folders."""
    import diffusers
    import torch

    inputs = []
    for scan in scans:
        said = {"File": scan.path.name, "SHA256": sha256(scan.path), "Contrast": scan.suffix}
        protocol = scan.protocol
        times = {"Sequence": str(protocol.sequence), "EchoTime": protocol.te, "RepetitionTime": protocol.tr}
        if protocol.ti is not None:
            times["InversionTime"] = protocol.ti
        inputs.append(said | {"ProtocolUsed": times, "Notes": list(scan.notes)})
    made = {
        "InputScans": inputs,
        "Weights": {"SHA256": weights.identity, "Profile": weights.config["profile"], "VoxelSize": weights.voxel_mm,
                    "SDCalibrated": weights.calibration is not None},
        "Method": METHOD,
        "Options": {"Grid": options.grid, "PosteriorSamples": options.n_samples, "Seed": options.seed,
                    "Refined": options.refined,
                    "Mask": {"File": options.mask.name, "SHA256": sha256(options.mask)} if options.mask else None},
        "Versions": {"phyldm_core": __version__, "torch": torch.__version__.partition("+")[0],
                     "diffusers": diffusers.__version__},
    }  # fmt: skip
    return made | {"Fingerprint": hashlib.sha256(to_json(made)).hexdigest()}
