"""``figures/explore.html``: tissue under any protocol in one file, with nothing to install and nobody to ask online.

The page is ``page.html`` with ``page.css``, the equations and rules of ``page_physics.js``, and two files that paint.
Its constants are this package's own. Maps are stored in 8 bits, so that the file is small and an image is repainted
from two tables of 256 exponentials.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .. import physics, protocol
from ..figures.style import QUANTITIES, TISSUE_COLOURS, symbol, to_rgb
from ..machine.errors import BadInput
from ..machine.files import write_atomically
from ..people.segmentation import brain_of
from ..physics import Sequence, TissueMaps
from ..running.report import EXPLORE
from ..tissue import three_medians
from ..weights import RELEASE_FOLDER
from .console import CLINIC, JUST_INSIDE, PRESETS, RANGES, STARTS_WITH, TR_FLOOR
from .people import TissueStack, draw_from, template_person, weights_of

FOLDER = Path(__file__).parent
PARTS = ("page.css", "page_physics.js", "page_curves.js", "page.js")
DRAWN_SEEDS = (7, 8, 9)  # of the brains that are drawn
LEVELS = {
    "PD": np.linspace(0, 1.1, 256),
    "T1": np.geomspace(0.1, 6, 256),  # s; 1.6 % from one to the next
    "T2": np.geomspace(0.01, 5, 256),  # s; 2.5 %
}
"""The values a map can have in the page. What lies beyond takes the last one; PD 0 is no tissue."""


def make_page(run_dir: str | Path, figures_dir: str | Path) -> Path:
    """The page of the template and of brains that the release's diffusion model draws, or the run's without a release.

    Where neither can draw, the sentence that says why is printed and the template is shown alone.
    """
    brains = {"MNI152 template": template_person(n_slices=1)}
    try:
        for seed in DRAWN_SEEDS:
            brains[f"drawn, seed {seed}"] = draw_from(weights_of(RELEASE_FOLDER, run_dir), seed)
    except BadInput as error:
        print(f"{EXPLORE} shows the template alone: {error}")
    return write_page(Path(figures_dir) / EXPLORE, brains)


def write_page(path: Path, brains: Mapping[str, TissueStack]) -> Path:
    """Write the page, whole or not at all; of each brain, by name, it shows the middle slice, the first one at once."""
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    data = json.dumps(constants() | {"brains": {name: stored(brain) for name, brain in brains.items()}})
    parts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in PARTS}
    parts["data"] = "const DATA = " + data.replace("</", "<\\/") + ";"  # a name must not end the script
    for name, text in parts.items():
        page = page.replace(f"/* {name} */", text)
    write_atomically(path, page.encode())
    return path


def constants() -> dict:
    """What the page takes from the package, as JSON has it: protocols, rules, tissue, levels and colours."""
    return {
        "sequences": [str(sequence) for sequence in Sequence],
        "clinic": {name: asdict(each) for name, each in CLINIC.items()},
        "paper": {name: asdict(each) for name, each in PRESETS.items() if name not in CLINIC},
        "usual": {str(sequence): asdict(each) for sequence, each in STARTS_WITH.items()},
        "ranges": RANGES,
        "just_inside": JUST_INSIDE,
        "tr_floor": TR_FLOOR,
        "shortest_time": physics.SHORTEST_TIME,
        "implausible": {
            "te": protocol.IMPLAUSIBLE_TE,
            "tr": protocol.IMPLAUSIBLE_TR,
            "flip_angle_deg": protocol.IMPLAUSIBLE_FLIP,
        },
        "tissues": three_medians(),
        "tissue_colours": TISSUE_COLOURS,
        "levels": {name: [float(f"{value:.6g}") for value in levels] for name, levels in LEVELS.items()},
        "colours": {name: colours(name) for name in LEVELS},
    }


def colours(name: str) -> dict:
    """How a map is shown: the colour of each level, the colour bar from low to high with its ticks, and the unit."""
    shown = QUANTITIES[name]
    norm = shown.norm()
    bar = norm.inverse(np.linspace(0, 1, 64))
    ticks = [(float(norm(tick)), f"{tick * shown.per_unit:g}") for tick in shown.ticks]
    label = shown.label.replace(symbol(name), name)
    painted = (to_rgb(values[None], name)[0, ::-1] for values in (LEVELS[name], bar))
    return dict(zip(("levels", "bar"), map(text, painted), strict=True)) | {"ticks": ticks, "label": label}


def stored(brain: TissueStack) -> dict:
    """Middle slice of a brain: levels of each map, and a bit a pixel for the brain, first the patient's right front."""
    middle = slice(len(brain.maps.pd) // 2, len(brain.maps.pd) // 2 + 1)
    maps = TissueMaps(*(torch.as_tensor(values[middle]) for values in brain.maps))
    planes = {name: text(level_of(values.numpy()[0], name)) for name, values in zip(LEVELS, maps, strict=True)}
    inside = np.packbits(brain_of(maps).numpy()[0, ::-1, ::-1], bitorder="little")
    return {"shape": maps.pd.shape[1:], "voxel_mm": brain.voxel_mm[1:], "brain": text(inside)} | planes


def level_of(values: np.ndarray, name: str) -> np.ndarray:
    """``(y, x)`` uint8: the nearest of :data:`LEVELS`, in the order of the screen."""
    levels = LEVELS[name]
    if name != "PD":
        levels, values = np.log(levels), np.log(np.maximum(values, levels[0]))
    share = (values - levels[0]) / (levels[-1] - levels[0])
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)[::-1, ::-1]


def text(values: np.ndarray) -> str:
    """Bytes as a page holds them."""
    return base64.b64encode(np.ascontiguousarray(values, np.uint8).tobytes()).decode()
