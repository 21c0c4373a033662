"""What autoencoders are trained on. The VAE: random subsets of scans, and a loss that joins them through the physics.

The autoencoder of compositions: shares of tissue, and how likely they are under the restored ones.

The priors say what literature says of healthy tissue: PD follows T1 through water content, and T2 follows T1 between
grey matter and fluid. Neither favours any T1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from .composition import FURTHEST_ASTRAY, WHOLE, CompositionVAE
from .machine.errors import BadInput
from .machine.processes import drawn, mean
from .physics import SEQUENCES, Sequence, shown_signal
from .slices import LEAST_LEFT, Slices, brightness, covered, spoiled
from .tissue import WATER_SPREAD, fluid_line, implied_pd
from .vae import PRIOR_MEDIANS, TYPICAL_SIGNAL, PoEVAE, Posterior


@dataclass(frozen=True)
class VAELoss:
    """Weights of the VAE's loss; every term is a mean, so weights do not depend on sizes."""

    l1: float = 1.0
    l2: float = 0.0  # the paper trains one model with each and compares
    structure: float = 0.1  # 1 − SSIM of the rendered scans
    kl: float = 1e-3
    map_prior: float = 5e-4  # squared normalised log maps, inside the head only
    water: float = 1e-2  # PD against the PD its T1 implies, see water_prior
    fluid: float = 1e-2  # T2 against the T2 its T1 implies, where that is longer than grey matter's, see fluid_prior
    air: float = 0.1  # PD where every scan is dark, a spin echo among them: there is nothing there
    adversarial: float = 0.0  # least-squares patch adversary on rendered scans
    adversarial_after: int = 0  # steps before the adversary is heard
    keep_scan: float = 0.7  # chance that a scan that exists is shown to the encoder
    unscaled: float = 0.5  # fraction of rows shown without a common scale
    relative: bool = False  # each scan's misfit over its own brightness: a dark scan tells as much as a bright one
    gain: str = "solved"  # of rows without a common scale: "solved" by least squares, or "fixed" at 1


class VAEBatch(NamedTuple):
    """Rows of :class:`slices.Slices` with the brightness of each scan and the random choices of one step."""

    images: Tensor  # (n, m, y, x) on a common scale, divided by the typical signal
    inputs: Tensor  # (n, m, y, x) the same as the encoder sees them: as scans arrive, divided by ``level``
    level: Tensor  # (n, m) what a scan is divided by before the encoder sees it
    unit: Tensor  # (n, m) what its misfit is measured in
    settings: Tensor  # (n, m, 6)
    observed: Tensor  # (n, m)
    shown: Tensor  # (n, m) the scans the encoder sees
    common: Tensor  # (n,) whether they are on a common scale


class VAEObjective(nn.Module):
    """The VAE, its patch adversary, and the loss that joins them through the physics layer."""

    def __init__(self, vae: PoEVAE, weights: VAELoss):
        from monai.losses import SSIMLoss  # seconds of imports, for those who train

        super().__init__()
        if weights.gain not in ("solved", "fixed"):
            raise BadInput(f"gain is {weights.gain!r}: choose 'solved' (least squares per scan) or 'fixed' (at 1)")
        self.vae, self.weights = vae, weights
        self.ssim = SSIMLoss(spatial_dims=2, data_range=4.0, win_size=7, kernel_type="uniform", reduction="none")
        self.adversary = patch_adversary() if weights.adversarial else None

    def forward(self, batch: VAEBatch, step: int) -> dict[str, Tensor]:
        inputs = batch.inputs
        posterior = self.vae.encode(inputs, batch.settings, batch.shown, batch.level, batch.common)
        noise = drawn(torch.randn, *posterior.mean.shape, device=inputs.device, dtype=posterior.mean.dtype)
        log_maps = self.vae.decode_log(posterior.at(noise))
        with torch.autocast(inputs.device.type, enabled=False):  # exponentials and SSIM need float32
            losses = self._terms(Posterior(*(t.float() for t in posterior)), log_maps.float(), batch, step)
        return losses

    def _terms(self, posterior: Posterior, log_maps: Tensor, batch: VAEBatch, step: int) -> dict[str, Tensor]:
        weights = self.weights
        maps = (log_maps + self.vae.log_medians).exp()
        predicted = self.render(maps, batch.settings) / TYPICAL_SIGNAL
        # where no scan that is shown holds a measurement, nothing can be told: neither a gain nor a map is asked for
        told = (covered(batch.inputs) & batch.shown[..., None, None]).any(1, keepdim=True).to(predicted.dtype)
        if weights.gain == "solved":
            gain = solve_gain(predicted * told, batch.images * told)
            predicted = predicted * torch.where(batch.common[:, None], 1.0, gain)[..., None, None]
        unit = batch.unit[batch.observed][:, None, None, None]
        predicted, target = predicted[batch.observed][:, None] / unit, batch.images[batch.observed][:, None] / unit
        told = told.expand_as(batch.images)[batch.observed][:, None]
        brightest = (batch.images * batch.observed[..., None, None]).amax(1)
        inside = (brightest > 0.2).float()  # somewhere above the noise: head, not air
        # CSF is dark in T1w and FLAIR too, so only sessions with a spin echo can tell it from air
        spin_echo = (batch.observed & (batch.settings[..., 0] == SEQUENCES.index(Sequence.SPIN_ECHO))).any(1).float()
        # Literature's lines go with its medians: where those were moved, the lines are moved along.
        moved = maps.new_tensor(self.vae.config.prior_medians) / maps.new_tensor(PRIOR_MEDIANS)
        as_published = maps / moved.view(3, 1, 1)
        losses = {
            "l1": mean((predicted - target).abs(), told),
            "l2": mean((predicted - target) ** 2, told),
            "structure": mean(self.ssim((predicted * told).clamp(0, 4), (target * told).clamp(0, 4))),
            "kl": mean(posterior.kl()),
            "map_prior": mean((log_maps**2).mean(1), inside),
            "water": mean(water_prior(as_published), inside),
            "fluid": mean(fluid_prior(as_published), inside),
            "air": mean(maps[:, 0] * (1 - inside) * spin_echo[:, None, None]),
        }
        total = sum(getattr(weights, name) * value for name, value in losses.items())
        if self.adversary is not None and step >= weights.adversarial_after:
            fooled, judged = against(self.adversary, predicted, target)
            losses |= {"adversarial": fooled, "adversary": judged}
            total = total + weights.adversarial * fooled + judged
        return {"total": total, **losses}

    def render(self, maps: Tensor, settings: Tensor) -> Tensor:
        """The scans ``(n, m, y, x)`` that maps ``(n, 3, y, x)`` give, on their own scale: the physics layer."""
        return shown_signal(maps.unbind(1), settings)


def patch_adversary() -> nn.Module:
    """A network that says of every patch of images ``(n, 1, y, x)`` whether it is real (1) or not (0)."""
    from monai.networks.nets import PatchDiscriminator  # seconds of imports, for those who train

    return PatchDiscriminator(spatial_dims=2, channels=32, in_channels=1, num_layers_d=2, norm="INSTANCE")


def against(adversary: nn.Module, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares GAN: the maker's loss against a frozen adversary, and the adversary's own (Mao et al. 2017)."""
    frozen = {name: p.detach() for name, p in adversary.named_parameters()}
    fooled = mean((functional_call(adversary, frozen, (made,))[-1] - 1) ** 2)
    on_real, on_made = adversary(real)[-1], adversary(made.detach())[-1]
    return fooled, 0.5 * (mean((on_real - 1) ** 2) + mean(on_made**2))


def water_prior(maps: Tensor) -> Tensor:
    """``(n, y, x)``: how far PD is from what T1 implies (:func:`tissue.water_line`), for maps ``(n, 3, y, x)``.

    In T1w, T2w and FLAIR one mixture of PD, T1 and T2 is nearly invisible: a 1 % error of the ratio
    FLAIR/T2w moves white matter's T1 by 5 % and its PD by 8 %. Both follow from water content, and
    saying so closes that gap without favouring any T1 or T2. A Student penalty, because fat and
    lesions are not on the line and must be free to leave it.
    """
    pd, t1 = maps[:, 0].clamp_min(1e-3), maps[:, 1].clamp_min(1e-2)
    off = (pd / implied_pd(t1)).log()
    return torch.log1p((off / WATER_SPREAD) ** 2)


FLUID_SPREAD = 0.3
"""SD of log T2 about the line from grey matter to CSF."""


def fluid_prior(maps: Tensor) -> Tensor:
    """``(n, y, x)``: how far T2 is from what T1 implies between grey matter and CSF (:func:`tissue.fluid_line`).

    A spin echo at 0.1 s tells a T2 of 1 s from one of 2 s by 5 % of its signal, which PD takes up as well:
    CSF's T2 is all but invisible, and contrasts at long TE show little else. T1 is taken as it is, and T2 leans
    on it; at or below grey matter's T1 nothing is said. A Student penalty, because lesions leave the line.
    """
    a, b, t1_gm = fluid_line()
    t1, t2 = maps[:, 1].detach(), maps[:, 2].clamp_min(1e-3)
    off = t2.log() - a - b * t1.clamp_min(t1_gm).log()
    return torch.log1p((off / FLUID_SPREAD) ** 2) * (t1 > t1_gm)


def solve_gain(predicted: Tensor, observed: Tensor) -> Tensor:
    """``(n, m)``: the gain that brings each predicted scan ``(n, m, y, x)`` closest to the observed one.

    Least squares in closed form, Σ p·o / Σ p²; it replaces the paper's gain of 1 for every scanner.
    """
    return (predicted * observed).sum((-2, -1)) / (predicted**2).sum((-2, -1)).clamp_min(1e-6)


def gain_per_scan(predicted: Tensor, observed: Tensor, inside: Tensor) -> Tensor:
    """``(m,)``: :func:`solve_gain` over all slices of a person, which were acquired together and share a gain.

    Parameters
    ----------
    predicted, observed
        ``(n, m, y, x)``, the slices of one person.
    inside
        ``(n, 1, y, x)`` or ``(n, m, y, x)`` bool: where they are compared.
    """
    end_to_end = ((images * inside).transpose(0, 1).flatten(1)[None, :, None] for images in (predicted, observed))
    return solve_gain(*end_to_end)[0]


SCANS_A_STEP = 4
"""Of a person who has more: as many as a session holds, of those that exist, others at each step."""

MISJUDGED = 0.15
"""SD of the logarithm by which a spoiled scan's brightness is judged wrongly, so that nothing rests on it."""

GAIN_ERROR = 0.03
"""SD of the logarithm by which a common scale is told wrongly: three tissues tell gains to no better."""


class VAEData:
    """Draws the VAE's batches from :class:`slices.Slices` on a common scale, with random subsets of scans.

    Where the slices have layers, the encoder sees each scan as it may arrive (:func:`slices.spoiled`), and what it is
    asked for is the scan as it was.
    """

    def __init__(self, slices: Slices, weights: VAELoss):
        self.slices, self.weights = slices, weights
        level = brightness(slices.images, slices.observed, slices.subject)
        self.level = torch.where(slices.observed, level / TYPICAL_SIGNAL, 1.0)
        complete = slices.observed.sum(1) >= 3
        share = complete.float().mean().clamp(0.01, 0.99)
        self.chances = torch.where(complete, 0.5 / share, 0.5 / (1 - share))
        if slices.layers is not None:  # above a head there is air
            self.chances *= (slices.layers > 0).flatten(1).float().mean(1) >= LEAST_LEFT

    def __len__(self):
        return len(self.slices)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``(n,)`` rows, half of them of sessions with three contrasts: only those tell PD, T1 and T2 apart."""
        return torch.multinomial(self.chances, n, replacement=True, generator=generator)

    def batch(self, rows: Tensor, generator: torch.Generator) -> VAEBatch:
        part, level = self.slices[rows], self.level[rows]
        if (n := part.observed.shape[1]) > SCANS_A_STEP:
            drawn_order = torch.stack([torch.randperm(n, generator=generator) for _ in rows])
            missing = ~part.observed.gather(1, drawn_order)  # scans that exist go before those that do not
            chosen = drawn_order.gather(1, missing.long().argsort(dim=1, stable=True))[:, :SCANS_A_STEP]
            here = torch.arange(len(rows))[:, None]
            some = {name: getattr(part, name)[here, chosen] for name in ("images", "settings", "observed")}
            part = replace(part, **some)
            level = level[here, chosen]
        observed = part.observed
        shown = observed & (torch.rand(observed.shape, generator=generator) < self.weights.keep_scan)
        empty = ~shown.any(1)
        shown[empty] = observed[empty]  # nothing left: show all there is
        common = torch.rand(len(rows), generator=generator) >= self.weights.unscaled
        flip = torch.rand(len(rows), generator=generator) < 0.5  # left and right are alike in this anatomy
        images = part.images / TYPICAL_SIGNAL
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        unit = level if self.weights.relative else torch.ones_like(level)
        if part.layers is None:
            inputs = images / level[..., None, None]
            return VAEBatch(images, inputs, level, unit, part.settings, observed, shown, common)
        layers = torch.where(flip[:, None, None], part.layers.flip(-1), part.layers)
        inputs = images.clone()
        for i, j in shown.nonzero().tolist():
            inputs[i, j] = spoiled(images[i, j], layers[i], generator)
        level = brightness(inputs, shown, torch.arange(len(rows)))
        level = level * (MISJUDGED * torch.randn(level.shape, generator=generator)).exp()
        told = level * (GAIN_ERROR * torch.randn(level.shape, generator=generator)).exp()
        return VAEBatch(images, inputs / level[..., None, None], told, unit, part.settings, observed, shown, common)


# --- the autoencoder of compositions --------------------------------------------------------------


class CompositionBatch(NamedTuple):
    shares: Tensor  # (n, 1 + k, y, x)


class CompositionData:
    """Draws batches of shares, half of them mirrored: left and right are alike in this anatomy.

    ``shares`` ``(n, 1 + k, y, x)`` are bytes: 255 is 1.
    """

    def __init__(self, shares: Tensor):
        self.shares = shares

    def __len__(self):
        return len(self.shares)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self), (n,), generator=generator)

    def batch(self, rows: Tensor, generator: torch.Generator) -> CompositionBatch:
        shares = self.shares[rows].float() / 255
        flip = torch.rand(len(rows), generator=generator) < 0.5
        return CompositionBatch(torch.where(flip[:, None, None, None], shares.flip(-1), shares))


LOGIT_OF_DRAWN_SIGMA = (1.0, 1.4)
"""Mean and SD of the logit of σ at which the drawing decoder is trained: edges stand fast at a σ of 0.5."""


@dataclass(frozen=True)
class CompositionLoss:
    """Weights beside the cross-entropy of the composition, per voxel."""

    kl: float = 0.3  # the latent's divergence from the unit Gaussian; 1 would be the likelihood's own bound
    halved: float = 0.3  # of the steps are at half the resolution, see CompositionObjective


class CompositionObjective(nn.Module):
    """Squeeze a composition, ask for it back out of noise, and see how likely its voxels are under the answer.

    In part of the steps latent and target are both averaged over 2×2: a latent then means the same at every scale,
    which makes it easier to learn for the diffusion model (Kouzelis et al. 2025, arXiv 2502.09509). Latents are led
    astray by up to :data:`composition.FURTHEST_ASTRAY`, and the decoder is told how far: those that it will draw from
    are nobody's (conditioning augmentation, Ho et al. 2022, arXiv 2106.15282).
    """

    def __init__(self, autoencoder: CompositionVAE, weights: CompositionLoss):
        super().__init__()
        self.autoencoder, self.weights = autoencoder, weights

    def forward(self, batch: CompositionBatch, step: int) -> dict[str, Tensor]:
        target, n = batch.shares.contiguous(memory_format=torch.channels_last), len(batch.shares)
        posterior = Posterior(*(t.float() for t in self.autoencoder.encode(target)))
        noise = partial(drawn, torch.randn, device=target.device)
        astray = FURTHEST_ASTRAY * drawn(torch.rand, n, device=target.device)
        z = posterior.at(noise(*posterior.mean.shape))
        z = z + astray.view(-1, 1, 1, 1) * noise(*z.shape)
        if torch.rand(()) < self.weights.halved:
            z, target = functional.avg_pool2d(z, 2), functional.avg_pool2d(target, 2)
        middle, sd = LOGIT_OF_DRAWN_SIGMA
        sigma = torch.sigmoid(middle + sd * noise(n))
        s = sigma.view(-1, 1, 1, 1)
        noisy = (1 - s) * WHOLE * target + s * noise(*target.shape)
        logits = self.autoencoder.decoder(z, noisy, sigma, astray).float()
        kl = mean(posterior.kl().sum((1, 2, 3))) / batch.shares[0, 0].numel()
        cross_entropy = -mean((target * logits.log_softmax(1)).sum(1))
        return {"total": cross_entropy + self.weights.kl * kl, "cross_entropy": cross_entropy, "kl": kl}
