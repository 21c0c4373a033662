"""What is left of a picture in greyscale print and for colour-blind readers.

Simulations are those of Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113) at full severity, distances
those of CAM02-UCS (Luo, Cui and Li 2006), in which about 1 is just noticeable side by side; both from colorspacious.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from colorspacious import cspace_convert, deltaE
from matplotlib.font_manager import findfont
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

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


STRONG, FAINT = 20.0, 5.0
"""CAM02-UCS between neighbouring pixels: from where on an edge counts, and below what it is lost."""


def edges_lost(rgb: ArrayLike, vision: str) -> float:
    """Share of a picture's strong edges that are as good as gone for a vision.

    Parameters
    ----------
    rgb
        ``(y, x, 3)``, sRGB 0 to 1.
    """
    before, after = _steps(np.asarray(rgb, float)), _steps(seen(rgb, vision))
    counts = before > STRONG
    return float((after[counts] < FAINT).mean()) if counts.any() else 0.0


def _steps(rgb: NDArray) -> NDArray:
    ucs = cspace_convert(rgb, "sRGB1", "CAM02-UCS")
    return np.concatenate([np.linalg.norm(np.diff(ucs, axis=axis), axis=-1).ravel() for axis in (0, 1)])


def shrunk(picture: Image.Image, width: int) -> Image.Image:
    """The same picture, ``width`` pixels wide."""
    return picture.convert("RGB").resize(
        (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
    )


def contact_sheet(pictures: Mapping[str, Image.Image], width: int = 200) -> Image.Image:
    """Every picture (name → RGB) in a row of its own, once for each of :data:`VISIONS`, ``width`` pixels wide."""
    font, gap = ImageFont.truetype(findfont("DejaVu Sans"), 13), 6
    small = {name: shrunk(picture, width) for name, picture in pictures.items()}
    height = sum(p.height + 24 for p in small.values()) + 24
    sheet = Image.new("RGB", (len(VISIONS) * (width + gap), height), "white")
    draw, y = ImageDraw.Draw(sheet), 24
    for k, vision in enumerate(VISIONS):
        draw.text((k * (width + gap) + width / 2, 4), vision, "black", font, "ma")
    for name, picture in small.items():
        draw.text((0, y + 3), name, "black", font)
        rgb = np.asarray(picture) / 255
        for k, vision in enumerate(VISIONS):
            pixels = Image.fromarray((255 * seen(rgb, vision)).round().astype(np.uint8))
            sheet.paste(pixels, (k * (width + gap), y + 20))
        y += picture.height + 24
    return sheet
