"""Pictures for explorers: slices, colour bars and strips as pixels, quick enough for a slider, readable from the back.

A matplotlib figure takes ten times as long. Windows and colours are those of :mod:`phyldm_core.figures.style`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from ..figures.style import QUANTITIES, quantity_of, to_rgb

GAP = 10  # pixels between pictures
FONT = ImageFont.truetype(findfont("DejaVu Sans"), 16)


def picture(values, name: str, window, height: int, voxel_mm: float, inside=None, bar: bool = False) -> np.ndarray:
    """One slice ``(y, x)``, ``height`` pixels high, with R, A, L and 50 mm; ``bar`` adds the colour bar of a map."""
    quantity = name if name in QUANTITIES else None
    rgb = to_rgb(values, quantity, window=window, inside=inside)
    per_mm = height / (values.shape[0] * voxel_mm)
    width = round(values.shape[1] * voxel_mm * per_mm)
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for x, mark, anchor in ((6, "R", "la"), (width / 2, "A", "ma"), (width - 6, "L", "ra")):
        _write(draw, (x, 4), mark, anchor)
    if height > 300:
        draw.line((10, height - 10, 10 + 50 * per_mm, height - 10), fill="white", width=3)
        _write(draw, (10, height - 16), "50 mm", "ld")
    return np.asarray(beside([image, colour_bar(quantity, height)], 4) if bar and quantity else image)


@cache
def colour_bar(name: str, height: int) -> Image.Image:
    """Upright, with ticks and unit, in letters for the last row."""
    shown, width = quantity_of(name), 16
    # Equal steps of colour, not of value: where the display curve bends, ticks stand closer.
    levels = shown.cmap(np.linspace(1, 0, height - 40), bytes=True)[:, None, :3]
    page = Image.new("RGB", (86, height), "white")
    page.paste(Image.fromarray(np.repeat(levels, width, 1)), (0, 30))
    draw, norm = ImageDraw.Draw(page), shown.norm()
    for tick in shown.ticks:
        y = 30 + (height - 40) * (1 - float(norm(tick)))
        draw.line((width, y, width + 5, y), fill="black", width=2)
        draw.text((width + 9, y), f"{tick * shown.per_unit:g}".replace("-", "−"), "black", FONT, "lm")
    draw.text((0, 4), {"PD": "PD", "T1": "T1 (s)", "T2": "T2 (ms)"}.get(name, "%"), "black", FONT)
    return page


def strip(values: Sequence, name: str, window, labels: Sequence[str], chosen: int, height: int = 128) -> np.ndarray:
    """Slices ``(n, y, x)`` in a row, five to a line, named underneath; the chosen one in a yellow frame."""
    lines, frames = [], []
    for k, (one, label) in enumerate(zip(values, labels, strict=True)):
        width = round(height * one.shape[1] / one.shape[0])
        rgb = to_rgb(one, name if name in QUANTITIES else None, window=window)
        frame = Image.new("RGB", (max(width, 76) + 8, height + 30), "white")
        image = Image.fromarray(rgb).resize((width, height), Image.Resampling.NEAREST)
        if k == chosen:
            ImageDraw.Draw(frame).rectangle((0, 0, width + 7, height + 7), fill="#e0a800")
        frame.paste(image, (4, 4))
        ImageDraw.Draw(frame).text((width / 2 + 4, height + 10), label, "black", FONT, "ma")
        frames.append(frame)
    lines = [beside(frames[i : i + 5], 2) for i in range(0, len(frames), 5)]
    return np.asarray(under(lines))


def titled(image: np.ndarray, title: str) -> Image.Image:
    page = Image.new("RGB", (image.shape[1], image.shape[0] + 22), "white")
    page.paste(Image.fromarray(image), (0, 22))
    ImageDraw.Draw(page).text((0, 1), title, "black", FONT)
    return page


def beside(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures in a row on white, tops level."""
    images = list(images)
    width = sum(i.width for i in images) + gap * (len(images) - 1)
    page = Image.new("RGB", (width, max(i.height for i in images)), "white")
    x = 0
    for image in images:
        page.paste(image, (x, 0))
        x += image.width + gap
    return page


def under(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a column on white, left edges level."""
    page = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), "white")
    y = 0
    for image in images:
        page.paste(image, (0, y))
        y += image.height
    return page


def _write(draw, at, text: str, anchor: str) -> None:
    draw.text(at, text, fill="white", font=FONT, anchor=anchor, stroke_width=2, stroke_fill="black")


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
