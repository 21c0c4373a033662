"""Numbers beside the picture: signal, null point and contrast-to-noise of tissues, and what one voxel holds."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import combinations

import numpy as np

from ..physics import Protocol, TissueMaps, ernst_angle, null_ti
from .painting import SignalCurves


def table(
    curves: SignalCurves,
    shown: Mapping[str, tuple[Protocol, float]],
    noise_sd: float,
    voxel: tuple[int, int],
    values: TissueMaps,
) -> list[tuple[str, ...]]:
    """Rows of text, the first one a heading, a column each protocol.

    Parameters
    ----------
    shown
        Letter of each protocol → the protocol, and its signal in the voxel.
    noise_sd
        Of the image; the CNR is in its units.
    voxel, values
        Its index (y, x), and its PD, T1 (s) and T2 (s).
    """
    protocols = {letter: protocol for letter, (protocol, _) in shown.items()}
    several = len(protocols) > 1
    signals = [np.abs(curves.signals(protocol)[0]) for protocol in protocols.values()]
    with_special = {letter: protocol for letter, protocol in protocols.items() if _special(protocol)}
    rows = [
        (
            "",
            *(f"signal {letter}" if several else "signal" for letter in protocols),
            *(_special(p) + (f", {letter}" if several else "") for letter, p in with_special.items()),
        )
    ]
    for k, (name, (_, t1, _)) in enumerate(curves.tissues.items()):
        at = (_special_value(protocol, t1) for protocol in with_special.values())
        rows.append((name, *(f"{of_all[k]:.3f}" for of_all in signals), *at))
    for n, ((i, a), (j, b)) in enumerate(combinations(enumerate(curves.tissues), 2)):
        cnr = (f"{abs(of_all[i] - of_all[j]) / noise_sd:.1f}" for of_all in signals)
        rows.append((f"CNR {a}–{b}", *cnr, "" if n else f"noise {noise_sd:g}"))
    rows.append((f"voxel [{voxel[0]}, {voxel[1]}]", *(f"{signal:.3f}" for _, signal in shown.values()), ""))
    pd, t1, t2 = values
    told = f"PD {pd:.2f}, T1 {t1:.3f} s, T2 {1000 * t2:.0f} ms" if pd > 0 else "no tissue"
    return [*rows, ("", told)]


def to_html(rows: list[tuple[str, ...]]) -> str:
    """An HTML table, first row and column as heads; the last cell of a short row takes the rest of the width."""
    columns, lines = max(map(len, rows)), []
    for i, row in enumerate(rows):
        cells = []
        for k, text in enumerate(row):
            tag = "th" if i == 0 or k == 0 else "td"
            span = f' colspan="{columns - k + 1}"' if k == len(row) - 1 else ""
            cells.append(f"<{tag}{span}>{escape(text)}</{tag}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="numbers">{"".join(lines)}</table>'


def _special(protocol: Protocol) -> str:
    """What else a tissue has under this sequence, if anything."""
    return "null at TI" if protocol.sequence.inverts else "Ernst angle" if protocol.sequence.has_flip_angle else ""


def _special_value(protocol: Protocol, t1: float) -> str:
    if protocol.sequence.inverts:
        return f"{null_ti(t1, protocol.tr, protocol.sequence):.3f} s"
    return f"{np.degrees(ernst_angle(t1, protocol.tr)):.1f}°"
