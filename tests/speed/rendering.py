"""Physics: a whole brain at 1 mm as FLAIR, against NumPy and against what the machine can do at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas
import torch

from phyldm_core.physics import PART, REFERENCE, TissueMaps, render

from .timing import Row, compare, slope, take_turns

SHAPE = (182, 218, 182)  # voxels of 1 mm, the MNI152 template's box
FLAIR = REFERENCE["FLAIR"]


def tissue(shape: tuple[int, ...]) -> TissueMaps:
    """Tissue in every voxel, no air to skip."""
    pd, t1, t2 = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    return TissueMaps(pd + 0.1, 0.5 + 3 * t1, 0.05 + 0.3 * t2)


def plain(maps: TissueMaps) -> np.ndarray:
    """The equation as one would write it down."""
    pd, t1, t2, te, tr, ti = *maps, FLAIR.te, FLAIR.tr, FLAIR.ti
    return np.abs(pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2))


def rows(rounds: int, shape: tuple[int, int, int] = SHAPE) -> Iterator[Row]:
    maps = tissue(shape)
    arrays, image = TissueMaps(*(values.numpy() for values in maps)), torch.empty(shape)
    few, result = torch.rand(PART), torch.empty(PART)

    def exponentials():
        for _ in range(max(1, 3 * image.numel() // PART)):
            torch.exp2(few, out=result)

    @torch.inference_mode()
    def ours():
        return render(maps, FLAIR)

    np.testing.assert_allclose(ours().numpy(), plain(arrays), atol=1e-6)
    ways = {
        "render": ours,
        "render, arrays": lambda: render(arrays, FLAIR),
        "NumPy": lambda: plain(arrays),
        "memory": lambda: torch.addcmul(*maps, out=image),  # reads three maps, writes one image
        "exponentials": exponentials,  # three a voxel, from cache
    }
    seconds = take_turns(ways, rounds)
    limits = seconds[["memory", "exponentials"]]
    seconds["limit"] = limits.max(axis=1)
    grown = [TissueMaps(*(values[: max(1, shape[0] // k)] for values in maps)) for k in (16, 4, 1)]
    growth = take_turns({m.pd.numel(): lambda m=m: render(m, FLAIR) for m in grown}, rounds).median()
    exponent = slope(list(growth.index), growth)
    what = "render a FLAIR of " + "×".join(map(str, shape))
    yield compare(what, seconds, "render", "NumPy", floor=2.0, growth_with_voxels=exponent)
    yield compare(what + ", from arrays", seconds, "render, arrays", "NumPy")
    share = pandas.DataFrame({"render": seconds.render, "limit": seconds.limit})
    bound = f"limit ({limits.median().idxmax()})"
    yield compare(
        what + ", share of the machine's limit", share.rename(columns={"limit": bound}), "render", bound,
        floor=0.25, aim=0.5, limits=limits.median().to_dict(),
    )  # fmt: skip
