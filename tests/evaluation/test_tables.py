"""Tables over subjects say what they claim: who counts, where, and on which scale."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest
import torch

from phyldm_core import slices
from phyldm_core.evaluation import metrics, tables
from phyldm_core.people import segmentation
from phyldm_core.physics import REFERENCE, UNSEEN, TissueMaps, signed_signal
from phyldm_core.slices import MODALITIES, Slices, Truth

WM, GM, CSF, AIR = range(4)
TABLE = torch.tensor([[0.70, 0.85, 0.072], [0.82, 1.45, 0.083], [1.0, 4.3, 2.0], [0.0, 0.0, 0.0]])
SHAPE = (64, 48)


def rings() -> torch.Tensor:
    """One head ``(y, x)``: CSF in the middle and at the rim, white matter, then grey matter."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    edges = torch.tensor([0.25, 0.6, 0.8, 0.95])
    return torch.tensor([CSF, WM, GM, CSF, AIR])[torch.bucketize(torch.hypot(y, x), edges)]


@pytest.fixture
def people() -> tuple[Slices, Truth]:
    """Three people, two slices each; everyone's tissue differs a little, scans are clean and on a common scale."""
    labels, n = rings(), 6
    subject = torch.tensor([0, 0, 1, 1, 2, 2])
    maps = TABLE[labels].permute(2, 0, 1).repeat(n, 1, 1, 1)
    texture = torch.randn(n, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    maps = maps * torch.tensor([1.0, 1.05, 0.95])[subject][:, None, None, None] * (0.02 * texture).exp()
    fractions = torch.stack([labels == tissue for tissue in (WM, GM, CSF)]).float().repeat(n, 1, 1, 1)
    settings = torch.stack([REFERENCE[m].settings() for m in MODALITIES]).repeat(n, 1, 1)
    settings[:, 1, 1] = 0.1  # an echo at which white matter is still there
    images = signed_signal(TissueMaps.from_stack(maps), settings).abs()
    return Slices(images, settings, torch.ones(n, 3, dtype=torch.bool), subject, torch.zeros(n)), Truth(maps, fractions)


def maps_of(truth: Truth, *factors: float) -> TissueMaps:
    """The true maps, PD, T1 and T2 each times a factor."""
    return TissueMaps.from_stack(truth.maps * torch.tensor(factors)[:, None, None])


def rows(table: pandas.DataFrame, **where) -> pandas.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table), f"no row with {where}"
    return table


def test_there_are_seven_ways_to_show_scans():
    assert len(slices.SUBSETS) == len(set(slices.SUBSETS.values())) == 7
    assert slices.SUBSETS[slices.ALL_SCANS] == (True, True, True)
    assert slices.SUBSETS["T1w+FLAIR"] == (True, False, True)


# --- maps ---------------------------------------------------------------------------------------


def test_long_t1_is_a_t1_error_and_nothing_else(people):
    slices, truth = people
    table = tables.map_errors(maps_of(truth, 1, 1.1, 1), truth, slices)
    assert len(table) == 18 and set(table.n) == {3} and set(table.inputs) == {"T1w+T2w+FLAIR"}
    assert rows(table, quantity="T1").value.tolist() == pytest.approx([0.1] * 6, rel=1e-4)
    assert rows(table, quantity="T2").value.abs().max() == rows(table, quantity="PD").value.abs().max() == 0
    short = tables.map_errors(maps_of(truth, 1, 1, 0.8), truth, slices)
    assert rows(short, quantity="T2", metric="bias").value.tolist() == pytest.approx([-0.2] * 3, rel=1e-4)
    assert rows(short, quantity="T2", metric="median_absolute_error").value.min() > 0


def test_pd_is_relative_to_the_persons_own_csf(people):
    slices, truth = people
    estimate = truth.maps.clone()
    gain = torch.tensor([0.3, 1.0, 7.0])[slices.subject]  # nobody knows the scale of PD
    estimate[:, 0] *= gain[:, None, None]
    table = tables.map_errors(TissueMaps.from_stack(estimate), truth, slices)
    assert rows(table, quantity="PD").value.abs().max() < 1e-6
    estimate[:, 0][truth.tissue("WM")] *= 1.2  # a wrong ratio of white matter to CSF is an error
    table = tables.map_errors(TissueMaps.from_stack(estimate), truth, slices)
    assert rows(table, quantity="PD", tissue="WM", metric="bias").value.item() == pytest.approx(0.2, rel=1e-4)


def test_mixed_voxels_do_not_count_and_missing_tissue_costs_only_its_own_rows(people):
    slices, truth = people
    truth.fractions[0, :, 30:34] *= 0.8  # partial volume with air
    broken = truth.maps.clone()
    broken[0, 1:, 30:34] *= 10
    assert tables.map_errors(TissueMaps.from_stack(broken), truth, slices).value.abs().max() == 0
    truth.fractions[:2, CSF] *= 0.5  # person 0 has no pure CSF: no CSF rows, and nothing to relate PD to
    table = tables.map_errors(maps_of(truth, 1, 1, 1), truth, slices)
    assert set(rows(table, tissue="CSF").n) == set(rows(table, quantity="PD").n) == {2}
    assert set(rows(table, tissue="WM", quantity="T1").n) == {3}


def test_maps_of_another_cohort_are_refused(people):
    slices, truth = people
    with pytest.raises(ValueError, match="differ in shape"):
        tables.map_errors(maps_of(Truth(truth.maps[:2], truth.fractions[:2]), 1, 1, 1), truth, slices)


def test_an_sd_is_honest_where_its_intervals_hold_the_truth(people):
    slices, truth = people
    noise = torch.randn(truth.maps.shape, generator=torch.Generator().manual_seed(1))
    maps = TissueMaps.from_stack(truth.maps * (1 + 0.05 * noise))
    honest = tables.map_calibration(maps, maps_of(truth, 0.05, 0.05, 0.05), truth, slices)
    assert rows(honest, metric="coverage_90").value.tolist() == pytest.approx([0.9] * 9, abs=0.06)
    assert rows(honest, metric="coverage_50").value.tolist() == pytest.approx([0.5] * 9, abs=0.08)
    assert rows(honest, metric="sd", quantity="T1").value.tolist() == pytest.approx([0.05] * 3, rel=0.1)
    assert rows(honest, metric="limit_high", quantity="T2").value.tolist() == pytest.approx([0.098] * 3, rel=0.25)
    sure = tables.map_calibration(maps, maps_of(truth, 0.005, 0.005, 0.005), truth, slices)
    assert rows(sure, metric="coverage_90").value.max() < 0.3


def test_an_sd_of_pd_follows_its_scale(people):
    slices, truth = people
    same = [tables.map_calibration(maps_of(truth, f, 1.1, 1.1), maps_of(truth, 0.03 * f, 0.1, 0.1), truth, slices)
            for f in (1.0, 40.0)]  # fmt: skip
    np.testing.assert_allclose(same[0].value, same[1].value, rtol=1e-3, atol=1e-6)


def test_voxels_to_draw_are_true_pairs(people):
    _, truth = people
    one = Truth(truth.maps[:2], truth.fractions[:2])
    table = tables.voxel_pairs(maps_of(one, 1, 1.2, 1), maps_of(one, 0.1, 0.1, 0.1), one, 50)
    assert set(table.groupby(["quantity", "tissue"]).size()) == {50}
    t1 = table[table.quantity == "T1"]
    np.testing.assert_allclose(t1.estimate / t1.truth, 1.2, rtol=1e-4)
    np.testing.assert_allclose(t1.sd / t1.truth, 0.1, rtol=1e-4)


def test_tissues_keep_their_order_until_their_t1_is_exchanged(people):
    slices, truth = people
    right = tables.contrast_order(maps_of(truth, 3, 1, 1), truth, slices)  # whatever the scale of PD
    assert set(rows(right, metric="same_order").value) == {1}
    for contrast in ("T1w", "T2w", "FLAIR"):
        both = [rows(right, metric=m, tissue=contrast).value for m in ("cnr", "cnr_truth")]
        np.testing.assert_allclose(*both, rtol=1e-4)
    swapped = truth.maps.clone()
    for mine, other in ((WM, GM), (GM, WM)):
        swapped[:, 1][truth.tissue(("WM", "GM", "CSF")[mine])] = TABLE[other, 1]
    wrong = tables.contrast_order(TissueMaps.from_stack(swapped), truth, slices)
    assert rows(wrong, metric="same_order", tissue="T1w").value.item() == 0


# --- scans --------------------------------------------------------------------------------------


def test_true_maps_predict_clean_scans_whatever_the_gain(people):
    slices, truth = people
    torch.testing.assert_close(tables.rescan(maps_of(truth, 1, 1, 1), slices), slices.images)
    gains = torch.tensor([[200.0, 900, 400], [1500, 300, 250], [700, 700, 1900]])[slices.subject][..., None, None]
    slices.images = slices.images * gains
    unscaled = tables.rescan(maps_of(truth, 5, 1, 1), slices, common_scale=False, brain=truth.brain)
    torch.testing.assert_close(unscaled, slices.images, rtol=1e-4, atol=1e-2)


def test_a_scan_has_one_gain_for_all_its_slices(people):
    slices, truth = people
    maps = maps_of(truth, 1, 1.2, 0.9)
    clean = tables.rescan(maps, slices)
    ratio = tables.rescan(maps, slices, common_scale=False) / clean.clamp_min(1e-9)
    for person in range(3):
        values = ratio[slices.subject == person][:, 0][clean[slices.subject == person][:, 0] > 0.01]
        assert values.max() - values.min() < 1e-4
        assert abs(values.mean() - 1) > 1e-3  # and it is solved, not 1


def test_reconstruction_errors_are_fractions_of_the_scans_own_peak(people):
    slices, truth = people
    clean = slices.images.clone()
    noise = 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    slices.images = 500 * (clean + noise)
    maps = maps_of(truth, 500, 1, 1)
    table = tables.reconstruction_errors(maps, slices, truth.brain)
    assert set(table.metric) == {"mse", "mae", "psnr", "ms_ssim"} and set(table.quantity) == set(MODALITIES)
    for m, modality in enumerate(MODALITIES):
        people_rows = [slices.subject == p for p in range(3)]
        peaks = [metrics.peak_of(slices.images[r, m], truth.brain[r]) / 500 for r in people_rows]
        expected = np.mean([20 * math.log10(peak / 0.01) for peak in peaks])
        assert rows(table, metric="psnr", quantity=modality).value.item() == pytest.approx(expected, abs=0.3)
        assert rows(table, metric="mse", quantity=modality).value.item() == pytest.approx(
            np.mean([(0.01 / peak) ** 2 for peak in peaks]), rel=0.1
        )


def test_a_scan_that_does_not_exist_is_not_judged(people):
    slices, truth = people
    slices.observed[:2, 2] = False
    slices.images[:2, 2] = 0
    slices.images += 0.01
    table = tables.reconstruction_errors(maps_of(truth, 1, 1, 1), slices, truth.brain, common_scale=False)
    assert set(rows(table, quantity="FLAIR").n) == {2} and set(rows(table, quantity="T1w").n) == {3}


def test_small_slices_are_judged_without_ms_ssim(people):
    slices, truth = people
    part = (..., slice(16, 48), slice(8, 40))
    small = Truth(truth.maps[part], truth.fractions[part])
    slices.images = slices.images[part] + 0.01
    table = tables.reconstruction_errors(maps_of(small, 1, 1, 1), slices, small.brain)
    assert set(table.metric) == {"mse", "mae", "psnr"}


# --- contrasts nobody acquired ------------------------------------------------------------------


def test_unseen_settings_are_flagged_and_averaged_where_there_is_signal(people):
    slices, truth = people
    table = tables.unseen_errors(maps_of(truth, 1, 1.05, 1.05), truth, slices)
    psnr = rows(table, metric="psnr")
    assert [str(p) for p in UNSEEN] + [tables.MEAN_OF_SIGNAL] == psnr.quantity.tolist()
    assert psnr[~psnr.leaves_signal].quantity.tolist() == ["FLAIR, TE 450 ms, TR 9 s, TI 2.5 s"]
    lit = psnr[psnr.leaves_signal & (psnr.quantity != tables.MEAN_OF_SIGNAL)]
    assert len(lit) == 8
    assert rows(psnr, quantity=tables.MEAN_OF_SIGNAL).value.item() == pytest.approx(lit.value.mean())
    worse = rows(tables.unseen_errors(maps_of(truth, 1, 1.2, 1.2), truth, slices), metric="psnr")
    assert (worse.value.to_numpy()[:-1] < psnr.value.to_numpy()[:-1]).all()


def test_an_unknown_scale_of_pd_costs_nothing_once_solved(people):
    slices, truth = people
    results = [
        tables.unseen_errors(maps_of(truth, pd, 1.1, 1.1), truth, slices, common_scale=False).value
        for pd in (1.0, 40.0)
    ]
    np.testing.assert_allclose(*results, rtol=1e-4)
    known = tables.unseen_errors(maps_of(truth, 40, 1.1, 1.1), truth, slices)
    assert rows(known, metric="psnr").value.max() < 0 < results[0].min()


# --- generated brains ---------------------------------------------------------------------------


def test_scalp_is_not_brain(people):
    _, truth = people
    labels = rings()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 72), indexing="ij")
    radius = torch.hypot(y, x)
    layers = torch.tensor([[0.8, 1.2, 0.08], [0.2, 0.25, 0.001], [0.85, 0.38, 0.07], [0.9, 1.0, 0.001]])
    maps = layers[torch.bucketize(radius, torch.tensor([0.6, 0.75, 0.95]))]  # brain, bone, fat; air with any PD
    maps[47:50, 50:70] = layers[0]  # a thin gap in the bone joins brain and scalp
    maps[20:40, 0:30][radius[20:40, 0:30] < 0.95] = layers[2]  # and there the skull is as bright as the scalp
    found = segmentation.brain_of(TissueMaps.from_stack(maps.permute(2, 0, 1)[None]))[0]
    inside = radius < 0.6
    inside[20:40, 0:30] = False
    assert (found & inside).sum() > 0.99 * inside.sum() and (found & (radius > 0.75)).sum() == 0
    true = segmentation.brain_of(maps_of(truth, 1, 1, 1))[0]
    assert (true == (labels != AIR)).float().mean() > 0.99
    assert not segmentation.brain_of(TissueMaps(*torch.zeros(3, 1, 8, 8))).any()


def test_samples_like_the_truth_are_no_distance_away_and_a_shift_is_measured(people):
    slices, truth = people
    same = tables.sample_histograms(maps_of(truth, 1, 1, 1), truth, slices)
    assert rows(same, metric="wasserstein").value.max() == 0
    assert set(rows(same, metric="wasserstein").n) == {6} and set(rows(same, metric="wasserstein_floor").n) == {3}
    shifted = tables.sample_histograms(maps_of(truth, 1, 1, 1.2), truth, slices)
    for tissue in ("WM", "CSF"):  # T2 hardly shows in a T1w, so the segmentation is the same but for a few voxels
        distance = rows(shifted, metric="wasserstein", quantity="T2", tissue=tissue).value.item()
        assert distance == pytest.approx(0.2, rel=0.03)
    assert rows(shifted, metric="wasserstein", quantity="T1").value.max() < 0.02


def test_the_floor_is_how_far_true_people_are_apart(people):
    slices, truth = people
    floor = rows(tables.sample_histograms(maps_of(truth, 1, 1, 1), truth, slices), metric="wasserstein_floor")
    assert (floor.value > 0.02).all() and (floor.value < 0.15).all()  # people differ by 5 %
    assert ((floor.low <= floor.value) & (floor.value <= floor.high)).all()
    truth.maps[:] = truth.maps[:1]
    alike = tables.sample_histograms(maps_of(truth, 1, 1, 1), truth, slices)
    assert rows(alike, metric="wasserstein_floor").value.max() == 0


def test_samples_without_a_brain_have_no_distance(people):
    slices, truth = people
    table = tables.sample_histograms(maps_of(truth, 0, 1, 1), truth, slices)
    assert set(table.metric) == {"wasserstein_floor"}
