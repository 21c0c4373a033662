"""Two levels: what inference needs is fine, what a short training can generate is coarse.

Cortex needs a latent at half of the image's resolution. A diffusion model trained for minutes
learns no brain on so fine a grid, only outlines filled with blobs. So a second autoencoder
squeezes the fine latent into a few tokens; those are generated, and its decoder adds what it knows
of cortex. Inference never passes through it.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from .diffusion import LatentBatch, Latents
from .machine.on_disk import in_a_file
from .machine.processes import drawn, mean
from .physics import REFERENCE, Protocol, TissueMaps, effective_protocol, render
from .vae import LOG_VARIANCE_RANGE, TYPICAL_SIGNAL, Enlarge, PoEVAE, Posterior, plain_block


class CoarseVAE(ModelMixin, ConfigMixin):
    """Fine latents ``(n, c, y, x)``, normalised per channel, to and from a grid coarser by 2 for each further width.

    Parameters
    ----------
    fine_channels, coarse_channels
        Of the two latents.
    stem
        Factor of a space-to-depth before the first level and of a depth-to-space after the last: most of the cost is
        at full resolution.
    widths
        Channels of each level, each at half the resolution of the one before; encoder and decoder are alike.
    blocks
        Residual blocks a level.
    """

    @register_to_config
    def __init__(
        self,
        fine_channels: int = 6,
        coarse_channels: int = 24,
        stem: int = 2,
        widths: tuple[int, ...] = (96, 160, 256),
        blocks: int = 2,
    ):
        super().__init__()
        down = [nn.PixelUnshuffle(stem), nn.Conv2d(fine_channels * stem**2, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            down += [plain_block(width, width) for _ in range(1 if i == 0 else blocks)]
            if i + 1 < len(widths):
                down.append(Downsample2D(width, use_conv=True, out_channels=widths[i + 1], name="op"))
        down.append(nn.Conv2d(widths[-1], 2 * coarse_channels, 1))
        up = [nn.Conv2d(coarse_channels, widths[-1], 3, padding=1)]
        for i in reversed(range(len(widths))):
            up += [plain_block(widths[i], widths[i]) for _ in range(blocks)]
            if i:
                up.append(Enlarge(widths[i], widths[i - 1]))
        up += [nn.Conv2d(widths[0], fine_channels * stem**2, 3, padding=1), nn.PixelShuffle(stem)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)

    def encode(self, fine: Tensor) -> Posterior:
        """The posterior of the coarse latent."""
        mean, log_variance = _apply(self.down, fine).chunk(2, 1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def decode(self, coarse: Tensor) -> Tensor:
        """The fine latent that a coarse one stands for."""
        return _apply(self.up, coarse)


def _apply(layers: nn.ModuleList, h: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, None) if isinstance(layer, ResnetBlock2D) else layer(h)
    return h


class CoarseObjective(nn.Module):
    """Squeeze, restore, and compare both the fine latents and the scans rendered from them."""

    def __init__(self, coarse: CoarseVAE, vae: PoEVAE, fine: Latents, kl: float):
        super().__init__()
        self.coarse, self.kl = coarse, kl
        self.frozen = [vae.requires_grad_(False)]  # in a list: not this objective's to train or to save
        self.register_buffer("shift", fine.mean[:, None, None], persistent=False)
        self.register_buffer("scale", fine.scale[:, None, None], persistent=False)
        self.protocols: list[Protocol] = [effective_protocol(p) for p in REFERENCE.values()]

    def scans(self, fine: Tensor) -> Tensor:
        """The three reference scans of normalised fine latents, ``(n, 3, y, x)``."""
        maps = self.frozen[0].to(fine.device).decode(fine * self.scale + self.shift)
        maps = TissueMaps(*(m.float() for m in maps))
        return torch.stack([render(maps, p) for p in self.protocols], 1) / TYPICAL_SIGNAL

    def forward(self, batch: LatentBatch, step: int) -> dict[str, Tensor]:
        posterior = self.coarse.encode(batch.latents)
        noise = drawn(torch.randn, *posterior.mean.shape, device=posterior.mean.device, dtype=posterior.mean.dtype)
        restored = self.coarse.decode(posterior.at(noise))
        window = _window(*restored.shape[2:])
        with torch.no_grad():
            target = self.scans(batch.latents[window])
        losses = {
            "latent": mean((restored - batch.latents) ** 2),
            "scans": mean((self.scans(restored[window]) - target).abs()),
            "kl": mean(Posterior(*(t.float() for t in posterior)).kl()),
        }
        return {"total": 0.1 * losses["latent"] + losses["scans"] + self.kl * losses["kl"], **losses}


def _window(height: int, width: int) -> tuple[slice | type(...), ...]:
    """Half of the rows and of the columns, at random: the same gradient on average for a quarter of the rendering."""
    y, x = ((torch.rand(2) * torch.tensor([height // 2 + 1, width // 2 + 1])).long()).tolist()
    return ..., slice(y, y + height // 2), slice(x, x + width // 2)


@torch.no_grad()
def squeeze(coarse: CoarseVAE, fine: Latents, like: Latents | None = None) -> Latents:
    """Coarse posterior means of all fine latents, normalised (``like`` others, for held-out ones)."""
    means = in_a_file(coarse.encode(part).mean for part in fine.values.split(64))
    return Latents(means, fine.position, like)
