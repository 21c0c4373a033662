"""Sets of brains are told apart when they differ, and not when they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from phyldm_core.evaluation import brain_sets
from phyldm_core.evaluation.brain_sets import (
    Population,
    compare,
    density_coverage,
    features,
    frechet,
    memorised,
    novelty,
    pictures,
)
from phyldm_core.people.anatomy import Deformation
from phyldm_core.people.cohort import CohortRecipe, Subject, simulate
from phyldm_core.physics import TissueMaps

VOXEL_MM = 3.0
RECIPE = CohortRecipe(voxel_mm=VOXEL_MM, slice_mm=6.0, shape=(72, 56), n_slices=4, deformation=Deformation())


@pytest.fixture(scope="module")
def brains() -> torch.Tensor:
    """Forty true slices of ten people, ``(n, 3, y, x)``."""
    made = [simulate(Subject("", "test", "mni152", i), RECIPE).maps for i in range(10)]
    return torch.cat(made)


def population(maps: torch.Tensor) -> Population:
    return Population(TissueMaps.from_stack(maps), np.arange(len(maps)) // RECIPE.n_slices, VOXEL_MM)


def blurred(maps: torch.Tensor, sd: float) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(maps.numpy(), (0, 0, sd, sd)))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return frechet(*(features(pictures(TissueMaps.from_stack(maps))) for maps in (one, other)))


def test_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    one = rng.normal(0, 1, (200_000, 2))
    other = rng.normal([1, 0], [2, 1], (200_000, 2))
    assert frechet(one, other) == pytest.approx(1 + (2 - 1) ** 2, rel=0.02)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_grows_with_blur_noise_and_wrong_tissue(brains):
    same, other = brains[:20], brains[20:]
    floor = distance(same, other)
    by_blur = [distance(blurred(same, sd), other) for sd in (0.5, 1.0, 2.0)]
    assert 1.5 * floor < by_blur[0] < by_blur[1] < by_blur[2]
    noise = torch.randn(same.shape, generator=torch.Generator().manual_seed(0))
    by_noise = [distance(same * (sd * noise).exp(), other) for sd in (0.05, 0.1, 0.2)]
    assert floor < by_noise[0] < by_noise[1] < by_noise[2]
    by_t1 = [distance(same * torch.tensor([1, f, 1])[:, None, None], other) for f in (1.1, 1.2, 1.4)]
    assert floor < by_t1[0] < by_t1[1] < by_t1[2]


def test_the_space_of_features_is_fixed(brains):
    images = pictures(TissueMaps.from_stack(brains[:3]))
    torch.testing.assert_close(brain_sets.RandomFeatures()(images), brain_sets.RandomFeatures()(images))
    assert not torch.allclose(brain_sets.RandomFeatures()(images), brain_sets.RandomFeatures(seed=1)(images))
    assert features(images).shape == (3, brain_sets.N_FEATURES)


def test_density_and_coverage_tell_one_mode_from_all():
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.normal(m, 0.3, (200, 2)) for m in (0, 10)])
    alike = np.concatenate([rng.normal(m, 0.3, (200, 2)) for m in (0, 10)])
    density, coverage = density_coverage(alike, truth)
    assert density == pytest.approx(1, abs=0.15) and coverage > 0.95
    density, coverage = density_coverage(rng.normal(0, 0.3, (400, 2)), truth)  # collapsed to one mode
    assert density > 0.8 and coverage == pytest.approx(0.5, abs=0.05)
    density, coverage = density_coverage(alike + 100, truth)
    assert density == coverage == 0


def test_copies_of_training_slices_are_found_even_noisy_and_mirrored(brains):
    training, fresh = population(brains[:20]), population(brains[20:])
    mirrored = population(brains[:20].flip(-1)).thumbnails
    noise = torch.randn(8, *brains.shape[1:], generator=torch.Generator().manual_seed(0))
    copies = brains[:8].flip(-1) * (0.03 * noise).exp()
    drawn = population(torch.cat([copies, brains[20:28]]))
    everything = np.concatenate([training.thumbnails, mirrored])
    nearest, limit = memorised(drawn.thumbnails, everything, fresh.thumbnails)
    assert (nearest[:8] < limit).all() and not (nearest[8:] < limit).any()
    table = novelty(drawn, everything, fresh, fresh).set_index(["metric", "inputs"]).value
    assert table["memorised", "generated"] == 0.5 and table["memorised", "true, held out"] == 0


def test_true_people_are_at_the_floor_and_blurred_ones_are_not(brains):
    true = population(brains)
    worse = blurred(brains, 1.0) * torch.tensor([1.0, 1.1, 1.0])[:, None, None]
    table = compare(population(worse), true, {"true, again": true}, n_halvings=6)
    values = table.set_index(["metric", "quantity", "tissue", "inputs"]).value
    floor = values["frechet", "", "", "true, other half"]
    assert values["frechet", "", "", "generated"] > 3 * floor > values["frechet", "", "", "true, again"]
    assert values["wasserstein", "T1", "GM", "generated"] > 2 * values["wasserstein", "T1", "GM", "true, other half"]
    assert values["coverage", "", "", "generated"] < values["coverage", "", "", "true, other half"]
    assert ((table.low <= table.value) & (table.value <= table.high)).all() and set(table.n) == {5}
    shares = [values["share", "volume share", t, "true, other half"] for t in ("CSF", "GM", "WM")]
    assert sum(shares) == pytest.approx(1)


def test_one_brain_drawn_over_and_over_has_no_diversity(brains):
    true = population(brains)
    collapsed = compare(population(brains[:1].repeat(40, 1, 1, 1)), true, {}, n_halvings=2)
    values = collapsed.set_index(["metric", "quantity", "tissue", "inputs"]).value
    assert values["diversity", "", "", "generated"] < 1e-9 < values["diversity", "", "", "true, other half"]
