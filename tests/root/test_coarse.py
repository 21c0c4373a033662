"""The coarse level: it squeezes, restores, is trained on scans, and is part of the saved pipeline."""

import pytest
import torch

from phyldm_core.coarse import CoarseObjective, CoarseVAE, squeeze
from phyldm_core.diffusion import LatentBatch, Latents, TissuePipeline, TissueTransformer, make_scheduler
from phyldm_core.running.profiles import SMOKE
from phyldm_core.vae import PoEVAE

FINE, COARSE = 4, 6


@pytest.fixture
def coarse():
    torch.manual_seed(0)
    return CoarseVAE(FINE, COARSE, widths=(16, 16), blocks=1)


@pytest.fixture
def fine():
    return Latents(3 * torch.randn(12, FINE, 8, 8, generator=torch.Generator().manual_seed(1)) + 1, torch.zeros(12))


def test_a_stem_of_two_and_two_widths_are_four_times_coarser_and_come_back(coarse, fine):
    posterior = coarse.encode(fine.values)
    assert posterior.mean.shape == (12, COARSE, 2, 2)
    assert coarse.decode(posterior.mean).shape == fine.values.shape


def test_training_brings_the_scans_closer_and_leaves_the_vae_alone(coarse, fine):
    vae = PoEVAE(**SMOKE.vae)
    torch.nn.init.normal_(vae.decoder.head[0].weight, std=0.1)
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    objective = CoarseObjective(coarse, vae, fine, kl=1e-3)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    batch = LatentBatch(fine.values, fine.position)
    scans = []
    for step in range(60):
        losses = objective(batch, step)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        scans.append(losses["scans"].item())
    assert scans[-1] < 0.7 * scans[0]
    assert all(torch.equal(before[name], p) for name, p in vae.state_dict().items())
    assert not any(name.startswith("vae") for name in objective.state_dict())


def test_held_out_latents_are_normalised_like_the_training_ones(coarse, fine):
    train = squeeze(coarse, fine)
    held_out = squeeze(coarse, Latents(fine.values[:3] + 0.5, torch.zeros(3), fine), train)
    assert torch.equal(held_out.mean, train.mean) and torch.equal(held_out.scale, train.scale)
    torch.testing.assert_close(train.values.std((0, 2, 3)), torch.ones(COARSE))


def test_a_pipeline_with_a_coarse_level_survives_saving(coarse, fine, tmp_path):
    torch.manual_seed(0)
    vae, train = PoEVAE(**SMOKE.vae), squeeze(coarse, fine)
    torch.nn.init.normal_(vae.decoder.head[0].weight, std=0.1)
    denoiser = TissueTransformer(COARSE + 1, COARSE, (2, 2), width=16, layers=1, heads=2)
    numbers = (t.tolist() for t in (train.mean, train.scale, fine.mean, fine.scale))
    parts = denoiser.eval(), make_scheduler("flow"), vae.eval(), coarse.eval()
    pipe = TissuePipeline(*parts, *numbers, (2, 2), 6.0)
    pipe.save_pretrained(tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = TissuePipeline.from_pretrained(tmp_path, local_files_only=True)
    for p in (pipe, again):
        p.set_progress_bar_config(disable=True)
    one, two = (p(2, seed=3, num_inference_steps=3).stack() for p in (pipe, again))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert one.shape == (2, 3, 32, 32)
