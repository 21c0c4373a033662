"""Whole figures, one function each: numpy arrays or tensors in, a matplotlib figure out.

Here are the figures made of slices (F1, F3, F4). Distributions and curves (F5) are in
:mod:`.curves`, the architecture (F2) in :mod:`.architecture`, the house look in :mod:`.style`. Captions are text and go
to :func:`style.save_figure`; an image holds only what must be seen beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .. import physics
from ..slices import MAPS
from ..tissue import AIR_PD, leaves_signal
from .style import (
    FIGURE_WIDTH,
    as_array,
    colour_bar,
    percentile_window,
    show_image,
    show_map,
    symbol,
    write_on,
)

SCALE_BAR_MM = 50
T1W_WHITE = 0.27  # of water at rest; white matter in the reference T1w


@dataclass(frozen=True)
class Panel:
    """One slice in a grid.

    Parameters
    ----------
    values
        ``(y, x)``, or None for a scan that does not exist.
    quantity
        Key of :data:`style.QUANTITIES`; None is a weighted image in ``window`` (default: its percentiles).
    title, span
        Text above, centred over this panel and the next ``span − 1``; "T1" and "T2" as symbols.
    side
        Text at the left edge, read upwards.
    note, faint
        Text at the bottom; text across the middle ("no signal left").
    inside
        ``(y, x)``: where values mean something.
    """

    values: ArrayLike | None
    quantity: str | None = None
    title: str = ""
    span: int = 1
    side: str = ""
    note: str = ""
    faint: str = ""
    window: tuple[float, float] | None = None
    inside: ArrayLike | None = None


def map_grid(
    rows: Sequence[Sequence[Panel | None]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    voxel_mm: float | tuple[float, float] = 2.0,
    width: float = FIGURE_WIDTH,
) -> Figure:
    """A grid of slices with as few colour bars as it takes: one under each run of panels of one quantity.

    Parameters
    ----------
    rows
        Panels row by row, all of one shape; None leaves a place empty.
    groups
        (heading, number of columns) from left to right; groups stand apart and carry letters a, b, ….
    voxel_mm
        One number or (y, x).
    width
        Of the figure, in.

    Raises
    ------
    ValueError
        Where no panel holds an image, or ``groups`` does not add up to the columns.
    """
    n_columns = max((len(row) for row in rows), default=0)
    shapes = [as_array(panel.values).shape for row in rows for panel in row if panel and panel.values is not None]
    if not shapes:
        raise ValueError("a grid needs at least one image: every panel is empty")
    groups = list(groups) or [("", n_columns)]
    if sum(n for _, n in groups) != n_columns:
        raise ValueError(f"groups hold {sum(n for _, n in groups)} columns, the rows {n_columns}: make them agree")
    (ny, nx), (voxel_y, voxel_x) = shapes[0][-2:], np.broadcast_to(voxel_mm, 2)
    group_of = np.repeat(np.arange(len(groups)), [n for _, n in groups])

    # All positions in inches, so that panels touch where they belong together whatever the page.
    any_side = any(panel and panel.side for row in rows for panel in row)
    gap, between, left = 0.04, 0.26 if any_side else 0.14, 0.2 if any_side else 0.03
    w = (width - left - 0.03 - gap * (n_columns - 1) - (between - gap) * (len(groups) - 1)) / n_columns
    h = w * ny * voxel_y / (nx * voxel_x)
    x = left + np.arange(n_columns) * (w + gap) + group_of * (between - gap)
    heading = 0.2 if any(text for text, _ in groups) else 0.0
    titles = [0.19 if any(panel and panel.title for panel in row) else 0.0 for row in rows]
    runs = [_bar_runs(rows, r, group_of) for r in range(len(rows))]
    bars = [0.42 if run else 0.0 for run in runs]
    height = heading + sum(titles) + sum(bars) + h * len(rows) + gap * (len(rows) - 1) + 0.03

    fig = plt.figure(figsize=(width, height))

    def place(left_in, top_in, width_in, height_in):
        return fig.add_axes((left_in / width, 1 - (top_in + height_in) / height, width_in / width, height_in / height))

    def write(x_in, y_in, text, **style):
        fig.text(x_in / width, 1 - y_in / height, text, **style)

    for g, (text, _) in enumerate(groups):
        if text:
            x0 = x[np.flatnonzero(group_of == g)[0]]
            lettered = len(groups) > 1
            if lettered:
                write(x0, 0.03, "abcdefgh"[g], va="top", size=10, weight="bold")
            write(x0 + 0.16 * lettered, 0.045, text, va="top")
    top, first = heading, True
    for r, row in enumerate(rows):
        top += titles[r]
        for c, panel in enumerate(row):
            if panel is None:
                continue
            ax = place(x[c], top, w, h)
            _fill(ax, panel, voxel_mm, "RLA" if c == np.flatnonzero(group_of == group_of[c])[0] else "", first)
            first = False
            if panel.title:
                middle = (x[c] + x[min(c + panel.span, n_columns) - 1] + w) / 2
                write(middle, top - 0.04, symbol(panel.title), ha="center", va="bottom")
            if panel.side:
                write(x[c] - 0.05, top + h / 2, panel.side, ha="right", va="center", rotation=90)
        top += h
        for quantity, start, stop in runs[r]:
            whole = x[stop] + w - x[start]
            length = min(whole, 1.8) - 0.12
            colour_bar(place(x[start] + (whole - length) / 2, top + 0.05, length, 0.07), quantity)
        top += bars[r] + gap
    return fig


def _bar_runs(rows, r: int, group_of) -> list[tuple[str, int, int]]:
    """(quantity, first, last column) of colour bars due under row ``r``: none where the next row goes on with it."""
    runs: list[tuple[str, int, int]] = []
    for c, panel in enumerate(rows[r]):
        below = rows[r + 1][c] if r + 1 < len(rows) and c < len(rows[r + 1]) else None
        if panel is None or panel.quantity is None or (below and below.quantity == panel.quantity):
            continue
        if runs and runs[-1][0] == panel.quantity and runs[-1][2] == c - 1 and group_of[c] == group_of[c - 1]:
            runs[-1] = (panel.quantity, runs[-1][1], c)
        else:
            runs.append((panel.quantity, c, c))
    return runs


def _fill(ax, panel: Panel, voxel_mm, marks: str, scale_bar: bool) -> None:
    if panel.values is None:
        ax.set(xticks=[], yticks=[], facecolor="0.93")
        ax.spines[:].set_visible(False)
        ax.text(0.5, 0.5, panel.note or "not acquired", transform=ax.transAxes, ha="center", va="center", color="0.4")
        return
    bar_mm = SCALE_BAR_MM if scale_bar else None
    look = {"inside": panel.inside, "voxel_mm": voxel_mm, "marks": marks, "scale_bar_mm": bar_mm}
    if panel.quantity is None:
        show_image(ax, panel.values, panel.window, **look)
    else:
        show_map(ax, panel.values, panel.quantity, **look)
    if panel.note:
        write_on(ax, 0.97, 0.02, panel.note, ha="right", va="bottom")
    if panel.faint:
        write_on(ax, 0.5, 0.5, panel.faint, ha="center", va="center", alpha=0.75, size=7)


def _map_panels(maps: Sequence[ArrayLike], head: ArrayLike | None = None, *, titles: bool = False, side: str = ""):
    """Three panels PD, T1, T2; relaxation times only where there is tissue to have them."""
    pd, t1, t2 = (as_array(values) for values in maps)
    head = pd > AIR_PD if head is None else as_array(head).astype(bool)
    return [
        Panel(values, name, title=name if titles else "", side=side if name == "PD" else "", inside=where)
        for name, values, where in (("PD", pd, None), ("T1", t1, head), ("T2", t2, head))
    ]


def mosaic(
    values: Sequence[ArrayLike],
    quantity: str | None,
    *,
    labels: Sequence[str] = (),
    columns: int = 8,
    voxel_mm: float | tuple[float, float] = 2.0,
) -> Figure:
    """Many slices or subjects of one quantity, ``(n, y, x)``; None is weighted images, each in its own window."""
    panels: list[Panel | None] = [
        Panel(v, quantity, note=labels[i] if len(labels) else "") for i, v in enumerate(values)
    ]
    panels += [None] * (-len(panels) % columns)
    return map_grid([panels[i : i + columns] for i in range(0, len(panels), columns)], voxel_mm=voxel_mm)


def inference(
    scans: Mapping[str, ArrayLike | None],
    maps: Sequence[ArrayLike],
    *,
    truth: Sequence[ArrayLike] | None = None,
    predicted: Mapping[str, ArrayLike] | None = None,
    head: ArrayLike | None = None,
    brain: ArrayLike | None = None,
    voxel_mm: float | tuple[float, float] = 2.0,
) -> Figure:
    """F1: the scans of one subject and the PD, T1, T2 inferred from them; below, what can be compared.

    Parameters
    ----------
    scans
        Name → ``(y, x)``, None where the scan does not exist.
    maps, truth
        PD, T1, T2, each ``(y, x)``. With the truth come the true maps and the signed error.
    predicted
        Name → the scan predicted from the maps, in the scale of the scan; brings the residual.
    head
        ``(y, x)`` where there is tissue; default: true (else inferred) PD above 5 % of water.
    brain
        ``(y, x)`` where scans are windowed, so that no bright scalp darkens the brain; default: everywhere.
    """
    names = list(scans)
    windows = {n: None if image is None else percentile_window(image, brain) for n, image in scans.items()}
    if head is None:
        head = as_array(maps[0] if truth is None else truth[0]) > AIR_PD
    observed = [Panel(scans[n], title=n, side="observed" if n == names[0] else "", window=windows[n]) for n in names]
    rows: list[list[Panel | None]] = [observed + _map_panels(maps, head, titles=True, side="inferred")]
    if predicted is not None or truth is not None:
        below: list[list[Panel | None]] = [[None] * len(names), [None] * len(names)]
        if predicted is not None:
            pairs = [_prediction(scans[n], predicted[n], head, windows[n], n == names[0]) for n in names]
            below = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
        if truth is not None:
            below[0] += _map_panels(truth, head, side="true")
            below[1] += [_error(q, m, t, head) for q, m, t in zip(MAPS, maps, truth, strict=True)]
        else:
            below = [row + [None] * 3 for row in below]
        rows += below
    return map_grid(rows, groups=[("Scans", len(names)), ("Tissue", 3)], voxel_mm=voxel_mm)


def _prediction(scan, predicted, head, window, first: bool) -> tuple[Panel, Panel]:
    side = ("predicted", "residual") if first else ("", "")
    if scan is None:
        return Panel(predicted, side=side[0]), Panel(None, side=side[1], note="no scan")
    residual = 100 * np.abs(as_array(scan) - as_array(predicted)) / window[1]
    return Panel(predicted, side=side[0], window=window), Panel(residual, "residual", side=side[1], inside=head)


def _error(quantity: str, estimate, truth, head) -> Panel:
    truth = as_array(truth).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = 100 * (as_array(estimate) - truth) / truth
    return Panel(error, "error", side="error" if quantity == "PD" else "", inside=head)


def compared_maps(
    estimates: Mapping[str, Sequence[ArrayLike]],
    truth: Sequence[ArrayLike],
    inside: ArrayLike,
    *,
    voxel_mm: float | tuple[float, float] = 2.0,
) -> Figure:
    """T1 and T2 by several methods (name → PD, T1, T2, each ``(y, x)``), the signed error of each, and the truth."""
    rows = []
    for q, quantity in enumerate(MAPS):
        if quantity != "PD":
            row = []
            for name, maps in estimates.items():
                row.append(Panel(maps[q], quantity, title="" if rows else name, inside=inside))
                row.append(
                    replace(_error(quantity, maps[q], truth[q], inside), title="" if rows else "its error", side="")
                )
            rows.append([*row, Panel(truth[q], quantity, title="" if rows else "truth", inside=inside)])
    return map_grid(rows, voxel_mm=voxel_mm)


def samples(
    maps: Sequence[Sequence[ArrayLike]],
    scans: Mapping[str, Sequence[ArrayLike]],
    *,
    brains: Sequence[ArrayLike | None] = (),
    voxel_mm: float | tuple[float, float] = 2.0,
) -> Figure:
    """F3: a row per sample, its PD, T1, T2 (``maps[i]``) and the scans rendered from them (``scans[name][i]``).

    Scans are windowed inside ``brains[i]`` where that is given.
    """
    rows = []
    for i, person in enumerate(maps):
        inside = brains[i] if len(brains) else None
        rendered = [
            Panel(images[i], title=name if i == 0 else "", window=percentile_window(images[i], inside))
            for name, images in scans.items()
        ]
        rows.append(_map_panels(person, titles=i == 0) + rendered)
    return map_grid(rows, groups=[("Generated tissue", 3), ("Rendered scans", len(scans))], voxel_mm=voxel_mm)


def unseen(
    protocols: Sequence[physics.Protocol],
    images: Sequence[ArrayLike],
    truth: Sequence[ArrayLike] | None = None,
    *,
    notes: Sequence[str] = (),
    brain: ArrayLike | None = None,
    voxel_mm: float | tuple[float, float] = 2.0,
) -> Figure:
    """F4: contrasts nobody acquired, three settings a row; beside each the truth, where known, in one window.

    A setting under which no tissue keeps its signal (:func:`tissue.leaves_signal`) says so and
    stays black, where its own percentiles would blow up what is left.

    Parameters
    ----------
    protocols, images, truth
        One protocol and one (or two) ``(y, x)`` per panel. † marks a setting that no scanner can run (TI ≥ TR).
    notes
        Written in the images' corners, for example the PSNR.
    brain
        ``(y, x)`` where images are windowed; default: everywhere.
    """
    panels: list[Panel | None] = []
    columns = 3
    for i, protocol in enumerate(protocols):
        note = notes[i] if len(notes) else ""
        window, faint = percentile_window(images[i] if truth is None else truth[i], brain), ""
        if not leaves_signal(protocol):
            window, faint = (0.0, T1W_WHITE), "no signal left"
        side = protocol.sequence.value if i % columns == 0 else ""
        look = {"window": window, "faint": faint}
        title = _settings(protocol)
        if truth is None:
            panels.append(Panel(images[i], title=title, side=side, note=note, **look))
        else:
            panels.append(Panel(images[i], title=title, span=2, side=side, note=f"inferred\n{note}".strip(), **look))
            panels.append(Panel(truth[i], note="true", **look))
    step = columns * (1 if truth is None else 2)
    panels += [None] * (-len(panels) % step)
    rows = [panels[i : i + step] for i in range(0, len(panels), step)]
    if truth is None:
        return map_grid(rows, voxel_mm=voxel_mm, width=min(FIGURE_WIDTH, 0.3 + 1.6 * columns))
    return map_grid(rows, groups=[("", 2)] * columns, voxel_mm=voxel_mm)


def _settings(protocol: physics.Protocol) -> str:
    times = [f"TE {1000 * protocol.te:g} ms", f"TR {protocol.tr:g} s"]
    times += [f"TI {protocol.ti:g} s"] if protocol.ti is not None else []
    impossible = protocol.ti is not None and protocol.ti >= protocol.tr
    return ", ".join(times) + (" †" if impossible else "")
