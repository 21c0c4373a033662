"""Opinions multiply, missing scans stay silent, and an untrained network knows only its prior."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from hypothesis import given
from hypothesis import strategies as st

from phyldm_core.physics import REFERENCE, UNSEEN, Protocol
from phyldm_core.running.profiles import LAPTOP, PAPER, SMOKE
from phyldm_core.slices import brightness
from phyldm_core.vae import (
    N_SCAN_FEATURES,
    PRIOR_MEDIANS,
    Enlarge,
    PoEVAE,
    Posterior,
    covered,
    product_of_experts,
    scan_features,
)

N, M, Y, X = 2, 3, 32, 32
SETTINGS = torch.stack([protocol.settings() for protocol in REFERENCE.values()]).expand(N, -1, -1)
OF_AN_ANGLE = [Protocol("spoiled gradient echo", te=0.004, tr=0.02, flip_angle_deg=angle) for angle in (5, 25)] + [
    Protocol("inversion-recovery gradient echo", te=0.004, tr=2.5, ti=0.9, flip_angle_deg=9)
]
ALL = torch.ones(N, M, dtype=torch.bool)
COMMON = torch.ones(N, dtype=torch.bool)
LEVEL = torch.ones(N, M)


@pytest.fixture
def vae() -> PoEVAE:
    torch.manual_seed(0)
    return PoEVAE(**SMOKE.vae).eval()


@pytest.fixture
def images():
    return torch.rand(N, M, Y, X, generator=torch.Generator().manual_seed(1))


def experts(n=2, m=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, m, 4, 5, 6, generator=generator).double()


def coverage(shares):
    """``(n, m)`` shares → ``(n, m, y, x)``: each scan covers every place equally."""
    return torch.as_tensor(shares).double()[..., None, None].expand(-1, -1, 5, 6)


def awaken(vae: PoEVAE):
    """Move every weight a little, as the first training steps do, so that nothing is zero any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in vae.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return vae


# --- the product of experts -----------------------------------------------------------------------


def test_a_single_expert_is_believed():
    mean, log_variance = experts(m=1)
    posterior = product_of_experts(mean, log_variance, coverage([[1]] * 2))
    torch.testing.assert_close(posterior.mean, mean[:, 0])
    torch.testing.assert_close(posterior.log_variance, log_variance[:, 0])


def test_two_experts_of_one_mind_are_twice_as_sure():
    mean, log_variance = (e.expand(-1, 2, -1, -1, -1) for e in experts(m=1))
    posterior = product_of_experts(mean, log_variance, coverage([[1, 1]] * 2))
    torch.testing.assert_close(posterior.mean, mean[:, 0])
    torch.testing.assert_close(posterior.log_variance.exp(), log_variance[:, 0].exp() / 2)


@given(st.lists(st.booleans(), min_size=4, max_size=4).filter(any), st.integers(0, 100))
def test_precisions_add_and_means_are_weighted_by_them(observed, seed):
    mean, log_variance = experts(n=1, m=4, seed=seed)
    posterior = product_of_experts(mean, log_variance, coverage([observed]))
    precision = (1 / log_variance.exp())[:, observed]
    torch.testing.assert_close(1 / posterior.log_variance.exp(), precision.sum(1))
    torch.testing.assert_close(posterior.mean, (precision * mean[:, observed]).sum(1) / precision.sum(1))


def test_a_missing_modality_leaves_the_posterior_of_the_others():
    mean, log_variance = experts(m=3)
    seen = coverage([[1, 0, 1]] * 2)
    with_gap = product_of_experts(mean, log_variance, seen)
    others = product_of_experts(mean[:, ::2], log_variance[:, ::2], seen[:, ::2])
    for a, b in zip(with_gap, others, strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_of_scans_does_not_matter():
    mean, log_variance = experts()
    forth = product_of_experts(mean, log_variance, coverage(ALL))
    back = product_of_experts(mean.flip(1), log_variance.flip(1), coverage(ALL))
    for a, b in zip(forth, back, strict=True):
        torch.testing.assert_close(a, b)


def test_where_no_scan_sees_anything_there_is_the_prior():
    mean, log_variance = experts(m=2)
    seen = coverage([[1, 1]] * 2).clone()
    seen[:, :, 2:4] = 0
    posterior = product_of_experts(mean, log_variance, seen)
    assert (posterior.mean[:, :, 2:4] == 0).all() and (posterior.log_variance[:, :, 2:4] == 0).all()
    everywhere = product_of_experts(mean, log_variance, coverage([[1, 1]] * 2))
    torch.testing.assert_close(posterior.mean[:, :, :2], everywhere.mean[:, :, :2], rtol=0, atol=0)


def test_a_scan_that_covers_half_a_pixel_counts_half():
    mean, log_variance = experts(n=1, m=2)
    posterior = product_of_experts(mean, log_variance, coverage([[1, 0.5]]))
    (one, other), precision = mean[0], (1 / log_variance.exp())[0]
    torch.testing.assert_close(1 / posterior.log_variance.exp()[0], precision[0] + precision[1] / 2)
    expected = (precision[0] * one + precision[1] / 2 * other) / (precision[0] + precision[1] / 2)
    torch.testing.assert_close(posterior.mean[0], expected)


def test_kl_is_zero_for_the_unit_gaussian_only():
    zero = torch.zeros(1, 1, 2, 2)
    assert Posterior(zero, zero).kl().sum() == 0
    torch.testing.assert_close(Posterior(zero + 2, zero).kl(), zero + 2)  # μ²/2 nats
    assert (Posterior(zero, zero - 1).kl() > 0).all()


def test_samples_have_the_posterior_s_mean_and_spread():
    posterior = Posterior(torch.full((1, 1, 300, 300), 2.0), torch.full((1, 1, 300, 300), 2 * 0.5)).sample(
        torch.Generator().manual_seed(0)
    )
    assert posterior.mean() == pytest.approx(2, abs=0.02)
    assert posterior.std() == pytest.approx(torch.e**0.5, rel=0.01)


# --- the protocol ---------------------------------------------------------------------------------


def test_every_setting_of_the_console_reaches_the_network():
    protocols = [*REFERENCE.values(), *UNSEEN, *OF_AN_ANGLE]
    settings, n = torch.stack([p.settings() for p in protocols]), len(protocols)
    features = scan_features(settings, torch.ones(n), torch.ones(n, dtype=torch.bool))
    assert features.shape == (n, N_SCAN_FEATURES)
    assert len(features.unique(dim=0)) == n
    assert features.abs().max() < 5  # scaled for a network
    assert torch.isfinite(scan_features(torch.zeros(1, 6), torch.ones(1), torch.ones(1, dtype=torch.bool))).all()


def test_two_names_of_one_contrast_are_told_alike():
    """An inversion recovery is the same images whether its 90° pulse makes a spin echo or a gradient echo."""
    times = {"te": 0.01, "tr": 4.0, "ti": 0.6}
    spin = Protocol("FLAIR", **times)
    gradient = Protocol("inversion-recovery gradient echo", **times, flip_angle_deg=90)
    settings = torch.stack([spin.settings(), gradient.settings()])
    one, other = scan_features(settings, torch.ones(2), torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(one, other)


def test_brightness_is_physics_on_a_common_scale_and_means_nothing_otherwise(vae, images):
    vae = awaken(vae)
    for common in (COMMON, ~COMMON):
        dim, bright = (vae.encode(images, SETTINGS, ALL, level, common).mean for level in (LEVEL, 3 * LEVEL))
        assert torch.equal(dim, bright) == (not common.all())


def test_a_fresh_encoder_does_not_listen_to_the_protocol_and_one_step_later_it_does(vae, images):
    def mean():
        return vae.encode(images, settings, ALL, LEVEL, COMMON).mean

    settings = SETTINGS
    before = mean()
    settings = Protocol("spin echo", te=0.02, tr=8.0).settings().expand(N, M, -1)
    torch.testing.assert_close(mean(), before)
    vae.encode(images, SETTINGS, ALL, LEVEL, COMMON).mean.pow(2).sum().backward()
    torch.optim.SGD(vae.parameters(), 0.05).step()
    one_way = mean()
    settings = SETTINGS
    assert (mean() - one_way).abs().max() > 1e-4


# --- the networks ---------------------------------------------------------------------------------


def test_an_enlarged_image_is_doubled_and_then_convolved():
    """Borders, gradients and names of the weights included: files of earlier trainings still fit."""
    torch.manual_seed(0)
    reference, ours = Upsample2D(6, use_conv=True, out_channels=4), Enlarge(6, 4)
    ours.load_state_dict(reference.state_dict())
    results = []
    for layer in (reference, ours):
        image = torch.linspace(-1, 1, 2 * 6 * 5 * 7).sin().view(2, 6, 5, 7).requires_grad_()
        enlarged = layer(image)
        assert enlarged.shape == (2, 4, 10, 14)
        (enlarged**2).sum().backward()
        results.append((enlarged, image.grad, layer.conv.weight.grad, layer.conv.bias.grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_untrained_decoder_says_the_prior_s_medians(vae):
    pd, t1, t2 = vae.decode(torch.randn(N, 4, 8, 8))
    for tissue, median in zip((pd, t1, t2), PRIOR_MEDIANS, strict=True):
        torch.testing.assert_close(tissue, torch.full((N, Y, X), median), rtol=1e-3, atol=0)


def test_a_decoder_gives_no_tissue_more_water_than_water(vae):
    maps = awaken(vae).decode(20 * torch.randn(N, 4, 8, 8))
    assert maps.pd.max() > 0.9  # it comes close,
    assert maps.pd.max() <= 1  # and no further
    assert all((tissue > 0).all() and torch.isfinite(tissue).all() for tissue in maps)


@pytest.mark.parametrize("shown", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]])
def test_any_subset_of_scans_gives_a_posterior_of_its_own_scans_only(vae, images, shown):
    vae, observed = awaken(vae), torch.tensor([shown] * N, dtype=torch.bool)
    posterior = vae.encode(images, SETTINGS, observed, LEVEL, COMMON)
    assert posterior.mean.shape == posterior.log_variance.shape == (N, 4, Y // 4, X // 4)
    assert torch.isfinite(posterior.mean).all() and torch.isfinite(posterior.log_variance).all()
    changed = torch.where(observed[..., None, None], images, 7.0)
    torch.testing.assert_close(vae.encode(changed, SETTINGS, observed, LEVEL, COMMON).mean, posterior.mean)


def test_what_a_scan_does_not_cover_is_left_to_the_others(vae):
    vae, wide = awaken(vae), torch.rand(N, M, 32, 128, generator=torch.Generator().manual_seed(3))
    wide[:, 1, :, 64:] = 0
    half, alone = torch.tensor([[True, True, False]] * N), torch.tensor([[True, False, False]] * N)
    both, first = (vae.encode(wide, SETTINGS, observed, LEVEL, COMMON) for observed in (half, alone))
    bare = 64 // vae.downsampling
    for together, only in zip(both, first, strict=True):
        torch.testing.assert_close(together[..., bare + 1 :], only[..., bare + 1 :], rtol=1e-5, atol=1e-6)
        assert (together[..., :bare] - only[..., :bare]).abs().min() > 0


def test_a_half_that_is_covered_by_nothing_is_the_prior(vae, images):
    images[:, :, :, X // 2 :] = 0
    posterior = awaken(vae).encode(images, SETTINGS, ALL, LEVEL, COMMON)
    bare = X // 2 // vae.downsampling
    for part in posterior:
        assert (part[..., bare + 1 :] == 0).all()
        assert (part[..., :bare] != 0).all()


def test_the_encoder_sees_a_real_part_s_magnitude(vae, images):
    sign = torch.where(images > 0.5, 1.0, -1.0)
    vae = awaken(vae)
    shown = [vae.encode(scans, SETTINGS, ALL, LEVEL, COMMON).mean for scans in (images, sign * images)]
    torch.testing.assert_close(*shown, rtol=0, atol=0)


def test_a_stripped_part_is_uncovered_and_a_single_zero_is_noise():
    scan = torch.ones(1, 1, 20, 20)
    scan[..., 5, 5] = 0
    scan[..., 12:] = 0
    there = covered(scan)
    assert there[..., :12].all()
    assert not there[..., 14:].any()  # two pixels from the border on


def test_more_scans_make_it_surer(vae, images):
    vae = awaken(vae)
    alone = vae.encode(images, SETTINGS, torch.tensor([[True, False, False]] * N), LEVEL, COMMON)
    together = vae.encode(images, SETTINGS, ALL, LEVEL, COMMON)
    assert (together.log_variance < alone.log_variance).all()


def test_people_of_a_batch_do_not_see_each_other(vae, images):
    vae = awaken(vae)
    together = vae.encode(images, SETTINGS, ALL, LEVEL, COMMON).mean
    alone = vae.encode(images[:1], SETTINGS[:1], ALL[:1], LEVEL[:1], COMMON[:1]).mean
    torch.testing.assert_close(together[:1], alone)


def test_the_scale_being_shared_is_told_to_the_encoder(vae, images):
    vae = awaken(vae)
    shared, own = (vae.encode(images, SETTINGS, ALL, LEVEL, flag).mean for flag in (COMMON, ~COMMON))
    assert (shared - own).abs().max() > 1e-4


def test_saved_and_loaded_without_pickles_it_gives_the_same_maps(vae, images, tmp_path):
    vae = awaken(vae)
    vae.save_pretrained(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    again = PoEVAE.from_pretrained(tmp_path, local_files_only=True).eval()
    z = vae.encode(images, SETTINGS, ALL, LEVEL, COMMON).mean
    torch.testing.assert_close(again.encode(images, SETTINGS, ALL, LEVEL, COMMON).mean, z, rtol=0, atol=0)
    torch.testing.assert_close(again.decode(z).stack(), vae.decode(z).stack(), rtol=0, atol=0)


def test_halves_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shrinks 4 times, the decoder enlarges 2 times"):
        PoEVAE(**SMOKE.vae | {"decoder_channels": (16,)})


def test_the_paper_profile_has_the_paper_s_size():
    with torch.device("meta"):
        vae = PoEVAE(**PAPER.vae)
    assert sum(p.numel() for p in vae.parameters()) == pytest.approx(6.5e6, rel=0.2)  # ours adapts per channel
    assert vae.config.latent_channels == 6
    assert vae.downsampling == 8
    assert tuple(n // vae.downsampling for n in PAPER.cohort.shape) == (28, 20)


@pytest.mark.parametrize("profile", [SMOKE, LAPTOP], ids=lambda p: p.name)
def test_a_profile_s_network_fits_its_slices(profile):
    vae, (ny, nx) = PoEVAE(**profile.vae).eval(), profile.cohort.shape
    with torch.no_grad():
        z = vae.encode(torch.rand(1, M, ny, nx), SETTINGS[:1], ALL[:1], LEVEL[:1], COMMON[:1]).mean
        assert z.shape[2:] == (ny // vae.downsampling, nx // vae.downsampling)
        assert vae.decode(z).pd.shape == (1, ny, nx)


# --- brightness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [37.0, 1 / 1024, 1999.0])
def test_dividing_by_brightness_removes_any_gain(images, gain):
    subject = torch.tensor([0, 0])

    def normalised(images):
        return images / brightness(images, ALL, subject)[..., None, None]

    louder = images * torch.tensor([gain, 1.0, 1.0])[:, None, None]
    torch.testing.assert_close(normalised(louder), normalised(images), rtol=1e-5, atol=1e-6)
    assert normalised(images).quantile(0.95) == pytest.approx(1, abs=0.05)


def test_air_does_not_count_as_brightness(images):
    padded = torch.nn.functional.pad(images, (40, 40, 40, 40))
    torch.testing.assert_close(
        brightness(padded, ALL, torch.tensor([0, 0])), brightness(images, ALL, torch.tensor([0, 0]))
    )


def test_a_person_s_slices_share_one_brightness_and_other_people_have_their_own():
    images = torch.rand(4, M, Y, X) * torch.tensor([1.0, 2.0, 1.0, 5.0])[:, None, None, None]
    level = brightness(images, torch.ones(4, M, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))
    assert torch.equal(level[0], level[1]) and torch.equal(level[2], level[3])
    assert (level[2] > 2 * level[0]).all()


def test_a_scan_that_does_not_exist_is_divided_by_one(images):
    observed = ALL.clone()
    observed[:, 1] = False
    assert (brightness(images, observed, torch.tensor([0, 0]))[:, 1] == 1).all()
