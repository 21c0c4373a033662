"""Noise goes in as the formulas say, comes out again when the answer is known, and a seed means one brain."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from phyldm_core.diffusion import (
    CONDITIONS,
    LEFT_FREE,
    SMALLEST_SCALE,
    TRAIN_STEPS,
    DiffusionObjective,
    LatentBatch,
    Latents,
    TissuePipeline,
    TissueTransformer,
    make_scheduler,
    paper_noise,
    paper_unet,
    with_conditions,
)
from phyldm_core.machine.errors import BadInput
from phyldm_core.running.profiles import SMOKE
from phyldm_core.vae import PoEVAE

C, Y, X = 4, 8, 8
TOLD = C + 2 * len(CONDITIONS)  # channels of a denoiser that is told its conditions
ABAR = (1 - torch.linspace(math.sqrt(0.0015), math.sqrt(0.0205), 1000, dtype=torch.float64) ** 2).cumprod(0)
"""ᾱ of the paper: scaled-linear β from 0.0015 to 0.0205 in 1000 steps."""


class Oracle(ModelMixin, ConfigMixin):
    """A denoiser that knows the clean latent."""

    @register_to_config
    def __init__(self, process: str = "flow", in_channels: int = C, out_channels: int = C):
        super().__init__()
        self.clean = torch.nn.Parameter(torch.randn(1, C, Y, X, generator=torch.Generator().manual_seed(0)))

    def forward(self, sample, timestep):
        clock = torch.as_tensor(timestep).view(-1, 1, 1, 1)
        if self.config.process == "flow":
            return UNet2DOutput(sample=(sample - self.clean) / (clock / TRAIN_STEPS))  # x_σ = x₀ + σ·(ε − x₀)
        abar = ABAR.float()[clock.long()]
        return UNet2DOutput(sample=(sample - abar.sqrt() * self.clean) / (1 - abar).sqrt())


def untrained_vae() -> PoEVAE:
    """Its weights drawn at random, so that maps depend on the latent."""
    torch.manual_seed(0)
    vae = PoEVAE(**SMOKE.vae)
    torch.nn.init.normal_(vae.decoder.head[0].weight, std=0.1)
    return vae.eval()


def pipeline(denoiser, process="flow") -> TissuePipeline:
    normalised = {"latent_mean": [0.5] * C, "latent_scale": [2.0] * C}
    pipe = TissuePipeline(
        denoiser.eval(), make_scheduler(process), untrained_vae(), latent_size=(Y, X), voxel_mm=6.0, **normalised
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def transformer(in_channels=TOLD) -> TissueTransformer:
    torch.manual_seed(0)
    return TissueTransformer(in_channels, C, (Y, X), **SMOKE.denoiser)


@pytest.fixture
def pipe() -> TissuePipeline:
    return pipeline(transformer())


# --- the paper's model ----------------------------------------------------------------------------


def test_the_paper_s_u_net_has_as_many_parameters_as_the_authors():
    with torch.device("meta"):
        unet = paper_unet(6, (28, 20))
    assert sum(p.numel() for p in unet.parameters()) == 183_994_886
    assert unet.config.in_channels == unet.config.out_channels == 6


def test_the_paper_s_noise_is_the_formula():
    torch.testing.assert_close(make_scheduler("ddpm").alphas_cumprod.double(), ABAR, rtol=1e-4, atol=1e-6)
    noise = DiffusionObjective(Oracle("ddpm"), "ddpm").noise
    x, epsilon = torch.randn(2, 3, C, Y, X, generator=torch.Generator().manual_seed(1))
    clock = torch.tensor([0, 500, 999])
    abar = ABAR[clock].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(
        noise.add_noise(x, epsilon, clock), abar.sqrt() * x + (1 - abar).sqrt() * epsilon, rtol=1e-4, atol=1e-5
    )
    assert noise.config.prediction_type == "epsilon"


def test_ddim_walks_down_in_fifty_even_steps():
    scheduler = make_scheduler("ddpm")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(980, -1, -20))


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "steps", "off"), [("flow", 20, 6e-3), ("ddpm", 50, 1e-3)])
def test_a_denoiser_that_knows_the_answer_arrives_at_it(process, steps, off):
    # flow's clock is rounded to whole thousandths by the library, which leaves a few thousandths
    pipe = pipeline(Oracle(process), process)
    z = pipe.sample_latents(3, seed=0, num_inference_steps=steps)
    torch.testing.assert_close(z, pipe.denoiser.clean.detach().expand(3, -1, -1, -1), atol=off, rtol=1e-3)


@pytest.mark.parametrize("process", ["flow", "ddpm"])
def test_a_denoiser_that_knows_the_answer_has_no_loss(process):
    oracle = Oracle(process)
    batch = LatentBatch(oracle.clean.detach().expand(16, -1, -1, -1), torch.zeros(16, 3))
    torch.manual_seed(0)
    assert DiffusionObjective(oracle, process)(batch, 0)["total"] < 1e-4
    elsewhere = batch._replace(latents=batch.latents + 1)
    assert DiffusionObjective(oracle, process)(elsewhere, 0)["total"] > 0.1


def test_one_denoising_step_at_vanishing_noise_changes_nothing():
    x = torch.randn(1, C, Y, X, generator=torch.Generator().manual_seed(0))
    scheduler, changes = make_scheduler("flow"), []
    for n in (10, 100, 1000):
        scheduler.set_timesteps(n)
        scheduler.set_begin_index(n - 1)
        changes.append((scheduler.step(torch.ones_like(x), scheduler.timesteps[-1], x).prev_sample - x).abs().max())
        assert changes[-1] == pytest.approx(scheduler.sigmas[-2].item(), rel=1e-3)  # a velocity of 1 goes σ far
    assert changes[-1] < 0.005 < changes[0]


def test_the_last_step_ends_without_noise():
    for process in ("flow", "ddpm"):
        scheduler = make_scheduler(process)
        scheduler.set_timesteps(20)
        assert (scheduler.sigmas[-1] if process == "flow" else 1 - scheduler.final_alpha_cumprod) == 0


def test_an_unknown_process_is_refused():
    with pytest.raises(BadInput, match="unknown noise process 'heat': choose 'flow' or 'ddpm'"):
        make_scheduler("heat")


# --- the transformer ------------------------------------------------------------------------------


def test_the_transformer_s_velocity_leads_to_the_clean_latent_it_guesses():
    model = transformer(C)
    x, clock = torch.randn(3, C, Y, X), torch.tensor([100.0, 500.0, 1000.0])
    velocity = model(x, clock).sample
    torch.testing.assert_close(
        x - (clock / TRAIN_STEPS).view(-1, 1, 1, 1) * velocity, model.clean(x, clock), rtol=1e-4, atol=1e-4
    )


def test_the_transformer_s_velocity_stays_finite_without_noise():
    assert torch.isfinite(transformer(C)(torch.randn(2, C, Y, X), torch.zeros(2)).sample).all()


def test_the_transformer_sees_the_whole_brain_at_once():
    """One corner of the latent changes the guess at the opposite one."""
    model = transformer(C).eval()
    x = torch.zeros(1, C, Y, X)
    touched = x.clone()
    touched[..., 0, 0] = 5
    clock = torch.tensor([500.0])
    with torch.no_grad():
        assert (model.clean(touched, clock) - model.clean(x, clock))[..., -1, -1].abs().max() > 1e-6


# --- latents --------------------------------------------------------------------------------------


def test_latents_are_normalised_per_channel_and_held_out_ones_like_the_others():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(50, C, Y, X, generator=generator) * torch.tensor([1.0, 5, 0.1, 2])[:, None, None] + 3
    train = Latents(means, torch.zeros(50, 3))
    torch.testing.assert_close(train.values.std((0, 2, 3)), torch.ones(C))
    torch.testing.assert_close(train.values.mean((0, 2, 3)), torch.zeros(C), atol=1e-5, rtol=0)
    held_out = Latents(means[:5] + 1, torch.zeros(5, 3), train)
    torch.testing.assert_close(held_out.values, train.values[:5] + (1 / train.scale)[:, None, None])
    dead = Latents(1 + 1e-4 * torch.randn(4, C, Y, X), torch.zeros(4, 3))
    assert dead.values.abs().max() < 1e-3 / SMALLEST_SCALE  # a channel that says nothing is not blown up


def test_the_pipeline_undoes_the_normalisation(pipe):
    means = torch.randn(10, C, Y, X) * 3 + 1
    train = Latents(means, torch.zeros(10, 3))
    shift, scale = train.mean.tolist(), train.scale.tolist()
    other = TissuePipeline(pipe.denoiser, pipe.scheduler, pipe.decoder, shift, scale, (Y, X))
    with torch.no_grad():
        torch.testing.assert_close(other.decode(train.values).stack(), pipe.decoder.decode(means).stack())


# --- sampling -------------------------------------------------------------------------------------


def test_a_seed_means_one_set_of_brains(pipe):
    one, again, other = (pipe(3, seed=seed, num_inference_steps=4).stack() for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3
    assert (one[0] - one[1]).abs().max() > 1e-3


def test_the_batch_size_does_not_matter(pipe):
    x = pipe.sample_latents(5, seed=1, num_inference_steps=4)
    whole, pieces = (pipe.decode(x, batch_size=size).stack() for size in (32, 2))
    torch.testing.assert_close(whole, pieces, rtol=1e-5, atol=1e-6)


def test_samples_are_maps_in_physical_units(pipe):
    maps = pipe(2, num_inference_steps=4)
    for tissue in maps:
        assert tissue.shape == (2, 4 * Y, 4 * X)
        assert (tissue > 0).all() and torch.isfinite(tissue).all()
    assert maps.pd.max() <= 1
    assert 0.01 < maps.t2.median() < maps.t1.median() < 10


def test_as_many_steps_are_taken_as_asked(pipe):
    seen = []
    z = pipe.sample_latents(2, seed=0, num_inference_steps=7, on_step=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == list(range(7))
    torch.testing.assert_close(seen[-1][1], z)


@pytest.mark.parametrize("name", ["height", "csf_share"])
def test_what_is_asked_for_changes_the_brain(pipe, name):
    def sample(value):
        return pipe(3, seed=0, num_inference_steps=4, **{name: value}).pd

    low, high = (0.5, 1.0) if name == "height" else (0.15, 0.35)
    assert (sample(low) - sample(high)).abs().max() > 1e-4
    assert torch.equal(sample(low), sample(torch.tensor([low] * 3)))


def test_slices_are_spread_over_the_stack_unless_told(pipe):
    spread = pipe(3, seed=0, num_inference_steps=4, height=torch.tensor([-1.0, 0.0, 1.0])).pd
    assert torch.equal(pipe(3, seed=0, num_inference_steps=4).pd, spread)


def test_people_have_the_shares_of_csf_that_training_people_have_unless_told(pipe):
    known = [0.1, 0.15, 0.3]
    other = TissuePipeline(pipe.denoiser, pipe.scheduler, pipe.decoder, [0.5] * C, [2.0] * C, (Y, X), 6.0, known)
    seen = []
    other.denoise = lambda noise, steps, height, csf_share, on_step: seen.append(csf_share) or noise
    other.sample_latents(400, seed=0)
    assert seen[0].min() >= 0.1 and seen[0].max() <= 0.3
    assert (seen[0] < 0.15).float().mean().item() == pytest.approx(0.5, abs=0.08)
    other.sample_latents(4, seed=0, csf_share=0.2)
    other.sample_latents(4, seed=0, one_noise=True)
    assert seen[1] == 0.2 and seen[2].shape == (1,)  # slices of one brain share it


def test_a_condition_is_two_constant_channels_and_a_free_one_is_nothing():
    noisy, asked = torch.randn(2, C, Y, X), torch.tensor([[0.6, torch.nan, 1.0], [torch.nan, 0.35, torch.nan]])
    both = with_conditions(transformer(), noisy, asked)
    assert torch.equal(both[:, :C], noisy)
    planes = both[:, C:, 0, 0]  # whether height, share and folder are asked for, then their values about the middle
    torch.testing.assert_close(planes, torch.tensor([[1.0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0]]))
    assert (both[:, C:] == planes[..., None, None]).all()
    assert with_conditions(Oracle(), noisy, asked) is noisy


def test_each_condition_is_left_free_in_some_of_the_batches():
    latents = Latents(torch.randn(8, C, Y, X), torch.zeros(8, len(CONDITIONS)))
    batch = latents.batch(torch.randint(8, (2000,)), torch.Generator().manual_seed(0))
    free = batch.conditions.isnan().float()
    torch.testing.assert_close(free.mean(0), torch.full((3,), LEFT_FREE), atol=0.04, rtol=0)
    assert free[:, :2].prod(1).mean() == pytest.approx(LEFT_FREE**2, abs=0.02)  # one says nothing of another


def test_half_of_what_is_trained_on_is_of_the_first_folder():
    first = torch.tensor([1.0] * 2 + [0.0] * 8)
    for told, share in ((first, 0.5), (torch.ones(10), 0.2), (torch.full((10,), torch.nan), 0.2)):
        latents = Latents(torch.randn(10, C, Y, X), torch.stack([told] * 3, 1))
        rows = latents.draw(2000, torch.Generator().manual_seed(0))
        assert (rows < 2).float().mean() == pytest.approx(share, abs=0.04)


def test_what_is_drawn_is_asked_to_be_like_heads_of_the_first_folder(pipe):
    other, told = pipeline(transformer()), []
    other.denoiser.register_forward_pre_hook(lambda _, given: told.append(given[0][:, C:, 0, 0]))
    other(2, seed=0, num_inference_steps=1, height=0.6)
    torch.testing.assert_close(told[0], torch.tensor([[1.0, 0, 1, 1, 0, 1]] * 2))  # the share of CSF is left free


def test_a_u_net_samples_with_the_paper_s_noise():
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    torch.manual_seed(0)
    pipe = pipeline(UNet2DModel((Y, X), C, C, block_out_channels=(8, 16), norm_num_groups=4, **kinds), "ddpm")
    assert pipe.scheduler.config.num_train_timesteps == paper_noise()["num_train_timesteps"]
    assert torch.isfinite(pipe.sample_latents(2, seed=0, num_inference_steps=5)).all()


@pytest.mark.parametrize("n", [0, -3])
def test_nothing_cannot_be_sampled(pipe, n):
    with pytest.raises(BadInput, match=f"asked for {n} samples: at least 1"):
        pipe(n)


def test_saved_and_loaded_without_pickles_it_draws_the_same_brains(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert {f.suffix for f in tmp_path.rglob("*") if f.is_file()} == {".json", ".safetensors"}
    again = TissuePipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert again.config.voxel_mm == 6.0
    mine, its = (p(3, seed=2, num_inference_steps=4).stack() for p in (pipe, again))
    torch.testing.assert_close(its, mine, rtol=1e-5, atol=1e-5)


# --- guided by half of the training -----------------------------------------------------------------


def guided(pipe: TissuePipeline, guide, guidance: float) -> TissuePipeline:
    said = {name: pipe.config[name] for name in ("latent_mean", "latent_scale", "latent_size", "voxel_mm")}
    other = TissuePipeline(**pipe.components | {"guide": guide}, **said, guidance=guidance)
    other.set_progress_bar_config(disable=True)
    return other


def test_a_guide_that_agrees_changes_nothing(pipe):
    alone, same = (p(2, seed=1, num_inference_steps=6).stack() for p in (pipe, guided(pipe, pipe.denoiser, 3.0)))
    torch.testing.assert_close(same, alone)


def test_guidance_goes_on_in_the_direction_of_training():
    """At a σ where the guide is asked: answer + (w − 1)·(answer − the guide's)."""
    one, other = Oracle(), Oracle()
    other.clean.data += 0.5
    x, free, clock = torch.zeros(1, C, Y, X), torch.full((1, 3), torch.nan), torch.tensor(500.0)
    alone = pipeline(one)._answer(x, free, clock)
    further = guided(pipeline(one), other, 3.0)._answer(x, free, clock)
    torch.testing.assert_close(further - alone, 2 * (alone - other(x, clock).sample))
    torch.testing.assert_close(guided(pipeline(one), other, 3.0)._answer(x, free, 2 * clock), one(x, 2 * clock).sample)


def test_a_guide_is_saved_and_loaded(pipe, tmp_path):
    torch.manual_seed(5)
    other = guided(pipe, TissueTransformer(TOLD, C, (Y, X), **SMOKE.denoiser), 2.0)
    other.save_pretrained(tmp_path)
    again = TissuePipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    mine, its = (p(2, seed=2, num_inference_steps=6).stack() for p in (other, again))
    torch.testing.assert_close(its, mine, rtol=1e-5, atol=1e-5)


def test_a_number_of_the_person_is_half_as_wide_as_a_cell():
    """Told by every cell, it would else be read off long before anything else is."""
    pattern, number = torch.randn(500, 1, 6, 5), 0.3 * torch.randn(500, 1, 1, 1).expand(-1, -1, 6, 5)
    values = Latents(torch.cat([pattern, number], 1), torch.zeros(500, 3)).values[torch.arange(500)]
    assert values[:, 0].std() == pytest.approx(1, rel=0.05)
    assert values[:, 1].std() == pytest.approx(0.5, rel=0.05)
