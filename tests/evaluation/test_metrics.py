"""Each number means what its docstring says."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest
import torch

from phyldm_core import physics, tissue
from phyldm_core.evaluation import metrics
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import segmentation
from phyldm_core.running import report


@pytest.fixture
def truth():
    return np.random.default_rng(3).uniform(0.5, 1.5, (2, 112, 80))


@pytest.fixture
def brain(truth):
    y, x = np.mgrid[-1:1:112j, -1:1:80j]
    return np.broadcast_to(y**2 + x**2 < 0.8, truth.shape)


ERRORS = (metrics.median_absolute_error, metrics.bias, metrics.mae, metrics.mse)


@pytest.mark.parametrize("error", ERRORS)
def test_a_perfect_estimate_has_no_error(error, truth, brain):
    assert error(truth, truth, brain) == 0


def test_a_perfect_estimate_is_perfectly_similar(truth, brain):
    assert metrics.psnr(truth, truth, brain) == math.inf
    assert metrics.ssim(truth, truth, brain) == pytest.approx(1)
    assert metrics.ms_ssim(truth, truth, brain) == pytest.approx(1)
    assert metrics.correlation(truth, truth, brain) == pytest.approx(1)


def test_a_copy_ten_per_cent_too_high_is_biased_by_ten_per_cent(truth, brain):
    assert metrics.bias(1.1 * truth, truth, brain) == pytest.approx(0.1)
    assert metrics.bias(0.9 * truth, truth, brain) == pytest.approx(-0.1)
    assert metrics.median_absolute_error(0.9 * truth, truth, brain) == pytest.approx(0.1)
    assert metrics.mae(truth + 0.1, truth, brain) == pytest.approx(0.1)
    assert metrics.mse(truth + 0.1, truth, brain) == pytest.approx(0.01)


def test_psnr_of_a_constant_offset_is_the_formula(truth, brain):
    assert metrics.psnr(truth + 0.1, truth, brain, peak=1.0) == pytest.approx(20)
    peak = np.percentile(truth[brain], 99.5)
    assert metrics.psnr(truth + 0.1, truth, brain) == pytest.approx(20 * math.log10(peak / 0.1))


def test_what_lies_outside_the_mask_does_not_count(truth, brain):
    elsewhere = np.where(brain, truth, 1e6)
    assert metrics.psnr(elsewhere, truth, brain) == math.inf
    assert metrics.median_absolute_error(elsewhere, truth, brain) == 0
    assert metrics.ms_ssim(elsewhere, truth, brain) == pytest.approx(1)


def test_similarity_falls_with_noise_and_does_not_depend_on_the_unit(truth, brain):
    noise = np.random.default_rng(0).normal(size=truth.shape)
    for similarity in (metrics.ssim, metrics.ms_ssim, metrics.psnr):
        little, much = (similarity(truth + sd * noise, truth, brain) for sd in (0.02, 0.2))
        assert little > much
        assert similarity(100 * (truth + 0.2 * noise), 100 * truth, brain) == pytest.approx(much, rel=1e-6)


def test_ms_ssim_takes_slices_of_80_pixels_and_refuses_crumbs(truth):
    assert 0 <= metrics.ms_ssim(truth[0, :80, :80], truth[1, :80, :80]) < 0.5
    with pytest.raises(ValueError, match="44"):
        metrics.ms_ssim(truth[0, :40, :40], truth[0, :40, :40])


def test_tensors_are_welcome(truth):
    assert metrics.bias(torch.from_numpy(1.1 * truth), torch.from_numpy(truth)) == pytest.approx(0.1)


@pytest.mark.parametrize("metric", [*ERRORS, metrics.psnr, metrics.ssim, metrics.ms_ssim, metrics.correlation])
def test_unusable_input_is_refused_in_a_sentence(metric, truth, brain):
    hole = truth.copy()
    hole[brain.nonzero()[0][0], brain.nonzero()[1][0], brain.nonzero()[2][0]] = np.nan
    with pytest.raises(ValueError, match="estimate holds NaN"):
        metric(hole, truth, brain)
    with pytest.raises(ValueError, match="truth holds NaN"):
        metric(truth, hole, brain)
    with pytest.raises(ValueError, match="mask is empty"):
        metric(truth, truth, np.zeros_like(brain))
    with pytest.raises(ValueError, match="differ in shape"):
        metric(truth[:1], truth, brain)
    with pytest.raises(ValueError, match="mask has shape"):
        metric(truth, truth, brain[:1])


def test_nan_outside_the_mask_means_no_value_and_is_left_alone(truth, brain):
    masked = np.where(brain, truth, np.nan)
    assert metrics.ssim(masked, masked, brain) == pytest.approx(1)
    assert metrics.psnr(masked, masked, brain) == math.inf


def test_an_error_relative_to_nothing_is_refused():
    with pytest.raises(ValueError, match="not positive"):
        metrics.median_absolute_error(np.ones(3), np.array([0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="no peak"):
        metrics.psnr(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match="constant"):
        metrics.correlation(np.ones(3), np.arange(3))


def test_shifting_a_distribution_moves_it_by_the_shift():
    truth = np.random.default_rng(0).normal(1.0, 0.1, 5001)
    assert metrics.histogram_distance(truth + 0.2, truth) == pytest.approx(0.2 / np.median(truth))
    assert metrics.histogram_distance(truth, np.random.default_rng(1).permutation(truth)) == pytest.approx(0)
    with pytest.raises(ValueError, match="sample"):
        metrics.histogram_distance([], truth)


def test_the_bootstrap_interval_holds_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(5)
    drawn = [metrics.bootstrap_interval(rng.normal(2.0, 1.0, 40), n=500, seed=i) for i in range(100)]
    held = sum(interval.low <= 2.0 <= interval.high for interval in drawn)
    assert 86 <= held <= 100  # 95 expected, SD 2; the percentile method runs a little short at n = 40
    assert all(interval.low <= interval.value <= interval.high and interval.n == 40 for interval in drawn)


def test_the_bootstrap_is_seeded_and_survives_its_edge_cases():
    values = [1.0, 2.0, 4.0, 8.0]
    assert metrics.bootstrap_interval(values, seed=1) == metrics.bootstrap_interval(values, seed=1)
    assert metrics.bootstrap_interval(values, statistic=np.median).value == 3
    assert metrics.bootstrap_interval([3.0, 3.0, 3.0]) == (3, 3, 3, 3)
    alone = metrics.bootstrap_interval([3.0])
    assert alone.value == 3 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ValueError, match="finite"):
        metrics.bootstrap_interval([1.0, math.inf])
    with pytest.raises(ValueError, match="at least one"):
        metrics.bootstrap_interval([])


@pytest.fixture(scope="module")
def head():
    """A head of rings, CSF in the middle and at the rim, with a true label for each pixel and some texture."""
    y, x = np.mgrid[-1:1:112j, -1:1:80j]
    radius = np.hypot(y, x)
    labels = np.select([radius < 0.2, radius < 0.6, radius < 0.85, radius < 0.95], [1, 3, 2, 1], 0)
    table = np.array([[0, 1e-3, 1e-3], [1.0, 4.3, 2.0], [0.82, 1.45, 0.083], [0.70, 0.85, 0.072]])
    texture = np.exp(0.03 * np.random.default_rng(0).normal(size=(3, *labels.shape)))
    return np.moveaxis(table[labels], -1, 0) * texture, labels


def test_segmentation_finds_the_tissues_of_a_clean_head(head):
    maps, labels = head
    t1w = physics.render(physics.TissueMaps(*torch.from_numpy(maps)), physics.REFERENCE["T1w"]).numpy()
    found = segmentation.segment_tissue(t1w, labels > 0)
    assert (found == labels).mean() > 0.99
    np.testing.assert_array_equal(segmentation.segment_tissue(700 * t1w, labels > 0), found)  # blind to gain


def test_an_image_without_contrast_cannot_be_segmented():
    with pytest.raises(ValueError, match="grey levels"):
        segmentation.segment_tissue(np.ones((4, 4)), np.ones((4, 4)))


def test_tissue_values_go_to_their_tissue(head):
    maps, labels = head
    values = segmentation.tissue_values(maps[None], labels[None])
    assert np.median(values["WM", "T1"]) == pytest.approx(0.85, rel=0.01)
    assert np.median(values["CSF", "PD"]) == pytest.approx(1.0, rel=0.01)
    assert values["GM", "T2"].size == (labels == 2).sum()


def test_of_the_nine_unseen_settings_only_the_long_flair_leaves_nothing():
    dark = [str(protocol) for protocol in physics.UNSEEN if not tissue.leaves_signal(protocol)]
    assert dark == ["FLAIR, TE 450 ms, TR 9 s, TI 2.5 s"]  # CSF nulled, the rest decayed
    assert all(tissue.leaves_signal(protocol) for protocol in physics.REFERENCE.values())


def test_contrast_to_noise_is_the_difference_over_the_noise():
    assert metrics.cnr({"WM": 0.3, "GM": 0.2, "CSF": 0.0}, 0.05) == pytest.approx(
        {("WM", "GM"): 2, ("WM", "CSF"): 6, ("GM", "CSF"): 4}
    )
    with pytest.raises(ValueError, match="positive"):
        metrics.cnr({"WM": 1.0, "GM": 0.5}, 0.0)


def test_numbers_travel_to_csv_and_back(tmp_path):
    interval = metrics.bootstrap_interval([0.08, 0.09, 0.10])
    table = metrics.long_form(
        [
            {"metric": "median_absolute_error", "quantity": "T1", "tissue": "WM", "value": interval},
            {"metric": "seconds", "value": 3},
        ]
    )
    path = report.write_table(table, tmp_path / "new" / "numbers.csv")
    back = pandas.read_csv(path, keep_default_na=False, na_values={"low": "", "high": ""})
    assert tuple(back.columns) == metrics.COLUMNS
    assert back.value.tolist() == pytest.approx([0.09, 3]) and back.n.tolist() == [3, 1]
    assert back.low[0] == pytest.approx(interval.low, rel=1e-5) and math.isnan(back.low[1])
    assert [p.name for p in path.parent.iterdir()] == ["numbers.csv"]  # no half-written file left behind


def test_a_table_refuses_unknown_columns_and_unwritable_places(tmp_path):
    with pytest.raises(ValueError, match="no column 'valeu'"):
        metrics.long_form([{"metric": "psnr", "valeu": 3}])
    with pytest.raises(ValueError, match="metric and a value"):
        metrics.long_form([{"metric": "psnr"}])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput):
        report.write_table(metrics.long_form([{"metric": "psnr", "value": 3}]), tmp_path / "file" / "numbers.csv")


# --- intervals --------------------------------------------------------------------------------------


def test_a_well_specified_gaussian_is_covered_as_often_as_its_level_says():
    rng = np.random.default_rng(0)
    truth, sd = rng.uniform(1, 2, 200_000), rng.uniform(0.1, 0.3, 200_000)
    estimate = truth + sd * rng.standard_normal(truth.size)
    for level in (0.5, 0.9):
        assert metrics.interval_coverage(estimate, sd, truth, level) == pytest.approx(level, abs=0.005)
        assert metrics.interval_coverage(estimate, sd / 3, truth, level) < level - 0.2
    assert metrics.interval_coverage(estimate, 0 * sd, truth, 0.9) == 0
    with pytest.raises(ValueError, match="below 0"):
        metrics.interval_coverage(estimate, -sd, truth, 0.9)


def test_limits_of_agreement_hold_95_per_cent_of_the_differences():
    truth = np.full(100_000, 2.0)
    estimate = truth * np.exp(0.05 * np.random.default_rng(0).standard_normal(truth.size))
    assert metrics.agreement_limits(estimate, truth) == pytest.approx((-0.098, 0.098), abs=0.002)
    assert metrics.agreement_limits(truth, truth) == (0, 0)
