"""Somebody's scans in, their tissue out: on the right voxels, in seconds, once, and one sentence where it cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.inference import infer
from phyldm_core.machine.errors import BadInput
from phyldm_core.physics import Protocol, Sequence, TissueMaps
from phyldm_core.scans import bids, fit_dataset, nifti, registration, sessions
from phyldm_core.scans.fit import Window, fit_session, on_grid, prepare, session_slices, volume_brightness
from phyldm_core.scans.fit_dataset import parse_protocol
from phyldm_core.scans.maps import read_maps, render_volume
from phyldm_core.scans.sessions import find_scans
from phyldm_core.weights import load_weights

PROTOCOLS = {
    "T1w": Protocol(Sequence.MPRAGE, te=0.003, tr=2.4, ti=1.0),
    "T2w": Protocol(Sequence.SPIN_ECHO, te=0.1, tr=3.2),
    "FLAIR": Protocol(Sequence.FLAIR, te=0.09, tr=9.0, ti=2.5),
}
AFFINE = np.array([[-4, 0, 0, 80], [0, 4, 0, -92], [0, 0, 4, -60], [0, 0, 0, 1.0]])  # stored right to left
SHAPE = (40, 46, 32)


def brain_maps() -> TissueMaps:
    """A stripped brain of three shells, in the voxels of :data:`AFFINE`."""
    at = np.moveaxis(np.indices(SHAPE), 0, -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    radius = np.linalg.norm((at - [0, 0, 2]) / [62, 78, 55], axis=-1)
    inside = [radius < r for r in (0.25, 0.8, 1)]  # ventricle, white matter, cortex

    def shells(csf, wm, gm):
        values = np.select(inside, (csf, wm, gm), 0.0)
        return (values * (1 + 0.02 * np.sin(at.sum(-1) / 15))).astype(np.float32)

    return TissueMaps(shells(1.0, 0.7, 0.82), shells(4.0, 0.85, 1.4), shells(1.8, 0.07, 0.085))


def write_session(folder: Path, name: str = "sub-01", contrasts=tuple(PROTOCOLS), gain: float = 700.0):
    maps = brain_maps()
    for i, suffix in enumerate(contrasts):
        image = render_volume(maps, PROTOCOLS[suffix]) * gain * (i + 1)
        meta = bids.sidecar(PROTOCOLS[suffix], SkullStripped=True)
        nifti.write_image(folder / f"{name}_{suffix}.nii.gz", image, AFFINE, meta)


@pytest.fixture(scope="module", autouse=True)
def roughly():
    """Scans are laid over each other at 8 mm only: test_prepare.py asks how well, and it would be most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "PYRAMID_MM", registration.PYRAMID_MM[:1])
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("raw data ü")
    write_session(root / "sub-01" / "anat")
    return root


@pytest.fixture(scope="module")
def weights(smoke_run):
    return load_weights(smoke_run.folder)


@pytest.fixture(scope="module")
def fitted(dataset, weights, tmp_path_factory):
    """What the command wrote, and what it said."""
    out = tmp_path_factory.mktemp("maps")
    return out, run_fit(dataset, weights, out)


def run_fit(inputs, weights, out, *options):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return CliRunner().invoke(
        app, ["fit", *map(str, inputs), "--weights", str(weights.folder), "--out", str(out), *options]
    )


def stamps(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- maps -----------------------------------------------------------------------------------------


def test_maps_lie_on_the_voxels_of_the_t1w_file(fitted, dataset):
    out, said = fitted
    assert said.exit_code == 0, said.output
    t1w = nibabel.load(dataset / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    for suffix in ("PDmap", "T1map", "T2map", "desc-sd_PDmap", "desc-sd_T1map", "desc-sd_T2map", "desc-brain_mask"):
        image = nibabel.load(out / "sub-01" / "anat" / f"sub-01_{suffix}.nii.gz")
        assert image.shape == t1w.shape
        np.testing.assert_allclose(image.affine, t1w.affine, atol=1e-4)


def test_maps_are_positive_in_the_brain_and_nothing_outside(fitted):
    out, _ = fitted
    maps = read_maps(out)
    brain = nibabel.load(out / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz").get_fdata() > 0
    truth = brain_maps().pd > 0
    assert (brain & truth).sum() / truth.sum() > 0.9
    for volume in maps.maps:
        assert (volume[brain] > 0).all() and not volume[~brain].any()
    sd = nibabel.load(out / "sub-01" / "anat" / "sub-01_desc-sd_T1map.nii.gz").get_fdata()
    assert (sd[brain] > 0).all() and not sd[~brain].any()


def test_sidecars_say_units_and_what_the_maps_were_made_from(fitted, weights, dataset):
    out, said = fitted
    meta = json.loads((out / "sub-01" / "anat" / "sub-01_T1map.json").read_text())
    assert meta["Units"] == "s" and meta["SkullStripped"] is True
    t1w = next(scan for scan in meta["InputScans"] if scan["Contrast"] == "T1w")
    assert t1w["ProtocolUsed"] == {
        "Sequence": "MPRAGE", "EchoTime": 0.003, "RepetitionTime": 2.4, "InversionTime": 1.0
    }  # fmt: skip
    assert t1w["File"] == "sub-01_T1w.nii.gz" and len(t1w["SHA256"]) == 64
    assert meta["Weights"]["SHA256"] == weights.identity and meta["Versions"]["phyldm_core"]
    assert "extrapolated" in meta["Limitation"] and 0 < meta["ExtrapolatedFraction"] < 1
    assert str(dataset) not in json.dumps(meta)
    assert said.stderr.count("extrapolated (sidecars say where)") == 1


def test_equal_inputs_are_not_fitted_twice(fitted, dataset, weights):
    out, _ = fitted
    before = stamps(out)
    again = run_fit(dataset, weights, out)
    assert again.exit_code == 0 and "unchanged" in again.stdout
    assert stamps(out) == before


def test_a_changed_option_is_fitted_again(dataset, weights, tmp_path):
    out = tmp_path / "out"
    names = ("desc-sd_T1map", "T1map")

    def fitted_with(seed: str):
        assert "done" in run_fit(dataset, weights, out, "--fast", "--seed", seed).stdout
        return [nibabel.load(out / f"sub-01/anat/sub-01_{name}.nii.gz").get_fdata() for name in names]

    (old_sd, old), (new_sd, new) = fitted_with("0"), fitted_with("1")
    assert (old_sd != new_sd).any()
    np.testing.assert_array_equal(old, new)  # the seed is of the SD's samples only


def test_refined_maps_explain_the_scans_better_than_the_encoder_and_say_so(dataset, weights, tmp_path):
    out, fast = tmp_path / "refined", tmp_path / "fast"
    assert (
        run_fit(dataset, weights, out, "--refine").exit_code == run_fit(dataset, weights, fast, "--fast").exit_code == 0
    )
    brain = nibabel.load(out / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz").get_fdata() > 0
    better = []
    for contrast, protocol in PROTOCOLS.items():
        scan = nibabel.load(dataset / "sub-01" / "anat" / f"sub-01_{contrast}.nii.gz").get_fdata()[brain]
        alike = [
            np.corrcoef(render_volume(read_maps(folder).maps, protocol)[brain], scan)[0, 1] for folder in (fast, out)
        ]
        better.append(alike[1] - alike[0])
    assert np.mean(better) > 0.3 and min(better) > 0.2  # of a network that has learned nothing
    meta, sd = (json.loads((out / f"sub-01/anat/sub-01_{name}T1map.json").read_text()) for name in ("", "desc-sd_"))
    assert meta["Options"]["Refined"] and "moved to where the voxel's signals want it" in meta["Description"]
    assert "scans' noise" in sd["Description"] and "samples" not in sd["Description"]


def test_maps_half_replaced_are_made_again(fitted, dataset, weights, tmp_path, monkeypatch):
    out = Path(shutil.copytree(fitted[0], tmp_path / "out"))
    real, moved = fit_dataset.os.replace, []

    def killed(source, target):
        if Path(target).parent.name == "anat":  # everything before is written into a folder of its own
            moved.append(target)
            if len(moved) == 4:
                raise KeyboardInterrupt
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(fit_dataset.os, "replace", killed)
        stopped = run_fit(dataset, weights, out, "--seed", "2")
    assert stopped.exit_code == 130 and "run the same command again" in stopped.stderr
    assert not list(out.rglob("*.part"))
    assert "done" in run_fit(dataset, weights, out, "--seed", "2").stdout
    read_maps(out)


def test_an_arbitrary_gain_changes_nothing(weights, tmp_path):
    for name, gain in (("dark", 0.5), ("bright", 123_000.0)):
        write_session(tmp_path / name, contrasts=("T1w",), gain=gain)
    one, other = (fit_folder(tmp_path / name, weights).mean for name in ("dark", "bright"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


def fit_folder(folder, weights, **options):
    return fit_session(prepare(sessions.read_session(folder), weights), weights, n_samples=2, **options)


@pytest.mark.parametrize("contrasts", [("T1w",), ("FLAIR",), ("T2w", "FLAIR")])
def test_any_subset_of_scans_gives_maps(contrasts, weights, tmp_path):
    write_session(tmp_path, contrasts=contrasts)
    fit = fit_folder(tmp_path, weights)
    assert all((volume[fit.brain] > 0).all() for volume in fit.mean)


def test_the_volume_is_the_slices_inferred_one_by_one(weights, dataset):
    prepared, vae = prepare(sessions.read_session(dataset), weights), weights.vae()
    slices, window = session_slices(prepared, weights, vae.downsampling)
    t1 = infer(vae, slices, common_scale=False, scale=volume_brightness(slices))[1].t1.numpy()
    fit = fit_session(prepared, weights, n_samples=2, fast=True)
    k = window.k[len(window.k) // 2]
    expected = window.of_volume(fit.mean.t1)[len(window.k) // 2]
    inside = expected > 0
    np.testing.assert_allclose(t1[len(window.k) // 2][inside], expected[inside], rtol=1e-5)
    assert fit.brain[:, :, k].sum() == inside.sum()


def test_a_scan_counts_only_where_it_was_scanned(weights, dataset):
    prepared = prepare(sessions.read_session(dataset), weights)
    whole, _ = session_slices(prepared, weights, 4)
    half = prepared.scans[1].image.copy()
    half[:, :, : half.shape[2] // 2] = 0
    prepared.scans[1] = fit_dataset.Scan(**{**prepared.scans[1].__dict__, "image": half})
    slices, window = session_slices(prepared, weights, 4)
    assert whole.observed.all() and len(slices) == len(whole)
    above = np.array(window.k) >= half.shape[2] // 2
    assert slices.observed[:, 1].tolist() == above.tolist() and slices.observed[:, 0].all()


def test_a_window_may_exceed_the_volume():
    volume = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3) + 1
    window = Window(-2, 1, (0, 2), (8, 8))
    slices = window.of_volume(volume)
    assert slices.shape == (2, 8, 8) and slices[1, 0, 2] == volume[0, 1, 2]
    back = window.into_volume(slices, volume.shape)
    np.testing.assert_array_equal(back[:, 1:, [0, 2]], volume[:, 1:, [0, 2]])
    assert not back[:, 0].any() and not back[:, :, 1].any()


def test_a_map_does_not_fade_at_the_rim_of_the_brain(weights, dataset):
    session = sessions.read_session(dataset)
    fit = fit_folder(dataset, weights)
    flat = TissueMaps(*(fit.brain * np.float32(v) for v in (0.7, 1.0, 0.1)))
    moved = on_grid(type(fit)(**{**fit.__dict__, "mean": flat}), session[0].stored)
    for volume, value in zip(moved.mean, (0.7, 1.0, 0.1), strict=True):
        np.testing.assert_allclose(volume[moved.brain], value, rtol=1e-5)


def test_the_model_s_own_grid_can_be_had(dataset, weights, tmp_path):
    done = run_fit(dataset, weights, tmp_path, "--grid", "model")
    assert done.exit_code == 0, done.output
    image = nibabel.load(tmp_path / "sub-01" / "anat" / "sub-01_res-6mm_T1map.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), 6)
    assert "6 mm" in json.loads((tmp_path / "sub-01" / "anat" / "sub-01_res-6mm_T1map.json").read_text())["Resolution"]
    assert validator(tmp_path) == 0


def validator(folder: Path) -> int:
    """Exit code of the official BIDS validator; 0 where it finds no error."""
    pytest.importorskip("bids_validator_deno", reason="the BIDS validator is not installed (extra: test)")
    command = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([command, str(folder)], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return done.returncode


def test_the_official_validator_accepts_the_maps(fitted):
    assert validator(fitted[0]) == 0


# --- what to fit ----------------------------------------------------------------------------------


def test_files_are_one_session_and_folders_as_many_as_they_hold(tmp_path, dataset):
    anat = dataset / "sub-01" / "anat"
    files = sorted(anat.glob("*.nii.gz"))
    assert find_scans(files) == [("01", None, tuple(files))]
    for name in ("sub-02_ses-a", "sub-02_ses-b"):
        write_session(tmp_path / name.replace("_", "/") / "anat", name, ("T1w",))
    assert [session.name for session in find_scans([tmp_path])] == ["sub-02_ses-a", "sub-02_ses-b"]
    odd = tmp_path / "Erika's scan_T1w.nii.gz"
    assert find_scans([odd])[0].name == "sub-Erikasscan"


def test_a_protocol_is_read_as_people_write_it():
    assert parse_protocol("T2w: spin echo, te 0.1, tr 3.2") == ("T2w", PROTOCOLS["T2w"])
    assert parse_protocol("a.nii.gz:mprage,TE=0.003 s,TR=2.4 s,TI=1 s") == ("a.nii.gz", PROTOCOLS["T1w"])
    echo = Protocol(Sequence.GRADIENT_ECHO, te=0.004, tr=0.02, flip_angle_deg=15)
    for said in (
        "spoiled gradient echo, te 0.004, tr 0.02, flip 15",
        "Spoiled Gradient Echo, flip=15°, te .004, tr .02",
    ):
        assert parse_protocol(f"T1w: {said}")[1] == echo
    inverted = Protocol(Sequence.FLAIR, te=0.012, tr=15, ti=0.5, signed=True)
    for name in ("FLAIR", "inversion recovery"):
        assert parse_protocol(f"T1w: {name}, te .012, tr 15, ti .5, Signed")[1] == inverted
    train = Protocol(Sequence.INVERSION_GRADIENT_ECHO, te=0.004, tr=3, ti=0.8, flip_angle_deg=90)
    assert parse_protocol("T1w: inversion-recovery gradient echo, te .004, tr 3, ti .8, flip 90 deg")[1] == train


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spin echo, te 0.1, tr 3.2", "write it as"),
        ("T2w: spin echo, te 100 ms, tr 3.2", "is in milliseconds: give 0.1"),
        ("T2w: spin echo, te 100, tr 3200", "looks like milliseconds"),
        ("T2w: spin echo, tr 3.2", "no TE"),
        ("T2w: haste, te 0.1, tr 3.2", "unknown sequence 'haste': choose one of MPRAGE, spin echo, FLAIR, spoiled"),
        ("T1w: spoiled gradient echo, te .004, tr .02", "needs a flip angle"),
        ("T1w: spoiled gradient echo, te .004, tr .02, flip 0.26", "looks like radians: did you mean 14.9"),
        ("T1w: spoiled gradient echo, te .004, tr .02, flip 15 s", "'flip 15 s' cannot be read"),
        ("T1w: MPRAGE, te .004, tr 2, ti .9, flip 9", "flip angle 9.0° given for MPRAGE"),
        ("T1w: MPRAGE, signed, te .004, tr 2, ti .9", "'signed' cannot be read"),
        ("T1w: MPRAGE, te 0.003, tr 2.4", "needs an inversion time"),
        ("T2w: spin echo, te 0.1, te 0.2, tr 3.2", "'te 0.2' cannot be read"),
    ],
)
def test_a_protocol_that_is_none_is_explained(text, said):
    with pytest.raises(BadInput, match=said) as caught:
        parse_protocol(text)
    assert "\n" not in str(caught.value)


def test_a_protocol_by_hand_replaces_a_missing_sidecar(dataset, weights, tmp_path):
    scan = shutil.copy(dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz", tmp_path / "patient.nii.gz")
    bare = run_fit(Path(scan), weights, tmp_path / "out")
    assert bare.exit_code == 1 and "no sidecar" in bare.stderr and "1 of 1 sessions skipped" in bare.stderr
    told = run_fit(Path(scan), weights, tmp_path / "out", "--protocol", "patient.nii.gz: spin echo, te 0.1, tr 3.2",
                   "--mask", str(scan))  # fmt: skip
    assert told.exit_code == 0, told.output
    meta = json.loads((tmp_path / "out" / "sub-patient" / "anat" / "sub-patient_T2map.json").read_text())
    assert "protocol given by hand" in meta["InputScans"][0]["Notes"]


# --- what cannot be fitted ------------------------------------------------------------------------


def refused(result) -> str:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_one_bad_session_does_not_stop_the_others(dataset, weights, tmp_path):
    raw = Path(shutil.copytree(dataset, tmp_path / "raw"))
    write_session(raw / "sub-00" / "anat", "sub-00", ("T2w",))
    sidecar = raw / "sub-00" / "anat" / "sub-00_T2w.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"EchoTime": 100}))
    said = refused(run_fit(raw, weights, tmp_path / "out"))
    assert "sub-00: skipped" in said and "did you mean 0.1 s" in said and "1 of 2 sessions skipped" in said
    read_maps(tmp_path / "out" / "sub-01")
    assert not (tmp_path / "out" / "sub-00").exists()


def test_bad_options_are_refused_before_anything_is_written(dataset, weights, tmp_path):
    out = tmp_path / "out"
    for options, said in (
        (("--grid", "mni"), "choose native or model"),
        (("--samples", "1"), "at least 2"),
        (("--protocol", "PDw: spin echo, te 0.02, tr 3"), "no scan has this name or suffix"),
    ):
        assert said in refused(run_fit(dataset, weights, out, *options))
    assert "no scan here" in refused(run_fit(tmp_path, weights, out))
    assert not out.exists()


def test_missing_weights_say_which_command_makes_them(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("phyldm_core.weights.RELEASE_FOLDER", tmp_path / "not there")  # what would be taken instead
    said = refused(CliRunner().invoke(app, ["fit", str(dataset), "--out", "out"]))
    assert "make them with phyldm reproduce" in said


def test_maps_are_not_written_into_another_dataset(dataset, weights, tmp_path):
    bids.write_dataset_description(tmp_path, "raw data", derivative=False)
    assert "is another dataset" in refused(run_fit(dataset, weights, tmp_path))


def test_nothing_is_written_among_raw_scans(weights, tmp_path):
    raw = tmp_path / "raw"
    write_session(raw / "sub-01" / "anat", contrasts=("T1w",))
    before = sorted(raw.rglob("*"))
    for inputs in (raw, raw / "sub-01" / "anat" / "sub-01_T1w.nii.gz"):
        assert "would lie among the scans" in refused(run_fit(inputs, weights, raw))
    assert sorted(raw.rglob("*")) == before


def test_somebody_else_s_maps_of_the_same_name_stay(dataset, weights, fitted, tmp_path):
    out = Path(shutil.copytree(fitted[0], tmp_path / "out"))
    write_session(tmp_path / "other" / "sub-01" / "anat", gain=300.0)
    before = stamps(out)
    said = refused(run_fit(tmp_path / "other", weights, out))
    assert "maps of other scans that go by sub-01" in said and stamps(out) == before


def test_prepared_scans_are_not_written_among_maps(dataset, fitted):
    before = stamps(fitted[0])
    said = refused(CliRunner().invoke(app, ["prepare", str(dataset), "--out", str(fitted[0])]))
    assert "is another dataset" in said and stamps(fitted[0]) == before


def test_unchanged_only_where_the_maps_still_are_what_was_written(dataset, weights, fitted, tmp_path):
    out = Path(shutil.copytree(fitted[0], tmp_path / "out"))
    path = out / "sub-01" / "anat" / "sub-01_T1map.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "done" in run_fit(dataset, weights, out).stdout and path.read_bytes() == whole
    assert "unchanged" in run_fit(dataset, weights, out).stdout


def test_a_failure_nobody_expected_is_named_and_the_others_are_done(weights, tmp_path, monkeypatch):
    for name in ("sub-01", "sub-02"):
        write_session(tmp_path / "raw" / name / "anat", name, ("T1w",))
    real = fit_dataset.read_chosen

    def broken(found, left_out):
        if "sub-01" in str(found["T1w"][0].path):
            raise ZeroDivisionError("a bug")
        return real(found, left_out)

    monkeypatch.setattr(fit_dataset, "read_chosen", broken)
    said = run_fit(tmp_path / "raw", weights, tmp_path / "out")
    assert "failed unexpectedly (ZeroDivisionError: a bug)" in refused(said) and "sub-02: done" in said.stdout


def test_an_out_that_cannot_be_a_folder(dataset, weights, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(run_fit(dataset, weights, tmp_path / "file" / "out"))
