"""One image at a time: the house look, one window per quantity, maps as a radiologist reads them.

Relaxometry colours follow Fuderer et al. 2025 (doi 10.1002/mrm.30290): lipari for T1, navia for T2,
a log-linear display curve, and one colour, black, kept for "no value" (NaN).
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from cmcrameri import cm
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, FuncNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..machine.files import write_atomically

FIGURE_WIDTH = 7.0  # in; two columns of a journal page
NO_VALUE = "black"
PDF = "PHYLDM_PDF"
"""Name in the environment, which the process of a chapter inherits: where it is set, every figure is also a PDF."""
TISSUE_COLOURS = {"CSF": "#0173b2", "GM": "#029e73", "WM": "#de8f05"}
"""Blue, green, orange of seaborn's palette: apart for colour-blind readers, from dark to light in greyscale."""

_OUTLINE = [withStroke(linewidth=1.6, foreground="black", alpha=0.8)]  # white text stays legible on bright tissue


def use_house_style() -> None:
    """Set the look of every figure from here on: 8 pt, seaborn ticks, colour-blind palette, vector text.

    Within ``with matplotlib.rc_context():`` it lasts as long as the block.
    """
    small = dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 7)
    thin = dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width", "patch.linewidth"), 0.6)
    thin |= {"xtick.minor.width": 0.4, "ytick.minor.width": 0.4}
    sns.set_theme(
        style="ticks",
        palette="colorblind",
        rc={
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "lines.linewidth": 1.2,
            "lines.markersize": 3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same page everywhere
            "font.sans-serif": ["DejaVu Sans"],
            "image.interpolation": "nearest",
            "figure.dpi": 100,  # what notebooks show inline
            "savefig.dpi": 200,
            "pdf.fonttype": 42,  # TrueType: text stays text
            "svg.fonttype": "none",
            "svg.hashsalt": "phyldm",
            **small,
            **thin,
        },
    )


def relaxation_norm(low: float, high: float) -> FuncNorm:
    """Linear below ``high``/e, logarithmic above; value and slope continuous at the knee (doi 10.1002/mrm.30290)."""
    knee = max(high / np.e, low)
    c = (knee - low) / (2 * knee - low)  # displayed level of the knee

    def forward(t):
        t = np.asarray(t, float)  # a plain array, so that NaN stays NaN
        logarithmic = c + (1 - c) * np.log(np.maximum(t, knee) / knee) / np.log(high / knee)
        return np.where(t < knee, (t - low) / (2 * knee - low), logarithmic)

    def inverse(f):
        f = np.asarray(f, float)
        return np.where(f < c, low + f * (2 * knee - low), knee * (high / knee) ** ((f - c) / (1 - c)))

    return FuncNorm((forward, inverse), low, high)


@dataclass(frozen=True)
class Quantity:
    """How one quantity is shown, in every figure: window and ticks in the unit of the data."""

    label: str
    cmap: Colormap
    low: float
    high: float
    ticks: tuple[float, ...]
    extend: str = "neither"  # an arrow where real values lie beyond the window
    per_unit: float = 1.0  # tick label = tick × this
    curve: str = "linear"  # "relaxation": log-linear, for relaxation times; "log": what varies by factors

    def norm(self) -> Normalize:
        """A fresh norm over the window."""
        make = {"linear": Normalize, "relaxation": relaxation_norm, "log": LogNorm}[self.curve]
        return make(self.low, self.high)


def _colours(name: str) -> Colormap:
    return (mpl.colormaps["gray"] if name == "gray" else getattr(cm, name)).with_extremes(bad=NO_VALUE)


QUANTITIES = {
    "PD": Quantity("PD (water = 1)", _colours("gray"), 0.5, 1.1, (0.5, 0.7, 0.9, 1.1), "min"),
    "T1": Quantity("$T_1$ (s)", _colours("lipari"), 0, 4, (0, 1, 2, 3, 4), "max", curve="relaxation"),
    "T2": Quantity("$T_2$ (ms)", _colours("navia"), 0, 0.2, (0, 0.05, 0.1, 0.2), "max", 1000, "relaxation"),
    "error": Quantity("error (% of truth)", _colours("vik"), -30, 30, (-30, -15, 0, 15, 30), "both"),
    "SD": Quantity("SD (% of mean)", _colours("lajolla"), 0.03, 10, (0.1, 1, 10), "both", curve="log"),
    "residual": Quantity("|residual| (% of peak)", _colours("lajolla"), 0, 20, (0, 5, 10, 15, 20), "max"),
}
"""PD of water = 1, T1 and T2 in seconds, error (signed), SD and residual in per cent. Windows are for
white and grey matter: T2 of CSF saturates, and what holds less than half of water's protons is black."""


def symbol(name: str) -> str:
    """``T1`` as $T_1$; any other name as it is."""
    return f"${name[0]}_{name[1]}$" if name in ("T1", "T2") else name


def as_array(values: ArrayLike) -> NDArray:
    """A numpy array from anything array-like, tensors with a gradient included."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def as_slice(values: ArrayLike, inside: ArrayLike | None = None) -> NDArray:
    """One slice ``(y, x)`` in float, NaN outside ``inside``.

    Raises
    ------
    ValueError
        Where it is no slice, or the mask has another shape.
    """
    array = as_array(values).astype(float)
    if array.ndim != 2:
        raise ValueError(f"expected one slice with axes (y, x), not {array.shape}: choose a slice first")
    if inside is None:
        return array
    where = as_array(inside).astype(bool)
    if where.shape != array.shape:
        raise ValueError(f"the mask has shape {where.shape} and the image {array.shape}: they must be the same slice")
    return np.where(where, array, np.nan)


def quantity_of(name: str) -> Quantity:
    """The :class:`Quantity` called ``name``; ValueError names the known ones."""
    if name not in QUANTITIES:
        raise ValueError(f"no display window for {name!r}: choose one of {', '.join(QUANTITIES)}")
    return QUANTITIES[name]


def percentile_window(image: ArrayLike, inside: ArrayLike | None = None) -> tuple[float, float]:
    """Window of a weighted image: from 0, the scanner's black, to the 99.5th percentile inside (default: above 0)."""
    image = as_array(image).astype(float)
    values = image[np.isfinite(image) & (image > 0 if inside is None else as_array(inside).astype(bool))]
    top = float(np.percentile(values, 99.5)) if values.size else 0.0
    return 0.0, top if top > 0 else 1.0


def show_map(
    ax: Axes,
    values: ArrayLike,
    quantity: str,
    *,
    inside: ArrayLike | None = None,
    voxel_mm: float | tuple[float, float] = 2.0,
    marks: str = "RLA",
    scale_bar_mm: float | None = None,
) -> AxesImage:
    """Draw one slice of a map in its house window, radiologically (patient's right on the viewer's left).

    Parameters
    ----------
    values
        ``(y, x)``, y towards anterior, x towards the patient's right; unit as in :data:`QUANTITIES`. NaN is black.
    quantity
        A key of :data:`QUANTITIES`.
    inside
        ``(y, x)``: where the values mean something; elsewhere "no value".
    voxel_mm
        Size of a voxel, one number or (y, x), mm; the aspect follows it.
    marks
        Which of R, A, L to write along the top.
    scale_bar_mm
        Length of the scale bar; None for none.

    Raises
    ------
    ValueError
        For an unknown quantity, or an array that is no slice.
    """
    shown = quantity_of(quantity)
    return _draw(ax, as_slice(values, inside), shown.cmap, shown.norm(), voxel_mm, marks, scale_bar_mm)


def show_image(
    ax: Axes,
    image: ArrayLike,
    window: tuple[float, float] | None = None,
    *,
    inside: ArrayLike | None = None,
    voxel_mm: float | tuple[float, float] = 2.0,
    marks: str = "RLA",
    scale_bar_mm: float | None = None,
) -> AxesImage:
    """Draw one weighted slice in grey, in ``window`` (default: :func:`percentile_window`), as :func:`show_map` does."""
    image = as_slice(image)
    norm = Normalize(*(window or percentile_window(image, inside)))
    return _draw(ax, image, _colours("gray"), norm, voxel_mm, marks, scale_bar_mm)


def _draw(ax, array, cmap, norm, voxel_mm, marks, scale_bar_mm) -> AxesImage:
    voxel_y, voxel_x = np.broadcast_to(voxel_mm, 2)
    drawn = ax.imshow(array, cmap=cmap, norm=norm, origin="lower", interpolation="nearest", aspect=voxel_y / voxel_x)
    ax.invert_xaxis()  # x rises towards the patient's right
    ax.set(xticks=[], yticks=[], facecolor=NO_VALUE)
    ax.spines[:].set_visible(False)
    places = {"R": (0.03, "left"), "A": (0.5, "center"), "L": (0.97, "right")}  # the top corners hold no head
    for mark in marks:
        x, ha = places[mark]
        write_on(ax, x, 0.985, mark, ha=ha, va="top")
    if scale_bar_mm:
        rows, columns = array.shape
        left, below = columns * 0.97 - 0.5, rows * 0.035  # the left edge of the view is the high end of x
        ax.plot([left, left - scale_bar_mm / voxel_x], [below] * 2, color="white", lw=1.5, solid_capstyle="butt")
        write_on(ax, 0.03, 0.05, f"{scale_bar_mm:g} mm", ha="left", va="bottom", size=6)
    return drawn


def write_on(ax: Axes, x: float, y: float, text: str, *, size: float = 6.5, **where) -> None:
    """White outlined text on an image, at axes fractions."""
    ax.text(x, y, text, transform=ax.transAxes, color="white", size=size, path_effects=_OUTLINE, **where)


def colour_bar(cax: Axes, quantity: str) -> Colorbar:
    """Fill ``cax`` with the colour bar of a quantity: round ticks, unit, an arrow where values lie beyond."""
    shown = quantity_of(quantity)
    scale = mpl.cm.ScalarMappable(shown.norm(), shown.cmap)
    bar = cax.figure.colorbar(scale, cax=cax, orientation="horizontal", extend=shown.extend, extendfrac=0.06)
    bar.set_ticks(shown.ticks, labels=[f"{tick * shown.per_unit:g}".replace("-", "−") for tick in shown.ticks])
    bar.minorticks_off()
    bar.set_label(shown.label, labelpad=1)
    bar.ax.tick_params(length=2, pad=1)
    bar.outline.set_linewidth(0.4)
    return bar


def to_rgb(
    values: ArrayLike,
    quantity: str | None = None,
    *,
    window: tuple[float, float] | None = None,
    inside: ArrayLike | None = None,
) -> NDArray[np.uint8]:
    """``(y, x, 3)`` picture of a slice, without axes: first row anterior, first column the patient's right.

    ``quantity`` gives window and colours; None is a weighted image in ``window`` (default: its percentiles).
    """
    if quantity is None:
        array, cmap = as_slice(values), _colours("gray")
        norm = Normalize(*(window or percentile_window(array, inside)))
    else:
        shown = quantity_of(quantity)
        array, cmap, norm = as_slice(values, inside), shown.cmap, shown.norm()
    levels = np.ma.masked_invalid(np.asarray(norm(array), float))
    return cmap(levels, bytes=True)[::-1, ::-1, :3]


def to_png(picture: Figure | ArrayLike, *, dpi: float = 100) -> bytes:
    """PNG bytes of a figure (at ``dpi``), or of an RGB array as :func:`to_rgb` makes it."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    else:
        pixels = Image.fromarray(as_array(picture))
        pixels.save(buffer, format="png", compress_level=1)  # speed: this runs at every slider step
    return buffer.getvalue()


def save_figure(
    fig: Figure, figures_dir: str | Path, name: str, *, caption: str, alt: str, pdf: bool = False
) -> tuple[Path, ...]:
    """Write ``name``.png (200 dpi) and .json (caption, alt), on request .pdf, each whole or not at all: these paths.

    The same figure gives the same bytes, so that a second run changes no file.

    Parameters
    ----------
    name
        ``fig01_topic``: lower case, digits and underscores.
    caption
        What, n, protocol, what to see.
    alt
        The picture in a sentence, for those who cannot see it; a notebook that shows the figure holds it, too.
    pdf
        Also with vector text. Always where :data:`PDF` is in the environment, as in ``phyldm reproduce --pdf``.

    Raises
    ------
    ValueError
        For an unusable name, or an empty caption or alt text.
    BadInput
        Where the folder cannot be made or written.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"figure name {name!r} should be like fig01_topic: lower case, digits and underscores")
    if not caption.strip() or not alt.strip():
        raise ValueError(f"{name} needs a caption and an alt text: say what, n, protocol, and what to see")
    text = json.dumps({"caption": caption.strip(), "alt": alt.strip()}, ensure_ascii=False, indent=1) + "\n"
    folder = Path(figures_dir)
    files = {".png": to_png(fig, dpi=200), ".json": text.encode()}
    if pdf or os.environ.get(PDF):
        vector = io.BytesIO()
        with mpl.rc_context({"pdf.fonttype": 42}):
            fig.savefig(vector, format="pdf", dpi=200, metadata={"CreationDate": None})  # no clock: bytes repeat
        files[".pdf"] = vector.getvalue()
    for suffix, data in files.items():
        write_atomically(folder / (name + suffix), data)
    _tell_notebook(fig, alt.strip())
    return tuple(folder / (name + suffix) for suffix in files)


def _tell_notebook(fig: Figure, alt: str):
    """Where a notebook shows the figure, its alt text goes along."""
    from IPython import get_ipython

    if (shell := get_ipython()) is None:
        return
    fig.alt, formatter = alt, shell.display_formatter.formatters["image/png"]
    if Figure not in formatter or hasattr(draw := formatter.lookup_by_type(Figure), "tells_alt"):
        return

    def draw_and_tell(fig: Figure):
        png = draw(fig)
        return (png, {"alt": fig.alt}) if hasattr(fig, "alt") and isinstance(png, str) else png

    draw_and_tell.tells_alt = True
    formatter.for_type(Figure, draw_and_tell)
