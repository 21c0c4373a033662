"""Maps give any contrast, and drawn people make a dataset that other tools open."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
import torch
from nilearn.image import load_img, mean_img
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import drawn
from phyldm_core.people.drawn import read_protocols, sample_cohort
from phyldm_core.physics import REFERENCE, Protocol, Sequence, TissueMaps, render
from phyldm_core.scans import bids, maps, nifti
from phyldm_core.scans.maps import read_maps, render_maps, render_volume, write_maps
from phyldm_core.weights import load_weights

OBLIQUE = np.array([[1.9, 0.3, 0, -20], [-0.3, 1.9, 0, 5.5], [0, 0, 2.5, -9], [0, 0, 0, 1]])
FLAIR = Protocol(Sequence.FLAIR, te=0.09, tr=9.0, ti=2.5)


def volumes(shape=(9, 8, 7), seed=0) -> TissueMaps:
    rng = np.random.default_rng(seed)
    inside = rng.random(shape) < 0.7
    return TissueMaps(*((inside * v * rng.uniform(0.8, 1.2, shape)).astype(np.float32) for v in (0.8, 1.2, 0.09)))


@pytest.fixture
def folder(tmp_path) -> Path:
    write_maps(tmp_path / "derived maps" / "sub-01" / "anat" / "sub-01", volumes(), OBLIQUE, True)
    return tmp_path / "derived maps"


@pytest.fixture(scope="module")
def weights(smoke_run):
    return load_weights(smoke_run.folder)


@pytest.fixture(scope="module")
def cohort(weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "people"
    done = run("sample", "-n", 2, "--seed", 3, "--out", out, "--bids", "--weights", weights.folder)
    assert done.exit_code == 0 and "2 people" in done.stdout, done.output
    return out


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result) -> str:
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    assert result.stderr.strip().count("\n") == 0
    return result.stderr


# --- maps on disk ---------------------------------------------------------------------------------


def test_maps_come_back_as_they_were_written(folder):
    back = read_maps(folder)
    for written, read in zip(volumes(), back.maps, strict=True):
        np.testing.assert_array_equal(read, written)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-5)
    units = [json.loads(path.with_name(path.name[:-7] + ".json").read_text())["Units"] for path in back.paths]
    assert units == ["arbitrary", "s", "s"] and back.skull_stripped


def test_standard_deviations_are_not_taken_for_maps(folder):
    write_maps(folder / "sub-01" / "anat" / "sub-01_desc-sd", volumes(seed=1), OBLIQUE, True)
    np.testing.assert_array_equal(read_maps(folder).maps.t1, volumes().t1)


def test_one_equation_for_tensors_and_volumes():
    tensors = TissueMaps(*(torch.from_numpy(v) for v in volumes()))
    for protocol in (*REFERENCE.values(), FLAIR):
        expected = np.where(volumes().pd > 0, render(tensors, protocol).numpy(), 0)
        np.testing.assert_allclose(render_volume(volumes(), protocol), expected, rtol=1e-6, atol=1e-7)


def test_what_other_tools_mark_as_no_value_is_air(folder):
    path = folder / "sub-01" / "anat" / "sub-01_T1map.nii.gz"
    t1 = np.where(volumes().pd > 0, volumes().t1, np.nan)
    nibabel.save(nibabel.Nifti1Image(t1, OBLIQUE), path)
    np.testing.assert_array_equal(read_maps(folder).maps.t1, volumes().t1)


# --- render ---------------------------------------------------------------------------------------


def test_a_rendered_contrast_reads_back_as_the_scan_it_is(folder, tmp_path):
    out = tmp_path / "sub-01_FLAIR.nii.gz"
    done = run("render", "--maps", folder, "--sequence", "flair", "--te", 0.09, "--tr", 9, "--ti", 2.5, "--out", out)
    assert done.exit_code == 0, done.output
    scan = nifti.read_scan(out)
    assert scan.protocol == FLAIR and scan.suffix == "FLAIR"
    stored = nibabel.load(out)
    np.testing.assert_allclose(stored.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(stored.get_fdata(), render_volume(volumes(), FLAIR), rtol=1e-6)


def test_a_gradient_echo_is_rendered_with_its_flip_angle(folder, tmp_path):
    out = tmp_path / "sub-01_T1w.nii.gz"
    times = ("--te", 0.004, "--tr", 0.02, "--flip-angle", 25, "--out", out)
    done = run("render", "--maps", folder, "--sequence", "Spoiled gradient echo", *times)
    assert done.exit_code == 0, done.output
    pd, t1, t2 = (np.maximum(m, 1e-3) for m in volumes())
    e1, alpha = np.exp(-0.02 / t1), np.radians(25)
    expected = pd * np.sin(alpha) * (1 - e1) / (1 - np.cos(alpha) * e1) * np.exp(-0.004 / t2)
    np.testing.assert_allclose(nibabel.load(out).get_fdata(), np.where(volumes().pd > 0, expected, 0), rtol=1e-5)
    meta = bids.read_sidecar(out)
    assert (meta["FlipAngle"], meta["RepetitionTimeExcitation"]) == (25, 0.02)
    assert nifti.read_scan(out).protocol == Protocol(Sequence.GRADIENT_ECHO, te=0.004, tr=0.02, flip_angle_deg=25)


def test_a_long_echo_is_rendered_and_read_as_given(folder, tmp_path):
    protocol = Protocol(Sequence.SPIN_ECHO, te=0.45, tr=3.2)
    assert nifti.read_scan(render_maps(folder, protocol, tmp_path / "late_T2w.nii.gz")).protocol == protocol


def test_rendering_loads_no_network(folder, tmp_path):
    code = (
        "import sys; from phyldm_core.cli import app\n"
        "try: app()\n"
        "finally: print(sorted({'torch', 'diffusers', 'pandas'} & set(sys.modules)))"
    )
    options = ["--sequence", "spin echo", "--te", "0.1", "--tr", "3", "--out", str(tmp_path / "x_T2w.nii.gz")]
    done = subprocess.run(
        [sys.executable, "-c", code, "render", "--maps", str(folder), *options], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sequence", "epi", "--te", 0.1, "--tr", 3), "unknown sequence 'epi'"),
        (("--sequence", "FLAIR", "--te", 0.1, "--tr", 9), "FLAIR needs an inversion time"),
        (("--sequence", "spin echo", "--te", 100, "--tr", 3000), "looks like milliseconds: did you mean 0.1 s"),
        (("--sequence", "spoiled gradient echo", "--te", 0.004, "--tr", 0.02), "needs a flip angle"),
        (("--sequence", "spin echo", "--te", 0.1, "--tr", 3, "--flip-angle", 90), "whose closed form has none"),
    ],
)
def test_a_protocol_no_scanner_runs_is_refused(folder, tmp_path, options, said):
    out = tmp_path / "x.nii.gz"
    assert said in refused(run("render", "--maps", folder, *options, "--out", out))
    assert not out.exists()


def test_maps_that_cannot_be_used_are_explained(folder, tmp_path):
    def said():
        with pytest.raises(BadInput) as caught:
            read_maps(folder)
        return str(caught.value)

    anat = folder / "sub-01" / "anat"
    kept = Path(shutil.copytree(anat, tmp_path / "kept"))
    write_maps(anat / "sub-02", volumes(), OBLIQUE, True)
    assert "2 files …_PDmap" in said() and "one person's folder" in said()
    for path in anat.glob("sub-02*"):
        path.unlink()
    in_ms = nibabel.Nifti1Image(1000 * volumes().t1, OBLIQUE)
    nibabel.save(in_ms, anat / "sub-01_T1map.nii.gz")
    assert "looks like milliseconds" in said()
    nibabel.save(nibabel.Nifti1Image(volumes().t1, np.eye(4)), anat / "sub-01_T1map.nii.gz")
    assert "lies on another grid" in said()
    (anat / "sub-01_T1map.nii.gz").write_text("no image")
    assert "not NIfTI, or cut short" in said()
    (anat / "sub-01_T1map.nii.gz").unlink()
    assert "no …_T1map" in said()
    folder = tmp_path / "nothing"
    assert "no such folder" in said()
    folder = kept
    assert len(read_maps(folder).paths) == 3


# --- sample ---------------------------------------------------------------------------------------


def test_a_drawn_cohort_is_a_dataset(cohort, weights):
    people = pandas.read_csv(cohort / "participants.tsv", sep="\t")
    assert people.participant_id.tolist() == ["sub-0001", "sub-0002"]
    anat = cohort / "sub-0001" / "anat"
    assert {path.name.removeprefix("sub-0001_") for path in anat.glob("*.nii.gz")} == {
        f"{suffix}.nii.gz" for suffix in ("PDmap", "T1map", "T2map", "T1w", "T2w", "FLAIR", "dseg")
    }
    drawn = read_maps(cohort / "sub-0001")
    assert drawn.maps.pd.shape == (*weights.shape[::-1], weights.config["n_slices"])
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(drawn.affine), 6)
    scan = nifti.read_scan(anat / "sub-0001_T2w.nii.gz")
    assert scan.protocol.te == pytest.approx(0.22 * 0.45) and scan.sidecar["EchoTime"] == 0.45


def test_the_official_validator_accepts_it(cohort):
    pytest.importorskip("bids_validator_deno", reason="the BIDS validator is not installed (extra: test)")
    command = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([command, str(cohort)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nilearn_opens_it(cohort):
    paths = sorted(cohort.glob("sub-*/anat/*_T1map.nii.gz"))
    assert load_img(str(paths[0])).shape == mean_img([str(path) for path in paths]).shape


def test_labels_are_the_classes_the_table_names(cohort):
    table = pandas.read_csv(cohort / "dseg.tsv", sep="\t")
    assert dict(zip(table["index"], table["name"], strict=True)) == {1: "CSF", 2: "GM", 3: "WM"}
    labels = nibabel.load(cohort / "sub-0001" / "anat" / "sub-0001_dseg.nii.gz")
    assert labels.get_data_dtype() == np.uint8 and set(np.unique(labels.dataobj)) <= {0, 1, 2, 3}


def test_labels_follow_the_tissue():
    """A brain of known tissue, large enough to be found: what is labelled white matter has its T1."""
    y, x = np.mgrid[-20:20, -20:20]
    radius = np.hypot(y, x)
    inside = [radius < 4, radius < 13, radius < 18]
    shells = [np.select(inside, values, 0.0) for values in ((1, 0.7, 0.82), (4, 0.85, 1.4), (1.8, 0.07, 0.085))]
    stack = TissueMaps(*(torch.tensor(np.stack([v, v]), dtype=torch.float32) for v in shells))
    labels = drawn._segment(stack)
    t1 = stack.t1.numpy().T
    assert [float(np.median(t1[labels == k])) for k in (1, 2, 3)] == pytest.approx([4.0, 1.4, 0.85])


def test_more_people_are_added_and_none_is_drawn_again(cohort, weights, tmp_path):
    out = Path(shutil.copytree(cohort, tmp_path / "people"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("sub-*/anat/*")}
    assert sample_cohort(weights, 3, 3, out, contrasts=dict(REFERENCE), labels=True) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(pandas.read_csv(out / "participants.tsv", sep="\t")) == 3


def test_a_person_is_the_same_however_many_are_drawn(cohort, weights, tmp_path):
    sample_cohort(weights, 1, 3, tmp_path / "alone")
    for a, b in zip(read_maps(tmp_path / "alone").maps, read_maps(cohort / "sub-0001").maps, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "alone" / "participants.tsv").exists()


def test_other_seeds_do_not_mix(cohort, weights):
    with pytest.raises(BadInput, match="other weights, seed or contrasts"):
        sample_cohort(weights, 3, 4, cohort, contrasts=dict(REFERENCE), labels=True)


def test_a_person_half_written_is_none(weights, tmp_path, monkeypatch):
    out, real = tmp_path / "people", maps.write_image

    def full(path, *args, **kwargs):
        if path.name == "sub-0002_T2map.nii.gz":
            raise BadInput(f"{path}: cannot write (No space left on device)")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(maps, "write_image", full)
        with pytest.raises(BadInput, match="No space left"):
            sample_cohort(weights, 2, 3, out)
    assert [path.name for path in sorted(out.glob("*sub-*"))] == ["sub-0001"]
    assert sample_cohort(weights, 2, 3, out) == 2


def test_what_cannot_be_drawn_is_refused(weights, tmp_path, smoke_run):
    for n, seed in ((0, 1), (1, -1)):
        with pytest.raises(BadInput, match="at least 1 person and a seed of 0"):
            sample_cohort(weights, n, seed, tmp_path / "x")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        sample_cohort(weights, 1, 1, tmp_path)
    left_out = shutil.ignore_patterns("pipeline")
    run_folder = Path(shutil.copytree(smoke_run.folder, tmp_path / "run", ignore=left_out))
    (run_folder / "config.json").unlink()
    assert list(replace(smoke_run, folder=run_folder).train_vae()) == []  # it is trained, and says so anew
    with pytest.raises(BadInput, match="no diffusion model: run notebook 04"):
        sample_cohort(load_weights(run_folder), 1, 1, tmp_path / "y")
    assert not (tmp_path / "y").exists()
    said = refused(run("sample", "-n", 1, "--out", tmp_path / "z", "--protocols", "p.csv"))
    assert "only written with --bids" in said


# --- protocols ------------------------------------------------------------------------------------


def test_protocols_are_read_from_csv_and_json(tmp_path):
    (tmp_path / "p.csv").write_text("name,sequence,te,tr,ti\nT1w,MPRAGE,0.003,2.4,1.0\nlate echo,spin echo,0.2,3.2,\n")
    (tmp_path / "p.json").write_text('{"T1w": {"sequence": "MPRAGE", "te": 0.003, "tr": 2.4, "ti": 1.0}}')
    table = read_protocols(tmp_path / "p.csv")
    assert table == {"T1w": REFERENCE["T1w"], "lateecho": Protocol("spin echo", 0.2, 3.2)}
    assert read_protocols(tmp_path / "p.json") == {"T1w": REFERENCE["T1w"]}
    assert read_protocols(None) == dict(REFERENCE)


def test_a_table_of_contrasts_may_have_flip_angles(tmp_path):
    rows = "name,sequence,te,tr,ti,flip_angle_deg", "gre,spoiled gradient echo,.004,.02,,25", "late,spin echo,.2,3.2,,"
    (tmp_path / "p.csv").write_text("\n".join(rows))
    gre = Protocol("spoiled gradient echo", 0.004, 0.02, flip_angle_deg=25)
    assert read_protocols(tmp_path / "p.csv") == {"gre": gre, "late": Protocol("spin echo", 0.2, 3.2)}


def test_a_contrast_with_a_name_of_its_own_is_valid_bids(weights, tmp_path):
    sample_cohort(weights, 1, 0, tmp_path / "d", contrasts={"late": Protocol("spin echo", 0.2, 3.2)})
    path = tmp_path / "d" / "sub-0001" / "anat" / "sub-0001_acq-late_T2w.nii.gz"
    assert path.exists() and bids.read_sidecar(path)["EchoTime"] == 0.2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "name,sequence,te\nT1w,MPRAGE,0.003\n", "row 1 has no 'tr'"),
        ("p.json", "[" * 100_000, "not a readable table"),
        ("p.json", '[{"name": "x", "sequence": "spin echo", "te": 1' + "0" * 400 + ', "tr": 3}]', "row 1"),
        ("p.json", "[[1, 2]]", "row 1"),
        ("p.csv", "name,sequence,te,tr,ti\nT2w,spin echo,100,3200,\n", "milliseconds"),
        ("p.csv", "name,sequence,te,tr,ti\nT2w,spin echo,x,3,\n", "row 1"),
        ("p.csv", "name,sequence,te,tr,ti\na,spin echo,.1,3,\na,spin echo,.2,3,\n", "row 2: the name 'a'"),
        ("p.csv", "name,sequence,te,tr,ti\n", "no protocol in it"),
        ("p.json", "{", "not a readable table"),
        ("missing.csv", None, "not a readable table"),
    ],
)
def test_a_table_that_is_none_is_explained(name, text, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=said) as caught:
        read_protocols(tmp_path / name)
    assert "\n" not in str(caught.value)
