"""An archive with all that can be wrong in it, a session each: what is usable is done, the rest is explained."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
from test_fit import AFFINE, write_session
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.scans.maps import read_maps
from phyldm_core.weights import load_weights


def told(**fields):
    """Changes fields of a sidecar; None takes one out."""

    def change(image: Path, sidecar: Path):
        content = json.loads(sidecar.read_text()) | fields
        sidecar.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return change


def voxels(function, affine=None, dtype=np.float32):
    """Writes other voxels, an affine of their own if given, in a type of their own."""

    def change(image: Path, sidecar: Path):
        old = nibabel.load(image)
        new = nibabel.Nifti1Image(function(old.get_fdata()), old.affine if affine is None else affine, dtype=dtype)
        new.to_filename(image)

    return change


def text(image: Path, sidecar: Path):
    image.unlink()
    image.with_suffix("").write_text("this is a letter, not a brain\n" * 50)  # … .nii


def second(image: Path, sidecar: Path):
    for old in (image, sidecar):
        old.with_name(old.name.replace("_T1w", "_run-02_T1w")).write_bytes(old.read_bytes())


def without_permission(image: Path, sidecar: Path):
    image.chmod(0)


def oblique() -> np.ndarray:
    c, s = np.cos(0.2), np.sin(0.2)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


UNUSABLE = {  # what was done to the one scan of a session → what prepare and fit say of it
    "absent": (lambda image, sidecar: sidecar.unlink(), "no sidecar"),
    "partial": (told(EchoTime=None), "no EchoTime"),
    "noti": (told(InversionTime=None, PulseSequenceType=None), "add InversionTime"),
    "ms": (told(EchoTime=3.0, RepetitionTimePreparation=2400, InversionTime=1000), "did you mean 0.003 s"),
    "contradictory": (told(InversionTime=3.0), "is not shorter than TR"),
    "zero": (voxels(np.zeros_like), "no voxel is above 0"),
    "negative": (voxels(lambda v: (v - v.mean()) / v.std()), "negative"),
    "text": (text, "not NIfTI"),
    "closed": (without_permission, "no permission"),
}
USABLE = {
    "plain": lambda image, sidecar: None,
    "int16": voxels(lambda v: v, dtype=np.int16),
    "float64": voxels(lambda v: v, dtype=np.float64),
    "thick": voxels(lambda v: v[:, :, ::2], AFFINE @ np.diag([1, 1, 2, 1])),
    "oblique": voxels(lambda v: v, oblique()),
    "spaceäöü": lambda image, sidecar: None,
}


@pytest.fixture
def archive(tmp_path) -> Path:
    root = tmp_path / "un archivo con espacios · 脳"
    defects = {name: change for name, (change, _) in UNUSABLE.items()} | USABLE | {"two": second}
    if os.geteuid() == 0:  # root may read everything
        del defects["closed"]
    for name, change in defects.items():
        folder = root / f"sub-{name}" / "anat"
        write_session(folder, f"sub-{name}", ("T1w",))
        change(folder / f"sub-{name}_T1w.nii.gz", folder / f"sub-{name}_T1w.json")
    apart = root / "sub-apart" / "anat"
    write_session(apart, "sub-apart", ("T1w", "T2w"))
    shift = AFFINE + np.array([[0, 0, 0, 500], [0] * 4, [0] * 4, [0] * 4])
    voxels(lambda v: v, shift)(apart / "sub-apart_T2w.nii.gz", None)
    return root


def expected() -> dict[str, str]:
    return {name: words for name, (_, words) in UNUSABLE.items() if name != "closed" or os.geteuid()}


def test_prepare_does_the_rest_and_says_why(archive, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["prepare", str(archive), "--out", str(out), "--voxel-mm", "6"])
    assert result.exit_code == 1 and "Traceback" not in result.output
    table = pandas.read_csv(out / "skipped.tsv", sep="\t", keep_default_na=False)
    reasons = table.groupby("participant_id").reason.agg(" | ".join)
    for name, words in expected().items():
        assert words in reasons[f"sub-{name}"], name
        assert not (out / f"sub-{name}").exists()
    assert "does not overlap" in reasons["sub-apart"]  # the T1w is prepared
    assert set(reasons.index) == {f"sub-{name}" for name in (*expected(), "apart")}
    for name in (*USABLE, "two", "apart"):
        assert len(list((out / f"sub-{name}").rglob("*desc-prepared_T1w.nii.gz"))) == 1, name
    notes = json.loads(next((out / "sub-two").rglob("*desc-prepared_T1w.json")).read_text())["PreparationNotes"]
    assert any("taken instead of" in note for note in notes)
    assert f"{len(expected())} skipped" in result.output


def test_fit_does_the_rest_and_says_why(archive, tmp_path, smoke_run):
    out = tmp_path / "out"
    command = ["fit", str(archive), "--weights", str(load_weights(smoke_run.folder).folder), "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--samples", "2"])
    assert result.exit_code == 1 and "Traceback" not in result.output
    said = dict(line.split(": skipped: ", 1) for line in result.stderr.splitlines() if ": skipped: " in line)
    for name, words in expected().items():
        assert words in said[f"sub-{name}"], name
    n = len(USABLE) + 2
    assert len(said) == len(expected()) and f"{len(said)} of {len(said) + n} sessions" in result.stderr
    assert "sub-apart: left out: sub-apart_T2w.nii.gz" in result.stderr and "does not overlap" in result.stderr
    assert "sub-two: done: T1w" in result.stdout and "taken instead of sub-two_run-02_T1w.nii.gz" in result.stdout
    names = [folder.name for folder in out.glob("sub-*")]
    assert len(names) == n == len({name.lower() for name in names})
    for name in names:
        maps = read_maps(out / name).maps
        assert all(np.isfinite(volume).all() and volume.max() > 0 for volume in maps)
