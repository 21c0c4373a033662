"""Errors by protocol set: who was asked, what an error is compared with, and that finished people are kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch

from phyldm_core.evaluation import protocol_sets
from phyldm_core.evaluation.examination_report import errors_by_set, held_by_set, set_tables
from phyldm_core.evaluation.protocol_sets import (
    CONSTANT,
    ENCODER,
    EXPLAINED,
    HEIGHTS,
    HIGH,
    N_HIGH,
    OASIS3,
    RANDOM,
    SETS,
    SPOILED_WAYS,
    Found,
    SetsExam,
    by_set,
    examine_sets,
    read_sets,
)
from phyldm_core.people.cohort import Subject
from phyldm_core.slices import Truth
from phyldm_core.tissue import three_medians
from phyldm_core.weights import load_weights

EVERYTHING = [*SETS, *SPOILED_WAYS, *HIGH, RANDOM]


@pytest.fixture(scope="module")
def exam(smoke_run) -> SetsExam:
    return SetsExam(load_weights(smoke_run.folder), None, n=1, n_random=2, seen=True)


@pytest.fixture(scope="module")
def folder(exam, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    assert sorted(examine_sets(exam, folder)) == ["open-0001", "open-0002", "sub-0001"]
    return folder


def test_every_person_is_scanned_with_every_set_and_a_session_is_of_one_person(exam, folder):
    table = read_sets(exam, folder)
    assert {*SETS, *SPOILED_WAYS, RANDOM} < set(table["set"]) <= set(EVERYTHING)  # at 6 mm some heights are all mixed
    asked = table.groupby("set").person.unique().map(sorted)
    assert all(asked[name] == ["sub-0001"] for name in (*SETS, *SPOILED_WAYS))
    assert asked[RANDOM] == ["open-0001", "open-0002"]
    assert not table.duplicated(["set", "person", "method", "tissue", "quantity"]).any()
    assert table.groupby(["set", "person", "tissue", "quantity"]).method.apply(set).map(
        lambda methods: methods == {CONSTANT, ENCODER, EXPLAINED}
    ).all()  # fmt: skip
    assert table.holds.notna().eq(table.method == EXPLAINED).all()


def test_a_person_is_the_same_under_every_set(exam, folder):
    table = read_sets(exam, folder)
    truth = table[table["set"].isin(SETS) & (table.quantity != "PD")]
    truth = truth.groupby(["person", "tissue", "quantity"]).truth
    assert ((truth.max() - truth.min()) / truth.max()).max() < 0.01  # but for what noise leaves uncovered


def test_what_is_finished_is_kept_and_more_sessions_are_added(exam, folder, monkeypatch):
    asked, real = [], protocol_sets._random_session
    monkeypatch.setattr(protocol_sets, "_every_set", None)
    monkeypatch.setattr(protocol_sets, "_random_session", lambda *a: asked.append(a[2].name) or real(*a))
    (folder / "open-0002.csv").unlink()
    before = (folder / "open-0001.csv").read_bytes()
    list(examine_sets(replace(exam, n_random=3), folder))
    assert asked == ["open-0002", "open-0003"] and (folder / "open-0001.csv").read_bytes() == before


def test_heights_are_all_of_a_stack_and_lie_apart():
    rows = [i for part in HEIGHTS.values() for i in range(N_HIGH)[part]]
    assert rows == list(range(N_HIGH)) and list(HEIGHTS) == ["cerebellum", "middle", "vertex"]


def test_errors_are_of_pure_voxels_that_a_scan_covers_and_pd_is_of_the_person_s_csf():
    wm, csf = three_medians()["WM"], three_medians()["CSF"]
    fractions = torch.zeros(1, 3, 2, 4)
    fractions[0, 0, 0, :3], fractions[0, 2, 1] = torch.tensor([1.0, 0.96, 0.9]), 1.0
    maps = torch.ones(1, 3, 2, 4) * torch.tensor(csf).view(3, 1, 1)
    maps[0, :, 0] = torch.tensor([0.9, 1.1, 1.0])[:, None] * torch.tensor(wm)[:, None]
    measured = torch.ones(1, 2, 4, dtype=torch.bool)
    measured[0, 0, 1] = False
    said = maps * torch.tensor([2.0, 1.2, 1.0]).view(3, 1, 1)  # any scale of PD; T1 20 % long
    said[0, 1, 0, 1:] = 99.0  # what is not covered, and what is not pure
    found = Found({ENCODER: said, EXPLAINED: said}, 0.1 * said, measured)
    subject = Subject("sub-0001", "test", "head", 0)
    table = protocol_sets._judged("set", subject, found, Truth(maps, fractions)).set_index(
        ["method", "tissue", "quantity"]
    )
    error = table.error
    assert error[EXPLAINED, "WM", "T1"] == pytest.approx(0.2, abs=1e-4)
    assert error[EXPLAINED, "WM", "T2"] == error[EXPLAINED, "WM", "PD"] == pytest.approx(0, abs=1e-4)
    assert table.holds[EXPLAINED, "WM", "T1"] == 0 and table.holds[EXPLAINED, "WM", "T2"] == 1
    assert math.isnan(table.holds[ENCODER, "WM", "T1"])


def made_table(heads: int = 3, people: int = 4, **errors) -> pandas.DataFrame:
    """Sessions of two sets with errors told by method."""
    rng, rows = np.random.default_rng(0), []
    for name, times in {OASIS3: 1.0, f"{OASIS3}, stripped": 1.5}.items():
        for i in range(heads * people):
            truth, off = 1 + 0.1 * rng.standard_normal(), 0.02 * (i % heads)  # a head decides
            for method, error in {CONSTANT: 0.1, EXPLAINED: 0.04}.items():
                estimate = 1.0 if method == CONSTANT else truth
                error = times * (error + off) if method == EXPLAINED else error
                rows.append((name, f"sub-{i}", f"head{i % heads}", method, "WM", "T1", error, estimate, truth, 0.9))
    columns = ["set", "person", "head", "method", "tissue", "quantity", "error", "estimate", "truth", "holds"]
    return pandas.DataFrame(rows, columns=columns)


def test_beside_an_error_stand_the_constant_s_the_untouched_scans_and_the_correlation():
    sets = by_set(made_table()).set_index(["set", "method"])
    explained = sets.loc[OASIS3, EXPLAINED]
    assert explained.value == pytest.approx(0.06) and explained.n == 12
    assert explained.over_constant == pytest.approx(0.6) and explained.r == pytest.approx(1)
    assert math.isnan(sets.loc[OASIS3, CONSTANT].r) and math.isnan(explained.over_untouched)
    assert sets.loc[f"{OASIS3}, stripped", EXPLAINED].over_untouched == pytest.approx(1.5)
    assert sets.loc[f"{OASIS3}, stripped", CONSTANT].over_untouched == pytest.approx(1)


def test_an_interval_counts_heads_and_not_people():
    few, many = (by_set(made_table(people=n)).set_index(["set", "method"]).loc[OASIS3, EXPLAINED] for n in (4, 400))
    for row in (few, many):  # three heads with errors of 4, 6 and 8 per cent: any of them may be all there are
        assert row.low == pytest.approx(0.045, abs=0.006) and row.high == pytest.approx(0.075, abs=0.006)
    alike = by_set(made_table(heads=1)).set_index(["set", "method"]).loc[OASIS3, EXPLAINED]
    assert alike.low == alike.high == pytest.approx(0.04)


def test_the_report_has_a_table_of_each_kind(exam, folder):
    sets = by_set(read_sets(exam, folder))
    tables = set_tables(sets)
    assert len(tables) == 5 and "90th percentile" in tables[3] and "gradient echoes" in tables[0]
    assert list(errors_by_set(sets, SETS).scans.unique()) == [s for s in SETS if s in set(sets["set"])]
    assert set(held_by_set(sets).scans) <= set(EVERYTHING)
    assert len(set_tables(sets[sets["set"] != RANDOM])) == 4  # of what nobody asked for there is no table
