"""Explorers for the lectern and the seminar room: pictures as PNG bytes, state in plain Python.

Neither ``widgets.Output`` nor ``interact``: papermill waits for ever on them (nbclient #312), and a
``widgets.Image`` repaints twenty times faster. Every callback is an ordinary method, so all of it runs,
and is tested, without a browser.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from itertools import combinations
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import Image as StillImage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from .bids import write_atomically
from .display import TISSUE_COLOURS, as_array, percentile_window, to_png, to_rgb
from .errors import BadInput
from .physics import REFERENCE, UNSEEN, Protocol, Sequence, TissueMaps, null_ti, render, signed_signal
from .tissue import in_vivo_3t

HEIGHT = 560  # pixels of the image; with 16 px letters it is read from the last row
SLIDER_RANGE = {"te": (0.001, 1.9), "tr": (0.05, 20.0), "ti": (0.02, 10.0)}  # s
JUST_INSIDE = 0.98  # of TR: where TE and TI stop
LIKELY_MS = 20.0  # s; no tissue relaxes so slowly, so such maps are in ms

CLINIC = {
    "T1w MPRAGE": REFERENCE["T1w"],
    "T1w spin echo": Protocol(Sequence.SPIN_ECHO, te=0.012, tr=0.6),
    "PDw spin echo": Protocol(Sequence.SPIN_ECHO, te=0.015, tr=4.0),
    "T2w spin echo": Protocol(Sequence.SPIN_ECHO, te=0.1, tr=5.0),
    "T2-FLAIR": REFERENCE["FLAIR"],
    "MPRAGE, white matter nulled": Protocol(Sequence.MPRAGE, te=0.003, tr=3.0, ti=0.6),
    "hydrography": Protocol(Sequence.SPIN_ECHO, te=0.75, tr=6.0),
}
"""Usual clinical protocols; the T2w echo time is an effective one."""

PRESETS = (
    CLINIC
    | {"paper T2w (nominal TE)": REFERENCE["T2w"]}
    | {f"Fig. 4 ({i}): {protocol}": protocol for i, protocol in enumerate(UNSEEN, 1)}
)


def problem_with(maps: TissueMaps) -> str | None:
    """One sentence on what is wrong with a slice of PD, T1 and T2 maps; None where they can be rendered."""
    shapes = [as_array(m).shape for m in maps]
    for name, shape in zip(("T1", "T2"), shapes[1:], strict=True):
        if shape != shapes[0]:
            return f"The PD map has shape {shapes[0]} and the {name} map {shape}: give maps of the same slice."
    if len(shapes[0]) != 2:
        return f"The maps have shape {shapes[0]}: choose one slice with axes (y, x)."
    pd, t1, t2 = (as_array(m) for m in maps)
    if not np.isfinite(pd).all() or (pd < 0).any():
        return "The PD map has values that are NaN, infinite or negative: set PD to 0 where there is no tissue."
    tissue = pd > 0
    if not tissue.any():
        return "The PD map is 0 everywhere: there is no tissue to show in this slice."
    for name, times in (("T1", t1[tissue]), ("T2", t2[tissue])):
        bad = int((~(np.isfinite(times) & (times >= 0))).sum())
        if bad:
            return f"The {name} map is NaN, infinite or negative in {bad} voxels that hold tissue: set PD to 0 there."
        if np.median(times) > LIKELY_MS:
            return f"The {name} map has a median of {np.median(times):.4g} s, which looks like ms: divide by 1000."
    return None


class SignalCurves:
    """Signal of each tissue against one of TE, TR, TI; the figure is kept and only its lines move."""

    def __init__(self, tissues: Mapping[str, tuple[float, float, float]]):
        self.tissues = dict(tissues)
        values = torch.tensor(list(self.tissues.values()), dtype=torch.float64)
        self.maps = TissueMaps(*values.T[:, None, :, None])  # each (n=1, y=tissues, x=1)
        self.canvas = FigureCanvasAgg(Figure(figsize=(5.6, 4.0), dpi=100))
        self.axes = self.canvas.figure.add_axes((0.13, 0.13, 0.84, 0.78), ylabel="signal (PD of water = 1)")
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.axhline(0, color="0.5", lw=0.8)
        self.readout = self.axes.axvline(1, color="0.2", lw=1, ls=":")
        self.seen, self.signed, self.dots, self.nulls = {}, {}, {}, {}
        for name in self.tissues:
            colour = TISSUE_COLOURS.get(name)
            (self.seen[name],) = self.axes.plot([], [], color=colour, lw=2.2, label=name)
            (self.signed[name],) = self.axes.plot([], [], color=self.seen[name].get_color(), lw=1, ls="--")
            (self.dots[name],) = self.axes.plot([], [], "o", color=self.seen[name].get_color(), ms=7)
            (self.nulls[name],) = self.axes.plot([], [], "|", color=self.seen[name].get_color(), ms=16, mew=2.5)
        for text in (self.axes.xaxis.label, self.axes.yaxis.label):
            text.set_size(12)
        self.axes.tick_params(labelsize=11)
        self.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(self.tissues), frameon=False, fontsize=12)

    def signals(self, protocol: Protocol, along: str = "te", times=None) -> np.ndarray:
        """Signed signal ``(times, tissues)`` with ``along`` ("te", "tr", "ti") set to each of ``times`` (s)."""
        times = [getattr(protocol, along)] if times is None else times
        settings = protocol.settings().double().repeat(len(times), 1)
        settings[:, ("te", "tr", "ti").index(along) + 1] = torch.as_tensor(times, dtype=torch.float64)
        return signed_signal(self.maps, settings[None])[0, :, :, 0].numpy()

    def draw(self, protocol: Protocol, along: str) -> np.ndarray:
        """Pixels ``(rows, columns, 3)``: magnitude solid, sign dashed, readout dotted, null points ticked."""
        here, times = getattr(protocol, along), self._times(protocol, along)
        curves, now = self.signals(protocol, along, times), self.signals(protocol)[0]
        self.readout.set_xdata([here, here])
        for k, (name, (_, t1, _)) in enumerate(self.tissues.items()):
            self.seen[name].set_data(times, np.abs(curves[:, k]))
            self.signed[name].set_data(times, np.where(curves[:, k] < 0, curves[:, k], np.nan))
            self.dots[name].set_data([here], [abs(now[k])])
            nulls = [null_ti(t1, protocol.tr, protocol.sequence)] if along == "ti" else []
            self.nulls[name].set_data(nulls, [0] * len(nulls))
        low, high = min(0, curves.min()), max(np.abs(curves).max(), np.abs(now).max(), 1e-3)
        self.axes.set(
            xscale="log" if along == "te" else "linear",
            xlim=(times[0], max(times[-1], 1.02 * here)),
            ylim=(low - 0.04 * (high - low), high + 0.04 * (high - low)),
            xlabel=f"{along.upper()} (s)",
        )
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3]

    @staticmethod
    def _times(protocol: Protocol, along: str) -> np.ndarray:
        if along == "te":
            return np.geomspace(SLIDER_RANGE["te"][0], min(protocol.tr, SLIDER_RANGE["te"][1]), 200)
        if along == "ti":
            return np.linspace(0, max(protocol.tr, protocol.ti), 200)
        return np.linspace(max(protocol.te, protocol.ti or 0), max(8.0, 1.2 * protocol.tr), 200)


class Explorer(widgets.VBox):
    """What every explorer has: controls that code can set without being called back."""

    _listening = True

    @contextmanager
    def _silence(self):
        """Controls set from code do not call back."""
        self._listening = False
        try:
            yield
        finally:
            self._listening = True


class ContrastExplorer(Explorer):
    """Drag TE, TR and TI and see the image, the signal curves, the null points and a pixel's numbers.

    Parameters
    ----------
    maps
        One slice of PD (water = 1), T1 and T2 (s), each ``(y, x)`` with y towards anterior and x towards the
        patient's right; or several, by the name to choose them by. Maps that cannot be rendered are
        refused in the status line.
    voxel_mm
        In-plane voxel size, one number or (y, x).
    tissues
        PD, T1 (s), T2 (s) by name, for curves and numbers; default: the 3 T in-vivo medians of WM, GM and CSF.
    noise_sd
        Of the image, as a fraction of the signal of water at PD 1; the CNR is in its units.
    """

    def __init__(
        self,
        maps: TissueMaps | Mapping[str, TissueMaps],
        voxel_mm: float | tuple[float, float] = 2.0,
        *,
        tissues: Mapping[str, tuple[float, float, float]] | None = None,
        noise_sd: float = 0.01,
    ):
        self.subjects = {"subject": maps} if isinstance(maps, TissueMaps) else dict(maps)
        self.voxel_mm, self.noise_sd = np.broadcast_to(voxel_mm, 2), noise_sd
        self.curves = SignalCurves(tissues or _three_tissues())
        self.protocol = REFERENCE["T1w"]
        self.maps: TissueMaps | None = None
        self._font = ImageFont.truetype(findfont("DejaVu Sans"), 16)
        self._build()
        super().__init__([self._arrange()])
        self._on_subject()

    def __repr__(self):
        return f"ContrastExplorer({self.protocol}); run this notebook to use it"

    # What is shown ------------------------------------------------------------------------------------------

    def signal(self) -> np.ndarray:
        """The magnitude image ``(y, x)`` of the chosen subject under the chosen protocol."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a slice is small: waiting for a busy second core takes 100 times as long
        try:
            return render(self.maps, self.protocol).numpy()
        finally:
            torch.set_num_threads(threads)

    @property
    def pixel(self) -> tuple[int, int]:
        """Index ``(y, x)`` of the voxel under the cross; its sliders count from the top left of the view."""
        n_y, n_x = self.maps.pd.shape
        return n_y - 1 - self.row.value, n_x - 1 - self.column.value

    def show(self, protocol: Protocol, message: str = "") -> None:
        """Set the protocol from code: moves the controls and repaints."""
        self.protocol = protocol
        if protocol.as_published:
            message = f"As published, TI {protocol.ti:g} s ≥ TR {protocol.tr:g} s: no scanner can run this."
        with self._silence():
            self.sequence.value = protocol.sequence.value
            self.ti.disabled = not protocol.sequence.inverts
            for name in _times_of(protocol):
                slider, time = getattr(self, name), getattr(protocol, name)
                if abs(slider.value - time) > 0.005 * time:  # rounding is not sent back to a moving hand
                    slider.value = time
            self.preset.value = next((name for name, p in PRESETS.items() if p == protocol), None)
            choices = tuple(name.upper() for name in _times_of(protocol))
            if choices != self.along.options:
                self.along.options = choices
        self._repaint(message)

    def still(self) -> StillImage:
        """What the explorer shows now as one picture, for readers of a page without a running kernel.

        Raises
        ------
        ValueError
            Where the chosen subject cannot be rendered; the sentence is the status line's.
        """
        if self.maps is None:
            raise ValueError(self._problem())
        picture, curves = (Image.open(io.BytesIO(w.value)) for w in (self.image, self.plot))
        page = Image.new("RGB", (picture.width + curves.width + 12, HEIGHT), "white")
        page.paste(picture, (0, 0))
        page.paste(curves, (picture.width + 12, 0))
        place = (picture.width + 32, curves.height + 10)
        ImageDraw.Draw(page).multiline_text(place, "\n".join(self._summary()), "black", self._font, spacing=7)
        return StillImage(to_png(np.asarray(page)), alt=f"Simulated image, {self.protocol}, with signal curves")

    # Controls -----------------------------------------------------------------------------------------------

    def _build(self):
        wide = {"layout": widgets.Layout(width="340px"), "style": {"description_width": "70px"}}

        def time_slider(name):
            low, high = np.log10(SLIDER_RANGE[name])
            value = getattr(self.protocol, name)
            about = {"description": f"{name.upper()} (s)", "readout_format": ".3g"}
            return widgets.FloatLogSlider(value, base=10, min=low, max=high, step=0.01, **about, **wide)

        self.subject = widgets.Dropdown(options=list(self.subjects), description="subject", **wide)
        presets = [("own setting", None), *((name, name) for name in PRESETS)]
        self.preset = widgets.Dropdown(options=presets, description="preset", **wide)
        self.sequence = widgets.Dropdown(options=[s.value for s in Sequence], description="sequence", **wide)
        self.te, self.tr, self.ti = (time_slider(name) for name in ("te", "tr", "ti"))
        self.along = widgets.ToggleButtons(description="curve over", options=["TE"], style={"button_width": "60px"})
        self.auto = widgets.Checkbox(True, description="window follows the image", indent=False)
        fine = {"step": 0.005, "readout_format": ".3f"} | wide
        self.level = widgets.FloatSlider(0.5, min=0, max=1.2, description="level", **fine)
        self.width = widgets.FloatSlider(1, min=0.005, max=2, description="width", **fine)
        self.row = widgets.IntSlider(0, min=0, max=1, description="row ↓", **wide)
        self.column = widgets.IntSlider(0, min=0, max=1, description="column →", **wide)
        shorter = wide | {"layout": widgets.Layout(width="230px")}
        self.file_name = widgets.Text("contrast.png", description="file", **shorter)
        self.save = widgets.Button(description="Save PNG", icon="download", layout=widgets.Layout(width="105px"))
        self.image = widgets.Image(format="png", layout=widgets.Layout(height=f"{HEIGHT}px", object_fit="contain"))
        self.plot = widgets.Image(format="png", layout=widgets.Layout(width="560px"))
        self.numbers, self.status = widgets.HTML(), widgets.HTML()
        self.image.tooltip, self.plot.tooltip = "the image this protocol gives", "signal of each tissue against time"

        self.subject.observe(self._on_subject, "value")
        self.preset.observe(self._on_preset, "value")
        self.sequence.observe(self._on_sequence, "value")
        for name in ("te", "tr", "ti"):
            getattr(self, name).observe(lambda change, name=name: self._on_time(name), "value")
        for control in (self.along, self.auto, self.level, self.width, self.row, self.column):
            control.observe(lambda change: self._repaint(), "value")
        self.save.on_click(self._on_save)

    def _arrange(self):
        controls = [self.subject, self.preset, self.sequence, self.te, self.tr, self.ti, self.along]
        controls += [self.auto, self.level, self.width, self.row, self.column]
        controls += [widgets.HBox([self.file_name, self.save])]
        side = widgets.VBox([self.plot, self.numbers])
        panels = widgets.Box([widgets.VBox(controls), self.image, side], layout=widgets.Layout(flex_flow="row wrap"))
        return widgets.VBox([self.status, panels])

    def _on_subject(self, change=None):
        problem = self._problem()
        self.maps = None if problem else _ready(self.subjects[self.subject.value])
        if problem:
            self.image.value = to_png(np.zeros((HEIGHT, HEIGHT * 5 // 7, 3), np.uint8))
            self.plot.value = to_png(np.full((1, 1, 3), 255, np.uint8))
            self.numbers.value = ""
            self._say(problem, wrong=True)
            return
        with self._silence():
            for slider, n in ((self.row, self.maps.pd.shape[0]), (self.column, self.maps.pd.shape[1])):
                slider.max = n - 1
                slider.value = n // 2
        self.show(self.protocol)

    def _problem(self) -> str | None:
        if self.subject.value is None:
            return "There is no subject to show: give maps of at least one."
        return problem_with(self.subjects[self.subject.value])

    def _on_preset(self, change):
        if self._listening and change.new is not None:
            self.show(PRESETS[change.new])

    def _on_sequence(self, change):
        """Another sequence starts from the clinic's setting of it: a FLAIR with TE 3 ms teaches nothing."""
        if self._listening:
            start = {"MPRAGE": "T1w MPRAGE", "spin echo": "T2w spin echo", "FLAIR": "T2-FLAIR"}[change.new]
            self.show(PRESETS[start])

    def _on_time(self, moved: str):
        if not self._listening:
            return
        times = {name: getattr(self.protocol, name) for name in _times_of(self.protocol)}
        times[moved] = _rounded(getattr(self, moved).value)
        allowed, message = stay_physical(times, moved)
        self.show(replace(self.protocol, **allowed, as_published=False), message)

    def _on_save(self, button=None):
        path = Path(self.file_name.value.strip() or "contrast.png")
        path = path.with_name(path.stem + ".png")
        try:
            write_atomically(path, self.image.value)
        except BadInput as error:
            self._say(str(error), wrong=True)
        else:
            self._say(f"Saved {path}")

    # Painting -----------------------------------------------------------------------------------------------

    def _repaint(self, message: str = ""):
        if not self._listening or self.maps is None:
            return
        signal = self._shown = self.signal()
        if self.auto.value:
            black, white = percentile_window(signal, self.maps.pd > 0)
            with self._silence():
                self.level.value, self.width.value = (black + white) / 2, white - black
        else:
            black, white = self.level.value - self.width.value / 2, self.level.value + self.width.value / 2
        self.level.disabled = self.width.disabled = self.auto.value
        self.image.value = to_png(self._picture(signal, (black, white)))
        self.plot.value = to_png(self.curves.draw(self.protocol, self.along.value.lower()))
        self.numbers.value = f'<pre style="font-size: 14px">{"<br>".join(self._summary())}</pre>'
        self._say(message or str(self.protocol), wrong=bool(message))

    def _picture(self, signal: np.ndarray, window: tuple[float, float]) -> np.ndarray:
        """The image with cross, orientation, protocol and scale, as on a reading-room screen."""
        (n_y, n_x), (mm_y, mm_x) = signal.shape, self.voxel_mm
        per_mm = HEIGHT / (n_y * mm_y)
        width = round(n_x * mm_x * per_mm)
        picture = Image.fromarray(to_rgb(signal, window=window)).resize((width, HEIGHT), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(picture)
        x, y = (self.column.value + 0.5) * mm_x * per_mm, (self.row.value + 0.5) * mm_y * per_mm
        for near, far in ((6, 16), (-6, -16)):  # a gap in the middle keeps the voxel in view
            draw.line((x + near, y, x + far, y), fill="yellow", width=2)
            draw.line((x, y + near, x, y + far), fill="yellow", width=2)

        def write(at, text, anchor):
            draw.text(at, text, fill="white", font=self._font, anchor=anchor, stroke_width=2, stroke_fill="black")

        name, _, times = str(self.protocol).partition(", ")
        write((8, 6), name, "la")
        write((8, 26), times, "la")
        write((width / 2, 6), "A", "ma")
        write((8, HEIGHT / 2), "R", "lm")
        write((width - 8, HEIGHT / 2), "L", "rm")
        write((8, HEIGHT - 8), f"W {window[1] - window[0]:.3f}  L {(window[0] + window[1]) / 2:.3f}", "ld")
        draw.line((width - 10 - 50 * per_mm, HEIGHT - 10, width - 10, HEIGHT - 10), fill="white", width=3)
        write((width - 10, HEIGHT - 16), "50 mm", "rd")
        return np.asarray(picture)

    def _summary(self) -> list[str]:
        """Lines of text: signal and null point of each tissue, CNR of each pair, the voxel under the cross."""
        p, tissues = self.protocol, self.curves.tissues
        signals = dict(zip(tissues, np.abs(self.curves.signals(p)[0]), strict=True))
        lines = []
        for name, (_, t1, _) in tissues.items():
            null = f"   null at TI {null_ti(t1, p.tr, p.sequence):.3f} s" if p.sequence.inverts else ""
            lines.append(f"{name}   signal {signals[name]:.3f}{null}")
        pairs = [f"{a}–{b} {abs(signals[a] - signals[b]) / self.noise_sd:.1f}" for a, b in combinations(tissues, 2)]
        lines.append(f"CNR at noise {self.noise_sd:g}   " + "   ".join(pairs))
        y, x = self.pixel
        pd, t1, t2 = (float(m[y, x]) for m in self.maps)
        values = f"PD {pd:.2f}   T1 {t1:.3f} s   T2 {1000 * t2:.0f} ms   signal {self._shown[y, x]:.3f}"
        return [*lines, f"[{y}, {x}]   {values if pd > 0 else 'no tissue'}"]

    def _say(self, text: str, wrong: bool = False):
        colour = "#b03000" if wrong else "inherit"
        self.status.value = f'<span role="status" style="font-size: 16px; color: {colour}">{escape(text)}</span>'


def stay_physical(times: dict[str, float], moved: str) -> tuple[dict[str, float], str]:
    """Times (s) with TE and TI below TR, and the sentence that says why one was held ("" if none).

    The slider that was moved is the one that stops.
    """
    allowed, message = dict(times), ""
    others = [name for name in times if name != "tr"]
    if moved == "tr":
        longest = max(others, key=times.get)
        if times["tr"] * JUST_INSIDE < times[longest]:
            allowed["tr"] = _rounded(times[longest] / JUST_INSIDE)
            message = f"TR stops at {allowed['tr']:g} s: it must be longer than {longest.upper()} {times[longest]:g} s."
        return allowed, message
    why = {"te": "the echo must come within the repetition", "ti": "TR runs from inversion to inversion"}
    for name in others:
        if times[name] > times["tr"] * JUST_INSIDE:
            allowed[name] = _rounded(times["tr"] * JUST_INSIDE)
            message = f"{name.upper()} stops at {allowed[name]:.3g} s, below TR {times['tr']:.3g} s: {why[name]}."
    return allowed, message


def _rounded(time: float) -> float:
    """To three digits: finer than a slider's step, and readable."""
    return float(f"{time:.3g}")


def _times_of(protocol: Protocol) -> tuple[str, ...]:
    return ("ti", "te", "tr") if protocol.sequence.inverts else ("te", "tr")


def _three_tissues() -> dict[str, tuple[float, float, float]]:
    table = in_vivo_3t()
    return {name: tuple(table.median[table.tissues.index(name)]) for name in ("WM", "GM", "CSF")}


def _ready(maps: TissueMaps) -> TissueMaps:
    """float32 tensors; T1 and T2 mean nothing without protons and may be NaN there, which would spread."""
    pd, t1, t2 = (torch.as_tensor(np.array(as_array(m), dtype=np.float32)) for m in maps)
    return TissueMaps(pd, torch.where(pd > 0, t1, 0.0), torch.where(pd > 0, t2, 0.0))
