"""From scans to maps: the encoder starts, and the scans have the last word.

The encoder knows the protocols that it was trained on. The decoder knows no protocol, and the physics knows them all.
So the latent is moved, by gradient, until decoder and signal equations explain the scans (:func:`explain`): any
sequence that :mod:`physics` can render is taken at its word. ``fit --fast`` leaves that out (:func:`infer`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .losses import fluid_prior, water_prior
from .machine.precision import best_precision
from .physics import TissueMaps, shown_signal
from .slices import Slices, brightness
from .vae import TYPICAL_SIGNAL, PoEVAE, Posterior, covered

INFERENCE_BATCH = 32  # slices at a time: fits any machine, and more is no faster


@torch.no_grad()
def encode(
    vae: PoEVAE,
    slices: Slices,
    common_scale: bool = True,
    shown: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> Posterior:
    """The posterior ``(n, c, y, x)`` of every slice; arguments as :func:`infer`."""
    shown = slices.observed if shown is None else shown & slices.observed
    scale = brightness(slices.images, slices.observed, slices.subject) if scale is None else scale
    parts = []
    for rows in torch.arange(len(slices)).split(INFERENCE_BATCH):
        inputs, level = slices.images[rows] / scale[rows][..., None, None], scale[rows] / TYPICAL_SIGNAL
        parts.append(
            vae.encode(inputs, slices.settings[rows], shown[rows], level, torch.full((len(rows),), common_scale))
        )
    return Posterior(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


@torch.no_grad()
def infer(
    vae: PoEVAE,
    slices: Slices,
    common_scale: bool = True,
    shown: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
):
    """Posterior and tissue maps of every slice, from the encoder alone.

    Parameters
    ----------
    common_scale
        Whether ``slices.images`` share the scale of PD (see :func:`cohort.load_scans`).
    shown
        ``(n, m)`` bool, the scans the encoder may see; None: all that exist.
    scale
        ``(n, m)``, what each scan is divided by; None: :func:`slices.brightness` over these very slices.

    Returns
    -------
    Posterior
        ``(n, c, y, x)``.
    TissueMaps
        ``(n, y, x)``, decoded from the posterior mean.
    """
    posterior = encode(vae, slices, common_scale, shown, scale)
    maps = torch.cat([vae.decode(part).stack() for part in posterior.mean.split(INFERENCE_BATCH)])
    return posterior, TissueMaps.from_stack(maps)


@torch.no_grad()
def posterior_sd(vae: PoEVAE, posterior: Posterior, n_samples: int, generator: torch.Generator) -> TissueMaps:
    """SD of PD, T1 (s) and T2 (s) over decoded samples of the posterior, each ``(n, y, x)``.

    It is how sure the model is, not how right: an error that all samples share does not show. On a simulated whole
    brain, weights of the laptop profile had one in twenty true values within two of these SDs.

    Parameters
    ----------
    n_samples
        At least 2; the SD itself is known to a fraction 1/√(2(n − 1)).
    """
    spread = []
    for mean, log_variance in zip(*(t.split(INFERENCE_BATCH) for t in posterior), strict=True):
        part, middle = Posterior(mean, log_variance), vae.decode(mean).stack()
        total, squares = torch.zeros_like(middle), torch.zeros_like(middle)
        for _ in range(n_samples):
            off = vae.decode(part.sample(generator)).stack() - middle  # small numbers: their squares keep all digits
            total += off
            squares += off**2
        spread.append(((squares - total**2 / n_samples) / (n_samples - 1)).clamp_min(0).sqrt())
    return TissueMaps.from_stack(torch.cat(spread))


# --- through the physics --------------------------------------------------------------------------

STEPS = 30
JOINT = 8
"""Slices from which the gains of a session's scans are told, spread over the volume: the others take them over."""

SIGNAL_ERROR = 0.03
"""Of the signal: the coil's field and the signal equations are known to no better."""

TRUST = 1e-3
"""Weight of the encoder's posterior. At 1 a latent that is off by 100 % would not move; at 0 noise is fitted."""

RATE = 0.2  # of Adam, in latent units, falling to a tenth along a cosine
INSIDE = 0.12  # of a scan's brightness: where every scan is darker there is no head
NOISE = (0.008, 0.03)  # of a scan's brightness: what its darkest pixels say is kept between
FLOOR = 1.4  # times the noise's variance: the square of a magnitude's median where there is no signal
HUBER = 3.0  # SDs, beyond which a misfit counts by its size and not by its square: flow, vessels, motion


class Explained(NamedTuple):
    """What scans say: maps ``(n, y, x)``, latent ``(n, c, y, x)``, and of each scan gain and noise's SD ``(m,)``.

    ``gain`` takes the signal of the maps to ``slices.images``; ``misfit`` ``(n,)`` is the mean loss of a slice.
    """

    maps: TissueMaps
    latent: Tensor
    gain: Tensor
    noise: Tensor
    misfit: Tensor


def explain(
    vae: PoEVAE,
    slices: Slices,
    shown: Tensor | None = None,
    scale: Tensor | None = None,
    steps: int = STEPS,
    trust: float = TRUST,
) -> Explained:
    """Move the latent of one session until decoder and signal equations explain its scans.

    What is minimised, per pixel of the head: the scans' misfit over noise and :data:`SIGNAL_ERROR`, robustly; the water
    line and the fluid line of training (:mod:`losses`); and the latent's distance from the encoder's posterior, whose
    variance is widened by how badly the encoder's own maps explain the scans. Each scan has one gain, solved for.
    A magnitude has a valley on either side of a null point, so a session with inverted scans also starts from what
    the others say alone.

    Parameters
    ----------
    slices
        Of one session, each scan with its own unknown gain.
    shown, scale
        As :func:`infer` takes them.
    steps
        Of Adam.
    trust
        Weight of the encoder's posterior.

    Raises
    ------
    ValueError
        The slices are of several sessions.
    """
    if len(slices.subject.unique()) > 1:
        raise ValueError("slices of several sessions: explain one session at a time")
    shown = slices.observed if shown is None else shown & slices.observed
    scale = brightness(slices.images, slices.observed, slices.subject) if scale is None else scale
    fixed = [p for p in vae.parameters() if p.requires_grad]
    for p in fixed:
        p.requires_grad_(False)  # the latent moves, not the network
    try:
        return _explain(vae, slices, shown, scale, steps, trust)
    finally:
        for p in fixed:
            p.requires_grad_(True)


def _explain(vae, slices, shown, scale, steps, trust) -> Explained:
    signals = Signals(slices.images / scale[..., None, None], slices.settings, shown)
    noise = signals.noise
    starts = [encode(vae, slices, False, shown, scale)]
    inverted = slices.settings[..., 3] > 0
    if (shown & inverted).any(1).all() and (shown & ~inverted).any(1).all():
        starts.append(encode(vae, slices, False, shown & ~inverted, scale))
    filled = signals.inside.float().mean((1, 2)).argsort(descending=True)[: max(JOINT, len(slices) // 2)].sort().values
    joint = filled[torch.linspace(0, len(filled) - 1, min(JOINT, len(filled))).round().long()]
    tried = [_move(vae, signals[joint], noise, start, starts[0], joint, None, steps, trust) for start in starts]
    start, (_, gain, _) = min(zip(starts, tried, strict=True), key=lambda found: float(found[1][2].mean()))
    moved = [
        _move(vae, signals[rows], noise, start, starts[0], rows, gain, steps, trust)
        for rows in torch.arange(len(slices)).split(JOINT)
    ]
    latent = torch.cat([z for z, _, _ in moved])
    with torch.no_grad():
        maps = torch.cat([vae.decode(part).stack() for part in latent.split(INFERENCE_BATCH)])
    unit = (shown.float() * scale).sum(0) / shown.sum(0).clamp_min(1)
    misfit = torch.cat([misfit for _, _, misfit in moved])
    return Explained(TissueMaps.from_stack(maps), latent, gain * unit, noise * unit, misfit)


def _move(
    vae: PoEVAE, signals: Signals, noise: Tensor, start: Posterior, prior: Posterior, rows: Tensor,
    gain: Tensor | None, steps: int, trust: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The latent of ``rows``, the gains ``(m,)`` (solved for where ``gain`` is None) and the misfit of each slice."""
    images, counted = signals.images, (signals.measured & signals.inside[:, None]).float()
    mean, variance = prior.mean[rows], prior.log_variance[rows].exp()
    latent = start.mean[rows].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latent], RATE, betas=(0.9, 0.95))
    sd = (noise[:, None, None] ** 2 + (SIGNAL_ERROR * images) ** 2).sqrt()
    signed = signals.settings[..., 5, None, None] > 0
    pixels, weight, widened = counted.amax(1).sum().clamp_min(1), counted / sd**2, None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 4) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=best_precision() == "bf16"):
            log_maps = vae.decode_log(latent)
        maps = (log_maps.float() + vae.log_medians).exp()
        predicted = shown_signal(maps.unbind(1), signals.settings)
        g = gain
        if g is None:
            g = (weight * predicted * images).sum((0, 2, 3)) / (weight * predicted**2).sum((0, 2, 3)).clamp_min(1e-9)
        predicted = g[:, None, None] * predicted
        seen = (predicted**2 + FLOOR * noise[:, None, None] ** 2).sqrt()  # a magnitude never falls below its noise
        off = (torch.where(signed, predicted, seen) - images) / sd
        misfit = (HUBER**2 * ((1 + (off / HUBER) ** 2).sqrt() - 1) * counted).sum((1, 2, 3))
        if widened is None:  # an encoder whose maps do not explain the scans is not at home, and is trusted less
            explained = (off.detach() ** 2).clamp(max=400) * counted
            widened = variance * (explained.sum() / counted.sum().clamp_min(1)).clamp_min(1)
        lines = (water_prior(maps) + fluid_prior(maps)) * counted.amax(1)
        loss = misfit.sum() + lines.sum() + trust / 2 * ((latent - mean) ** 2 / widened).sum()
        optimizer.zero_grad()
        (loss / pixels).backward()
        optimizer.step()
    per_slice = misfit.detach() / counted.amax(1).sum((1, 2)).clamp_min(1)
    return latent.detach(), g.detach(), per_slice


@dataclass(frozen=True)
class Signals:
    """Scans ``(n, m, y, x)`` over their brightness, and where they count."""

    images: Tensor
    settings: Tensor
    shown: Tensor

    def __getitem__(self, rows: Tensor) -> Signals:
        return Signals(self.images[rows], self.settings[rows], self.shown[rows])

    @property
    def measured(self) -> Tensor:
        """``(n, m, y, x)`` bool: a scan that is shown, where it holds a measurement."""
        return covered(self.images) & self.shown[..., None, None]

    @property
    def inside(self) -> Tensor:
        """``(n, y, x)`` bool: the head, as far as any scan shows it."""
        return ((self.images.abs() > INSIDE) & self.measured).any(1)

    @property
    def noise(self) -> Tensor:
        """``(m,)``: SD, told from air, where magnitudes are Rayleigh: SD² = mean square / 2."""
        air = self.measured & ~self.inside[:, None]
        square = (self.images**2 * air).sum((0, 2, 3)) / air.sum((0, 2, 3)).clamp_min(1)
        return (square / 2).sqrt().clamp(*NOISE)
