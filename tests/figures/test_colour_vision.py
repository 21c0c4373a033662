"""The house colours survive a grey printer and other eyes."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from phyldm_core.figures import colour_vision
from phyldm_core.figures.colour_vision import VISIONS, closest, lightness, seen
from phyldm_core.figures.curves import LINES
from phyldm_core.figures.style import QUANTITIES, TISSUE_COLOURS

RISING = ("PD", "T1", "T2", "SD", "residual")


def window(quantity: str) -> np.ndarray:
    """``(200, 3)``: a quantity's colours from the low end of its window to the high, in equal steps of value."""
    shown = QUANTITIES[quantity]
    return shown.cmap(np.asarray(shown.norm()(np.linspace(shown.low, shown.high, 200)), float))[:, :3]


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("quantity", RISING)
def test_larger_values_are_lighter_for_everyone(quantity, vision):
    light = lightness(seen(window(quantity), vision))
    assert (np.diff(light) > -1e-6).all()
    assert light[-1] - light[0] > 80


@pytest.mark.parametrize("vision", VISIONS)
def test_an_error_is_the_darker_the_larger_for_everyone(vision):
    shown = QUANTITIES["error"]
    light = lightness(seen(shown.cmap(shown.norm()([-25, -15, -8, 0, 8, 15, 25]))[:, :3], vision))
    assert (np.diff(light[:4]) > 5).all() and (np.diff(light[3:]) < -5).all()


@pytest.mark.parametrize("vision", VISIONS)
def test_tissues_stay_apart_for_everyone(vision):
    distance, pair = closest({name: to_rgb(colour) for name, colour in TISSUE_COLOURS.items()}, vision)
    assert distance > (7 if vision == "greyscale" else 11), pair


@pytest.mark.parametrize("vision", VISIONS)
def test_lines_of_one_axis_stay_apart_for_everyone(vision):
    distance, pair = closest({colour: to_rgb(colour) for colour in LINES}, vision)
    assert distance > 7, pair


def test_tissues_go_from_dark_to_light_in_grey():
    csf, gm, wm = (lightness(to_rgb(TISSUE_COLOURS[name])) for name in ("CSF", "GM", "WM"))
    assert csf + 7 < gm and gm + 7 < wm


def test_the_check_can_fail():
    rainbow = mpl.colormaps["jet"](np.linspace(0, 1, 200))[:, :3]
    assert (np.diff(lightness(rainbow)) < -0.1).any()
    traffic_lights = {"go": (0.17, 0.63, 0.17), "stop": (0.84, 0.15, 0.16)}  # tab:green, tab:red
    assert closest(traffic_lights, "deuteranomaly")[0] < 0.4 * closest(traffic_lights, "as it is")[0]


def test_grey_has_no_colour_and_keeps_lightness():
    colours = np.random.default_rng(0).random((50, 3))
    grey = seen(colours, "greyscale")
    assert np.ptp(grey, axis=-1).max() < 0.01
    np.testing.assert_allclose(lightness(grey), lightness(colours), atol=0.2)
    np.testing.assert_array_equal(seen(colours, "as it is"), colours)


def test_simulations_are_those_that_were_published():
    red = seen((1.0, 0.0, 0.0), "deuteranomaly")  # Machado et al. 2009, Table 1: 0.367, 0.280, −0.012 in linear light
    linear = np.where(red <= 0.04045, red / 12.92, ((red + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(linear, (0.367322, 0.280085, 0), atol=1e-3)
    with pytest.raises(ValueError, match="choose one of as it is, greyscale"):
        seen((1, 0, 0), "bat")


def test_the_figure_of_the_house_colours_is_written_with_its_words(tmp_path):
    colour_vision.write_figure(tmp_path)
    assert {path.suffix for path in tmp_path.glob(f"{colour_vision.FIGURE}.*")} == {".png", ".json"}
