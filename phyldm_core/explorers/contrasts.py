"""The contrast explorer: one person's tissue under any protocol, or under two, with the curves that explain it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import Image as StillImage
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from ..figures.style import to_png
from ..machine.errors import BadInput
from ..machine.files import write_atomically
from ..physics import Protocol, Sequence, TissueMaps, render
from ..scans.maps import render_volume, scan_sidecar
from ..scans.nifti import write_image
from ..tissue import three_medians
from .console import NAMES, OWN, PRESETS, STARTS_WITH, move, set_by
from .contrast_page import ONE_HIGH, TWO_HIGH, ContrastPage, Side
from .controls import Mouse, in_turn, to_html
from .people import TissueStack, draw_from, of_maps, read_subject
from .pictures import HEIGHT, paint_slice
from .readings import PLOT, SignalCurves, readings


class ContrastExplorer(ContrastPage):
    """Drag TE, TR, TI or the flip angle and see the image, the signal curves, the null points and a voxel's numbers.

    Parameters
    ----------
    subjects
        PD (water = 1), T1 and T2 (s) of one slice ``(y, x)`` or a stack ``(z, y, x)``, y towards anterior, x towards
        the patient's right; or a :class:`people.TissueStack`; or several of them by name. A function in their place
        makes one when it is chosen, and a :class:`BadInput` says why there is none (:func:`people.find_subjects`).
        What cannot be shown is refused in the status line.
    voxel_mm
        In-plane voxel size of plain maps, one number or (y, x).
    tissues
        PD, T1 (s), T2 (s) by name, for curves and numbers; default: the 3 T in-vivo medians of WM, GM and CSF.
    noise_sd
        Of the image, as a fraction of the signal of water at PD 1; the CNR is in its units.
    weights_dir
        Exported weights or a run, from which new brains are drawn.
    """

    def __init__(
        self,
        subjects: TissueMaps | TissueStack | Mapping[str, TissueMaps | TissueStack | Callable | BadInput],
        voxel_mm: float | tuple[float, float] = 2.0,
        *,
        tissues: Mapping[str, tuple[float, float, float]] | None = None,
        noise_sd: float = 0.01,
        weights_dir: str | Path = "runs/laptop",
    ):
        self.subjects = dict(subjects) if isinstance(subjects, Mapping) else {"subject": subjects}
        self.voxel_mm, self.noise_sd, self.weights_dir = voxel_mm, noise_sd, weights_dir
        self.curves = SignalCurves(tissues or three_medians())
        self.person: TissueStack | None = None
        super().__init__(self.subjects)
        self.side = self.sides[0]
        self._connect()
        if not self.subjects:
            self._refuse("There is no subject to show: give maps of at least one.")
        else:
            self._take(next(iter(self.subjects)), at_once=True)

    def __repr__(self):
        return f"ContrastExplorer({self.protocol}); run this notebook to use it"

    # What is shown ------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> Protocol:
        """Of the side whose controls are shown."""
        return self.side.protocol

    @property
    def image(self) -> widgets.Image:
        return self.side.image

    @property
    def maps(self) -> TissueMaps | None:
        """The slice ``(y, x)`` that is shown."""
        return TissueMaps(*(m[self.slice.value - 1] for m in self.person.maps)) if self.person else None

    @property
    def pixel(self) -> tuple[int, int]:
        """Index ``(y, x)`` of the voxel under the cross; its sliders count from the top left of the view."""
        n_y, n_x = self.maps.pd.shape
        return n_y - 1 - self.row.value, n_x - 1 - self.column.value

    @in_turn
    def show(self, protocol: Protocol, message: str = "") -> None:
        """Set the protocol of the current side from code: moves the controls and repaints."""
        p = self.side.protocol = protocol
        if p.as_published:
            message = f"As published, TI {p.ti:g} s ≥ TR {p.tr:g} s: no scanner can run this."
        with self._silence():
            self.sequence.value = p.sequence.value
            for name in NAMES:
                slider, value = getattr(self, name), getattr(p, name)
                slider.disabled = name not in set_by(p.sequence)
                slider.layout.display = "none" if slider.disabled else ""
                if not slider.disabled and abs(slider.value - value) > 0.005 * value:  # not what a hand rounds
                    slider.value = value
            self.preset.value = next((name for name, preset in PRESETS.items() if preset == p), OWN)
            choices = [(NAMES[name], name) for name in set_by(p.sequence)]
            if choices != list(self.along.options):
                self.along.options = choices
        self._repaint(message)

    def choose(self, name: str) -> None:
        """Show another subject, from code; a name nobody has is told in the status line."""
        if name not in self.subjects:
            self._say(f"There is no subject {name!r}: choose one of {', '.join(self.subjects)}.", wrong=True)
        else:
            self.subject.value = name
            self.task.wait()

    def still(self) -> StillImage:
        """What the explorer shows now as one picture, for readers of a page without a running kernel.

        Raises
        ------
        ValueError
            Where the chosen subject cannot be rendered; the sentence is the status line's.
        """
        if self.person is None:
            raise ValueError(self._problem)
        shown = [side.image for side in self.sides if side is self.side or self.compare.value]
        pictures = [Image.open(io.BytesIO(w.value)) for w in (*shown, self.plot)]
        page = Image.new("RGB", (sum(p.width + 12 for p in pictures), HEIGHT), "white")
        left = 0
        for picture in pictures:
            page.paste(picture, (left, 0))
            left += picture.width + 12
        left -= PLOT[0] - 10
        draw, font = ImageDraw.Draw(page), ImageFont.truetype(findfont("DejaVu Sans"), 15)
        columns = (0, 160, 330, 480) if self.compare.value else (0, 170, 340, 510)
        for line, row in enumerate(self._table()):
            for text, x in zip(row, columns, strict=False):
                draw.text((left + x, PLOT[1] - 2 + 18 * line), text, "black", font)
        return StillImage(to_png(np.asarray(page)), alt=f"Simulated image, {self.protocol}, with signal curves")

    def _connect(self):
        self.subject.observe(lambda change: self._listening and self._take(change.new), "value")
        self.compare.observe(self._on_compare, "value")
        self.which.observe(self._on_which, "value")
        self.preset.observe(self._on_preset, "value")
        self.sequence.observe(self._on_sequence, "value")
        for name in NAMES:
            getattr(self, name).observe(lambda change, name=name: self._on_setting(name), "value")
        for control in (self.slice, self.along, self.row, self.column):
            control.observe(lambda change: self._repaint(), "value")
        self.auto.observe(lambda change: self._on_window(), "value")
        for control in (self.level, self.width):  # which a window that follows the image moves, to be sent back
            control.observe(lambda change: self.auto.value or self._on_window(), "value")
        for side in self.sides:
            side.mouse = Mouse(side.image, self._on_click, lambda dy, dx, side=side: self._on_drag(side, dy, dx),
                               lambda side=side: self._on_press(side))  # fmt: skip
        self.open_folder.on_click(self._on_open)
        self.draw_brain.on_click(self._on_draw)
        self.save_png.on_click(lambda button: self._save(".png"))
        self.save_nifti.on_click(lambda button: self._save(".nii.gz"))

    # Subjects -----------------------------------------------------------------------------------------------

    def _take(self, name: str, at_once: bool = False):
        """Show a subject; one that must be made first is made beside, with a progress bar, or ``at_once``."""
        source = self.subjects[name]
        if callable(source) and not at_once:

            def work(progress):
                try:
                    return source(progress)
                except BaseException:
                    with self._silence():
                        self.subject.value = self._name  # who is still shown, so that this one can be chosen again
                    raise

            self.task.start(f"Opening {name}", work, lambda person: self._keep(name, person))
            return
        self._name = name
        try:
            if isinstance(source, BadInput):
                raise source
            if callable(source):
                self._keep(name, source(lambda share: None))
            else:
                self._open_person(source if isinstance(source, TissueStack) else of_maps(source, self.voxel_mm))
        except BadInput as error:
            self._refuse(str(error))

    @in_turn
    def _keep(self, name: str, person: TissueStack):
        """A person is made once, and offered from then on."""
        self.subjects[name], self._name = person, name
        with self._silence():
            self.subject.options = list(self.subjects)
            self.subject.value = name
        self._open_person(person)

    def _open_person(self, person: TissueStack):
        self.person, self._problem = person, ""
        n_z, n_y, n_x = person.maps.pd.shape
        with self._silence():
            for slider, n in ((self.row, n_y), (self.column, n_x)):
                slider.max = n - 1
                slider.value = n // 2
            self.slice.max = n_z
            self.slice.value = n_z // 2 + 1
            self.slice.layout.display = "" if n_z > 1 else "none"
        self.show(self.protocol)

    def _refuse(self, problem: str):
        self.person, self._problem = None, problem
        for side in self.sides:
            side.image.value = to_png(np.zeros((HEIGHT, HEIGHT * 5 // 7, 3), np.uint8))
        self.plot.value, self.numbers.value = to_png(np.full((1, 1, 3), 255, np.uint8)), ""
        self._say(problem, wrong=True)

    def _add(self, name: str, work: Callable, what: str):
        """Make a subject with ``work`` in the background, then offer and show it."""
        self.task.start(what, work, lambda person: self._keep(name, person))

    def _on_open(self, button=None):
        folder = Path(os.path.expanduser(self.folder.value.strip()))  # Path's own fails for a user nobody knows
        if not self.folder.value.strip():
            self._say("Type the folder of your maps first: one person's PDmap, T1map and T2map.", wrong=True)
        else:
            self._add(folder.name or str(folder), lambda progress: read_subject(folder), f"Reading {folder}")

    def _on_draw(self, button=None):
        seed = self.seed.value
        work = lambda progress: draw_from(self.weights_dir, seed, progress)  # noqa: E731
        self._add(f"drawn, seed {seed}", work, f"Drawing a brain from seed {seed}")

    # Protocols ----------------------------------------------------------------------------------------------

    def _on_compare(self, change):
        both = self.compare.value
        self.sides[1].image.layout.display = "" if both else "none"
        (self.view.add_class if both else self.view.remove_class)("two")
        self.beside.layout.flex_flow = "row wrap" if both else "column"
        for side in self.sides:
            side.image.layout.height = TWO_HIGH if both else ONE_HIGH
        self.which.disabled = not both
        self.which.value = "B" if both else "A"
        self._repaint()

    def _on_which(self, change):
        self.side = self.sides["AB".index(self.which.value)]
        with self._silence():
            self.auto.value = self.side.window is None
        self.show(self.protocol)

    def _on_preset(self, change):
        if self._listening and change.new != OWN:
            self.show(PRESETS[change.new])

    def _on_sequence(self, change):
        if self._listening:
            self.show(STARTS_WITH[Sequence(change.new)])

    def _on_setting(self, name: str):
        slider, now = getattr(self, name), getattr(self.protocol, name)
        if not self._listening or now is None:
            return
        far = abs(np.log10(slider.value / now)) if isinstance(slider, widgets.FloatLogSlider) else slider.value - now
        if abs(far) > 0.6 * slider.step:  # a browser rounds a preset to the slider's step and sends that back
            self.show(*move(self.protocol, name, slider.value))

    # Window and voxel ---------------------------------------------------------------------------------------

    def _on_window(self):
        if self._listening:
            level, width = self.level.value, self.width.value
            self.side.window = None if self.auto.value else (level - width / 2, level + width / 2)
            self._repaint()

    @in_turn
    def _on_press(self, side: Side):
        """A drag starts from the window it finds; the controls follow the side that is touched."""
        if self.person is not None:
            if side is not self.side:
                self.which.value = side.letter
            self._grabbed = side.levels(self.maps.pd.numpy() > 0)

    @in_turn
    def _on_drag(self, side: Side, dy: float, dx: float):
        if self.person is None:
            return
        (black, white), span = self._grabbed, self._grabbed[1] - self._grabbed[0]
        level = float(np.clip((black + white) / 2 + dy * span, self.level.min, self.level.max))
        width = float(np.clip(span * 4.0**dx, self.width.min, self.width.max))
        side.window = (level - width / 2, level + width / 2)
        with self._silence():
            self.auto.value = False
        self._repaint()

    @in_turn
    def _on_click(self, y: float, x: float):
        if self.person is None:
            return
        n_y, n_x = self.maps.pd.shape
        with self._silence():
            self.row.value, self.column.value = min(int(y * n_y), n_y - 1), min(int(x * n_x), n_x - 1)
        self._repaint()

    # Files --------------------------------------------------------------------------------------------------

    def _save(self, suffix: str):
        """The picture as PNG, or every slice under this protocol as NIfTI with its BIDS sidecar."""
        if self.person is None:
            self._say(self._problem, wrong=True)
            return
        name = self.file_name.value.strip() or "contrast"
        for known in (".png", ".nii.gz", ".nii"):
            name = name.removesuffix(known)
        path = Path(name + suffix)
        try:
            if suffix == ".png":
                write_atomically(path, self.image.value)
            else:
                volumes = TissueMaps(*(m.numpy().T for m in self.person.maps))
                meta = scan_sidecar(self.protocol, self.person.skull_stripped, Description="rendered from tissue maps")
                write_image(path, render_volume(volumes, self.protocol), self.person.affine, meta)
        except BadInput as error:
            self._say(str(error), wrong=True)
        else:
            self._say(f"Saved {path}")

    # Painting -----------------------------------------------------------------------------------------------

    @in_turn
    def _repaint(self, message: str = ""):
        if not self._listening or self.person is None:
            return
        maps = self.maps
        tissue = maps.pd.numpy() > 0
        for side in self.sides if self.compare.value else (self.side,):
            side.signal = _render(maps, side.protocol)
            corner = side.letter if self.compare.value else ""
            picture = paint_slice(side.signal, side.levels(tissue), self.person.voxel_mm[1:], side.protocol,
                                  (self.row.value, self.column.value), corner)  # fmt: skip
            side.image.value = to_png(picture)
        black, white = self.side.levels(tissue)
        with self._silence():
            self.level.value, self.width.value = round((black + white) / 2, 3), round(white - black, 3)
            self.level.disabled = self.width.disabled = self.auto.value
        self.plot.value = to_png(self.curves.draw(self.protocol, self.along.value))
        self.numbers.value = to_html(self._table())
        if not message and not tissue.any():
            message = "There is no tissue in this slice."
        self._say(message or str(self.protocol), wrong=bool(message))

    def _table(self) -> list[tuple[str, ...]]:
        sides = self.sides if self.compare.value else (self.side,)
        signals = {side.letter: (side.protocol, float(side.signal[self.pixel])) for side in sides}
        values = TissueMaps(*(float(m[self.pixel]) for m in self.maps))
        return readings(self.curves, signals, self.noise_sd, self.pixel, values)


def _render(maps: TissueMaps, protocol: Protocol) -> np.ndarray:
    """The magnitude image ``(y, x)``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a slice is small: waiting for a busy second core takes 100 times as long
    try:
        return render(maps, protocol).numpy()
    finally:
        torch.set_num_threads(threads)
