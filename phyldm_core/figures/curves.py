"""Distributions, training curves and agreement, in the house look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from .. import tissue
from .style import FIGURE_WIDTH, TISSUE_COLOURS, as_array, quantity_of

MOST_POINTS = 1500
TISSUE_NAMES = {"WM": "white matter", "GM": "grey matter", "CSF": "CSF"}
LINES = ("0.25", "#d55e00", "#cc78bc", "#56b4e9")  # the palette without the colours that mean tissue
CORE_BAND = {
    ("WM", "T1"): (0.81, 0.96), ("GM", "T1"): (1.30, 1.61), ("CSF", "T1"): (4.1, 4.5),
    ("WM", "T2"): (0.065, 0.080), ("GM", "T2"): (0.068, 0.090), ("CSF", "T2"): (1.8, 2.4),
    ("WM", "PD"): (0.68, 0.71), ("GM", "PD"): (0.79, 0.84), ("CSF", "PD"): (0.97, 1.0),
}  # fmt: skip
"""Where most in-vivo 3 T studies lie (s; PD of water = 1); :data:`phyldm_core.tissue.OUTER_BAND` holds all methods."""


def studies(tissue_name: str, quantity: str, field_T: str = "3") -> pandas.DataFrame:
    """Every single measurement in the literature table, outliers too: ``mean`` (s or of water), ``citation``, ``doi``.

    In vivo at one field strength ("1.5", "3", "7"); water content does not depend on the field, so all are taken.
    """
    table = tissue.measurements()
    rows = table[table.tissue.isin(tissue.ROWS[tissue_name]) & (table.property == quantity) & table["mean"].notna()]
    if quantity == "PD":
        return rows[rows.setting.isin(("in vivo", "gravimetric"))]
    return rows[(rows.setting == "in vivo") & (rows.field_T == field_T)]


def tissue_histograms(
    values: Mapping[str, Mapping[tuple[str, str], ArrayLike]],
    *,
    distances: Mapping[tuple[str, str], float] | None = None,
) -> Figure:
    """F5: histograms per tissue of up to three sources, over the values measured in living brains at 3 T.

    Behind them the core and the outer band, below them a tick a study (:func:`studies` has the citations).

    Parameters
    ----------
    values
        Source ("true", "generated", "inferred", …) → (tissue, quantity) → 1-D values. The first is drawn filled,
        the others as lines.
    distances
        (tissue, quantity) → number printed in the corner, :func:`phyldm_core.evaluation.metrics.histogram_distance`.
    """
    fig, axes = plt.subplots(3, 3, figsize=(FIGURE_WIDTH, 4.8), layout="constrained")
    for ax, (quantity, name) in zip(axes.flat, product(("T1", "T2", "PD"), TISSUE_NAMES), strict=True):
        key, colour, scale = (name, quantity), TISSUE_COLOURS[name], quantity_of(quantity).per_unit
        measured = studies(name, quantity)["mean"].to_numpy() * scale
        drawn = {source: as_array(of[key]).ravel() * scale for source, of in values.items() if key in of}
        outer, core = (np.array(band[key]) * scale for band in (tissue.OUTER_BAND, CORE_BAND))
        low, high = _span(drawn.values(), (*outer, *measured))
        low = -0.04 * high if key == ("CSF", "T1") else low  # mixed voxels at the ventricles belong to the picture
        ax.axvspan(*outer, color=colour, alpha=0.13, lw=0)
        ax.axvspan(*core, color=colour, alpha=0.25, lw=0)
        ax.plot(measured, np.full(len(measured), -0.05), "|", color="black", ms=4, mew=0.7,
                transform=ax.get_xaxis_transform(), clip_on=False)  # fmt: skip
        bins = np.linspace(low, high, 49)
        for i, (source, sample) in enumerate(drawn.items()):
            filled = i == 0
            # Weights over all values, so that what lies outside the axis is not silently shared among the rest.
            ax.hist(sample, bins, weights=np.full(sample.size, 1 / max(sample.size, 1)), **_source_look(i, colour),
                    histtype="stepfilled" if filled else "step", label=source)  # fmt: skip
        ax.set(xlim=(low, high), yticks=[])
        ax.tick_params(axis="x", pad=5)  # room for the studies
        ax.xaxis.set_major_locator(plt.MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(quantity_of(quantity).label, labelpad=1)
        ax.margins(y=0.12)
        if distances and key in distances:
            ax.text(1, 1, f"$W_1$ {distances[key]:.2f}", transform=ax.transAxes, ha="right", va="bottom", size=7)
    for ax, (name, title) in zip(axes[0], TISSUE_NAMES.items(), strict=True):
        ax.set_title(title, color=TISSUE_COLOURS[name], weight="bold")
    handles = [
        (Patch if i == 0 else Line2D)(*(() if i == 0 else ((), ())), label=source, **_source_look(i, "0.25"))
        for i, source in enumerate(values)
    ]
    handles += [
        Patch(color=TISSUE_COLOURS["WM"], alpha=0.35, lw=0, label="most studies"),
        Patch(color=TISSUE_COLOURS["WM"], alpha=0.13, lw=0, label="all methods"),
        Line2D((), (), marker="|", ls="", color="black", ms=5, label="one study"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4, handlelength=1.6)
    return fig


def _source_look(i: int, colour: str) -> dict:
    if i == 0:
        return {"facecolor": "0.7", "edgecolor": "0.45", "lw": 0.5}
    return {"color": colour, "lw": 1.3, "ls": ("-", (0, (3, 1.2)))[(i - 1) % 2]}


def _span(samples, marks) -> tuple[float, float]:
    """Axis limits that show the marks and the body of every sample, but no tail twice as far as the marks."""
    ends = [np.percentile(s, (1, 99)) for s in samples if s.size]
    low, high = min([*marks, *(e[0] for e in ends)]), max([*marks, *(e[1] for e in ends)])
    reach = max(marks) - min(marks)
    low, high = max(low, min(marks) - 2 * reach, 0), min(high, max(marks) + 2 * reach)
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def training_curves(
    history: pandas.DataFrame,
    panels: Mapping[str, Sequence[str]],
    *,
    validation: pandas.DataFrame | None = None,
    log: Sequence[str] = (),
) -> Figure:
    """Loss curves: one axes per entry of ``panels`` (title → columns of ``history``).

    Faint is every step, bold the running median over 25 steps, circles the columns of the same
    name in ``validation``; titles in ``log`` get a logarithmic axis.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(FIGURE_WIDTH, 2.1), squeeze=False, layout="constrained")
    for ax, (title, columns) in zip(axes[0], panels.items(), strict=True):
        for column, colour in zip(columns, LINES, strict=False):
            seen = history[["step", column]].dropna()
            bold = seen[column].rolling(min(25, max(len(seen) // 4, 1)), center=True, min_periods=1).median()
            ax.plot(seen.step, seen[column], color=colour, alpha=0.25, lw=0.6)
            name = "" if len(columns) == 1 else f"{column}, "
            ax.plot(seen.step, bold, color=colour, label=f"{name}training")
            if validation is not None and column in validation:
                held_out = validation[["step", column]].dropna()
                ax.plot(held_out.step, held_out[column], "o", mfc="white", mec=colour, mew=1, label=f"{name}validation")
        ax.set(title=title, xlabel="step", yscale="log" if title in log else "linear")
        ax.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
        if title in log:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        if len(columns) > 1 or validation is not None:
            ax.legend(handlelength=1.4)
    sns.despine(fig)
    return fig


def agreement(estimate: Mapping[str, ArrayLike], truth: Mapping[str, ArrayLike], quantity: str) -> Figure:
    """Estimate against truth, and their difference against their mean (Bland and Altman), by tissue.

    Parameters
    ----------
    estimate, truth
        Tissue → 1-D values in the same order (s, or of water). At most :data:`MOST_POINTS` of each tissue are drawn;
        medians and limits use all.
    """
    scale, label = quantity_of(quantity).per_unit, quantity_of(quantity).label
    fig, (left, right) = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 2.9), layout="constrained")
    rng, ends = np.random.default_rng(0), []  # 0: which points are drawn is no result
    for name in estimate:
        e, t = (as_array(of[name]).ravel().astype(float) * scale for of in (estimate, truth))
        mean, percent = (e + t) / 2, 200 * (e - t) / (e + t)
        some = rng.permutation(e.size)[:MOST_POINTS]
        dots = {"s": 3, "lw": 0, "alpha": 0.35, "color": TISSUE_COLOURS[name], "rasterized": True}
        left.scatter(t[some], e[some], **dots)
        right.scatter(mean[some], percent[some], **dots)
        low, middle, high = np.percentile(percent, (2.5, 50, 97.5))
        where = np.percentile(mean, (2.5, 97.5))
        right.plot(where, [middle] * 2, color="black", lw=1.2)
        for limit in (low, high):
            right.plot(where, [limit] * 2, color="black", lw=0.8, ls=(0, (3, 2)))
        ends += [*np.percentile(e, (0.1, 99.9)), *np.percentile(t, (0.1, 99.9))]
        text = f"{name}  {round(middle, 1) + 0.0:+.1f} % ({low:+.0f} to {high:+.0f})".replace("-", "−")
        left.plot([], [], "o", color=TISSUE_COLOURS[name], label=text)
    low, high = min(ends) * 0.93, max(ends) * 1.07
    left.plot([low, high], [low, high], color="0.3", lw=0.7, zorder=0)
    title = "median difference (95 % limits)"
    fig.legend(loc="outside upper center", ncols=len(estimate), handletextpad=0.1, title=title)
    left.set(xlim=(low, high), ylim=(low, high), xlabel=f"true {label}", ylabel=f"estimated {label}")
    right.axhline(0, color="0.3", lw=0.7, zorder=0)
    right.set(xlim=(low, high), xlabel=f"mean of both, {label}", ylabel="difference (% of mean)")
    for axis in (left.xaxis, left.yaxis, right.xaxis) if high > 4 * low else ():  # WM to CSF: a factor of five or more
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        round_ones = scale * np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5])
        ticks = round_ones[(low <= round_ones) & (round_ones <= high)]
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(plt.NullLocator())
    left.set_aspect("equal")
    for letter, ax in zip("ab", (left, right), strict=True):
        ax.set_title(letter, loc="left", weight="bold", size=10)
    return fig
