"""Signal of a few tissues under a protocol: numbers first (null point, contrast-to-noise, a voxel), then curves."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..figures.style import TISSUE_COLOURS
from ..physics import Protocol, TissueMaps, ernst_angle, null_ti, signal
from .console import NAMES, RANGES

PLOT = (640, 400)  # pixels of the curves


def readings(
    curves: SignalCurves,
    shown: Mapping[str, tuple[Protocol, float]],
    noise_sd: float,
    voxel: tuple[int, int],
    values: TissueMaps,
) -> list[tuple[str, ...]]:
    """Rows of text, the first one a heading, a column each protocol.

    Parameters
    ----------
    shown
        Letter of each protocol → the protocol, and its signal in the voxel.
    noise_sd
        Of the image; the CNR is in its units.
    voxel, values
        Its index (y, x), and its PD, T1 (s) and T2 (s).
    """
    protocols = {letter: protocol for letter, (protocol, _) in shown.items()}
    several = len(protocols) > 1
    signals = [np.abs(curves.signals(protocol)[0]) for protocol in protocols.values()]
    with_special = {letter: protocol for letter, protocol in protocols.items() if _special(protocol)}
    rows = [
        (
            "",
            *(f"signal {letter}" if several else "signal" for letter in protocols),
            *(_special(p) + (f", {letter}" if several else "") for letter, p in with_special.items()),
        )
    ]
    for k, (name, (_, t1, _)) in enumerate(curves.tissues.items()):
        at = (_special_value(protocol, t1) for protocol in with_special.values())
        rows.append((name, *(f"{of_all[k]:.3f}" for of_all in signals), *at))
    for n, ((i, a), (j, b)) in enumerate(combinations(enumerate(curves.tissues), 2)):
        cnr = (f"{abs(of_all[i] - of_all[j]) / noise_sd:.1f}" for of_all in signals)
        rows.append((f"CNR {a}–{b}", *cnr, "" if n else f"noise {noise_sd:g}"))
    rows.append((f"voxel [{voxel[0]}, {voxel[1]}]", *(f"{signal:.3f}" for _, signal in shown.values()), ""))
    pd, t1, t2 = values
    told = f"PD {pd:.2f}, T1 {t1:.3f} s, T2 {1000 * t2:.0f} ms" if pd > 0 else "no tissue"
    return [*rows, ("", told)]


def _special(protocol: Protocol) -> str:
    """What else a tissue has under this sequence, if anything."""
    return "null at TI" if protocol.sequence.inverts else "Ernst angle" if protocol.sequence.has_flip_angle else ""


def _special_value(protocol: Protocol, t1: float) -> str:
    if protocol.sequence.inverts:
        return f"{null_ti(t1, protocol.tr, protocol.sequence):.3f} s"
    return f"{np.degrees(ernst_angle(t1, protocol.tr)):.1f}°"


class SignalCurves:
    """Signal of each tissue against one setting; the figure is kept, and while its axes stay, only lines are drawn.

    Parameters
    ----------
    tissues
        Name → PD (of water), T1 (s), T2 (s).
    """

    def __init__(self, tissues: Mapping[str, tuple[float, float, float]]):
        self.tissues = dict(tissues)
        self.maps = TissueMaps(*torch.tensor(list(self.tissues.values()), dtype=torch.float64).T)
        self.canvas = FigureCanvasAgg(Figure(figsize=(PLOT[0] / 100, PLOT[1] / 100), dpi=100))
        self.axes = self.canvas.figure.add_axes((0.13, 0.15, 0.835, 0.74))
        self.axes.set_ylabel("signal (PD of water = 1)", size=13)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.axhline(0, color="0.5", lw=0.8)
        self.readout = self.axes.axvline(1, color="0.2", lw=1, ls=":", animated=True)
        self.seen, self.signed, self.dots, self.marks = {}, {}, {}, {}
        for name in self.tissues:
            colour = TISSUE_COLOURS.get(name)
            (self.seen[name],) = self.axes.plot([], [], color=colour, lw=2.4, label=name)
            colour = self.seen[name].get_color()
            (self.signed[name],) = self.axes.plot([], [], color=colour, lw=1, ls="--")
            (self.dots[name],) = self.axes.plot([], [], "o", color=colour, ms=8)
            (self.marks[name],) = self.axes.plot([], [], "|", color=colour, ms=16, mew=2.5)
        self.moving = [self.readout]
        for lines in (self.seen, self.signed, self.dots, self.marks):
            self.moving += lines.values()
            for line in lines.values():
                line.set_animated(True)
        self.axes.tick_params(labelsize=12)
        self.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(self.tissues), frameon=False, fontsize=13)
        self._drawn, self._empty = None, None  # the limits of the axes that were drawn, and their pixels

    def signals(self, protocol: Protocol, along: str = "te", values=None) -> np.ndarray:
        """Signed signal ``(values, tissues)`` with ``along``, a key of NAMES, set to each of ``values`` (s, °)."""
        set_to = {name: getattr(protocol, name) for name in NAMES}
        set_to[along] = torch.as_tensor([set_to[along]] if values is None else values, dtype=torch.float64)[:, None]
        angle = set_to.pop("flip_angle_deg")
        if angle is not None:
            set_to["flip_angle"] = torch.deg2rad(torch.as_tensor(angle, dtype=torch.float64))
        return signal(self.maps, protocol.sequence, **set_to).numpy()

    def draw(self, protocol: Protocol, along: str) -> np.ndarray:
        """Pixels ``(rows, columns, 3)``: magnitude solid, negative signal dashed, readout dotted.

        Ticks mark the null points where TI varies, the Ernst angles where the flip angle does.
        """
        here, values = getattr(protocol, along), self._values(protocol, along)
        curves, now = self.signals(protocol, along, values), self.signals(protocol)[0]
        self.readout.set_xdata([here, here])
        for k, (name, (_, t1, _)) in enumerate(self.tissues.items()):
            self.seen[name].set_data(values, np.abs(curves[:, k]))
            self.signed[name].set_data(values, np.where(curves[:, k] < 0, curves[:, k], np.nan))
            self.dots[name].set_data([here], [abs(now[k])])
            self.marks[name].set_data(*self._marks(protocol, along, t1))
        low, high = min(0, curves.min()), max(np.abs(curves).max(), np.abs(now).max(), 1e-3)
        margin = 0.04 * (high - low)
        self._axes_for(along, values[0], max(values[-1], 1.02 * here), low - margin, high + margin)
        self.canvas.restore_region(self._empty)
        for artist in self.moving:
            self.axes.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _axes_for(self, along: str, left: float, right: float, low: float, high: float):
        """Axes with these limits, kept where they are: drawing them takes most of the time of a slider step."""
        wanted = (along, *(float(f"{limit:.4g}") for limit in (left, right, low, high)))
        if wanted != self._drawn:
            self.axes.set(xscale="log" if along == "te" else "linear", xlim=wanted[1:3], ylim=wanted[3:])
            self.axes.xaxis.set_major_formatter("{x:g}")
            self.axes.set_xlabel(
                "flip angle (°)" if along == "flip_angle_deg" else f"{NAMES[along]} (s)", size=13, labelpad=1
            )
            self.canvas.draw()
            self._drawn, self._empty = wanted, self.canvas.copy_from_bbox(self.canvas.figure.bbox)

    @staticmethod
    def _marks(protocol: Protocol, along: str, t1: float) -> tuple[list[float], list[float]]:
        if along == "ti":
            return [null_ti(t1, protocol.tr, protocol.sequence)], [0]
        if along == "flip_angle_deg" and not protocol.sequence.inverts:
            return [np.degrees(ernst_angle(t1, protocol.tr))], [0]
        return [], []

    @staticmethod
    def _values(protocol: Protocol, along: str) -> np.ndarray:
        low, high = RANGES[along]
        if along == "te":
            return np.geomspace(min(low, 0.5 * protocol.tr), min(protocol.tr, high), 200)
        if along == "ti":
            return np.linspace(0, max(protocol.tr, protocol.ti), 200)
        if along == "flip_angle_deg":
            return np.linspace(0, high, 200)
        fast = protocol.sequence.has_flip_angle and not protocol.sequence.inverts
        shown = 0.2 if fast else 8.0  # s; beyond it the clinic sets no TR
        return np.linspace(max(protocol.te, protocol.ti or 0), max(shown, 1.2 * protocol.tr), 200)
