"""Maps are told apart into the tissues they were mixed from; the autoencoder answers with a choice among them."""

import pytest
import torch
from heads_in_rings import AIR, CSF, FAT, GM, LESION, MUSCLE, WM, of, rings
from torch.nn import functional

from phyldm_core.composition import (
    BRAIN_PARTS,
    HEAD_PARTS,
    Composition,
    CompositionVAE,
    compose,
    csf_share,
    enclosed,
    medians_of,
    restore,
    unmix,
    without_dots,
)
from phyldm_core.diffusion import CONDITIONS, TissuePipeline, TissueTransformer, make_scheduler
from phyldm_core.evaluation.brain_shapes import skull_closed
from phyldm_core.losses import CompositionBatch, CompositionData, CompositionLoss, CompositionObjective
from phyldm_core.physics import TissueMaps
from phyldm_core.tissue import mix
from phyldm_core.vae import Posterior


@pytest.mark.parametrize(
    "parts",
    [[(WM, 1.0)], [(WM, 0.6), (GM, 0.4)], [(GM, 0.3), (CSF, 0.7)], [(FAT, 0.5), (MUSCLE, 0.5)], [(LESION, 1.0)]],
    ids=["white matter", "its border with cortex", "a sulcus", "under the skin", "a lesion"],
)
def test_a_voxel_is_told_apart_into_what_it_was_mixed_from(parts):
    shares, values = of(*parts), medians_of(HEAD_PARTS)
    found = unmix(mix(shares[:, 1:], values), values, HEAD_PARTS)
    torch.testing.assert_close(found, shares, atol=0.02, rtol=0)


def test_what_gives_no_signal_is_air_and_bone_whatever_its_times():
    bone = torch.tensor([0.12, 0.25, 0.001]).view(1, 3, 1, 1)
    air = torch.tensor([0.02, 1.3, 0.09]).view(1, 3, 1, 1)  # noise has some T1
    for maps in (bone, air, torch.zeros(1, 3, 1, 1)):
        assert unmix(maps, medians_of(HEAD_PARTS), HEAD_PARTS)[0, AIR] > 0.9


def test_half_a_voxel_of_scalp_is_half_empty():
    half = mix(of((FAT, 0.5))[:, 1:], medians_of(HEAD_PARTS))
    assert unmix(half, medians_of(HEAD_PARTS), HEAD_PARTS)[0, AIR, 0, 0] == pytest.approx(0.5, abs=0.05)


def test_tissue_values_are_the_person_s_own():
    shares, values = rings(2), medians_of(HEAD_PARTS).expand(2, -1, -1).clone()
    values[0, 0, 1] *= 1.08  # white matter with a long T1
    values[1, 1, 1] *= 0.92  # cortex with a short one
    values[1, 2, 2] *= 0.8  # fluid with a short T2
    found = compose(TissueMaps.from_stack(mix(shares[:, 1:], values)), HEAD_PARTS, cell=8)
    torch.testing.assert_close(found.values[:, :3], values[:, :3], rtol=0.02, atol=0)
    assert (found.shares - shares).abs().mean() < 0.01


def test_maps_come_back_with_their_texture():
    shares, values = rings(2), medians_of(HEAD_PARTS).expand(2, -1, -1)
    texture = 0.05 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    field = functional.interpolate(texture, size=(64, 64), mode="bicubic").exp()
    maps = TissueMaps.from_stack(mix(shares[:, 1:], values) * field)
    inside = (shares[:, 1:4].sum(1) > 0.9)[:, None].expand(-1, 3, -1, -1)
    found = compose(maps, HEAD_PARTS, cell=8)
    flat = Composition(found.shares, found.values, torch.zeros_like(found.texture))
    off, without = ((restore(c).stack() / maps.stack()).log().abs()[inside].mean() for c in (found, flat))
    assert off < 0.015 and off < 0.6 * without


def test_t1_and_t2_are_zero_where_nothing_is():
    found = restore(Composition(rings(1), medians_of(HEAD_PARTS)[None], torch.zeros(1, 3, 8, 8)))
    assert (found.t1[rings(1)[:, AIR] == 1] == 0).all()
    assert (found.stack()[:, :, 32, 32] > 0).all()


def test_the_share_of_csf_counts_the_inside_of_the_skull_alone():
    shares = torch.zeros(1, 7, 1, 10)
    for voxel, tissue in enumerate((WM, WM, WM, GM, GM, GM, CSF, CSF, FAT, AIR)):
        shares[0, tissue, 0, voxel] = 1
    assert csf_share(shares).item() == pytest.approx(2 / 8)


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return CompositionVAE(HEAD_PARTS, latent_channels=6, stem=4, widths=(16, 16), decoder_widths=(16, 16), blocks=1)


def test_the_latent_is_coarser_by_the_stem_and_by_two_a_width(autoencoder):
    posterior = autoencoder.encode(rings())
    assert autoencoder.downsampling == 8 and posterior.mean.shape == (4, 6, 8, 8)
    shares = autoencoder.draw(posterior.mean)
    assert shares.shape == (4, 7, 64, 64)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 64, 64))


def test_a_stripped_brain_has_four_classes():
    brain = CompositionVAE(BRAIN_PARTS, latent_channels=4, stem=2, widths=(16, 16), decoder_widths=(16, 16), blocks=1)
    assert brain.draw(brain.encode(rings()[:, :4]).mean).shape == (4, 4, 64, 64)


def test_training_restores_compositions_of_every_scale(autoencoder):
    objective = CompositionObjective(autoencoder, CompositionLoss())
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    batch, said = CompositionBatch(rings()), []
    for step in range(240):
        found = objective(batch, step)
        optimizer.zero_grad()
        found["total"].backward()
        optimizer.step()
        said.append(found["cross_entropy"].item())
    assert sum(said[-20:]) < 0.4 * sum(said[:20])
    with torch.no_grad():
        z = autoencoder.encode(rings()).mean
        half = autoencoder.draw(functional.avg_pool2d(z, 2)).argmax(1)
    wanted = functional.avg_pool2d(rings(), 2).argmax(1)
    assert (half == wanted).float().mean() > 0.8  # the same head, half as large


def test_what_a_latent_leaves_in_doubt_is_drawn_and_not_averaged(autoencoder):
    """Half of the slices are white matter and half are grey, and their latents do not say which."""
    torch.manual_seed(0)
    kinds = torch.zeros(2, 7, 32, 32)
    kinds[0, WM], kinds[1, GM] = 1, 1
    autoencoder.encode = lambda shares: Posterior(torch.zeros(len(shares), 6, 4, 4), torch.zeros(len(shares), 6, 4, 4))
    objective = CompositionObjective(autoencoder, CompositionLoss(kl=0.0, halved=0.0))
    optimizer = torch.optim.Adam(autoencoder.decoder.parameters(), lr=3e-3)
    for step in range(300):
        optimizer.zero_grad()
        objective(CompositionBatch(kinds[torch.randint(2, (8,))]), step)["total"].backward()
        optimizer.step()
    nothing = torch.zeros(1, 6, 4, 4)
    answers = torch.cat([autoencoder.draw(nothing, seed) for seed in range(12)])[:, WM].mean((1, 2))
    assert ((answers < 0.1) | (answers > 0.9)).float().mean() > 0.8
    assert answers.min() < 0.1 and answers.max() > 0.9


def test_dots_are_what_is_around_them():
    clean = rings(1)
    dotted = clean.clone()
    for (y, x), tissue in {(2, 2): FAT, (32, 41): MUSCLE, (41, 32): AIR}.items():  # in air, and in white matter
        dotted[0, :, y, x] = 0
        dotted[0, tissue, y, x] = 1
    torch.testing.assert_close(without_dots(dotted, HEAD_PARTS), without_dots(clean, HEAD_PARTS))
    assert (without_dots(clean, HEAD_PARTS) == clean).float().mean() > 0.99


def test_a_lesion_in_the_brain_is_no_dot():
    spotted = rings(1)
    spotted[0, :, 38:41, 38:41] = 0
    spotted[0, LESION, 38:41, 38:41] = 1
    assert (without_dots(spotted, HEAD_PARTS)[0, LESION, 38:41, 38:41] == 1).all()


def test_a_head_is_one_closed_ring_and_a_closed_one_stays_as_it_is():
    whole = rings(1)
    assert (enclosed(whole, HEAD_PARTS) - whole).abs().max() < 0.2  # the brain's rim is shared with bone
    open_head, half = whole.clone(), whole.shape[2] // 2
    scalp = whole[:, FAT : MUSCLE + 1].sum(1, keepdim=True) > 0.5
    gap = scalp & (torch.arange(whole.shape[3]) > half) & ((torch.arange(whole.shape[2]) - half).abs() < 12)[:, None]
    open_head = torch.where(gap, of((AIR, 1.0)), open_head)
    open_head[:, :, half + 23 : half + 25, half] = of((FAT, 1.0))[..., 0]  # scalp that touches the brain
    closed = []
    for shares in (whole, open_head, enclosed(open_head, HEAD_PARTS)):
        brain = shares[0, 1:4].sum(0).numpy() > 0.5
        closed.append(skull_closed(shares[0, 0].numpy() < 0.5, brain, voxel_mm=4.0))
    assert closed == [True, False, True]
    new = enclosed(open_head, HEAD_PARTS)
    assert (new - open_head)[:, 1:4].abs().max() < 0.2  # the brain stays
    torch.testing.assert_close(new.sum(1), torch.ones_like(new[:, 0]))


def test_a_slice_without_a_head_is_left_alone():
    nothing = of((AIR, 1.0)).expand(1, 7, 32, 32).clone()
    assert torch.equal(enclosed(nothing, HEAD_PARTS), nothing)


def test_the_same_seed_draws_the_same_and_equal_latents_give_equal_slices(autoencoder):
    z = autoencoder.encode(rings()).mean
    torch.nn.init.normal_(autoencoder.decoder.straight.weight, std=0.1)  # untrained, it sees no noise
    one, again, other = (autoencoder.draw(z, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=0.01)
    twice = autoencoder.draw(z[:1].expand(2, -1, -1, -1), 1)
    torch.testing.assert_close(twice[0], twice[1])


def test_half_of_the_training_slices_are_mirrored():
    one_sided = torch.zeros(1, 7, 2, 4, dtype=torch.uint8)
    one_sided[..., 0] = 255
    batch = CompositionData(one_sided).batch(torch.zeros(400, dtype=torch.long), torch.Generator().manual_seed(0))
    left = batch.shares[:, 0, 0, 0]
    assert left.mean().item() == pytest.approx(0.5, abs=0.1)
    assert (left + batch.shares[:, 0, 0, 3] == 1).all()


def test_anatomy_texture_and_values_are_one_latent_and_come_apart_again(autoencoder):
    values = medians_of(HEAD_PARTS).expand(4, -1, -1) * torch.linspace(0.9, 1.1, 4)[:, None, None]
    texture = 0.1 * torch.randn(4, 3, 16, 16)
    latent = autoencoder.join(Composition(rings(), values, texture))
    assert latent.shape == (4, autoencoder.drawn_channels, 8, 8)
    found = autoencoder.to_maps(latent)
    z = autoencoder.encode(rings()).mean
    expected = restore(Composition(enclosed(autoencoder.draw(z), HEAD_PARTS), values, texture))
    torch.testing.assert_close(found.stack(), expected.stack(), rtol=1e-4, atol=1e-5)


def test_a_pipeline_with_compositions_survives_saving(autoencoder, tmp_path):
    n = autoencoder.drawn_channels
    denoiser = TissueTransformer(n + 2 * len(CONDITIONS), n, (8, 8), width=16, layers=1, heads=2)
    parts = denoiser.eval(), make_scheduler("flow"), autoencoder.eval()
    mean = autoencoder.join(Composition(rings(), medians_of(HEAD_PARTS).expand(4, -1, -1), torch.zeros(4, 3, 16, 16)))
    pipe = TissuePipeline(*parts, mean.mean((0, 2, 3)).tolist(), [0.1] * n, (8, 8), 1.0)
    pipe.save_pretrained(tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = TissuePipeline.from_pretrained(tmp_path, local_files_only=True)
    for p in (pipe, again):
        p.set_progress_bar_config(disable=True)
    one, two = (p(2, seed=3, num_inference_steps=3, csf_share=0.2).stack() for p in (pipe, again))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert one.shape == (2, 3, 64, 64)
