"""The contrast explorer, driven as a hand would drive it, without a browser."""

from __future__ import annotations

import gc
import html
import io
import math
import re

import ipywidgets
import nibabel
import numpy as np
import psutil
import pytest
import torch
from conftest import all_widgets
from PIL import Image

from phyldm_core.explorers.console import CLINIC, OWN, PRESETS, move, set_by, stay_physical
from phyldm_core.explorers.contrasts import ContrastExplorer
from phyldm_core.explorers.people import draw_from, of_maps, problem_with
from phyldm_core.explorers.pictures import HEIGHT
from phyldm_core.explorers.readings import PLOT
from phyldm_core.machine.errors import BadInput
from phyldm_core.physics import REFERENCE, UNSEEN, Protocol, Sequence, TissueMaps, ernst_angle, null_ti, render
from phyldm_core.scans import bids
from phyldm_core.scans.maps import write_maps

TISSUES = {"WM": (0.69, 0.92, 0.075), "GM": (0.83, 1.44, 0.080), "CSF": (0.99, 4.3, 1.9)}  # PD, T1 (s), T2 (s)


def slice_maps(n_y=28, n_x=20):
    """A disc of white matter in a ring of grey matter in CSF in air, T1 and T2 NaN in the air."""
    y, x = np.mgrid[:n_y, :n_x]
    radius = np.hypot(y - n_y / 2, x - n_x / 2) / n_x * 2
    values = np.full((3, n_y, n_x), np.nan)
    values[0] = 0
    for tissue, limit in (("CSF", 0.9), ("GM", 0.7), ("WM", 0.4)):
        values[:, radius < limit] = np.array(TISSUES[tissue])[:, None]
    return TissueMaps(*torch.from_numpy(values).float())


@pytest.fixture
def explorer():
    return ContrastExplorer({"first": slice_maps(), "second": slice_maps(36, 30)}, tissues=TISSUES)


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.image.value)))


def status(explorer):
    return html.unescape(re.sub("<[^>]*>", "", explorer.status.value))


def numbers(explorer):
    """Rows of the table of numbers, each a list of its cells' text."""
    rows = re.findall("<tr>(.*?)</tr>", explorer.numbers.value)
    return [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in rows]


# What the controls do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slider", "value"), [("te", 0.08), ("tr", 4.0), ("ti", 0.4)])
def test_every_time_repaints_image_curves_and_numbers(explorer, slider, value):
    before = explorer.image.value, explorer.plot.value, explorer.numbers.value
    getattr(explorer, slider).value = value
    assert getattr(explorer.protocol, slider) == value
    for old, new in zip(before, (explorer.image.value, explorer.plot.value, explorer.numbers.value), strict=True):
        assert old != new
    assert explorer.preset.value == OWN  # no longer the preset it started from


def test_the_image_is_the_physics_layer_s_in_radiological_view(explorer):
    explorer.auto.value = False
    explorer.level.value, explorer.width.value = 0.25, 0.5  # black 0, white 0.5
    explorer.row.value = explorer.column.value = 0  # the cross out of the way
    n_y, n_x = 28, 20
    shown = picture(explorer)
    assert shown.shape == (HEIGHT, HEIGHT * n_x // n_y, 3)
    expected = np.nan_to_num(render(explorer.subjects["first"], REFERENCE["T1w"]).numpy())
    for y, x in ((14, 10), (20, 13), (8, 6)):
        step = HEIGHT // n_y
        grey = shown[(n_y - 1 - y) * step + step // 2, (n_x - 1 - x) * step + step // 2]
        assert grey[0] == grey[1] == grey[2] == pytest.approx(255 * min(expected[y, x] / 0.5, 1), abs=2)


def test_numbers_are_the_physics_layer_s(explorer):
    explorer.ti.value = 0.7
    protocol = Protocol("MPRAGE", te=0.003, tr=2.4, ti=0.7)
    signals = {}
    assert numbers(explorer)[0] == ["", "signal", "null at TI"]
    for row, (name, values) in zip(numbers(explorer)[1:], TISSUES.items(), strict=False):
        signals[name] = render(TissueMaps(*torch.tensor(values)), protocol).item()
        null = null_ti(values[1], protocol.tr, protocol.sequence)
        assert row == [name, f"{signals[name]:.3f}", f"{null:.3f} s"]
    assert numbers(explorer)[4][:2] == ["CNR WM–GM", f"{abs(signals['WM'] - signals['GM']) / 0.01:.1f}"]


def test_a_gradient_echo_has_a_flip_angle_and_ernst_angles(explorer):
    explorer.sequence.value = "spoiled gradient echo"
    assert explorer.protocol == CLINIC["T1w spoiled gradient echo"]
    assert explorer.ti.disabled and not explorer.flip_angle_deg.disabled
    before = explorer.image.value
    explorer.flip_angle_deg.value = 5
    assert explorer.protocol.flip_angle_deg == 5
    assert explorer.image.value != before
    protocol = Protocol("spoiled gradient echo", 0.004, 0.02, flip_angle_deg=5)
    assert numbers(explorer)[0][2] == "Ernst angle"
    for row, values in zip(numbers(explorer)[1:], TISSUES.values(), strict=False):
        signal = render(TissueMaps(*torch.tensor(values)), protocol).item()
        assert row[1:] == [f"{signal:.3f}", f"{math.degrees(ernst_angle(values[1], 0.02)):.1f}°"]
    explorer.sequence.value = "MPRAGE"
    assert explorer.flip_angle_deg.disabled and explorer.protocol == REFERENCE["T1w"]
    assert explorer.tr.value == pytest.approx(2.4)


@pytest.mark.parametrize("sequence", list(Sequence))
def test_every_sequence_can_be_chosen_and_each_of_its_settings_moved_and_plotted(explorer, sequence):
    explorer.sequence.value = sequence.value
    assert explorer.protocol.sequence is sequence
    for name in set_by(sequence):
        control, before = getattr(explorer, name), explorer.image.value
        assert not control.disabled
        explorer.along.value = name
        control.value = control.value * 0.9 if name == "flip_angle_deg" else control.value * 1.2
        assert explorer.image.value != before
    assert {name for _, name in explorer.along.options} == set(set_by(sequence))


def test_a_spin_echo_has_neither_ti_nor_null_points(explorer):
    explorer.sequence.value = "spin echo"
    assert explorer.protocol == CLINIC["T2w spin echo"]
    assert explorer.ti.disabled
    assert [name for name, _ in explorer.along.options] == ["TE", "TR"]
    assert "null" not in explorer.numbers.value
    explorer.sequence.value = "FLAIR"
    assert explorer.protocol == REFERENCE["FLAIR"]
    assert not explorer.ti.disabled
    assert "null" in explorer.numbers.value


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_shows_its_own_protocol(explorer, name):
    explorer.preset.value = OWN
    explorer.preset.value = name
    assert explorer.protocol == PRESETS[name]
    assert explorer.preset.value == name
    assert explorer.te.value == pytest.approx(PRESETS[name].te)
    assert explorer.tr.value == pytest.approx(PRESETS[name].tr)
    for _, time in explorer.along.options:
        explorer.along.value = time
        assert Image.open(io.BytesIO(explorer.plot.value)).size == PLOT


def test_presets_hold_the_nine_contrasts_of_the_paper(explorer):
    assert set(UNSEEN) <= set(PRESETS.values())


def test_curve_can_run_over_each_time(explorer):
    seen = set()
    for time in ("ti", "te", "tr"):
        explorer.along.value = time
        seen.add(explorer.plot.value)
    assert len(seen) == 3


def test_window_follows_the_image_until_told_otherwise(explorer):
    white = explorer.level.value + explorer.width.value / 2
    explorer.te.value = 0.1
    assert explorer.level.value + explorer.width.value / 2 < white
    assert explorer.level.disabled
    explorer.auto.value = False
    held, before = explorer.width.value, explorer.image.value
    explorer.te.value = 0.05
    assert explorer.width.value == held
    explorer.level.value = 0.9
    assert explorer.image.value != before


@pytest.mark.parametrize(("row", "column"), [(14, 10), (7, 9), (20, 5)])
def test_the_voxel_under_the_cross_reads_its_map_values(explorer, row, column):
    explorer.row.value, explorer.column.value = row, column
    y, x = explorer.pixel
    assert (y, x) == (27 - row, 19 - column)  # the view is flipped both ways
    pd, t1, t2 = (float(m[y, x]) for m in explorer.subjects["first"])
    signal = render(explorer.subjects["first"], explorer.protocol)[y, x].item()
    told = f"PD {pd:.2f}, T1 {t1:.3f} s, T2 {1000 * t2:.0f} ms"
    assert numbers(explorer)[-2:] == [[f"voxel [{y}, {x}]", f"{signal:.3f}", ""], ["", told]]
    cross = picture(explorer)[int((row + 0.5) * 20), int((column + 0.5) * 20) + 10]
    assert tuple(cross) == (255, 255, 0)


def test_air_has_no_tissue(explorer):
    explorer.row.value = explorer.column.value = 0
    assert numbers(explorer)[-1][-1] == "no tissue"


def mouse(side, kind, y, x):
    """As a browser that shows the picture 300 pixels wide and 420 high reports it."""
    at = {"relativeY": 420 * y, "relativeX": 300 * x, "boundingRectHeight": 420, "boundingRectWidth": 300}
    side.mouse.hear({"type": kind} | at)


@pytest.mark.parametrize(("row", "column"), [(14, 10), (0, 0), (27, 19)])
def test_a_click_puts_the_cross_on_the_voxel_under_it(explorer, row, column):
    where = (row + 0.4) / 28, (column + 0.6) / 20
    mouse(explorer.side, "mousedown", *where)
    mouse(explorer.side, "mouseup", *where)
    assert (explorer.row.value, explorer.column.value) == (row, column)
    assert numbers(explorer)[-2][0] == f"voxel [{27 - row}, {19 - column}]"
    assert explorer.auto.value


def test_a_drag_sets_window_and_level_and_leaves_the_cross(explorer):
    before, level, width = explorer.pixel, explorer.level.value, explorer.width.value
    mouse(explorer.side, "mousedown", 0.5, 0.5)
    assert explorer.side.mouse.moves.watched_events == ["mousemove"]  # an idle mouse sends nothing
    mouse(explorer.side, "mousemove", 0.4, 0.75)
    mouse(explorer.side, "mouseup", 0.4, 1.0)
    assert explorer.width.value == pytest.approx(2 * width, rel=0.01)
    assert explorer.level.value == pytest.approx(level - 0.1 * width, abs=0.005)
    assert not explorer.auto.value and not explorer.level.disabled
    assert explorer.pixel == before
    assert explorer.side.mouse.moves.watched_events == []
    mouse(explorer.side, "mousemove", 0.1, 0.1)  # nothing is held
    assert explorer.width.value == pytest.approx(2 * width, rel=0.01)
    explorer.auto.value = True
    assert explorer.width.value == pytest.approx(width, abs=0.005)


def test_two_protocols_side_by_side(explorer):
    first = explorer.image.value
    explorer.compare.value = True
    a, b = explorer.sides
    assert explorer.side is b and b.image.layout.display == ""
    explorer.preset.value = "T2-FLAIR"
    assert (a.protocol, b.protocol) == (REFERENCE["T1w"], REFERENCE["FLAIR"])
    assert numbers(explorer)[0] == ["", "signal A", "signal B", "null at TI, A", "null at TI, B"]
    for row, values in zip(numbers(explorer)[1:], TISSUES.values(), strict=False):
        signals = [render(TissueMaps(*torch.tensor(values)), side.protocol).item() for side in (a, b)]
        assert row[1:3] == [f"{signal:.3f}" for signal in signals]
    mouse(a, "mousedown", 0.5, 0.5)  # the controls follow the picture that is touched
    assert explorer.which.value == "A" and explorer.sequence.value == "MPRAGE"
    mouse(a, "mouseup", 0.5, 0.7)
    assert a.window is not None and b.window is None
    assert Image.open(io.BytesIO(explorer.still().data)).width > 2 * HEIGHT * 20 // 28 + PLOT[0]
    explorer.compare.value, explorer.auto.value = False, True
    assert b.image.layout.display == "none"
    assert explorer.image.value == first


def test_slices_of_a_stack(explorer):
    low, high = slice_maps(), slice_maps()
    high.pd[:14] *= 0.5
    stack = TissueMaps(*(torch.stack(both) for both in zip(low, high, strict=True)))
    explorer = ContrastExplorer({"stack": of_maps(stack), "slice": low}, tissues=TISSUES)
    assert (explorer.slice.max, explorer.slice.value) == (2, 2)
    upper = explorer.image.value
    explorer.slice.value = 1
    assert explorer.image.value != upper
    np.testing.assert_allclose(explorer.side.signal, np.nan_to_num(render(low, REFERENCE["T1w"]).numpy()), rtol=1e-6)
    explorer.subject.value = "slice"
    assert explorer.slice.layout.display == "none"


def test_own_maps_are_opened_from_their_folder(explorer, tmp_path):
    inside = np.zeros((6, 7, 5), np.float32)
    inside[1:5, 1:6, 1:4] = 1
    inside[1, 1, 1:4] = 0.5
    flipped = np.diag([-2.0, 2, 3, 1])  # x towards the left: opened in RAS all the same
    write_maps(tmp_path / "me" / "sub-me", TissueMaps(inside, 1.2 * inside, 0.1 * inside), flipped, False)
    explorer.folder.value = str(tmp_path / "me")
    explorer.open_folder.click()
    explorer.task.wait()
    assert explorer.subject.value == "me"
    assert explorer.person.voxel_mm == (3, 2, 2) and explorer.slice.max == 5
    assert explorer.person.maps.pd[2, 1, 4] == 0.5  # x reversed
    explorer.subject.value = "first"
    explorer.subject.value = "me"
    assert "MPRAGE" in status(explorer)


def test_a_person_made_on_demand_is_made_once_beside_a_bar():
    made = []

    def make(progress):
        progress(0.5)
        made.append(1)
        return of_maps(slice_maps())

    explorer = ContrastExplorer({"first": slice_maps(), "later": make}, tissues=TISSUES)
    assert not made
    explorer.choose("later")
    assert made == [1] and explorer.person is explorer.subjects["later"]
    explorer.choose("first")
    explorer.choose("later")
    assert made == [1]


def test_who_cannot_be_made_leaves_the_one_shown_in_the_list():
    def make(progress):
        raise BadInput("release: cut short")

    explorer = ContrastExplorer({"first": slice_maps(), "later": make}, tissues=TISSUES)
    for _ in range(2):  # and can be chosen again
        explorer.status.value = ""
        explorer.choose("later")
        assert status(explorer) == "release: cut short" and explorer.subject.value == "first"
    assert picture(explorer).max() > 0


def test_another_subject_has_its_own_size(explorer):
    explorer.subject.value = "second"
    assert (explorer.row.max, explorer.column.max) == (35, 29)
    assert explorer.pixel == (35 - 18, 29 - 15)
    assert explorer.slice.layout.display == "none"  # there is one
    assert picture(explorer).shape == (HEIGHT, round(HEIGHT * 30 / 36), 3)


# Where sliders stop -------------------------------------------------------------------------------------------


def test_ti_cannot_reach_tr(explorer):
    explorer.ti.value = 5.0
    assert explorer.protocol.ti == explorer.ti.value == 2.35
    assert status(explorer) == "TI stops at 2.35 s, below TR 2.4 s: TR runs from inversion to inversion."


def test_te_cannot_reach_tr(explorer):
    explorer.sequence.value = "spin echo"
    explorer.tr.value = 0.5
    explorer.te.value = 1.2
    assert explorer.protocol.te == explorer.te.value == 0.49
    assert status(explorer) == "TE stops at 0.49 s, below TR 0.5 s: the echo must come within the repetition."


def test_tr_cannot_fall_below_the_inversion_time(explorer):
    explorer.tr.value = 0.3
    assert explorer.protocol.tr == explorer.tr.value == 1.02
    assert status(explorer) == "TR stops at 1.02 s: it must be longer than TI 1 s."


def test_tr_of_a_spin_echo_cannot_fall_to_that_of_a_gradient_echo(explorer):
    explorer.show(Protocol("spin echo", te=0.01, tr=0.6))
    explorer.tr.value = 0.02
    assert explorer.protocol.tr == explorer.tr.value == 0.05
    assert status(explorer) == "TR stops at 0.05 s: only a gradient echo repeats faster."


def test_a_preset_that_a_browser_rounds_to_the_slider_s_step_stays_the_preset(explorer):
    explorer.te.value, explorer.tr.value = 0.00302, 2.39
    assert explorer.protocol == REFERENCE["T1w"] and explorer.preset.value == "T1w MPRAGE"


def test_a_move_that_is_allowed_clears_the_message(explorer):
    explorer.ti.value = 5.0
    explorer.ti.value = 0.5
    assert status(explorer) == "MPRAGE, TE 3 ms, TR 2.4 s, TI 0.5 s"


def test_the_paper_s_impossible_setting_is_shown_as_published_and_left_by_any_move(explorer):
    explorer.show(UNSEEN[0])
    assert "no scanner can run this" in status(explorer)
    explorer.te.value = 0.01
    assert not explorer.protocol.as_published
    assert explorer.protocol.ti < explorer.protocol.tr
    assert "TI stops at 0.098 s" in status(explorer)


def test_a_setting_of_another_sequence_is_not_moved():
    gre = CLINIC["T1w spoiled gradient echo"]
    assert move(gre, "flip_angle_deg", 12.345)[0] == Protocol(gre.sequence, gre.te, gre.tr, flip_angle_deg=12.3)
    held, why = move(gre, "te", 0.09)
    assert (
        held.te == 0.0196 and why == "TE stops at 0.0196 s, below TR 0.02 s: the echo must come within the repetition."
    )


@pytest.mark.parametrize("inverts", [True, False])
def test_whatever_is_dragged_the_protocol_stays_one_a_scanner_could_run(inverts):
    rng = np.random.default_rng(7)
    times = {"te": 0.01, "tr": 2.0} | ({"ti": 0.5} if inverts else {})
    ranges = {"te": (-3, 0.27), "tr": (-1.3, 1.3), "ti": (-1.7, 1)}
    held = 0
    for _ in range(500):
        moved = rng.choice(list(times))
        times, message = stay_physical(times | {moved: float(10 ** rng.uniform(*ranges[moved]))}, moved)
        Protocol(Sequence.FLAIR if inverts else Sequence.SPIN_ECHO, **times)  # refuses what is not physical
        held += bool(message)
    assert 50 < held < 450


# Files and stills -----------------------------------------------------------------------------------------------


def test_save_writes_the_picture(explorer, tmp_path):
    explorer.file_name.value = str(tmp_path / "flair")
    explorer.save_png.click()
    assert (tmp_path / "flair.png").read_bytes() == explorer.image.value
    assert status(explorer).startswith("Saved")


def test_nifti_holds_every_slice_under_this_protocol(tmp_path):
    stack = TissueMaps(*(torch.stack([m, m.flip(-1)]) for m in slice_maps()))
    explorer = ContrastExplorer(of_maps(stack, voxel_mm=(2.0, 1.5), slice_mm=4.0), tissues=TISSUES)
    explorer.preset.value = "T1w spoiled gradient echo"
    explorer.file_name.value = str(tmp_path / "gre.png")  # the button decides
    explorer.save_nifti.click()
    assert status(explorer) == f"Saved {tmp_path / 'gre.nii.gz'}"
    nifti = nibabel.load(tmp_path / "gre.nii.gz")
    assert nifti.header.get_zooms() == pytest.approx((1.5, 2.0, 4.0))
    expected = np.nan_to_num(render(stack, explorer.protocol).numpy())
    np.testing.assert_allclose(nifti.get_fdata(), expected.transpose(2, 1, 0), rtol=1e-5, atol=1e-6)
    assert bids.read_sidecar(tmp_path / "gre.nii.gz")["FlipAngle"] == 25


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(explorer, tmp_path):
    (tmp_path / "file").touch()
    explorer.file_name.value = str(tmp_path / "file" / "flair.png")
    explorer.save_png.click()
    assert "flair.png: cannot write" in status(explorer)


def test_a_picture_without_a_name_gets_one(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    explorer.file_name.value = " "
    explorer.save_png.click()
    assert (tmp_path / "contrast.png").read_bytes() == explorer.image.value


def test_the_still_holds_image_curves_and_numbers(explorer):
    first = explorer.still()
    page = np.asarray(Image.open(io.BytesIO(first.data)))
    assert (page[:, : HEIGHT * 20 // 28] == picture(explorer)).all()
    assert (page[420:, 420:] < 100).any()  # black letters below the curves
    assert "MPRAGE" in first.alt
    explorer.preset.value = "T2-FLAIR"
    assert explorer.still().data != first.data


def test_nothing_that_hangs_papermill_is_used(explorer):
    kinds = [type(widget) for widget in all_widgets(explorer)]
    assert kinds.count(ipywidgets.Image) == 3  # two protocols, curves
    assert ipywidgets.Output not in kinds


# Bad input ------------------------------------------------------------------------------------------------------


def spoiled(quantity, value, where=(14, 10)):
    maps = slice_maps()
    getattr(maps, quantity)[where] = value
    return maps


GOOD = slice_maps()
BAD = {
    "nan": (spoiled("t1", math.nan), "The T1 map is NaN, infinite or negative in 1 voxels that hold tissue"),
    "infinite": (spoiled("t2", math.inf), "The T2 map is NaN, infinite or negative in 1 voxels"),
    "nan in PD": (spoiled("pd", math.nan), "The PD map has values that are NaN"),
    "negative PD": (spoiled("pd", -1.0), "The PD map has values that are NaN, infinite or negative"),
    "shape": (GOOD._replace(t1=GOOD.t1[:-1]), "The PD map has shape (28, 20) and the T1 map (27, 20)"),
    "four axes": (TissueMaps(*(m[None, None] for m in GOOD)), "The maps have shape (1, 1, 28, 20): give slices"),
    "milliseconds": (GOOD._replace(t1=1000 * GOOD.t1), "which looks like ms: divide by 1000"),
    "empty": (GOOD._replace(pd=0 * GOOD.pd), "The PD map is 0 everywhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_maps_that_cannot_be_shown_give_one_sentence_and_a_black_picture(case):
    maps, sentence = BAD[case]
    explorer = ContrastExplorer({"good": GOOD, "bad": maps}, tissues=TISSUES)
    assert problem_with(GOOD) is None
    explorer.subject.value = "bad"
    assert sentence in status(explorer)
    assert picture(explorer).max() == 0
    assert explorer.numbers.value == ""
    for name, value in {"te": 0.05, "auto": False, "row": 1, "sequence": "FLAIR"}.items():
        getattr(explorer, name).value = value  # nothing to repaint, and nothing raised
    with pytest.raises(ValueError, match=re.escape(sentence)):
        explorer.still()
    explorer.subject.value = "good"
    assert picture(explorer).max() > 0
    assert sentence not in status(explorer)


def test_a_first_subject_that_cannot_be_made_leaves_the_others(tmp_path):
    subjects = {"drawn": lambda progress: draw_from(tmp_path / "release", 7, progress), "good": GOOD}
    explorer = ContrastExplorer(subjects, tissues=TISSUES)
    assert "release: no such folder of weights" in status(explorer)
    assert picture(explorer).max() == 0
    explorer.subject.value = "good"
    assert picture(explorer).max() > 0


def test_where_there_is_no_subject_the_sentence_stands_for_it():
    explorer = ContrastExplorer({"generated brains": BadInput("run/samples: cut short"), "good": GOOD}, tissues=TISSUES)
    assert status(explorer) == "run/samples: cut short" and picture(explorer).max() == 0
    explorer.subject.value = "good"
    assert picture(explorer).max() > 0
    explorer.subject.value = "generated brains"
    assert status(explorer) == "run/samples: cut short" and picture(explorer).max() == 0


def test_a_subject_nobody_knows_is_told_with_those_there_are(explorer):
    before = explorer.image.value
    explorer.choose("sub-99")
    assert status(explorer) == "There is no subject 'sub-99': choose one of first, second."
    assert explorer.image.value == before


@pytest.mark.parametrize("what", ["missing", "nobody's", "endless", "empty", "broken", "cut"])
def test_own_maps_that_cannot_be_read_give_one_sentence(explorer, tmp_path, what):
    folder = {"nobody's": "~nobody-of-this-name/maps", "endless": "x" * 5000}.get(what, tmp_path / "maps")
    if what in ("empty", "broken", "cut"):
        folder.mkdir()
    if what == "broken":
        for name in ("PDmap", "T1map", "T2map"):
            (folder / f"sub-1_{name}.nii.gz").write_text("this is text")
    if what == "cut":
        noise = np.random.default_rng(0).random((3, 9, 8, 7), np.float32)  # whose bytes gzip cannot shorten
        for path in write_maps(folder / "sub-1", TissueMaps(*noise), np.eye(4), skull_stripped=True):
            path.write_bytes(path.read_bytes()[:1000])
    before = explorer.image.value
    explorer.folder.value = str(folder)
    explorer.open_folder.click()
    explorer.task.wait()
    missing, unread = "no such folder of maps", "not NIfTI, or cut short"
    said = {"missing": missing, "nobody's": missing, "endless": missing, "empty": "PDmap.nii.gz here",
            "broken": unread, "cut": unread}  # fmt: skip
    assert said[what] in status(explorer) and "\n" not in status(explorer)
    assert explorer.image.value == before and explorer.subject.value == "first"


def test_no_folder_typed(explorer):
    explorer.open_folder.click()
    assert "Type the folder of your maps first" in status(explorer)


def test_drawing_without_weights_is_told_in_a_sentence(tmp_path):
    explorer = ContrastExplorer(GOOD, weights_dir=tmp_path / "release")
    explorer.draw_brain.click()
    explorer.task.wait()
    assert "release: no such folder of weights" in status(explorer)
    assert picture(explorer).max() > 0


def test_a_brain_drawn_from_a_seed_is_added_and_shown(smoke_run):
    explorer = ContrastExplorer(GOOD, weights_dir=smoke_run.folder)
    explorer.seed.value = 5
    explorer.draw_brain.click()
    explorer.task.wait()
    assert explorer.subject.value == "drawn, seed 5", status(explorer)
    assert explorer.person.maps.pd.shape == (smoke_run.recipe.n_slices, *smoke_run.recipe.shape)


def test_memory_does_not_grow_while_somebody_plays(explorer):
    process, rng = psutil.Process(), np.random.default_rng(0)

    def play(n):
        for name in rng.choice(["te", "tr", "ti"], n):
            slider = getattr(explorer, name)
            slider.value = 10 ** rng.uniform(slider.min, slider.max)

    play(50)
    gc.collect()
    before = process.memory_info().rss
    play(200)
    gc.collect()
    assert process.memory_info().rss - before < 20e6  # a tenth of a megabyte each


def test_no_subject_at_all():
    assert "no subject to show" in status(ContrastExplorer({}, tissues=TISSUES))


def test_maps_of_one_subject_need_no_name():
    explorer = ContrastExplorer(GOOD)
    assert list(explorer.curves.tissues) == ["WM", "GM", "CSF"]  # the measured medians
    assert picture(explorer).max() > 0


def test_a_level_the_browser_sends_back_is_not_painted_again(explorer, monkeypatch):
    painted = []
    monkeypatch.setattr(explorer, "_repaint", lambda message="": painted.append(1))
    explorer.level.value += 0.001
    assert not painted
    explorer.auto.value = False
    explorer.level.value += 0.1
    assert len(painted) == 2
