"""F2: the architecture, drawn as vectors from the numbers of the code's own configuration, so that it cannot drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import ArrayLike

from ..slices import MAPS
from ..tissue import AIR_PD
from .style import FIGURE_WIDTH, as_array, symbol, to_rgb

Stage = tuple[int, tuple[int, int]]
"""(channels, (y, x)) of one level of a network."""

INK, SLAB, LATENT, PHYSICS = "0.2", "#c9d6e3", "#cc78bc", "#4a4a4a"
LOW, LANES, BESIDE = 0.36, 1.96, 0.72  # in; axis of the lower lane, the upper above it, and more with a second latent
ABOVE = 1.43  # in, what the upper lane needs above its axis
THUMB = 0.46  # in, width of a picture
WIDEST = 0.5  # in, of a level: a network of one is no wall


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
    composition: tuple[int, int, int] | None = None,
    parameters: Mapping[str, int] | None = None,
    pictures: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Scans → shared encoder → product of experts → latent → decoder → PD, T1, T2 → signal equations; diffusion below.

    What to give it for a profile is read off its networks: :func:`phyldm_core.running.profiles.architecture_of`.

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
    composition
        (channels, y, x) of the latent of compositions that is generated; None where the VAE's own is.
    parameters
        "encoder", "decoder", "denoiser", "composition" → number of parameters.
    pictures
        Name → slice ``(y, x)`` for any of ``scans``, ``contrasts``, "PD", "T1", "T2" (inputs before outputs of
        the same name: write "in T1w" for another input picture); a grey field with the name otherwise.
    """
    parameters, pictures = parameters or {}, pictures or {}
    middle = LOW + LANES + (BESIDE if composition else 0)
    caption = middle - 1.2  # top of the line of names under the upper lane
    height = middle + ABOVE
    fig = plt.figure(figsize=(FIGURE_WIDTH, height))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, FIGURE_WIDTH), ylim=(0, height))
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
        middles = [middle + step * ((len(names) - 1) / 2 - i) for i in range(len(names))]
        for name, y in zip(names, middles, strict=True):
            values = pictures.get(prefix + name, pictures.get(name))
            edges = (x - THUMB / 2, x + THUMB / 2, y - tall / 2, y + tall / 2)
            if values is None:
                ax.add_patch(Rectangle((edges[0], edges[2]), THUMB, tall, fc="0.9", ec="0.6", lw=0.5))
            else:
                quantity = name if name in MAPS else None
                times = name in ("T1", "T2") and "PD" in pictures
                inside = as_array(pictures["PD"]) > AIR_PD if times else None
                ax.imshow(to_rgb(values, quantity, inside=inside), extent=edges, interpolation="nearest", aspect="auto")
            text(x, y + tall / 2 + 0.015, symbol(name), va="bottom", size=6.5)
        return middles

    def size_of(key):
        return f"\n{_count(parameters[key])}" if key in parameters else ""

    tallest = max(y for _, (y, _) in (*encoder, *decoder))

    def network(x0, x1, stages, name, key):
        """Levels as slabs: height by the size of the picture, width by the channels."""
        heights = [1.7 * (y / tallest) ** 0.5 for _, (y, _) in stages]
        widths = np.sqrt([channels for channels, _ in stages])
        widths = np.clip(widths / widths.sum() * (x1 - x0 - 0.04 * (len(stages) - 1)), 0.11, WIDEST)
        centres = x0 + np.cumsum(widths + 0.04) - 0.04 - widths / 2
        centres += (x0 + x1 - centres[0] + widths[0] / 2 - centres[-1] - widths[-1] / 2) / 2
        for (channels, (y, x)), height, width, centre in zip(stages, heights, widths, centres, strict=True):
            box(centre, middle, width, height, 0.025, fc=SLAB, ec=INK, lw=0.6)
            text(centre, middle, f"{y}×{x}", rotation=90, size=6)
            text(centre, middle - height / 2 - 0.07, str(channels), size=6)
        text((x0 + x1) / 2, caption, name + size_of(key), va="top", linespacing=1.25)
        nearest = np.abs(centres - (x0 + x1) / 2).argmin()
        top = centres[nearest], middle + heights[nearest] / 2
        return centres[0] - widths[0] / 2, centres[-1] + widths[-1] / 2, top

    # Upper lane: from scans to tissue and back to scans.
    inputs = pictured(0.36, scans, "in ")
    first, last, top = network(0.98, 2.02, encoder, "encoder, shared", "encoder")
    for y in inputs:
        arrow((0.36 + THUMB / 2 + 0.03, y), (first - 0.03, middle + 0.35 * (y - middle)), lw=0.7)
    text((first + last) / 2, middle + 1.25, f"adaptive norm:\n{condition}", size=6.5, linespacing=1.2)
    arrow((top[0], middle + 1.1), top)

    x = np.linspace(-1, 1, 90)
    for i in range(len(inputs)):  # one Gaussian per scan; the product is the narrowest
        row = middle + 0.36 * (len(inputs) / 2 - i)
        ax.plot(2.4 + 0.2 * x, row + 0.24 * np.exp(-((x - 0.25 * (i - 1)) ** 2) / 0.13), color=INK, lw=0.8)
        ax.plot((2.19, 2.61), (row, row), color=INK, lw=0.4)
    base = middle - 0.36 * len(inputs) / 2 - 0.12
    ax.fill_between(2.4 + 0.2 * x, base, base + 0.4 * np.exp(-(x**2) / 0.03), color=LATENT, lw=0)
    ax.plot((2.19, 2.61), (base, base), color=INK, lw=0.4)
    text(2.4, middle + 0.36 * len(inputs) / 2 + 0.44, "one Gaussian\nper scan", size=6.5, linespacing=1.2)
    text(2.4, caption, "product of\nexperts", va="top", linespacing=1.25)
    arrow((last + 0.04, middle), (2.15, middle))

    channels, ny, nx = latent
    z = (3.03, middle)
    arrow((2.65, middle), (z[0] - 0.22, middle))
    _lattice(ax, *z, ny, nx, LATENT)
    text(z[0], caption, f"latent $z$\n{channels}×{ny}×{nx}", va="top", linespacing=1.25)

    first, last, _ = network(3.42, 4.42, decoder, "decoder", "decoder")
    arrow((z[0] + 0.22, middle), (first - 0.03, middle))
    for y in pictured(4.93, MAPS):
        arrow((last + 0.03, middle + 0.35 * (y - middle)), (4.93 - THUMB / 2 - 0.03, y), lw=0.7)
        arrow((4.93 + THUMB / 2 + 0.03, y), (5.46, middle + 0.5 * (y - middle)), lw=0.7)
    box(5.74, middle, 0.5, 1.44, fc=PHYSICS, ec="none")
    text(5.74, middle, "signal\nequations", color="white", rotation=90, linespacing=1.3)
    text(5.74, middle + 1.25, "any\nTE, TR, TI", size=6.5, linespacing=1.2)
    arrow((5.74, middle + 1.1), (5.74, middle + 0.75))
    for y in pictured(6.6, contrasts):
        arrow((6.02, middle + 0.5 * (y - middle)), (6.6 - THUMB / 2 - 0.03, y), lw=0.7)
    text(0.36, caption, "any of\nthe scans", va="top", linespacing=1.25)
    text(4.93, caption, "tissue", va="top")
    text(6.6, caption, "any contrast", va="top")

    # Lower lane: noise becomes a latent, or a composition and then tissue.
    made, pink = composition or latent, "#8c3f7d"
    _lattice(ax, 0.98, LOW, *made[1:], "0.55", noise=True)
    text(0.7, LOW, "noise", ha="right")
    arrow((1.22, LOW), (1.5, LOW), LATENT)
    box(2.1, LOW, 1.14, 0.4, fc="white", ec=LATENT, lw=1.2)
    text(2.1, LOW, denoiser + size_of("denoiser"), size=6, linespacing=1.25)
    told = f"from noise to a latent in {n_steps} steps"
    if composition is None:
        ax.plot((2.7, z[0]), (LOW, LOW), color=LATENT, lw=0.9, solid_capstyle="butt")
        arrow((z[0], LOW), (z[0], caption - 0.3), LATENT)
        text(z[0] + 0.1, LOW, f"latent diffusion: {told}", ha="left", color=pink)
        return fig
    arrow((2.7, LOW), (z[0] - 0.22, LOW), LATENT)
    _lattice(ax, z[0], LOW, *composition[1:], LATENT)
    size = "×".join(map(str, composition))
    text(z[0] + 0.27, LOW, f"latent of compositions {size}\nlatent diffusion: {told}", ha="left", color=pink,
         linespacing=1.3)  # fmt: skip
    level = (LOW + 0.28 + caption - 0.3) / 2  # halfway between the latent and the maps
    box(4.4, level, 1.2, 0.4, fc=SLAB, ec=INK, lw=0.6)
    text(4.4, level, "composition level" + size_of("composition"), size=6, linespacing=1.25)
    arrow((z[0] + 0.12, LOW + 0.29), (3.78, level - 0.08), LATENT)
    arrow((4.93, level + 0.21), (4.93, caption - 0.2), LATENT)
    arrow((3.78, level + 0.12), (z[0] - 0.12, LOW + 0.29), "0.5", ls=(0, (2, 1.5)))
    text(5.06, level, "shares of tissues,\ntheir values, texture", ha="left", color=pink, linespacing=1.25, size=6.5)
    text(z[0] - 0.25, level, "learned from inferred maps", ha="right", color="0.4")
    return fig


def _count(n: int) -> str:
    return f"{n / 1e6:.1f} M parameters" if n >= 1e5 else f"{n / 1e3:.0f} k parameters"


def _lattice(ax, x: float, y: float, ny: int, nx: int, colour: str, noise: bool = False) -> None:
    """The latent as a grid of at most 14 × 10 cells, of one size however many, coloured the same each time."""
    rows, columns = min(ny, 14), min(nx, 10)
    cell, rng = min(0.525 / rows, 0.4 / columns), np.random.default_rng(0)
    strength = rng.uniform(0.15, 0.95, (rows, columns))
    if not noise:  # smooth, as a latent of a head is
        yy, xx = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        strength = 0.15 + 0.75 * np.exp(-(yy**2 + xx**2) / 0.7) * (0.6 + 0.4 * strength)
    for i, j in np.ndindex(rows, columns):
        corner = (x + cell * (j - columns / 2), y + cell * (i - rows / 2))
        ax.add_patch(Rectangle(corner, cell, cell, fc=colour, alpha=strength[i, j], ec="white", lw=5 * cell))
