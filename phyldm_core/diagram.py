"""F2: the architecture, drawn as vectors from the numbers of the code's own configuration, so that it cannot drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import ArrayLike

from .display import BACKGROUND_PD, FIGURE_WIDTH, MAPS, as_array, symbol, to_rgb

Stage = tuple[int, tuple[int, int]]
"""(channels, (y, x)) of one level of a network."""

INK, NETWORK, LATENT, PHYSICS = "0.2", "#c9d6e3", "#cc78bc", "#4a4a4a"
HEIGHT, MIDDLE = 3.75, 2.32  # in; the figure's height and the axis of its upper lane
THUMB = 0.46  # in, width of a picture
CAPTION = MIDDLE - 1.2  # in, top of the line of names under the upper lane


def architecture(
    *,
    scans: Sequence[str],
    encoder: Sequence[Stage],
    latent: tuple[int, int, int],
    decoder: Sequence[Stage],
    denoiser: str,
    n_steps: int,
    contrasts: Sequence[str] = ("T1w", "T2w", "FLAIR"),
    condition: str = "sequence, TE, TR, TI",
    parameters: Mapping[str, int] | None = None,
    pictures: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Scans → shared encoder → product of experts → latent → decoder → PD, T1, T2 → signal equations; diffusion below.

    Parameters
    ----------
    scans, contrasts
        Names of the scans that go in and of the images that come out; three of each fit.
    encoder, decoder
        Levels in the order the data pass them, each (channels, (y, x)): heights and widths are drawn from these.
    latent
        (channels, y, x).
    denoiser, n_steps
        What the network is ("transformer, 12 × 384"), and the solver's steps.
    condition
        What steers the encoder's adaptive norm.
    parameters
        "encoder", "decoder", "denoiser" → number of parameters.
    pictures
        Name → slice ``(y, x)`` for any of ``scans``, ``contrasts``, "PD", "T1", "T2" (inputs before outputs of
        the same name: write "in T1w" for another input picture); a grey field with the name otherwise.
    """
    parameters, pictures = parameters or {}, pictures or {}
    fig = plt.figure(figsize=(FIGURE_WIDTH, HEIGHT))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, FIGURE_WIDTH), ylim=(0, HEIGHT))
    ax.axis("off")

    def text(x, y, string, **style):
        return ax.text(x, y, string, **({"ha": "center", "va": "center", "size": 7, "color": INK} | style))

    def arrow(start, end, colour=INK, **style):
        look = {"arrowstyle": "-|>", "mutation_scale": 7, "lw": 0.9, "color": colour, "shrinkA": 0, "shrinkB": 0}
        ax.add_patch(FancyArrowPatch(start, end, **(look | style)))

    def box(x, y, width, height, rounding=0.05, **style):
        shape = f"round,pad=0,rounding_size={rounding}"
        ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=shape, **style))

    def pictured(x, names, prefix=""):
        """A column of pictures centred on the lane; returns their middles."""
        shapes = [np.shape(values) for values in pictures.values()]
        tall = THUMB * (shapes[0][0] / shapes[0][1] if shapes else 1.4)
        step = tall + 0.17
        middles = [MIDDLE + step * ((len(names) - 1) / 2 - i) for i in range(len(names))]
        for name, y in zip(names, middles, strict=True):
            values = pictures.get(prefix + name, pictures.get(name))
            edges = (x - THUMB / 2, x + THUMB / 2, y - tall / 2, y + tall / 2)
            if values is None:
                ax.add_patch(Rectangle((edges[0], edges[2]), THUMB, tall, fc="0.9", ec="0.6", lw=0.5))
            else:
                quantity = name if name in MAPS else None
                times = name in ("T1", "T2") and "PD" in pictures
                inside = as_array(pictures["PD"]) > BACKGROUND_PD if times else None
                ax.imshow(to_rgb(values, quantity, inside=inside), extent=edges, interpolation="nearest", aspect="auto")
            text(x, y + tall / 2 + 0.015, symbol(name), va="bottom", size=6.5)
        return middles

    tallest = max(y for _, (y, _) in (*encoder, *decoder))

    def network(x0, x1, stages, name, key):
        """Levels as slabs: height by the size of the picture, width by the channels."""
        heights = [1.7 * (y / tallest) ** 0.5 for _, (y, _) in stages]
        widths = np.sqrt([channels for channels, _ in stages])
        widths = np.clip(widths / widths.sum() * (x1 - x0 - 0.04 * (len(stages) - 1)), 0.11, None)
        centres = x0 + np.cumsum(widths + 0.04) - 0.04 - widths / 2
        centres += (x0 + x1 - centres[0] + widths[0] / 2 - centres[-1] - widths[-1] / 2) / 2
        for (channels, (y, x)), height, width, centre in zip(stages, heights, widths, centres, strict=True):
            box(centre, MIDDLE, width, height, 0.025, fc=NETWORK, ec=INK, lw=0.6)
            text(centre, MIDDLE, f"{y}×{x}", rotation=90, size=5.5)
            text(centre, MIDDLE + height / 2 + 0.06, str(channels), size=5.5)
        size = f"\n{_count(parameters[key])}" if key in parameters else ""
        text((x0 + x1) / 2, CAPTION, name + size, va="top", linespacing=1.25)
        return centres[0] - widths[0] / 2, centres[-1] + widths[-1] / 2

    # Upper lane: from scans to tissue and back to scans.
    inputs = pictured(0.36, scans, "in ")
    first, last = network(0.98, 2.02, encoder, "encoder, shared", "encoder")
    for y in inputs:
        arrow((0.36 + THUMB / 2 + 0.03, y), (first - 0.03, MIDDLE + 0.35 * (y - MIDDLE)), lw=0.7)
    text((first + last) / 2, MIDDLE + 1.25, f"adaptive norm:\n{condition}", size=6.5, linespacing=1.2)
    arrow(((first + last) / 2, MIDDLE + 1.1), ((first + last) / 2, MIDDLE + 0.8))

    x = np.linspace(-1, 1, 90)
    for i in range(len(inputs)):  # one Gaussian per scan; the product is the narrowest
        row = MIDDLE + 0.36 * (len(inputs) / 2 - i)
        ax.plot(2.4 + 0.2 * x, row + 0.24 * np.exp(-((x - 0.25 * (i - 1)) ** 2) / 0.13), color=INK, lw=0.8)
        ax.plot((2.19, 2.61), (row, row), color=INK, lw=0.4)
    base = MIDDLE - 0.36 * len(inputs) / 2 - 0.12
    ax.fill_between(2.4 + 0.2 * x, base, base + 0.4 * np.exp(-(x**2) / 0.03), color=LATENT, lw=0)
    ax.plot((2.19, 2.61), (base, base), color=INK, lw=0.4)
    text(2.4, MIDDLE + 0.36 * len(inputs) / 2 + 0.44, "one Gaussian\nper scan", size=6.5, linespacing=1.2)
    text(2.4, CAPTION, "product of\nexperts", va="top", linespacing=1.25)
    arrow((last + 0.04, MIDDLE), (2.15, MIDDLE))

    channels, ny, nx = latent
    z = (3.03, MIDDLE)
    arrow((2.65, MIDDLE), (z[0] - 0.22, MIDDLE))
    _lattice(ax, *z, ny, nx, LATENT)
    text(z[0], CAPTION, f"latent $z$\n{channels}×{ny}×{nx}", va="top", linespacing=1.25)

    first, last = network(3.42, 4.42, decoder, "decoder", "decoder")
    arrow((z[0] + 0.22, MIDDLE), (first - 0.03, MIDDLE))
    for y in pictured(4.93, MAPS):
        arrow((last + 0.03, MIDDLE + 0.35 * (y - MIDDLE)), (4.93 - THUMB / 2 - 0.03, y), lw=0.7)
        arrow((4.93 + THUMB / 2 + 0.03, y), (5.46, MIDDLE + 0.5 * (y - MIDDLE)), lw=0.7)
    box(5.74, MIDDLE, 0.5, 1.44, fc=PHYSICS, ec="none")
    text(5.74, MIDDLE, "signal\nequations", color="white", rotation=90, linespacing=1.3)
    text(5.74, MIDDLE + 1.25, "any\nTE, TR, TI", size=6.5, linespacing=1.2)
    arrow((5.74, MIDDLE + 1.1), (5.74, MIDDLE + 0.75))
    for y in pictured(6.6, contrasts):
        arrow((6.02, MIDDLE + 0.5 * (y - MIDDLE)), (6.6 - THUMB / 2 - 0.03, y), lw=0.7)
    text(0.36, CAPTION, "any of\nthe scans", va="top", linespacing=1.25)
    text(4.93, CAPTION, "tissue", va="top")
    text(6.6, CAPTION, "any contrast", va="top")

    # Lower lane: noise becomes a latent.
    low = 0.36
    _lattice(ax, 0.98, low, ny, nx, "0.55", noise=True)
    text(0.7, low, "noise", ha="right")
    arrow((1.22, low), (1.5, low), LATENT)
    box(2.1, low, 1.14, 0.4, fc="white", ec=LATENT, lw=1.2)
    size = f"\n{_count(parameters['denoiser'])}" if "denoiser" in parameters else ""
    text(2.1, low, denoiser + size, size=6, linespacing=1.25)
    ax.plot((2.7, z[0]), (low, low), color=LATENT, lw=0.9, solid_capstyle="butt")
    arrow((z[0], low), (z[0], CAPTION - 0.3), LATENT)
    text(z[0] + 0.1, low, f"latent diffusion: from noise to a latent in {n_steps} steps", ha="left", color="#8c3f7d")
    return fig


def _count(n: int) -> str:
    return f"{n / 1e6:.1f} M parameters" if n >= 1e5 else f"{n / 1e3:.0f} k parameters"


def _lattice(ax, x: float, y: float, ny: int, nx: int, colour: str, noise: bool = False) -> None:
    """The latent as a small grid of at most 7 × 5 cells, coloured at random but the same each time."""
    rows, columns = min(ny, 7), min(nx, 5)
    cell, rng = 0.075, np.random.default_rng(0)
    strength = rng.uniform(0.15, 0.95, (rows, columns))
    if not noise:  # smooth, as a latent of a head is
        yy, xx = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        strength = 0.15 + 0.75 * np.exp(-(yy**2 + xx**2) / 0.7) * (0.6 + 0.4 * strength)
    for i, j in np.ndindex(rows, columns):
        corner = (x + cell * (j - columns / 2), y + cell * (i - rows / 2))
        ax.add_patch(Rectangle(corner, cell, cell, fc=colour, alpha=strength[i, j], ec="white", lw=0.4))
