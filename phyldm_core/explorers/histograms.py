"""The histogram explorer: what a source holds of one tissue, beside what was measured in living brains.

The rules of :mod:`.controls` hold: pictures as PNG bytes, state in plain Python. What is painted is
counted once, in :mod:`.histogram_counts`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from IPython.display import Image as StillImage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from ..figures.curves import TISSUE_NAMES
from ..figures.style import FIGURE_WIDTH, quantity_of, save_figure, to_png
from ..machine.errors import BadInput
from ..physics import TissueMaps
from .controls import Explorer, Task, in_turn, letters, to_html
from .histogram_counts import Choice, Histograms

FIELDS = ("1.5", "3", "7")  # tesla


class HistogramExplorer(Explorer):
    """Choose tissue, property, studies and sources, and see the histograms beside what was measured.

    Parameters
    ----------
    sources
        Name → maps, each ``(n, y, x)``, as for :class:`Histograms`; a function of a progress report in their place
        makes them once its box is ticked, and a :class:`BadInput` says why there are none
        (:func:`people.find_populations`).
    figures_dir
        Where the publication button writes.
    """

    def __init__(self, sources: Mapping[str, TissueMaps | Callable | BadInput], figures_dir: str | Path = "figures"):
        self.figures_dir = Path(figures_dir)
        self.canvas = FigureCanvasAgg(Figure(figsize=(7.6, 5.2), dpi=100))
        self._font = ImageFont.truetype(findfont("DejaVu Sans Mono"), 14)
        self.later = {name: source for name, source in sources.items() if callable(source)}
        self.missing = {name: str(source) for name, source in sources.items() if isinstance(source, BadInput)}
        ready = {name: maps for name, maps in sources.items() if name not in {*self.later, *self.missing}}
        self.histograms = Histograms(ready) if ready else None
        self.choice = Choice(sources=tuple(ready))
        self._build(tuple(sources))
        super().__init__([self._arrange()])
        self._on_studies_changed()
        for sentence in list(self.missing.values())[:1]:
            self._say(sentence, wrong=True)

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
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.ljust, row, widths)) for row in rows]
        lines = [*textwrap.wrap(self._verdict(), 86), "", *table]
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
        return save_figure(fig, self.figures_dir, name, caption=caption, alt=alt, pdf=True)

    # Controls -----------------------------------------------------------------------------------------------

    def _build(self, boxes: tuple[str, ...]):
        wide = {"layout": widgets.Layout(width=letters(24.5)), "style": {"description_width": letters(7.4)}}
        buttons = {"style": {"button_width": letters(4.8), "description_width": letters(7.4)}}
        self.tissue = widgets.ToggleButtons(options=["WM", "GM", "CSF"], description="tissue", **buttons)
        self.quantity = widgets.ToggleButtons(options=["T1", "T2", "PD"], description="property", **buttons)
        fields = [(f"{field} T", field) for field in FIELDS]
        self.field_T = widgets.ToggleButtons(options=fields, value="3", description="studies at", **buttons)
        names = self.choice.sources
        self.ticks = {name: widgets.Checkbox(name in names, description=name, indent=False) for name in boxes}
        self.task = Task(self._say)
        others = [self.histograms.n_slices(name) for name in names[1:]]
        most = max(others, default=1)
        self.n_slices = widgets.IntSlider(most, min=1, max=max(most, 2), description="slices", **wide)
        self.n_slices.disabled = not others
        self.bandwidth = widgets.FloatLogSlider(
            2.0, base=10, min=-0.3, max=1.5, step=0.02, description="bandwidth (%)", readout_format=".2g", **wide
        )
        self.cited = widgets.SelectMultiple(rows=8, description="studies", **wide)
        shorter = wide | {"layout": widgets.Layout(width=letters(19))}
        self.file_name = widgets.Text("histogram_wm_t1", description="figure", **shorter)
        self.save = widgets.Button(description="Save", layout=widgets.Layout(width=letters(5)))
        beside = {"flex": "1 1 440px", "min_width": "440px", "max_width": "max(760px, 88vh)"}  # in a notebook, too
        self.image = widgets.Image(format="png", layout=widgets.Layout(**beside))
        self.numbers, self.references, self.status = widgets.HTML(), widgets.HTML(), widgets.HTML()

        for name in ("tissue", "quantity", "field_T"):
            getattr(self, name).observe(lambda change, name=name: self._on_what(name), "value")
        for name in ("n_slices", "bandwidth", "cited"):
            getattr(self, name).observe(lambda change, name=name: self._on_how(name), "value")
        for name, box in self.ticks.items():
            box.observe(lambda change, name=name: self._on_tick(name), "value")
        self.save.on_click(self._on_save)

    def _arrange(self):
        wide = widgets.Layout(flex_flow="row wrap", width=letters(24.5))
        ticks = widgets.HBox(list(self.ticks.values()), layout=wide)
        for box in self.ticks.values():
            box.layout.width = letters(7.8)
        controls = [self.tissue, self.quantity, self.field_T, ticks, self.n_slices, self.bandwidth, self.cited]
        controls += [widgets.HBox([self.file_name, self.save]), self.task]
        column = widgets.VBox(controls, layout=widgets.Layout(flex="0 0 auto"))
        apart = widgets.Layout(flex_flow="row wrap", grid_gap="12px", align_items="flex-start")
        panels = widgets.Box([column, self.image], layout=apart)
        return widgets.VBox([self.status, panels, self.numbers, self.references])

    @in_turn
    def _on_what(self, name: str):
        if self._listening:
            self.choice = replace(self.choice, **{name: getattr(self, name).value})
            self._on_studies_changed()

    @in_turn
    def _on_how(self, name: str):
        if self._listening:
            self.choice = replace(self.choice, **{name: getattr(self, name).value})
            self._repaint()

    @in_turn
    def _on_tick(self, name: str):
        """Draw what is ticked; what has not been made yet is made beside, with a progress bar."""
        if not self._listening:
            return
        if name in self.later and self.ticks[name].value:
            with self._silence():
                self.ticks[name].value = False  # until it is there
            self.task.start(f"Making {name}", self.later[name], lambda maps: self._add(name, maps))
            return
        if name in self.missing and self.ticks[name].value:
            with self._silence():
                self.ticks[name].value = False
            self._say(self.missing[name], wrong=True)
            return
        ticked = tuple(name for name, box in self.ticks.items() if box.value)
        self.choice = replace(self.choice, sources=ticked)
        self._repaint()

    def _add(self, name: str, maps: TissueMaps):
        if self.histograms is None:
            self.histograms = Histograms({name: maps})
        else:
            self.histograms.add(name, maps)
            with self._silence():
                self.n_slices.max = max(self.n_slices.max, len(maps.pd))
                self.n_slices.disabled = False
        del self.later[name]
        self.ticks[name].value = True

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
        if not self.ticks:
            return "There is no source to show: give the maps of at least one."
        if not self.choice.sources:
            return f"No source is ticked: tick at least one of {', '.join(self.ticks)}."
        if not self.histograms.chosen(self.choice):
            return f"No {TISSUE_NAMES[self.choice.tissue]} in the chosen slices: take more of them, or another source."
        return ""

    @in_turn
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
        self.numbers.value = to_html(self._rows())
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

    def _rows(self) -> list[tuple[str, ...]]:
        """A heading, then a row of text for each source: slices, voxels, quartiles, shares in the bands."""
        table, unit = self.histograms.table(self.choice), self._unit
        label = quantity_of(self.choice.quantity).label.replace("$", "").replace("_", "")
        shares = list(self.choice.bands())
        rows = [("", "slices", "voxels", f"{label}, quartiles", *shares)]
        for name, row in table.iterrows():
            low, middle, high = (unit * row[c] for c in ("lower quartile", "median", "upper quartile"))
            counted = (f"{row.slices:.0f}", f"{row.voxels:.0f}", f"{low:.3g}, {middle:.3g}, {high:.3g}")
            rows.append((name, *counted, *(f"{row[c]:.0%}" for c in shares)))
        return rows

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
