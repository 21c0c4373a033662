"""What a figure shows is where, and as large, as the reader is told."""

from __future__ import annotations

import io
import json
import re
from itertools import combinations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from skimage.color import rgb2lab

from phyldm_core import figures, physics, tissue
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import segmentation
from phyldm_core.running.profiles import PROFILES, architecture_of

SHAPE = (112, 80)
RADIUS = np.hypot(*np.mgrid[-1.1 : 1.1 : SHAPE[0] * 1j, -1.1 : 1.1 : SHAPE[1] * 1j])
LABELS = np.select([RADIUS < 0.25, RADIUS < 0.65, RADIUS < 0.9, RADIUS < 1], [1, 3, 2, 1], 0)  # CSF, WM, GM, CSF; air
TISSUE = {"CSF": (1.0, 4.3, 2.0), "GM": (0.82, 1.45, 0.083), "WM": (0.70, 0.88, 0.073)}


@pytest.fixture(autouse=True)
def house_style():
    with mpl.rc_context():
        figures.use_house_style()
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def maps():
    """PD, T1, T2 of a head of rings, ``(3, y, x)``, 0 in air."""
    table = np.array([(0, 0, 0), *TISSUE.values()])
    texture = np.exp(0.05 * np.random.default_rng(0).normal(size=(3, *SHAPE)))
    return np.moveaxis(table[LABELS], -1, 0) * texture


def rendered(maps, protocol):
    return physics.render(physics.TissueMaps(*torch.from_numpy(maps)), protocol).numpy()


@pytest.fixture(scope="module")
def scans(maps):
    return {name: rendered(maps, protocol) for name, protocol in physics.REFERENCE.items()}


def pixels(fig):
    return np.asarray(Image.open(io.BytesIO(figures.to_png(fig))).convert("RGB")).astype(int)


def filled(draw):
    """A figure with one slice and nothing else."""
    fig = plt.figure(figsize=(0.8, 1.12))
    draw(fig.add_axes((0, 0, 1, 1)))
    return pixels(fig)


# --- colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("high", [4.0, 0.5])
def test_the_relaxation_curve_is_continuous_rises_and_inverts(high):
    norm = figures.relaxation_norm(0, high)
    t, step = np.linspace(0, high, 10_001, retstep=True)
    shown = norm(t)
    assert shown[0] == 0 and shown[-1] == pytest.approx(1)
    slope = np.diff(shown) / step
    assert (slope > 0).all()
    knee = round(high / np.e / step)
    assert slope[knee - 2] == pytest.approx(slope[knee + 2], rel=1e-2)  # no kink at the knee
    assert np.abs(np.diff(slope)).max() < 0.01 * slope[0]  # nor a jump anywhere
    np.testing.assert_allclose(norm.inverse(shown), t, atol=1e-9)


def test_the_curve_gives_half_its_levels_to_the_first_third_of_the_window():
    assert figures.relaxation_norm(0, 4)(4 / np.e) == pytest.approx(0.5)


@pytest.mark.parametrize("quantity", ["PD", "T1", "T2", "residual"])
def test_colour_maps_rise_in_lightness_so_that_they_survive_greyscale(quantity):
    colours = figures.QUANTITIES[quantity].cmap(np.linspace(0, 1, 256))[None, :, :3]
    assert (np.diff(rgb2lab(colours)[0, :, 0]) > 0).all()


def test_tissue_colours_differ_in_lightness():
    lightness = [rgb2lab(np.array(mpl.colors.to_rgb(c))[None, None])[0, 0, 0] for c in figures.TISSUE_COLOURS.values()]
    assert min(abs(a - b) for a, b in combinations(lightness, 2)) > 7  # L* steps that print apart


@pytest.mark.parametrize("quantity", ["PD", "T1", "T2"])
def test_no_value_is_black_and_the_least_value_is_not_always(quantity):
    values = np.full(SHAPE, 0.7)
    values[:, 40:] = np.nan  # the patient's right half
    image = filled(lambda ax: figures.show_map(ax, values, quantity, marks=""))
    assert (image[:, :39] == 0).all() and (image[:, 42:].sum(-1) > 0).all()
    picture = figures.to_rgb(values, quantity)
    assert (picture[:, :40] == 0).all() and (picture[:, 40:].sum(-1) > 0).all()


# --- orientation, size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", ["map", "image", "rgb"])
def test_the_patients_right_is_on_the_viewers_left_and_anterior_on_top(show):
    values = np.full(SHAPE, 0.05)
    values[90:100, 65:75] = 1.0  # right (high x), anterior (high y)
    if show == "rgb":
        image = figures.to_rgb(values, "PD").astype(int)
    elif show == "map":
        image = filled(lambda ax: figures.show_map(ax, values, "PD", marks=""))
    else:
        image = filled(lambda ax: figures.show_image(ax, values, window=(0, 1), marks=""))
    assert image.shape[:2] == SHAPE
    y, x = np.argwhere(image.sum(-1) > 500).mean(0)
    assert x == pytest.approx(79 - 69.5, abs=1) and y == pytest.approx(111 - 94.5, abs=1)


def test_marks_name_the_sides():
    fig, ax = plt.subplots()
    figures.show_map(ax, np.ones(SHAPE), "PD")
    x = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert x["R"] < x["A"] < x["L"]


def test_pixels_are_as_tall_as_voxels_and_the_bar_as_long_as_it_says():
    fig, ax = plt.subplots()
    figures.show_map(ax, np.ones((60, 80)), "PD", voxel_mm=(4.0, 2.0), scale_bar_mm=50)
    fig.canvas.draw()
    assert ax.get_aspect() == 2
    (bar,) = ax.lines
    assert abs(np.diff(bar.get_xdata())[0]) * 2.0 == pytest.approx(50)
    assert "50 mm" in [text.get_text() for text in ax.texts]
    left, _ = ax.transData.transform((max(bar.get_xdata()), 0))
    assert ax.bbox.x0 < left < ax.bbox.x0 + 0.1 * ax.bbox.width


def test_tensors_with_a_gradient_can_be_shown():
    drawn = figures.show_map(plt.subplots()[1], torch.ones(SHAPE, requires_grad=True), "T1")
    assert drawn.get_array().shape == SHAPE


def test_a_png_holds_the_picture():
    picture = figures.to_rgb(np.linspace(0, 4, 80 * 112).reshape(SHAPE), "T1")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(figures.to_png(picture)))), picture)


def test_unusable_input_is_refused_in_a_sentence(maps):
    ax = plt.subplots()[1]
    with pytest.raises(ValueError, match="choose a slice"):
        figures.show_map(ax, maps, "T1")
    with pytest.raises(ValueError, match="choose one of PD, T1, T2"):
        figures.show_map(ax, maps[1], "T3")
    with pytest.raises(ValueError, match="same slice"):
        figures.show_map(ax, maps[1], "T1", inside=np.ones((3, 3)))
    with pytest.raises(ValueError, match="every panel is empty"):
        figures.map_grid([[None, figures.Panel(None)]])
    with pytest.raises(ValueError, match="groups hold 3"):
        figures.map_grid([[figures.Panel(maps[0], "PD")]], groups=[("tissue", 3)])


def test_an_empty_image_has_a_window():
    assert figures.percentile_window(np.zeros(SHAPE)) == (0, 1)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_saving_twice_gives_the_same_bytes(tmp_path, maps, scans, monkeypatch):
    def saved(folder, clock):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", clock)  # the time that matplotlib takes it to be
        fig = figures.inference(scans, maps, truth=maps)
        return figures.save_figure(fig, folder, "fig01_maps", caption="Maps, n = 1.", alt="Six brain slices.", pdf=True)

    first, second = saved(tmp_path / "a", "1"), saved(tmp_path / "b", "1000000000")
    assert [path.name for path in first] == ["fig01_maps.png", "fig01_maps.json", "fig01_maps.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert json.loads(first[1].read_text()) == {"caption": "Maps, n = 1.", "alt": "Six brain slices."}
    assert Image.open(first[0]).width == 1400  # 7 in at 200 dpi
    assert b"/Type42" in first[2].read_bytes() or b"/CIDFontType2" in first[2].read_bytes()  # text stays text
    assert len(list((tmp_path / "a").iterdir())) == 3  # no half-written file left behind


def test_a_pdf_is_made_where_it_is_asked_for_alone(tmp_path, monkeypatch):
    fig, words = plt.figure(figsize=(1, 1)), {"caption": "Nothing, n = 0.", "alt": "An empty page."}
    figures.save_figure(fig, tmp_path / "plain", "fig01_a", **words)
    monkeypatch.setenv("PHYLDM_PDF", "1")
    figures.save_figure(fig, tmp_path / "asked", "fig01_a", **words)
    assert [p.suffix for p in sorted((tmp_path / "plain").iterdir())] == [".json", ".png"]
    assert [p.suffix for p in sorted((tmp_path / "asked").iterdir())] == [".json", ".pdf", ".png"]


def test_figures_need_a_name_words_and_a_place(tmp_path):
    fig = plt.figure(figsize=(1, 1))
    with pytest.raises(ValueError, match="like fig01_topic"):
        figures.save_figure(fig, tmp_path, "Figure 1", caption="c", alt="a")
    with pytest.raises(ValueError, match="alt text"):
        figures.save_figure(fig, tmp_path, "fig01_a", caption="c", alt=" ")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput):
        figures.save_figure(fig, tmp_path / "file", "fig01_a", caption="c", alt="a")


# --- whole figures ---------------------------------------------------------------------------------------------------


def values_by_tissue(maps):
    return segmentation.tissue_values(maps[None], LABELS[None])


def history(n=200):
    step = np.arange(n)
    return pandas.DataFrame({"step": step, "loss": np.exp(-step / 50) + 0.1, "kl": 20 - 19 * np.exp(-step / 30)})


NETWORK = {
    "scans": ("T1w", "T2w", "FLAIR"),
    "encoder": [(32, (56, 40)), (64, (28, 20)), (97, (14, 10))],
    "latent": (23, 14, 10),
    "decoder": [(97, (14, 10)), (33, (56, 40)), (16, (112, 80))],
    "denoiser": "transformer, 12 × 256",
    "n_steps": 19,
    "parameters": {"encoder": 812_000, "decoder": 1_430_000, "denoiser": 7_300_000},
}


def unseen(maps, factor=None):
    images = [rendered(maps, protocol) for protocol in physics.UNSEEN]
    if factor is None:
        return figures.unseen(physics.UNSEEN, images)
    noted = [f"{28.125:.1f} dB"] * 9
    return figures.unseen(physics.UNSEEN, [factor * image for image in images], images, notes=noted)


FIGURES = {
    "inference": lambda m, s: figures.inference(s, m),
    "inference against truth": lambda m, s: figures.inference(
        {**s, "FLAIR": None}, 1.1 * m, truth=m, predicted={k: 1.1 * v for k, v in s.items()}
    ),
    "samples": lambda m, s: figures.samples([m, m], {name: [image, image] for name, image in s.items()}),
    "mosaic": lambda m, s: figures.mosaic([m[2]] * 11, "T2", labels=[f"{i}" for i in range(11)]),
    "unseen": lambda m, s: unseen(m),
    "unseen against truth": lambda m, s: unseen(m, 1.1),
    "histograms": lambda m, s: figures.tissue_histograms(
        {"true": values_by_tissue(m), "generated": values_by_tissue(1.05 * m), "inferred": values_by_tissue(0.9 * m)},
        distances=dict.fromkeys(values_by_tissue(m), 0.08),
    ),
    "training": lambda m, s: figures.training_curves(
        history(), {"loss": ["loss"], "both": ["loss", "kl"]}, validation=history().iloc[::40], log=["loss"]
    ),
    "agreement T1": lambda m, s: agreement(m, "T1"),
    "agreement T2": lambda m, s: agreement(m, "T2"),
    "agreement PD": lambda m, s: agreement(m, "PD"),
    "architecture": lambda m, s: figures.architecture(
        **NETWORK, pictures={**s, **dict(zip(figures.MAPS, m, strict=True))}
    ),
    "architecture without pictures": lambda m, s: figures.architecture(**NETWORK),
    "architecture with a composition level": lambda m, s: figures.architecture(**NETWORK, composition=(45, 14, 10)),
    **{
        f"architecture of profile {name}": lambda m, s, profile=profile: figures.architecture(
            **architecture_of(profile)
        )
        for name, profile in PROFILES.items()
    },
}


def agreement(maps, quantity):
    true = {name: values_by_tissue(maps)[name, quantity] for name in TISSUE}
    return figures.agreement({name: 1.1 * values for name, values in true.items()}, true, quantity)


def drawn_texts(fig, monkeypatch) -> dict[str, list]:
    """Every text that reaches the page, with its box in pixels."""
    seen, draw = {}, Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            seen[id(self)] = self
        return draw(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", record)
        fig.canvas.draw()
    return [(text.get_text(), text.get_window_extent()) for text in seen.values()]


def test_a_notebook_that_shows_a_figure_holds_its_alt_text(tmp_path):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.core.pylabtools import select_figure_formats

    shell = InteractiveShell.instance()
    try:
        select_figure_formats(shell, {"png"})
        told, silent = (plt.subplots(figsize=(1, 1))[0] for _ in range(2))
        for k in range(2):
            figures.save_figure(told, tmp_path, "fig01_a", caption="c", alt=f"Nothing, {k}.")
        assert shell.display_formatter.format(told)[1] == {"image/png": {"alt": "Nothing, 1."}}
        assert not shell.display_formatter.format(silent)[1]
    finally:
        InteractiveShell.clear_instance()


@pytest.mark.parametrize("name", FIGURES)
def test_no_label_overlaps_another_or_leaves_the_page(name, maps, scans, monkeypatch):
    fig = FIGURES[name](maps, scans)
    texts = drawn_texts(fig, monkeypatch)
    assert len(texts) > 3
    for text, box in texts:
        assert box.x0 >= -1 and box.y0 >= -1, f"{text!r} leaves the page"
        assert box.x1 <= fig.bbox.x1 + 1 and box.y1 <= fig.bbox.y1 + 1, f"{text!r} leaves the page"
    for (one, a), (other, b) in combinations(texts, 2):
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert not (width > -2 and height > 1), f"{one!r} and {other!r} overlap or touch"


def test_one_window_per_quantity_and_one_bar_per_column(maps, scans):
    fig = figures.inference(scans, maps, truth=maps)
    windows = {image.cmap.name: set() for ax in fig.axes for image in ax.images}
    for ax in fig.axes:
        for image in ax.images:
            windows[image.cmap.name].add((image.norm.vmin, image.norm.vmax))
    assert windows["lipari"] == {(0, 4)} and windows["navia"] == {(0, 0.2)} and windows["vik"] == {(-30, 30)}
    labels = [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel()]
    assert sorted(labels) == sorted(["PD (water = 1)", "$T_1$ (s)", "$T_2$ (ms)", "error (% of truth)"])


def test_the_error_shown_is_the_error_made(maps, scans):
    fig = figures.inference(scans, 1.1 * maps, truth=maps, predicted={k: 0.95 * v for k, v in scans.items()})
    errors = [image.get_array() for ax in fig.axes for image in ax.images if image.cmap.name == "vik"]
    assert len(errors) == 3
    for error in errors:
        np.testing.assert_allclose(error[LABELS > 0], 10)
        assert np.ma.getmaskarray(np.ma.masked_invalid(error))[LABELS == 0].all()
    residuals = [image.get_array() for ax in fig.axes for image in ax.images if image.cmap.name == "lajolla"]
    peak = figures.percentile_window(scans["T1w"])[1]
    np.testing.assert_allclose(residuals[0][LABELS > 0], (5 * scans["T1w"] / peak)[LABELS > 0])


def test_a_missing_scan_is_said_to_be_missing(maps, scans):
    fig = figures.inference({**scans, "T2w": None}, maps)
    assert [text.get_text() for ax in fig.axes for text in ax.texts].count("not acquired") == 1


def test_air_has_no_relaxation_time(maps, scans):
    fig = figures.inference(scans, maps)
    shown = next(image.get_array() for ax in fig.axes for image in ax.images if image.cmap.name == "lipari")
    assert np.isnan(np.ma.filled(shown, np.nan)[LABELS == 0]).all()
    np.testing.assert_array_equal(shown[LABELS > 0], maps[1][LABELS > 0])


def test_generated_and_true_contrasts_share_a_window_and_darkness_is_named(maps):
    fig = unseen(maps, 1.1)
    images = [image for ax in fig.axes for image in ax.images]
    assert len(images) == 18
    for generated, true in zip(images[::2], images[1::2], strict=True):
        assert generated.norm.vmax == true.norm.vmax
    dark = [ax for ax in fig.axes if "no signal left" in [text.get_text() for text in ax.texts]]
    assert len(dark) == 2  # one setting, generated and true
    assert sum("†" in text.get_text() for text in fig.texts) == 1  # the one that no scanner runs


def test_the_studies_are_living_brains_at_the_field_asked_for():
    found = figures.studies("WM", "T1")
    assert len(found) > 15 and found["mean"].between(0.6, 1.2).all()  # seconds
    assert not found.citation.str.startswith("Stanisz").any()  # excised tissue
    assert figures.studies("WM", "T1", field_T="7")["mean"].min() > found["mean"].median()  # T1 grows with the field
    assert 0.503 in figures.studies("CSF", "T2")["mean"].tolist()  # an outlier is shown, not hidden


@pytest.mark.parametrize("key", figures.CORE_BAND)
def test_most_studies_lie_where_the_core_band_says(key):
    (low, high), outer = figures.CORE_BAND[key], tissue.OUTER_BAND[key]
    assert outer[0] <= low < high <= outer[1]
    assert low <= figures.studies(*key)["mean"].median() <= high


def test_histograms_show_the_bands_and_every_sample_counts_once(maps):
    fig = figures.tissue_histograms({"true": values_by_tissue(maps)})
    ax = next(ax for ax in fig.axes if ax.get_xlabel() == "$T_2$ (ms)")  # of white matter, the first column
    spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches[:2]]
    assert (spans[1].x0, spans[1].x1) == pytest.approx((65, 80))  # ms
    bars = next(p for p in ax.patches if p.get_label() == "true").get_xy()
    assert bars[:, 1].max() < 1
    ticks = next(line for line in ax.lines if line.get_marker() == "|").get_xdata()
    np.testing.assert_allclose(ticks, 1000 * figures.studies("WM", "T2")["mean"])


def test_bias_is_printed_as_it_is(maps):
    labels = [text.get_text() for text in agreement(maps, "T1").legends[0].get_texts()]
    percent = 200 * 0.1 / 2.1  # of the mean of both
    assert all(re.search(rf"\+{percent:.1f} %", label) for label in labels)


def test_the_architecture_holds_the_numbers_it_was_given():
    words = {text.get_text() for ax in figures.architecture(**NETWORK).axes for text in ax.texts}
    everything = "\n".join(words)
    sizes = {f"{y}×{x}" for _, (y, x) in (*NETWORK["encoder"], *NETWORK["decoder"])}
    channels = {str(c) for c, _ in (*NETWORK["encoder"], *NETWORK["decoder"])}
    assert sizes | channels <= words
    for number in ("23×14×10", "19 steps", "0.8 M", "1.4 M", "7.3 M", "transformer, 12 × 256"):
        assert number in everything
