"""Latent diffusion: learns what latents look like, and draws new ones. Knows latents, not MRI.

Two noise processes. ``flow``: x_σ = (1 − σ)·x₀ + σ·ε with σ from 0 to 1, for the transformer that a
laptop can train. ``ddpm``: the paper's 1000 steps with a scaled-linear β, for its U-Net.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormSingle
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .machine.errors import BadInput
from .machine.on_disk import in_a_file
from .machine.processes import drawn, mean

TRAIN_STEPS = 1000  # a network's clock runs from 0 to 1000; flow's σ is the clock divided by it
LOGIT_OF_SIGMA = (0.4, 1.2)
"""Mean and SD of the logit of σ in training: outlines are decided at a σ of 0.9, folds of cortex at 0.5."""
SMALLEST_SCALE = 0.02  # a channel that hardly varies is not blown up to unit SD
CONDITIONS = {"height": (0.0, 0.6), "csf_share": (0.25, 0.1), "first_folder": (0.5, 0.5)}
"""What a slice is told by, with its typical middle and spread: how high it lies in the stack, −1 to 1; what part of the
skull's inside is CSF (:func:`composition.csf_share`); and whether its head is of the first folder of label maps, 1 or
0. Folders differ: the cortex of the label maps of 2020 is a third thicker. All folders teach what a head is, and what
is drawn is asked to be like the first."""
LEFT_FREE = 0.2  # chance in training that a condition is not told, so that each can be left free when drawing
SMALLEST_SIGMA = 0.05  # velocity divides by σ; below this the last bit of noise is left to the decoder
GUIDED = (0.3, 0.7)  # σ between which a guide is asked: wider, folds of cortex break into islands


class TissueTransformer(ModelMixin, ConfigMixin):
    """A transformer over patches of a small latent that guesses the clean latent, for small machines.

    Guessing x₀ rather than noise keeps an undertrained model's samples smooth instead of blotchy:
    brains fill a thin manifold of latent space, noise fills all of it (cf. Li & He 2025, arXiv 2511.13720).
    The interface is a flow model's: ``forward(x_σ, 1000·σ)`` gives the velocity ε − x₀.

    Parameters
    ----------
    in_channels, out_channels
        Of the latent; ``in_channels`` is larger by two for each of :data:`CONDITIONS`.
    size
        (y, x) of the latent; attention sees the whole brain at once.
    patch
        Cells along each side of a token; guessing x₀, a token may hold more numbers than the transformer is wide.
    width, layers, heads
        Of the transformer.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 66,
        out_channels: int = 62,
        size: tuple[int, int] = (14, 10),
        patch: int = 2,
        width: int = 256,
        layers: int = 8,
        heads: int = 4,
    ):
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, size[0] * size[1] // patch**2, width))
        self.clock = AdaLayerNormSingle(width)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                width, heads, width // heads, activation_fn="gelu-approximate", attention_bias=True,
                norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
            )
            for _ in range(layers)
        )  # fmt: skip
        for block in self.blocks:  # queries and keys of one length: attention stays even while the network learns fast
            block.attn1 = Attention(width, heads=heads, dim_head=width // heads, bias=True, qk_norm="rms_norm")
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.unembed = nn.ConvTranspose2d(width, out_channels, patch, stride=patch)

    def clean(self, x: Tensor, timestep: Tensor) -> Tensor:
        """The guessed clean latent ``(n, out_channels, y, x)``."""
        n = len(x)
        modulation, _ = self.clock(timestep.expand(n), batch_size=n, hidden_dtype=x.dtype)
        cells = self.embed(x)
        tokens = cells.flatten(2).transpose(1, 2) + self.place
        with sdpa_kernel(SDPBackend.MATH) if x.device.type == "cpu" else nullcontext():  # the fused one is slow in bf16
            for block in self.blocks:
                tokens = block(tokens, timestep=modulation)
        return self.unembed(self.norm(tokens).transpose(1, 2).unflatten(2, cells.shape[2:]))

    def forward(self, sample: Tensor, timestep, return_dict: bool = True):
        timestep = torch.as_tensor(timestep, device=sample.device, dtype=sample.dtype)
        sigma = (timestep / TRAIN_STEPS).clamp_min(SMALLEST_SIGMA).view(-1, 1, 1, 1)
        noisy = sample[:, : self.config.out_channels]
        velocity = (noisy - self.clean(sample, timestep)) / sigma
        return UNet2DOutput(sample=velocity) if return_dict else (velocity,)


def paper_unet(latent_channels: int = 6, size: tuple[int, int] = (28, 20)) -> UNet2DModel:
    """The paper's 184 M-parameter U-Net: 256/512/768, attention on the two coarse levels."""
    return UNet2DModel(
        sample_size=size, in_channels=latent_channels, out_channels=latent_channels, layers_per_block=2,
        block_out_channels=(256, 512, 768), norm_eps=1e-6, downsample_type="resnet", upsample_type="resnet",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=None, num_class_embeds=None,
    )  # fmt: skip


def paper_noise() -> dict:
    """The paper's noise schedule: 1000 steps, scaled-linear β from 0.0015 to 0.0205, ε-prediction."""
    return {
        "num_train_timesteps": TRAIN_STEPS, "beta_schedule": "scaled_linear",
        "beta_start": 0.0015, "beta_end": 0.0205, "prediction_type": "epsilon", "clip_sample": False,
    }  # fmt: skip


def make_scheduler(process: str, flow_shift: float = 1.0):
    """The sampler of a noise process: a few-step DPM-Solver++ for "flow", the paper's DDIM for "ddpm".

    With a ``flow_shift`` above 1 more of the steps are where there is much noise.
    """
    if process == "flow":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=TRAIN_STEPS, prediction_type="flow_prediction", use_flow_sigmas=True,
            solver_order=2, final_sigmas_type="zero", flow_shift=flow_shift,
        )  # fmt: skip
    if process == "ddpm":
        return DDIMScheduler(**paper_noise())
    raise BadInput(f"unknown noise process {process!r}: choose 'flow' or 'ddpm'")


class LatentBatch(NamedTuple):
    latents: Tensor  # (n, c, y, x), scaled to unit SD per channel
    conditions: Tensor  # (n, 3), see CONDITIONS


class Latents:
    """Latents of a cohort, made once, with the per-channel shift and scale that normalise them.

    Held-out latents are normalised ``like`` the training ones.

    Parameters
    ----------
    means
        ``(n, c, y, x)``.
    conditions
        ``(n, 3)``: of each slice what :data:`CONDITIONS` says; NaN where nobody knows.
    """

    def __init__(self, means: Tensor, conditions: Tensor, like: Latents | None = None):
        self.mean = means.mean((0, 2, 3)) if like is None else like.mean
        self.scale = self._scale(means) if like is None else like.scale
        shift, scale = self.mean[:, None, None], self.scale[:, None, None]
        self.values = in_a_file((part - shift) / scale for part in means.split(256))
        self.conditions = conditions
        first = conditions[:, list(CONDITIONS).index("first_folder")] == 1
        self.chance = torch.where(first, (~first).sum().clamp_min(1) / first.sum().clamp_min(1), 1.0)

    @staticmethod
    def _scale(means: Tensor) -> Tensor:
        """SD of each channel; twice that of a channel without a pattern, which holds one number of the person.

        Every cell tells that number: at unit SD it would stand out of the noise at a σ of 0.99, which training hardly
        ever draws. Much smaller it would count too little to be learned.
        """
        one_number = means.std((2, 3)).amax(0) < 1e-6
        scale = means.std((0, 2, 3)).clamp_min(SMALLEST_SCALE)
        return torch.where(one_number, 2 * scale, scale)

    def __len__(self):
        return len(self.values)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows at random, half of them of the first folder of label maps, where there are several."""
        return self.chance.multinomial(n, replacement=True, generator=generator)

    def batch(self, rows: Tensor, generator: torch.Generator) -> LatentBatch:
        free = torch.rand(len(rows), len(CONDITIONS), generator=generator) < LEFT_FREE
        return LatentBatch(self.values[rows], self.conditions[rows].masked_fill(free, torch.nan))


class DiffusionObjective(nn.Module):
    """Noise a latent, ask the network, compare.

    ``flow``: squared error of the velocity, noise levels logit-normal. ``ddpm``: the paper's squared
    error of ε, steps uniform.
    """

    def __init__(self, denoiser: nn.Module, process: str):
        super().__init__()
        self.denoiser, self.process = denoiser, process
        self.noise = DDPMScheduler(**paper_noise())

    def forward(self, batch: LatentBatch, step: int) -> dict[str, Tensor]:
        x, n = batch.latents, len(batch.latents)
        noise = drawn(torch.randn, *x.shape, device=x.device, dtype=x.dtype)
        if self.process == "ddpm":
            clock = drawn(lambda rows: torch.randint(TRAIN_STEPS, (rows,), device=x.device), n)
            noisy, target = self.noise.add_noise(x, noise, clock), noise
        else:
            middle, spread = LOGIT_OF_SIGMA
            sigma = torch.sigmoid(middle + spread * drawn(torch.randn, n, device=x.device))
            clock, s = TRAIN_STEPS * sigma, sigma.view(-1, 1, 1, 1)
            noisy, target = (1 - s) * x + s * noise, noise - x
        guess = self.denoiser(with_conditions(self.denoiser, noisy, batch.conditions), clock).sample
        loss = mean((guess - target) ** 2)
        return {"total": loss}


def with_conditions(denoiser, noisy: Tensor, conditions: Tensor) -> Tensor:
    """Append what is asked of the slice, for a network that has channels for it.

    Each condition is two constant channels: whether it is asked for, and its value; both are 0 where it is left free.
    """
    if denoiser.config.in_channels == denoiser.config.out_channels:
        return noisy
    asked = ~conditions.isnan()
    middle, spread = conditions.new_tensor(list(CONDITIONS.values())).unbind(1)
    values = torch.where(asked, (conditions - middle) / spread, 0.0)
    planes = torch.cat([asked.to(values.dtype), values], 1)[..., None, None]
    return torch.cat([noisy, planes.expand(-1, -1, *noisy.shape[2:]).to(noisy.dtype)], 1)


class TissuePipeline(DiffusionPipeline):
    """Noise → latent → PD, T1, T2. Saves and loads with ``save_pretrained`` and ``from_pretrained``.

    Parameters
    ----------
    denoiser, scheduler
        A trained network and its sampler.
    decoder
        What turns its latents into tissue: the :class:`composition.CompositionVAE`, or, in the paper's design, the
        :class:`vae.PoEVAE` itself.
    latent_mean, latent_scale
        Per channel, what the latents were normalised with.
    latent_size
        (y, x) of a latent.
    voxel_mm
        Of the maps, for whoever draws or stores them.
    csf_shares
        Evenly spaced quantiles of the training slices' share of CSF; empty where nobody knows.
    guide, guidance
        The same network, trained for half as long, and how far to go on from its answer through the denoiser's: 1 is
        the denoiser alone. What half of the training has taught is taken on in its direction, which sharpens cortex
        (autoguidance, Karras et al. 2024, arXiv 2406.02507).
    """

    _optional_components = ["guide"]  # noqa: RUF012  diffusers' own name

    def __init__(
        self, denoiser, scheduler, decoder, latent_mean=(), latent_scale=(), latent_size=(), voxel_mm=1.0,
        csf_shares=(), guide=None, guidance=1.0,
    ):  # fmt: skip
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, decoder=decoder, guide=guide)
        self.register_to_config(
            latent_mean=list(latent_mean), latent_scale=list(latent_scale), latent_size=list(latent_size),
            voxel_mm=voxel_mm, csf_shares=list(csf_shares), guidance=guidance,
        )  # fmt: skip

    @property
    def usual_steps(self) -> int:
        """Denoising steps where nobody asks for a number: 20 of the few-step solver, the paper's 50 of DDIM."""
        return 20 if self.scheduler.config.get("use_flow_sigmas") else 50

    @property
    def conditional(self) -> bool:
        """Whether height and share of CSF can be asked for."""
        return self.denoiser.config.in_channels != self.denoiser.config.out_channels

    @torch.no_grad()
    def sample_latents(
        self, n: int, seed: int, num_inference_steps: int = 20, height=None, csf_share=None, on_step=None,
        one_noise: bool = False,
    ) -> Tensor:  # fmt: skip
        """``(n, c, y, x)`` normalised latents, as the denoiser makes them.

        Parameters
        ----------
        height
            Of the slices, −1 to 1, a number or ``(n,)``; None: evenly spread over the stack.
        csf_share
            What part of the skull's inside is CSF, about 0.1 (young) to 0.4 (old), a number or ``(n,)``; None: drawn
            as training people have it, which makes them differ as much. Left to the network they differ half as much.
        on_step
            Called after each denoising step as ``on_step(i, latents)``.
        one_noise
            Start all ``n`` from one and the same noise: slices of one brain at several heights, as far as height and
            noise decide a brain. Each alone is a sample like any other.
        """
        if n < 1:
            raise BadInput(f"asked for {n} samples: at least 1 is needed")
        generator = torch.Generator().manual_seed(seed)  # CPU, so that a seed means the same on any device
        channels = len(self.config.latent_mean)
        noise = torch.randn(1 if one_noise else n, channels, *self.config.latent_size, generator=generator)
        spread = torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)
        height = spread if height is None else height
        if csf_share is None and self.config.csf_shares:
            known = np.array(self.config.csf_shares)
            at = torch.rand(1 if one_noise else n, generator=generator)
            csf_share = torch.from_numpy(np.interp(at, np.linspace(0, 1, len(known)), known)).float()
        return self.denoise(noise.expand(n, -1, -1, -1), num_inference_steps, height, csf_share, on_step)

    @torch.no_grad()
    def denoise(
        self, noise: Tensor, num_inference_steps: int = 20, height=None, csf_share=None, on_step=None
    ) -> Tensor:
        """Latents from unit Gaussian noise ``(n, c, y, x)``; other arguments as :meth:`sample_latents`, None: free.

        Heads are asked to be like those of the first folder of label maps.
        """
        x = noise.to(self.device)
        asked = [torch.nan if value is None else value for value in (height, csf_share, 1.0)]
        asked = [torch.as_tensor(value, dtype=torch.float32).expand(len(x)) for value in asked]
        conditions = torch.stack(asked, 1).to(self.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            x = self.scheduler.step(self._answer(x, conditions, t.to(self.device).float()), t, x).prev_sample
            if on_step is not None:
                on_step(i, x)
        return x

    def _answer(self, x: Tensor, conditions: Tensor, clock: Tensor) -> Tensor:
        """The denoiser's, guided in the channels of anatomy: a person's tissue values would only spread further."""
        asked = with_conditions(self.denoiser, x, conditions)
        answer, (low, high) = self.denoiser(asked, clock).sample, GUIDED
        if self.guide is None or not low <= float(clock) / TRAIN_STEPS <= high:
            return answer
        n = self.decoder.config.latent_channels
        further = (self.config.guidance - 1) * (answer - self.guide(asked, clock).sample)
        return torch.cat([(answer + further)[:, :n], answer[:, n:]], 1)

    @torch.no_grad()
    def decode(self, x: Tensor, batch_size: int = 32):
        """Normalised latents → :class:`physics.TissueMaps`."""
        shift, scale = (
            x.new_tensor(values)[:, None, None] for values in (self.config.latent_mean, self.config.latent_scale)
        )
        parts = [self.decoder.to_maps(part * scale + shift) for part in x.split(batch_size)]
        return type(parts[0])(*(torch.cat(maps) for maps in zip(*parts, strict=True)))

    def __call__(self, n: int, seed: int = 0, num_inference_steps: int = 20, height=None, csf_share=None):
        """``n`` new brains as :class:`physics.TissueMaps`, each map ``(n, y, x)``: PD (water = 1), T1 (s), T2 (s).

        Height and share of CSF as in :meth:`sample_latents`.
        """
        return self.decode(self.sample_latents(n, seed, num_inference_steps, height, csf_share))
