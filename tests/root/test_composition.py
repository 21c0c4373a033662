"""Maps are told apart into the tissues they were mixed from; the autoencoder answers with a choice among them."""

import pytest
import torch
from torch.nn import functional

from phyldm_core import losses
from phyldm_core.composition import (
    BRAIN_PARTS,
    EMPTY,
    FULL,
    HEAD_PARTS,
    Composition,
    CompositionVAE,
    compose,
    compose_scans,
    csf_share,
    medians_of,
    restore,
    unmix,
    unmix_signals,
)
from phyldm_core.diffusion import CONDITIONS, TissuePipeline, TissueTransformer, make_scheduler
from phyldm_core.inference import Explained
from phyldm_core.losses import CompositionBatch, CompositionData, CompositionLoss, CompositionObjective
from phyldm_core.physics import REFERENCE, Protocol, Sequence, TissueMaps, effective_protocol, signed_signal
from phyldm_core.slices import Scans, Slices
from phyldm_core.tissue import mix

AIR, WM, GM, CSF, FAT, MUSCLE, LESION = range(7)


def of(*parts: tuple[int, float]) -> torch.Tensor:
    """``(1, 7, 1, 1)`` shares of one voxel."""
    shares = torch.zeros(1, 7, 1, 1)
    for tissue, share in parts:
        shares[0, tissue] = share
    return shares


def rings(n: int = 4, size: int = 64) -> torch.Tensor:
    """``(n, 7, size, size)``: heads in rings: ventricle, white matter, cortex, sulcal fluid, bone, fat, skin."""
    at = torch.arange(size) - (size - 1) / 2
    radius = (at[:, None] ** 2 + at**2).sqrt()
    shares = torch.zeros(n, 7, size, size)
    for i in range(n):
        edges = [3.0 + i, 14, 20, 23, 25, 27, 29]
        inner = 0
        for tissue, outer in zip((CSF, WM, GM, CSF, AIR, FAT, MUSCLE), edges, strict=True):
            shares[i, tissue] += ((radius >= inner) & (radius < outer)).float()
            inner = outer
        shares[i, AIR] += (radius >= inner).float()
    return shares


@pytest.mark.parametrize(
    "parts",
    [[(WM, 1.0)], [(WM, 0.6), (GM, 0.4)], [(GM, 0.3), (CSF, 0.7)], [(FAT, 0.5), (MUSCLE, 0.5)], [(LESION, 1.0)]],
    ids=["white matter", "its border with cortex", "a sulcus", "under the skin", "a lesion"],
)
def test_a_voxel_is_told_apart_into_what_it_was_mixed_from(parts):
    shares, values = of(*parts), medians_of(HEAD_PARTS)
    found = unmix(mix(shares[:, 1:], values), values, HEAD_PARTS)
    torch.testing.assert_close(found, shares, atol=0.02, rtol=0)


SETTINGS = torch.stack([effective_protocol(p).settings() for p in REFERENCE.values()])


def added(shares: torch.Tensor, values: torch.Tensor, settings: torch.Tensor = SETTINGS) -> torch.Tensor:
    """T1w, T2w and FLAIR ``(n, 3, y, x)`` of shares ``(n, 1 + k, y, x)``: signals add, and then lose their sign."""
    signals = signed_signal(values.T[..., None, None], settings.expand(len(values), -1, -1))[..., 0, 0]
    return torch.einsum("nkyx,km->nmyx", shares[:, 1:], signals).abs()


def scans_of(images: torch.Tensor, settings: torch.Tensor = SETTINGS) -> Scans:
    n, m = images.shape[:2]
    return Scans(images, settings.expand(n, -1, -1), torch.ones(n, m, dtype=torch.bool))


@pytest.mark.parametrize(
    "parts",
    [
        [(WM, 1.0)], [(WM, 0.6), (GM, 0.4)], [(GM, 0.5), (CSF, 0.5)], [(FAT, 0.5), (MUSCLE, 0.5)], [(FAT, 0.4)],
        [(LESION, 1.0)], [],
    ],
    ids=["white matter", "its border", "a sulcus", "under the skin", "the rim of the head", "a lesion", "bone"],
)  # fmt: skip
def test_scans_are_told_apart_into_what_their_signals_were_added_from(parts):
    shares, values = of(*parts).expand(1, 7, 24, 24).clone(), medians_of(HEAD_PARTS)
    shares[:, AIR] = 1 - shares[:, 1:].sum(1)
    images = added(shares, values) + 1e-4  # a scan that is exactly 0 measures nothing
    found = unmix_signals(scans_of(images), values, HEAD_PARTS)
    seen = ((1 - shares[:, :1] - EMPTY) / (FULL - EMPTY)).clamp(0, 1)  # a part that is too small is noise
    wanted = torch.cat([1 - seen, seen * shares[:, 1:] / (1 - shares[:, :1]).clamp_min(1e-6)], 1)
    torch.testing.assert_close(found, wanted, atol=0.08, rtol=0)


def test_grey_matter_and_fluid_that_cancel_are_told_apart():
    """At a TI of 1.5 s fluid is still upside down, and about as much of it as of grey matter gives no signal."""
    long, short = (Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=ti) for ti in (1.5, 0.5))
    settings = torch.stack([p.settings() for p in (long, Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0), short)])
    shares, values = of((GM, 0.55), (CSF, 0.45)).expand(1, 7, 8, 8), medians_of(HEAD_PARTS)
    images = added(shares, values, settings)
    assert images[0, 0].max() < 0.3 * added(of((GM, 1.0)), values, settings)[0, 0].max()
    found = unmix_signals(scans_of(images + 1e-4, settings), values, HEAD_PARTS)
    assert found[0, CSF, 0, 0].item() == pytest.approx(0.45, abs=0.05)


def test_a_session_is_told_apart_with_the_tissue_that_its_signals_told():
    """And its texture is what voxels of one tissue have beyond that: here T1 is 4 % longer everywhere."""
    shares, values = rings(2), medians_of(HEAD_PARTS).clone()
    values[0, 1] *= 1.1
    maps = mix(shares[:, 1:], values) * torch.tensor([1.0, 1.04, 1.0]).view(3, 1, 1)
    three = values[:3]
    explained = Explained(
        TissueMaps.from_stack(maps), three, torch.zeros(3, 3), 100 * torch.ones(3), torch.ones(3), torch.zeros(2)
    )
    slices = Slices(
        100 * added(shares, values) + 1e-2, SETTINGS.expand(2, -1, -1), torch.ones(2, 3, dtype=torch.bool),
        torch.zeros(2, dtype=torch.long), torch.zeros(2),
    )  # fmt: skip
    found = compose_scans(explained, slices, HEAD_PARTS, cell=8)
    torch.testing.assert_close(found.values[:, :3], three.expand(2, -1, -1))
    assert (found.shares - shares)[:, 1:4].abs().mean() < 0.01
    assert found.texture[0, 1, 4, 2].exp().item() == pytest.approx(1.04, abs=0.01)


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
    return CompositionVAE(HEAD_PARTS, latent_channels=6, stem=4, widths=(16, 16), blocks=1)


def test_the_latent_is_coarser_by_the_stem_and_by_two_a_width(autoencoder):
    posterior = autoencoder.encode(rings())
    assert autoencoder.downsampling == 8 and posterior.mean.shape == (4, 6, 8, 8)
    shares = autoencoder.shares(posterior.mean)
    assert shares.shape == (4, 7, 64, 64)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 64, 64))


def test_a_stripped_brain_has_four_classes():
    brain = CompositionVAE(BRAIN_PARTS, latent_channels=4, stem=2, widths=(16, 16), blocks=1)
    assert brain.decode(brain.encode(rings()[:, :4]).mean).shape == (4, 4, 64, 64)


def test_training_restores_compositions_of_every_scale(autoencoder):
    objective = CompositionObjective(autoencoder, CompositionLoss())
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    batch, said = CompositionBatch(rings()), []
    for step in range(120):
        found = objective(batch, step)
        optimizer.zero_grad()
        found["total"].backward()
        optimizer.step()
        said.append(found["cross_entropy"].item())
    assert sum(said[-20:]) < 0.4 * sum(said[:20])
    with torch.no_grad():
        z = autoencoder.encode(rings()).mean
        half = autoencoder.decode(functional.avg_pool2d(z, 2)).argmax(1)
    wanted = functional.avg_pool2d(rings(), 2).argmax(1)
    assert (half == wanted).float().mean() > 0.8  # the same head, half as large


def test_the_adversary_is_heard_when_its_time_has_come_and_judges_shares_as_they_are_drawn(autoencoder, monkeypatch):
    objective = CompositionObjective(autoencoder, CompositionLoss(halved=0.0, adversarial=0.5, adversarial_after=2))
    batch, judged = CompositionBatch(rings()), []

    def against(_, made, real):
        judged.append((made, real))
        return made.sum(), real.sum()

    monkeypatch.setattr(losses, "against", against)
    early, late = objective(batch, 1), objective(batch, 2)
    assert "adversary" not in early
    (made, real), said = judged[0], late["cross_entropy"] + 0.3 * late["kl"]
    assert torch.equal(real, rings()) and made.shape == real.shape
    assert made.amax(1).mean() > autoencoder.decode(autoencoder.encode(rings()).mean).softmax(1).amax(1).mean()
    torch.testing.assert_close(late["total"], said + 0.5 * made.sum() + real.sum() + losses.STEADY * late["slope"])


def test_fooling_the_adversary_does_not_train_it():
    adversary, made, real = losses.patch_adversary(7, layers=2), rings().requires_grad_(), rings()
    fooled, own = losses.against(adversary, made, real)
    fooled.backward(retain_graph=True)
    assert made.grad.abs().sum() > 0 and all(p.grad is None for p in adversary.parameters())
    made.grad = None
    own.backward()
    assert made.grad is None and all(p.grad is not None for p in adversary.parameters())


def test_an_adversary_that_knows_by_sight_is_steeper_than_one_that_says_the_same_of_all():
    steep = torch.nn.Sequential(torch.nn.Conv2d(7, 1, 1))
    steep.forward = lambda x: [x.sum(1, keepdim=True)]
    flat = torch.nn.Sequential()
    flat.forward = lambda x: [0.0 * x[:, :1] + 1.0]
    n = rings()[0, 0].numel()
    assert losses.slope_at(flat, rings()) == 0
    assert losses.slope_at(steep, rings()).item() == pytest.approx(7 / n)  # of the mean over patches
    with torch.no_grad():  # where training is validated
        assert losses.slope_at(steep, rings()) > 0


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
    expected = restore(Composition(autoencoder.shares(z), values, texture))
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
