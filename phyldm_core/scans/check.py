"""``phyldm check``: what would be fitted of a dataset, by which protocol, and what is doubtful, in one table.

Every decision is the one that ``fit`` makes, by the same functions; no voxel is read and no weights are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..machine.errors import BadInput, in_a_sentence
from ..physics import Protocol
from .doubts import untold
from .nifti import Header
from .sessions import CHOSEN, Session, check_protocols, choose_headers


class Row(NamedTuple):
    """One scan that would be used, or one thing that would not; ``remarks`` are of its ``file``, or the session."""

    session: str
    contrast: str
    file: str
    protocol: str
    remarks: tuple[str, ...]
    doubtful: bool


def check_all(sessions: list[Session], protocols: dict[str, Protocol], unreadable: dict[Path, str]) -> list[Row]:
    """The table's rows, by session.

    Parameters
    ----------
    sessions, unreadable
        From :func:`sessions.find_scans`: what there is, and folders that could not be read.
    protocols
        By suffix or file name, as for ``fit``.

    Raises
    ------
    BadInput
        A protocol is for no scan.
    """
    check_protocols(sessions, protocols)
    rows = [Row("–", "–", str(folder), "–", (reason,), True) for folder, reason in unreadable.items()]
    for session in sessions:
        left_out: dict[Path, str] = {}
        try:
            found = choose_headers(session.paths, left_out, protocols)
            rows += [_used(session, contrast, same[0]) for contrast, same in found.items()]
            if doubts := untold([same[0].protocol for same in found.values()]):
                rows.append(Row(session.name, "–", "–", "–", tuple(f"doubtful: {doubt}" for doubt in doubts), True))
        except BadInput as error:
            rows.append(Row(session.name, "–", "–", "–", (f"cannot be fitted: {error}",), True))
        except Exception as error:
            rows.append(Row(session.name, "–", "–", "–", (in_a_sentence(error, session.paths[0].parent),), True))
        rows += [Row(session.name, "–", path.name, "–", (f"left out: {why}",), True) for path, why in left_out.items()]
    return rows


def _used(session: Session, contrast: str, best: Header) -> Row:
    notes = [note for note in best.notes if note.startswith(CHOSEN)]
    remarks = (*(f"doubtful: {doubt}" for doubt in best.doubts), *notes)
    return Row(session.name, contrast, best.path.name, str(best.protocol), remarks, bool(best.doubts))


def as_table(rows: list[Row]) -> str:
    """The rows under each other, columns as wide as they need to be."""
    cells = [("session", "contrast", "file", "protocol", "what to know")]
    cells += [(r.session, r.contrast, r.file, r.protocol, "; ".join(r.remarks)) for r in rows]
    cells = [[" ".join(cell.splitlines()) for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in cells) for i in range(4)] + [0]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
