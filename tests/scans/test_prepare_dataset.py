"""An archive as it is published, with gaps, doubles and damage: what is usable is prepared, the rest explained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pandas
import pytest
import torch
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.inference import infer
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import scanned
from phyldm_core.running.run import MissingResult, open_run
from phyldm_core.scans import prepare_dataset as module
from phyldm_core.scans import registration
from phyldm_core.scans.grids import Grid, resample, resample_mask
from phyldm_core.scans.prepare import head_mask
from phyldm_core.scans.prepare_dataset import prepare_dataset, read_prepared

FIELDS = {
    "T1w": {"EchoTime": 0.00316, "RepetitionTime": 2.4, "InversionTime": 1.0},
    "T2w": {"EchoTime": 0.455, "RepetitionTime": 3.2},
    "FLAIR": {"EchoTime": 0.091, "RepetitionTime": 9.0, "InversionTime": 2.5},
}
VOXEL_MM = 6.0


class Archive:
    """Writes scans under OASIS-3's names: 6 mm copies of the simulated brain, a little different for every person."""

    def __init__(self, root: Path, session: dict):
        self.root = root
        affine = np.diag([VOXEL_MM] * 3 + [1.0])
        affine[:3, 3] = -94, -132, -46
        grid = Grid((32, 38, 20), affine)
        self.affine, self.images = affine, {suffix: resample(scan, grid) for suffix, scan in session.items()}
        self.brain = head_mask([next(iter(session.values()))])
        self.stripped = resample_mask(self.brain, next(iter(session.values())).affine, grid)

    def put(self, subject: str, session: str, suffix: str, entities: str = "", **fields) -> Path:
        """A scan and its sidecar; ``None`` leaves a field out."""
        anat = self.root / f"sub-{subject}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        path = anat / f"sub-{subject}_ses-{session}_{entities}{suffix}.nii.gz"
        gain = 1 + sum(map(ord, subject + session)) % 7
        image = (gain * self.images[suffix]).clip(0).astype(np.int16)
        nibabel.Nifti1Image(image, self.affine).to_filename(path)
        told = {name: value for name, value in (FIELDS[suffix] | fields).items() if value is not None}
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(told))
        return path

    def put_mask(self, folder: Path, subject: str, session: str):
        anat = folder / f"sub-{subject}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(self.stripped.astype(np.uint8), self.affine)
        image.to_filename(anat / f"sub-{subject}_ses-{session}_desc-brain_mask.nii.gz")


def publish(folder: Path, simulated_session: dict) -> Archive:
    """Six subjects, eight sessions, in a folder with a space and an umlaut in its name."""
    made = Archive(folder / "OASIS 3 für alle", simulated_session)
    for session, suffixes in (("d0129", ("T1w", "T2w", "FLAIR")), ("d0757", ("T1w", "T2w"))):  # twice the same person
        for suffix in suffixes:
            made.put("OAS30001", session, suffix, "run-01_" if suffix == "T1w" else "")
    made.put("OAS30001", "d0129", "T1w", "run-02_")
    made.put("OAS30002", "d0371", "T1w", InversionTime=None)  # its TI is told by the archive's other scans
    made.put("OAS30002", "d0371", "FLAIR", InversionTime=None)
    made.put("OAS30003", "d0558", "T1w", "run-01_")
    made.put("OAS30003", "d0558", "T2w", "acq-TSE_", EchoTime=0.003, RepetitionTime=0.26)  # mislabelled
    made.put("OAS30004", "d1101", "T2w")
    made.put("OAS30004", "d1101", "FLAIR")
    made.put("OAS30005", "d0001", "T1w", EchoTime=3.16, RepetitionTime=2400, InversionTime=1000)  # milliseconds
    made.put("OAS30005", "d2430", "T1w")
    made.put("OAS30006", "d0083", "T1w")
    return made


@pytest.fixture
def published(tmp_path, simulated_session) -> Archive:
    """The archive in a folder of the test's own."""
    return publish(tmp_path, simulated_session)


@pytest.fixture
def roughly(monkeypatch):
    """Heads are laid over each other at 8 mm only: nearly all the time goes there, and what is asked is about files."""
    monkeypatch.setattr(registration, "PYRAMID_MM", registration.PYRAMID_MM[:1])


def prepared(made: Archive, out: Path, **options) -> dict[str, module.Outcome]:
    return {o.name: o for o in prepare_dataset(made.root, out, voxel_mm=VOXEL_MM, **options)}


class Finished(NamedTuple):
    archive: Archive
    out: Path
    outcomes: dict[str, module.Outcome]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, simulated_session) -> Finished:
    """The archive, prepared once as everybody prepares it. To be read, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    made = publish(folder, simulated_session)
    return Finished(made, folder / "out", prepared(made, folder / "out"))


def files(folder: Path) -> dict[str, int]:
    skip = {"dataset_description.json", ".bidsignore", "skipped.tsv"}  # said anew every time
    return {
        str(f.relative_to(folder)): f.stat().st_mtime_ns
        for f in folder.rglob("*")
        if f.is_file() and f.name not in skip
    }


# --- what is made ---------------------------------------------------------------------------------


def test_every_usable_session_is_prepared_and_the_rest_explained(finished):
    _, out, outcomes = finished
    assert {name: o.status for name, o in outcomes.items()} == {
        "sub-OAS30001_ses-d0129": "prepared",
        "sub-OAS30001_ses-d0757": "prepared",
        "sub-OAS30002_ses-d0371": "prepared",
        "sub-OAS30003_ses-d0558": "prepared",
        "sub-OAS30004_ses-d1101": "prepared",
        "sub-OAS30005_ses-d0001": "skipped",
        "sub-OAS30005_ses-d2430": "prepared",
        "sub-OAS30006_ses-d0083": "prepared",
    }
    skipped = pandas.read_csv(out / "skipped.tsv", sep="\t", keep_default_na=False)
    assert list(skipped.columns) == ["participant_id", "session_id", "scan", "reason"]
    reasons = {row.scan: row.reason for row in skipped.itertuples()}
    assert "mislabelled" in reasons["sub-OAS30003_ses-d0558_acq-TSE_T2w.nii.gz"]
    assert "did you mean" in reasons["sub-OAS30005_ses-d0001_T1w.nii.gz"]
    assert set(skipped.participant_id) == {"sub-OAS30003", "sub-OAS30005"}


def test_what_is_written_says_where_it_came_from(finished):
    made, out, _ = finished
    anat = out / "sub-OAS30001" / "ses-d0129" / "anat"
    stem = "sub-OAS30001_ses-d0129_space-T1w_desc-"
    assert sorted(f.name for f in anat.glob("*.nii.gz")) == sorted(
        [f"{stem}prepared_{suffix}.nii.gz" for suffix in FIELDS] + [f"{stem}head_mask.nii.gz"]
    )
    told = json.loads((anat / f"{stem}prepared_T2w.json").read_text())
    assert told["Sources"] == ["bids:raw:sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_T2w.nii.gz"]
    assert told["EchoTime"] == 0.455 and told["ContrastEquivalentEchoTime"] == pytest.approx(0.1001)
    assert told["RepetitionTimeExcitation"] == 3.2 and told["IntensityScale"] > 0
    np.testing.assert_allclose(np.array(told["RigidTransform"])[3], [0, 0, 0, 1])
    taken = json.loads((anat / f"{stem}prepared_T1w.json").read_text())
    assert "run-01" in taken["Sources"][0] and any("run-02" in note for note in taken["PreparationNotes"])
    link = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]["raw"]
    assert (out / link).resolve() == made.root.resolve()


def test_prepared_sessions_read_back_as_they_were(finished):
    made, out, _ = finished
    session = read_prepared(out, "OAS30002", "d0371")
    assert [scan.suffix for scan in session.scans] == ["T1w", "FLAIR"]
    assert [scan.protocol.ti for scan in session.scans] == [1.0, 2.5]  # of OASIS-3's other scans with these TRs
    assert any("is not in its sidecar" in note for note in session.scans[0].sidecar["PreparationNotes"])
    assert not session.brain_known and not session.skull_stripped and session.brain.any()
    raw = nibabel.load(made.root / "sub-OAS30002/ses-d0371/anat/sub-OAS30002_ses-d0371_T1w.nii.gz")
    np.testing.assert_allclose(session.scans[0].image * session.scales["T1w"], raw.get_fdata(), rtol=1e-5)
    np.testing.assert_allclose(session.affine, raw.affine)
    assert "run phyldm prepare" in refusal(read_prepared, out, "OAS39999")


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_inversion_times_are_filled_in_for_oasis3_only(tmp_path, simulated_session):
    made = Archive(tmp_path / "data", simulated_session)
    for subject in ("OAS30002", "somebody"):
        made.put(subject, "1", "T1w", InversionTime=None)
    outcomes = prepared(made, tmp_path / "out")
    assert outcomes["sub-OAS30002_ses-1"].status == "prepared"
    outcome = outcomes["sub-somebody_ses-1"]
    assert outcome.status == "skipped" and "InversionTime" in " ".join(outcome.left_out.values())


def test_damaged_files_leave_the_other_scans_and_sessions(published, tmp_path, roughly):
    broken = published.put("OAS30001", "d0129", "T2w")
    broken.write_text("this is no image\n" * 100)
    published.put("OAS30004", "d1101", "FLAIR").with_name("sub-OAS30004_ses-d1101_FLAIR.json").unlink()
    (published.root / "OAS30099_T1w.nii.gz").write_bytes(b"")
    outcomes = prepared(published, tmp_path / "out")
    assert [scan.suffix for scan in read_prepared(tmp_path / "out", "OAS30001", "d0129").scans] == ["T1w", "FLAIR"]
    assert "not NIfTI" in outcomes["sub-OAS30001_ses-d0129"].left_out[broken.name]
    assert "no sidecar" in " ".join(outcomes["sub-OAS30004_ses-d1101"].left_out.values())
    assert outcomes["sub-OAS30006_ses-d0083"].status == "prepared"
    assert "no subject in its name" in outcomes[""].left_out[""]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_told_and_the_others_are_done(published, tmp_path, roughly):
    closed = published.root / "sub-OAS30002"
    closed.chmod(0)
    try:
        outcomes = prepared(published, tmp_path / "out")
    finally:
        closed.chmod(0o755)
    assert "cannot read this folder" in outcomes["sub-OAS30002"].left_out[""]
    assert outcomes["sub-OAS30006_ses-d0083"].status == "prepared"


def test_a_folder_that_cannot_be_read_is_passed_by(published, tmp_path, monkeypatch, roughly):
    """As above, for those whom no permission stops."""
    listed, closed = os.listdir, published.root / "sub-OAS30002"

    def list_open_ones(folder):
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr("phyldm_core.scans.sessions.os.listdir", list_open_ones)
    outcomes = prepared(published, tmp_path / "out")
    assert "cannot read this folder (Permission denied)" in outcomes["sub-OAS30002"].left_out[""]
    assert "sub-OAS30002" in (tmp_path / "out" / "skipped.tsv").read_text()
    assert outcomes["sub-OAS30006_ses-d0083"].status == "prepared"


# --- again, and after a kill ------------------------------------------------------------------------


def test_the_second_time_only_what_changed_is_made(published, tmp_path, roughly):
    out = tmp_path / "out"
    first = prepared(published, out)
    before = files(out)
    second = prepared(published, out)
    assert {o.status for o in second.values()} == {"kept", "skipped"} and files(out) == before
    assert {n: o.left_out for n, o in second.items()} == {n: o.left_out for n, o in first.items()}
    sidecar = published.root / "sub-OAS30004/ses-d1101/anat/sub-OAS30004_ses-d1101_T2w.json"
    sidecar.write_text(json.dumps(FIELDS["T2w"] | {"EchoTime": 0.1}))
    published.put("OAS30005", "d0001", "T1w")
    third = prepared(published, out)
    assert [n for n, o in third.items() if o.status == "prepared"] == [
        "sub-OAS30004_ses-d1101",
        "sub-OAS30005_ses-d0001",
    ]
    assert read_prepared(out, "OAS30004", "d1101").scans[0].protocol.te == 0.1


def test_a_failed_write_leaves_the_old_session_whole(published, tmp_path, monkeypatch, roughly):
    out = tmp_path / "out"
    prepared(published, out)
    before = files(out)
    written = module.write_image

    def full(path, *args, **kwargs):
        if "T2w" in path.name:
            raise BadInput(f"{path}: cannot write (No space left on device): free some space")
        return written(path, *args, **kwargs)

    monkeypatch.setattr(module, "write_image", full)
    again = {o.name: o for o in prepare_dataset(published.root, out, voxel_mm=8.0)}
    assert again["sub-OAS30001_ses-d0129"].status == "skipped"
    kept = {name: time for name, time in before.items() if "OAS30001" in name}
    assert {name: time for name, time in files(out).items() if "OAS30001" in name and "/." not in name} == kept


def test_a_killed_call_leaves_no_half_session_and_goes_on(published, tmp_path, roughly):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "phyldm_core",
        "prepare",
        str(published.root),
        "--out",
        str(out),
        "--voxel-mm",
        "6",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list(out.glob("sub-*/ses-*/anat")) and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {folder.parent for folder in out.glob("sub-*/ses-*/anat")}
    assert 1 <= len(done) < 7
    for folder in done:
        read_prepared(out, folder.parent.name[4:], folder.name[4:])
    kept = {str(f): f.stat().st_mtime_ns for folder in done for f in folder.rglob("anat/*")}
    outcomes = prepared(published, out)
    assert sum(o.status == "kept" for o in outcomes.values()) == len(done)
    assert sum(o.status != "skipped" for o in outcomes.values()) == 7
    assert kept == {name: Path(name).stat().st_mtime_ns for name in kept}
    assert not list(out.rglob("*.part")) and not list(out.rglob("*.old"))


def test_two_workers_make_what_one_makes(finished, tmp_path):
    prepared(finished.archive, tmp_path / "two", n_workers=2)
    images = [{f.name: f.read_bytes() for f in out.rglob("*.nii.gz")} for out in (finished.out, tmp_path / "two")]
    assert images[0] and images[0] == images[1]


def test_places_that_cannot_be_used(published, tmp_path):
    assert "choose another folder" in refusal(prepared, published, published.root)
    assert "not a folder of brain masks" in refusal(prepared, published, tmp_path / "out", mask="tmeplate")
    (tmp_path / "masks").mkdir()
    outcomes = prepared(published, tmp_path / "out", mask=tmp_path / "masks")
    assert all("one brain mask" in o.left_out[""] for o in outcomes.values())


# --- a cohort of real people ------------------------------------------------------------------------


def test_all_sessions_of_a_person_are_in_one_split():
    people = [f"OAS3{i:04d}" for i in range(1, 101)]
    split = scanned.split_subjects(people, seed=7)
    assert sorted(split) == people and [list(split.values()).count(s) for s in ("train", "val", "test")] == [90, 5, 5]
    assert split == scanned.split_subjects(people[::-1], seed=7) != scanned.split_subjects(people, seed=8)
    grown = scanned.split_subjects([*people, "OAS30101"], seed=7)
    assert sum(grown[name] != split[name] for name in people) <= 2  # nobody is reshuffled by one more person
    assert "at least 3" in refusal(scanned.split_subjects, people[:2], seed=7)


def test_prepare_and_train_from_the_command_line(published, tmp_path, roughly):
    masks, out = tmp_path / "masks", tmp_path / "run"
    for path in published.root.glob("sub-*/ses-*"):
        published.put_mask(masks, path.parent.name[4:], path.name[4:])
    command = ["train", "--data", str(published.root), "--profile", "smoke", "--out", str(out), "--mask", str(masks)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1, result.output  # trained, but not everything could be used
    assert "trained in" in result.output and "1 skipped" in result.output and "did you mean" in result.output

    people = pandas.read_csv(out / "cohort" / "participants.tsv", sep="\t").set_index("participant_id")
    assert len(people) == 6 and set(people.split) == {"train", "val", "test"}
    assert people.sessions["sub-OAS30001"] == 2
    run = open_run(out, "smoke")
    assert not run.common_scale
    slices = {split: run.scans(split) for split in ("train", "val", "test")}
    assert sum(len(s) for s in slices.values()) == 7 * run.recipe.n_slices
    train = slices["train"]
    assert train.images.shape[1:] == (3, *run.recipe.shape) and train.images[train.observed].amax() > 0
    assert not train.images[~train.observed].any() and (train.images == 0).float().mean() > 0.3  # masked
    assert "no common scale" in refusal(run.scans, "train", common_scale=True)
    with pytest.raises(MissingResult, match="nobody knows"):
        run.truth("test")
    maps = infer(run.vae(), train, common_scale=False)[1]
    assert all(torch.isfinite(m).all() and (m > 0).all() for m in maps)
    assert run.pipeline()(2, seed=1, num_inference_steps=2).t1.shape == (2, *run.recipe.shape)

    before = files(out)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "7 kept" in again.output and files(out) == before


def test_prepare_exits_0_when_everything_was_used(tmp_path, simulated_session):
    made = Archive(tmp_path / "data", simulated_session)
    made.put("OAS30001", "d0001", "T1w")
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["prepare", str(made.root), "--out", str(out), "--voxel-mm", "6"])
    assert result.exit_code == 0 and "1 sessions prepared, 0 kept, 0 skipped" in result.output
    assert (out / "skipped.tsv").read_text() == "participant_id\tsession_id\tscan\treason\n"
    (made.root / "sub-OAS30001" / "ses-d0001" / "anat" / "sub-OAS30001_ses-d0001_T1w.json").unlink()
    result = CliRunner().invoke(app, ["prepare", str(made.root), "--out", str(out), "--voxel-mm", "6"])
    assert result.exit_code == 1 and "no sidecar" in result.output
