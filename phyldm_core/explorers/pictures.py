"""Pictures for explorers: slices, colour bars and strips as pixels, quick enough for a slider, readable from the back.

A matplotlib figure takes ten times as long. Windows and colours are those of :mod:`phyldm_core.figures.style`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from ..figures.style import QUANTITIES, quantity_of, to_rgb
from ..physics import Protocol

HEIGHT = 560  # pixels of a picture shown large; a browser may show it smaller or larger
GAP = 10  # pixels between pictures
FONT, LARGE = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (16, 19))  # 19 is read from the last row


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
    return np.asarray(beside([image, upright_bar(quantity, height)], 4) if bar and quantity else image)


def paint_slice(
    image: np.ndarray,
    window: tuple[float, float],
    voxel_mm: tuple[float, float],
    protocol: Protocol,
    cross: tuple[int, int],
    corner: str = "",
) -> np.ndarray:
    """``(HEIGHT, columns, 3)`` picture of a slice with cross, orientation, protocol, window and scale.

    Parameters
    ----------
    image
        ``(y, x)``, y towards anterior, x towards the patient's right; shown radiologically.
    window
        Black and white.
    voxel_mm
        (y, x).
    cross
        Row and column in the view, counted from its top left.
    corner
        Written at the top left.
    """
    (n_y, n_x), (mm_y, mm_x) = image.shape, voxel_mm
    per_mm = HEIGHT / (n_y * mm_y)
    width = round(n_x * mm_x * per_mm)
    picture = Image.fromarray(to_rgb(image, window=window)).resize((width, HEIGHT), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    y, x = (cross[0] + 0.5) * mm_y * per_mm, (cross[1] + 0.5) * mm_x * per_mm
    for near, far in ((6, 16), (-6, -16)):  # a gap in the middle keeps the voxel in view
        draw.line((x + near, y, x + far, y), fill="yellow", width=2)
        draw.line((x, y + near, x, y + far), fill="yellow", width=2)

    write = partial(_write, draw, font=LARGE)
    name, _, settings = str(protocol).partition(", ")
    times, flip, angle = settings.partition(", flip")
    for line, text in enumerate((name, times, flip[2:] + angle)):
        write((8, 28 + 24 * line), text, "la")
    write((8, 4), corner, "la")
    write((width / 2, 4), "A", "ma")
    write((8, HEIGHT / 2), "R", "lm")
    write((width - 8, HEIGHT / 2), "L", "rm")
    write((8, HEIGHT - 8), f"W {window[1] - window[0]:.3f}  L {(window[0] + window[1]) / 2:.3f}", "ld")
    draw.line((width - 10 - 50 * per_mm, HEIGHT - 10, width - 10, HEIGHT - 10), fill="white", width=3)
    write((width - 10, HEIGHT - 18), "50 mm", "rd")
    return np.asarray(picture)


@cache
def upright_bar(name: str, height: int) -> Image.Image:
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


def strip(values: Sequence, name: str, window, labels: Sequence[str], chosen: int) -> np.ndarray:
    """Slices ``(n, y, x)`` in a row, five to a line, named underneath; the chosen one in a yellow frame."""
    height, frames = 128, []
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


def _write(draw, at, text: str, anchor: str, font=FONT) -> None:
    draw.text(at, text, fill="white", font=font, anchor=anchor, stroke_width=2, stroke_fill="black")


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
