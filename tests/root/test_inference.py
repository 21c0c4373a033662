"""Scans have the last word: three tissues tell the gains, and pixels move until signal equations explain the scans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from phyldm_core import inference
from phyldm_core.inference import ENOUGH, explain, three_tissues
from phyldm_core.people.cohort import CohortRecipe, Subject
from phyldm_core.people.held_out import FIRST, session_of
from phyldm_core.physics import Protocol, Sequence, TissueMaps, shown_signal
from phyldm_core.slices import Scans, Slices, Truth
from phyldm_core.tissue import TISSUES, in_vivo_3t, three_medians
from phyldm_core.vae import PRIOR_MEDIANS

RECIPE = CohortRecipe(
    voxel_mm=1.0, shape=(224, 160), n_slices=2, slice_mm=8.0, noise=(0.01, 0.01), bias=0.02, spread=1.5
)
PROTOCOLS = (
    Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=0.5),
    Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0),
    Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=2.0),
)
GAINS = torch.tensor([700.0, 2.0, 0.3])


@pytest.fixture(scope="module")
def person() -> tuple[Slices, Truth]:
    slices, truth, _ = session_of(Subject("sub-0001", "test", "mni152", FIRST), RECIPE, PROTOCOLS)
    return slices, truth


def solid(truth: Truth) -> torch.Tensor:
    """True maps, and the prior's medians in air."""
    return torch.where(truth.maps > 1e-3, truth.maps, torch.tensor(PRIOR_MEDIANS).view(3, 1, 1))


def seeing(monkeypatch, maps: torch.Tensor):
    """A VAE whose encoder sees these maps, whatever the scans."""
    monkeypatch.setattr(inference, "infer", lambda *_, **__: (None, TissueMaps.from_stack(maps)))


def wrong(truth: Truth) -> torch.Tensor:
    """What an encoder far from its protocols sees: T1 30 % long, T2 15 % short."""
    return solid(truth) * torch.tensor([1.0, 1.3, 0.85]).view(3, 1, 1)


def over_peaks(slices: Slices) -> Scans:
    return Scans(slices.images / slices.images.amax((0, 2, 3))[:, None, None], slices.settings, slices.observed)


def error(estimate: torch.Tensor, truth: Truth, tissue: str, p: int) -> float:
    pure = truth.tissue(tissue, 0.95)
    return float((estimate[:, p][pure] / truth.maps[:, p][pure] - 1).abs().median())


def test_slices_of_two_sessions_are_refused(person):
    slices, _ = person
    with pytest.raises(ValueError, match="explain one session at a time"):
        explain(None, replace(slices, subject=torch.tensor([0, 1])))


def test_what_the_encoder_got_wrong_the_scans_set_right(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    found = explain(None, slices)
    white = truth.maps[:, 1][truth.tissue("WM", 0.95)].median()
    assert found.tissues[0, 1] == pytest.approx(float(white), rel=0.07)
    for tissue in ("WM", "GM"):
        assert error(wrong(truth), truth, tissue, 1) == pytest.approx(0.3, abs=1e-3)
        assert error(found.maps.stack(), truth, tissue, 1) < 0.06
    assert found.misfit.isfinite().all() and (found.noise > 0).all()


def test_moving_brings_pixels_nearer_to_the_scans(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    moved = explain(None, slices).misfit
    monkeypatch.setattr(inference, "ROUNDS", 0)
    assert (moved < 0.7 * explain(None, slices).misfit).all()


def test_a_scan_s_unit_is_its_own(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    one, other = (explain(None, s) for s in (slices, replace(slices, images=slices.images * GAINS[:, None, None])))
    torch.testing.assert_close(other.maps.stack(), one.maps.stack(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.gain / one.gain, GAINS, rtol=1e-3, atol=0)
    torch.testing.assert_close(other.noise / one.noise, GAINS, rtol=1e-3, atol=0)


def test_a_scan_that_nothing_shows_changes_nothing(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    shown = torch.tensor([True, True, False]).expand(len(slices), -1)
    other = slices.images.clone()
    other[:, 2] = 5 * other[:, 2].flip(-1) + 100
    one, two = (explain(None, replace(slices, images=images), shown) for images in (slices.images, other))
    assert torch.equal(one.maps.stack(), two.maps.stack()) and torch.equal(one.tissues, two.tissues)
    two_alone = Slices(
        slices.images[:, :2], slices.settings[:, :2], slices.observed[:, :2], slices.subject, slices.position
    )
    torch.testing.assert_close(explain(None, two_alone).maps.stack(), one.maps.stack(), rtol=1e-4, atol=1e-5)


def test_a_signed_scan_keeps_its_sign(person, monkeypatch):
    slices, truth = person
    settings = torch.stack([replace(p, signed=p.sequence.inverts).settings() for p in PROTOCOLS]).expand(2, -1, -1)
    clean = GAINS[:, None, None] * shown_signal(truth.maps.clamp_min(1e-3).unbind(1), settings)
    noise = 0.01 * GAINS[:, None, None] * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    real = replace(slices, images=clean + noise, settings=settings)
    seeing(monkeypatch, wrong(truth))
    found = explain(None, real)
    again = found.gain[:, None, None] * shown_signal(found.maps, settings)
    white = truth.tissue("WM", 0.95)
    assert float(real.images[:, 0][white].median()) < 0  # before its null point at TI 0.5 s
    assert float((again[:, 0][white] < 0).float().mean()) > 0.99
    assert error(found.maps.stack(), truth, "WM", 1) < 0.06


def test_nobody_s_tissue_is_found_where_there_is_too_little(person, monkeypatch):
    slices, truth = person
    empty = replace(slices, images=slices.images * (torch.arange(160) < 16))  # a strip of air and scalp
    seeing(monkeypatch, solid(truth))
    found = explain(None, empty)
    assert found.maps.stack().isfinite().all() and found.tissues.isfinite().all()


@pytest.mark.parametrize("lost", [False, True])
def test_pixels_that_are_called_a_tissue_hold_it(person, lost):
    """Also where the encoder takes fluid for grey matter: then the literature's signals tell it."""
    slices, truth = person
    scans = over_peaks(slices)
    seen = wrong(truth)
    if lost:
        seen[:, 1].clamp_(max=1.8)
        seen[:, 2].clamp_(max=0.1)
    opinions = three_tissues(seen, scans)
    assert len(opinions) == 2
    for masks in opinions[int(lost) :]:
        for name, mask in zip(("WM", "GM", "CSF"), masks, strict=True):
            assert mask.sum() >= ENOUGH
            assert float((truth.tissue(name, 0.5)[mask]).float().mean()) > 0.85
        assert not (masks[0] & masks[1]).any() and not (masks[1] & masks[2]).any()


def test_the_opinion_that_tissue_explains_best_is_taken(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    white, grey, fluid = (truth.tissue(name, 0.95) for name in ("WM", "GM", "CSF"))
    maps = []
    for opinions in ([[white, grey, fluid]], [[grey, fluid, white], [white, grey, fluid], [fluid, white, grey]]):
        monkeypatch.setattr(inference, "three_tissues", lambda *_, said=opinions: said)
        maps.append(explain(None, slices).maps.stack())
    assert torch.equal(*maps)


def test_an_opinion_without_fluid_does_not_win_by_having_fewer_signals(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    white, grey, fluid = (truth.tissue(name, 0.95) for name in ("WM", "GM", "CSF"))
    without = [white | fluid, grey, torch.zeros_like(fluid)]  # an encoder that sees no fluid takes it for white matter
    maps = []
    for opinions in ([[white, grey, fluid]], [without, [white, grey, fluid]]):
        monkeypatch.setattr(inference, "three_tissues", lambda *_, said=opinions: said)
        maps.append(explain(None, slices).maps.stack())
    assert torch.equal(*maps)


def test_where_signals_hardly_differ_what_the_encoder_sees_about_a_pixel_counts():
    """Two echoes of a T2w sequence: white and grey matter are a few percent apart, less than the noise."""
    late = (Protocol(Sequence.SPIN_ECHO, te=0.02, tr=2.2), Protocol(Sequence.SPIN_ECHO, te=0.03, tr=2.2))
    noisy = replace(RECIPE, noise=(0.03, 0.03))
    slices, truth, _ = session_of(Subject("sub-0001", "test", "mni152", FIRST), noisy, late)
    scans = over_peaks(slices)
    white, grey, _ = three_tissues(solid(truth), scans)[0]
    assert float(truth.tissue("WM", 0.5)[white].float().mean()) > 0.9
    assert float(truth.tissue("GM", 0.5)[grey].float().mean()) > 0.75


def test_gains_that_are_known_are_kept(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    free = explain(None, slices)
    known = explain(None, slices, gain=1.3 * free.gain)
    torch.testing.assert_close(known.gain, 1.3 * free.gain, rtol=0.05, atol=0)


def test_white_and_grey_matter_that_the_encoder_swaps_are_swapped_back(person, monkeypatch):
    slices, truth = person
    seeing(monkeypatch, wrong(truth))
    white, grey, fluid = (truth.tissue(name, 0.95) for name in ("WM", "GM", "CSF"))
    found = []
    for opinion in ([white, grey, fluid], [grey, white, fluid]):
        monkeypatch.setattr(inference, "three_tissues", lambda *_, said=opinion: [said])
        found.append(explain(None, slices))
    torch.testing.assert_close(found[1].tissues, found[0].tissues)
    torch.testing.assert_close(found[1].maps.stack(), found[0].maps.stack())


def test_cortex_that_the_encoder_takes_for_fluid_becomes_cortex(person, monkeypatch):
    """Its signals are far from those of fluid, and from there no small step leads back."""
    slices, truth = person
    seen, grey = wrong(truth), truth.tissue("GM", 0.95)
    seen[:, 1][grey], seen[:, 2][grey] = 3.5, 1.0
    seeing(monkeypatch, seen)
    found = explain(None, slices).maps.stack()
    assert error(found, truth, "GM", 1) < 0.06
    assert error(found, truth, "GM", 2) < 0.1


def test_bone_is_empty_and_fat_is_fat_whatever_the_encoder_sees():
    """Around the brain it sees half of everything; signals say how much of a voxel fat fills, and where nothing is."""
    protocols = (Protocol(Sequence.MPRAGE, te=0.003, tr=2.4, ti=1.0), *PROTOCOLS[1:])
    settings = torch.stack([p.settings() for p in protocols])[None]
    white, grey, fluid = torch.tensor(list(three_medians().values()))
    fat = torch.from_numpy(in_vivo_3t().median[TISSUES.index("fat")]).float()
    at = torch.arange(64) - 31.5
    radius = (at[:, None] ** 2 + at**2).sqrt()
    brain, ring, rim = radius < 20, (radius > 23) & (radius < 27), (radius >= 27) & (radius < 28)
    part = brain + ring + 0.4 * rim
    true = torch.where(brain, white[:, None, None], fat[:, None, None])[None]
    images = part * shown_signal(true.unbind(1), settings) + 1e-3
    blur = torch.where(brain, true, torch.tensor([0.5, 1.0, 0.05])[None, :, None, None])
    scans = Scans(images, settings, torch.ones(1, 3, dtype=torch.bool))
    found = inference.where_signals_are(blur, torch.stack([white, grey, fluid]), scans, torch.ones(3))[0]
    assert (found[0][(radius > 22) & (radius < 23)] < 0.05).all()
    assert (found[0][radius > 29] < 0.05).all()
    torch.testing.assert_close(found[1][ring], fat[1].expand_as(found[1][ring]))
    assert found[0][rim].median().item() == pytest.approx(0.4 * fat[0].item(), abs=0.05)
    assert torch.equal(found[:, brain], true[0][:, brain])


def test_fluid_starts_at_the_t2_that_its_t1_implies():
    """Between grey matter and fluid in proportion, at fluid's own where it is fluid; tissue is left as it is."""
    tissues = torch.tensor([[0.7, 0.9, 0.07], [0.8, 1.4, 0.08], [1.0, 4.2, 2.0]])
    seen = torch.tensor([[0.8, 1.5, 0.1], [0.95, (1.4 * 4.2**3) ** 0.25, 0.5], [1.0, 4.2, 1.0]]).T[None, :, :, None]
    found = inference.toward_fluid(seen, tissues)[0, 2, :, 0]
    torch.testing.assert_close(found, torch.tensor([0.1, (0.08 * 2.0**3) ** 0.25, 2.0]), rtol=1e-4, atol=0)
