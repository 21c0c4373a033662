"""The histogram explorer: what a source holds of one tissue, beside what was measured in living brains.

Everything is counted once, finely, when the explorer is made. A histogram smoothed by any bandwidth, the
median and the distance between two sources then follow from a few thousand counts, whatever is dragged.
The rules of :mod:`phyldm_core.widgets` hold: pictures as PNG bytes, state in plain Python.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas
from IPython.display import Image as StillImage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .curves import CORE_BAND, TISSUE_NAMES, studies
from .display import FIGURE_WIDTH, TISSUE_COLOURS, quantity_of, save_figure, to_png
from .errors import BadInput
from .evaluation import segmented_values
from .physics import TissueMaps
from .tissue import OUTER_BAND
from .widgets import Explorer

EDGES = np.geomspace(1e-3, 20, 2001)
"""s, or of water: bins half a per cent wide, so that a distance is good to about that."""
CENTRES = np.sqrt(EDGES[1:] * EDGES[:-1])
FIELDS = ("1.5", "3", "7")  # tesla
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
    """:func:`phyldm_core.metrics.histogram_distance` from counts: Wasserstein-1 over the median of the reference."""
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
    rows = studies(tissue, quantity, field_T)  # read from a file: too slow for every step of a slider
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
        self.names = tuple(sources)
        rng = np.random.default_rng(0)  # 0: which slices come first is no result
        self.counts = {}
        for name, maps in sources.items():
            order = rng.permutation(len(maps.pd))
            self.counts[name] = {key: rows[order] for key, rows in count_slices(maps).items()}

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


# --- the explorer -------------------------------------------------------------------------------


class HistogramExplorer(Explorer):
    """Choose tissue, property, studies and sources, and see the histograms beside what was measured.

    Parameters
    ----------
    sources
        Name → maps, each ``(n, y, x)``, as for :class:`Histograms`.
    figures_dir
        Where the publication button writes.
    """

    def __init__(self, sources: Mapping[str, TissueMaps], figures_dir: str | Path = "figures"):
        self.figures_dir = Path(figures_dir)
        self.canvas = FigureCanvasAgg(Figure(figsize=(7.6, 5.2), dpi=100))
        self._font = ImageFont.truetype(findfont("DejaVu Sans Mono"), 14)
        self.histograms, self.problem = None, ""
        try:
            self.histograms = Histograms(sources)
        except ValueError as error:
            self.problem = str(error)
        names = self.histograms.names if self.histograms else ()
        self.choice = Choice(sources=names)
        self._build(names)
        super().__init__([self._arrange()])
        self._on_studies_changed()

    def __repr__(self):
        return f"HistogramExplorer({self.choice}); run this notebook to use it"

    # What is shown ------------------------------------------------------------------------------------------

    def show(self, **chosen) -> None:
        """Set any field of :class:`Choice` from code: moves the controls and repaints."""
        choice = replace(self.choice, **chosen)
        with self._silence():
            for name in ("tissue", "quantity", "field_T", "n_slices", "bandwidth"):
                if name in chosen:
                    getattr(self, name).value = chosen[name]
            for name, box in self.ticks.items():
                box.value = name in choice.sources
        self.choice = choice
        self._on_studies_changed(keep="cited" in chosen)

    def still(self) -> StillImage:
        """What the explorer shows now as one picture, for readers of a page without a running kernel.

        Raises
        ------
        ValueError
            Where there is nothing to show; the sentence is the status line's.
        """
        if wrong := self._problem():
            raise ValueError(wrong)
        picture = Image.open(io.BytesIO(self.image.value))
        lines = [*textwrap.wrap(self._verdict(), 86), "", *self._summary()]
        page = Image.new("RGB", (picture.width, picture.height + 20 + 20 * len(lines)), "white")
        page.paste(picture, (0, 0))
        ImageDraw.Draw(page).multiline_text((16, picture.height + 8), "\n".join(lines), "black", self._font, spacing=5)
        return StillImage(to_png(np.asarray(page)), alt=f"Histograms of {self.choice}. {self._verdict()}")

    def publish(self, name: str) -> tuple[Path, ...]:
        """The picture as a figure in the house size, with caption and alt text: the files written."""
        fig = Figure(figsize=(FIGURE_WIDTH, 3.6))
        self.histograms.paint(fig, self.choice, size=8)
        rows = self.choice.studies()
        table = self.histograms.table(self.choice)
        counted = ", ".join(f"{source} ({row.slices:.0f} slices)" for source, row in table.iterrows())
        measured = "; ".join(f"{row.name} {row.mean * self._unit:.3g}" for row in rows.itertuples())
        caption = (
            f"{self.choice}: {counted}; Gaussian kernel, SD {self.choice.sd * self._unit:.3g}. "
            f"{self._verdict()} Bands: {', '.join(self.choice.bands()) or 'none'}. "
            f"Measured, {quantity_of(self.choice.quantity).label}: {measured or 'no study chosen'}."
        )
        alt = f"Densities of {self.choice} from {', '.join(table.index)}, above {len(rows)} measured values."
        return save_figure(fig, self.figures_dir, name, caption=caption, alt=alt)

    # Controls -----------------------------------------------------------------------------------------------

    def _build(self, names: tuple[str, ...]):
        wide = {"layout": widgets.Layout(width="330px"), "style": {"description_width": "90px"}}
        buttons = {"style": {"button_width": "68px", "description_width": "90px"}}
        self.tissue = widgets.ToggleButtons(options=["WM", "GM", "CSF"], description="tissue", **buttons)
        self.quantity = widgets.ToggleButtons(options=["T1", "T2", "PD"], description="property", **buttons)
        fields = [(f"{field} T", field) for field in FIELDS]
        self.field_T = widgets.ToggleButtons(options=fields, value="3", description="studies at", **buttons)
        self.ticks = {name: widgets.Checkbox(True, description=name, indent=False) for name in names}
        others = [self.histograms.n_slices(name) for name in names[1:]] if self.histograms else []
        most = max(others, default=1)
        self.n_slices = widgets.IntSlider(most, min=1, max=max(most, 2), description="slices", **wide)
        self.n_slices.disabled = not others
        self.bandwidth = widgets.FloatLogSlider(
            2.0, base=10, min=-0.3, max=1.5, step=0.02, description="bandwidth (%)", readout_format=".2g", **wide
        )
        self.cited = widgets.SelectMultiple(rows=8, description="studies", **wide)
        shorter = wide | {"layout": widgets.Layout(width="240px")}
        self.file_name = widgets.Text("histogram_wm_t1", description="figure", **shorter)
        self.save = widgets.Button(description="Save", icon="download", layout=widgets.Layout(width="86px"))
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="760px", object_fit="contain"))
        self.image.tooltip = "densities of one tissue property, above the values measured in living brains"
        self.numbers, self.references, self.status = widgets.HTML(), widgets.HTML(), widgets.HTML()

        for name in ("tissue", "quantity", "field_T"):
            getattr(self, name).observe(lambda change, name=name: self._on_what(name), "value")
        for name in ("n_slices", "bandwidth", "cited"):
            getattr(self, name).observe(lambda change, name=name: self._on_how(name), "value")
        for box in self.ticks.values():
            box.observe(lambda change: self._on_ticks(), "value")
        self.save.on_click(self._on_save)

    def _arrange(self):
        ticks = widgets.HBox(list(self.ticks.values()), layout=widgets.Layout(flex_flow="row wrap", width="330px"))
        for box in self.ticks.values():
            box.layout.width = "105px"
        controls = [self.tissue, self.quantity, self.field_T, ticks, self.n_slices, self.bandwidth, self.cited]
        controls += [widgets.HBox([self.file_name, self.save])]
        side = widgets.VBox([self.image, self.numbers])
        panels = widgets.Box([widgets.VBox(controls), side], layout=widgets.Layout(flex_flow="row wrap"))
        return widgets.VBox([self.status, panels, self.references])

    def _on_what(self, name: str):
        if self._listening:
            self.choice = replace(self.choice, **{name: getattr(self, name).value})
            self._on_studies_changed()

    def _on_how(self, name: str):
        if self._listening:
            self.choice = replace(self.choice, **{name: getattr(self, name).value})
            self._repaint()

    def _on_ticks(self):
        if self._listening:
            ticked = tuple(name for name, box in self.ticks.items() if box.value)
            self.choice = replace(self.choice, sources=ticked)
            self._repaint()

    def _on_studies_changed(self, keep: bool = False):
        """Another tissue, property or field has other studies: all of them are chosen at first."""
        rows = self.choice.all_studies().drop_duplicates("name")
        names = tuple(sorted(rows.name))
        cited = tuple(n for n in self.choice.cited if n in names) if keep else names
        self.choice = replace(self.choice, cited=cited)
        with self._silence():
            self.cited.options, self.cited.value = names, cited
            self.field_T.disabled = self.choice.quantity == "PD"
            self.file_name.value = f"histogram_{self.choice.tissue}_{self.choice.quantity}".lower()
        self._repaint()

    def _on_save(self, button=None):
        name = self.file_name.value.strip() or "histogram"
        if wrong := self._problem():
            self._say(wrong, wrong=True)
            return
        try:
            files = self.publish(name)
        except (BadInput, ValueError) as error:
            self._say(str(error), wrong=True)
        else:
            self._say(f"Saved {files[0]}, with .pdf and caption")

    # Painting -----------------------------------------------------------------------------------------------

    @property
    def _unit(self) -> float:
        return quantity_of(self.choice.quantity).per_unit

    def _problem(self) -> str:
        if self.problem:
            return self.problem
        if not self.choice.sources:
            return f"No source is ticked: tick at least one of {', '.join(self.histograms.names)}."
        if not self.histograms.chosen(self.choice):
            return f"No {TISSUE_NAMES[self.choice.tissue]} in the chosen slices: take more of them, or another source."
        return ""

    def _repaint(self):
        if not self._listening:
            return
        if wrong := self._problem():
            self.image.value = to_png(np.full((520, 760, 3), 255, np.uint8))
            self.numbers.value = self.references.value = ""
            self._say(wrong, wrong=True)
            return
        self.histograms.paint(self.canvas.figure, self.choice)
        self.canvas.draw()
        self.image.value = to_png(np.asarray(self.canvas.buffer_rgba())[..., :3])
        self.numbers.value = f'<pre style="font-size: 14px">{"<br>".join(map(escape, self._summary()))}</pre>'
        self.references.value = self._citations()
        self._say(self._verdict())

    def _verdict(self) -> str:
        """One sentence: how far each source is from the first one ticked."""
        table = self.histograms.table(self.choice)
        reference, *others = table.index
        if not others:
            return f"{self.choice}: only {reference} is shown, so there is nothing to compare it with."
        far = ", ".join(f"{name} {table.distance[name]:.3f}" for name in others)
        return f"{self.choice}: distance from {reference} (Wasserstein-1 / median): {far}."

    def _summary(self) -> list[str]:
        """Lines of text, a source each: slices, voxels, median and quartiles, shares in the bands."""
        table, unit = self.histograms.table(self.choice), self._unit
        label = quantity_of(self.choice.quantity).label.replace("$", "").replace("_", "")
        shares = list(self.choice.bands())
        lines = [f"{'':<11}{'slices':>6}{'voxels':>9}  {label + ', quartiles':<23}" + "  ".join(shares)]
        for name, row in table.iterrows():
            low, middle, high = (unit * row[c] for c in ("lower quartile", "median", "upper quartile"))
            text = f"{name[:10]:<11}{row.slices:>6.0f}{row.voxels:>9.0f}  {f'{low:.3g}, {middle:.3g}, {high:.3g}':<23}"
            lines.append(text + "  ".join(f"{row[c]:.0%}".rjust(len(c)) for c in shares))
        return lines

    def _citations(self) -> str:
        rows, unit = self.choice.studies(), self._unit
        if not len(rows):
            return f"<p>No study of {self.choice} is chosen, or the table holds none.</p>"
        items = []
        for row in rows.itertuples():
            sd = "" if np.isnan(row.sd) else f" ± {unit * row.sd:.3g}"
            doi = f", doi {row.doi}" if isinstance(row.doi, str) else ""
            items.append(f"<li>{unit * row.mean:.3g}{sd}: {escape(row.citation + doi)}</li>")
        label = escape(quantity_of(self.choice.quantity).label.replace("$", "").replace("_", ""))
        return f"<p>Measured in vivo, {label}, smallest first:</p><ol>{''.join(items)}</ol>"

    def _say(self, text: str, wrong: bool = False):
        colour = "#b03000" if wrong else "inherit"
        self.status.value = f'<span role="status" style="font-size: 16px; color: {colour}">{escape(text)}</span>'
