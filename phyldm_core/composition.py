"""What a slice is made of: maps → shares of a few tissues → a small latent, and back.

An autoencoder that answers with numbers answers doubt with their mean, which is blur. One that answers with a choice
among tissues puts the edge somewhere. So the second autoencoder speaks *composition*: what part of a voxel is white
matter, grey matter, CSF … PD, T1 and T2 are then mixed from the tissues' own values, by the rule by which the cohort
mixes them. What is left of the maps after that is smooth, and travels along on a coarse grid.

Inference never passes through it: it is what the diffusion model draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import Timesteps
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from .diffusion import TRAIN_STEPS, make_scheduler
from .physics import TissueMaps
from .slices import deep_in, largest_piece
from .tissue import TISSUES, in_vivo_3t, mix
from .vae import LOG_VARIANCE_RANGE, Enlarge, Posterior, adaptive_block

BRAIN_PARTS = ("WM", "GM", "CSF")
HEAD_PARTS = ("WM", "GM", "CSF", "fat", "muscle", "lesion")
"""Tissues that a stripped brain and a whole head are told apart into; air and bone, which give no signal, come first
in every composition and are in neither list. Muscle stands for blood and skin too: all have a short T2."""
SCALP = ("fat", "muscle")
NEIGHBOURS = {
    ("WM", "GM"): 0.0, ("GM", "CSF"): 0.0, ("WM", "CSF"): 1.0, ("fat", "muscle"): 2.0, ("WM", "lesion"): 0.5,
}  # fmt: skip
"""Two tissues that may share a voxel, and how much likelier than theirs a voxel of WM and GM or GM and CSF is, in nats
doubled. Pallidum, whose iron shortens T2, would else be muscle, and every sulcus would have its lesions."""

SPREAD_T1, SPREAD_T2 = 0.1, 0.25
"""SD of log T1 and log T2 about the line from one tissue to its neighbour: T2 of deep grey and of CSF stray further."""

SEEN_FROM, SEEN_TO = 0.1, 0.85
"""Between these parts of the PD that its tissues have, a voxel goes from empty to full. PD of air is not quite zero,
and that of tissue varies."""

REACH = (0.2, 0.12, 0.08, 0.06)  # of log T1 about a tissue's value: voxels so near tell what it measures
PRIOR_VOXELS = 5  # the weight of literature's value: what decides where a slice holds next to nothing of a tissue


@dataclass(frozen=True)
class Composition:
    """Slices told apart into tissues.

    Parameters
    ----------
    shares
        ``(n, 1 + k, y, x)``, 0 to 1, sum 1: what part of a voxel air and bone, and each of ``k`` tissues, fill.
    values
        ``(n, k, 3)``: PD, T1 (s) and T2 (s) of each tissue in this slice.
    texture
        ``(n, 3, y/c, x/c)``: mean over cells of the log of the maps over what shares and values mix to.
    """

    shares: Tensor
    values: Tensor
    texture: Tensor


def medians_of(tissues: tuple[str, ...]) -> Tensor:
    """``(k, 3)``: median PD, T1 (s), T2 (s) in vivo at 3 T."""
    return torch.from_numpy(in_vivo_3t().median[[TISSUES.index(t) for t in tissues]]).float()


def unmix(maps: Tensor, values: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """Undoes :func:`tissue.mix`: shares ``(n, 1 + k, y, x)`` of air and of each tissue in maps ``(n, 3, y, x)``.

    A voxel holds at most two tissues, :data:`NEIGHBOURS`. Mixing by water is a straight line in log T1 and log T2, so
    the nearest point of each line is a projection, and the nearest line wins. How much of the voxel they fill, PD says.
    """
    spread = maps.new_tensor([SPREAD_T1, SPREAD_T2])
    t1, t2 = (maps[:, 1:].clamp_min(1e-3).log() / spread[:, None, None]).unbind(1)
    ends = (values.expand(len(maps), -1, -1)[..., 1:].log() / spread)[..., None, None]
    pairs = [(tissues.index(a), tissues.index(b), cost) for (a, b), cost in NEIGHBOURS.items() if {a, b} <= {*tissues}]
    nearest, chosen = torch.full_like(t1, float("inf")), torch.zeros_like(t1, dtype=torch.uint8)
    part = torch.zeros_like(t1)
    for p, (i, j, cost) in enumerate(pairs):
        (start1, start2), (end1, end2) = ends[:, i].unbind(1), ends[:, j].unbind(1)
        line1, line2 = end1 - start1, end2 - start2
        off1, off2 = t1 - start1, t2 - start2
        along = ((off1 * line1 + off2 * line2) / (line1**2 + line2**2)).clamp(0, 1)
        distance = (off1 - along * line1) ** 2 + (off2 - along * line2) ** 2 + cost
        nearer = distance < nearest
        nearest, part = torch.where(nearer, distance, nearest), torch.where(nearer, along, part)
        chosen = chosen.masked_fill(nearer, p)
    water = torch.zeros(len(maps), len(tissues), *maps.shape[2:], device=maps.device)
    for p, (i, j, _) in enumerate(pairs):
        here = chosen == p
        water[:, i] += (1 - part) * here
        water[:, j] += part * here
    volume = water / values.expand(len(maps), -1, -1)[:, :, 0, None, None]
    whole = volume.sum(1, keepdim=True)  # 1 / PD of these tissues, if they filled the voxel
    full = ((maps[:, :1] * whole - SEEN_FROM) / (SEEN_TO - SEEN_FROM)).clamp(0, 1)
    return torch.cat([1 - full, full * volume / whole], 1)


def own_values(maps: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """``(n, k, 3)``: PD, T1 (s), T2 (s) that each tissue measures in maps ``(n, 3, y, x)``.

    The mode of T1 among the voxels that hold most of the tissue, found by going to their mean within an ever shorter
    :data:`REACH`: most voxels of cortex are shared, and their plain mean is not cortex. Literature's value counts as
    :data:`PRIOR_VOXELS`.
    """
    maps = maps[..., ::2, ::2]  # enough to tell, for a quarter of the cost
    logs, known = maps.clamp_min(1e-3).log(), medians_of(tissues).log().to(maps.device)
    values = known.expand(len(maps), -1, -1)
    for reach in REACH:
        mostly = unmix(maps, values.exp(), tissues)[:, 1:] > 0.5
        near = (logs[:, None, 1] - values[:, :, 1, None, None]).abs() < reach
        weight = (mostly & near).flatten(2).float()
        total = weight @ logs.flatten(2).transpose(1, 2) + PRIOR_VOXELS * known
        values = total / (weight.sum(2, keepdim=True) + PRIOR_VOXELS)
    return values.exp()


def compose(maps: TissueMaps, tissues: tuple[str, ...], cell: int) -> Composition:
    """Tell maps, each ``(n, y, x)``, apart into ``tissues``: :data:`BRAIN_PARTS` or :data:`HEAD_PARTS`.

    A cell of the texture has ``cell`` voxels along each side; it divides y and x.
    """
    stack = maps.stack()
    values = own_values(stack, tissues)
    shares = unmix(stack, values, tissues)
    full = (shares[:, :1] < 0.1).float()  # at the rim PD is shared with air
    return Composition(shares, values, texture_of(stack, shares, values, full, cell))


def texture_of(stack: Tensor, shares: Tensor, values: Tensor, where: Tensor, cell: int) -> Tensor:
    """``(n, 3, y/c, x/c)``: what maps ``(n, 3, y, x)`` are over what shares and values mix to, where ``where`` is 1."""
    rest = (stack.clamp_min(1e-3).log() - mix(shares[:, 1:], values).clamp_min(1e-3).log()).clamp(-0.5, 0.5)
    weight = functional.avg_pool2d(where, cell)
    return functional.avg_pool2d(rest * where, cell) / (weight + 0.1)  # 0 where there is no tissue


def restore(composition: Composition) -> TissueMaps:
    """PD, T1 (s), T2 (s) of a composition, each ``(n, y, x)``; T1 and T2 are 0 in air, as in the cohort."""
    shares, texture = composition.shares, composition.texture
    maps = mix(shares[:, 1:], composition.values)
    smooth = functional.interpolate(texture, size=shares.shape[2:], mode="bilinear", align_corners=False)
    maps = maps * smooth.exp()
    maps[:, 0].clamp_(max=1.05)
    return TissueMaps.from_stack(maps * (maps[:, :1] > 0.05))


def csf_share(shares: Tensor) -> Tensor:
    """``(n,)``: what part of the skull's inside is CSF, of shares ``(n, 1 + k, y, x)``."""
    area = shares.sum((2, 3))
    inside = area[:, 1:4].sum(1)  # WM, GM, CSF
    return area[:, 1 + BRAIN_PARTS.index("CSF")] / inside.clamp_min(1e-6)


def emptied(shares: Tensor, where: Tensor) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` that are air alone in the voxels ``where`` ``(n, 1, y, x)``."""
    air = functional.one_hot(torch.tensor(0), shares.shape[1]).to(shares)[:, None, None]
    return torch.where(where, air, shares)


SOLITARY, RIM = 0.12, 3
"""A drawn voxel becomes air where tissue fills less of the 5×5 voxels about it. Further than so many voxels inside
the brain's rim all is brain."""

SKIN, BONE, BRIDGED = 2, 3, 8
"""Voxels: how thick skin is at least; how far it keeps from the brain, for bone; half the width of the widest gap that
is closed. A diffusion model leaves gaps where scalp is thin."""

SHARED = 0.35  # of the bone beside a voxel of the brain's rim lies in it: 1 in 90 is then part empty, as scans tell


def brain_in(shares: Tensor, tissues: tuple[str, ...]) -> NDArray:
    """``(n, y, x)`` bool: the :func:`slices.largest_piece` of brain tissue, without holes."""
    inner = [1 + k for k, name in enumerate(tissues) if name not in SCALP]
    soft = (shares[:, inner].sum(1) > 0.5).cpu().numpy()
    return np.stack([ndimage.binary_fill_holes(one) for one in largest_piece(soft)])


def without_dots(shares: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` without tissue alone in air, and without air, fat or muscle deep in the brain."""
    shares = emptied(shares, 1 - functional.avg_pool2d(shares, 5, 1, 2)[:, :1] < SOLITARY)
    own = shares.clone()
    own[:, 0] = own[:, 4:6] = 0  # air, fat, muscle
    brain = own.sum(1, keepdim=True) > 0.5
    own = torch.where(brain, own, functional.avg_pool2d(own * brain, 7, 1, 3))
    total = own.sum(1, keepdim=True)
    deep = deep_in(brain_in(shares, tissues), RIM).to(shares.device)
    return torch.where(deep & (total > 0), own / total.clamp_min(1e-6), shares)


def enclosed(shares: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` of whole heads with skin all around, and bone between it and the brain.

    New skin has the fat and muscle of the scalp about it. Brains without a head stay as they are.
    """
    if tuple(tissues) != HEAD_PARTS:
        return shares
    depth_of, edge, scalp = ndimage.distance_transform_edt, BRIDGED + 1, shares[:, 4:6]
    soft, skin, bone = (shares[:, 0] < 0.5).cpu().numpy(), [], []
    for one, brain in zip(soft, brain_in(shares, tissues), strict=True):
        near = depth_of(~np.pad(one, edge)) <= BRIDGED if one.any() else np.pad(one, edge)
        off = depth_of(~brain) if brain.any() else np.full(one.shape, np.inf)
        head = ndimage.binary_fill_holes((depth_of(near) > BRIDGED)[edge:-edge, edge:-edge] | (off <= BONE + SKIN))
        depth = depth_of(np.pad(head, 1, mode="edge"))[1:-1, 1:-1]  # a cut head has no skin where it is cut
        skin.append(head & (depth <= SKIN) & ~one & (off >= BONE))
        bone.append((off > 0) & (off <= 1))
    skin, bone = (torch.from_numpy(np.stack(where))[:, None].to(shares.device) for where in (skin, bone))
    about = torch.from_numpy(ndimage.gaussian_filter(scalp.cpu().numpy(), (0, 0, BRIDGED, BRIDGED))).to(shares)
    about = about + 0.01 * scalp.mean((2, 3), keepdim=True)
    like_it, known = torch.zeros_like(shares), about.sum(1, keepdim=True)
    like_it[:, 4:6] = about / known.clamp_min(1e-6)
    shares = torch.where(skin & (known > 0), like_it, shares)
    shares = emptied(shares, bone & (scalp.sum(1, keepdim=True) > 0.3))
    air, rest = shares.split([1, len(tissues)], 1)
    near = functional.avg_pool2d(functional.avg_pool2d(air, 2, 1, 1), 2, 1)  # of 3×3, the middle counts four times
    inner = 1 - air - rest[:, 3:5].sum(1, keepdim=True) > 0.5
    more = torch.where(inner, (SHARED * near).maximum(air), air)
    return torch.cat([more, rest * (1 - more) / (1 - air).clamp_min(1e-6)], 1)


# --- the network --------------------------------------------------------------------------------------

WHOLE = 2.0
"""What a share of 1 counts beside noise of SD 1, from which shares are drawn."""

DRAWING_STEPS = 10
DRAWING_SHIFT = 1.5  # of the sampler: more steps while there is much noise, which is when most is decided

FURTHEST_ASTRAY = 0.6
"""Largest SD of the noise on the latents that the decoder is trained on; a channel in use has an SD of 1."""

ASTRAY = 0.1
"""SD of the noise that the decoder assumes on latents when it draws: a diffusion model's are not quite people's."""


class CompositionVAE(ModelMixin, ConfigMixin):
    """Shares of tissues ``(n, 1 + k, y, x)`` to a latent whose grid is coarser by ``stem`` × 2 a width, and out of it.

    A latent leaves folds in doubt. A decoder that answers in one step gives the mean of all folds that might be, and
    the mean is blurred. This decoder draws one of them. It starts from noise, and in a few steps it says which tissue
    is likely, given the latent and the shares so far (a diffusion autoencoder, Preechakul et al. 2022, arXiv
    2111.15640; of categories, Dieleman et al. 2022, arXiv 2211.15089).

    Parameters
    ----------
    tissues
        :data:`BRAIN_PARTS` or :data:`HEAD_PARTS`.
    latent_channels
        Of the latent.
    stem
        Factor of a space-to-depth before the first level and of a depth-to-space after the last: most of the cost is
        at full resolution.
    widths, decoder_widths
        Channels of each level of the encoder and of the decoder, each but the first at half the resolution of the one
        before.
    blocks
        Residual blocks a level; one at the encoder's finest, which costs most.
    """

    @register_to_config
    def __init__(
        self,
        tissues: tuple[str, ...] = HEAD_PARTS,
        latent_channels: int = 24,
        stem: int = 4,
        widths: tuple[int, ...] = (64, 96, 160),
        decoder_widths: tuple[int, ...] = (96, 128, 192),
        blocks: int = 2,
    ):
        super().__init__()
        n = (1 + len(tissues)) * stem**2
        down = [nn.PixelUnshuffle(stem), nn.Conv2d(n, widths[0], 1)]
        for i, width in enumerate(widths):
            down += [_block(width) for _ in range(blocks if i else 1)]
            if i + 1 < len(widths):
                down.append(Downsample2D(width, use_conv=True, out_channels=widths[i + 1], name="op"))
        down.append(nn.Conv2d(widths[-1], 2 * latent_channels, 1))
        self.down = nn.ModuleList(down)
        self.decoder = DrawingDecoder(latent_channels, 1 + len(tissues), stem, decoder_widths, blocks)

    @property
    def downsampling(self) -> int:
        """Voxels along each side of a cell of the latent."""
        return self.config.stem * 2 ** (len(self.config.widths) - 1)

    @property
    def drawn_channels(self) -> int:
        """Channels of what :meth:`join` makes: latent, texture, tissue values."""
        return self.config.latent_channels + 12 + 3 * len(self.config.tissues)

    def encode(self, shares: Tensor) -> Posterior:
        """The posterior of the latent."""
        h = 2 * shares - 0.3
        for layer in self.down:
            h = layer(h, None) if isinstance(layer, ResnetBlock2D) else layer(h)
        mean, log_variance = h.chunk(2, 1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @torch.no_grad()
    def draw(self, z: Tensor, seed: int = 0, steps: int = DRAWING_STEPS, astray: float = ASTRAY) -> Tensor:
        """Shares ``(n, 1 + k, y, x)`` that a latent ``(n, c, y, x)`` may stand for; another ``seed``, other folds.

        All slices start from the same noise: latents that differ little give slices that differ little.
        """
        scheduler = make_scheduler("flow", flow_shift=DRAWING_SHIFT)
        scheduler.set_timesteps(steps)
        ny, nx = (size * self.downsampling for size in z.shape[2:])
        noise = torch.randn(1, 1 + len(self.config.tissues), ny, nx, generator=torch.Generator().manual_seed(seed))
        x = noise.to(z).expand(len(z), -1, -1, -1)
        told = z.new_full((len(z),), astray)
        for clock in scheduler.timesteps:
            sigma = told.new_full((len(z),), float(clock) / TRAIN_STEPS)
            shares = self.decoder(z, x, sigma, told).float().softmax(1)
            x = scheduler.step((x - WHOLE * shares) / sigma.view(-1, 1, 1, 1), clock, x).prev_sample
        return without_dots(shares, self.config.tissues)

    def join(self, composition: Composition) -> Tensor:
        """One latent ``(n, c + 12 + 3k, y, x)`` of anatomy, texture and tissue values, to be drawn together.

        A cell of the latent holds 2×2 cells of the texture of each map. Log values are constant channels.
        """
        z = self.encode(composition.shares).mean.float()
        values = composition.values.log().flatten(1)[..., None, None].expand(-1, -1, *z.shape[2:])
        return torch.cat([z, functional.pixel_unshuffle(composition.texture, 2), values], 1)

    def to_maps(self, latent: Tensor, steps: int = DRAWING_STEPS) -> TissueMaps:
        """PD, T1 (s), T2 (s), each ``(n, y, x)``, of latents that :meth:`join` made or a diffusion model drew.

        A whole head is :func:`enclosed`. In one step a decoder answers with the mean of all that it might draw.
        """
        n = self.config.latent_channels
        z, texture, values = latent.split([n, 12, 3 * len(self.config.tissues)], 1)
        values = values.mean((2, 3)).unflatten(1, (-1, 3)).exp()
        shares = enclosed(self.draw(z, steps=steps), self.config.tissues)
        return restore(Composition(shares, values, functional.pixel_shuffle(texture, 2)))


class DrawingDecoder(nn.Module):
    """Latent and noisy shares → logits of the shares: a small U-Net over noise, whose coarsest level sees the latent.

    Its noisy shares are ``(1 − σ) · WHOLE · shares + σ · noise``.
    """

    def __init__(self, latent_channels: int, classes: int, stem: int, widths: tuple[int, ...], blocks: int):
        super().__init__()
        n, self.stem, told = classes * stem**2, stem, 128
        self.waves = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.told = nn.Sequential(nn.Linear(told, told), nn.SiLU(), nn.Linear(told, told))

        def level(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(adaptive_block(width, width, told, 8) for _ in range(count))

        pairs = list(zip(widths, widths[1:], strict=False))
        self.start, self.latent = nn.Conv2d(n, widths[0], 1), nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.down = nn.ModuleList(level(width, 1) for width in widths)
        self.smaller = nn.ModuleList(Downsample2D(a, use_conv=True, out_channels=b, name="op") for a, b in pairs)
        self.larger = nn.ModuleList(Enlarge(b, a) for a, b in pairs)
        self.beside = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a, _ in pairs)
        self.up = nn.ModuleList(level(width, blocks) for width in widths)
        self.head, self.straight = nn.Conv2d(widths[0], n, 3, padding=1), nn.Conv2d(n, n, 1)
        nn.init.zeros_(self.straight.weight)

    def forward(self, z: Tensor, noisy: Tensor, sigma: Tensor, astray: Tensor) -> Tensor:
        """Logits ``(n, 1 + k, y, x)``; ``sigma`` and ``astray`` are ``(n,)``."""
        told = torch.cat([self.waves(TRAIN_STEPS * sigma), self.waves(TRAIN_STEPS * astray)], 1)
        told = self.told(told.to(z.dtype))
        noisy = functional.pixel_unshuffle(noisy, self.stem)
        h, seen = self.start(noisy), []
        for blocks, smaller in zip(self.down, [*self.smaller, None], strict=True):
            for block in blocks:
                h = block(h, told)
            seen.append(h)
            h = smaller(h) if smaller else h + self.latent(z)
        for i in reversed(range(len(self.up))):
            for block in self.up[i]:
                h = block(h, told)
            if i:
                h = self.beside[i - 1](torch.cat([self.larger[i - 1](h), seen[i - 1]], 1))
        evidence = ((1 - sigma) / (sigma**2 + 0.1)).view(-1, 1, 1, 1) * noisy  # of each voxel alone
        return functional.pixel_shuffle(self.head(h) + self.straight(evidence.to(h.dtype)), self.stem)


def _block(width: int) -> ResnetBlock2D:
    """A residual block with one norm, identity at the start."""
    block = ResnetBlock2D(in_channels=width, out_channels=width, temb_channels=None, groups=8)
    block.norm2 = nn.Identity()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    return block
