"""What ablations show: tables of :mod:`phyldm_core.evaluation.ablations` in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures.style import FIGURE_WIDTH, TISSUE_COLOURS, symbol
from ..slices import ALL_SCANS
from .ablations import SHOWN
from .examination import SCALES
from .tables import MEAN_OF_SIGNAL
from .variants import MOVED, UNCHANGED

PANELS = (("T1", "WM"), ("T1", "GM"), ("T2", "WM"), ("T2", "GM"), ("PD", "GM"))
GREY = "0.72"


def forest(table: pandas.DataFrame, variants: Sequence[str]) -> Figure:
    """Median absolute error of every variant with its interval, filled on a common scale, open with any gain.

    A dot has colour where the paired interval of its ratio to the reference's error leaves 1 out; lines are the
    reference. The last panel is the PSNR of contrasts nobody acquired.

    Parameters
    ----------
    table
        Of :func:`ablations.against_reference`.
    variants
        From top to bottom.
    """
    rows = table[table.scans == ALL_SCANS]
    fig, axes = plt.subplots(
        1, len(PANELS) + 1, figsize=(FIGURE_WIDTH, 0.95 + 0.2 * len(variants)), sharey=True, layout="constrained"
    )
    for ax, (quantity, tissue) in zip(axes, PANELS, strict=False):
        here = rows[(rows.quantity == quantity) & (rows.tissue == tissue)]
        ratios = here[here.metric == "error_ratio"].set_index(["variant", "scale"])
        for scale, row, y in _places(here[here.metric == "median_absolute_error"], variants):
            key = (row.variant, scale)
            differs = key in ratios.index and (ratios.low[key] > 1 or ratios.high[key] < 1)
            _dot(ax, row, y, scale, TISSUE_COLOURS[tissue] if differs else GREY, 100)
        ax.set(title=f"{symbol(quantity)} {tissue}", xscale="log", xlabel="error (%)")
        low, high = ax.get_xlim()
        ax.set_xticks(ticks := [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high])
        ax.set_xticklabels([f"{t:g}" for t in ticks])
        ax.minorticks_off()
    images = rows[(rows.metric == "psnr") & (rows.quantity == MEAN_OF_SIGNAL)]
    for scale, row, y in _places(images, variants):
        _dot(axes[-1], row, y, scale, "0.25", 1)
    axes[-1].set(title="unseen contrasts", xlabel="PSNR (dB)")
    for ax in axes:
        ax.grid(axis="y", color="0.92", lw=0.5)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(variants)), labels=variants)
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    marks = [plt.Line2D([], [], marker="o", ls="", ms=4, color="0.3", mfc=c) for c in ("0.3", "white")]
    fig.legend(marks, SCALES, loc="outside upper right", ncols=2)
    return fig


def _places(rows: pandas.DataFrame, variants: Sequence[str]):
    """Scale, row and height of every dot of one panel."""
    for scale, shift in zip(SCALES, (-0.16, 0.16), strict=True):
        for row in rows[(rows.scale == scale) & rows.variant.isin(variants)].itertuples():
            yield scale, row, variants.index(row.variant) + shift


def _dot(ax: Axes, row, y: float, scale: str, colour: str, factor: float):
    common = scale == SCALES[0]
    ax.plot(factor * np.nan_to_num([row.low, row.high], nan=row.value), [y, y], color=colour, lw=1)
    ax.plot(factor * row.value, y, "o", ms=4, mec=colour, mfc=colour if common else "white", mew=1)
    if row.variant == UNCHANGED.name:
        ax.axvline(factor * row.value, color="0.5", lw=0.6, ls="-" if common else ":", zorder=0)


def echo_time(people: pandas.DataFrame, fits: pandas.DataFrame, ratio: float) -> Figure:
    """T2 over its truth, person by person: what a fit without a network predicts for the nominal TE, and what is seen.

    Parameters
    ----------
    people, fits
        Of :func:`ablations.measure` and :func:`ablations.fitted_te`.
    ratio
        Nominal over effective TE of the usual T2w: what its equation alone asks for, a cross.
    """
    wanted = (people.metric == "bias") & (people.quantity == "T2") & (people.scale == SCALES[0])
    seen, fits = people[wanted], fits[fits.quantity == "T2"]
    fig, axes = plt.subplots(1, 2, figsize=(5.4, 2.9), sharex=True, sharey=True, layout="constrained")
    for ax, scans in zip(axes, SHOWN[1:], strict=True):
        for name, face in ((UNCHANGED.name, False), ("nominal TE", True)):
            pairs = seen[(seen.variant == name) & (seen.scans == scans)].merge(
                fits[fits.scans == scans], on=["tissue", "person"], suffixes=("", "_fit")
            )
            for tissue, of in pairs.groupby("tissue", sort=False):
                colour, label = TISSUE_COLOURS[tissue], f"{tissue}, {name}"
                face_colour = colour if face else "white"
                ax.plot(1 + of.value_fit, 1 + of.value, "o", ms=3, mec=colour, mfc=face_colour, mew=0.7, label=label)
        ax.axline((1, 1), (2, 2), color="0.6", lw=0.7)
        ax.axhline(1, color="0.6", lw=0.7, ls=":")
        ax.plot(ratio, ratio, "x", color="0.2", ms=7, mew=1.2, label="TE nominal / effective")
        ax.set(title=f"from {scans}", xlabel="predicted by a fit without network", xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(plt.FixedLocator([0.5, 1, 2, 5, 10, 20]))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(plt.NullLocator())
    axes[0].set_ylabel("$T_2$ / truth, network")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def pull_of_prior(table: pandas.DataFrame, shares: pandas.DataFrame) -> Figure:
    """Left: T1 and T2 over their truth against the prior's factor, from all scans; right: the prior's share by scans.

    Parameters
    ----------
    table, shares
        Of :func:`ablations.against_reference` and :func:`ablations.prior_share`.
    """
    fig, axes = plt.subplots(1, 3, figsize=(FIGURE_WIDTH, 2.5), layout="constrained", width_ratios=[1, 1, 1.5])
    moves = {"prior shorter": 1 / MOVED, UNCHANGED.name: 1.0, "prior longer": MOVED}
    rows = table[(table.metric == "bias") & (table.scale == SCALES[0]) & (table.scans == ALL_SCANS)]
    for ax, quantity in zip(axes, ("T1", "T2"), strict=False):
        for tissue, colour in TISSUE_COLOURS.items():
            of = rows[(rows.quantity == quantity) & (rows.tissue == tissue)].set_index("variant").reindex(list(moves))
            if of.value.notna().any():
                x, y = list(moves.values()), 1 + of[["value", "low", "high"]]
                ax.fill_between(x, y.low, y.high, color=colour, alpha=0.15, lw=0)
                ax.plot(x, y.value, "o-", color=colour, lw=1, label=tissue)
        ax.plot(list(moves.values()), list(moves.values()), ":", color="0.4", lw=0.8, label="prior alone")
        ax.axhline(1, color="0.6", lw=0.7)
        ax.set(title=symbol(quantity), xlabel="prior moved by the factor", xscale="log")
        ax.set_xticks(list(moves.values()), labels=["0.8", "1", "1.25"])
        ax.minorticks_off()
    axes[0].set_ylabel("estimate / truth")
    axes[0].legend()
    names = [f"{symbol(q)} {t}" for q in ("T1", "T2") for t in TISSUE_COLOURS]
    for k, scans in enumerate(SHOWN):
        here = shares[(shares.scans == scans) & (shares.scale == SCALES[0])]
        for i, (quantity, tissue) in enumerate((q, t) for q in ("T1", "T2") for t in TISSUE_COLOURS):
            for row in here[(here.quantity == quantity) & (here.tissue == tissue)].itertuples():
                y, colour = i + 0.22 * (k - 1), TISSUE_COLOURS[tissue]
                axes[2].plot(np.nan_to_num([row.low, row.high], nan=row.value), [y, y], color=colour, lw=1)
                axes[2].plot(row.value, y, "so^"[k], ms=3.5, mec=colour, mfc=colour if k == 2 else "white", mew=0.8)
    for x in (0, 1):
        axes[2].axvline(x, color="0.6", lw=0.7, ls="-" if x == 0 else ":")
    axes[2].set_yticks(range(len(names)), labels=names)
    axes[2].set_ylim(len(names) - 0.5, -0.5)
    axes[2].set(title="share of the prior", xlabel="0: from the scans, 1: from the prior")
    looks = zip("so^", ("white", "white", "0.3"), strict=True)
    marks = [plt.Line2D([], [], marker=m, ls="", ms=4, color="0.3", mfc=face) for m, face in looks]
    fig.legend(marks, SHOWN, loc="outside lower right", ncols=3)
    return fig
