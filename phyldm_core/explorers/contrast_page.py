"""What the contrast explorer looks like: two pictures, the controls beside them, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable

import ipywidgets as widgets
import numpy as np

from ..figures.style import percentile_window
from ..physics import Protocol, Sequence
from .console import CLINIC, NAMES, OWN, PRESETS, RANGES
from .controls import Explorer, Task, letters

CONTROLS = 25  # times the height of letters, width of a control
ONE_HIGH, TWO_HIGH = "max(420px, 60vh)", "max(400px, 48vh)"  # of the window, so that a projector's image is large
PLOT_WIDTH = "max(430px, 54vh)"
NARROW = 1130  # pixels; below it, a notebook beside JupyterLab's files, image, curves and controls need two rows
SHEET = f"""<style>
.phyldm.contrasts {{ container-type: inline-size; }}
@container (max-width: {NARROW}px) {{
  .phyldm .view {{ display: grid !important; flex: 1;
                   grid-template: "pictures numbers" "plot plot" / auto minmax(0, 1fr); }}
  .phyldm .view.two {{ grid-template: "pictures" "plot" "numbers" / minmax(0, 1fr); }}
  .phyldm .beside {{ display: contents !important; }}
  .phyldm .view .pictures {{ grid-area: pictures; }} .phyldm .view .plot {{ grid-area: plot; }}
  .phyldm .view .read {{ grid-area: numbers; overflow: hidden; }}
  .phyldm .view .widget-image.side {{ height: clamp(280px, 100vh - 470px, 60vh) !important; }}
  .phyldm .view.two .widget-image.side {{ height: auto !important; width: calc(50% - 9px) !important; }}
  .phyldm .view:not(.two) table.numbers {{ font-size: 12.5px !important; }}
  .phyldm .view:not(.two) table.numbers :is(td, th) {{ padding-right: 5px; white-space: normal; }}
}}
</style>"""
"""Where the page is narrow, the numbers go beside a smaller image and the curves below it: all are seen together."""
HINT = (
    "Click on the image: a voxel. Drag on it: window (left and right) and level (up and down). "
    "Keyboard: Tab to a control, then the arrow keys."
)


class Side:
    """One of the two protocols, with its window and its picture.

    ``window`` is (black, white), or None where it follows the image.
    """

    def __init__(self, letter: str, protocol: Protocol):
        self.letter, self.protocol = letter, protocol
        self.window: tuple[float, float] | None = None
        self.signal: np.ndarray | None = None  # what is shown
        layout = widgets.Layout(height=ONE_HIGH, width="auto", flex="0 0 auto")
        self.image = widgets.Image(format="png", layout=layout)
        self.image.add_class("side")

    def levels(self, tissue: np.ndarray) -> tuple[float, float]:
        """Black and white, as set or as the image asks for."""
        return self.window or percentile_window(self.signal, tissue)


class ContrastPage(Explorer):
    """Controls and pictures as attributes, arranged; what they do is :class:`contrasts.ContrastExplorer`'s.

    Parameters
    ----------
    names
        Of the subjects to choose from.
    """

    def __init__(self, names: Iterable[str]):
        self.sides = (Side("A", CLINIC["T1w MPRAGE"]), Side("B", CLINIC["T2w spin echo"]))

        def look(width=CONTROLS):
            return {"layout": widgets.Layout(width=letters(width)), "style": {"description_width": letters(7)}}

        def setting(name):
            low, high = RANGES[name]
            about = {"description": f"{NAMES[name]} (s)", "readout_format": ".3g"} | look()
            if name == "flip_angle_deg":
                about["description"] = "flip (°)"
                return widgets.FloatSlider(25, min=low, max=high, step=1, **about)
            ends = {"min": np.log10(low), "max": np.log10(high)}
            return widgets.FloatLogSlider(getattr(self.sides[0].protocol, name), base=10, step=0.01, **ends, **about)

        def toggles(description, options, width, button, about):
            layout = {"width": letters(width)}
            style = {"button_width": letters(button), "description_width": letters(about)}
            return widgets.ToggleButtons(options=options, description=description, layout=layout, style=style)

        def button(text):
            return widgets.Button(description=text, layout=widgets.Layout(width=letters(5)))

        self.subject = widgets.Dropdown(options=list(names), description="subject", **look())
        self.slice = widgets.IntSlider(1, min=1, max=1, description="slice ↑", **look())
        self.compare = widgets.Checkbox(False, description="two protocols", indent=False, **look(10.5))
        self.which = toggles("set", ["A", "B"], 14, 4, 3)
        self.which.disabled = True
        self.preset = widgets.Dropdown(options=[OWN, *PRESETS], description="preset", **look())
        self.sequence = widgets.Dropdown(options=[s.value for s in Sequence], description="sequence", **look())
        self.te, self.tr, self.ti, self.flip_angle_deg = (setting(name) for name in NAMES)
        self.along = toggles("curve over", [("TI", "ti")], CONTROLS, 5, 7)
        self.auto = widgets.Checkbox(True, description="window follows the image", indent=False, **look())
        fine = {"step": 0.001, "readout_format": ".3f"}
        self.level = widgets.FloatSlider(0.5, min=0, max=1.2, description="level", **fine, **look())
        self.width = widgets.FloatSlider(1, min=0.005, max=2, description="width", **fine, **look())
        self.row = widgets.IntSlider(0, min=0, max=1, description="row ↓", **look())
        self.column = widgets.IntSlider(0, min=0, max=1, description="column →", **look())
        about = {"description": "own maps", "placeholder": "folder of PDmap …"}
        self.folder, self.open_folder = widgets.Text(**about, **look(CONTROLS - 5.5)), button("Open")
        self.seed = widgets.BoundedIntText(1, min=0, max=2**31 - 1, description="seed", **look(CONTROLS - 5.5))
        self.draw_brain = button("Draw")
        self.file_name = widgets.Text("contrast", description="file", **look(CONTROLS - 11))
        self.save_png, self.save_nifti = button("PNG"), button("NIfTI")
        self.plot = widgets.Image(format="png", layout=widgets.Layout(width=PLOT_WIDTH))
        self.numbers, self.status = widgets.HTML(), widgets.HTML()
        self.task = Task(self._say)
        super().__init__([self._arrange()])
        self.add_class("contrasts")

    def _arrange(self):
        controls = [self.subject, self.slice, widgets.HBox([self.compare, self.which]), self.preset, self.sequence]
        controls += [self.ti, self.te, self.tr, self.flip_angle_deg, self.along]
        controls += [self.auto, self.level, self.width, self.row, self.column]
        controls += [widgets.HBox([self.folder, self.open_folder]), widgets.HBox([self.seed, self.draw_brain])]
        controls += [widgets.HBox([self.file_name, self.save_png, self.save_nifti]), self.task]
        self.sides[1].image.layout.display = "none"
        apart = widgets.Layout(flex_flow="row wrap", grid_gap="10px", align_items="flex-start", overflow="visible")
        self.pictures = widgets.Box([side.image for side in self.sides], layout=apart)
        self.beside = widgets.Box([self.plot, self.numbers], layout=widgets.Layout(flex_flow="column"))
        self.view = widgets.Box([self.pictures, self.beside], layout=apart)
        parts = {"pictures": self.pictures, "beside": self.beside, "view": self.view}
        for name, part in (parts | {"plot": self.plot, "read": self.numbers}).items():
            part.add_class(name)
        sheet = widgets.HTML(SHEET, layout=widgets.Layout(display="none"))
        column = widgets.VBox(controls, layout=widgets.Layout(flex="0 0 auto"))
        whole = widgets.Layout(grid_gap="10px", align_items="flex-start", overflow="visible")
        hint = widgets.HTML(f'<span style="color: #555; font-size: 14px">{HINT}</span>')
        return widgets.VBox([sheet, self.status, widgets.HBox([column, self.view], layout=whole), hint])
