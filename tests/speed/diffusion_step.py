"""A training step of the diffusion model: latents kept from before, against scans encoded again at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from phyldm_core.composition import BRAIN_PARTS, HEAD_PARTS, CompositionVAE, compose
from phyldm_core.diffusion import CONDITIONS, DiffusionObjective, LatentBatch, TissueTransformer
from phyldm_core.losses import VAEBatch
from phyldm_core.machine.precision import best_precision
from phyldm_core.running.profiles import LAPTOP, Profile
from phyldm_core.vae import PoEVAE

from .timing import Row, compare, slope, take_turns
from .vae_step import PlainPaperVAE, oasis3_batch


def make_step(batch: VAEBatch, encoder: type[PoEVAE] | None, profile: Profile, half: bool = False) -> Callable:
    """One step of a profile that draws compositions, ``half`` in bf16.

    ``encoder`` encodes the scans in it, None finds their latents done.
    """
    torch.manual_seed(0)
    vae = (encoder or PoEVAE)(**profile.vae).eval()
    tissues = HEAD_PARTS if profile.cohort.head else BRAIN_PARTS
    composition = CompositionVAE(tissues, **profile.composition).eval()

    @torch.no_grad()
    def latents():
        fine = vae.encode(batch.images, batch.settings, batch.observed, batch.level, batch.common).mean
        return composition.join(compose(vae.decode(fine), tissues, composition.downsampling // 2))

    kept = latents()
    channels, size = kept.shape[1], tuple(kept.shape[2:])
    denoiser = TissueTransformer(channels + 2 * len(CONDITIONS), channels, size, **profile.denoiser)
    objective = DiffusionObjective(denoiser, profile.process)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-6)
    conditions = torch.full((len(kept), len(CONDITIONS)), 0.2)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(LatentBatch(latents() if encoder else kept, conditions), 0)["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rows(rounds: int, profile: Profile = LAPTOP) -> Iterator[Row]:
    shape = profile.cohort.shape
    batch = oasis3_batch(profile.diffusion_schedule.batch_size, shape, hide=False)
    again, missing_too = "encoded at every step", "encoded at every step, missing scans as zeros"
    encoders = {"kept": None, again: PoEVAE, missing_too: PlainPaperVAE}
    ways = {way: make_step(batch, encoder, profile) for way, encoder in encoders.items()}
    half = {f"{way}, bf16": way for way in encoders} if best_precision() == "bf16" else {}
    ways |= {name: make_step(batch, encoders[way], profile, half=True) for name, way in half.items()}
    seconds = take_turns(ways, rounds)
    batches = {k: make_step(oasis3_batch(k, shape, False), None, profile) for k in (12, 24, 48)}
    exponent = slope(list(batches), take_turns(batches, rounds).median())
    limits = {"floor": 3.0, "aim": 6.0}
    as_trained = next(iter(half), "kept")
    yield compare("diffusion step", seconds, as_trained, missing_too, **limits, growth_with_batch=exponent)
    yield compare("diffusion step", seconds, "kept", again)
    for name, way in half.items():
        if way != "kept":
            yield compare("diffusion step", seconds, as_trained, name)
