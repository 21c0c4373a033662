"""What networks know and do not: estimates against the truth of people, errors by scans, the way from noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .signals import letter_panels
from .style import FIGURE_WIDTH, TISSUE_COLOURS, quantity_of, symbol

TISSUE_ORDER = ("WM", "GM", "CSF")


def follows_the_person(sources: Mapping[str, Mapping[tuple[str, str], ArrayLike]], r: Mapping) -> Figure:
    """Estimate against truth, a dot a person: a cloud that climbs along the line has learnt from the scans.

    Parameters
    ----------
    sources
        Two names (filled, open) → (tissue, quantity) → ``(2, people)``: estimate and truth.
    r
        (name, tissue, quantity) → correlation, written in the panel.
    """
    fig, axes = plt.subplots(3, 3, figsize=(FIGURE_WIDTH, 6), layout="constrained")
    places = [(quantity, name) for quantity in ("T1", "T2", "PD") for name in TISSUE_ORDER]
    for ax, (quantity, name) in zip(axes.flat, places, strict=True):
        if (name, quantity) == ("CSF", "PD"):
            ax.axis("off")
            continue
        colour, true = TISSUE_COLOURS[name], np.array([])
        for pairs, face in zip(sources.values(), (colour, "white"), strict=True):
            estimate, true = quantity_of(quantity).per_unit * np.asarray(pairs[name, quantity])
            ax.plot(true, estimate, "o", mfc=face, mec=colour, mew=0.8, ms=3.5)
        ends = np.nanpercentile(true, (0, 100)) * [0.98, 1.02]
        ax.plot(ends, ends, color="0.4", lw=0.8, zorder=0)
        ax.set_ylim(top=ax.get_ylim()[1] + 0.3 * np.diff(ax.get_ylim()).item())
        notes = "\n".join(f"r = {r[source, name, quantity]:.2f}".replace("-", "−") for source in sources)
        ax.text(0.04, 0.99, notes, transform=ax.transAxes, va="top", size=6.5)
        label = quantity_of(quantity).label if quantity != "PD" else "PD relative to CSF"
        ax.set(xlabel=f"true {label}", ylabel="inferred", title=name if quantity == "T1" else "")
    for face, label in zip(("0.3", "white"), sources, strict=True):
        axes[2, 2].plot([], [], "o", mfc=face, mec="0.3", label=label)
    axes[2, 2].plot([], [], color="0.4", lw=0.8, label="inferred = true")
    axes[2, 2].legend(loc="center")
    return fig


def errors_by_scans(table: pandas.DataFrame, subsets: Sequence[str]) -> Figure:
    """Error (filled, with its interval) and posterior SD (open) for each subset of scans: dots, since subsets have no
    order.

    Parameters
    ----------
    table
        With metrics "median_absolute_error" and "posterior_sd"; ``inputs`` are the subsets.
    """
    fig, axes = plt.subplots(1, 3, figsize=(FIGURE_WIDTH, 3), layout="constrained")
    for ax, quantity in zip(axes, ("T1", "T2", "PD"), strict=True):
        for name, shift in (("WM", -0.15), ("GM", 0.15)):
            rows = table[(table.quantity == quantity) & (table.tissue == name)].set_index("inputs")
            colour, x = TISSUE_COLOURS[name], np.arange(len(subsets)) + shift
            error, sd = (rows[rows.metric == m].reindex(subsets) for m in ("median_absolute_error", "posterior_sd"))
            ax.vlines(x, 100 * error.low, 100 * error.high, color=colour, lw=1)
            ax.plot(x, 100 * error.value, "o", color=colour, ms=4, label=f"{name}, median error")
            ax.plot(x, 100 * sd.value, "o", mfc="white", mec=colour, ms=4, mew=0.9, label=f"{name}, posterior SD")
        ax.set(xticks=range(len(subsets)), ylabel="% of truth" if quantity == "T1" else "", ylim=(0, None))
        ax.set_xticklabels(subsets, rotation=60, ha="right", rotation_mode="anchor", size=6.5)
        ax.set_title(symbol(quantity) if quantity != "PD" else "PD relative to CSF", size=8)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig


def diffusion_training(losses: pandas.DataFrame, explained: pandas.DataFrame) -> Figure:
    """Loss of a diffusion model against steps, and how much of a latent's variance its guess explains, by noise level.

    Parameters
    ----------
    losses
        Columns step, total, val_total.
    explained
        A row a noise level (0 to 1), a column a set of latents, per cent.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 2.5), layout="constrained")
    left.plot(losses.step, losses.total, color="0.25", alpha=0.25, lw=0.6)
    left.plot(
        losses.step, losses.total.rolling(25, center=True, min_periods=1).median(), color="0.25", label="training"
    )
    held_out = losses[["step", "val_total"]].dropna()
    look = {"mfc": "white", "mec": "#d55e00", "label": "held out, averaged weights"}
    left.plot(held_out.step, held_out.val_total, "o", **look)
    left.set(xlabel="step", ylabel="loss", ylim=(0, 1.05 * float(losses.total.quantile(0.98))))
    left.legend()
    for (name, values), style in zip(
        explained.items(), ({"color": "0.25"}, {"color": "#d55e00", "ls": "--"}), strict=True
    ):
        right.plot(explained.index, values, marker="o", mfc="white", label=name, **style)
    right.axhline(0, color="0.6", lw=0.6)
    right.set(xlabel="noise level (0: the latent, 1: noise)", ylabel="variance explained (%)", ylim=(None, 105))
    right.legend()
    letter_panels((left, right))
    return fig
