"""The histogram explorer, driven as a hand would drive it, without a browser, and the counts it stands on."""

from __future__ import annotations

import io
import json
import re

import ipywidgets
import numpy as np
import pytest
import torch
from conftest import all_widgets
from PIL import Image
from scipy import stats

from phyldm_core.evaluation.metrics import histogram_distance
from phyldm_core.explorers.histogram_counts import (
    Choice,
    Histograms,
    count,
    density,
    distance,
    median,
    quantile,
    share_within,
    short_name,
)
from phyldm_core.explorers.histograms import HistogramExplorer
from phyldm_core.figures.curves import CORE_BAND, studies
from phyldm_core.machine.errors import BadInput
from phyldm_core.people.segmentation import segmented_values
from phyldm_core.physics import TissueMaps

TISSUES = {"CSF": (0.99, 4.3, 1.9), "GM": (0.83, 1.44, 0.080), "WM": (0.69, 0.92, 0.075)}  # PD, T1 (s), T2 (s)


def people(n=6, seed=0, t1=1.0):
    """Discs of white matter in grey matter in CSF, 5 % spread; ``t1`` scales every T1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :40]
    radius = np.hypot(y - 24, x - 20) / 20
    maps = np.zeros((n, 3, 48, 40))
    for tissue, limit in (("CSF", 0.95), ("GM", 0.8), ("WM", 0.6)):
        inside = radius < limit
        shape = (n, 3, inside.sum())
        maps[:, :, inside] = np.array(TISSUES[tissue])[:, None] * np.exp(0.05 * rng.standard_normal(shape))
    maps[:, 1] *= t1
    return TissueMaps.from_stack(torch.from_numpy(maps).float())


SOURCES = {"true": people(), "generated": people(5, seed=1, t1=1.2), "inferred": people(4, seed=2)}


@pytest.fixture
def explorer(tmp_path):
    return HistogramExplorer(SOURCES, tmp_path)


def status(explorer):
    return re.sub("<[^>]*>", "", explorer.status.value)


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.image.value)))


# What follows from counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [0.075, 0.8, 4.3])
def test_counts_give_median_quantiles_and_distance_of_the_values(centre):
    rng = np.random.default_rng(3)
    one, other = (centre * np.exp(sd * rng.standard_normal(20000)) for sd in (0.1, 0.2))
    other *= 1.1
    assert median(count(one)) == pytest.approx(np.median(one), rel=0.005)
    assert quantile(count(one), 0.9) == pytest.approx(np.quantile(one, 0.9), rel=0.005)
    assert distance(count(one), count(other)) == pytest.approx(histogram_distance(one, other), abs=0.003)
    band = (0.9 * centre, 1.05 * centre)
    within = np.mean((one >= band[0]) & (one <= band[1]))
    assert share_within(count(one), band) == pytest.approx(within, abs=0.02)


def test_every_value_is_counted_even_one_off_the_scale():
    values = np.array([0.0, 1e-9, 0.5, 19.9, 300.0])
    assert count(values).sum() == len(values)


def test_density_is_that_of_a_gaussian_kernel_and_sums_to_one():
    values = 0.9 * np.exp(0.1 * np.random.default_rng(4).standard_normal(3000))
    x, sd = np.linspace(0.3, 1.8, 600), 0.03
    drawn = density(count(values), x, sd)
    exact = stats.gaussian_kde(values, bw_method=sd / values.std(ddof=1))(x)
    np.testing.assert_allclose(drawn, exact, atol=0.01 * exact.max())
    assert np.trapezoid(drawn, x) == pytest.approx(1, abs=0.005)


def test_no_value_has_no_median_and_no_distance():
    nothing, something = count(np.array([])), count(np.array([1.0]))
    assert np.isnan(median(nothing))
    assert np.isnan(distance(nothing, something))


@pytest.mark.parametrize(
    ("citation", "name"),
    [
        ("Wright PJ et al. Water proton T1 at 7, 3 and 1.5 T. MAGMA 2008;21:121-130", "Wright 2008"),
        ("Rioux JA, Levesque IR, Rutt BK. Biexponential relaxation. Magn Reson Med 2016", "Rioux 2016"),
        ("T1 and T2 of subarachnoid CSF (PMC10696635; authors/volume not seen)", "PMC10696635"),
    ],
)
def test_a_study_is_called_by_author_and_year(citation, name):
    assert short_name(citation) == name


def test_a_tissue_is_what_the_evaluation_calls_it():
    histograms = Histograms(SOURCES)
    values = {name: segmented_values(maps) for name, maps in SOURCES.items()}
    for key in values["true"]:
        table = histograms.table(Choice(*key, sources=("true", "generated")))
        assert list(table.voxels) == [values["true"][key].size, values["generated"][key].size]
        assert table["median"]["true"] == pytest.approx(np.median(values["true"][key]), rel=0.005)
        expected = histogram_distance(values["generated"][key], values["true"][key])
        assert table.distance["generated"] == pytest.approx(expected, abs=0.003)


# What the controls do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "value"),
    [("tissue", "GM"), ("quantity", "T2"), ("field_T", "7"), ("n_slices", 1), ("bandwidth", 10.0), ("cited", ())],
)
def test_every_control_repaints(explorer, control, value):
    before = explorer.image.value
    getattr(explorer, control).value = value
    assert getattr(explorer.choice, control) == value
    assert explorer.image.value != before


def test_unticking_a_source_takes_it_out(explorer):
    before = explorer.image.value
    explorer.ticks["inferred"].value = False
    assert explorer.choice.sources == ("true", "generated")
    assert "inferred" not in status(explorer) + explorer.numbers.value
    assert explorer.image.value != before


def test_the_sentence_says_how_far_generated_is_from_true(explorer):
    values = {name: segmented_values(maps)["WM", "T1"] for name, maps in SOURCES.items()}
    for name in ("generated", "inferred"):
        said = float(re.search(rf"{name} (\d\.\d+)", status(explorer)).group(1))
        assert said == pytest.approx(histogram_distance(values[name], values["true"]), abs=0.003)
    assert "generated 0.2" in status(explorer)  # every T1 is 20 % too long


def test_without_the_truth_the_first_one_ticked_is_the_reference(explorer):
    explorer.ticks["true"].value = False
    assert "from generated" in status(explorer)
    explorer.ticks["generated"].value = False
    assert "only inferred is shown" in status(explorer)


def test_fewer_slices_leave_the_first_source_whole(explorer):
    explorer.n_slices.value = 2
    table = explorer.histograms.table(explorer.choice)
    assert dict(table.slices) == {"true": 6, "generated": 2, "inferred": 2}
    voxels = table.voxels
    explorer.n_slices.value = 3
    assert (explorer.histograms.table(explorer.choice).voxels >= voxels).all()  # slices are added, not drawn anew


def test_a_wider_kernel_is_smoother(explorer):
    def peak(bandwidth):
        explorer.bandwidth.value = bandwidth
        counts = explorer.histograms.chosen(explorer.choice)["true"]
        return density(counts, np.linspace(0.5, 1.5, 300), explorer.choice.sd).max()

    heights = [peak(b) for b in (1.0, 3.0, 10.0)]
    assert heights == sorted(heights, reverse=True)
    assert explorer.choice.sd == pytest.approx(0.1 * sum(CORE_BAND["WM", "T1"]) / 2)


def test_studies_are_those_of_the_table_and_can_be_left_out(explorer):
    rows = studies("WM", "T1", "3")
    assert explorer.references.value.count("<li>") == len(rows)
    assert set(explorer.choice.cited) == {short_name(c) for c in rows.citation}
    explorer.cited.value = ("Lu 2005",)
    chosen = rows[rows.citation.str.startswith("Lu H")]
    assert explorer.references.value.count("<li>") == len(chosen) > 0
    assert "10.1002/" in explorer.references.value
    explorer.tissue.value = "CSF"  # another tissue starts with all of its studies
    assert len(explorer.choice.studies()) == len(studies("CSF", "T1", "3"))


def test_bands_belong_to_3_tesla(explorer):
    assert explorer.choice.bands()["most studies"] == CORE_BAND["WM", "T1"]
    explorer.field_T.value = "7"
    values = studies("WM", "T1", "7")["mean"]
    assert explorer.choice.bands() == {"span at 7 T": (values.min(), values.max())}
    explorer.quantity.value = "PD"  # water content does not know the field
    assert explorer.field_T.disabled
    assert explorer.choice.bands()["most studies"] == CORE_BAND["WM", "PD"]


def test_a_field_nobody_measured_at_says_so(explorer):
    explorer.show(tissue="CSF", quantity="T2", field_T="1.5")
    assert len(studies("CSF", "T2", "1.5")) == 0
    assert "No study of T2 of CSF at 1.5 T" in explorer.references.value
    assert "distance from true" in status(explorer)


@pytest.mark.parametrize("tissue", ["WM", "GM", "CSF"])
@pytest.mark.parametrize("quantity", ["T1", "T2", "PD"])
@pytest.mark.parametrize("field", ["1.5", "3", "7"])
def test_every_combination_can_be_drawn(explorer, tissue, quantity, field):
    explorer.show(tissue=tissue, quantity=quantity, field_T=field)
    assert (explorer.tissue.value, explorer.quantity.value, explorer.field_T.value) == (tissue, quantity, field)
    assert str(explorer.choice) in status(explorer)
    assert picture(explorer).shape == (520, 760, 3)


# Files and stills -----------------------------------------------------------------------------------------------


def test_the_button_makes_a_figure_with_caption_and_citations(explorer, tmp_path):
    explorer.show(tissue="GM", quantity="T2")
    explorer.save.click()
    assert status(explorer).startswith("Saved")
    text = json.loads((tmp_path / "histogram_gm_t2.json").read_text())
    assert "generated (5 slices)" in text["caption"]
    assert "Gelman 1999" in text["caption"]
    assert Image.open(tmp_path / "histogram_gm_t2.png").width == 1400  # 7 in
    assert (tmp_path / "histogram_gm_t2.pdf").read_bytes().startswith(b"%PDF")


def test_a_name_that_cannot_be_used_is_told_in_a_sentence(explorer, tmp_path):
    explorer.file_name.value = "My figure!"
    explorer.save.click()
    assert "should be like" in status(explorer)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    explorer = HistogramExplorer(SOURCES, tmp_path / "file")
    explorer.save.click()
    assert "cannot write" in status(explorer)


def test_the_still_holds_picture_and_numbers(explorer):
    still = explorer.still()
    page = np.asarray(Image.open(io.BytesIO(still.data)))
    assert (page[:520] == picture(explorer)).all()
    assert (page[520:] < 100).any()  # black letters below
    assert "white matter" in still.alt


def test_nothing_that_hangs_papermill_is_used(explorer):
    kinds = [type(widget) for widget in all_widgets(explorer)]
    assert kinds.count(ipywidgets.Image) == 1
    assert ipywidgets.Output not in kinds


# Bad input ------------------------------------------------------------------------------------------------------


def test_nothing_ticked(explorer):
    for box in explorer.ticks.values():
        box.value = False
    assert "No source is ticked: tick at least one of true, generated, inferred" in status(explorer)
    assert picture(explorer).min() == 255
    explorer.save.click()
    assert "No source is ticked" in status(explorer)
    with pytest.raises(ValueError, match="No source is ticked"):
        explorer.still()
    explorer.ticks["true"].value = True
    assert picture(explorer).min() < 255


def test_no_source_at_all(tmp_path):
    explorer = HistogramExplorer({}, tmp_path)
    assert "There is no source to show" in status(explorer)
    explorer.tissue.value = "GM"  # nothing to repaint, and nothing raised
    assert "There is no source to show" in status(explorer)


def test_maps_without_a_brain(tmp_path):
    empty = TissueMaps(*(torch.zeros(2, 48, 40) for _ in range(3)))
    explorer = HistogramExplorer({"empty": empty}, tmp_path)
    assert "No white matter in the chosen slices" in status(explorer)
    both = HistogramExplorer({"true": SOURCES["true"], "empty": empty}, tmp_path)
    assert "only true is shown" in status(both)


def test_what_takes_long_is_made_once_its_box_is_ticked(tmp_path):
    made = []

    def infer(progress):
        progress(0.5)
        made.append(1)
        return SOURCES["inferred"]

    explorer = HistogramExplorer(SOURCES | {"inferred": infer}, tmp_path)
    assert not made and not explorer.ticks["inferred"].value
    explorer.ticks["inferred"].value = True
    explorer.task.wait()
    assert made == [1] and explorer.ticks["inferred"].value
    assert explorer.choice.sources == ("true", "generated", "inferred")
    whole = HistogramExplorer(SOURCES, tmp_path)
    assert status(explorer) == status(whole)
    explorer.ticks["inferred"].value = False
    explorer.ticks["inferred"].value = True
    assert made == [1]


def test_where_a_source_is_missing_the_sentence_stands_for_it(tmp_path):
    explorer = HistogramExplorer(SOURCES | {"generated": BadInput("run/samples: cut short")}, tmp_path)
    assert status(explorer) == "run/samples: cut short"
    assert explorer.choice.sources == ("true", "inferred") and picture(explorer).min() < 255
    explorer.tissue.value = "GM"
    assert "distance from true" in status(explorer)
    explorer.ticks["generated"].value = True
    assert status(explorer) == "run/samples: cut short" and not explorer.ticks["generated"].value
    assert explorer.choice.sources == ("true", "inferred")


def test_what_is_made_first_is_shown_where_nothing_else_is(tmp_path):
    later = {"true": BadInput("run/cohort: cut short"), "inferred": lambda progress: SOURCES["inferred"]}
    explorer = HistogramExplorer(later, tmp_path)
    assert status(explorer) == "run/cohort: cut short" and picture(explorer).min() == 255
    explorer.ticks["inferred"].value = True
    explorer.task.wait()
    assert "only inferred is shown" in status(explorer) and picture(explorer).min() < 255


def test_what_cannot_be_made_leaves_its_box_empty(tmp_path):
    def infer(progress):
        raise BadInput("runs/laptop: no weights here")

    explorer = HistogramExplorer(SOURCES | {"inferred": infer}, tmp_path)
    explorer.ticks["inferred"].value = True
    explorer.task.wait()
    assert status(explorer) == "runs/laptop: no weights here"
    assert not explorer.ticks["inferred"].value and picture(explorer).min() < 255
