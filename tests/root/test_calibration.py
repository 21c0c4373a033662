"""An SD that misses an error is mended by what validation people show, and only as far as they show it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from phyldm_core import calibration
from phyldm_core.calibration import (
    PEOPLE_SD,
    T1_NODES,
    calibrate,
    calibrate_local,
    calibrated,
    honest_sd,
    local_sd,
    read_calibration,
)
from phyldm_core.inference import Explained
from phyldm_core.people.cohort import CohortRecipe
from phyldm_core.people.held_out import draw_people
from phyldm_core.physics import TissueMaps
from phyldm_core.weights import load_weights

RECIPE = CohortRecipe(voxel_mm=4.0, slice_mm=6.0, shape=(56, 48), n_slices=3)


@pytest.fixture(scope="module")
def people():
    return list(draw_people(RECIPE, ("mni152",), 6))


def wrong_by(monkeypatch, people, shares, sampled: float):
    """A model whose log maps are off by Gaussians of ``shares``, and whose samples spread by ``sampled``."""
    generator, off = torch.Generator().manual_seed(0), torch.tensor(shares)[:, None, None]
    truths = {id(s): p.truth.maps.clamp_min(1e-3) for p in people for s in (p.common, p.scanned)}

    def infer(vae, slices, common, shown):
        true = truths[id(slices)]
        maps = true * (off * torch.randn(true.shape, generator=generator)).exp()
        return maps, TissueMaps.from_stack(maps)

    monkeypatch.setattr(calibration, "infer", infer)
    monkeypatch.setattr(calibration, "posterior_sd", lambda v, maps, n, g: TissueMaps.from_stack(sampled * maps))
    return infer


def test_what_is_missing_is_found_and_the_interval_covers_new_people(people, monkeypatch):
    shares, sampled = (0.03, 0.06, 0.2), 0.02
    infer = wrong_by(monkeypatch, people, shares, sampled)
    found = calibrate(None, people[:3])
    for quantity, share in zip(("T1", "T2"), shares[1:], strict=True):
        missing = found["missing"]["any gain"]["MPRAGE + spin echo + FLAIR"][quantity]
        assert missing[2] == pytest.approx((share**2 - sampled**2) ** 0.5, rel=0.2)
    for person in people[3:]:
        _, maps = infer(None, person.common, True, None)
        sd = TissueMaps.from_stack(sampled * maps.stack())
        honest = honest_sd(sd, maps, person.common, True, found)
        for p in (1, 2):
            off = (maps[p] - person.truth.maps[:, p]).abs()[person.truth.brain]
            covered = [float((off <= 1.645 * s[p][person.truth.brain]).float().mean()) for s in (sd, honest)]
            assert covered[0] < 0.6 and covered[1] == pytest.approx(0.9, abs=0.04)


def test_an_sd_that_is_wide_enough_is_left_alone(people, monkeypatch):
    wrong_by(monkeypatch, people, (0.02, 0.02, 0.02), 0.5)
    found = calibrate(None, people[:2], scales=(False,))
    assert set(found["missing"]) == {"any gain"}
    assert max(v for of in found["missing"]["any gain"].values() for row in of.values() for v in row) == 0


def test_scans_that_were_never_shown_and_weights_without_a_calibration_keep_their_sd(people):
    slices, maps = people[0].common, TissueMaps.from_stack(people[0].truth.maps)
    sd = TissueMaps.from_stack(0.1 * maps.stack())
    row = {"PD": [0.1] * len(T1_NODES), "T1": [0.2] * len(T1_NODES), "T2": [0.3] * len(T1_NODES)}
    known = {"t1_nodes": list(T1_NODES), "missing": {"any gain": {"MPRAGE": row}}}
    for table, common in ((None, False), (known, True), (known, False)):
        for one, other in zip(honest_sd(sd, maps, slices, common, table), sd, strict=True):
            assert torch.equal(one, other)
    shown = torch.tensor([True, False, False]).expand(len(slices), -1)
    wider = honest_sd(sd, maps, slices, False, known, shown)
    inside = people[0].truth.brain
    expected = torch.full_like(maps.t1[inside], (0.1**2 + 0.2**2) ** 0.5)
    torch.testing.assert_close((wider.t1 / maps.t1)[inside], expected, rtol=1e-4, atol=1e-6)
    two = replace(slices, settings=slices.settings[:, [0, 0, 2]])  # two scans of one sequence tell as one kind
    both = torch.tensor([True, True, False]).expand(len(slices), -1)
    torch.testing.assert_close(honest_sd(sd, maps, two, False, known, both).t1, wider.t1)


def test_training_leaves_a_calibration_that_travels_with_the_weights(smoke_run, tmp_path):
    from phyldm_core.running.export import export_weights

    kept = read_calibration(smoke_run.folder / "vae")
    assert kept["heads"] == ["mni152"] and set(kept["missing"]) == {"common scale", "any gain"}
    assert export_weights(smoke_run, tmp_path / "w").calibration == load_weights(smoke_run.folder).calibration == kept


# --- of maps that the scans explained ---------------------------------------------------------------


def explained_as(slices, maps: torch.Tensor) -> Explained:
    """Maps ``(n, 3, y, x)`` with gains of 1 and a noise of 1 %."""
    n, m = slices.observed.shape
    inside = torch.where(maps > 1e-3, maps, torch.tensor([0.7, 1.0, 0.1]).view(3, 1, 1))
    one, noise = torch.ones(m), torch.full((m,), 0.01)
    return Explained(TissueMaps.from_stack(inside), torch.ones(3, 3), torch.zeros(3, 3), one, noise, torch.zeros(n))


def shown(slices, *which: bool) -> torch.Tensor:
    return torch.tensor(which).expand(len(slices), -1)


def test_a_scan_more_makes_no_sd_wider(people):
    slices, maps = people[0].common, people[0].truth.maps
    found = explained_as(slices, maps)
    sds = [local_sd(found, slices, shown(slices, *(i < n for i in range(3)))).stack() for n in range(4)]
    for fewer, more in zip(sds, sds[1:], strict=False):
        assert (more <= fewer * (1 + 1e-3)).all()
    brain = people[0].truth.brain
    assert (sds[3][:, 1][brain].median() < 0.6 * sds[0][:, 1][brain].median()).all()


def test_what_no_scan_tells_is_as_wide_as_people_are(people):
    slices, maps = people[0].common, people[0].truth.maps
    found = explained_as(slices, maps)
    of_nothing = local_sd(found, slices, shown(slices, False, False, False))
    torch.testing.assert_close(of_nothing.t2, PEOPLE_SD[2] * found.maps.t2, rtol=1e-3, atol=1e-5)
    assert (of_nothing.t1 <= PEOPLE_SD[1] * found.maps.t1 * 1.001).all()  # the water line joins it to PD
    inside = people[0].truth.tissue("WM", 0.95)
    after_t1w = (local_sd(found, slices, shown(slices, True, False, False)).t2 / found.maps.t2)[inside]
    assert after_t1w.median() > 0.95 * PEOPLE_SD[2]  # an MPRAGE of a TE of 3 ms says nothing of T2
    after_t2w = (local_sd(found, slices, shown(slices, True, True, False)).t2 / found.maps.t2)[inside]
    assert after_t2w.median() < 0.6 * PEOPLE_SD[2]


def test_a_scan_that_was_not_shown_has_no_gain_and_leaves_the_sd_finite(people):
    slices, maps = people[0].common, people[0].truth.maps
    found = explained_as(slices, maps)
    hidden = found._replace(gain=torch.tensor([1.0, 0.0, 0.0]), noise=torch.tensor([0.01, 0.0, 0.0]))
    sd = local_sd(hidden, slices, shown(slices, True, False, False)).stack()
    torch.testing.assert_close(sd, local_sd(found, slices, shown(slices, True, False, False)).stack())


def test_factors_make_an_sd_cover_new_people(people, monkeypatch):
    generator, off = torch.Generator().manual_seed(0), torch.tensor([0.02, 0.1, 0.3])[:, None, None]
    made = {}

    def explain(vae, slices):
        true = next(p.truth.maps for p in people if p.scanned is slices)
        near = torch.where(true > 1e-3, true, 1.0) * (off * torch.randn(true.shape, generator=generator)).exp()
        made[id(slices)] = explained_as(slices, near)
        return made[id(slices)]

    monkeypatch.setattr(calibration, "explain", explain)
    monkeypatch.setattr(calibration, "local_sd", lambda found, *_: TissueMaps.from_stack(0.05 * found.maps.stack()))
    factors = calibrate_local(None, [(p.scanned, p.truth) for p in people[:4]])
    for quantity, node, expected in (("T1", 1, 2.0), ("T2", 2, 6.0)):  # T1 chooses the node: there most of WM lies
        assert factors[quantity][node] == pytest.approx(expected, rel=0.25)
    held = {1: [], 2: []}
    for person in people[4:]:
        maps = explain(None, person.scanned).maps
        pure = torch.stack([person.truth.tissue(name, 0.9) for name in ("WM", "GM", "CSF")]).any(0)
        sd = calibrated(TissueMaps.from_stack(0.05 * maps.stack()), maps, factors)
        for p, within in held.items():
            within.append((maps[p] - person.truth.maps[:, p]).abs()[pure] <= 1.645 * sd[p][pure])
    for within in held.values():
        assert float(torch.cat(within).float().mean()) == pytest.approx(0.9, abs=0.05)


def test_factors_follow_t1_and_none_leaves_the_sd(people):
    maps = TissueMaps.from_stack(people[0].truth.maps.clamp_min(0.5))
    sd = TissueMaps.from_stack(0.1 * maps.stack())
    assert calibrated(sd, maps, None) is sd
    row = [float(i + 1) for i in range(len(T1_NODES))]
    wider = calibrated(sd, maps, {"PD": row, "T1": row, "T2": row})
    times = wider.t1 / sd.t1
    assert torch.allclose(times, wider.t2 / sd.t2) and times.min() >= 1 and times.max() <= len(row)
    short, long = maps.t1 <= T1_NODES[0], maps.t1 >= T1_NODES[-1]
    assert (times[short] == 1).all() and torch.allclose(times[long], torch.tensor(float(len(row))))
