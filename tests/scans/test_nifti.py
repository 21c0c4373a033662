"""Scans in and out: what is written comes back, what is read is where and what the file says."""

from __future__ import annotations

import gzip
import json
import math
import os
import time
from collections import Counter

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from phyldm_core import physics
from phyldm_core.machine.errors import BadInput
from phyldm_core.physics import Protocol, Sequence
from phyldm_core.scans import bids, grids, nifti, oasis3, sessions

MPRAGE = Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0)
T2W = Protocol("spin echo", te=0.1, tr=4.0)
FLASH = Protocol("spoiled gradient echo", te=0.004, tr=0.02, flip_angle_deg=15)
RAS_2MM = np.array([[2, 0, 0, -9], [0, 2, 0, 11], [0, 0, 3, -5], [0, 0, 0, 1.0]])


def head(shape=(10, 14, 6)):
    return np.random.default_rng(0).uniform(1, 1000, shape).astype(np.float32)


def put(folder, name="sub-01_T1w", volume=None, affine=RAS_2MM, **sidecar):
    """A scan as a scanner's converter leaves it: MPRAGE, with the given fields changed (None: left out)."""
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(head() if volume is None else volume, affine).to_filename(folder / f"{name}.nii.gz")
    fields = {"EchoTime": 0.003, "RepetitionTime": 2.4, "InversionTime": 1.0} | sidecar
    (folder / f"{name}.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return folder / f"{name}.nii.gz"


def protocol_of(suffix, **fields):
    return bids.protocol_from_sidecar(fields, suffix, "scan.nii.gz").protocol


def refusal(call, *args, **kwargs) -> str:
    """The one sentence that says why not."""
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [MPRAGE, T2W, Protocol("FLAIR", 0.09, 9.0, 2.5)], ids=lambda p: p.sequence.name)
def test_written_scan_reads_back_the_same(tmp_path, protocol):
    volume, affine = head(), RAS_2MM.copy()
    affine[:3, :3] = affine[:3, :3] @ rotation(7)
    suffix = {"MPRAGE": "T1w", "SPIN_ECHO": "T2w", "FLAIR": "FLAIR"}[protocol.sequence.name]
    path = nifti.write_image(tmp_path / f"sub-01_{suffix}.nii.gz", volume, affine, bids.sidecar(protocol))
    scan = nifti.read_scan(path)
    np.testing.assert_array_equal(scan.image, volume)
    np.testing.assert_allclose(scan.affine, affine, rtol=1e-6, atol=1e-6)
    assert scan.protocol == protocol
    assert nibabel.load(path).header.get_xyzt_units()[0] == "mm"


def test_maps_keep_float16_precision_as_scaled_integers(tmp_path):
    t1 = head() / 250  # s
    path = nifti.write_image(tmp_path / "T1map.nii.gz", t1, RAS_2MM, bids.map_sidecar("T1map", True), dtype=np.int16)
    np.testing.assert_allclose(nibabel.load(path).get_fdata(), t1, atol=t1.max() * 2**-11)
    assert json.loads((tmp_path / "T1map.json").read_text()) == {"Units": "s", "SkullStripped": True}


def test_same_image_gives_same_bytes_and_no_leftovers(tmp_path, monkeypatch):
    for now, name in ((1e9, "a.nii.gz"), (2e9, "b.nii.gz")):
        monkeypatch.setattr(time, "time", lambda now=now: now)  # gzip would keep the time of day
        nifti.write_image(tmp_path / name, head(), RAS_2MM, bids.sidecar(MPRAGE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.nii.gz", "b.json", "b.nii.gz"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = nifti.write_image(tmp_path / "a.nii.gz", head(), RAS_2MM, {})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device" in refusal(nifti.write_image, path, 2 * head(), RAS_2MM, {})
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.nii.gz"]


def test_unwritable_places_and_values_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(nifti.write_image, tmp_path / "file" / "a.nii.gz", head(), RAS_2MM, {})
    assert ".nii.gz" in refusal(nifti.write_image, tmp_path / "a.mgz", head(), RAS_2MM, {})
    assert "background" in refusal(nifti.write_image, tmp_path / "a.nii.gz", head() * np.nan, RAS_2MM, {})


def test_sidecar_says_what_bids_asks_for():
    inverted, plain = bids.sidecar(MPRAGE), bids.sidecar(T2W, SkullStripped=True)
    assert inverted["RepetitionTimePreparation"] == 2.4 and inverted["InversionTime"] == 1.0
    assert plain["RepetitionTimeExcitation"] == 4.0 and plain["SkullStripped"] is True
    assert "InversionTime" not in plain and "RepetitionTime" not in plain | inverted


def test_rendered_long_echo_is_not_shortened_on_reading(tmp_path):
    long_echo = Protocol("spin echo", te=0.45, tr=3.2)
    path = tmp_path / "sub-01_T2w.nii.gz"
    nifti.write_image(path, head(), RAS_2MM, bids.sidecar(long_echo, nominal_te=long_echo.te))
    assert nifti.read_scan(path).protocol == long_echo
    nifti.write_image(path, head(), RAS_2MM, bids.sidecar(long_echo))  # as a scanner writes a SPACE
    assert nifti.read_scan(path).protocol.te == pytest.approx(0.099)


def test_dataset_description(tmp_path):
    path = bids.write_dataset_description(tmp_path / "derivatives" / "x", "Märchen", derivative=True)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["DatasetType"] == "derivative" and written["Name"] == "Märchen"
    assert written["GeneratedBy"][0]["Name"] == "phyldm_core"


# --- axes ---------------------------------------------------------------------------------------


def rotation(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


@pytest.mark.parametrize("axes", ["LAS", "LIA", "PSR", "RAS", "AIL"])
@pytest.mark.parametrize("degrees", [0, 12])
def test_every_orientation_becomes_ras_without_moving_a_voxel(tmp_path, axes, degrees):
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ np.diag([1.0, 2.0, 3.0])
    affine[:3, 3] = 5, -40, 17
    ras = nibabel.Nifti1Image(head(), affine)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes))
    stored = ras.as_reoriented(turn)
    scan = nifti.read_scan(put(tmp_path, volume=np.asarray(stored.dataobj), affine=stored.affine))
    np.testing.assert_array_equal(scan.image, head())
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    assert any("oblique by 12.0°" in note for note in scan.notes) == (degrees == 12)


def ellipsoid(affine, shape, centre=(4.0, -18.0, 10.0), radii=(65.0, 82.0, 72.0)):
    """A smooth brain-sized ball in world space, its intensity rising towards anterior."""
    world = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    offset = (world - centre) / radii
    return ((offset**2).sum(-1) < 1) * (500 + 2 * world[..., 1]).astype(np.float32)


def scan_of(volume, affine, folder):
    return nifti.Scan(np.asarray(volume, np.float32), affine, MPRAGE, "T1w", folder / "x_T1w.nii.gz", {})


def test_centre_of_the_head_is_found_with_and_without_a_neck(tmp_path):
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -100, -130, -150
    brain = ellipsoid(affine, (100, 120, 130))
    np.testing.assert_allclose(grids.head_centre(scan_of(brain, affine, tmp_path)), (4, -18, 17), atol=4)
    neck = brain.copy()
    neck[30:70, 20:60, :50] = 400
    np.testing.assert_allclose(grids.head_centre(scan_of(neck, affine, tmp_path)), (4, -18, 17), atol=6)


def test_oblique_anisotropic_scan_lands_on_the_world_grid(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = rotation(10) @ np.diag([1.0, 1.0, 5.0])
    affine[:3, 3] = -110, -120, -70
    scan = scan_of(ellipsoid(affine, (220, 220, 40)), affine, tmp_path)
    grid = grids.axial_grid(scan, shape_yx=(112, 80), voxel_mm=2.0, z=(0.0, 8.0))
    slices = grids.volume_to_slices(grids.resample(scan, grid))
    assert slices.shape == (5, 112, 80) and slices.dtype == np.float32
    expected = grids.volume_to_slices(ellipsoid(grid.affine, grid.shape))
    inside = grids.volume_to_slices(ellipsoid(grid.affine, grid.shape, radii=(55, 72, 60))) > 0
    np.testing.assert_allclose(slices[inside], expected[inside], atol=1.0)  # of 330…650
    heights = grid.affine[2, 3] + 2 * np.arange(5)
    assert abs(heights.mean() - 4) <= 2.5  # the grid snaps to this scan's 5 mm slices


def test_scan_already_on_the_grid_is_only_cut(tmp_path):
    scan = scan_of(np.pad(head((90, 100, 90)), 20), np.diag([1.0, 1, 1, 1]), tmp_path)
    grid = grids.axial_grid(scan, (64, 48), 1.0, z=4)
    start = np.round(grid.affine[:3, 3]).astype(int)
    cut = scan.image[tuple(slice(s, s + n) for s, n in zip(start, grid.shape, strict=True))]
    np.testing.assert_allclose(grids.resample(scan, grid), cut, atol=0.01)


def test_coarser_grid_averages_instead_of_picking(tmp_path):
    noise = np.random.default_rng(1).normal(500, 100, (80, 80, 80))
    scan = scan_of(noise, np.eye(4), tmp_path)
    slices = grids.resample(scan, grids.axial_grid(scan, (20, 20), 2.0, z=8, centre=(40, 40, 40)))
    assert slices.mean() == pytest.approx(500, abs=5)
    assert slices.std() < 55  # a Gaussian of that variance, centred on a voxel, leaves half


def test_scans_that_do_not_overlap_are_told(tmp_path):
    scan = scan_of(head((30, 30, 30)), np.eye(4), tmp_path)
    far = grids.axial_grid(scan, (10, 10), 1.0, centre=(500, 0, 0))
    assert "does not overlap" in refusal(grids.resample, scan, far)


# --- images that cannot be used, and some that look as if ------------------------------------------


def test_damaged_files(tmp_path):
    path = put(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refusal(nifti.read_scan, path)
    path.write_bytes(b"this is no gzip file")
    assert "not NIfTI" in refusal(nifti.read_scan, path)
    plain = tmp_path / "sub-01_T1w.nii"
    plain.write_text("once upon a time\n" * 50)
    assert "not NIfTI" in refusal(nifti.read_scan, plain)
    plain.write_bytes(gzip.decompress(whole)[:1000])
    assert "cut short" in refusal(nifti.read_scan, plain)
    plain.write_bytes(b"")
    assert "not NIfTI" in refusal(nifti.read_scan, plain)
    assert "no such file" in refusal(nifti.read_scan, tmp_path / "sub-02_T1w.nii.gz")
    assert "not NIfTI" in refusal(nifti.read_scan, tmp_path, MPRAGE)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_header_is_read_or_refused_but_never_crashes(tmp_path, changes):
    content = bytearray(gzip.decompress(put(tmp_path).read_bytes()))
    for position, byte in changes:
        content[position] = byte
    damaged = tmp_path / "sub-01_T1w.nii"
    damaged.write_bytes(content)
    try:
        image = nifti.read_scan(damaged).image
    except BadInput as error:
        assert str(damaged) in str(error)
    else:
        assert np.isfinite(image).all() and image.max() > 0


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (np.ones((4, 5, 6, 3), np.float32), "4D, 3 volumes of 4×5×6"),
        (np.ones((9, 9), np.float32), "at least 2 slices"),
        (np.ones((9, 9, 1), np.float32), "at least 2 slices"),
        (np.zeros((4, 5, 6), np.float32), "no voxel is above 0"),
        (-np.ones((4, 5, 6), np.float32), "no voxel is above 0"),
        (np.full((4, 5, 6), np.nan, np.float32), "120 voxels are NaN or infinite"),
        (np.where(np.arange(120).reshape(4, 5, 6) == 7, np.inf, 1.0), "1 voxels are NaN or infinite"),
        (np.ones((4, 5, 6), np.complex64), "give the magnitude image"),
    ],
    ids=["4D", "2D", "one slice", "zero", "negative", "NaN", "inf", "complex"],
)
def test_images_without_one_head_in_them(tmp_path, volume, words):
    assert words in refusal(nifti.read_scan, put(tmp_path, volume=volume))


def test_image_without_orientation_or_with_a_singular_affine(tmp_path):
    path = put(tmp_path)
    image = nibabel.Nifti1Image(head(), None)
    image.header.set_sform(None, code=0)
    image.to_filename(path)
    assert "left and right are unknown" in refusal(nifti.read_scan, path)
    image = nibabel.Nifti1Image(head(), RAS_2MM)
    image.header.set_sform(np.diag([2.0, 2, 0, 1]), code=1)
    path.write_bytes(gzip.compress(bytes(image.header.binaryblock) + b"\0" * 4 + head().tobytes(order="F")))
    assert "singular" in refusal(nifti.read_scan, path)


def test_metres_are_converted_and_nonsense_is_refused(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    affine = RAS_2MM.copy()
    affine[:3] /= 1000
    image = nibabel.Nifti1Image(head(), affine)
    image.header.set_xyzt_units("meter")
    image.to_filename(path)
    np.testing.assert_allclose(nifti.read_scan(path, MPRAGE).affine, RAS_2MM, atol=1e-6)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    assert "0.002 to 0.003 mm" in refusal(nifti.read_scan, path, MPRAGE)


def test_trailing_axis_of_one_is_dropped(tmp_path):
    scan = nifti.read_scan(put(tmp_path, volume=head()[..., None]))
    np.testing.assert_array_equal(scan.image, head())


def test_integers_are_scaled_and_doubles_read(tmp_path):
    raw = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(raw, RAS_2MM)
    image.header.set_slope_inter(0.25, 10.0)
    path = put(tmp_path)
    image.to_filename(path)
    np.testing.assert_array_equal(nibabel.load(path).dataobj.get_unscaled(), raw)
    np.testing.assert_allclose(nifti.read_scan(path).image, 0.25 * raw + 10)
    doubles = head().astype(np.float64) / 3
    scan = nifti.read_scan(put(tmp_path, volume=doubles))
    assert scan.image.dtype == np.float32
    np.testing.assert_allclose(scan.image, doubles, rtol=1e-7)


def test_slightly_negative_values_are_kept(tmp_path):
    volume = head()
    volume[0, 0, 0] = -19.5
    assert nifti.read_scan(put(tmp_path, volume=volume)).image.min() == -19.5


def test_spaces_and_umlauts_in_the_path(tmp_path):
    scan = nifti.read_scan(put(tmp_path / "Größe 1 – 脑" / "sub-Ä1" / "anat", "sub-Ä1_T1w"))
    assert scan.suffix == "T1w" and scan.protocol == MPRAGE


# --- what a sidecar says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "fields", "sequence"),
    [
        ("T1w", {"ScanningSequence": "GR\\IR", "EchoTime": 0.003, "InversionTime": 0.9}, "MPRAGE"),
        ("T1w", {"ScanningSequence": ["GR", "IR"], "EchoTime": 0.003, "InversionTime": 0.9}, "MPRAGE"),
        ("T1w", {"SequenceName": "*tfl3d1_ns", "EchoTime": 0.003, "InversionTime": 0.9}, "MPRAGE"),
        ("T1w", {"SequenceName": "EFGRE3D", "EchoTime": 0.003, "InversionTime": 0.45}, "MPRAGE"),
        (
            "T1w",
            {"PulseSequenceType": "Inversion Recovery Gradient Echo", "EchoTime": 0.003, "InversionTime": 1},
            "MPRAGE",
        ),
        ("T1w", {"EchoTime": 0.003, "InversionTime": 0.9}, "MPRAGE"),
        ("T1w", {"EchoTime": 0.003, "InversionTime": 0.9, "MRAcquisitionType": "2D"}, "FLAIR"),
        ("T1w", {"EchoTime": 0.02, "InversionTime": 0.8}, "FLAIR"),
        ("T1w", {"ScanningSequence": "SE\\IR", "EchoTime": 0.009, "InversionTime": 0.8}, "FLAIR"),
        ("T1w", {"ScanningSequence": "SE", "EchoTime": 0.012}, "spin echo"),
        ("T2w", {"ScanningSequence": "SE", "SequenceName": "*spc_357ns", "EchoTime": 0.1}, "spin echo"),
        ("T2w", {"EchoTime": 0.1, "InversionTime": 0}, "spin echo"),
        ("PDw", {"EchoTime": 0.012}, "spin echo"),
        ("FLAIR", {"SequenceName": "*spcir_278ns", "EchoTime": 0.1, "InversionTime": 1.8}, "FLAIR"),
        ("FLAIR", {"EchoTime": 0.09, "InversionTime": 1.8}, "FLAIR"),
        ("whatever", {"PulseSequenceName": "_tse2d1_9", "EchoTime": 0.1}, "spin echo"),
    ],
)
def test_sequence_is_told_by_the_sidecar_else_by_the_suffix(suffix, fields, sequence):
    protocol = protocol_of(suffix, RepetitionTime=2.3, **fields)
    assert protocol.sequence == Sequence(sequence)
    assert protocol.ti == (fields["InversionTime"] if protocol.sequence.inverts else None)


@pytest.mark.parametrize(
    ("suffix", "fields", "words"),
    [
        ("T1w", {"RepetitionTime": 2.3, "InversionTime": 0.9}, "no EchoTime"),
        ("T1w", {"EchoTime": 0.003, "InversionTime": 0.9}, "no RepetitionTime or RepetitionTimePreparation"),
        ("T2w", {"EchoTime": 0.1}, "no RepetitionTime or RepetitionTimeExcitation"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 2.3}, "MPRAGE or a spin echo: add InversionTime"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 2.3, "ScanningSequence": "GR\\IR"}, "TR 2.3 s used 0.9 s"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 0.02, "ScanningSequence": "GR"}, "no FlipAngle"),
        (
            "T1w",
            {"EchoTime": 0.003, "RepetitionTime": 2.3, "ScanningSequence": "GR", "FlipAngle": 9},
            "looks like an MP",
        ),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 0.007, "SequenceName": "T1TFE", "FlipAngle": 8}, "looks like an"),
        (
            "T1w",
            {
                "EchoTime": 0.003,
                "RepetitionTime": 0.007,
                "ScanningSequence": "GR",
                "SequenceVariant": "SP\\MP",
                "FlipAngle": 8,
            },
            "looks like an MPRAGE",
        ),
        (
            "T2w",
            {
                "EchoTime": 0.003,
                "RepetitionTime": 0.006,
                "ScanningSequence": "GR",
                "SequenceName": "*tfi3d1",
                "FlipAngle": 40,
            },
            "is not spoiled (tfi3d): what is known is MPRAGE, spin echo, FLAIR, spoiled",
        ),
        (
            "T1w",
            {"EchoTime": 0.003, "RepetitionTime": 0.02, "ScanningSequence": "GR", "FlipAngle": "15"},
            "FlipAngle must be one number of degrees",
        ),
        ("FLAIR", {"EchoTime": 0.09, "RepetitionTime": 9.0}, "no InversionTime"),
        ("scan", {"EchoTime": 0.09, "RepetitionTime": 9.0}, "give it (MPRAGE, spin echo, FLAIR, spoiled"),
        ("T2w", {"EchoTime": 90, "RepetitionTime": 4000}, "did you mean 0.09 s"),
        ("T2w", {"EchoTime": 0.09, "RepetitionTime": 4000}, "did you mean 4 s"),
        ("T2w", {"EchoTime": 0.00009, "RepetitionTime": 0.004}, "did you mean 4 s"),
        ("FLAIR", {"EchoTime": 0.09, "RepetitionTime": 9, "InversionTime": 2500}, "did you mean 2.5 s"),
        ("T1w", {"EchoTime": 1.9, "RepetitionTime": 2.3, "InversionTime": 0.9}, "did you mean 0.0019 s"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 2.3, "InversionTime": 3}, "TI 3 s is not shorter than TR 2.3 s"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 0.007, "InversionTime": 0.9}, "from excitation to excitation"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTimeExcitation": 0.3, "InversionTime": 0.2}, "inversion to inversion"),
        ("T2w", {"EchoTime": "0.1", "RepetitionTime": 4}, "EchoTime must be one number of seconds"),
        ("T2w", {"EchoTime": [0.1, 0.2], "RepetitionTime": 4}, "EchoTime must be one number of seconds"),
        ("T2w", {"EchoTime": math.nan, "RepetitionTime": 4}, "finite"),
        ("T2w", {"EchoTime": -0.1, "RepetitionTime": 4}, "positive"),
    ],
)
def test_sidecars_that_do_not_add_up(suffix, fields, words):
    assert words in refusal(protocol_of, suffix, **fields)


@pytest.mark.parametrize(
    ("suffix", "fields", "protocol"),
    [
        ("T1w", {"ScanningSequence": "GR", "RepetitionTime": 0.02}, FLASH),
        ("T1w", {"SequenceName": "*fl3d1_ns", "RepetitionTime": 0.02}, FLASH),
        ("T2w", {"PulseSequenceType": "SPGR", "RepetitionTimeExcitation": 0.02}, FLASH),
        ("T1w", {"PulseSequenceType": "Inversion Recovery Gradient Echo", "RepetitionTime": 3.0, "InversionTime": 0.8},
         Protocol("inversion-recovery gradient echo", 0.004, 3.0, 0.8, 15)),
        ("T1w", {"ScanningSequence": "GR\\IR", "RepetitionTime": 3.0, "InversionTime": 0.8},
         Protocol("MPRAGE", 0.004, 3.0, 0.8)),
    ],
)  # fmt: skip
def test_gradient_echoes_are_read_with_their_flip_angle(suffix, fields, protocol):
    assert protocol_of(suffix, EchoTime=0.004, FlipAngle=15, **fields) == protocol
    assert protocol_of(suffix, **bids.sidecar(protocol)) == protocol


def test_all_three_repetition_times_are_read():
    flair = {"EchoTime": 0.09, "InversionTime": 2.5}
    for field in ("RepetitionTime", "RepetitionTimePreparation", "RepetitionTimeExcitation"):
        assert protocol_of("FLAIR", **flair, **{field: 9.0}).tr == 9.0
        assert protocol_of("T2w", EchoTime=0.1, **{field: 4.0}).tr == 4.0
    volume_tr = {"RepetitionTime": 8.0, "RepetitionTimeExcitation": 4.0}
    assert protocol_of("T2w", EchoTime=0.1, **volume_tr).tr == 4.0
    both = {"RepetitionTime": 0.007, "RepetitionTimePreparation": 2.3}  # a Philips or GE MPRAGE, completed
    assert protocol_of("T1w", EchoTime=0.003, InversionTime=0.9, **both).tr == 2.3


def test_missing_or_broken_sidecar(tmp_path):
    path = put(tmp_path)
    path.with_name("sub-01_T1w.json").write_text("{'EchoTime': 0.003}")
    assert "not a readable JSON" in refusal(nifti.read_scan, path)
    path.with_name("sub-01_T1w.json").write_text("[1, 2]")
    assert "not a list" in refusal(nifti.read_scan, path)
    path.with_name("sub-01_T1w.json").unlink()
    assert "sub-01_T1w.json" in refusal(nifti.read_scan, path)
    assert nifti.read_scan(path, MPRAGE).protocol == MPRAGE


def test_nearer_sidecar_wins_and_other_scans_sidecars_do_not_apply(tmp_path):
    path = put(tmp_path / "sub-01" / "ses-a" / "anat", "sub-01_ses-a_T1w", EchoTime=None, RepetitionTime=None)
    (tmp_path / "T1w.json").write_text('{"EchoTime": 0.002, "RepetitionTime": 2.4, "InversionTime": 0.7}')
    (tmp_path / "T2w.json").write_text('{"EchoTime": 0.1}')
    (tmp_path / "acq-x_T1w.json").write_text('{"EchoTime": 0.005}')
    (tmp_path / "sub-01" / "sub-01_T1w.json").write_text('{"EchoTime": 0.0025}')
    (tmp_path / "sub-01" / "ses-a" / "sub-02_T1w.json").write_text('{"EchoTime": 0.006}')
    assert nifti.read_scan(path).protocol == Protocol("MPRAGE", te=0.0025, tr=2.4, ti=1.0)


def test_free_names_in_one_folder_keep_their_own_sidecars(tmp_path):
    one, two = put(tmp_path, "Anna_T1w", EchoTime=0.002), put(tmp_path, "Berta_T1w", EchoTime=0.004)
    assert (nifti.read_scan(one).protocol.te, nifti.read_scan(two).protocol.te) == (0.002, 0.004)


def test_contrast_of_a_file_named_freely_follows_its_protocol(tmp_path):
    path = put(tmp_path, "scan")
    by_contrast = {
        "T1w": [MPRAGE, Protocol("FLAIR", 0.02, 2.0, 0.8), Protocol("spin echo", 0.012, 0.5)],
        "T2w": [T2W, Protocol("spoiled gradient echo", 0.025, 0.7, None, 20)],
        "PDw": [Protocol("spin echo", 0.02, 3.0)],
        "FLAIR": [Protocol("FLAIR", 0.09, 9.0, 2.5)],
    }
    for suffix, by_hand in by_contrast.items():
        assert {nifti.read_scan(path, protocol).suffix for protocol in by_hand} == {suffix}


# --- sessions -----------------------------------------------------------------------------------


def small_dataset(root):
    for sub, ses in (("01", "a"), ("01", "b"), ("02", "a")):
        put(root / f"sub-{sub}" / f"ses-{ses}" / "anat", f"sub-{sub}_ses-{ses}_T1w")
    t2w = {"EchoTime": 0.1, "RepetitionTime": 4.0, "InversionTime": None}
    put(root / "sub-02" / "ses-a" / "anat", "sub-02_ses-a_T2w", **t2w)
    put(root / "sub-02" / "ses-a" / "anat", "sub-02_ses-a_label-lesion_mask")
    put(root / "derivatives" / "x" / "sub-09" / "anat", "sub-09_T1w")
    (root / "sub-01" / "ses-a" / "anat" / "._sub-01_ses-a_T1w.nii.gz").write_bytes(b"left by a Mac")
    return root


def test_sessions_of_a_dataset(tmp_path):
    root = small_dataset(tmp_path)
    assert list(sessions.find_sessions(root)) == [("01", "a"), ("01", "b"), ("02", "a")]
    assert [scan.suffix for scan in sessions.read_session(root, "sub-02")] == ["T1w", "T2w"]
    assert [scan.path.name for scan in sessions.read_session(root, "01", "ses-b")] == ["sub-01_ses-b_T1w.nii.gz"]
    assert len(sessions.read_session(root / "sub-02")) == 2
    assert len(sessions.read_session(root / "sub-02" / "ses-a" / "anat")) == 2


def test_sessions_that_cannot_be_told_apart_or_found(tmp_path):
    root = small_dataset(tmp_path / "data")
    assert "holds 3 sessions (sub-01 ses-a, sub-01 ses-b, sub-02 ses-a)" in refusal(sessions.read_session, root)
    assert "no scan of sub-03 here" in refusal(sessions.read_session, root, "03")
    put(root / "sub-02" / "ses-a" / "anat", "sub-02_ses-a_run-2_T1w")
    assert [scan.path.name for scan in sessions.read_session(root, "02")][0] == "sub-02_ses-a_T1w.nii.gz"
    (tmp_path / "empty").mkdir()
    assert "no scan here" in refusal(sessions.read_session, tmp_path / "empty")
    assert "cannot read this folder" in refusal(sessions.read_session, tmp_path / "absent")
    assert "cannot read this folder" in refusal(lambda: list(sessions.find_sessions(root / "sub-01" / "x.txt")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_without_permission_is_told_not_skipped(tmp_path):
    root = small_dataset(tmp_path)
    (root / "sub-02").chmod(0)
    try:
        assert "sub-02: cannot read this folder" in refusal(lambda: list(sessions.find_sessions(root)))
    finally:
        (root / "sub-02").chmod(0o755)


# --- the archive's protocols --------------------------------------------------------------------


def test_variable_flip_angle_echo_times_are_shortened_and_no_others():
    assert physics.effective_te(0.455, "spin echo") == pytest.approx(0.1001)
    assert physics.effective_te(0.394, "FLAIR") == pytest.approx(0.08668)
    assert physics.effective_te(0.12, "spin echo") == 0.12
    assert physics.effective_te(0.4, "MPRAGE") == 0.4
    assert physics.effective_protocol(T2W) == T2W


def test_oasis3_table_is_complete_but_for_mislabelled_and_unknowable_rows():
    table = oasis3.oasis3_protocols()
    totals = {contrast: sum(row.count for row in rows) for contrast, rows in table.items()}
    lost = Counter()
    for row in oasis3.oasis3_excluded():
        lost[row.contrast] += row.count
    assert totals == {"T1w": 2626, "T2w": 1609, "FLAIR": 1322}
    assert lost == {"T1w": 1, "T2w": 2}  # TR 1.52 s without TI; TE 3 ms, and TR 0.26 s
    assert sum(oasis3.SESSION_CONTRASTS.values()) == totals["T1w"] + lost["T1w"]


def test_oasis3_rows_are_runnable_and_keep_their_time_constants():
    table = oasis3.oasis3_protocols()
    assert table["T1w"][0] == (Protocol("MPRAGE", 0.00316, 2.4, 1.0), Protocol("MPRAGE", 0.00316, 2.4, 1.0), 1344)
    for contrast, rows in table.items():
        assert len({row.nominal for row in rows}) == len(rows)
        assert [row.count for row in rows] == sorted((row.count for row in rows), reverse=True)
        for nominal, effective, _ in rows:
            assert nominal.sequence is physics.SEQUENCE_OF[contrast]
            assert (effective.tr, effective.ti) == (nominal.tr, nominal.ti)
            assert effective.te <= 0.16  # no plain decay could show tissue at a nominal 0.455 s
            assert Protocol.from_settings(effective.settings()) == effective


def test_missing_inversion_times_come_from_the_family():
    assert [oasis3.family_ti("T1w", tr) for tr in (2.3, 2.4, 1.52)] == [0.9, 1.0, None]
    assert [oasis3.family_ti("FLAIR", tr) for tr in (9.0, 5.0)] == [2.5, 1.8]
    adni = {row.nominal: row.count for row in oasis3.oasis3_protocols()["T1w"]}
    assert adni[Protocol("MPRAGE", 0.00295, 2.3, 0.9)] == 865 + 159


# --- a real patient -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient(shared_data):
    folder = shared_data / "open_ms"
    if not folder.exists():
        pytest.skip("open_ms is not in the shared data")
    return sessions.read_session(folder)


def test_open_ms_protocols(patient):
    t1w, t2w, flair = patient
    assert [scan.suffix for scan in patient] == ["T1w", "T2w", "FLAIR"]
    assert t1w.protocol == Protocol("FLAIR", te=0.02, tr=2.0, ti=0.8)  # an inversion-recovery spin echo
    assert t2w.protocol == Protocol("spin echo", te=0.12, tr=6.0)
    assert flair.protocol == Protocol("FLAIR", te=round(0.22 * 0.392, 5), tr=5.0, ti=1.8)
    assert any("392 ms" in note for note in flair.notes)


def test_open_ms_images_lie_in_mni_space(patient):
    for scan in patient:
        assert scan.image.shape == (182, 218, 182)
        np.testing.assert_allclose(scan.affine[:3, :3], np.eye(3))
        assert scan.image.min() < 0 < scan.image.max()
    np.testing.assert_allclose(grids.head_centre(patient[0]), (0, -18, 4), atol=8)  # MNI mm
    grid = grids.axial_grid(patient[0], (112, 80), 2.0, z=8)
    t1w, t2w, flair = (grids.volume_to_slices(grids.resample(scan, grid)) for scan in patient)
    brain = t1w > 0.3 * np.percentile(t1w, 99)
    assert 0.3 < brain.mean() < 0.7
    assert (np.corrcoef(t1w[brain], t2w[brain])[0, 1]) < -0.3  # long T1 is long T2
    ventricle = t2w > np.percentile(t2w[brain], 98)
    assert np.median(flair[ventricle]) < 0.7 * np.median(flair[brain])  # nulled
