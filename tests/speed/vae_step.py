"""A training step of the VAE, against the paper's: every session encoded three times, scans it lacks as zeros.

Ours as it is trained, in bf16 where the machine is faster in it, and in the paper's float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn import functional

from phyldm_core.losses import VAEBatch, VAELoss, VAEObjective
from phyldm_core.machine.precision import best_precision
from phyldm_core.physics import REFERENCE, effective_protocol
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.scans.oasis3 import SESSION_CONTRASTS
from phyldm_core.slices import MODALITIES, covered
from phyldm_core.vae import LOG_VARIANCE_RANGE, Enlarge, PoEVAE, product_of_experts, scan_features

from .timing import Row, compare, peak_mib, slope, take_turns

N = 12  # sessions a step: enough to have OASIS-3's mix of contrasts within one
SHAPE = (64, 48)  # voxels; a step at the paper's 224×160 takes minutes on a laptop
NETWORKS = {"paper's network": {}, "laptop's network": LAPTOP.vae}


def oasis3_batch(n: int, shape: tuple[int, int], hide: bool) -> VAEBatch:
    """Sessions that hold contrasts as often as OASIS-3's; with ``hide``, each scan is kept from the encoder as trained.

    Every session shows at least one scan.
    """
    generator = torch.Generator().manual_seed(0)
    share = np.cumsum(list(SESSION_CONTRASTS.values())) / sum(SESSION_CONTRASTS.values())
    held = [list(SESSION_CONTRASTS)[np.searchsorted(share, (i + 0.5) / n)] for i in range(n)]
    observed = torch.tensor([[modality in session for modality in MODALITIES] for session in held])
    shown = observed & (torch.rand(observed.shape, generator=generator) < (VAELoss().keep_scan if hide else 2))
    shown[~shown.any(1)] = observed[~shown.any(1)]
    settings = torch.stack([effective_protocol(p).settings() for p in REFERENCE.values()]).expand(n, -1, -1)
    images = 2 * torch.rand(n, len(MODALITIES), *shape, generator=generator) * observed[..., None, None]
    common = torch.rand(n, generator=generator) < 0.5
    one = torch.ones(observed.shape)  # level and unit: the images are as bright as the encoder wants them
    return VAEBatch(images, images, one, one, settings * observed[..., None], observed, shown, common)


class PlainPaperVAE(PoEVAE):
    """The same network and the same numbers, the way the paper's code takes."""

    def encode(self, images: Tensor, settings: Tensor, observed: Tensor, level: Tensor, common_scale: Tensor):
        n, m = observed.shape
        features = self.embed(scan_features(settings, level, common_scale[:, None].expand(n, m)))
        padded = (images * observed[..., None, None]).abs().flatten(0, 1)[:, None]
        mask = covered(padded).to(padded.dtype)
        opinions = self.encoder(torch.cat([padded, mask], 1), features.flatten(0, 1)).unflatten(0, (n, m))
        mean, log_variance = opinions.chunk(2, 2)
        seen = functional.avg_pool2d(mask, self.downsampling)[:, 0].unflatten(0, (n, m))
        return product_of_experts(mean, log_variance.clamp(*LOG_VARIANCE_RANGE), seen)


def make_step(network: dict, paper: bool, batch: VAEBatch, half: bool = False) -> Callable[[], float]:
    """One step with its optimiser, ``half`` in bf16; returns the loss, the same for all ways."""
    torch.manual_seed(0)
    vae = (PlainPaperVAE if paper else PoEVAE)(**network)
    if paper:
        for i, layer in enumerate(vae.decoder.blocks):
            if isinstance(layer, Enlarge):  # doubles first, then convolves
                vae.decoder.blocks[i] = Upsample2D(layer.channels, use_conv=True)
                vae.decoder.blocks[i].load_state_dict(layer.state_dict())
    objective = VAEObjective(vae, VAELoss())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-6)

    def step() -> float:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective(batch, 0)["total"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def one_step(network: dict, paper: bool, batch: VAEBatch):
    """For :func:`timing.peak_mib`."""
    make_step(network, paper, batch)()


def rows_of(
    name: str, network: dict, rounds: int, hide: bool = True, shape: tuple[int, int] = SHAPE, **more
) -> Iterator[Row]:
    """Ours against the paper's, and both in float32 where ours is in bf16; all must tell the same loss.

    ``more`` belongs to the first row, as in :func:`timing.compare`.
    """
    batch = oasis3_batch(N, shape, hide)
    ways = {"ours": make_step(network, False, batch), "paper's step": make_step(network, True, batch)}
    if best_precision() == "bf16":
        ways = {"ours, bf16": make_step(network, False, batch, half=True), **ways}
    first = [step() for step in ways.values()]
    assert np.allclose(first, first[-1], rtol=2e-2 if len(ways) > 2 else 1e-4), first
    assert np.isclose(*first[-2:], rtol=1e-4), first
    seconds = take_turns(ways, rounds)
    told = {
        "scans_a_session": float(batch.shown.sum(1).float().mean()),
        "samples_a_second": {way: N / float(seconds[way].median()) for way in ways},
    }
    what = f"VAE step, {name}, {'scans hidden as in training' if hide else 'every scan shown'}"
    for ours in [way for way in ways if way != "paper's step"]:
        yield compare(what, seconds, ours, "paper's step", **told, **more)
        more = {}


def rows(rounds: int) -> Iterator[Row]:
    paper, laptop = NETWORKS
    yield from rows_of(paper, {}, rounds, floor=1.5, aim=2.5, peak_mib=peaks({}))
    yield from rows_of(paper, {}, rounds, hide=False)
    growing = {
        "growth_with_batch": growth([oasis3_batch(n, SHAPE, True) for n in (3, 6, 12)], rounds),
        "growth_with_voxels": growth([oasis3_batch(4, (side, side), True) for side in (32, 64, 96)], rounds),
    }
    yield from rows_of(laptop, LAPTOP.vae, rounds, **growing)
    yield from rows_of(laptop, LAPTOP.vae, rounds, hide=False)


def peaks(network: dict) -> dict[str, int]:
    batch = oasis3_batch(N, SHAPE, True)
    return {way: round(peak_mib(one_step, network, way != "ours", batch)) for way in ("ours", "paper's step")}


def growth(batches: list[VAEBatch], rounds: int) -> float:
    """Exponent of the laptop network's step over the number of voxels in a batch."""
    ways = {batch.images[:, 0].numel(): make_step(LAPTOP.vae, False, batch) for batch in batches}
    return slope(list(ways), take_turns(ways, rounds).median())
