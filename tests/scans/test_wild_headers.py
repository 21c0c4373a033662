"""What a file says of itself is read, obeyed, converted or refused by name, and what is written keeps it."""

from __future__ import annotations

import gzip
import json
import os
import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from scipy import ndimage
from test_nifti import RAS_2MM, T2W, head, protocol_of, put, refusal
from test_wild_names import ball
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.machine.lock import alone_with
from phyldm_core.physics import Protocol, TissueMaps
from phyldm_core.scans import bids, nifti, prepare
from phyldm_core.scans.doubts import check_voxels
from phyldm_core.scans.fit import on_grid
from phyldm_core.scans.grids import Grid, resample
from phyldm_core.scans.maps import read_maps, render_maps
from phyldm_core.scans.prepare_dataset import prepare_dataset

MPRAGE = Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0)


# --- what an image is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("T1w", {"ImageType": ["DERIVED", "PRIMARY", "T1", "UNIFORM"]}, "uniform image of an MP2RAGE"),
        ("UNIT1", {"ImageType": ["DERIVED", "PRIMARY", "M", "UNI"]}, "its name says (_UNIT1)"),
        ("T1map", {"ImageType": ["DERIVED", "PRIMARY", "T1", "T1", "MAP"]}, "a map of a quantity"),
        ("acq-x_T1w", {"ImageType": ["DERIVED", "PRIMARY", "T1 MAP"]}, "a map of a quantity"),
        ("T1w", {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "a phase image"),
        ("T1w", {"ImageType": "ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE"}, "a phase image"),
        ("T1w", {"ImageTypeText": ["ORIGINAL", "PRIMARY", "I_FFE"]}, "imaginary part"),
        ("T1w", {"ComplexImageComponent": "IMAGINARY"}, "imaginary part"),
        ("part-phase_T1w", {}, "part-phase"),
        ("T1w", {"Units": "rad"}, "Units rad"),
        ("7_ph", {"ScanningSequence": "GR\\IR"}, "a phase image"),
    ],
)
def test_what_is_no_weighted_image_is_refused_by_name(tmp_path, name, fields, words):
    assert words in refusal(nifti.read_scan, put(tmp_path, f"sub-01_{name}", **fields))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sub-01_part-real_T1w", {}),
        ("7_real", {"ScanningSequence": "GR\\IR"}),
        ("sub-01_T1w", {"ImageType": ["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"]}),
        ("sub-01_T1w", {"ComplexImageComponent": "REAL"}),
    ],
)
def test_a_real_part_has_a_sign_and_keeps_it(tmp_path, name, fields):
    there = ball()
    scan = nifti.read_scan(put(tmp_path, name, volume=-there, affine=np.diag([4.0, 4, 4, 1]), **fields))
    assert scan.protocol == replace(MPRAGE, signed=True) and scan.suffix == "T1w" and scan.image.max() == 0
    told = bids.sidecar(scan.protocol)
    assert nifti.read_scan(put(tmp_path, volume=there, **told)).protocol.signed
    prepared = prepare.prepare_session([scan], voxel_mm=3.0, for_maps=True)
    bright = prepare.prepare_session([replace(scan, image=there)], voxel_mm=3.0)
    np.testing.assert_array_equal(prepared.brain, bright.brain)
    np.testing.assert_allclose(prepared.scans[0].image, -bright.scans[0].image, atol=1e-5)


def test_ordinary_image_types_are_read(tmp_path):
    for kind in (["ORIGINAL", "PRIMARY", "M", "ND", "NORM"], ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"], "OTHER", 3):
        assert nifti.read_scan(put(tmp_path, ImageType=kind)).suffix == "T1w"


@pytest.mark.parametrize(
    ("suffix", "fields", "words"),
    [
        ("T2w", {"EchoTime": 1e-4, "RepetitionTime": 4.0}, "did you mean 0.1 s"),  # divided by 1000 twice
        ("T1w", {"EchoTime": 2.9e-6, "RepetitionTime": 2.3, "InversionTime": 0.9}, "did you mean 0.0029 s"),
        ("T1w", {"EchoTime": 0.003, "RepetitionTime": 2.3, "InversionTime": 9e-4}, "did you mean 0.9 s"),
        ("T2w", {"EchoTime": 10**400, "RepetitionTime": 4}, "must be one number of seconds"),
        ("T2w", {"EchoTime": 2**70, "RepetitionTime": 4}, "looks like milliseconds"),
        ("T2w", {"EchoTime": True, "RepetitionTime": 4}, "must be one number of seconds"),
        ("T2w", {"EchoTime": [[0.1]], "RepetitionTime": 4}, "must be one number of seconds"),
    ],
)
def test_numbers_that_are_no_times(suffix, fields, words):
    assert words in refusal(protocol_of, suffix, **fields)


@pytest.mark.parametrize("content", ["9" * 5000, "[" * 100_000, '{"EchoTime": ' + "9" * 5000 + "}", "\x00", "{} {}"])
def test_json_that_is_none_gets_one_sentence(tmp_path, content):
    path = put(tmp_path)
    (tmp_path / "sub-01_T1w.json").write_text(content)
    assert "not a readable JSON file" in refusal(nifti.read_scan, path)


@pytest.mark.parametrize("option", [("--seed", str(2**70)), ("--protocol", "T1w: MPRAGE, te 0.1.2, tr 3, ti 1"),
                                    ("--protocol", f"T1w: MPRAGE, te {'9' * 400}, tr 3, ti 1")])  # fmt: skip
def test_numbers_on_the_command_line_get_one_sentence(tmp_path, option):
    path = put(tmp_path)
    result = CliRunner().invoke(app, ["fit", str(path), "--weights", "release", "--out", str(tmp_path / "o"), *option])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.exception
    assert not (tmp_path / "o" / "sub-01").exists()


# --- where it lies --------------------------------------------------------------------------------


def edited(path, *, qform=None, codes=None, **fields):
    """The same file with header fields set byte for byte, which nibabel would put right."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = np.ndarray((), nibabel.nifti1.header_dtype, raw)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def both(folder, qform, sform, codes=(1, 1), unit="mm"):
    path = put(folder)
    image = nibabel.Nifti1Image(head(), sform)
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    return path


def test_sform_against_qform_and_pixdim(tmp_path):
    srow = dict(zip(("srow_x", "srow_y", "srow_z"), np.eye(4)[:3] @ np.diag([1, 1, 1, 0]), strict=True))
    half = edited(put(tmp_path, affine=np.diag([2.0, 2, 2, 1])), sform_code=1, **srow)
    assert "sform and pixdim disagree on the voxels' size (1×1×1 and 2×2×2 mm)" in refusal(nifti.read_scan, half)
    moved = RAS_2MM + np.array([[0, 0, 0, 30.0], [0] * 4, [0] * 4, [0] * 4])
    assert "disagree on the place of its voxels by 30.0 mm" in refusal(nifti.read_scan, both(tmp_path, RAS_2MM, moved))
    scan = nifti.read_scan(both(tmp_path, RAS_2MM, moved, (1, 2)))  # aligned to another scan: no contradiction
    np.testing.assert_allclose(scan.affine, moved)
    assert any("sform (code 2) taken" in note for note in scan.notes)
    mirrored = RAS_2MM @ np.diag([-1.0, 1, 1, 1])
    assert "left and right" in refusal(nifti.read_scan, both(tmp_path, mirrored, RAS_2MM, (1, 2)))
    stretched = np.diag([1.1, 1.1, 1.05, 1]) @ RAS_2MM
    raw = both(tmp_path, RAS_2MM, stretched, (1, 4))
    edited(raw, pixdim=[1, 2, 2, 3, 0, 0, 0, 0])
    assert any("stretched to a template" in note for note in nifti.read_scan(raw).notes)


def test_a_damaged_quaternion_is_refused_or_the_sform_is_taken(tmp_path):
    path = both(tmp_path, RAS_2MM, RAS_2MM)
    np.testing.assert_allclose(nifti.read_scan(edited(path, quatern_b=2)).affine, RAS_2MM)
    assert "not NIfTI, or cut short" in refusal(nifti.read_scan, edited(path, sform_code=0))


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (4, 4), (1, 4), (0, 4)])
def test_written_images_keep_unit_codes_and_place(tmp_path, unit, mm, codes):
    affine = np.diag([1 / mm] * 3 + [1.0]) @ RAS_2MM
    stored = nifti.read_scan(both(tmp_path, affine, affine, codes, unit)).stored
    np.testing.assert_allclose(stored.affine, RAS_2MM, atol=1e-5)
    out = nifti.write_image(tmp_path / "out.nii.gz", head(), stored.affine, {}, like=stored)
    back = nifti.read_stored(out)[1]
    np.testing.assert_allclose(back.affine, RAS_2MM, atol=1e-5)
    assert back.unit == unit and back.codes == (codes if 0 in codes or codes[0] == codes[1] else (0, codes[1]))


def test_no_orientation_stays_none_and_a_shear_is_not_called_a_rotation(tmp_path):
    sheared = RAS_2MM.copy()
    sheared[0, 1] = 0.5
    for affine, codes in ((None, (0, 0)), (sheared, (0, 2))):
        image = nibabel.Nifti1Image(head(), affine)
        image.to_filename(tmp_path / "in.nii.gz")
        _, stored = nifti.read_stored(tmp_path / "in.nii.gz")
        out = nifti.write_image(tmp_path / "out.nii.gz", head(), stored.affine, {}, like=stored)
        back = nibabel.load(out)
        assert (int(back.header["qform_code"]), int(back.header["sform_code"])) == codes
        np.testing.assert_allclose(back.affine, stored.affine, atol=1e-5)
    both_codes = nifti.Stored(head().shape, sheared, (1, 1))
    back = nibabel.load(nifti.write_image(tmp_path / "out.nii.gz", head(), sheared, {}, like=both_codes))
    assert not int(back.header["qform_code"])
    np.testing.assert_allclose(back.affine, sheared, atol=1e-5)


def test_no_edge_slice_is_lost_to_rounding(tmp_path):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    scan = nifti.read_scan(put(tmp_path, volume=head() + 5, affine=affine))
    shifted = affine.copy()
    shifted[:3, 3] = 1e-6, -1e-6, 1e-6
    finer = Grid((20, 28, 6), shifted @ np.diag([0.5, 0.5, 1, 1]))  # every second voxel is the scan's
    moved = resample(scan, finer)
    assert (moved[::2, ::2] > 0).all() and moved[0].any() and moved[:, 0].any()
    brain = np.ones(scan.image.shape, bool)
    maps = TissueMaps(*(brain.astype(np.float32) * v for v in (0.8, 1.0, 0.1)))
    from phyldm_core.scans.fit import Fit

    fit = on_grid(Fit(maps, maps, brain, affine, (0.0, 1.0), 0.0), Grid(scan.image.shape, shifted))
    assert fit.brain.all()
    np.testing.assert_allclose(fit.mean.t1, 1.0, rtol=1e-5)


def test_prepared_scans_stay_in_the_space_of_their_reference(tmp_path):
    path = put(tmp_path / "raw" / "sub-01" / "anat", volume=ball(), affine=np.diag([4.0, 4, 4, 1]))
    image = nibabel.load(path)
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 4)
    nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header).to_filename(path)
    for _ in prepare_dataset(tmp_path / "raw", tmp_path / "out", voxel_mm=4.0):
        pass
    written = nibabel.load(next((tmp_path / "out").rglob("*_T1w.nii.gz")))
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 4


# --- maps -----------------------------------------------------------------------------------------


def put_maps(folder, t1=1.2, t2=0.08, air=(0.1, 0.003), units=("s", "s"), pd_unit="arbitrary"):
    folder.mkdir(parents=True, exist_ok=True)
    tissue = np.zeros((12, 14, 10), bool)
    tissue[3:9, 3:11, 2:8] = True
    values = (("PDmap", 0.8, 0.001, pd_unit), ("T1map", t1, air[0], units[0]), ("T2map", t2, air[1], units[1]))
    for suffix, inside, outside, unit in values:
        volume = np.where(tissue, inside, outside).astype(np.float32)
        nibabel.Nifti1Image(volume, np.diag([2.0, 2, 2, 1])).to_filename(folder / f"sub-01_{suffix}.nii.gz")
        (folder / f"sub-01_{suffix}.json").write_text(json.dumps({"Units": unit} if unit else {}))
    return tissue


@pytest.mark.parametrize(
    ("t2", "air", "unit"), [(0.08, 0.003, "s"), (80, 3, "ms"), (12.5, 300, "1/s"), (80, 3, "MSEC"), (12.5, 300, "Hz")]
)
def test_units_of_maps_are_obeyed(tmp_path, t2, air, unit):
    tissue = put_maps(tmp_path / "maps", t2=t2, air=(0.1, air), units=("s", unit))
    out = render_maps(tmp_path / "maps", Protocol("spin echo", 0.1, 5), tmp_path / "out.nii.gz")
    right = 0.8 * (1 - np.exp(-5 / 1.2)) * np.exp(-0.1 / 0.08)
    np.testing.assert_allclose(nibabel.load(out).get_fdata()[tissue], right, rtol=1e-5)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"t2": 80, "air": (0.1, 3), "units": ("s", None)}, "looks like milliseconds"),
        ({"t2": 80, "air": (0.1, 30), "units": ("s", "s")}, "looks like milliseconds"),
        ({"units": ("ms", "s")}, "then no time is longer than"),
        ({"units": ("s", "furlongs")}, "unknown Units 'furlongs'"),
        ({"pd_unit": "mol/l"}, "unknown Units 'mol/l'"),
    ],
)
def test_units_that_cannot_be_are_refused(tmp_path, told, words):
    put_maps(tmp_path, **told)
    assert words in refusal(read_maps, tmp_path)


def test_an_output_never_names_an_input(tmp_path):
    put_maps(tmp_path / "maps")
    path = tmp_path / "maps" / "sub-01_T1map.nii.gz"
    before = path.read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(path)
    for out in (path, tmp_path / "maps" / ".." / "maps" / path.name, tmp_path / "link.nii.gz"):
        assert "is one of the maps" in refusal(render_maps, tmp_path / "maps", T2W, out)
    scan = put(tmp_path / "raw", "sub-01_T1w")
    assert "was not rendered by phyldm" in refusal(render_maps, tmp_path / "maps", T2W, scan)
    assert path.read_bytes() == before
    again = tmp_path / "new.nii.gz"
    assert render_maps(tmp_path / "maps", T2W, again) == render_maps(tmp_path / "maps", T2W, again)


# --- voxels that mislead --------------------------------------------------------------------------


def checked(image):
    return check_voxels(image.astype(np.float32), "x.nii.gz")


def test_voxels_that_mislead_the_scale_are_told():
    rng, good = np.random.default_rng(0), ball() + np.random.default_rng(1).rayleigh(10, ball().shape)
    image, notes, misled = checked(good)
    assert not notes and not misled and (image == good.astype(np.float32)).all()
    hot = good.copy()
    hot[3, 4, 5] = 1e6
    image, notes, misled = checked(hot)
    assert image.max() < 10 * good.max() and "1 voxels" in notes[0] and not misled
    assert "an offset was added" in checked(good + 400)[2][0]
    assert "is noise" in checked(rng.rayleigh(100, good.shape))[2][0]
    for volume, words in (
        ((good - good.mean()) / good.std(), "are negative"),
        (np.where(ball() > 0, (good - 500) / 100, 0), "are negative"),  # z-scored inside a mask
        (np.full(good.shape, 5.0), "every voxel is 5"),
        (np.digitize(good, [100, 400, 500, 600]), "different values: a mask or a label map"),
    ):
        assert words in refusal(checked, volume)


def test_a_scale_that_cannot_be_told_is_refused_where_maps_are_made(tmp_path):
    scan = nifti.read_scan(put(tmp_path, volume=ball() + 400, affine=np.diag([4.0, 4, 4, 1])))
    assert prepare.prepare_session([scan], voxel_mm=4.0).scans[0].doubts[-1].startswith("its darkest voxels")
    assert "an offset was added" in refusal(prepare.prepare_session, [scan], voxel_mm=4.0, for_maps=True)
    stripped = nifti.read_scan(put(tmp_path, volume=ball(), affine=np.diag([4.0, 4, 4, 1]), SkullStripped=True))
    prepare.prepare_session([stripped], voxel_mm=4.0, for_maps=True)


@pytest.mark.parametrize("mm", [1.7, 2.0, 3.1, 6.0])
def test_what_a_stripped_scan_does_not_show_is_exactly_0_on_any_grid(tmp_path, mm):
    scan = nifti.read_scan(put(tmp_path, volume=ball(), affine=np.diag([4.0, 4, 4, 1]), SkullStripped=True))
    prepared = prepare.prepare_session([scan], voxel_mm=mm)
    image, beyond = prepared.scans[0].image, ~ndimage.binary_dilation(prepared.brain, iterations=int(np.ceil(8 / mm)))
    assert beyond.any() and not image[beyond].any() and (image[prepared.brain] != 0).mean() > 0.99


def test_a_scan_of_two_slices_gets_one_sentence_or_is_used(tmp_path):
    affine = np.diag([4.0, 4, 4, 1])
    whole = nifti.read_scan(put(tmp_path, volume=ball(), affine=affine))
    there = affine.copy()
    there[2, 3] = 14 * 4
    fields = {"EchoTime": 0.1, "InversionTime": None}
    thin = nifti.read_scan(put(tmp_path, "sub-01_T2w", volume=ball()[:, :, 14:16], affine=there, **fields))
    left_out: dict = {}
    prepared = prepare.prepare_session([whole, thin], voxel_mm=4.0, left_out=left_out)
    assert len(prepared.scans) + len(left_out) == 2
    assert prepared.brain.any((0, 1)).sum() > 20  # the slab says nothing of the brain beyond it


# --- files that change, and two at once -----------------------------------------------------------


def test_a_pair_of_hdr_and_img_is_read_and_both_are_hashed(tmp_path):
    path = put(tmp_path)
    nibabel.Nifti1Pair(head(), RAS_2MM).to_filename(tmp_path / "sub-01_T1w.img")
    np.testing.assert_array_equal(nifti.read_scan(tmp_path / "sub-01_T1w.hdr").image, head())
    before = nifti.digest(tmp_path / "sub-01_T1w.hdr")
    content = bytearray((tmp_path / "sub-01_T1w.img").read_bytes())
    content[100] ^= 1
    (tmp_path / "sub-01_T1w.img").write_bytes(content)
    assert nifti.digest(tmp_path / "sub-01_T1w.hdr") != before and nifti.digest(path) == nifti.digest(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    header = nifti.read_header(put(tmp_path))
    put(tmp_path, volume=2 * head())
    assert "changed while it was read" in refusal(nifti.read_voxels, header)


def test_the_second_process_on_one_session_says_so(tmp_path):
    with alone_with(tmp_path, "sub-01"), alone_with(tmp_path, "sub-02"):
        said = []
        other = threading.Thread(target=lambda: said.append(refusal(alone_with(tmp_path, "sub-01").__enter__)))
        other.start()
        other.join()
    assert "another phyldm is working on sub-01" in said[0]
    with alone_with(tmp_path, "sub-01"):
        pass


def test_nothing_is_written_among_raw_scans(tmp_path):
    raw = tmp_path / "raw"
    put(raw / "sub-01" / "anat", volume=ball())
    before = sorted(raw.rglob("*"))
    for source, out in ((raw / "sub-01", raw), (raw, raw), (raw, raw / "sub-01"), (raw / "sub-01" / "anat", raw)):
        said = CliRunner().invoke(app, ["prepare", str(source), "--out", str(out)])
        assert said.exit_code == 1 and "choose another folder" in said.output
    assert sorted(raw.rglob("*")) == before


def test_kept_only_where_inputs_and_outputs_are_what_they_were(tmp_path):
    path = put(tmp_path / "raw" / "sub-01" / "anat", volume=ball(), affine=np.diag([4.0, 4, 4, 1]))

    def status():
        (outcome,) = prepare_dataset(tmp_path / "raw", tmp_path / "out", voxel_mm=4.0)
        return outcome.status

    assert [status(), status()] == ["prepared", "kept"]
    image = next((tmp_path / "out").rglob("*_T1w.nii.gz"))
    written = image.read_bytes()
    image.write_bytes(written[:-1])
    assert status() == "prepared" and image.read_bytes() == written
    before = path.stat()
    put(tmp_path / "raw" / "sub-01" / "anat", volume=1.5 * ball() + (ball() > 0), affine=np.diag([4.0, 4, 4, 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy keeps it
    assert status() == "prepared" and voxel_sizes(nibabel.load(image).affine).max() == 4
