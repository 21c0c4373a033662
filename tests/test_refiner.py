"""The refiner: it believes the coarse level at first, learns what that left out, and draws, it does not average."""

import pytest
import torch
from torch.nn import functional

from phyldm_core.coarse import CoarseVAE
from phyldm_core.diffusion import LatentBatch, TissuePipeline, TissueTransformer, make_scheduler
from phyldm_core.profiles import SMOKE
from phyldm_core.refiner import Refiner, RefinerObjective
from phyldm_core.vae import PoEVAE, Posterior

FINE = 4


@pytest.fixture
def refiner():
    torch.manual_seed(0)
    return Refiner(FINE, patch=2, widths=(32, 32), layers=1)


class BlurredLevel(CoarseVAE):
    """A coarse level that remembers the mean of each 4 × 4 cells and nothing else."""

    def encode(self, fine):
        mean = functional.avg_pool2d(fine, 4)
        return Posterior(mean, torch.full_like(mean, -12.0))

    def decode(self, coarse):
        return functional.interpolate(coarse, scale_factor=4)


def stripes(n):
    """Latents whose means are arbitrary and whose detail is a stripe of one cell, in one of two phases."""
    generator = torch.Generator().manual_seed(n)
    layout = functional.interpolate(torch.randn(n, FINE, 4, 4, generator=generator), scale_factor=4)
    phase = torch.randint(2, (n, 1, 1, 1), generator=generator) * 2.0 - 1
    return layout + phase * torch.tensor([1.0, -1.0]).repeat(8)[None, None, None, :].expand(n, FINE, 16, 16)


def test_untrained_it_returns_the_guess(refiner):
    guess, noise = torch.randn(2, FINE, 16, 16), torch.randn(2, FINE, 16, 16)
    torch.testing.assert_close(refiner.clean(noise, guess, torch.tensor([0.9, 0.5])), guess)
    torch.testing.assert_close(refiner.draw(guess, noise), guess, atol=0.06, rtol=0)  # σ ends at 0.05


def test_it_draws_detail_that_the_coarse_level_cannot_hold(refiner):
    level = BlurredLevel(FINE, 2, widths=(8, 8), blocks=1)
    objective = RefinerObjective(refiner, level, torch.ones(FINE), shake=0.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    x = stripes(64)
    for step in range(400):
        losses = objective(LatentBatch(x[torch.randint(64, (16,))], torch.zeros(16)), step)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    new = stripes(9)
    guess = objective.guess(new)
    drawn = refiner.draw(guess, torch.randn(new.shape, generator=torch.Generator().manual_seed(3)))
    layout = functional.avg_pool2d(drawn, 4)
    torch.testing.assert_close(layout, functional.avg_pool2d(new, 4), atol=0.7, rtol=0)  # the layout is kept
    detail = (drawn - guess).std() / (new - guess).std()
    assert detail > 0.7  # and what is added is as strong as the truth, not the average of both phases


def test_the_frozen_coarse_level_is_neither_trained_nor_saved(refiner):
    coarse = CoarseVAE(FINE, 4, widths=(8, 8, 8), blocks=1)
    objective = RefinerObjective(refiner, coarse, torch.ones(4))
    objective(LatentBatch(torch.randn(2, FINE, 16, 16), torch.zeros(2)), 0)["total"].backward()
    assert all(p.grad is None for p in coarse.parameters())
    assert not any("coarse" in name for name in objective.state_dict())


def test_a_pipeline_with_a_refiner_survives_saving_and_keeps_its_seed(refiner, tmp_path):
    torch.manual_seed(1)
    vae, coarse = PoEVAE(**SMOKE.vae), CoarseVAE(FINE, 4, widths=(8, 8, 8), blocks=1)
    torch.nn.init.normal_(vae.decoder.head[0].weight, std=0.1)
    torch.nn.init.normal_(refiner.net.conv_out.weight, std=0.1)
    denoiser = TissueTransformer(5, 4, (2, 2), width=32, layers=1, heads=2)
    scales = ([0.0] * 4, [1.0] * 4, [0.0] * FINE, [1.0] * FINE)
    pipe = TissuePipeline(denoiser, make_scheduler("flow"), vae, coarse, refiner, *scales, (2, 2), 6.0)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = TissuePipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    first, other = (p(2, seed=3, num_inference_steps=2).stack() for p in (pipe, again))
    torch.testing.assert_close(first, other, atol=1e-5, rtol=1e-4)
    x = pipe.sample_latents(1, 3, 2).expand(2, -1, -1, -1)
    alike, apart = pipe.decode(x, 3, same_noise=True).t1, pipe.decode(x, 3).t1
    torch.testing.assert_close(alike[0], alike[1])
    assert (apart[0] - apart[1]).abs().max() > 1e-3
