"""The product-of-experts VAE: any subset of scans → a latent → PD, T1, T2.

Every scan that exists is an expert with a Gaussian opinion about the latent; opinions multiply
(paper, section 2.1). The decoder speaks tissue, and only the physics layer turns tissue into scans.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from .physics import TissueMaps, signed_signal
from .slices import covered

PRIOR_MEDIANS = (0.7, 1.0, 0.1)
"""PD (water = 1), T1 (s), T2 (s). The paper's medians, with PD relative to water instead of 50 a.u."""

TYPICAL_SIGNAL = 0.25
"""What a common-scale scan is divided by, so that a network sees numbers near one."""

LOG_VARIANCE_RANGE = (-12.0, 6.0)  # an expert is never surer or vaguer than this; keeps the product finite


class Posterior(NamedTuple):
    """A Gaussian over latents, ``(n, c, y, x)``: its mean and the logarithm of its variance."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.at(
            torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        )

    def at(self, noise: Tensor) -> Tensor:
        """The sample that unit Gaussian noise ``(n, c, y, x)`` stands for."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """``(n, c, y, x)``: Kullback–Leibler divergence from the unit Gaussian, in nats per latent value."""
        return 0.5 * (self.mean**2 + self.log_variance.exp() - 1 - self.log_variance)


def product_of_experts(mean: Tensor, log_variance: Tensor, seen: Tensor) -> Posterior:
    """Multiply the Gaussians of the scans that exist, place by place.

    Parameters
    ----------
    mean, log_variance
        ``(n, m, c, y, x)``, one expert a scan.
    seen
        ``(n, m, y, x)``, 0 to 1: how much of each latent pixel a scan covers; 0 where there is no scan.

    Returns
    -------
        Precision Σ 1/σ², mean Σ (μ/σ²) / precision (paper, section 2.1). Where no scan sees anything it is the prior.
    """
    precision = torch.exp(-log_variance) * seen[:, :, None]  # what a scan does not show it says nothing of
    nothing = (seen.sum(1, keepdim=True) == 0).to(precision.dtype)
    total = precision.sum(1) + nothing
    return Posterior((precision * mean).sum(1) / total, -total.log())


PANEL_T1 = tuple(0.2 * 1.33**k for k in range(12))  # s, from fat to fluid
PANEL_T2 = (0.02, 0.04, 0.07, 0.1, 0.2, 0.6, 2.0)  # s
N_SCAN_FEATURES = 2 * len(PANEL_T1) + len(PANEL_T2) + 3


def scan_features(settings: Tensor, level: Tensor, common_scale: Tensor) -> Tensor:
    """What an encoder is told of each scan, ``(..., N_SCAN_FEATURES)``: what its protocol makes of a panel of tissues.

    The signal of twelve T1s with its sign and without, the decay of seven T2s, how strong the strongest is, whether
    its scale is known, and if so the log brightness: a group norm takes an image's brightness away, and on a common
    scale brightness is physics. No sequence has a name here, so that one which no training scan had is told by the
    same numbers.

    Parameters
    ----------
    settings
        ``(..., 6)`` from :meth:`Protocol.settings`.
    level
        ``(...)`` brightness of each scan before it was normalised, in units of :data:`TYPICAL_SIGNAL`.
    common_scale
        ``(...)`` bool.
    """
    batch, flat = settings.shape[:-1], settings.reshape(1, -1, 6)

    def signals(t1, t2):
        return signed_signal(TissueMaps(*(t[None, None] for t in (torch.ones_like(t1), t1, t2))), flat)[0, :, 0]

    t1, t2 = settings.new_tensor(PANEL_T1), settings.new_tensor(PANEL_T2)
    longitudinal = signals(t1, torch.full_like(t1, 1e6))
    decayed = (-flat[0, :, 1:2] / t2).exp()
    strongest = longitudinal.abs().amax(-1, keepdim=True).clamp_min(1e-3)
    relative = longitudinal / strongest
    told = torch.cat([relative, relative.abs(), decayed, strongest.log()], -1).view(*batch, -1)
    known = common_scale.to(told.dtype)
    brightness = 3 * known * level.clamp_min(1e-3).log()  # people differ by a few percent: make it count
    return torch.cat([told, known[..., None], brightness[..., None]], -1)


class PoEVAE(ModelMixin, ConfigMixin):
    """Scans and their protocols in, tissue maps out.

    Parameters
    ----------
    latent_channels
        Channels of the latent.
    stem
        Factor of a space-to-depth stem in the encoder: 1 is the paper's, 4 costs a small machine
        sixteen times fewer pixels for the same image.
    encoder_channels
        Width of each level after the stem; each but the first halves the resolution.
    decoder_channels, decoder_stem
        The same for the decoder, coarse to fine, ending in a depth-to-space of ``decoder_stem``.
    blocks
        Residual blocks a level.
    attention
        Self-attention at the coarsest level, as in the paper.
    embedding
        Width of the embedding of :func:`scan_features`.
    groups
        Groups of the group norm.
    prior_medians
        PD, T1 (s) and T2 (s) that the decoder starts from and the priors of the loss pull to.

    Defaults are the paper's network. ``stem · 2^(levels − 1)`` must be the same for both halves.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 6,
        stem: int = 1,
        encoder_channels: tuple[int, ...] = (64, 128, 128, 128),
        decoder_channels: tuple[int, ...] = (128, 128, 128, 64),
        decoder_stem: int = 1,
        blocks: int = 3,
        attention: bool = True,
        embedding: int = 128,
        groups: int = 32,
        prior_medians: tuple[float, float, float] = PRIOR_MEDIANS,
    ):
        super().__init__()
        down, up = stem * 2 ** (len(encoder_channels) - 1), decoder_stem * 2 ** (len(decoder_channels) - 1)
        if down != up:
            raise ValueError(f"the encoder shrinks {down} times, the decoder enlarges {up} times: make them equal")
        self.embed = nn.Sequential(nn.Linear(N_SCAN_FEATURES, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.encoder = Encoder(latent_channels, stem, encoder_channels, blocks, attention, embedding, groups)
        self.decoder = Decoder(latent_channels, decoder_stem, decoder_channels, blocks, attention, groups)
        self.register_buffer("log_medians", torch.tensor(prior_medians).log().view(3, 1, 1), persistent=False)

    @property
    def downsampling(self) -> int:
        """How many times smaller than the image the latent is, along each axis."""
        return self.config.stem * 2 ** (len(self.config.encoder_channels) - 1)

    def encode(
        self, images: Tensor, settings: Tensor, observed: Tensor, level: Tensor, common_scale: Tensor
    ) -> Posterior:
        """The posterior of any subset of scans.

        Parameters
        ----------
        images
            ``(n, m, y, x)``, each divided by its :func:`brightness`; 0 where a scan holds no measurement.
        settings
            ``(n, m, 6)`` from :meth:`Protocol.settings`.
        observed
            ``(n, m)`` bool.
        level
            ``(n, m)``, the brightness they were divided by, in units of :data:`TYPICAL_SIGNAL`.
        common_scale
            ``(n,)`` bool: whether the scans of this row share the scale of PD; if not, ``level`` is ignored.
        """
        n, m = observed.shape
        features = self.embed(scan_features(settings, level, common_scale[:, None].expand(n, m)))
        there = images[observed][:, None].abs()  # only scans that exist; of a real part the magnitude
        mask = covered(there).to(there.dtype)
        opinions = self.encoder(torch.cat([there, mask], 1), features[observed])
        experts = opinions.new_zeros(n, m, *opinions.shape[1:])
        experts[observed] = opinions
        seen = opinions.new_zeros(n, m, *opinions.shape[2:])
        seen[observed] = functional.avg_pool2d(mask, self.downsampling)[:, 0].to(seen.dtype)
        mean, log_variance = experts.chunk(2, 2)
        return product_of_experts(mean, log_variance.clamp(*LOG_VARIANCE_RANGE), seen)

    def decode_log(self, z: Tensor) -> Tensor:
        """``(n, 3, y, x)``: log PD, T1, T2 relative to their prior medians; the unit normal is their prior."""
        log_pd, *log_times = self.decoder(z).float().unbind(1)
        return torch.stack([below_water(log_pd, self.config.prior_medians[0]), *log_times], 1)

    def decode(self, z: Tensor) -> TissueMaps:
        """Latents ``(n, c, y, x)`` → maps in physical units."""
        return TissueMaps.from_stack((self.decode_log(z) + self.log_medians).exp())

    to_maps = decode  # what a diffusion model asks of whatever decodes its latents


class Encoder(nn.Module):
    """One scan and where it holds a measurement → mean and log variance of its expert; the same weights for all."""

    def __init__(self, latent_channels, stem, channels, blocks, attention, embedding, groups):
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(stem), nn.Conv2d(2 * stem**2, channels[0], 3, padding=1))
        self.blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            if level:
                self.blocks.append(Downsample2D(channels[level - 1], use_conv=True, name="op"))
            inside = channels[max(level - 1, 0)]
            for _ in range(blocks):
                self.blocks.append(adaptive_block(inside, width, embedding, groups))
                inside = width
        if attention:
            self.blocks.append(self_attention(channels[-1], groups))
            self.blocks.append(adaptive_block(channels[-1], channels[-1], embedding, groups))
        self.head = nn.Conv2d(channels[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        h = self.stem(image)
        for block in self.blocks:
            h = block(h, features) if isinstance(block, ResnetBlock2D) else block(h)
        return self.head(h)


class Decoder(nn.Module):
    """Latent → log maps. It knows no protocol: tissue does not change with the scanner's settings."""

    def __init__(self, latent_channels, stem, channels, blocks, attention, groups):
        super().__init__()
        self.stem = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        layers = []
        if attention:
            layers += [plain_block(channels[0], channels[0]), self_attention(channels[0], groups)]
        for level, width in enumerate(channels):
            if level:
                layers.append(Enlarge(channels[level - 1]))
            inside = channels[max(level - 1, 0)]
            for _ in range(blocks):
                layers.append(plain_block(inside, width))
                inside = width
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.Conv2d(channels[-1], 3 * stem**2, 3, padding=1), nn.PixelShuffle(stem))
        nn.init.zeros_(self.head[0].weight)  # training starts from the prior's medians everywhere
        nn.init.zeros_(self.head[0].bias)

    def forward(self, z: Tensor) -> Tensor:
        h = self.stem(z)
        for block in self.blocks:
            h = block(h, None) if isinstance(block, ResnetBlock2D) else block(h)
        return self.head(h)


class Enlarge(Upsample2D):
    """Nearest-neighbour doubling, then a 3×3 convolution, as one transposed 4×4 convolution.

    The same function of the same weights: a 3×3 kernel over doubled pixels is a 4×4 kernel over the pixels themselves,
    of which each new pixel sees four taps instead of nine.
    """

    def __init__(self, inside: int, outside: int | None = None):
        super().__init__(inside, use_conv=True, out_channels=outside)

    def forward(self, h: Tensor) -> Tensor:
        turned = functional.pad(self.conv.weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
        kernel = 4 * functional.avg_pool2d(turned, 2, stride=1)  # sums of the weights that meet the same pixel
        return functional.conv_transpose2d(h, kernel, self.conv.bias, stride=2, padding=1)


def adaptive_block(inside: int, outside: int, embedding: int, groups: int) -> ResnetBlock2D:
    """A residual block whose second norm takes a scale and shift per channel, identity at the start."""
    block = ResnetBlock2D(
        in_channels=inside, out_channels=outside, temb_channels=embedding, groups=min(groups, inside // 4),
        groups_out=min(groups, outside // 4), time_embedding_norm="scale_shift", eps=1e-6,
    )  # fmt: skip
    nn.init.zeros_(block.time_emb_proj.weight)
    nn.init.zeros_(block.time_emb_proj.bias)
    return block


def plain_block(inside: int, outside: int) -> ResnetBlock2D:
    """A residual block without norms, identity at the start.

    A norm over the image removes its mean level, and in tissue maps the level is what is asked for.
    """
    block = ResnetBlock2D(in_channels=inside, out_channels=outside, temb_channels=None, groups=1)
    block.norm1 = block.norm2 = nn.Identity()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    return block


def self_attention(width: int, groups: int) -> Attention:
    return Attention(
        width, heads=1, dim_head=width, norm_num_groups=groups, residual_connection=True, bias=True, eps=1e-6
    )


def below_water(log_pd: Tensor, median: float) -> Tensor:
    """Log PD relative to its prior ``median``, smoothly kept at or below that of water.

    No tissue holds more water than water. In the usual scans CSF's PD and T2 appear only as one
    product, and this bound is what tells them apart.
    """
    water, softness = -math.log(median), 0.05
    return water - softness * functional.softplus((water - log_pd) / softness)
