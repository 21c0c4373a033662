"""What an evaluation shows: tables of :mod:`phyldm_core.evaluation.examination` in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas
from matplotlib.figure import Figure

from ..figures.style import FIGURE_WIDTH, TISSUE_COLOURS, symbol
from .brain_sets import FLOOR
from .examination import SCALES

NEEDS = ("training", "segmentation", "tissue values", "priors", "3 scans")
"""What a method may need: scans to train on, a brain mask or more, mean values, lines and spreads, every contrast."""

MOST_ERROR = 10.0  # per cent; what is off by more is an arrow at the edge


def accuracy_and_needs(table: pandas.DataFrame, needs: Mapping[str, Sequence[str]]) -> Figure:
    """Median absolute error of every method from all three scans, beside what each needs.

    Filled on a common scale, open with any gain. An error beyond the axis is an arrow with its number.

    Parameters
    ----------
    table
        With columns method, scale, metric, quantity, tissue, value, low, high (:func:`examination.split_inputs`).
    needs
        Method → which of :data:`NEEDS`; its order is that of the rows.
    """
    rows = table[table.metric == "median_absolute_error"]
    methods = list(needs)
    panels = [("T1", "WM"), ("T1", "GM"), ("T2", "WM"), ("T2", "GM"), ("PD", "WM"), ("PD", "GM")]
    fig, axes = plt.subplots(1, 7, figsize=(FIGURE_WIDTH, 0.9 + 0.24 * len(methods)), sharey=True, layout="constrained",
                             width_ratios=[1] * 6 + [1.45])  # fmt: skip
    for ax, (quantity, tissue) in zip(axes, panels, strict=False):
        of_panel = rows[(rows.quantity == quantity) & (rows.tissue == tissue)]
        for i, method in enumerate(methods):
            for scale, filled, shift in zip(SCALES, (True, False), (-0.14, 0.14), strict=True):
                for row in of_panel[(of_panel.method == method) & (of_panel.scale == scale)].itertuples():
                    colour = TISSUE_COLOURS[tissue]
                    if 100 * row.value > MOST_ERROR:
                        ax.plot(0.97 * MOST_ERROR, i + shift, ">", ms=4, mec=colour, mfc=colour if filled else "white")
                        ax.text(
                            0.9 * MOST_ERROR, i + shift, f"{100 * row.value:.0f}", size=5.5, ha="right", va="center"
                        )
                        continue
                    ends = np.nan_to_num([row.low, row.high], nan=row.value)
                    ax.plot(100 * ends, [i + shift] * 2, color=colour, lw=1)
                    ax.plot(100 * row.value, i + shift, "o", ms=4, mec=colour, mfc=colour if filled else "white", mew=1)
        ax.set(title=f"{symbol(quantity)} {tissue}", xlabel="error (%)", xlim=(0, MOST_ERROR), xticks=(0, 5, 10))
        ax.grid(axis="y", color="0.9", lw=0.5)
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(methods)), labels=methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    for i, method in enumerate(methods):
        for j, need in enumerate(NEEDS):
            axes[-1].plot(j, i, "s", ms=5, color="0.25" if need in needs[method] else "0.9", mec="none")
    axes[-1].set(xlim=(-0.6, len(NEEDS) - 0.4), title="needs")
    axes[-1].set_xticks(range(len(NEEDS)), labels=NEEDS, rotation=90, size=6.5)
    axes[-1].tick_params(length=0)
    for ax in axes:
        ax.tick_params(axis="y", length=0)
    axes[-1].spines[:].set_visible(False)
    faces = {scale: face for scale, face in zip(SCALES, ("0.3", "white"), strict=True) if scale in set(rows.scale)}
    marks = [plt.Line2D([], [], marker="o", ls="", ms=4, color="0.3", mfc=face) for face in faces.values()]
    fig.legend(marks, list(faces), loc="outside upper right", ncols=2)
    return fig


def error_by_scans(table: pandas.DataFrame, methods: Sequence[str], scans: Sequence[str]) -> Figure:
    """Median absolute error for each subset of scans: a mark a method, filled on a common scale, open with any gain."""
    rows = table[table.metric == "median_absolute_error"]
    fig, axes = plt.subplots(2, 3, figsize=(FIGURE_WIDTH, 3.9), sharex=True, layout="constrained")
    x = np.arange(len(scans))
    looks = (("o", "0.2"), ("D", "#009e73"), ("s", "#d55e00"), ("^", "#cc78bc"), ("v", "#56b4e9"))
    for i, tissue in enumerate(("WM", "GM")):
        for j, quantity in enumerate(("T1", "T2", "PD")):
            ax, here = axes[i, j], rows[(rows.quantity == quantity) & (rows.tissue == tissue)]
            for k, (method, (mark, colour)) in enumerate(zip(methods, looks, strict=False)):
                for scale, face in zip(SCALES, (colour, "white"), strict=True):
                    of = here[(here.method == method) & (here.scale == scale)].set_index("scans").reindex(scans)
                    at = x + 0.14 * (k - (len(methods) - 1) / 2)  # subsets have no order: nothing joins them
                    label = method if face == colour else None
                    ax.plot(at, 100 * of.value, mark, ms=3, mec=colour, mfc=face, mew=0.8, label=label)
                    if face == colour:
                        ax.vlines(at, 100 * of.low, 100 * of.high, color=colour, lw=0.8)
            ax.set(yscale="log", title=f"{symbol(quantity)} {tissue}")
            low, high = ax.get_ylim()
            ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= t <= high]
            ax.set_yticks(ticks, labels=[f"{t:g}" for t in ticks])
            ax.minorticks_off()
        axes[i, 0].set_ylabel("error (%)")
    for ax in axes[1]:
        ax.set_xticks(x, labels=scans, rotation=90, size=6.5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(methods))
    return fig


def honesty(table: pandas.DataFrame, methods: Sequence[str], scale: str) -> Figure:
    """How often the truth lies in the 50 and 90 % intervals, by method, quantity, tissue; on the lines is honest."""
    fig, axes = plt.subplots(
        1, len(methods), figsize=(FIGURE_WIDTH, 2.3), sharey=True, layout="constrained", squeeze=False
    )
    rows, places = table[table.scale == scale], [(q, t) for q in ("T1", "T2", "PD") for t in ("WM", "GM", "CSF")]
    for ax, method in zip(axes[0], methods, strict=True):
        for level, filled in ((90, True), (50, False)):
            ax.axhline(level, color="0.6", lw=0.7, ls="-" if filled else (0, (3, 2)), zorder=0)
            of = rows[(rows.method == method) & (rows.metric == f"coverage_{level}")].set_index(["quantity", "tissue"])
            for i, key in enumerate(places):
                if key not in of.index:
                    continue
                row, colour = of.loc[key], TISSUE_COLOURS[key[1]]
                ends = np.nan_to_num([row.low, row.high], nan=row.value)
                ax.plot([i, i], 100 * ends, color=colour, lw=1)
                ax.plot(i, 100 * row.value, "o", ms=4, mec=colour, mfc=colour if filled else "white", mew=1)
        ax.set(title=method, ylim=(-3, 103))
        ax.set_xticks(range(len(places)), labels=[f"{symbol(q)} {t}" for q, t in places], rotation=90, size=6.5)
    axes[0, 0].set_ylabel("truth inside interval (%)")
    marks = [plt.Line2D([], [], marker="o", ls="", ms=4, color="0.3", mfc=c) for c in ("0.3", "white")]
    fig.legend(marks, ["90 % interval", "50 % interval"], loc="outside upper center", ncols=2)
    return fig


def over_floor(table: pandas.DataFrame) -> Figure:
    """Every distance of samples from true people over the distance of true people from each other (1 on the axis).

    Parameters
    ----------
    table
        Of :func:`brain_sets.compare`.
    """
    distances = table[table.metric.isin(("frechet", "wasserstein", "share_distance"))]
    names = distances[["metric", "quantity", "tissue"]].drop_duplicates().itertuples(index=False)
    keys = sorted(map(tuple, names), key=lambda k: (("frechet", "share_distance", "wasserstein").index(k[0]), k[1]))
    values = distances.set_index(["metric", "quantity", "tissue", "inputs"])
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH * 0.75, 0.7 + 0.2 * len(keys)), layout="constrained")
    looks = {"generated": ("o", "#d55e00"), "true, training heads": ("D", "#56b4e9"), FLOOR: ("|", "0.2")}
    for i, key in enumerate(keys):
        base = values.loc[(*key, FLOOR), "value"]
        for name, (mark, colour) in looks.items():
            if (*key, name) in values.index:
                row = values.loc[(*key, name)]
                ax.plot(np.array([row.low, row.high]) / base, [i, i], color=colour, lw=1, alpha=0.6)
                ax.plot(row.value / base, i, mark, color=colour, ms=5, label=name if i == 0 else None)
    labels = [" ".join(filter(None, (symbol(q), t))) if m != "frechet" else "Fréchet" for m, q, t in keys]
    ax.set_yticks(range(len(keys)), labels=labels)
    ax.set(
        ylim=(len(keys) - 0.5, -0.5),
        xscale="log",
        xlabel="distance to true people / distance of true people from each other",
    )
    ax.grid(axis="y", color="0.9", lw=0.5)
    ax.set_axisbelow(True)
    fig.legend(loc="outside upper center", ncols=3)
    return fig


def looked_at(table: pandas.DataFrame, floor: str = "true, other half") -> Figure:
    """Slices judged one by one: the share shaped as true people's are, and how well classifiers tell sets apart.

    Parameters
    ----------
    table
        Of :func:`examination.look_at`.
    """
    looks = {
        "generated": ("o", "#d55e00", 5), "generated, against inferred": ("o", "#d55e00", 9),
        "true, inferred": ("D", "#56b4e9", 5), floor: ("|", "0.2", 9),
    }  # fmt: skip
    marks = {
        name: {"marker": mark, "ls": "", "ms": size, "mec": colour, "mfc": "none" if "against" in name else colour}
        for name, (mark, colour, size) in looks.items()
    }
    panels = (
        ("shaped as true people's slices (%)", 100, (("skull_closed", ""), ("within_true", "ventricle_asymmetry"),
         ("within_true", "cortical_thickness"), ("within_true", "folding"))),
        ("AUC of telling them apart", 1, (("auc", "logistic regression"), ("auc", "network"))),
    )  # fmt: skip
    values = table.set_index(["metric", "quantity", "inputs"])
    fig, axes = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 1.7), layout="constrained")
    for ax, (title, unit, keys) in zip(axes, panels, strict=True):
        keys = [key for key in keys if (*key, floor) in values.index]
        for i, key in enumerate(keys):
            for name, mark in marks.items():
                if (*key, name) in values.index:
                    row = values.loc[(*key, name)]
                    ax.plot(unit * np.array([row.low, row.high]), [i, i], color=mark["mec"], lw=1, alpha=0.6)
                    ax.plot(unit * row.value, i, **mark)
        names = [(quantity or metric).replace("_", " ") for metric, quantity in keys]
        ax.set_yticks(range(len(keys)), labels=names)
        ax.set(ylim=(len(keys) - 0.5, -0.5), xlabel=title)
        ax.grid(axis="y", color="0.9", lw=0.5)
        ax.set_axisbelow(True)
    axes[0].set_xlim(-3, 103)
    axes[1].set_xlim(0.38, 1.03)
    axes[1].axvline(0.5, color="0.6", lw=0.7, zorder=0)
    fig.legend([plt.Line2D([], [], **mark) for mark in marks.values()], marks, loc="outside upper center", ncols=4)
    return fig
