"""Does training need more memory for more people? Slices of 200 and of 2,000, trained on for a few steps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace

import torch

from phyldm_core.diffusion import DiffusionObjective, TissueTransformer
from phyldm_core.losses import VAEData, VAEObjective
from phyldm_core.machine.on_disk import in_a_file
from phyldm_core.physics import REFERENCE
from phyldm_core.running.latents import latents
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.slices import MODALITIES, Slices
from phyldm_core.training import training_loop
from phyldm_core.vae import PoEVAE

from .timing import Row, peak_mib

FEW, MANY = 200, 2000
SLICES = 4  # a person; fewer than the profile's, for the time that noise and encoding take
SHAPE = (56, 40)


def made_up(n_people: int) -> Slices:
    """Noise in the form of scans; what a cohort's files give, without writing them."""
    n = n_people * SLICES
    generator = torch.Generator().manual_seed(0)
    images = in_a_file(torch.rand(SLICES, len(MODALITIES), *SHAPE, generator=generator) for _ in range(n_people))
    settings = torch.stack([p.settings() for p in REFERENCE.values()]).repeat(n, 1, 1)
    observed = torch.ones(n, len(MODALITIES), dtype=torch.bool)
    return Slices(images, settings, observed, torch.arange(n) // SLICES, torch.zeros(n))


def train(n_people: int):
    """Some steps of the VAE, every slice encoded once, some steps of a diffusion model on the VAE's own latents."""
    torch.set_num_threads(1)
    slices, vae = made_up(n_people), PoEVAE(**LAPTOP.vae)
    schedule = replace(LAPTOP.vae_schedule, steps=10)
    with tempfile.TemporaryDirectory() as folder:
        objective = VAEObjective(vae, LAPTOP.vae_loss)
        for _ in training_loop(objective, VAEData(slices, LAPTOP.vae_loss), schedule, f"{folder}/vae"):
            pass
        kept = latents(vae.eval(), slices)
        size = tuple(kept.values.shape[2:])
        denoiser = TissueTransformer(vae.config.latent_channels + 1, vae.config.latent_channels, size, 32, 2, 2)
        objective = DiffusionObjective(denoiser, "flow")
        for _ in training_loop(objective, kept, replace(schedule, batch_size=2), f"{folder}/diffusion"):
            pass


def rows(rounds: int) -> Iterator[Row]:
    peaks = {n: peak_mib(train, n) for n in (FEW, MANY)}
    ratio = peaks[FEW] / peaks[MANY]
    ours, against = f"{MANY} people", f"{FEW} people"
    data = {f"{n} people": round(n * SLICES * 4 * len(MODALITIES) * SHAPE[0] * SHAPE[1] / 2**20) for n in peaks}
    details = {"peak_mib": {f"{n} people": round(peak) for n, peak in peaks.items()}, "images_mib": data}
    yield Row("memory of training", ours, against, ratio, ratio, ratio, floor=0.9, aim=0.97, details=details)
