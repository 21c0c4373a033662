"""Which files make a session, and which of them are used: folders, names, ``.bidsignore``, and one scan a protocol.

A session is one person on one visit. Its labels are in the names of its files, else in the folders they lie in; where
the two contradict each other, or names speak of two people, nothing is guessed. ``fit``, ``prepare``, ``train`` and
``check`` all decide here.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from nibabel.affines import voxel_sizes

from ..machine.errors import BadInput
from ..physics import Protocol
from .bids import CONTRASTS, ignored_by, is_bids_level, parse_name, session_folder, session_name, stem
from .doubts import NotWeighted, contrast_agent
from .nifti import Header, Scan, read_header, read_voxels

Labels = tuple[str | None, str | None]
"""Of the subject and of the session, without ``sub-`` and ``ses-``; None where neither name nor folder says one."""


class Session(NamedTuple):
    """Scans that belong together, and the labels that what is made of them goes by (``session`` may be None)."""

    subject: str
    session: str | None
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        return session_name(self.subject, self.session)


def find_scans(inputs: list[Path], unreadable: dict[Path, str] | None = None) -> list[Session]:
    """The sessions that files and folders on a command line stand for.

    Files together are one session. A folder holds one or more, as :func:`find_sessions` finds them.

    Parameters
    ----------
    unreadable
        As :func:`find_sessions` takes it.

    Raises
    ------
    BadInput
        Nothing given, a folder without a scan, files of two people or visits, or two sessions that would go by one
        name.
    """
    if not inputs:
        raise BadInput("no scan given: name NIfTI files with sidecars, or a BIDS folder")
    sessions = []
    for folder in (path for path in inputs if path.is_dir()):
        for (subject, session), paths in find_sessions(folder, unreadable).items():
            name = subject or folder.absolute().name
            sessions.append(Session(as_label(name), session and as_label(session), tuple(paths)))
    if files := tuple(dict.fromkeys(path for path in inputs if not path.is_dir())):
        check_one_person(files)
        subject, session = labels_of(files[0])
        suffix = parse_name(files[0])[1]
        name = subject or stem(files[0]).removesuffix(suffix).rstrip("_") or suffix
        sessions.append(Session(as_label(name), session and as_label(session), files))
    by_name: dict[str, Session] = {}
    for session in sessions:
        other = by_name.setdefault(session.name, session)
        if other is not session:
            raise BadInput(
                f"{session.paths[0]} and {other.paths[0]}: both would be called {session.name}: "
                "give them one by one, into an --out each"
            )
    return sessions


def as_label(text: str) -> str:
    """A BIDS label, letters and digits only; other scripts' letters become a few that differ with them.

    Without them every name in Chinese would be one, and files of the second person would replace those of the first.
    """
    text = unicodedata.normalize("NFC", text)  # a Mac spells é with two characters
    kept = "".join(re.findall(r"[0-9a-zA-Z]", text))
    if any(not c.isascii() and (c.isalnum() or "\udc80" <= c <= "\udcff") for c in text):
        kept += hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return kept or "unnamed"


# --- folders --------------------------------------------------------------------------------------


def find_sessions(folder: str | Path, unreadable: dict[Path, str] | None = None) -> dict[Labels, list[Path]]:
    """Scans under a BIDS dataset, a subject, a session, or a plain folder of ``*_T1w.nii.gz`` files.

    What the dataset's ``.bidsignore`` names is passed by, as are ``derivatives`` and folders within themselves.

    Parameters
    ----------
    unreadable
        Give a dictionary, and folders that cannot be read are noted there, with the reason, and passed by.

    Returns
    -------
        ``{(subject, session): [paths]}``, labels as :func:`labels_of` tells them.

    Raises
    ------
    BadInput
        A folder cannot be read, or holds no scan.
    """
    folder = Path(folder)
    root = folder.absolute()
    while is_bids_level(root.name):
        root = root.parent
    ignored = ignored_by(root)

    def refuse(error: OSError):
        reason = f"{error.filename}: cannot read this folder ({error.strerror})"
        if unreadable is None or Path(error.filename) == folder:
            raise BadInput(reason) from None
        unreadable[Path(error.filename)] = reason

    sessions: dict[Labels, list[Path]] = {}
    for path in _images_below(folder, refuse):
        if parse_name(path)[1] in CONTRASTS and not ignored(path.absolute().relative_to(root).as_posix()):
            sessions.setdefault(labels_of(path), []).append(path)
    if not sessions:
        wanted = ", ".join(f"_{suffix}.nii.gz" for suffix in CONTRASTS)
        raise BadInput(f"{folder}: no scan here or under sub-*/[ses-*/]anat; their names must end in one of {wanted}")
    return dict(sorted(sessions.items(), key=lambda item: tuple(label or "" for label in item[0])))


def _images_below(folder: Path, refuse: Callable[[OSError], None], above: frozenset[str] = frozenset()):
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        refuse(error)
        return
    above = above | {os.path.realpath(folder)}
    folders = []
    for name in names:
        path = Path(folder, name)
        if os.path.isdir(path):
            folders += [path] if is_bids_level(name) and os.path.realpath(path) not in above else []
        elif name.lower().endswith((".nii", ".nii.gz")):
            yield path
    for path in folders:
        yield from _images_below(path, refuse, above)


# --- whose ----------------------------------------------------------------------------------------


def labels_of(path: Path) -> Labels:
    """Subject and session of a file: as its name says, else as the ``sub-`` and ``ses-`` folders it lies in."""
    named, around = parse_name(path)[0], _folder_labels(path)
    return named.get("sub") or around.get("sub"), named.get("ses") or around.get("ses")


def _folder_labels(path: Path) -> dict[str, str]:
    labels, folder = {}, path.absolute().parent
    while is_bids_level(folder.name):
        if "-" in folder.name:
            key, label = folder.name.split("-", 1)
            labels.setdefault(key, label)
        folder = folder.parent
    return labels


def check_place(path: Path):
    """Refuse a file whose name and folders speak of different people or sessions."""
    named = parse_name(path)[0]
    for key, label in _folder_labels(path).items():
        if named.get(key, label) != label:
            raise BadInput(f"{path}: is named {key}-{named[key]} but lies in {key}-{label}: move or rename it")


def check_one_person(paths: tuple[Path, ...] | list[Path]):
    """Refuse files whose names say that they are of two people or two visits.

    Names without ``sub-`` must begin alike, up to the first ``_`` (``anna_mprage_T1w``, ``anna_tse_T2w``).
    """
    labels = [labels_of(path) for path in paths]
    for i, what in ((0, "people"), (1, "sessions")):
        said = [(label[i], path) for label, path in zip(labels, paths, strict=True) if label[i]]
        for (one, path), (other, its) in pairwise(said):
            if one != other:
                raise BadInput(
                    f"{path} and {its}: are of two {what} ({one}, {other}): give the files of one session at a time"
                )
    nameless = [path for path, label in zip(paths, labels, strict=True) if not label[0]]
    weighted = [path for path in nameless if parse_name(path)[1] in CONTRASTS and "_" in stem(path)]
    for path, its in pairwise(weighted):
        if (one := stem(path).split("_")[0]) != (other := stem(its).split("_")[0]):
            raise BadInput(
                f"{path} and {its}: {one} and {other} may be two people: give one person's files, "
                "or let their names begin alike (sub-LABEL_)"
            )


# --- which are used -------------------------------------------------------------------------------

RULE = "no contrast agent, magnitude, thinner slices, no rec-, lower echo- and run-, first by name"
"""In this order one of several scans of a suffix and a protocol is chosen."""

SAME_SETTING = 0.02  # times and angles that differ by less were set alike: scanners round, and few shift a contrast

CHOSEN = "taken instead of"
IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")  # sidecar fields that tell people apart


def choose_headers(
    paths: list[Path] | tuple[Path, ...],
    left_out: dict[Path, str],
    protocols: dict[str, Protocol] | None = None,
    one_a_suffix: bool = False,
) -> dict[str, list[Header]]:
    """The scans of a session by contrast, in the order T1w, T2w, PDw, FLAIR; the best by :data:`RULE` first.

    Scans of one suffix and different protocols are different contrasts, called "T1w", "T1w 2", "T1w 3"; what was
    scanned after a contrast agent is none beside a scan before it.

    Parameters
    ----------
    left_out
        Where the reason goes, by file, for what cannot be used.
    protocols
        By suffix or file name: given by hand instead of the sidecar's.
    one_a_suffix
        Whatever their protocols, scans of one suffix are one contrast.

    Raises
    ------
    BadInput
        No file can be used, or they are of two people.
    """
    check_one_person(paths)
    found: dict[str, list[Header]] = {}
    other: dict[Path, str] = {}
    for path in paths:
        try:
            check_place(path)
            given = protocols or {}
            header = read_header(path, given.get(path.name, given.get(parse_name(path)[1])))
            found.setdefault(header.suffix, []).append(header)
        except NotWeighted as error:
            other[path] = str(error)
        except BadInput as error:
            left_out[path] = str(error)
    for path, reason in other.items():
        if parse_name(path)[1] in found:  # a phase image beside its magnitude is nothing to complain of
            same = found[parse_name(path)[1]]
            same[:] = [replace(h, notes=(*h.notes, f"{path.name} {reason.split(': ', 1)[1]}")) for h in same]
        else:
            left_out[path] = reason
    if not found:
        if len(left_out) == 1:
            raise BadInput(next(iter(left_out.values())))
        raise BadInput(f"{paths[0].parent}: none of its scans can be used, each for a reason of its own")
    headers = [header for same in found.values() for header in same]
    for field in IDENTITY:
        said = {str(header.sidecar[field]): header.path for header in headers if header.sidecar.get(field)}
        if len(said) > 1:
            names = " and ".join(path.name for path in list(said.values())[:2])
            raise BadInput(f"{paths[0].parent}: {names} are of two people ({field} differs): give one person's files")
    chosen = {}
    for suffix in (suffix for suffix in CONTRASTS if suffix in found):
        ranked = sorted(found[suffix], key=_rank)
        for i, same in enumerate([ranked] if one_a_suffix else _by_protocol(ranked), 1):
            if others := ", ".join(header.path.name for header in same[1:]):
                same[0] = replace(same[0], notes=(*same[0].notes, f"{CHOSEN} {others}: {RULE}"))
            chosen[suffix if i == 1 else f"{suffix} {i}"] = same
    return chosen


def _by_protocol(ranked: list[Header]) -> list[list[Header]]:
    contrasts: list[list[Header]] = []
    for header in ranked:
        for same in contrasts:
            alike = same_protocol(header.protocol, same[0].protocol)
            if alike or (_agent(header) and not _agent(same[0])):
                same.append(header)
                break
        else:
            contrasts.append([header])
    return contrasts


def same_protocol(one: Protocol, other: Protocol) -> bool:
    """Whether two scans were acquired alike; of what was acquired, magnitude and real part show the same."""
    settings = zip(*((p.te, p.tr, p.ti or 0, p.flip_angle_deg or 0) for p in (one, other)), strict=True)
    return one.sequence is other.sequence and all(math.isclose(*pair, rel_tol=SAME_SETTING) for pair in settings)


def check_protocols(sessions: list[Session], protocols: dict[str, Protocol]):
    """Refuse a protocol given by hand that is for no scan."""
    there = {key for session in sessions for path in session.paths for key in (path.name, parse_name(path)[1])}
    if unused := sorted(set(protocols) - there):
        raise BadInput(f"--protocol for {unused[0]}: no scan has this name or suffix, only {', '.join(sorted(there))}")


def _rank(header: Header) -> tuple:
    entities = parse_name(header.path)[0]
    order = [int(label) if (label := entities.get(key, "0")).isdecimal() else 0 for key in ("echo", "run")]
    mm = round(voxel_sizes(header.stored.affine).max(), 1)
    return _agent(header), header.protocol.signed, mm, "rec" in entities, *order, header.path.name


def _agent(header: Header) -> bool:
    return contrast_agent(header.path, header.sidecar) is not None


def read_chosen(found: dict[str, list[Header]], left_out: dict[Path, str]) -> list[Scan]:
    """One scan a contrast of :func:`choose_headers`: the first whose voxels can be read.

    Raises
    ------
    BadInput
        There is none.
    """
    scans = []
    for headers in found.values():
        while headers:
            try:
                scans.append(read_voxels(headers[0]))
                break
            except BadInput as error:
                left_out[headers[0].path] = str(error)
                headers = headers[1:]
    if not scans:
        if len(left_out) == 1:
            raise BadInput(next(iter(left_out.values())))
        first = next(iter(left_out))
        raise BadInput(f"{first.parent}: none of its scans can be used, each for a reason of its own")
    return scans


def read_session(folder: str | Path, subject: str | None = None, session: str | None = None) -> list[Scan]:
    """The scans of one session that ``fit`` uses, one a contrast of :func:`choose_headers` and in that order.

    Parameters
    ----------
    folder
        A BIDS dataset, a subject's or session's folder in one, or any folder with ``…_T1w.nii.gz`` files.
    subject, session
        Labels, with or without ``sub-``/``ses-``; needed only where ``folder`` holds several.

    Raises
    ------
    BadInput
        Nothing fits, more than one session fits, or a scan cannot be used.
    """
    subject = subject and subject.removeprefix("sub-")
    session = session and session.removeprefix("ses-")
    found = find_sessions(folder)
    fitting = [(sub, ses) for sub, ses in found if subject in (None, sub) and session in (None, ses)]
    if len(fitting) != 1:
        names = [_said(*labels) for labels in fitting or found]
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        if fitting:
            raise BadInput(f"{folder}: holds {len(fitting)} sessions ({listed}): say which subject and session")
        raise BadInput(f"{folder}: no scan of {_said(subject, session)} here, only of {listed}")
    left_out: dict[Path, str] = {}
    scans = read_chosen(choose_headers(found[fitting[0]], left_out), left_out)
    if left_out:
        raise BadInput(next(iter(left_out.values())))
    return scans


def _said(subject: str | None, session: str | None) -> str:
    labels = (f"sub-{subject}" if subject else "", f"ses-{session}" if session else "")
    return " ".join(filter(None, labels)) or "somebody unnamed"


# --- where to write -------------------------------------------------------------------------------


def check_out(out: Path, session: Session | tuple, made: str):
    """Refuse to write a session into the folder that its own scans lie in.

    Parameters
    ----------
    session
        A :class:`Session`, or (subject, session, paths).
    made
        What would lie there, for the message.
    """
    subject, visit, paths = session
    folder = session_folder(out, subject, visit).resolve()
    levels = {above.resolve() for path in paths for above in path.absolute().parents if is_bids_level(above.name)}
    if folder in levels | {path.absolute().parent.resolve() for path in paths} or levels & {out.resolve()}:
        raise BadInput(f"{out}: {made} would lie among the scans they are made from: choose another folder")
