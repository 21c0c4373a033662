"""Who is in a cohort and how they were scanned: figures of anatomy in tissue colours, and of protocols drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import stats
from torch import Tensor

from .. import tissue
from .style import FIGURE_WIDTH, TISSUE_COLOURS, write_on

GROUPS = {
    "WM": ("WM", "cerebellar WM", "brain stem"), "GM": ("GM", "cerebellar GM"), "CSF": ("CSF",),
    "deep nuclei": ("thalamus", "caudate", "putamen", "pallidum", "hippocampus"), "lesion": ("lesion",),
    "outside the brain": tissue.HEAD,
}  # fmt: skip
"""Tissues that share a colour in a picture of anatomy."""
GROUP_COLOURS = TISSUE_COLOURS | {"deep nuclei": "#6b2c91", "lesion": "#f0e442", "outside the brain": "#c4c4c4"}


def in_tissue_colours(fractions: Tensor, groups: Sequence[str] = tuple(GROUPS)) -> np.ndarray:
    """Tissue fractions ``(k, y, x)`` as a picture ``(y, x, 3)``, radiological: colours mix as tissues do."""
    rows = [[tissue.TISSUES.index(t) for t in GROUPS[group]] for group in groups]
    parts = torch.stack([fractions[index].sum(0) for index in rows])
    rgb = torch.tensor([to_rgb(GROUP_COLOURS[name]) for name in groups])
    return torch.einsum("kyx,kc->yxc", parts, rgb).clamp(0, 1).flip(0, 1).numpy()


def anatomies(slices: Mapping[str, Tensor], *, columns: int = 6, voxel_mm: float = 2.0) -> Figure:
    """One slice of many people in tissue colours, name → fractions ``(k, y, x)``."""
    there = sum(fractions.sum((1, 2)) for fractions in slices.values())
    groups = [g for g, names in GROUPS.items() if any(there[tissue.TISSUES.index(t)] > 0 for t in names)]
    fig, axes = plt.subplots(-(-len(slices) // columns), columns, figsize=(FIGURE_WIDTH, 3.5), layout="constrained")
    for ax, (name, fractions) in zip(axes.flat, slices.items(), strict=True):
        ax.imshow(in_tissue_colours(fractions, groups))
        ax.set(xticks=[], yticks=[], facecolor="black", title=name)
        ax.spines[:].set_visible(False)
    for ax in axes[:, 0]:
        for x, mark, ha in ((0.03, "R", "left"), (0.5, "A", "center"), (0.97, "L", "right")):
            write_on(ax, x, 0.985, mark, ha=ha, va="top")
    n_rows = next(iter(slices.values())).shape[1]
    axes[0, 0].plot([2, 2 + 50 / voxel_mm], [n_rows - 3] * 2, color="white", lw=1.5)
    write_on(axes[0, 0], 0.03, 0.05, "50 mm", ha="left", va="bottom", size=6)
    handles = [Patch(color=GROUP_COLOURS[name], label=name) for name in groups]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(groups))
    return fig


def protocol_shares(archive: Mapping[str, Mapping], drawn: Mapping[str, Mapping], most: int = 5) -> Figure:
    """How often each protocol, and each set of contrasts, occurs in an archive and among drawn sessions.

    Parameters
    ----------
    archive, drawn
        Title of a panel → name → count. The ``most`` frequent are shown, all others in one bar.
    """
    fig, axes = plt.subplots(2, -(-len(archive) // 2), figsize=(FIGURE_WIDTH, 3.6), layout="constrained")
    for ax, (title, counts) in zip(axes.flat, archive.items(), strict=True):
        total, n = sum(counts.values()), sum(drawn[title].values())
        top = sorted(counts, key=counts.get, reverse=True)[:most]
        expected, found = [counts[k] / total for k in top], [drawn[title].get(k, 0) / n for k in top]
        if len(counts) > most:
            top, expected, found = [*top, "others"], [*expected, 1 - sum(expected)], [*found, 1 - sum(found)]
        low, high = (stats.binom.ppf(q, n, expected) / n for q in (0.025, 0.975))
        y = np.arange(len(top))[::-1]
        ax.barh(y, expected, color="0.82", label="OASIS-3")
        ax.hlines(y, low, high, color="0.45", lw=3, label="where 95 % of draws fall")
        ax.plot(found, y, "o", color="#d55e00", label="drawn sessions")
        ax.set(yticks=y, yticklabels=top, xlim=(0, 1), xlabel="share", title=f"{title}, n = {n}")
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
