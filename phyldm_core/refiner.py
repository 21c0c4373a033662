"""The last step of generation: from what a coarse latent remembers to a fine latent, folds included.

A coarse latent says where lobes, ventricles and large sulci are; its decoder, trained to be right on
average, blurs what it cannot know. The refiner draws one of the fine latents that agree with it. With the
layout given only local detail is left to learn, and minutes of training suffice (cascaded diffusion,
Ho et al. 2022, arXiv 2106.15282).
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from .coarse import CoarseVAE
from .diffusion import SMALLEST_SIGMA, TRAIN_STEPS, LatentBatch, make_scheduler

STEPS = 8  # of the solver; more change nothing that can be seen


class Refiner(ModelMixin, ConfigMixin):
    """A U-Net that guesses the clean fine latent from a noisy one and the coarse level's guess of it.

    Parameters
    ----------
    fine_channels
        Of the fine latent, normalised per channel.
    patch
        Side of the squares of latent cells that the network takes as one.
    widths
        Channels at each of its resolutions; sides must halve evenly.
    layers
        Residual blocks a resolution.
    """

    @register_to_config
    def __init__(
        self, fine_channels: int = 6, patch: int = 2, widths: tuple[int, ...] = (128, 192), layers: int = 2
    ):
        super().__init__()
        self.net = UNet2DModel(
            in_channels=2 * fine_channels * patch**2, out_channels=fine_channels * patch**2,
            block_out_channels=tuple(widths), layers_per_block=layers, norm_num_groups=min(16, widths[0] // 4),
            down_block_types=("DownBlock2D",) * len(widths), up_block_types=("UpBlock2D",) * len(widths),
            add_attention=False,
        )  # fmt: skip
        nn.init.zeros_(self.net.conv_out.weight)  # at the start the guess is believed
        nn.init.zeros_(self.net.conv_out.bias)

    def clean(self, noisy: Tensor, guess: Tensor, sigma: Tensor) -> Tensor:
        """The fine latent ``(n, c, y, x)`` behind ``noisy`` = (1 − σ)·x₀ + σ·ε, given the coarse level's ``guess``."""
        patch = self.config.patch
        seen = functional.pixel_unshuffle(torch.cat([noisy, guess], 1), patch)
        return guess + functional.pixel_shuffle(self.net(seen, TRAIN_STEPS * sigma).sample, patch)

    @torch.no_grad()
    def draw(self, guess: Tensor, noise: Tensor, steps: int = STEPS) -> Tensor:
        """One fine latent for each ``guess``, from unit ``noise`` of the same shape ``(n, c, y, x)``."""
        scheduler = make_scheduler("flow")
        scheduler.set_timesteps(steps)
        x = noise
        for t in scheduler.timesteps:
            sigma = (t / TRAIN_STEPS).clamp_min(SMALLEST_SIGMA)
            velocity = (x - self.clean(x, guess, sigma.expand(len(x)).to(x))) / sigma
            x = scheduler.step(velocity, t, x).prev_sample
        return x


class RefinerObjective(nn.Module):
    """Noise a fine latent, show what the coarse level makes of it, ask for the clean one.

    The coarse latent is shaken by up to ``shake`` of its SD: at sampling time it comes from a diffusion
    model, which is less right than the encoder.
    """

    def __init__(self, refiner: Refiner, coarse: CoarseVAE, coarse_scale: Tensor, shake: float = 0.3):
        super().__init__()
        self.refiner, self.shake = refiner, shake
        self.frozen = [coarse.requires_grad_(False)]  # in a list: not this objective's to train or to save
        self.register_buffer("coarse_scale", coarse_scale[:, None, None], persistent=False)

    @torch.no_grad()
    def guess(self, fine: Tensor) -> Tensor:
        coarse = self.frozen[0].to(fine.device)
        z = coarse.encode(fine).sample()
        amount = self.shake * torch.rand(len(z), 1, 1, 1, device=z.device)
        return coarse.decode(z + amount * self.coarse_scale * torch.randn_like(z))

    def forward(self, batch: LatentBatch, step: int) -> dict[str, Tensor]:
        x = batch.latents
        guess, noise = self.guess(x), torch.randn_like(x)
        sigma = torch.sigmoid(torch.randn(len(x), device=x.device))
        s = sigma.view(-1, 1, 1, 1)
        clean = self.refiner.clean((1 - s) * x + s * noise, guess, sigma)
        weight = s.clamp_min(SMALLEST_SIGMA) ** -2  # an error of x₀ is an error of the velocity, divided by σ
        return {"total": (weight * (clean.float() - x) ** 2).mean(), "blur": ((guess - x) ** 2).mean()}
