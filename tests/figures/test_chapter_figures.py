"""Figures that one chapter shows: what is beyond an axis is marked, and sets without an order are not joined."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import torch

from phyldm_core import figures, tissue
from phyldm_core.evaluation import ablation_figures, examination_figures
from phyldm_core.machine.carried import carried
from phyldm_core.physics import REFERENCE, Protocol, TissueMaps

KEYS = [(t, q) for q in ("T1", "T2", "PD") for t in ("WM", "GM", "CSF")]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def errors(values: dict[str, float], metric="median_absolute_error") -> pandas.DataFrame:
    rows = [
        {"metric": metric, "quantity": q, "tissue": t, "value": v, "low": v, "high": v, "method": name, "inputs": name,
         "scans": name, "scale": "common scale"}
        for name, v in values.items() for t, q in KEYS
    ]  # fmt: skip
    return pandas.DataFrame(rows)


def test_an_error_beyond_the_axis_is_an_arrow_with_its_number():
    fig = examination_figures.accuracy_and_needs(errors({"good": 0.03, "bad": 3.96}), {"good": (), "bad": ("priors",)})
    first = fig.axes[0]
    assert [text.get_text() for text in first.texts] == ["396"]
    assert sum(line.get_marker() == ">" for line in first.lines) == 1
    assert first.get_xlim() == (0, examination_figures.MOST_ERROR)


def test_subsets_of_scans_have_no_order_and_no_line():
    table = pandas.concat([errors({"T1w": 0.04, "T2w": 0.1}), errors({"T1w": 0.01, "T2w": 0.02}, "posterior_sd")])
    fig = figures.errors_by_scans(table, ["T1w", "T2w"])
    joined = [
        line for ax in fig.axes for line in ax.lines if len(line.get_xdata()) > 1 and line.get_linestyle() != "None"
    ]
    assert not joined
    table = errors({"T1w": 0.04, "T2w": 0.1}).assign(method="network")
    fig = examination_figures.error_by_scans(table, ("network",), ["T1w", "T2w"])
    assert all(line.get_linestyle() == "None" for ax in fig.axes for line in ax.lines)


def test_what_the_ablations_measured_can_be_drawn():
    table = pandas.read_csv(carried("data/ablations.csv"))
    variants = list(table[table.metric == "error_ratio"].variant.unique())
    fig = ablation_figures.what_matters(table, variants)
    assert "another seed" in [tick.get_text() for tick in fig.axes[0].get_yticklabels()]
    ratios = table[(table.metric == "error_ratio") & (table.scale == "common scale") & (table.quantity == "PD")]
    beyond = ratios.value > ablation_figures.MOST_RATIO
    assert len(fig.axes[2].texts) == beyond.sum() > 0


def test_scans_are_windowed_on_the_brain_and_not_on_the_scalp():
    scan, brain = np.ones((8, 8)), np.zeros((8, 8), bool)
    scan[0], brain[3:6, 3:6] = 10, True  # a bright rim
    maps = [np.full((8, 8), v) for v in (0.8, 1.0, 0.08)]
    for inside, top in ((None, 10), (brain, 1)):
        fig = figures.inference({"T1w": scan}, maps, brain=inside)
        assert fig.axes[0].images[0].norm.vmax == pytest.approx(top, rel=0.1)


def test_curves_of_signals_are_drawn_for_every_tissue(tmp_path):
    tissues = tissue.three_medians()
    names, n = list(tissues), 5
    maps = TissueMaps(*(torch.full((6, 6), v, dtype=torch.float64) for v in tissues["WM"]))
    time, signal = np.linspace(0, 1, n)[:, None], np.ones((n, 3))
    ratios = pandas.DataFrame({name: [0.2, 0.5] for name in names}, index=[15, 60])
    trains = dict.fromkeys(names, (time[:, 0] + 0.1, signal[:, 0], signal[:, 0]))
    curves = dict.fromkeys(names, (time[:, 0], signal[:, 0], signal[:, 0]))
    made = [
        figures.signal_curves({"TI (s)": (time, signal, 0.5), "TR (s)": (time, signal, 0.5)}, names),
        figures.null_points(tissues, REFERENCE["FLAIR"], maps, Protocol("MPRAGE", te=0.003, tr=2.4, ti=0.6)),
        figures.effective_echo_time(trains, ratios, {"a": np.ones((6, 6)), "b": np.ones((6, 6))}, 0.455, 0.22),
        figures.flair_nulls(curves, [0.6]),
    ]
    for fig in made:
        colours = {line.get_color() for ax in fig.axes for line in ax.lines}
        assert {figures.TISSUE_COLOURS[name] for name in ("WM", "GM", "CSF")} <= colours


def test_a_person_who_was_guessed_has_a_correlation_written_down():
    pairs = {(t, q): np.array([[1.0, 1.1, 1.2], [1.0, 1.2, 1.4]]) for t, q in KEYS}
    r = {(source, t, q): -0.25 for source in ("common", "own") for t, q in KEYS}
    fig = figures.follows_the_person({"common": pairs, "own": pairs}, r)
    assert fig.axes[0].texts[0].get_text() == "r = −0.25\nr = −0.25"
