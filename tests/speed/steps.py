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

from phyldm_core.coarse import CoarseObjective, CoarseVAE
from phyldm_core.diffusion import DiffusionObjective, Latents, TissueTransformer
from phyldm_core.losses import VAEBatch, VAEObjective
from phyldm_core.physics import REFERENCE
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.vae import PoEVAE

WAYS = {f"{kind}, threads: {n}": (kind == "bf16", n) for n in (1, 2) for kind in ("float32", "bf16")}


def vae_step() -> Callable:
    objective, n = VAEObjective(PoEVAE(**LAPTOP.vae), LAPTOP.vae_loss), LAPTOP.vae_schedule.batch_size
    settings = torch.stack([p.settings() for p in REFERENCE.values()]).expand(n, -1, -1)
    everything = torch.ones(n, len(REFERENCE), dtype=torch.bool)
    images = torch.rand(n, len(REFERENCE), *LAPTOP.cohort.shape)
    batch = VAEBatch(images, torch.ones(n, len(REFERENCE)), settings, everything, everything, everything[:, 0])
    return lambda: objective(batch, 0)["total"]


def coarse_step() -> Callable:
    vae, n = PoEVAE(**LAPTOP.vae), LAPTOP.coarse_schedule.batch_size
    size = [side // vae.downsampling for side in LAPTOP.cohort.shape]
    fine = Latents(torch.randn(n, vae.config.latent_channels, *size), torch.zeros(n), None)
    objective = CoarseObjective(CoarseVAE(vae.config.latent_channels, **LAPTOP.coarse), vae, fine, LAPTOP.coarse_kl)
    batch = fine.batch(torch.arange(n), torch.Generator().manual_seed(0))
    return lambda: objective(batch, 0)["total"]


def diffusion_step() -> Callable:
    network, n = TissueTransformer(**LAPTOP.denoiser), LAPTOP.diffusion_schedule.batch_size
    coarse = Latents(torch.randn(n, network.config.out_channels, *network.config.size), torch.zeros(n), None)
    objective = DiffusionObjective(network, LAPTOP.process)
    batch = coarse.batch(torch.arange(n), torch.Generator().manual_seed(0))
    return lambda: objective(batch, 0)["total"]


def main(rounds: int = 7):
    rows = []
    for name, make in {"VAE": vae_step, "coarse level": coarse_step, "diffusion": diffusion_step}.items():
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
