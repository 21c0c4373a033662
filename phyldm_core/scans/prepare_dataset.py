"""A whole BIDS dataset prepared: a folder of aligned scans for each session that can be used, and why the rest cannot.

Each session is made in a hidden folder and renamed once complete, so that a killed call leaves nothing
half written; a record beside the scans says what they were made from, and a later call keeps what is
still true.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path

import numpy as np

from ..machine.errors import BadInput, in_a_sentence
from ..machine.files import sha256, to_json, whole_folder, write_atomically
from ..machine.lock import alone_with
from ..machine.shards import run_shards
from .bids import (
    makers,
    parse_name,
    read_sidecar,
    session_folder,
    session_name,
    sidecar,
    write_dataset_description,
)
from .nifti import digest, read_volume, write_image
from .prepare import TEMPLATE, Prepared, prepare_session
from .sessions import check_out, choose_headers, find_sessions, read_chosen, read_session

PREPARATION = 4  # raised when the same inputs would be prepared differently


@dataclass(frozen=True)
class Outcome:
    """What became of one session."""

    subject: str | None
    session: str | None
    status: str  # "prepared", "kept" from an earlier call, or "skipped"
    left_out: dict[str, str] = field(default_factory=dict)  # reason by file; of the session itself under ""
    doubts: tuple[str, ...] = ()  # what is doubtful about its scans, a sentence each

    @property
    def name(self) -> str:
        return session_name(self.subject, self.session)


def prepare_dataset(
    root: str | Path,
    out: str | Path,
    *,
    voxel_mm: float = 1.0,
    mask: str | Path | None = None,
    n_workers: int = 1,
    scheduler: str | None = None,
) -> Iterator[Outcome]:
    """Prepare every session of a dataset, yielding each as it is done, in no fixed order; then write ``skipped.tsv``.

    Of each suffix one scan is prepared; which was taken instead of which others stands in its sidecar.

    Parameters
    ----------
    root
        BIDS dataset; only ``sub-*/[ses-*/]anat`` is read, and nothing is written there unless ``out`` is inside.
    out
        A derivative dataset, such as ``root/derivatives/phyldm``.
    mask
        :data:`prepare.TEMPLATE`, a folder with ``sub-*/**/*_mask.nii.gz`` of brains (one a session),
        or None: see :func:`prepare.prepare_session`.
    n_workers
        Sessions at a time, a process each; 1 to 2 GiB of memory a process at 1 mm.
    scheduler
        A Dask scheduler whose workers do it instead: :func:`shards.run_shards`.

    Raises
    ------
    BadInput
        There is no session at all, ``out`` cannot be written, or workers die again and again.
    """
    root, out = Path(root), Path(out)
    if mask not in (None, TEMPLATE) and not Path(mask).is_dir():
        raise BadInput(f"{mask}: not a folder of brain masks: give one, or the word {TEMPLATE}")
    if out.resolve() == root.resolve():
        raise BadInput(f"{out}: prepared scans would lie among the scans they are made from: choose another folder")
    ours = any(maker.get("Name") == "phyldm_core" for maker in makers(out))
    if (out / "dataset_description.json").exists() and not ours:
        raise BadInput(f"{out}: is another dataset: choose a folder of its own for the prepared scans")
    if scheduler:  # whose workers start from folders of their own
        root, out = root.resolve(), out.resolve()
        mask = mask if mask in (None, TEMPLATE) else Path(mask).resolve()
    unreadable: dict[Path, str] = {}
    sessions = find_sessions(root, unreadable)
    for labels, paths in sessions.items():
        if labels[0] is not None:  # the others are told one by one
            check_out(out, (*labels, paths), "prepared scans")
    _describe(root, out)
    outcomes = [_outcome_of_folder(folder, reason) for folder, reason in unreadable.items()]
    yield from outcomes
    tasks = [(root, out, labels, paths, voxel_mm, mask) for labels, paths in sessions.items()]
    alone = n_workers == 1 and not scheduler
    for outcome in starmap(prepare_one, tasks) if alone else run_shards(prepare_one, tasks, n_workers, scheduler):
        outcomes.append(outcome)
        yield outcome
    write_skipped(out / "skipped.tsv", outcomes)


def write_skipped(path: Path, outcomes: list[Outcome]):
    """Write what was not used: participant_id, session_id, scan ("n/a": the whole session), reason."""
    rows = ["participant_id\tsession_id\tscan\treason"]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
        for scan, reason in outcome.left_out.items():
            subject = f"sub-{outcome.subject}" if outcome.subject else "n/a"
            session = f"ses-{outcome.session}" if outcome.session else "n/a"
            rows.append("\t".join([subject, session, scan or "n/a", " ".join(reason.split())]))
    write_atomically(path, ("\n".join(rows) + "\n").encode("utf-8", "backslashreplace"))


# --- one session ----------------------------------------------------------------------------------


def prepare_one(
    root: Path, out: Path, labels: tuple[str | None, str | None], paths: list[Path], voxel_mm: float, mask
) -> Outcome:
    """Prepare one session unless it is there already; what is wrong with it comes back, it does not raise."""
    subject, session = labels
    left_out: dict[Path, str] = {}
    try:
        if subject is None:
            raise BadInput(
                f"{paths[0]}: no subject in its name: call it sub-…[_ses-…]_{parse_name(paths[0])[1]}.nii.gz"
            )
        folder = session_folder(out, subject, session)
        with alone_with(out, session_name(*labels)):
            return _prepare_alone(root, folder, labels, paths, voxel_mm, mask, left_out)
    except BadInput as error:
        reason = str(error)
    except Exception as error:
        reason = in_a_sentence(error, paths[0].parent)
    return Outcome(subject, session, "skipped", {path.name: why for path, why in left_out.items()} | {"": reason})


def _prepare_alone(root: Path, folder: Path, labels, paths, voxel_mm, mask, left_out: dict[Path, str]) -> Outcome:
    mask_file = mask if mask in (None, TEMPLATE) else _mask_of(Path(mask), *labels)
    made_from = _made_from(root, paths, voxel_mm, mask_file)
    record = read_record(folder, labels)
    if record and record["made_from"] == made_from and _hashes(folder) == record.get("written"):
        return Outcome(*labels, "kept", record["left_out"], tuple(record["doubts"]))
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: holds files that phyldm prepare did not write: choose another --out")
    scans = read_chosen(choose_headers(paths, left_out, one_a_suffix=True), left_out)  # a column each in training
    prepared = prepare_session(scans, voxel_mm=voxel_mm, mask=mask_file, left_out=left_out)
    kept = {path.name: reason for path, reason in left_out.items()}
    doubts = [f"{scan.path.name}: {doubt}" for scan in prepared.scans for doubt in scan.doubts]
    if _made_from(root, paths, voxel_mm, mask_file) != made_from:
        raise BadInput(f"{paths[0].parent}: its files changed while they were read: run again when they are complete")
    with whole_folder(folder) as part:
        write_prepared(prepared, part, labels, root, {"made_from": made_from, "left_out": kept, "doubts": doubts})
    return Outcome(*labels, "prepared", kept, tuple(doubts))


def _mask_of(folder: Path, subject: str, session: str | None) -> Path:
    below = session_folder(folder, subject, session).parent
    found = sorted(path for path in below.rglob("*_mask.nii*") if "label-" not in path.name)
    if len(found) != 1:
        said = ", ".join(path.name for path in found[:3]) or "none"
        raise BadInput(f"{below}: one brain mask (*_mask.nii.gz) is wanted, there is {said}: keep one")
    return found[0]


# --- on disk --------------------------------------------------------------------------------------


def _made_from(root: Path, paths: list[Path], voxel_mm: float, mask: Path | str | None) -> dict:
    """What decides the result: the method, its settings, every file and every sidecar by content."""
    files, fields = {}, []
    for path in [*paths, *([mask] if isinstance(mask, Path) else [])]:
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        try:
            files[name] = digest(path)
        except (BadInput, OSError) as error:  # told when the scan is read
            files[name] = str(error)
    for path in paths:
        try:
            fields.append(read_sidecar(path))
        except BadInput as error:
            fields.append(str(error))
    said = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return {
        "method": PREPARATION, "voxel_mm": voxel_mm, "mask": mask and str(mask), "files": files, "sidecars": said,
    }  # fmt: skip


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of a prepared session's files, without its record."""
    files = sorted(folder.glob("*")) if folder.is_dir() else ()
    return {path.name: sha256(path) for path in files if not path.name.endswith("_prepared.json") and path.is_file()}


def _record_path(folder: Path, labels: tuple[str | None, str | None]) -> Path:
    return folder / f"{session_name(*labels)}_prepared.json"


def read_record(folder: Path, labels: tuple[str | None, str | None]) -> dict | None:
    """What a prepared session was made from and what was left out; None where it is not complete."""
    try:
        record = json.loads(_record_path(folder, labels).read_text(encoding="utf-8"))
        return record if {"made_from", "left_out", "doubts"} <= set(record) else {"made_from": None}
    except (OSError, ValueError):
        return None


def write_prepared(prepared: Prepared, part: Path, labels: tuple[str | None, str | None], root: Path, record: dict):
    """Write one session into the folder ``part``, with ``record`` beside it; ``labels`` name the files."""
    reference = prepared.scans[0]
    stem = f"{session_name(*labels)}_space-{reference.suffix}"
    for scan in prepared.scans:
        nominal = scan.sidecar.get("EchoTime", scan.protocol.te)
        fields = {
            "SkullStripped": "already skull-stripped" in scan.notes,
            "Sources": [_uri(scan.path, root)],
            "SpatialReference": _uri(reference.path, root),
            "RigidTransform": prepared.transforms[scan.suffix].tolist(),  # RAS mm, source's world to reference's
            "IntensityScale": prepared.scales[scan.suffix],  # voxels times this are the source's
            "PreparationNotes": list(scan.notes),
            "Doubts": list(scan.doubts),
        }
        told = sidecar(scan.protocol, nominal if nominal != scan.protocol.te or nominal > 0.3 else None, **fields)
        path = part / f"{stem}_desc-prepared_{scan.suffix}.nii.gz"
        write_image(path, scan.image, scan.affine, told, like=reference.stored)
    fields = {
        "Type": "Brain" if prepared.brain_known else "ROI",
        "Description": f"{'brain' if prepared.brain_known else 'whole head'}, from: {prepared.mask_from}",
        "MaskFrom": prepared.mask_from,
        "Sources": [_uri(reference.path, root)],
        "SpatialReference": _uri(reference.path, root),
    }
    description = "brain" if prepared.brain_known else "head"
    write_image(
        part / f"{stem}_desc-{description}_mask.nii.gz",
        prepared.brain.astype(np.uint8),
        prepared.affine,
        fields,
        np.uint8,
        reference.stored,
    )
    write_atomically(_record_path(part, labels), to_json(record | {"written": _hashes(part)}))


def read_prepared(out: str | Path, subject: str, session: str | None = None) -> Prepared:
    """One session as :func:`prepare_dataset` wrote it.

    Raises
    ------
    BadInput
        It is not there, or not complete.
    """
    folder = session_folder(Path(out), subject, session)
    masks = sorted(folder.glob("*_space-*_desc-*_mask.nii.gz"))
    if not masks:
        raise BadInput(f"{folder}: holds no prepared session: run phyldm prepare first")
    scans = read_session(folder)
    image, affine = read_volume(masks[0])
    return Prepared(
        scans=scans,
        affine=affine,
        brain=image > 0.5,
        skull_stripped=any(scan.sidecar["SkullStripped"] for scan in scans),
        transforms={scan.suffix: np.array(scan.sidecar["RigidTransform"]) for scan in scans},
        scales={scan.suffix: scan.sidecar["IntensityScale"] for scan in scans},
        mask_from=read_sidecar(masks[0])["MaskFrom"],
    )


def _uri(path: Path, root: Path) -> str:
    """BIDS URI of a source: ``bids:raw:sub-…``."""
    return f"bids:raw:{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else path.name


def _describe(root: Path, out: Path):
    link = os.path.relpath(root.resolve(), out.resolve())
    write_dataset_description(
        out, "Scans aligned within each session", derivative=True, DatasetLinks={"raw": Path(link).as_posix()}
    )
    write_atomically(out / ".bidsignore", b"skipped.tsv\n**/*_prepared.json\n")


def _outcome_of_folder(folder: Path, reason: str) -> Outcome:
    labels = dict(part.split("-", 1) for part in folder.parts if part.startswith(("sub-", "ses-")))
    return Outcome(labels.get("sub"), labels.get("ses"), "skipped", {"": reason})
