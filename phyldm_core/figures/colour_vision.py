"""What is left of a picture in greyscale print and for colour-blind readers.

Simulations are those of Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113) at full severity, distances
those of CAM02-UCS (Luo, Cui and Li 2006), in which about 1 is just noticeable side by side; both from colorspacious.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from colorspacious import cspace_convert, deltaE
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ..people.anatomy import load_anatomy
from ..tissue import AIR_PD, in_vivo_3t
from .style import FIGURE_WIDTH, QUANTITIES, TISSUE_COLOURS, save_figure, to_rgb, use_house_style, write_on

VISIONS = ("as it is", "greyscale", "deuteranomaly", "protanomaly", "tritanomaly")
"""Deuter- and protanomaly (green, red): 6 % and 2 % of men in Europe; tritanomaly (blue): rare, or a yellowed lens."""


def seen(rgb: ArrayLike, vision: str) -> NDArray:
    """Colours ``(..., 3)``, sRGB 0 to 1, as they are seen by one of :data:`VISIONS`; again sRGB.

    Raises
    ------
    ValueError
        For another vision.
    """
    rgb = np.asarray(rgb, float)
    if vision == "as it is":
        return rgb
    if vision == "greyscale":
        lab = cspace_convert(rgb, "sRGB1", "CIELab")
        lab[..., 1:] = 0  # a printer keeps the lightness
        return np.clip(cspace_convert(lab, "CIELab", "sRGB1"), 0, 1)
    if vision not in VISIONS:
        raise ValueError(f"no vision {vision!r}: choose one of {', '.join(VISIONS)}")
    space = {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}
    return np.clip(cspace_convert(rgb, space, "sRGB1"), 0, 1)


def lightness(rgb: ArrayLike) -> NDArray:
    """L* of colours ``(..., 3)``: 0 black, 100 white."""
    return cspace_convert(np.asarray(rgb, float), "sRGB1", "CIELab")[..., 0]


def closest(colours: Mapping[str, ArrayLike], vision: str) -> tuple[float, str]:
    """The smallest distance between any two of the colours (name → sRGB) as seen, and the pair, "A–B"."""
    names, shown = list(colours), seen(np.array(list(colours.values())), vision)
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    distances = [float(deltaE(shown[i], shown[j], input_space="sRGB1")) for i, j in pairs]
    k = int(np.argmin(distances))
    return distances[k], f"{names[pairs[k][1]]}–{names[pairs[k][0]]}"


def house_colours() -> Figure:
    """Figure of :data:`VISIONS`: a T1 map, a T2 map and a made-up error with their bars, and the tissue colours."""
    fractions = load_anatomy("mni152", None, slab_mm=2, head=False, blur_mm=0.7).fractions
    middle = fractions[:, fractions.shape[1] // 2, ::2, ::2]
    pd, t1, t2 = mix_medians(middle)
    shape = np.shape(t1)
    error = 30 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, shape[1])) * np.ones(shape)  # −30 to 30 %, left to right
    rows = {"T1": t1, "T2": t2, "error": error}
    swatches = np.array([[mpl.colors.to_rgb(colour) for colour in TISSUE_COLOURS.values()]])
    ratios = (6, 0.5) * len(rows) + (1,)
    fig, axes = plt.subplots(7, 5, figsize=(FIGURE_WIDTH, 6.6), height_ratios=ratios, layout="constrained")
    for column, vision in zip(axes.T, VISIONS, strict=True):
        column[0].set_title(vision)
        for k, (quantity, values) in enumerate(rows.items()):
            shown = QUANTITIES[quantity]
            bar = shown.cmap(np.asarray(shown.norm()(np.linspace(shown.low, shown.high, 200)), float))[None, :, :3]
            column[2 * k].imshow(seen(to_rgb(values, quantity, inside=pd > AIR_PD) / 255, vision))
            column[2 * k + 1].imshow(seen(bar, vision), aspect="auto")
            for x, mark, ha in ((0.03, "R", "left"), (0.5, "A", "center"), (0.97, "L", "right")):
                write_on(column[2 * k], x, 0.985, mark, ha=ha, va="top")
        column[6].imshow(seen(swatches, vision), aspect="auto")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax in axes[6]:
        ax.set_xticks(range(3), list(TISSUE_COLOURS), size=7)
    for k, quantity in enumerate(rows):
        axes[2 * k, 0].set_ylabel(QUANTITIES[quantity].label)
    axes[6, 0].set_ylabel("tissue", rotation=0, ha="right", va="center")
    return fig


def mix_medians(fractions) -> tuple[NDArray, NDArray, NDArray]:
    """PD, T1 (s) and T2 (s) of tissue fractions ``(k, y, x)`` with the literature's medians, mixed by water."""
    shares, medians = np.asarray(fractions, float), np.nan_to_num(in_vivo_3t().median)
    water = np.einsum("kyx,k->yx", shares, medians[:, 0])
    weights = shares * medians[:, 0, None, None] / np.maximum(water, 1e-6)
    times = (np.exp(np.einsum("kyx,k->yx", weights, np.log(np.maximum(medians[:, i], 1e-6)))) for i in (1, 2))
    return water, *times


def write_figure(figures_dir: str | Path) -> None:
    """Make Figure 29, which ``figures/STYLE.md`` explains."""
    with mpl.rc_context():
        use_house_style()
        fig = house_colours()
        save_figure(fig, figures_dir, FIGURE, caption=CAPTION, alt=ALT)
        plt.close(fig)


FIGURE = "fig29_colour_vision"
CAPTION = (
    "The house colours as they are, in grey and for other eyes. Simulated deuter-, prot- and tritanomaly at full "
    "severity: T1 (0 to 4 s), T2 (0 to 200 ms), a made-up error from −30 % (right) to 30 % (left), each with its "
    "colour bar, and the tissue colours. The MNI152 template with median tissue (n = 1 slice); maps, so no protocol."
)
ALT = "Five columns of the same T1 map, T2 map, error and tissue colours; in grey both ends of the error are dark."
