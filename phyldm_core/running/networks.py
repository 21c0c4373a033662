"""The networks of a profile, made without memory, to be counted and drawn.

The shapes are those of the networks themselves, so that the picture of the architecture cannot say anything else.
"""

from __future__ import annotations

import torch
from torch import nn

from ..coarse import CoarseVAE
from ..diffusion import TissueTransformer, paper_unet
from ..slices import MODALITIES
from ..vae import PoEVAE
from .profiles import Profile


def drawn(profile: Profile) -> dict:
    """What :func:`architecture.architecture` draws of a profile: levels, latents, parameters.

    Slices have the shape of the profile's own cohort.
    """
    ny, nx = profile.cohort.shape
    with torch.device("meta"):  # sizes only
        vae = PoEVAE(**profile.vae)
        latent = made = (vae.config.latent_channels, ny // vae.downsampling, nx // vae.downsampling)
        coarse = None
        if profile.coarse is not None:
            coarse = CoarseVAE(latent[0], **profile.coarse)
            made = tuple(coarse.encode(torch.empty(1, *latent)).mean.shape[1:])
        if profile.denoiser is None:
            denoiser = paper_unet(made[0], made[1:])
            kind = "U-Net " + "/".join(map(str, denoiser.config.block_out_channels))
        else:
            denoiser = TissueTransformer(made[0] + 1, made[0], made[1:], **profile.denoiser)
            kind = f"transformer, {denoiser.config.layers} × {denoiser.config.width}"
    count = {"encoder": (vae.encoder, vae.embed), "decoder": (vae.decoder,), "denoiser": (denoiser,)}
    count |= {"coarse": (coarse,)} if coarse else {}
    stem, widths = vae.config.stem, vae.config.encoder_channels
    return {
        "scans": MODALITIES,
        "encoder": [(c, (ny // (stem * 2**i), nx // (stem * 2**i))) for i, c in enumerate(widths)],
        "latent": latent,
        "decoder": [(c, (latent[1] * 2**i, latent[2] * 2**i)) for i, c in enumerate(vae.config.decoder_channels)],
        "coarse": made if coarse else None,
        "denoiser": kind,
        "n_steps": profile.sampling_steps,
        "parameters": {name: sum(map(_size, parts)) for name, parts in count.items()},
    }


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
