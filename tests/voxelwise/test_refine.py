"""A blurred map gets its edges back from the scans, keeps what they cannot tell, and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_baselines import LABELS, errors, head, typical
from torch.nn import functional

from phyldm_core.physics import TissueMaps
from phyldm_core.voxelwise.refine import TRUST, refine

BRAIN = (slice(None), slice(8, -8), slice(8, -8))


def network_s(truth: torch.Tensor, off: float = TRUST, blur: int = 1) -> TissueMaps:
    """What a network might say of maps ``(3, y, x)``: smooth across edges and a few per cent off, in a frame of air."""
    log = functional.pad(truth, (8, 8, 8, 8), value=0.1).log()[None]
    size = 2 * blur + 1
    smooth = functional.avg_pool2d(log, size, stride=1, padding=blur, count_include_pad=False)
    noise = functional.interpolate(
        torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(4)), smooth.shape[2:]
    )
    return TissueMaps.from_stack((smooth + off * noise).exp())


@pytest.fixture(scope="module")
def refined():
    truth = typical((0.98, 1.04, 0.95))
    slices, brain = head(truth, noise=0.01)
    before = network_s(truth)
    return truth, slices, brain, before, *refine(before, slices, brain, 1.0)


def test_edges_come_back(refined):
    truth, _, _, before, after, _ = refined
    at_edges = torch.isin(torch.arange(24), torch.tensor([7, 8, 15, 16])).expand_as(LABELS)
    for k in (1, 2):  # T1, T2
        off = [((maps[k][BRAIN][0] - truth[k]).abs() / truth[k])[at_edges].median() for maps in (before, after)]
        assert off[1] < 0.35 * off[0]


@pytest.mark.parametrize("tissue", [0, 1])
def test_inside_a_tissue_nothing_is_lost(refined, tissue):
    truth, _, _, before, after, _ = refined
    assert max(errors(after, truth, tissue)) < max(0.04, 1.2 * max(errors(before, truth, tissue)))


def test_the_sd_covers_the_truth_as_often_as_it_says(refined):
    truth, *_, after, sd = refined
    for k in range(3):
        inside = ((after[k][BRAIN][0] - truth[k]).abs() < 1.645 * sd[k][BRAIN][0]).float().mean()
        assert 0.75 < inside < 0.999


def test_outside_nothing_is_touched(refined):
    _, _, brain, before, after, sd = refined
    for one, other, spread in zip(before, after, sd, strict=True):
        np.testing.assert_allclose(other[~brain], one[~brain], rtol=1e-5)
        assert spread[~brain].abs().max() == 0 and spread[brain].min() > 0


def test_a_hidden_scan_is_not_looked_at(refined):
    truth, slices, brain, before, *_ = refined
    shown = torch.tensor([[True, False, True]])
    spoiled = head(truth, noise=0.01)[0]
    spoiled.images[:, 1] *= 3
    found = [refine(before, of, brain, 1.0, shown=shown)[0] for of in (slices, spoiled)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert (found[0].t2 - refined[4].t2).abs().max() > 0


def test_any_gain_gives_the_same_maps(refined):
    truth, slices, brain, before, *_ = refined
    scaled = head(truth, noise=0.01, gains=(250.0, 900.0, 1700.0))[0]
    one, other = (refine(before, of, brain, 1.0, common_scale=False)[0] for of in (slices, scaled))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_only_where_it_is_asked_to(refined):
    _, slices, brain, before, after, _ = refined
    where = torch.zeros_like(brain)
    where[0, 20, 10:20] = True
    some, sd = refine(before, slices, brain, 1.0, where=where)
    torch.testing.assert_close(some.t1[where], after.t1[where])
    torch.testing.assert_close(some.t1[~where], before.t1[~where])
    assert (sd.t1 > 0).equal(where)


def test_two_sessions_at_once_are_refused(refined):
    _, slices, brain, before, *_ = refined
    two = slices[torch.tensor([0, 0])]
    two.settings = two.settings.clone()
    two.settings[1, 0, 1] += 0.01
    twice = TissueMaps(*(m.repeat(2, 1, 1) for m in before))
    with pytest.raises(ValueError, match="one session at a time"):
        refine(twice, two, brain.repeat(2, 1, 1), 1.0)
