"""One session on one grid: what moved comes back, what did not move keeps its values, what cannot be used is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from phyldm_core.machine.errors import BadInput
from phyldm_core.physics import Protocol
from phyldm_core.scans import sessions
from phyldm_core.scans.grids import Grid, resample
from phyldm_core.scans.nifti import Scan
from phyldm_core.scans.prepare import TEMPLATE, head_mask, is_skull_stripped, prepare_session
from phyldm_core.scans.registration import register, world_grid


@pytest.fixture
def session(simulated_session) -> dict[str, Scan]:
    return simulated_session


def movement(degrees, mm) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = mm
    return matrix


def moved(scan: Scan, by: np.ndarray) -> Scan:
    """The person moved ``by`` (RAS mm), which no header knows of."""
    image = resample(replace(scan, affine=by @ scan.affine), Grid(scan.image.shape, scan.affine))
    return replace(scan, image=image)


def error_of(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Degrees, and mm at the worst place 70 mm around the middle of the head."""
    left = found @ true
    places = 70 * np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    off = np.linalg.norm(apply_affine(left, places) - places, axis=1)
    return float(np.degrees(Rotation.from_matrix(left[:3, :3]).magnitude())), float(off.max())


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- registration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "degrees", "mm"),
    [("T2w", (4, -3, 6), (3, -5, 4)), ("FLAIR", (-8, 2, -3), (-6, 2, 7)), ("T2w", (0, 0, 12), (0, 10, 0))],
)
def test_a_known_movement_is_found_across_contrasts(session, suffix, degrees, mm):
    true = movement(degrees, mm)
    turned, off = error_of(register(moved(session[suffix], true), session["T1w"]), true)
    assert turned < 0.5 and off < 0.5


def test_a_movement_is_found_in_thick_oblique_slices(session):
    true = movement((3, 2, -4), (2, -3, 2))
    affine = movement((10, 0, 5), (0, 0, 0)) @ np.diag([1.5, 1.5, 5.0, 1.0])
    affine[:3, 3] = apply_affine(affine, (-70, -85, -11))
    thick = moved(session["FLAIR"], true)
    thick = replace(thick, image=resample(thick, Grid((140, 170, 22), affine)), affine=affine)
    turned, off = error_of(register(thick, session["T1w"]), true)
    assert turned < 0.5 and off < 0.8  # a slice is 5 mm thick


def test_registration_gives_the_same_answer_every_time(session):
    pair = moved(session["T2w"], movement((2, 1, 3), (1, 2, 3))), session["T1w"]
    np.testing.assert_array_equal(register(*pair), register(*pair))


def test_aligned_scans_are_left_alone(session):
    np.testing.assert_array_equal(register(session["T2w"], session["T1w"]), np.eye(4))


def test_scans_of_different_places_are_not_forced_together(session):
    far = replace(session["T2w"], affine=movement((0, 0, 0), (0, 0, 400)) @ session["T2w"].affine)
    message = refusal(prepare_session, [session["T1w"], far], voxel_mm=2.0)
    assert "does not overlap sub-01_T1w.nii.gz" in message and "sub-01_T2w.nii.gz" in message
    left_out: dict = {}
    prepared = prepare_session([session["T1w"], far], voxel_mm=2.0, left_out=left_out)
    assert [scan.suffix for scan in prepared.scans] == ["T1w"] and list(left_out) == [far.path]


# --- the grid and the values ------------------------------------------------------------------------


def test_prepared_scans_share_an_isotropic_axial_grid_and_the_reference_s_world(session):
    true = movement((4, -3, 6), (3, -5, 4))
    prepared = prepare_session([moved(session["T2w"], true), session["T1w"]], voxel_mm=3.0)
    assert [scan.suffix for scan in prepared.scans] == ["T1w", "T2w"]
    np.testing.assert_allclose(prepared.affine[:3, :3], 3 * np.eye(3))
    for scan in prepared.scans:
        assert scan.image.shape == prepared.brain.shape and scan.image.dtype == np.float32
        np.testing.assert_array_equal(scan.affine, prepared.affine)
    still = prepare_session([session["T2w"], session["T1w"]], voxel_mm=3.0)
    inside = ndimage.binary_erosion(still.brain, iterations=3)  # where nothing moved out of the field of view
    pair = [p.scans[1].image[inside] * p.scales["T2w"] for p in (prepared, still)]
    assert np.corrcoef(*pair)[0, 1] > 0.97  # the moved scan shows the same tissue in the same voxels
    turned, _ = error_of(prepared.transforms["T2w"], true)
    assert turned < 0.5
    np.testing.assert_array_equal(prepared.transforms["T1w"], np.eye(4))


def test_a_scan_on_the_grid_keeps_every_value(session):
    prepared = prepare_session(list(session.values()), voxel_mm=2.0)
    for scan in prepared.scans:
        raw = session[scan.suffix]
        np.testing.assert_array_equal(prepared.affine, raw.affine)
        np.testing.assert_allclose(scan.image * prepared.scales[scan.suffix], raw.image, rtol=1e-6)


def test_scale_is_one_number_and_follows_the_gain_of_the_scanner(session):
    t1w = session["T1w"]
    one, other = (prepare_session([replace(t1w, image=g * t1w.image)], voxel_mm=4.0) for g in (1, 37))
    np.testing.assert_allclose(one.scans[0].image, other.scans[0].image, rtol=1e-4)
    assert other.scales["T1w"] == pytest.approx(37 * one.scales["T1w"], rel=1e-4)
    assert one.scans[0].image.max() > 1.0  # the brightest voxels are not clipped


def test_oblique_thick_slices_land_where_they_were(session):
    affine = movement((10, 0, 5), (0, 0, 0)) @ np.diag([1.5, 1.5, 5.0, 1.0])
    affine[:3, 3] = apply_affine(affine, (-70, -85, -11))
    t1w = session["T1w"]
    thick = replace(t1w, image=resample(t1w, Grid((140, 170, 22), affine)), affine=affine)
    prepared = prepare_session([thick], voxel_mm=2.0)
    np.testing.assert_allclose(prepared.affine[:3, :3], 2 * np.eye(3))
    there = Grid(prepared.brain.shape, prepared.affine)
    sharp, inside = resample(t1w, there), ndimage.binary_erosion(prepared.brain, iterations=5)
    blurred = prepared.scans[0].image * prepared.scales["T1w"]
    assert np.corrcoef(ndimage.gaussian_filter(sharp, 1)[inside], blurred[inside])[0, 1] > 0.9


def test_world_grid_covers_the_scan_and_meets_its_voxels(session):
    scan = session["T1w"]
    for mm in (1.0, 3.0):
        grid = world_grid(scan, mm)
        np.testing.assert_allclose(voxel_sizes(grid.affine), mm)
        extent = np.array(scan.image.shape) * 2
        assert (np.abs(np.array(grid.shape) * mm - extent) <= 2 * mm).all()
        middle = apply_affine(np.linalg.inv(grid.affine), apply_affine(scan.affine, [(n - 1) // 2 for n in (9, 9, 9)]))
        if mm == 1.0:
            np.testing.assert_allclose(middle, np.round(middle), atol=1e-6)


# --- the brain ------------------------------------------------------------------------------------


def stripped(scan: Scan) -> Scan:
    inside = head_mask([scan])
    return replace(scan, image=np.where(inside, scan.image, 0))


def test_a_skull_stripped_scan_is_recognised_and_said_so(session):
    bare = stripped(session["T1w"])
    assert is_skull_stripped(bare) and not is_skull_stripped(session["T1w"])
    prepared = prepare_session([bare], voxel_mm=2.0)
    assert prepared.skull_stripped and prepared.brain_known and prepared.mask_from == "skull-stripped scan"
    np.testing.assert_array_equal(prepared.brain, bare.image > 0)
    assert "already skull-stripped" in prepared.scans[0].notes
    assert not is_skull_stripped(replace(bare, sidecar={"SkullStripped": False}))  # who made it knows


def test_a_head_with_zeros_around_it_is_not_taken_for_a_brain(shared_data):
    file = nibabel.as_closest_canonical(nibabel.load(shared_data / "synthseg_labels" / "training_seg_01.nii.gz"))
    labels = np.asarray(file.dataobj).astype(np.float32)[::2, ::2, ::2]
    affine = file.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    assert not is_skull_stripped(
        Scan(labels, affine, Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0), "T1w", Path("x_T1w.nii.gz"), {})
    )


def test_mask_is_taken_as_array_or_file_on_any_grid(session, tmp_path):
    t1w = session["T1w"]
    box = np.zeros(t1w.image.shape, bool)
    box[30:60, 40:90, 20:40] = True
    given = prepare_session([t1w], voxel_mm=2.0, mask=box)
    np.testing.assert_array_equal(given.brain, box)
    assert given.mask_from == "given" and given.brain_known and not given.skull_stripped
    nibabel.Nifti1Image(box[::-1].astype(np.uint8), t1w.affine @ flip(box.shape[0])).to_filename(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(prepare_session([t1w], voxel_mm=2.0, mask=tmp_path / "m.nii.gz").brain, box)
    assert "marks nothing" in refusal(prepare_session, [t1w], voxel_mm=2.0, mask=np.zeros_like(box))
    assert "shape" in refusal(prepare_session, [t1w], voxel_mm=2.0, mask=box[1:])


def flip(n: int) -> np.ndarray:
    matrix = np.diag([-1.0, 1, 1, 1])
    matrix[0, 3] = n - 1
    return matrix


@pytest.mark.parametrize("suffixes", [("T1w",), ("T1w", "T2w", "FLAIR")])
def test_the_brain_found_lies_over_the_patient_s(shared_data, suffixes):
    """Noise stands where the skull was, without a valley of bone to find: some of the rim goes (Dice 0.91, 0.93)."""
    rng, noisy = np.random.default_rng(0), []
    for scan in sessions.read_session(shared_data / "open_ms"):
        if scan.suffix in suffixes:
            noise = np.abs(rng.normal(0, 5, scan.image.shape)).astype(np.float32)  # so that it does not look stripped
            noisy.append(replace(scan, image=scan.image + noise))
    t1w = sessions.read_session(shared_data / "open_ms")[0]
    prepared = prepare_session(noisy, voxel_mm=2.0, mask=TEMPLATE)
    true = resample(replace(t1w, image=(t1w.image > 0).astype(np.float32)), Grid(prepared.brain.shape, prepared.affine))
    both = (prepared.brain & (true > 0.5)).sum()
    assert prepared.mask_from == "template"
    dice = 2 * both / (prepared.brain.sum() + (true > 0.5).sum())
    assert dice > 0.9, dice


# --- what cannot be used ----------------------------------------------------------------------------


def test_images_no_signal_model_explains(session):
    t1w = session["T1w"]
    zero = replace(t1w, image=np.zeros_like(t1w.image))
    assert "no voxel is above 0" in refusal(prepare_session, [zero], voxel_mm=2.0)
    normalised = replace(t1w, image=(t1w.image - t1w.image.mean()) / t1w.image.std())
    assert "are negative" in refusal(prepare_session, [normalised], voxel_mm=2.0)
    assert "every voxel is 7" in refusal(prepare_session, [replace(t1w, image=0 * t1w.image + 7)], voxel_mm=2.0)
    ringing = replace(t1w, image=t1w.image.copy())
    ringing.image[:, :, :1] = -0.1 * t1w.image.max()  # a few per cent of the voxels, as splines leave them
    assert prepare_session([ringing], voxel_mm=2.0).scans[0].image.min() < 0


def test_sessions_that_are_not_one_scan_a_contrast(session):
    twice = replace(session["T1w"], path=Path("sub-01_run-2_T1w.nii.gz"))
    assert "two T1w scans in one session" in refusal(prepare_session, [session["T1w"], twice], voxel_mm=2.0)
    assert "no scan" in refusal(prepare_session, [], voxel_mm=2.0)
    assert "in millimetres" in refusal(prepare_session, [session["T1w"]], voxel_mm=0.001)
    left_out: dict = {}
    zero = replace(session["T1w"], image=0 * session["T1w"].image)
    assert "no voxel is above 0" in refusal(prepare_session, [zero], voxel_mm=2.0, left_out=left_out)
