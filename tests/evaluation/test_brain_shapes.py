"""Heads drawn with a ruler have the shapes they were drawn with; what is broken on purpose is found broken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from phyldm_core.evaluation.brain_shapes import (
    MEASURES,
    core,
    measure_shapes,
    share_in_range,
    tissue_labels,
    ventricles,
)
from phyldm_core.people.anatomy import find_anatomies
from phyldm_core.people.cohort import CohortRecipe, Subject, simulate
from phyldm_core.physics import TissueMaps
from phyldm_core.tissue import TISSUES, in_vivo_3t

SHAPE = (224, 160)
Y, X = np.indices(SHAPE) - np.array([111.5, 79.5])[:, None, None]
ANGLE = np.arctan2(Y, X)


def ellipse(long: float, wide: float, y: float = 0.0, x: float = 0.0) -> np.ndarray:
    """How far inside (mm, positive) each pixel is of an ellipse with these half axes."""
    return min(long, wide) * (1 - np.hypot((Y - y) / long, (X - x) / wide))


def head(*, left=7.0, right=7.0, cortex=3.0, waves=0.0, gap=0.0, open_skull=0.0) -> np.ndarray:
    """Maps ``(3, y, x)`` of a head of ellipses, 1 mm pixels.

    Parameters
    ----------
    left, right
        Half width (mm) of the two ventricles, 40 mm long.
    cortex
        Thickness, mm.
    waves
        Height (mm) of 24 gyri.
    gap, open_skull
        Width (mm) of a hole in the scalp, and in the skull, towards the forehead.
    """
    white = ellipse(68, 50) + waves * np.cos(24 * ANGLE)
    there = {
        "muscle": ellipse(90, 72) > 0, "bone": ellipse(84, 66) > 0, "CSF": ellipse(78, 60) > 0,
        "GM": white > -cortex, "WM": white > 0,
    }  # fmt: skip
    tissue = np.full(SHAPE, -1)
    for name, where in there.items():
        tissue[where] = TISSUES.index(name)
    for side, width in ((-1, left), (1, right)):
        if width:
            tissue[ellipse(20, width, x=14 * side) > 0] = TISSUES.index("CSF")
    forehead = (Y > 0) & (np.abs(X) < max(gap, open_skull) / 2)
    if gap:
        tissue[forehead & (tissue == TISSUES.index("muscle"))] = -1
    if open_skull:
        tissue[forehead & (tissue == TISSUES.index("bone"))] = TISSUES.index("muscle")
    values = np.concatenate([in_vivo_3t().median, np.zeros((1, 3))])  # the last is air
    return values[tissue].transpose(2, 0, 1).astype(np.float32)


def shapes(*maps: np.ndarray, voxel_mm: float = 1.0):
    return measure_shapes(TissueMaps.from_stack(torch.from_numpy(np.stack(maps))), voxel_mm)


def test_ventricles_are_the_fluid_in_the_middle():
    maps = head(left=10, right=5)
    labels = tissue_labels(TissueMaps.from_stack(torch.from_numpy(maps[None])))[0]
    drawn = (ellipse(20, 10, x=-14) > 0) | (ellipse(20, 5, x=14) > 0)
    assert np.array_equal(ventricles(labels, core(labels > 0)), drawn)


def test_asymmetry_is_the_difference_of_areas_over_their_sum_on_either_side():
    found = shapes(head(), head(left=10, right=5), head(left=5, right=10), head(left=0, right=6)).ventricle_asymmetry
    assert found.tolist() == pytest.approx([0, 5 / 15, 5 / 15, 1], abs=0.03)


def test_asymmetry_does_not_mind_a_head_that_lies_aslant():
    straight = head(left=9, right=6)
    slant = ndimage.rotate(straight, 6, (1, 2), reshape=False, order=0)
    moved = np.roll(slant, (5, -4), (1, 2))
    found = shapes(straight, slant, moved).ventricle_asymmetry
    assert found.tolist() == pytest.approx([0.2] * 3, abs=0.03)


def test_a_head_is_one_ring_until_its_scalp_or_its_skull_has_a_hole():
    whole, scalp, skull = head(), head(gap=12), head(open_skull=12)
    assert shapes(whole, scalp, skull).skull_closed.tolist() == [1, 0, 0]
    assert shapes(head(gap=3)).skull_closed.item() == 1  # less than a suture or a raster may leave
    bare = np.where(ellipse(78, 60) > 0, whole, 0)  # a brain without a head
    assert shapes(bare).skull_closed.item() == 0


def test_a_head_wider_than_the_picture_is_judged_by_what_is_in_it():
    cut = head()[:, :, 14:-14]
    assert shapes(cut, np.where(Y > 79, 0, head())[:, :, 14:-14]).skull_closed.tolist() == [1, 0]


@pytest.mark.parametrize("cortex", [2.0, 3.0, 4.5])
def test_the_cortex_is_as_thick_as_it_was_drawn_smooth_or_folded(cortex):
    """Drawn by half axes, it is thicker where the head is long. Steps of pixels lengthen a line by 6 %."""
    for waves in (0.0, 3.0):
        slice_ = head(cortex=cortex, waves=waves)
        grey, longest = (slice_[1] == np.float32(in_vivo_3t().median[TISSUES.index("GM"), 1])).sum(), 68 / 50
        found = shapes(slice_).cortical_thickness.item()
        if not waves:
            assert cortex < found < longest * cortex
            assert found == pytest.approx(grey / _perimeter(68, 50), rel=0.08)
            smooth = found
    assert found < 1.05 * smooth  # a folded layer of the same grey is not taken for a thicker one


def test_thickness_is_in_mm_and_folding_has_no_unit():
    one, half = (shapes(head(waves=3.0), voxel_mm=mm) for mm in (1.0, 0.5))
    assert half.cortical_thickness.item() == pytest.approx(one.cortical_thickness.item() / 2)
    assert half.folding.item() == one.folding.item()


def test_folding_is_one_for_an_oval_and_grows_with_the_gyri():
    found = shapes(*(head(waves=w) for w in (0.0, 1.5, 3.0, 5.0))).folding
    assert found[0] == pytest.approx(1, abs=0.08)  # a line of pixels has steps
    assert found.is_monotonic_increasing
    line = [_wavy_perimeter(68, 50, w) for w in (0.0, 5.0)]
    assert found[3] / found[0] == pytest.approx(line[1] / line[0] * 50 / 55, rel=0.08)  # hull: at the gyri's crowns


def test_a_picture_of_nothing_has_no_shape():
    found = shapes(np.zeros((3, *SHAPE), np.float32)).iloc[0]
    assert found.skull_closed == 0 and found[list(MEASURES[1:])].isna().all()


def test_share_within_is_nine_in_ten_for_people_and_none_for_what_is_unlike_them():
    rng, person = np.random.default_rng(0), np.repeat(np.arange(200), 8)

    def people(shift: float = 0.0):
        frame = {name: rng.normal(shift, 1, len(person)) for name in MEASURES[1:]}
        return shapes(head()).iloc[:0].reindex(range(len(person))).assign(skull_closed=1.0, **frame)

    true, alike, unlike = people(), people(), people(9.0)
    unlike["folding"], unlike["skull_closed"] = np.nan, 0.25
    table = share_in_range({"generated": alike, "unlike": unlike}, true, person)
    values = table.set_index(["metric", "quantity", "inputs"]).value
    for name in MEASURES[1:]:
        assert values["within_true", name, "true, other half"] == pytest.approx(0.9, abs=0.03)
        assert values["within_true", name, "generated"] == pytest.approx(0.9, abs=0.03)
        assert values["within_true", name, "unlike"] == 0
    assert values["skull_closed", "", "unlike"] == 0.25 and values["skull_closed", "", "generated"] == 1


def test_a_real_head_is_closed_folded_and_nearly_symmetric_until_it_is_changed_on_purpose(shared_data):
    folder = shared_data / "synthseg_labels"
    recipe = CohortRecipe(anatomies=str(folder), voxel_mm=1.0, slice_mm=4.0, shape=SHAPE, n_slices=2, head=True)
    maps = simulate(Subject("", "test", find_anatomies(folder)[-1], 1), recipe).maps.numpy()
    true, soft = shapes(*maps), shapes(*ndimage.gaussian_filter(maps, (0, 0, 2, 2)))
    assert true.skull_closed.all() and not soft.skull_closed.any()
    assert true.folding.between(3, 4.2).all()
    assert (soft.folding < true.folding - 0.3).all()
    assert true.cortical_thickness.between(2.3, 5).all() and (true.ventricle_asymmetry < 0.4).all()
    one_sided = maps.copy()
    middle = one_sided[:, :, 52:172, 40:80].transpose(1, 0, 2, 3)  # of the left half
    middle[:, middle[1] > 2] = in_vivo_3t().median[TISSUES.index("WM"), :, None]
    assert (shapes(*one_sided).ventricle_asymmetry > 0.6).all()
    maps[..., 80:] = maps[..., 79::-1]
    assert (shapes(*maps).ventricle_asymmetry < 0.01).all()


def _perimeter(a: float, b: float) -> float:
    return _wavy_perimeter(a, b, 0)


def _wavy_perimeter(a: float, b: float, waves: float) -> float:
    """Of the line white = 0 in :func:`head`, by small steps."""
    angle = np.linspace(0, 2 * np.pi, 20_001)
    scale = 1 + waves / min(a, b) * np.cos(24 * angle)
    radius = scale / np.hypot(np.sin(angle) / a, np.cos(angle) / b)
    points = radius * np.array([np.cos(angle), np.sin(angle)])
    return float(np.hypot(*np.diff(points, axis=1)).sum())
