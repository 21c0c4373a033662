"""Rivals are strong: where a fit can know the truth it finds it, and priors help where the scans say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phyldm_core.physics import Protocol, TissueMaps, signed_signal
from phyldm_core.slices import Slices
from phyldm_core.tissue import TISSUES, in_vivo_3t
from phyldm_core.voxelwise import baselines
from phyldm_core.voxelwise.least_squares import noise_of

MEDIAN = in_vivo_3t().median
ROWS = [TISSUES.index(name) for name in ("WM", "GM", "CSF")]
PROTOCOLS = [Protocol("MPRAGE", 0.003, 2.4, 1.0), Protocol("spin echo", 0.1, 3.2), Protocol("FLAIR", 0.091, 9.0, 2.5)]
LABELS = torch.arange(3).repeat_interleave(8).repeat(24, 1)  # stripes of WM, GM, CSF


def head(
    maps: torch.Tensor, protocols=PROTOCOLS, noise: float = 0.0, gains=(1.0, 1.0, 1.0)
) -> tuple[Slices, torch.Tensor]:
    """Scans of maps ``(3, y, x)`` in a frame of air, and where the brain is."""
    framed = torch.nn.functional.pad(maps, (8, 8, 8, 8))
    settings = torch.stack([p.settings() for p in protocols])[None]
    images = signed_signal(TissueMaps(*framed[:, None]), settings).abs() * torch.tensor(gains)[:, None, None]
    generator = torch.Generator().manual_seed(0)
    peak = images.amax((2, 3), keepdim=True)
    first, second = (noise * peak * torch.randn(images.shape, generator=generator) for _ in range(2))
    images = ((images + first) ** 2 + second**2).sqrt()
    observed = torch.ones(1, len(protocols), dtype=torch.bool)
    return Slices(images, settings, observed, torch.zeros(1, dtype=torch.long), torch.zeros(1)), framed[None, 0] > 0


def typical(factors=(1.0, 1.0, 1.0)) -> torch.Tensor:
    """WM, GM, CSF of the literature, PD, T1, T2 each times a factor, ``(3, y, x)``."""
    values = torch.from_numpy(MEDIAN[ROWS].T).float() * torch.tensor(factors)[:, None]
    return values[:, LABELS]


def errors(maps: TissueMaps, truth: torch.Tensor, tissue: int) -> list[float]:
    """Median absolute relative error of PD, T1, T2 where ``LABELS`` are ``tissue``."""
    inside = (slice(None), slice(8, -8), slice(8, -8))
    found = [((m[inside][0] - t).abs() / t)[tissue == LABELS].median() for m, t in zip(maps, truth, strict=True)]
    return [float(value) for value in found]


@pytest.mark.parametrize("tissue", [0, 1])
def test_a_noiseless_voxel_is_fitted_to_less_than_a_per_cent(tissue):
    # three spin echoes and an inversion: every quantity shows, and no null point is near
    telling = [Protocol("spin echo", 0.02, 1.0), Protocol("spin echo", 0.12, 6.0), Protocol("MPRAGE", 0.003, 3.0, 0.35)]
    truth = typical((0.97, 1.1, 0.9))
    slices, brain = head(truth, telling)
    found = baselines.least_squares(slices, brain, priors=False, n_steps=60)
    assert max(errors(found, truth, tissue)) < 0.01
    assert found.pd[~brain].abs().max() == 0


def test_priors_help_where_the_scans_hardly_tell():
    truth = typical()
    slices, brain = head(truth, noise=0.02)
    alone, helped = (baselines.least_squares(slices, brain, priors=priors) for priors in (False, True))
    for tissue in (0, 1):
        assert errors(helped, truth, tissue)[1] < 0.5 * errors(alone, truth, tissue)[1]
        assert max(errors(helped, truth, tissue)) < 0.1


def test_noise_is_told_from_air():
    slices, brain = head(typical(), noise=0.02)
    peaks = head(typical())[0].images.amax((2, 3))[0]
    np.testing.assert_allclose(noise_of(slices, brain), 0.02 * peaks, rtol=0.05)


def test_a_reference_tissue_tells_the_gains():
    gains = (250.0, 900.0, 1700.0)
    slices, brain = head(typical(), noise=0.005, gains=gains)
    np.testing.assert_allclose(baselines.reference_gains(slices, brain, (True,) * 3), gains, rtol=0.02)
    scaled = baselines.least_squares(slices, brain, common_scale=False)
    common = baselines.least_squares(head(typical(), noise=0.005)[0], brain)
    for one, other in zip(scaled, common, strict=True):
        assert ((one - other).abs() / other)[brain].median() < 0.02


@pytest.mark.parametrize("m", [0, 1, 2])
def test_any_one_scan_is_segmented_in_the_order_its_protocol_gives(m):
    shown = tuple(i == m for i in range(3))
    slices, brain = head(typical(), noise=0.005)
    labels = baselines.segment(slices, brain, shown)[0, 8:-8, 8:-8]
    assert (labels == 3 - LABELS.numpy()).mean() > 0.95  # CSF, GM, WM are 1, 2, 3
    painted = baselines.literature(slices, brain, shown)
    assert max(errors(painted, typical(), 0)) < 1e-6 and painted.pd[~brain].abs().max() == 0


def test_a_hidden_scan_changes_nothing():
    slices, brain = head(typical(), noise=0.02)
    other = Slices(
        slices.images.clone(), *(getattr(slices, n) for n in ("settings", "observed", "subject", "position"))
    )
    other.images[:, 2] *= 7
    shown = (True, True, False)
    for rival in (baselines.least_squares, lambda *a: baselines.dictionary(*a)[0]):
        for one, two in zip(rival(slices, brain, shown), rival(other, brain, shown), strict=True):
            assert torch.equal(one, two)


def test_atoms_are_the_cohort_s_tissue():
    pd, t1, t2 = baselines.atoms(4000, seed=1)
    assert pd.min() > 0.5 and pd.max() <= 1.05
    for name in ("WM", "CSF"):  # the ends of all mixtures are there
        middle = MEDIAN[TISSUES.index(name)]
        near = ((t1 / middle[1]).log().abs() < 0.1) & ((t2 / middle[2]).log().abs() < 0.1)
        assert near.sum() > 100


def test_bayes_is_right_on_average_and_as_often_as_its_sd_says():
    truth = baselines.atoms(48 * 48, seed=5).reshape(3, 48, 48).float()
    slices, brain = head(truth, noise=0.01)
    maps, sd = baselines.dictionary(slices, brain, n_atoms=20000, field=1e-3)
    inside = (0, slice(8, -8), slice(8, -8))
    for p, (limit, middle) in enumerate(((0.03, 0.02), (0.03, 0.02), (0.15, 0.05))):
        off = maps[p][inside] - truth[p]
        assert (off.abs() / truth[p]).median() < limit and (off / truth[p]).median().abs() < middle
        covered = float((off.abs() <= 1.645 * sd[p][inside]).float().mean())
        assert 0.8 < covered < 0.98
