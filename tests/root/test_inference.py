"""Scans have the last word: three tissues tell the gains, and maps move until signal equations explain the scans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from phyldm_core import inference
from phyldm_core.inference import ENOUGH, Scans, explain, set_right, three_tissues
from phyldm_core.people.cohort import CohortRecipe, Subject
from phyldm_core.people.held_out import FIRST, session_of
from phyldm_core.physics import Protocol, Sequence, TissueMaps, shown_signal
from phyldm_core.slices import Slices, Truth
from phyldm_core.vae import PRIOR_MEDIANS, Posterior

RECIPE = CohortRecipe(
    voxel_mm=1.0, shape=(224, 160), n_slices=2, slice_mm=8.0, noise=(0.01, 0.01), bias=0.02, spread=1.5
)
PROTOCOLS = (
    Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=0.5),
    Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0),
    Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=2.0),
)
GAINS = torch.tensor([700.0, 2.0, 0.3])


class Free:
    """A decoder of no opinion: its latents are the log maps themselves."""

    log_medians = torch.tensor(PRIOR_MEDIANS).log().view(3, 1, 1)

    def decode_log(self, z):
        return z

    def decode(self, z):
        return TissueMaps.from_stack((z + self.log_medians).exp())


@pytest.fixture(scope="module")
def person() -> tuple[Slices, Truth]:
    slices, truth, _ = session_of(Subject("sub-0001", "test", "mni152", FIRST), RECIPE, PROTOCOLS)
    return slices, truth


def solid(truth: Truth) -> torch.Tensor:
    """True maps, and the prior's medians in air."""
    return torch.where(truth.maps > 1e-3, truth.maps, torch.tensor(PRIOR_MEDIANS).view(3, 1, 1))


def seeing(monkeypatch, maps: torch.Tensor) -> Free:
    """A VAE whose encoder sees these maps, whatever the scans."""
    logs = maps.log() - Free.log_medians

    def infer(vae, slices, *_, **__):
        return Posterior(logs, torch.zeros_like(logs)), TissueMaps.from_stack(maps)

    monkeypatch.setattr(inference, "infer", infer)
    return Free()


def wrong(truth: Truth) -> torch.Tensor:
    """What an encoder far from its protocols sees: T1 30 % long, T2 15 % short."""
    return solid(truth) * torch.tensor([1.0, 1.3, 0.85]).view(3, 1, 1)


def error(estimate: torch.Tensor, truth: Truth, tissue: str, p: int) -> float:
    pure = truth.tissue(tissue, 0.95)
    return float((estimate[:, p][pure] / truth.maps[:, p][pure] - 1).abs().median())


def test_slices_of_two_sessions_are_refused(person):
    slices, _ = person
    with pytest.raises(ValueError, match="explain one session at a time"):
        explain(Free(), replace(slices, subject=torch.tensor([0, 1])))


def test_what_the_encoder_got_wrong_the_scans_set_right(person, monkeypatch):
    slices, truth = person
    found = explain(seeing(monkeypatch, wrong(truth)), slices)
    white = truth.maps[:, 1][truth.tissue("WM", 0.95)].median()
    assert found.tissues[0, 1] == pytest.approx(float(white), rel=0.07)
    for tissue in ("WM", "GM"):
        assert error(wrong(truth), truth, tissue, 1) == pytest.approx(0.3, abs=1e-3)
        assert error(found.maps.stack(), truth, tissue, 1) < 0.06
    assert found.misfit.isfinite().all() and (found.noise > 0).all()


def test_steps_bring_maps_nearer_to_the_scans(person, monkeypatch):
    slices, truth = person
    vae = seeing(monkeypatch, wrong(truth))
    assert (explain(vae, slices).misfit < explain(vae, slices, steps=0).misfit).all()


def test_a_scan_s_unit_is_its_own(person, monkeypatch):
    slices, truth = person
    vae = seeing(monkeypatch, wrong(truth))
    one, other = (explain(vae, s) for s in (slices, replace(slices, images=slices.images * GAINS[:, None, None])))
    torch.testing.assert_close(other.maps.stack(), one.maps.stack(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.gain / one.gain, GAINS, rtol=1e-3, atol=0)
    torch.testing.assert_close(other.noise / one.noise, GAINS, rtol=1e-3, atol=0)


def test_a_scan_that_nothing_shows_changes_nothing(person, monkeypatch):
    slices, truth = person
    vae, shown = seeing(monkeypatch, wrong(truth)), torch.tensor([True, True, False]).expand(len(slices), -1)
    other = slices.images.clone()
    other[:, 2] = 5 * other[:, 2].flip(-1) + 100
    one, two = (explain(vae, replace(slices, images=images), shown, steps=3) for images in (slices.images, other))
    assert torch.equal(one.maps.stack(), two.maps.stack()) and torch.equal(one.tissues, two.tissues)
    two_alone = Slices(
        slices.images[:, :2], slices.settings[:, :2], slices.observed[:, :2], slices.subject, slices.position
    )
    torch.testing.assert_close(explain(vae, two_alone, steps=3).maps.stack(), one.maps.stack(), rtol=1e-4, atol=1e-5)


def test_a_signed_scan_keeps_its_sign(person, monkeypatch):
    slices, truth = person
    settings = torch.stack([replace(p, signed=p.sequence.inverts).settings() for p in PROTOCOLS]).expand(2, -1, -1)
    clean = GAINS[:, None, None] * shown_signal(truth.maps.clamp_min(1e-3).unbind(1), settings)
    noise = 0.01 * GAINS[:, None, None] * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    real = replace(slices, images=clean + noise, settings=settings)
    found = explain(seeing(monkeypatch, wrong(truth)), real)
    again = found.gain[:, None, None] * shown_signal(found.maps, settings)
    white = truth.tissue("WM", 0.95)
    assert float(real.images[:, 0][white].median()) < 0  # before its null point at TI 0.5 s
    assert float((again[:, 0][white] < 0).float().mean()) > 0.99
    assert error(found.maps.stack(), truth, "WM", 1) < 0.06


def test_nobody_s_tissue_is_found_where_there_is_too_little(person, monkeypatch):
    slices, truth = person
    empty = replace(slices, images=slices.images * (torch.arange(160) < 16))  # a strip of air and scalp
    found = explain(seeing(monkeypatch, solid(truth)), empty, steps=2)
    assert found.maps.stack().isfinite().all() and found.tissues.isfinite().all()


def test_pixels_that_are_called_a_tissue_hold_it(person):
    slices, truth = person
    scans = Scans(slices.images / slices.images.amax((0, 2, 3))[:, None, None], slices.settings, slices.observed)
    masks = three_tissues(wrong(truth), scans)
    for name, mask in zip(("WM", "GM", "CSF"), masks, strict=True):
        assert mask.sum() >= ENOUGH
        assert float((truth.tissue(name, 0.5)[mask]).float().mean()) > 0.85
    assert not (masks[0] & masks[1]).any() and not (masks[1] & masks[2]).any()


def test_setting_right_moves_each_tissue_s_median_to_the_person_s(person):
    _, truth = person
    masks = [truth.tissue(name, 0.95) for name in ("WM", "GM", "CSF")]
    tissues = torch.tensor([[0.7, 1.0, 0.08], [0.8, 1.5, 0.09], [1.0, 4.5, 2.0]])
    moved = set_right(solid(truth).log(), masks, tissues)
    for mask, values in zip(masks, tissues, strict=True):
        now = torch.stack([moved[:, q][mask].median() for q in range(3)]).exp()
        torch.testing.assert_close(now, values, rtol=0.03, atol=0)
    nothing = [torch.zeros_like(mask) for mask in masks]
    assert torch.equal(set_right(moved, nothing, tissues), moved)
