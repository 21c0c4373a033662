"""What ablations show: errors of networks trained with one thing changed, and what the prior put in, as one figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..figures.signals import letter_panels
from ..figures.style import FIGURE_WIDTH, TISSUE_COLOURS, symbol
from .ablations import SHOWN

MOST_RATIO = 5.0
"""Times the reference's error; what lies beyond is an arrow with its number."""


def what_matters(table: pandas.DataFrame, variants: Sequence[str]) -> Figure:
    """Error of every variant over the reference's, and the share of each estimate that is the prior's.

    Parameters
    ----------
    table
        Metrics "error_ratio" (of the variants) and "prior_share" (by scans), as ``data/ablations.csv`` has them.
    variants
        From top to bottom.
    """
    fig, axes = plt.subplots(1, 4, figsize=(FIGURE_WIDTH, 3.4), layout="constrained", width_ratios=(1, 1, 1, 1.3))
    ratios = table[(table.metric == "error_ratio") & (table.scale == "common scale")]
    for ax, quantity in zip(axes, ("T1", "T2", "PD"), strict=False):
        for tissue, shift in (("WM", -0.15), ("GM", 0.15)):
            colour, y = TISSUE_COLOURS[tissue], np.arange(len(variants)) + shift
            rows = ratios[(ratios.quantity == quantity) & (ratios.tissue == tissue)]
            rows = rows.set_index("variant").reindex(variants)
            inside = rows.value <= MOST_RATIO
            ax.hlines(y[inside], rows.low[inside], rows.high[inside].clip(upper=MOST_RATIO), color=colour, lw=1)
            ax.plot(rows.value[inside], y[inside], "o", color=colour, ms=3.5, clip_on=False)
            for at, value in zip(y[rows.value > MOST_RATIO], rows.value[rows.value > MOST_RATIO], strict=True):
                ax.plot(0.93 * MOST_RATIO, at, ">", color=colour, ms=4)
                ax.text(0.83 * MOST_RATIO, at + 0.6 * shift, f"{value:.1f}", size=6, ha="right", va="center")
        ax.axvline(1, color="0.5", lw=0.6)
        ax.set(title=symbol(quantity), xscale="log", xlim=(0.65, MOST_RATIO), ylim=(len(variants) - 0.5, -0.5))
        ax.set_xticks((1, 2, 5), labels=("1", "2", "5"))
        ax.minorticks_off()
        ax.set_yticks(range(len(variants)), labels=variants if quantity == "T1" else [])
        ax.grid(axis="y", color="0.92", lw=0.5)
    axes[1].set_xlabel("error / that of the reference")
    draw_shares(axes[3], table[table.metric == "prior_share"])
    marks = [plt.Line2D([], [], marker="o", ls="", ms=4, color=TISSUE_COLOURS[tissue]) for tissue in ("WM", "GM")]
    fig.legend(marks, ["white matter", "grey matter"], loc="outside upper center", ncols=2)
    letter_panels(axes)
    return fig


def draw_shares(ax, shares: pandas.DataFrame):
    """By quantity and tissue: how far an estimate follows a moved prior, a mark a set of scans."""
    keys = [(q, t) for q in ("T1", "T2") for t in ("WM", "GM", "CSF")]
    for k, scans in enumerate(SHOWN):
        here = shares[shares.scans == scans].set_index(["quantity", "tissue"]).reindex(keys)
        colours, y = [TISSUE_COLOURS[t] for _, t in keys], np.arange(len(keys)) + 0.22 * (k - 1)
        ax.hlines(y, here.low, here.high, color=colours, lw=1)
        for at, value, colour in zip(y, here.value, colours, strict=True):
            ax.plot(value, at, "so^"[k], ms=3.5, mec=colour, mfc=colour if k == 2 else "white", mew=0.8)
        ax.plot([], [], "so^"[k], ms=3.5, mec="0.3", mfc="0.3" if k == 2 else "white", label=scans)
    for x, line in ((0, "-"), (1, ":")):
        ax.axvline(x, color="0.6", lw=0.7, ls=line)
    ax.set_yticks(range(len(keys)), labels=[f"{symbol(q)} {t}" for q, t in keys])
    ax.set(ylim=(len(keys) - 0.5, -0.5), title="share of the prior", xlabel="0: scans, 1: prior")
    ax.legend(loc="upper right", fontsize=6, handletextpad=0.1)


LOOKS = {"drawn, guided": ("o", "0.2", "0.2"), "drawn, no guide": ("o", "0.2", "white"),
         "autoencoder alone": ("x", "#0072b2", "#0072b2")}  # fmt: skip
"""Which slices → mark, edge and face."""


def generator_parts(table: pandas.DataFrame) -> Figure:
    """What each part of the generator is worth, and its distance against minutes of training.

    Parameters
    ----------
    table
        As ``data/generators/generators.csv`` has it, the reference first.
    """
    variants = list(dict.fromkeys(table.variant))
    fig, axes = plt.subplots(1, 4, figsize=(FIGURE_WIDTH, 2.6), layout="constrained", width_ratios=(1, 1, 1, 1))
    values = table[table.quantity.isna()].set_index(["slices", "metric", "variant"]).sort_index()
    for ax, metric in zip(axes, ("frechet", "folding", "thickness"), strict=False):
        for slices, (mark, edge, face) in LOOKS.items():
            of = values.loc[slices, metric].value.reindex(variants)
            ax.plot(of, range(len(variants)), mark, ms=4, mec=edge, mfc=face, mew=0.9, label=slices)
        ax.set_yticks(range(len(variants)), labels=variants if metric == "frechet" else [])
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.grid(axis="y", color="0.92", lw=0.5)
    folds, thick = (float(values.loc["inferred people", metric].value.iloc[0]) for metric in ("folding", "thickness"))
    for ax, at in zip(axes, (1, folds, thick), strict=False):
        ax.axvline(at, color="0.5", lw=0.6)
    axes[0].set(title="Fréchet distance", xlabel="over split-half", xscale="log")
    axes[1].set(title="folding", xlabel="line: people")
    axes[2].set(title="cortical thickness", xlabel="mm")
    lengths = [name for name in variants if "as long" in name or name == variants[0]]
    minutes = values.loc["both trainings", "minutes"].value.reindex(lengths)
    for slices, (mark, edge, face) in LOOKS.items():
        of = values.loc[slices, "frechet"].value.reindex(lengths)
        axes[3].plot(minutes, of, mark, ms=4, mec=edge, mfc=face, mew=0.9)
    axes[3].axhline(1, color="0.5", lw=0.6)
    axes[3].set(title="Fréchet distance", xlabel="minutes of training", yscale="log")
    for of in (axes[0].xaxis, axes[3].yaxis):
        of.set_ticks((1, 2, 5, 10), labels=("1", "2", "5", "10"))
        of.set_minor_locator(NullLocator())
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=3)
    letter_panels(axes)
    return fig
