"""Histograms of tissue counted once, finely, and what was measured in living brains beside them.

A histogram smoothed by any bandwidth, the median and the distance between two sources follow from a few
thousand counts, so that an explorer can repaint at every step of a slider.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..figures.curves import CORE_BAND, TISSUE_NAMES, studies
from ..figures.style import TISSUE_COLOURS, quantity_of
from ..people.segmentation import segmented_values
from ..physics import TissueMaps
from ..tissue import OUTER_BAND

EDGES = np.geomspace(1e-3, 20, 2001)
"""s, or of water: bins half a per cent wide, so that a distance is good to about that."""
CENTRES = np.sqrt(EDGES[1:] * EDGES[:-1])
MANY_STUDIES = 12  # above it their names would overlap in the figure; the list beside it has them all
STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), "-.")  # of the sources after the first, which is filled


# --- counted once -------------------------------------------------------------------------------


def count(values: NDArray) -> NDArray[np.uint16]:
    """``(bins,)`` counts between :data:`EDGES`; what lies beyond them is in the first or last bin."""
    bins = np.clip(np.searchsorted(EDGES, values, side="right") - 1, 0, len(CENTRES) - 1)
    return np.bincount(bins, minlength=len(CENTRES)).astype(np.uint16)


def count_slices(maps: TissueMaps) -> dict[tuple[str, str], NDArray[np.uint16]]:
    """(tissue, quantity) → ``(n, bins)``: one row of counts a slice, tissue told as :func:`segmented_values` does."""
    slices = [segmented_values(TissueMaps(*(m[i : i + 1] for m in maps))) for i in range(len(maps.pd))]
    return {key: np.stack([count(values[key]) for values in slices]) for key in slices[0]} if slices else {}


def median(counts: NDArray) -> float:
    """Of the values that were counted, to the width of a bin; NaN for none."""
    return quantile(counts, 0.5)


def quantile(counts: NDArray, share: float) -> float:
    """The value below which ``share`` of the values lie, to the width of a bin; NaN for none."""
    below = np.cumsum(counts)
    return float(CENTRES[np.searchsorted(below, share * below[-1])]) if below[-1] else float("nan")


def distance(sample: NDArray, reference: NDArray) -> float:
    """:func:`metrics.histogram_distance` from counts: Wasserstein-1 over the median of the reference."""
    if not sample.sum() or not reference.sum():
        return float("nan")
    a, b = (np.cumsum(counts) / counts.sum() for counts in (sample, reference))
    return float(np.sum(np.abs(a - b)[:-1] * np.diff(CENTRES)) / median(reference))


def density(counts: NDArray, x: NDArray, sd: float) -> NDArray:
    """Gaussian kernel density of the counted values at ``x``; ``sd`` of the kernel, in the unit of ``x``."""
    near = (x[0] - 5 * sd < CENTRES) & (x[-1] + 5 * sd > CENTRES)  # all values count, far ones add nothing here
    kernel = np.exp(-0.5 * ((x[:, None] - CENTRES[near]) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    return kernel @ counts[near] / max(counts.sum(), 1)


def share_within(counts: NDArray, band: tuple[float, float]) -> float:
    """Fraction of the values that lie in a band."""
    return float(counts[(band[0] <= CENTRES) & (band[1] >= CENTRES)].sum() / max(counts.sum(), 1))


def short_name(citation: str) -> str:
    """First author and year, as in "Wright 2008"; the PubMed number where the table knows neither."""
    year = re.search(r"\b(?:19|20)\d\d\b", citation)
    known = re.search(r"PMC\d+", citation)
    return f"{re.split('[ ,]', citation)[0]} {year.group()}" if year else known.group() if known else citation[:20]


@cache
def _named_studies(tissue: str, quantity: str, field_T: str) -> pandas.DataFrame:
    rows = studies(tissue, quantity, field_T)  # asked for some times at every step of a slider
    return rows.assign(name=[short_name(c) for c in rows.citation])


# --- what is chosen -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """All that decides the picture.

    Parameters
    ----------
    field_T
        Of the studies, "1.5", "3" or "7"; water content does not depend on it.
    sources
        Which are drawn.
    cited
        Short names of the studies that are drawn.
    n_slices
        Taken of every source but the first, in an order that does not change.
    bandwidth
        SD of the kernel, per cent of the middle of the 3 T core band.
    """

    tissue: str = "WM"
    quantity: str = "T1"
    field_T: str = "3"
    sources: tuple[str, ...] = ()
    cited: tuple[str, ...] = ()
    n_slices: int = 10**6
    bandwidth: float = 2.0

    @property
    def key(self) -> tuple[str, str]:
        return self.tissue, self.quantity

    @property
    def sd(self) -> float:
        """SD of the kernel, s or of water."""
        return self.bandwidth / 100 * sum(CORE_BAND[self.key]) / 2

    def studies(self) -> pandas.DataFrame:
        """The chosen rows of the literature table with their short ``name``, smallest value first."""
        rows = self.all_studies()
        return rows[rows.name.isin(self.cited)].sort_values("mean")

    def all_studies(self) -> pandas.DataFrame:
        return _named_studies(self.tissue, self.quantity, self.field_T)

    def bands(self) -> dict[str, tuple[float, float]]:
        """Label → range. Our bands are for 3 T; elsewhere the span of the chosen studies stands for them."""
        if self.quantity == "PD" or self.field_T == "3":
            return {"all methods": OUTER_BAND[self.key], "most studies": CORE_BAND[self.key]}
        values = self.studies()["mean"]
        return {f"span at {self.field_T} T": (values.min(), values.max())} if len(values) > 1 else {}

    def __str__(self):
        field = "" if self.quantity == "PD" else f" at {self.field_T} T"
        return f"{self.quantity} of {TISSUE_NAMES[self.tissue]}{field}"


class Histograms:
    """Counts of every source, and the figure of a :class:`Choice`.

    Parameters
    ----------
    sources
        Name → maps, each ``(n, y, x)``, PD of water = 1, T1 and T2 in s. The first is the one the others
        are compared with, and is drawn filled.

    Raises
    ------
    ValueError
        For no source at all.
    """

    def __init__(self, sources: Mapping[str, TissueMaps]):
        if not sources:
            raise ValueError("There is no source to show: give the maps of at least one.")
        self.counts: dict[str, dict[tuple[str, str], NDArray[np.uint16]]] = {}
        for name, maps in sources.items():
            self.add(name, maps)

    def add(self, name: str, maps: TissueMaps) -> None:
        """Count another source, ``(n, y, x)`` a map."""
        order = np.random.default_rng(0).permutation(len(maps.pd))  # 0: which slices come first is no result
        self.counts[name] = {key: rows[order] for key, rows in count_slices(maps).items()}
        self.names = tuple(self.counts)

    def n_slices(self, name: str) -> int:
        return len(self.counts[name]["WM", "T1"])

    def chosen(self, choice: Choice) -> dict[str, NDArray]:
        """Source → ``(bins,)`` counts over the chosen number of slices, where the tissue was found at all."""
        found = {}
        for name in self.names:
            if name in choice.sources:
                rows = self.counts[name][choice.key]
                total = (rows if name == self.names[0] else rows[: choice.n_slices]).sum(0, dtype=np.int64)
                if total.sum():
                    found[name] = total
        return found

    def table(self, choice: Choice) -> pandas.DataFrame:
        """A row a source: slices, voxels, median, quartiles, shares in the bands, distance to the first one chosen."""
        counts = self.chosen(choice)
        reference = next(iter(counts), None)
        rows = {}
        for name, c in counts.items():
            n = self.n_slices(name)
            rows[name] = {
                "slices": n if name == self.names[0] else min(n, choice.n_slices),
                "voxels": int(c.sum()),
                "median": median(c),
                "lower quartile": quantile(c, 0.25),
                "upper quartile": quantile(c, 0.75),
                **{label: share_within(c, band) for label, band in choice.bands().items()},  # share of the voxels
                "distance": 0.0 if name == reference else distance(c, counts[reference]),
            }
        return pandas.DataFrame.from_dict(rows, orient="index")

    def window(self, choice: Choice) -> tuple[float, float]:
        """Limits of the axis: all studies and the body of every source, but no tail far beyond the measured."""
        marks = [*OUTER_BAND[choice.key], *choice.all_studies()["mean"]]
        whole = [c for c in (self.counts[name][choice.key].sum(0) for name in self.names) if c.sum()]
        reach = max(marks) - min(marks)
        low = min([min(marks), *(quantile(c, 0.02) for c in whole)])
        high = max([max(marks), *(quantile(c, 0.98) for c in whole)])
        low, high = max(low, min(marks) - 2 * reach, 0), min(high, max(marks) + 2 * reach)
        return low - 0.05 * (high - low), high + 0.05 * (high - low)

    def paint(self, fig: Figure, choice: Choice, size: float = 12) -> None:
        """Draw a choice on a figure, wiping it first: densities above, the chosen studies below them."""
        fig.clear()
        rows = choice.studies()
        axes = fig.subplots(2, sharex=True, height_ratios=(3, 1.2), gridspec_kw={"hspace": 0.06})
        fig.subplots_adjust(0.03, 0.14, 0.98, 0.9)
        quantity, colour = quantity_of(choice.quantity), TISSUE_COLOURS[choice.tissue]
        unit = quantity.per_unit
        window = self.window(choice)
        x = np.linspace(max(window[0], 0), window[1], 400)
        for ax in axes:
            for (label, band), alpha in zip(choice.bands().items(), (0.15, 0.3), strict=False):
                ax.axvspan(unit * band[0], unit * band[1], color=colour, alpha=alpha, lw=0,
                           label=label if ax is axes[0] else None)  # fmt: skip
            ax.spines[["top", "left", "right"]].set_visible(False)
            ax.tick_params(labelsize=0.9 * size)
            ax.set_yticks([])
        for name, counts in self.chosen(choice).items():
            y, i = density(counts, x, choice.sd), self.names.index(name)
            if i == 0:
                axes[0].fill_between(unit * x, y, facecolor="0.72", edgecolor="0.4", lw=0.06 * size, label=name)
            else:
                axes[0].plot(unit * x, y, color=colour, ls=STYLES[(i - 1) % len(STYLES)], lw=0.17 * size, label=name)
        heights = np.arange(len(rows))
        axes[1].errorbar(unit * rows["mean"], heights, xerr=unit * rows["sd"].fillna(0), fmt="o", color="0.15",
                         ms=0.3 * size, lw=0.08 * size, label="measured, ± SD")  # fmt: skip
        if len(rows) <= MANY_STUDIES:
            for height, row in zip(heights, rows.itertuples(), strict=True):
                side = 1 if row.mean < sum(window) / 2 else -1  # names point inwards
                end = unit * (row.mean + side * (0 if np.isnan(row.sd) else row.sd))
                axes[1].annotate(row.name, (end, height), (0.5 * side * size, 0), textcoords="offset points",
                                 va="center", ha="left" if side > 0 else "right",
                                 size=min(0.75 * size, 7 * size / max(len(rows), 1)))  # fmt: skip
        if not len(rows):
            axes[1].text(0.5, 0.5, "no study chosen", transform=axes[1].transAxes, ha="center", size=0.9 * size)
        axes[0].set(ylim=(0, None), xlim=(unit * window[0], unit * window[1]))
        axes[0].margins(y=0.05)
        axes[0].tick_params(bottom=False)
        axes[0].spines["bottom"].set_visible(False)
        axes[1].set_ylim(-0.8, max(len(rows) - 0.2, 0.8))
        axes[1].set_xlabel(quantity.label, size=size)
        handles, labels = (sum(pair, []) for pair in zip(*(ax.get_legend_handles_labels() for ax in axes), strict=True))
        fig.legend(handles, labels, loc="upper center", ncols=max(len(labels), 1), frameon=False, fontsize=0.85 * size,
                   columnspacing=1.2, handlelength=1.6)  # fmt: skip
