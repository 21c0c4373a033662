"""The protocols of a real archive: what OASIS-3 was scanned with, how often, and which echo time to believe.

The table is ``data/oasis3_protocols.csv`` (origin in ``data/README.md``).
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..machine.carried import carried
from ..machine.errors import BadInput
from ..physics import SEQUENCE_OF, Protocol, effective_protocol

OASIS3_TABLE = carried("data/oasis3_protocols.csv")
OASIS3_LABEL = "OAS3"
"""Subjects of OASIS-3 are OAS30001 …; only for them is a missing TI taken from the archive's other scans."""

SESSION_CONTRASTS = {
    ("T1w", "T2w", "FLAIR"): 484,
    ("T1w", "T2w"): 1120,
    ("T1w", "FLAIR"): 836,
    ("T1w",): 187,
}
"""Number of OASIS-3 sessions by the contrasts they hold."""


class ProtocolRow(NamedTuple):
    """One protocol of the archive: as the scanner named it, as the physics needs it, and its number of scans."""

    nominal: Protocol
    effective: Protocol
    count: int


class ExcludedRow(NamedTuple):
    """A row of the table that is not used, and why."""

    contrast: str
    te: float
    tr: float
    ti: float | None
    count: int
    reason: str


def family_ti(contrast: str, tr: float) -> float | None:
    """The inversion time (s) most OASIS-3 scans of this contrast and TR (to 0.1 s) used; None where no scan tells."""
    counts = Counter()
    for name, _, row_tr, ti, count in _rows():
        if name == contrast and ti is not None and round(row_tr, 1) == round(tr, 1):
            counts[ti] += count
    return counts.most_common(1)[0][0] if counts else None


def complete(path: Path, metadata: dict) -> tuple[dict, tuple[str, ...]]:
    """A sidecar's fields and a note: of OASIS-3, with the inversion time of its family where it has none itself."""
    *entities, suffix = path.name.split(".", 1)[0].split("_")
    tr = metadata.get("RepetitionTimePreparation", metadata.get("RepetitionTime"))
    inverts = suffix in SEQUENCE_OF and SEQUENCE_OF[suffix].inverts
    ours = any(entity.startswith(f"sub-{OASIS3_LABEL}") for entity in entities)
    if not (ours and metadata and inverts and not metadata.get("InversionTime") and isinstance(tr, (int, float))):
        return metadata, ()
    ti = family_ti(suffix, tr)
    if ti is None:
        return metadata, ()
    note = f"InversionTime {ti:g} s is not in its sidecar: OASIS-3's other {suffix} of this TR have it"
    return metadata | {"InversionTime": ti}, (note,)


@cache
def oasis3_protocols() -> dict[str, list[ProtocolRow]]:
    """Protocols per contrast ("T1w", "T2w", "FLAIR"), most frequent first.

    Left out is what carries the wrong label, a T2w with TE < 0.03 s or TR < 1 s, and what lacks an
    inversion time that no other scan of its family (same contrast, same TR to 0.1 s) tells:
    :func:`oasis3_excluded` lists both. Rows that become equal once TI is filled in are added up.

    Raises
    ------
    BadInput
        The table that comes with the package cannot be read.
    """
    counts = {contrast: Counter() for contrast in ("T1w", "T2w", "FLAIR")}
    for row in _rows():
        contrast, te, tr, ti, count = row
        if _why_excluded(*row) is None:
            sequence = SEQUENCE_OF[contrast]
            ti = (ti or family_ti(contrast, tr)) if sequence.inverts else None
            counts[contrast][Protocol(sequence, te, tr, ti)] += count
    return {
        contrast: [ProtocolRow(protocol, effective_protocol(protocol), n) for protocol, n in counter.most_common()]
        for contrast, counter in counts.items()
    }


def oasis3_excluded() -> list[ExcludedRow]:
    """The rows :func:`oasis3_protocols` leaves out, each with the reason."""
    return [ExcludedRow(*row, reason) for row in _rows() if (reason := _why_excluded(*row))]


def mislabelled(contrast: str, te: float, tr: float) -> str | None:
    """Why a scan cannot be what its name says; None where it can (times in seconds)."""
    if contrast == "T2w" and (te < 0.03 or tr < 1):
        return "mislabelled: no T2w has TE < 0.03 s or TR < 1 s"
    return None


def _why_excluded(contrast: str, te: float, tr: float, ti: float | None, count: int) -> str | None:
    if reason := mislabelled(contrast, te, tr):
        return reason
    if SEQUENCE_OF[contrast].inverts and ti is None and family_ti(contrast, tr) is None:
        return f"no TI, and no other {contrast} with TR {tr:g} s tells it"
    return None


@cache
def _rows() -> list[tuple[str, float, float, float | None, int]]:
    """``(contrast, te, tr, ti, count)`` as the table has them."""
    try:
        with OASIS3_TABLE.open(newline="") as table:
            next(table)
            return [
                (contrast, float(te), float(tr), float(ti) if ti else None, int(count))
                for contrast, te, tr, ti, count in csv.reader(table)
            ]
    except OSError as error:
        raise BadInput(f"{OASIS3_TABLE}: cannot be read ({error.strerror}): install phyldm_core again") from None
