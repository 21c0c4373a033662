"""Four sizes of the same experiment, each a table of settings with its reasons, and the networks made from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..composition import BRAIN_PARTS, HEAD_PARTS, CompositionVAE
from ..diffusion import CONDITIONS, TissueTransformer, paper_unet
from ..losses import CompositionLoss, VAELoss
from ..machine.errors import BadInput
from ..people.anatomy import Deformation
from ..people.cohort import CohortRecipe
from ..slices import MODALITIES
from ..training import Schedule
from ..vae import PoEVAE


@dataclass(frozen=True)
class Profile:
    """Everything a run needs to know, before it is told where the anatomies are."""

    name: str
    cohort: CohortRecipe
    vae: dict  # arguments of vae.PoEVAE; what is left out is the paper's
    vae_cohort: CohortRecipe | None  # whom the VAE learns from; None: from the same people as the generator
    vae_loss: VAELoss
    vae_schedule: Schedule
    composition: dict | None  # of composition.CompositionVAE; None: diffusion in the VAE's own latent, as in the paper
    composition_loss: CompositionLoss
    composition_schedule: Schedule
    process: str  # "flow" or "ddpm"
    denoiser: dict | None  # arguments of diffusion.TissueTransformer; None: the paper's U-Net
    diffusion_schedule: Schedule
    sampling_steps: int
    guidance: float  # of diffusion.TissuePipeline; 1: no guide
    n_samples: int  # drawn for figures and histograms
    why: str = field(default="", compare=False)


SMOKE = Profile(
    name="smoke",
    why="Seconds, for tests: everything runs, nothing is learned.",
    cohort=CohortRecipe(n_train=4, n_val=2, n_test=2, voxel_mm=6.0, slice_mm=6.0, shape=(32, 32), n_slices=2),
    vae={
        "latent_channels": 4, "stem": 4, "encoder_channels": (16,), "decoder_channels": (16, 8), "decoder_stem": 2,
        "blocks": 1, "attention": False, "embedding": 16, "groups": 4,
    },
    vae_cohort=None,
    vae_loss=VAELoss(adversarial=0.01, adversarial_after=3),  # so that tests pass through the adversary
    vae_schedule=Schedule(steps=8, batch_size=4, warmup=2, validate_every=4, save_every=4),
    composition={"latent_channels": 4, "stem": 2, "widths": (16, 16), "decoder_widths": (16, 16), "blocks": 1},
    composition_loss=CompositionLoss(),
    composition_schedule=Schedule(steps=8, batch_size=4, warmup=2, validate_every=4, save_every=4),
    process="flow",
    denoiser={"width": 32, "layers": 2, "heads": 2},
    diffusion_schedule=Schedule(steps=8, batch_size=4, warmup=2, validate_every=4, save_every=4),
    sampling_steps=4,
    guidance=2.0,
    n_samples=8,
)  # fmt: skip

LAPTOP = Profile(
    name="laptop",
    why="About twenty minutes on two cores: 2 mm voxels, brain only, a latent at half the resolution.",
    cohort=CohortRecipe(n_train=400, n_val=10, n_test=25),
    vae={
        "latent_channels": 6,
        "stem": 2,  # 4 times fewer pixels for the networks: most of the paper's cost is at full resolution
        "encoder_channels": (48,),  # no level below: cortex is 1.5 voxels thick; a stem of 4 costs 3 dB
        "decoder_channels": (64,),
        "decoder_stem": 2,
        "blocks": 2,
        "attention": False,
        "embedding": 64,
        "groups": 8,
    },
    # gain 1 is the paper's assumption; scans without a scale are half of what the encoder sees
    vae_cohort=None,
    vae_loss=VAELoss(kl=1e-4, map_prior=1e-4, gain="fixed"),
    vae_schedule=Schedule(steps=2400, batch_size=6, learning_rate=1.5e-3, ema_decay=0.998),
    # on a grid of 14×10
    composition={"stem": 2, "widths": (48, 96, 160), "decoder_widths": (64, 96, 160), "latent_channels": 24},
    # the diffusion model pays for what the latent leaves out: a weight of the KL term below 1
    composition_loss=CompositionLoss(),
    composition_schedule=Schedule(steps=2000, batch_size=8, learning_rate=1.5e-3, ema_decay=0.998),
    process="flow",
    denoiser={"width": 192, "layers": 8, "heads": 4},
    diffusion_schedule=Schedule(steps=1400, batch_size=48, learning_rate=1e-3, ema_decay=0.999),
    sampling_steps=20,
    guidance=3.0,  # thickness of cortex
    n_samples=64,
)

RELEASE = Profile(
    name="release",
    why="Hours on two cores: 1 mm, the head kept, several heads; what data/weights/release was trained with.",
    cohort=CohortRecipe(
        n_train=928, n_val=10, n_test=12, test_anatomies=3, val_anatomies=2, voxel_mm=1.0, slice_mm=1.0,
        shape=(224, 160), head=True, lesions=0.3,
        complete=True,  # without all three, T2 of CSF is a fifth too short, and so would be that of drawn brains
    ),
    vae=LAPTOP.vae | {"latent_channels": 8, "encoder_channels": (64,)},  # of a grid of 2 mm
    # any protocol, any height: slices 13 mm apart from cerebellum to vertex, and people who differ
    vae_cohort=CohortRecipe(
        n_train=174, n_val=12, n_test=0, test_anatomies=3, val_anatomies=2, voxel_mm=1.0, slice_mm=13.0, n_slices=11,
        shape=(224, 160), head=True, lesions=0.3, open_field=True, spread=2.0,
        deformation=Deformation(translation_mm=5.0, ventricle_mm=4.0),
    ),
    vae_loss=replace(LAPTOP.vae_loss, relative=True, unscaled=0.7),
    vae_schedule=Schedule(steps=2000, batch_size=4, learning_rate=1.5e-3, warmup=100, ema_decay=0.998,
                          validate_every=250, save_every=250),
    composition={"widths": (64, 96, 160), "latent_channels": 32},  # on a grid of 14×10, as the laptop's
    composition_loss=CompositionLoss(),
    composition_schedule=Schedule(steps=33_300, batch_size=8, learning_rate=1.5e-3, warmup=100, ema_decay=0.998,
                                  validate_every=400, save_every=200),
    process="flow",
    denoiser=LAPTOP.denoiser | {"width": 256},
    diffusion_schedule=Schedule(steps=71_500, batch_size=32, learning_rate=1.5e-3, warmup=100, ema_decay=0.999,
                                validate_every=500, save_every=500),
    sampling_steps=20,
    guidance=1.0,  # trained as long, a guide changes next to nothing
    n_samples=64,
)  # fmt: skip

PAPER = Profile(
    name="paper",
    why="The paper's networks, sizes and schedules at 1 mm with the head kept; needs a GPU.",
    cohort=CohortRecipe(
        n_train=1000, n_val=40, n_test=100, voxel_mm=1.0, slice_mm=1.0, shape=(224, 160), head=True, lesions=0.3
    ),
    vae={},  # the defaults are the paper's
    vae_cohort=None,
    vae_loss=VAELoss(
        l1=1.0, l2=1.0, structure=1.0,  # SSIM stands in for LPIPS, whose weights need a download
        kl=1e-6, map_prior=5e-4, adversarial=0.05, adversarial_after=20_000,  # 10 of the 100 epochs
    ),
    vae_schedule=Schedule(steps=200_000, batch_size=4, learning_rate=5e-5, warmup=500, ema_decay=0.9999,
                          validate_every=2000, save_every=2000),
    composition=None,
    composition_loss=CompositionLoss(),
    composition_schedule=Schedule(steps=0),
    process="ddpm",
    denoiser=None,
    diffusion_schedule=Schedule(steps=100_000, batch_size=16, learning_rate=2.5e-5, warmup=500, ema_decay=0.9999,
                                validate_every=2000, save_every=2000),
    sampling_steps=50,  # DDIM, as in the paper
    guidance=1.0,  # none in the paper
    n_samples=256,
)  # fmt: skip

PROFILES = {profile.name: profile for profile in (SMOKE, LAPTOP, RELEASE, PAPER)}


def find_profile(name: str) -> Profile:
    """The profile of that name.

    Raises
    ------
    BadInput
        There is none.
    """
    if name not in PROFILES:
        raise BadInput(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


# --- its networks ---------------------------------------------------------------------------------


def make_vae(profile: Profile) -> PoEVAE:
    """The VAE, untrained."""
    return PoEVAE(**profile.vae)


def make_composition(profile: Profile) -> CompositionVAE | None:
    """The autoencoder of compositions, untrained; None in a profile that draws the VAE's own latents."""
    if profile.composition is None:
        return None
    return CompositionVAE(HEAD_PARTS if profile.cohort.head else BRAIN_PARTS, **profile.composition)


def make_denoiser(profile: Profile, channels: int, size: tuple[int, int]) -> nn.Module:
    """The diffusion model's network for latents ``(channels, *size)``, untrained."""
    if profile.denoiser is None:
        return paper_unet(channels, size)
    return TissueTransformer(channels + 2 * len(CONDITIONS), channels, size, **profile.denoiser)


def architecture_of(profile: Profile) -> dict:
    """What :func:`architecture.architecture` draws of a profile: levels, latents, parameters.

    Read off the networks themselves, made without memory for slices of the profile's own cohort, so that the picture
    cannot say anything else.
    """
    ny, nx = profile.cohort.shape
    with torch.device("meta"):  # sizes only
        vae = make_vae(profile)
        latent = made = (vae.config.latent_channels, ny // vae.downsampling, nx // vae.downsampling)
        composition = make_composition(profile)
        if composition is not None:
            cell = composition.downsampling
            made = (composition.drawn_channels, ny // cell, nx // cell)
        denoiser = make_denoiser(profile, made[0], made[1:])
    if profile.denoiser is None:
        kind = "U-Net " + "/".join(map(str, denoiser.config.block_out_channels))
    else:
        kind = f"transformer, {denoiser.config.layers} × {denoiser.config.width}"
    count = {"encoder": (vae.encoder, vae.embed), "decoder": (vae.decoder,), "denoiser": (denoiser,)}
    count |= {"composition": (composition,)} if composition else {}
    stem, widths = vae.config.stem, vae.config.encoder_channels
    return {
        "scans": MODALITIES,
        "encoder": [(c, (ny // (stem * 2**i), nx // (stem * 2**i))) for i, c in enumerate(widths)],
        "latent": latent,
        "decoder": [(c, (latent[1] * 2**i, latent[2] * 2**i)) for i, c in enumerate(vae.config.decoder_channels)],
        "composition": made if composition else None,
        "denoiser": kind,
        "n_steps": profile.sampling_steps,
        "parameters": {name: sum(p.numel() for n in parts for p in n.parameters()) for name, parts in count.items()},
    }
