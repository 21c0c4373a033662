"""What one training step costs, and whether bf16 or a second thread is worth having on this machine.

    python tests/speed/steps.py

Steps of the laptop profile's three trainings on random data, forward and backward, in float32 on one thread and in
other ways; every way takes its turn within each round, so that a machine that slows down slows all of them. Prints
seconds and ratios to float32 on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas
import torch
import typer

from phyldm_core.composition import BRAIN_PARTS, CompositionVAE
from phyldm_core.diffusion import CONDITIONS, DiffusionObjective, LatentBatch, TissueTransformer
from phyldm_core.losses import CompositionBatch, CompositionLoss, CompositionObjective, VAEBatch, VAEObjective
from phyldm_core.physics import REFERENCE
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.vae import PoEVAE

WAYS = {f"{kind}, threads: {n}": (kind == "bf16", n) for n in (1, 2) for kind in ("float32", "bf16")}


def vae_step() -> Callable:
    objective, n = VAEObjective(PoEVAE(**LAPTOP.vae), LAPTOP.vae_loss), LAPTOP.vae_schedule.batch_size
    settings = torch.stack([p.settings() for p in REFERENCE.values()]).expand(n, -1, -1)
    everything = torch.ones(n, len(REFERENCE), dtype=torch.bool)
    images = torch.rand(n, len(REFERENCE), *LAPTOP.cohort.shape)
    one = torch.ones(n, len(REFERENCE))
    batch = VAEBatch(images, images, one, one, settings, everything, everything, everything[:, 0])
    return lambda: objective(batch, 0)["total"]


def composition_step() -> Callable:
    objective = CompositionObjective(CompositionVAE(BRAIN_PARTS, **LAPTOP.composition), CompositionLoss(halved=0.0))
    shares = torch.rand(LAPTOP.composition_schedule.batch_size, 1 + len(BRAIN_PARTS), *LAPTOP.cohort.shape).softmax(1)
    return lambda: objective(CompositionBatch(shares), 0)["total"]


def diffusion_step() -> Callable:
    composition, n = CompositionVAE(BRAIN_PARTS, **LAPTOP.composition), LAPTOP.diffusion_schedule.batch_size
    channels, size = composition.drawn_channels, tuple(s // composition.downsampling for s in LAPTOP.cohort.shape)
    network = TissueTransformer(channels + 2 * len(CONDITIONS), channels, size, **LAPTOP.denoiser)
    objective = DiffusionObjective(network, LAPTOP.process)
    batch = LatentBatch(torch.randn(n, channels, *size), torch.full((n, len(CONDITIONS)), 0.2))
    return lambda: objective(batch, 0)["total"]


def main(rounds: int = 7):
    rows = []
    for name, make in {"VAE": vae_step, "compositions": composition_step, "diffusion": diffusion_step}.items():
        step = make()
        for round_ in range(rounds + 1):  # the first warms up
            for way, (half, threads) in WAYS.items():
                torch.set_num_threads(threads)
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = step()
                loss.backward()
                if round_:
                    rows.append({"training": name, "way": way, "seconds": time.perf_counter() - start})
    table = pandas.DataFrame(rows).pivot_table(index="training", columns="way", values="seconds", aggfunc="median")
    typer.echo(table.round(3).to_string())
    typer.echo("\nratio to float32 on one thread")
    typer.echo(table.div(table["float32, threads: 1"], axis=0).round(2).to_string())


if __name__ == "__main__":
    typer.run(main)
