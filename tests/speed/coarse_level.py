"""Quality against time of the coarse level: how right and how sharp is what it restores, for which network and KL?

    python tests/speed/coarse_level.py runs/laptop --out data/speed

Trains the coarse level anew for each variant on the fine latents of a finished run (its VAE is used, nothing in the run
is changed), one after the other in one process, and judges held-out people every few steps. Writes
``coarse_level.csv`` and two figures.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import pandas
import seaborn as sns
import torch
import typer
from torch import Tensor

from phyldm_core import figures
from phyldm_core.coarse import CoarseObjective, CoarseVAE
from phyldm_core.evaluation import metrics
from phyldm_core.people.segmentation import brain_of
from phyldm_core.physics import REFERENCE, TissueMaps, render
from phyldm_core.running import run
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.running.run import open_run
from phyldm_core.training import training_loop

VARIANTS = {  # arguments of CoarseVAE and weight of the KL
    "as shipped": (LAPTOP.coarse, LAPTOP.coarse_kl),
    "full resolution first": ({"stem": 1, "widths": (48, 96, 160, 256)}, LAPTOP.coarse_kl),
    "a quarter of the KL": (LAPTOP.coarse, LAPTOP.coarse_kl / 4),
}


def main(
    run: Annotated[Path, typer.Argument(help="A run with a trained VAE.")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the figure.")] = Path("data/speed"),
    anatomies: Annotated[str, typer.Option(help="The run's anatomies, where it has its own.")] = "",
    steps: Annotated[int, typer.Option(help="Steps of each training.")] = LAPTOP.coarse_schedule.steps,
    every: Annotated[int, typer.Option(help="Steps between two looks.")] = 200,
    only: Annotated[
        list[str] | None, typer.Option(help="Names of the variants to try; all of them by default.")
    ] = None,
    seed: int = 7,
):
    opened = open_run(run, "laptop", anatomies, seed)
    vae, train, held_out = opened.vae(), opened.fine_latents("train"), opened.fine_latents("val")
    slices = held_out.values[: len(held_out) // 2]  # the second half are mirror images
    shift, scale = train.mean[:, None, None], train.scale[:, None, None]
    vae.requires_grad_(False)
    maps = vae.decode(slices * scale + shift)
    brain, truth = brain_of(TissueMaps(*maps)), render(maps, REFERENCE["T1w"])
    rows, last = [], {"inferred": truth}
    for name in only or VARIANTS:
        torch.manual_seed(seed)
        network, kl = VARIANTS[name]
        coarse = CoarseVAE(train.values.shape[1], **network)
        objective = CoarseObjective(coarse, vae, train, kl)
        schedule = replace(opened.profile.coarse_schedule, steps=steps, validate_every=10**9)
        with tempfile.TemporaryDirectory() as work:
            for step in training_loop(objective, train, schedule, work):
                if (step.step + 1) % every and step.step + 1 != steps:
                    continue
                with torch.no_grad():
                    restored = coarse.decode(coarse.encode(slices).mean)
                    image = render(vae.decode(restored * scale + shift), REFERENCE["T1w"])
                sharp = metrics.fine_detail(image, brain) / metrics.fine_detail(truth, brain)
                off = metrics.psnr(image, truth, brain)
                row = {"variant": name, "step": step.step + 1, "minutes": round(step.seconds / 60, 2)}
                rows.append(row | {"PSNR (dB)": round(off, 2), "fine detail (%)": round(100 * sharp, 1)})
                typer.echo(rows[-1])
                last[name] = image
                keep(pandas.DataFrame(rows), last, out, opened.recipe.voxel_mm)


def keep(table: pandas.DataFrame, images: dict[str, Tensor], out: Path, voxel_mm: float):
    """What is known so far: the table, its curves, and six restored slices for each variant."""
    run.write_table(table, out / "coarse_level.csv")
    figures.use_house_style()
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    look = {"x": "minutes", "hue": "variant", "style": "variant", "markers": True}
    for ax, quantity in zip(axes, ("PSNR (dB)", "fine detail (%)"), strict=True):
        sns.lineplot(table, y=quantity, ax=ax, legend=ax is axes[1], **look)
    fig.savefig(out / "coarse_level.png", dpi=150)
    plt.close(fig)
    shown = torch.linspace(0, len(next(iter(images.values()))) - 1, 6).long().tolist()
    rows = [[figures.Panel(x[i], side=name if i == shown[0] else "") for i in shown] for name, x in images.items()]
    fig = figures.map_grid(rows, voxel_mm=voxel_mm)
    fig.savefig(out / "coarse_level_t1w.png", dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    typer.run(main)
