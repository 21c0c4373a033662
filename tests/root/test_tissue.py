"""Simulated tissue is what was measured in living brains at 3 T, and no two people are alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from phyldm_core.physics import REFERENCE, Protocol, Sequence, TissueMaps, render
from phyldm_core.tissue import (
    ASSUMED,
    BRAIN,
    ROWS,
    TISSUES,
    fit_three_tissues,
    implied_pd,
    in_vivo_3t,
    measurements,
    ratio_to_white_matter,
    three_medians,
    usable,
)

PD, T1, T2 = range(3)
WM, GM, CSF = (TISSUES.index(name) for name in ("WM", "GM", "CSF"))

BANDS = {  # in vivo, 3 T: PD relative to CSF, T1 and T2 in s
    "WM": ((0.68, 0.71), (0.81, 0.96), (0.065, 0.080)),
    "GM": ((0.79, 0.84), (1.30, 1.61), (0.068, 0.090)),
    "CSF": ((0.97, 1.00), (4.1, 4.5), (1.8, 2.4)),
}


@pytest.fixture(scope="module")
def people():
    """``(500, tissues, 3)``: PD, T1 and T2 of 500 people."""
    rng = np.random.default_rng(0)
    return np.stack([in_vivo_3t().draw(rng) for _ in range(500)])


@pytest.mark.parametrize("tissue", BANDS)
def test_medians_lie_where_most_studies_found_them(tissue):
    values = in_vivo_3t().median[TISSUES.index(tissue)]
    for value, (low, high) in zip(values, BANDS[tissue], strict=True):
        assert low <= value <= high


def test_every_value_that_feeds_a_median_was_seen_a_second_time():
    rows = [usable(tissue, quantity) for tissue in ROWS for quantity in ("PD", "T1", "T2")]
    seen = {where for found in rows for where in found.number_seen_in}
    assert seen <= {"abstract", "review", "code", "table", "agreed", "reckoned"}  # what they mean: data/README.md


@pytest.mark.parametrize("quantity", ["T1", "T2"])
def test_grey_and_white_matter_differ_as_they_do_within_one_study(quantity):
    ratios = ratio_to_white_matter("GM", quantity)
    assert len(ratios) >= 4
    column = {"T1": T1, "T2": T2}[quantity]
    ours = in_vivo_3t().median[GM, column] / in_vivo_3t().median[WM, column]
    assert ratios.min() < ours < ratios.max()


@pytest.mark.parametrize(
    "flair", [REFERENCE["FLAIR"], Protocol(Sequence.FLAIR, te=0.12, tr=8.0, ti=2.25)], ids=["reference", "longer TE"]
)
def test_cortex_is_brighter_than_white_matter_on_flair(flair):
    signal = render(TissueMaps(*torch.from_numpy(in_vivo_3t().median.T)), flair)
    assert signal[GM] > 1.02 * signal[WM]


def test_excised_tissue_simulators_and_other_fields_do_not_count():
    table = measurements()
    left_out = table[table.setting.str.contains("ex vivo|simulator") | table.field_T.isin(["1.5", "7"])]
    assert {"ex vivo/in vitro", "simulator"} <= set(left_out.setting)  # the table holds them: leaving out is a deed
    assert {"1.5", "7"} <= set(left_out.field_T)
    for tissue in ROWS:
        for quantity in ("PD", "T1", "T2"):
            assert not set(usable(tissue, quantity).index) & set(left_out.index), (tissue, quantity)


def test_well_known_outliers_are_left_out():
    assert 1.084 not in usable("WM", "T1")["mean"].to_numpy()  # excised
    assert usable("CSF", "T2")["mean"].min() > 1.5  # 0.33 s is a 1.5 T simulator's


def test_times_are_seconds():
    table = measurements()
    assert set(table.unit[table.property.isin(["T1", "T2"])]) == {"s"}
    assert table["mean"][table.property.isin(["T1", "T2"])].max() < 10


def test_assumptions_stand_only_where_nothing_was_measured():
    for tissue, quantity in ASSUMED:
        assert usable(tissue, quantity).empty, f"{quantity} of {tissue} was measured: the assumption is never used"
    assert np.isfinite(in_vivo_3t().median).all()


def test_white_matter_recovers_before_grey_before_csf_in_everyone(people):
    assert (people[:, WM, T1] < people[:, GM, T1]).all()
    assert (people[:, GM, T1] < people[:, CSF, T1]).all()
    assert (people[:, GM, T2] < people[:, CSF, T2]).all()


def test_nothing_holds_more_water_than_water(people):
    assert people[..., PD].max() <= 1
    assert people[..., PD].min() > 0


def test_t2_is_never_longer_than_t1(people):
    assert (people[..., T2] < people[..., T1]).all()


def test_iron_makes_the_pallidum_the_darkest_of_the_brain_on_t2():
    t2 = dict(zip(TISSUES, in_vivo_3t().median[:, T2], strict=True))
    assert min(BRAIN, key=t2.get) == "pallidum"


def test_people_scatter_about_the_median_by_a_few_per_cent(people):
    logs = np.log(people[:, [WM, GM]])
    np.testing.assert_allclose(np.median(people[:, [WM, GM]], 0), in_vivo_3t().median[[WM, GM]], rtol=0.01)
    np.testing.assert_allclose(logs.std(0), [[0.02, 0.05, 0.06]] * 2, rtol=0.1)


def test_a_person_s_tissues_vary_together_but_not_in_step(people):
    logs = np.log(people[:, [WM, GM], T1])
    assert np.corrcoef(logs.T)[0, 1] == pytest.approx(0.5, abs=0.1)


def test_people_of_twice_the_spread_differ_twice_as_much():
    usual, wide = (
        np.log(in_vivo_3t().draw(np.random.default_rng(3), spread) / in_vivo_3t().median) for spread in (1.0, 2.0)
    )
    np.testing.assert_allclose(wide[:, 1:], 2 * usual[:, 1:], rtol=1e-9)
    assert np.abs(usual[:, 1:]).max() > 0.02


def test_no_spread_is_everyone_alike_and_no_spread_makes_more_water_than_water():
    np.testing.assert_allclose(in_vivo_3t().draw(np.random.default_rng(0), 0.0), in_vivo_3t().median)
    assert max(in_vivo_3t().draw(np.random.default_rng(seed), 5.0)[:, 0].max() for seed in range(50)) == 1


def test_the_seed_decides_who_it_is():
    one, again, other = (in_vivo_3t().draw(np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.9


@pytest.mark.parametrize("tissue", ["WM", "GM", "CSF"])
def test_the_water_line_meets_what_is_measured_in_white_matter_grey_matter_and_fluid(tissue):
    pd, t1, _ = three_medians()[tissue]
    assert implied_pd(torch.tensor(t1)).item() == pytest.approx(pd, rel=1e-3)


def test_the_longer_the_t1_the_more_water():
    implied = implied_pd(torch.linspace(0.7, 4.3, 50))
    assert (implied.diff() > 0).all() and implied.max() < 1


# --- three tissues explain a session ----------------------------------------------------------------

INVERSIONS = (
    Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=0.5),
    Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=2.0),
    Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0),
)
GAINS = torch.tensor([3.0, 0.4, 1.7])


def signals_of(tissues: torch.Tensor, protocols, gains=GAINS) -> tuple[torch.Tensor, torch.Tensor]:
    """``(m, 3)`` signals of WM, GM and CSF, and settings."""
    rendered = torch.stack([render(TissueMaps(*tissues.T), protocol) for protocol in protocols])
    return gains[: len(protocols), None] * rendered, torch.stack([p.settings() for p in protocols])


def somebody(t1: float = 1.0, t2: float = 1.0) -> torch.Tensor:
    """``(3, 3)``: the medians with other T1 and T2 of white and grey matter, and the PD that goes with such a T1."""
    tissues = torch.tensor(list(three_medians().values()))
    tissues[:2] *= torch.tensor([1.0, t1, t2])
    tissues[:2, 0] = implied_pd(tissues[:2, 1])
    return tissues


@pytest.mark.parametrize("times", [0.85, 1.0, 1.15])
def test_an_inversion_recovery_pair_tells_t1_and_the_gains_of_anybody(times):
    tissues = somebody(t1=times)
    found, gain, *_ = fit_three_tissues(*signals_of(tissues, INVERSIONS), torch.full((3,), 0.005))
    torch.testing.assert_close(found[:2, 1], tissues[:2, 1], rtol=0.03, atol=0)
    torch.testing.assert_close(gain, GAINS, rtol=0.05, atol=0)


def test_a_real_part_tells_as_much_as_a_magnitude():
    signed = [replace(p, signed=p.sequence.inverts) for p in INVERSIONS]
    tissues = somebody(t1=1.1)
    signals, settings = signals_of(tissues, signed)
    assert signals[0, 0] < 0
    found, gain, *_ = fit_three_tissues(signals, settings, torch.full((3,), 0.005))
    torch.testing.assert_close(found[:2, 1], tissues[:2, 1], rtol=0.03, atol=0)
    torch.testing.assert_close(gain, GAINS, rtol=0.05, atol=0)


def test_two_spin_echoes_tell_little_of_t1_and_say_what_is_usual():
    echoes = (Protocol(Sequence.SPIN_ECHO, te=0.01, tr=5.0), Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0))
    tissues, usual = somebody(t1=1.15, t2=1.15), somebody()
    found, _, sd, _ = fit_three_tissues(*signals_of(tissues, echoes), torch.full((2,), 0.005))
    moved = (found / usual).log()[:2] / (tissues / usual).log()[:2]
    assert (moved[:, 1] < 0.6).all()  # of the way in T1
    torch.testing.assert_close(found[:2, 1], usual[:2, 1], rtol=0.08, atol=0)
    assert (moved[:, 2] > 0.5).all()  # of the way in T2
    _, _, told, _ = fit_three_tissues(*signals_of(tissues, INVERSIONS), torch.full((3,), 0.005))
    assert (sd[:2, 1] > 2 * told[:2, 1]).all()  # and it knows


def test_a_tissue_that_is_not_there_is_as_in_anybody_and_does_not_disturb():
    tissues = somebody(t1=1.1)
    signals, settings = signals_of(tissues, INVERSIONS)
    signals[:, 0] = torch.nan
    found, gain, *_ = fit_three_tissues(signals, settings, torch.full((3,), 0.005))
    torch.testing.assert_close(found[1, 1], tissues[1, 1], rtol=0.04, atol=0)
    torch.testing.assert_close(gain, GAINS, rtol=0.06, atol=0)
    found, gain, *_ = fit_three_tissues(torch.full_like(signals, torch.nan), settings, torch.full((3,), 0.005))
    torch.testing.assert_close(found, torch.tensor(list(three_medians().values())))
    assert gain.tolist() == [1, 1, 1]
