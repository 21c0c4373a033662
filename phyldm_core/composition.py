"""What a slice is made of: maps → shares of a few tissues → a small latent, and back.

An autoencoder that answers with numbers answers doubt with their mean, which is blur. One that answers with a choice
among tissues puts the edge somewhere. So the second autoencoder speaks *composition*: what part of a voxel is white
matter, grey matter, CSF … PD, T1 and T2 are then mixed from the tissues' own values, by the rule by which the cohort
mixes them. What is left of the maps after that is smooth, and travels along on a coarse grid.

Inference never passes through it: it is what the diffusion model draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn
from torch.nn import functional

from .inference import Explained
from .physics import TissueMaps, signed_signal
from .slices import Scans, Slices
from .tissue import TISSUES, in_vivo_3t, mix
from .vae import LOG_VARIANCE_RANGE, Enlarge, Posterior

BRAIN_PARTS = ("WM", "GM", "CSF")
HEAD_PARTS = ("WM", "GM", "CSF", "fat", "muscle", "lesion")
"""Tissues that a stripped brain and a whole head are told apart into; air and bone, which give no signal, come first
in every composition and are in neither list. Muscle stands for blood and skin too: all have a short T2."""

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

SHARPEN = 2.5
"""What logits are multiplied by before the softmax when brains are drawn: an edge in doubt goes where it is likely."""


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
    """Tell maps, each ``(n, y, x)``, apart into tissues.

    Parameters
    ----------
    tissues
        :data:`BRAIN_PARTS` or :data:`HEAD_PARTS`.
    cell
        Voxels along each side of a cell of the texture; divides y and x.
    """
    stack = maps.stack()
    values = own_values(stack, tissues)
    shares = unmix(stack, values, tissues)
    full = (shares[:, :1] < 0.1).float()  # at the rim PD is shared with air
    return Composition(shares, values, _texture(stack, shares, values, full, cell))


EMPTY, FULL = 0.12, 0.88
"""Between these sums of shares a voxel goes from empty to full: noise in air is not tissue, and the field varies."""

RARE = {("WM", "lesion"): 2.0}
"""What scans tell apart better than maps do: cortex in noise is no lesion."""

OVERFULL, UNFILLED = 0.1, 0.15
"""SD of how much more than a voxel two tissues fill, and how much less white and grey matter do: fields, no holes."""


def unmix_signals(scans: Scans, values: Tensor, tissues: tuple[str, ...]) -> Tensor:
    """Shares ``(n, 1 + k, y, x)`` of air and of each tissue that explain scans on PD's scale: in a voxel signals add.

    So what two tissues fill is a linear least-squares fit; of :data:`NEIGHBOURS` the pair that explains most wins, with
    the signs that magnitudes may have lost. One T1 for the whole voxel is not asked for: no single one explains T1w,
    T2w and FLAIR of cortex and fluid together.

    Parameters
    ----------
    values
        ``(k, 3)``: PD, T1 (s), T2 (s) of the person's tissues.
    """
    settings = scans.settings[:1].expand(len(values), -1, -1)
    signals = signed_signal(values.T[..., None, None], settings)  # (k, m, 1, 1)
    seen, weight = scans.over_noise, scans.weight
    least = torch.full_like(seen[:, 0], float("inf"))
    filled = seen.new_zeros(len(seen), len(tissues), *seen.shape[2:])
    for (a, b), cost in (NEIGHBOURS | RARE).items():
        if not {a, b} <= {*tissues}:
            continue
        pair = [tissues.index(a), tissues.index(b)]
        one, other = signals[pair]
        for signs in _signs(one, other, scans.settings[0, :, 5] > 0):
            parts, off = _two_parts(seen * signs, weight, one, other)
            total = parts.sum(1)
            off = off + cost + ((total - 1).clamp_min(0) / OVERFULL) ** 2
            if a in BRAIN_PARTS:
                off = off + ((1 - total).clamp_min(0) / UNFILLED) ** 2
            nearer = off < least
            least = torch.where(nearer, off, least)
            filled = torch.where(nearer[:, None], 0.0, filled)
            filled[:, pair] = torch.where(nearer[:, None], parts, filled[:, pair])
    whole = filled.sum(1, keepdim=True)
    full = ((whole - EMPTY) / (FULL - EMPTY)).clamp(0, 1)
    return torch.cat([1 - full, full * filled / whole.clamp_min(1e-6)], 1)


def _signs(one: Tensor, other: Tensor, signed: Tensor) -> Iterator[Tensor]:
    """Each way ``(m, 1, 1)`` in which magnitudes of what two tissues' signals ``(m, 1, 1)`` add up to may be signed."""
    choices = [
        (1.0,) if real else (float(a),) if a == b else (float(a), float(b))
        for a, b, real in zip(one.flatten().sign(), other.flatten().sign(), signed, strict=True)
    ]
    for signs in product(*choices):
        yield one.new_tensor(signs)[:, None, None]


def _two_parts(seen: Tensor, weight: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each voxel two tissues fill ``(n, 2, y, x)``, neither less than nothing, and the misfit left."""
    aa, bb, ab = ((x * weight).sum(1) for x in (one * one, other * other, one * other))
    at_a, at_b = ((seen * x * weight).sum(1) for x in (one, other))
    det = (aa * bb - ab**2).clamp_min(1e-9)
    first, second = (at_a * bb - at_b * ab) / det, (at_b * aa - at_a * ab) / det
    alone = [(at / own.clamp_min(1e-9)).clamp_min(0) for at, own in ((at_a, aa), (at_b, bb))]
    none = first < 0, second < 0
    first = torch.where(none[1], alone[0], first.clamp_min(0))
    second = torch.where(none[0], alone[1], second.clamp_min(0))
    left = ((seen - first[:, None] * one - second[:, None] * other) ** 2 * weight).sum(1)
    return torch.stack([first, second], 1), left


def compose_scans(explained: Explained, slices: Slices, tissues: tuple[str, ...], cell: int) -> Composition:
    """Tell a session's scans apart into tissues, as :func:`compose` does maps.

    White matter, grey matter and CSF have the values that the session's signals told, other tissues their mode in the
    explained maps. Texture is that of voxels of one tissue.

    Parameters
    ----------
    explained
        Of ``slices``, by :func:`inference.explain`.
    """
    stack = explained.maps.stack()
    values = own_values(stack, tissues).median(0).values
    values[: len(BRAIN_PARTS)] = explained.tissues
    scans = Scans(slices.images / explained.gain[:, None, None], slices.settings, slices.observed)
    shares = _without_noise(unmix_signals(scans, values, tissues))
    values = values.expand(len(stack), -1, -1)
    pure = (shares[:, 1:].amax(1, keepdim=True) > UNSHARED).float()
    return Composition(shares, values, _texture(stack, shares, values, pure, cell))


NOISE_OF_SHARES = 0.05
"""Strength of the non-local means (Buades et al. 2011) that takes a scan's noise off the shares, and leaves folds."""


def _without_noise(shares: Tensor) -> Tensor:
    settings = {"patch_size": 3, "patch_distance": 4, "h": NOISE_OF_SHARES, "fast_mode": True, "channel_axis": 0}
    found = torch.from_numpy(np.stack([denoise_nl_means(one, **settings) for one in shares.numpy()])).clamp_min(0)
    return found / found.sum(1, keepdim=True)


UNSHARED = 0.9  # of a voxel: less is shared, and has no T1 of its own


def _texture(stack: Tensor, shares: Tensor, values: Tensor, where: Tensor, cell: int) -> Tensor:
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


# --- the network --------------------------------------------------------------------------------------


class CompositionVAE(ModelMixin, ConfigMixin):
    """Shares of tissues ``(n, 1 + k, y, x)`` to and from a latent whose grid is coarser by ``stem`` × 2 a width.

    Parameters
    ----------
    tissues
        :data:`BRAIN_PARTS` or :data:`HEAD_PARTS`.
    latent_channels
        Of the latent.
    stem
        Factor of a space-to-depth before the first level and of a depth-to-space after the last: most of the cost is
        at full resolution.
    widths
        Channels of each level, each but the first at half the resolution of the one before.
    blocks
        Residual blocks a level; one at the finest, which costs most.
    """

    @register_to_config
    def __init__(
        self,
        tissues: tuple[str, ...] = HEAD_PARTS,
        latent_channels: int = 24,
        stem: int = 4,
        widths: tuple[int, ...] = (64, 96, 160),
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
        up = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1)]
        for i in reversed(range(len(widths))):
            up += [_block(widths[i]) for _ in range(blocks if i else 1)]
            if i:
                up.append(Enlarge(widths[i], widths[i - 1]))
        up += [nn.Conv2d(widths[0], n, 3, padding=1), nn.PixelShuffle(stem)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)

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
        mean, log_variance = _apply(self.down, 2 * shares - 0.3).chunk(2, 1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(n, 1 + k, y, x)`` of the shares."""
        return _apply(self.up, z)

    def shares(self, z: Tensor) -> Tensor:
        """The shares that a latent stands for, edges put where they are likeliest."""
        return (SHARPEN * self.decode(z).float()).softmax(1)

    def join(self, composition: Composition) -> Tensor:
        """One latent ``(n, c + 12 + 3k, y, x)`` of anatomy, texture and tissue values, to be drawn together.

        Texture has cells of half the latent's: four numbers a map and cell. Log values are constant channels.
        """
        z = self.encode(composition.shares).mean.float()
        values = composition.values.log().flatten(1)[..., None, None].expand(-1, -1, *z.shape[2:])
        return torch.cat([z, functional.pixel_unshuffle(composition.texture, 2), values], 1)

    def to_maps(self, latent: Tensor) -> TissueMaps:
        """PD, T1 (s), T2 (s), each ``(n, y, x)``, of latents that :meth:`join` made or a diffusion model drew."""
        n = self.config.latent_channels
        z, texture, values = latent.split([n, 12, 3 * len(self.config.tissues)], 1)
        values = values.mean((2, 3)).unflatten(1, (-1, 3)).exp()
        return restore(Composition(self.shares(z), values, functional.pixel_shuffle(texture, 2)))


def _block(width: int) -> ResnetBlock2D:
    """A residual block with one norm, identity at the start."""
    block = ResnetBlock2D(in_channels=width, out_channels=width, temb_channels=None, groups=8)
    block.norm2 = nn.Identity()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    return block


def _apply(layers: nn.ModuleList, h: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, None) if isinstance(layer, ResnetBlock2D) else layer(h)
    return h
