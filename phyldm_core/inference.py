"""From scans to maps with a trained VAE: what notebooks, the runs and ``phyldm fit`` all do alike."""

from __future__ import annotations

import torch

from .physics import TissueMaps
from .slices import Slices, brightness
from .vae import TYPICAL_SIGNAL, PoEVAE, Posterior

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
    """Posterior and tissue maps of every slice.

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
