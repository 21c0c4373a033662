"""Names as they come from scanners, converters and file shares: every scan with its own sidecar, every person apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_nifti import put, refusal
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.machine.files import read_json, to_json
from phyldm_core.physics import Protocol
from phyldm_core.scans import bids, nifti, sessions
from phyldm_core.scans.prepare_dataset import prepare_dataset

T2W = {"EchoTime": 0.1, "RepetitionTime": 5.0, "InversionTime": None, "ScanningSequence": "SE"}


def test_dots_belong_to_names(tmp_path):
    """dcm2niix's ``%p_%s`` keeps the protocol's dots."""
    one = put(tmp_path, "WIP.1_t1_mprage_5", ScanningSequence="GR\\IR")
    two = put(tmp_path, "WIP.1_t2_tse_6", **T2W)
    assert nifti.read_scan(one).protocol == Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0)
    assert nifti.read_scan(two).protocol == Protocol("spin echo", te=0.1, tr=5.0)
    assert bids.parse_name(Path("sub-01_acq-1.5mm_T1w.nii.gz")) == ({"sub": "01", "acq": "1.5mm"}, "T1w")
    assert bids.parse_name(Path("sub-01_T1w.backup.nii.gz"))[1] not in bids.CONTRASTS


def test_a_sidecar_of_no_bids_name_is_for_its_own_image_only(tmp_path):
    path = put(tmp_path, "1.2_mprage_5", ScanningSequence="GR\\IR")
    (tmp_path / "5.json").write_text('{"EchoTime": 0.09}')
    (tmp_path / "mprage_5.json").write_text('{"EchoTime": 0.08}')
    assert nifti.read_scan(path).protocol.te == 0.003


def test_a_sidecar_in_capitals_or_with_a_byte_order_mark_is_read(tmp_path):
    path = put(tmp_path)
    sidecar = tmp_path / "sub-01_T1w.json"
    sidecar.write_bytes(b"\xef\xbb\xbf" + sidecar.read_bytes())
    assert nifti.read_scan(path).protocol.te == 0.003
    sidecar.rename(tmp_path / "sub-01_T1w.JSON")
    path = path.rename(tmp_path / "sub-01_T1w.NII.GZ")
    assert nifti.read_scan(path).protocol.te == 0.003
    assert list(sessions.find_sessions(tmp_path)) == [("01", None)]


@pytest.mark.parametrize("text", ["患者一", "患者二", "Ирина", "Ирена", "é", "è", "\udce9"])
def test_labels_of_other_scripts_stay_apart(text):
    label = sessions.as_label(text)
    assert label.isascii() and label.isalnum()
    others = {"患者一", "患者二", "Ирина", "Ирена", "é", "è", "\udce9"} - {text}
    assert label not in {sessions.as_label(other) for other in others}
    assert sessions.as_label("e\u0301") == sessions.as_label("é")  # a Mac's spelling of the same name


def test_a_name_that_is_not_utf8_survives_in_json(tmp_path):
    name = os.fsdecode(b"caf\xe9_T1w.nii.gz")
    (tmp_path / "x.json").write_bytes(to_json({"File": name}))
    assert read_json(tmp_path / "x.json") == {"File": name}


def test_a_dataset_with_a_name_that_is_not_utf8_is_prepared(tmp_path):
    put(tmp_path / "raw/sub-01/anat", os.fsdecode(b"sub-01_acq-caf\xe9_T1w"), volume=ball())
    put(tmp_path / "raw/sub-02/anat", os.fsdecode(b"sub-02_acq-caf\xe9_T1w"), EchoTime=None)
    result = CliRunner().invoke(app, ["prepare", str(tmp_path / "raw"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "no EchoTime" in result.output and "1 sessions prepared" in result.output


def ball() -> np.ndarray:
    at = np.indices((40, 44, 30)) - np.array([20, 22, 15])[:, None, None, None]
    inside = ((at / np.array([16, 18, 12])[:, None, None, None]) ** 2).sum(0) < 1
    return (inside * (500 + 5 * at[1] + 3 * at[0])).astype(np.float32)


def test_a_name_of_two_lines_still_gets_one_sentence(tmp_path):
    path = put(tmp_path, "sub-01_acq-a\nb_T1w", EchoTime=None)
    assert "acq-a b_T1w" in refusal(nifti.read_scan, path)


# --- whose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("sub-01_T1w", "sub-02_T2w"), "two people (01, 02)"),
        (("sub-01_ses-a_T1w", "sub-01_ses-b_T2w"), "two sessions (a, b)"),
        (("anna_T1w", "berta_T2w"), "may be two people"),
    ],
)
def test_files_of_two_people_or_visits_are_no_session(tmp_path, names, words):
    paths = [put(tmp_path, names[0]), put(tmp_path, names[1], **T2W)]
    assert words in refusal(sessions.find_scans, paths)
    if "sub" not in names[0]:
        assert words in refusal(sessions.read_session, tmp_path)


def test_files_whose_sidecars_name_two_patients_are_no_session(tmp_path):
    put(tmp_path, "sub-01_T1w", PatientID="A")
    put(tmp_path, "sub-01_T2w", PatientID="B", **T2W)
    assert "two people (PatientID differs)" in refusal(sessions.read_session, tmp_path)


def test_folders_say_what_names_do_not(tmp_path):
    for sub in ("01", "02"):
        for ses in ("a", "b"):
            put(tmp_path / f"sub-{sub}" / f"ses-{ses}" / "anat", "T1w")
    assert list(sessions.find_sessions(tmp_path)) == [("01", "a"), ("01", "b"), ("02", "a"), ("02", "b")]


def test_a_file_in_somebody_else_s_folder_is_left_out_and_named(tmp_path):
    put(tmp_path / "sub-01" / "anat", "sub-01_T1w")
    stray = put(tmp_path / "sub-01" / "anat", "sub-02_T2w", **T2W)
    put(tmp_path / "sub-02" / "anat", "sub-02_T1w")
    left_out: dict = {}
    found = sessions.choose_headers(sessions.find_sessions(tmp_path)["02", None], left_out)
    assert list(found) == ["T1w"] and "is named sub-02 but lies in sub-01" in left_out[stray]


def test_two_sessions_of_one_name_are_refused_before_anything_is_written(tmp_path):
    for folder in ("one", "two"):
        put(tmp_path / folder, "sub-01_T1w")
    said = refusal(sessions.find_scans, [tmp_path / "one", tmp_path / "two"])
    assert "both would be called sub-01" in said


# --- choices --------------------------------------------------------------------------------------


def chosen(folder) -> tuple[list[str], dict, list[str]]:
    left_out: dict = {}
    (paths,) = sessions.find_sessions(folder).values()
    headers = [same[0] for same in sessions.choose_headers(paths, left_out).values()]
    notes = [note for header in headers for note in header.notes]
    return [header.path.name.split("_", 1)[1] for header in headers], left_out, notes


def test_of_several_scans_one_is_taken_by_a_rule_that_is_said(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    thick = np.diag([2.0, 2, 4, 1])
    put(anat, "sub-01_acq-a_T1w", affine=thick)
    put(anat, "sub-01_ce-gad_T1w")
    put(anat, "sub-01_rec-norm_T1w")
    put(anat, "sub-01_run-10_T1w")
    put(anat, "sub-01_run-2_T1w")
    put(anat, "sub-01_run-2_echo-2_T1w")
    put(anat, "sub-01_part-phase_run-1_T1w", ImageType=["ORIGINAL", "PRIMARY", "P"])
    names, left_out, notes = chosen(tmp_path)
    assert names == ["run-2_T1w.nii.gz"] and not left_out
    assert any("taken instead of" in note and "ce-gad" in note and sessions.RULE in note for note in notes)
    assert any("part-phase" in note and "is a phase image" in note for note in notes)


def test_every_protocol_of_a_suffix_is_a_contrast_of_its_own(tmp_path):
    inversion = {"ScanningSequence": "SE\\IR", "EchoTime": 0.012, "RepetitionTime": 15}
    put(tmp_path, "sub-01_acq-b_T1w", **inversion, InversionTime=2.0)
    put(tmp_path, "sub-01_acq-a_run-1_T1w", **inversion, InversionTime=0.5)
    put(tmp_path, "sub-01_acq-a_run-2_T1w", **inversion | {"RepetitionTime": 15.004}, InversionTime=0.5)  # rounded
    put(tmp_path, "sub-01_acq-a_part-real_T1w", **inversion, InversionTime=0.5)  # of the same acquisition
    put(tmp_path, "sub-01_T2w", **T2W)
    (paths,) = sessions.find_sessions(tmp_path).values()
    found = sessions.choose_headers(paths, {})
    assert {name: len(same) for name, same in found.items()} == {"T1w": 1, "T1w 2": 3, "T2w": 1}
    assert [same[0].protocol.ti for same in found.values()] == [2.0, 0.5, None]
    assert "run-2" in found["T1w 2"][0].notes[-1] and "run-1" in found["T1w 2"][0].path.name
    assert {name: len(same) for name, same in sessions.choose_headers(paths, {}, one_a_suffix=True).items()} == {
        "T1w": 4, "T2w": 1,
    }  # fmt: skip
    assert [scan.path.name for scan in sessions.read_session(tmp_path)] == [
        same[0].path.name for same in found.values()
    ]
    table = CliRunner().invoke(app, ["check", str(tmp_path)]).stdout
    assert "T1w 2" in table and "TI 0.5 s" in table and "TI 2 s" in table


def test_a_scan_after_a_contrast_agent_is_taken_only_alone_and_doubted(tmp_path):
    put(tmp_path, "sub-01_acq-x_T1w", ContrastBolusIngredient="GADOLINIUM")
    assert any("contrast agent (GADOLINIUM)" in doubt for doubt in sessions.read_session(tmp_path)[0].doubts)
    put(tmp_path, "sub-01_acq-y_T1w", ContrastBolusIngredient="NONE", MagneticFieldStrength=3)
    assert chosen(tmp_path)[0] == ["acq-y_T1w.nii.gz"]
    put(tmp_path, "sub-01_acq-x_T1w", ContrastBolusIngredient="GADOLINIUM", **T2W | {"RepetitionTime": 0.5})
    assert chosen(tmp_path)[0] == ["acq-y_T1w.nii.gz"]  # another protocol does not make it one more contrast


@pytest.mark.parametrize(
    ("tesla", "words"),
    [(7, "at 7 T, high field"), (0.064, "at 0.064 T, low field: T1 is far shorter than the cohort's"),
     (1.5, "at 1.5 T: weights know tissue at 3 T"), (15000, "15000 cannot be in tesla"), ("3T", "no number of tesla"),
     (2.89, None)],
)  # fmt: skip
def test_another_field_than_the_cohort_s_is_named(tmp_path, tesla, words):
    doubts = nifti.read_header(put(tmp_path, volume=np.ones((80, 80, 60)), MagneticFieldStrength=tesla)).doubts
    assert [words in doubt for doubt in doubts] == ([True] if words else [])


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("*acq-localizer*\n", ["acq-mprage_T1w.nii.gz"]),
        ("sub-01/anat/*localizer*", ["acq-mprage_T1w.nii.gz"]),
        ("/sub-*/**/*localizer*\n# a comment\n\n", ["acq-mprage_T1w.nii.gz"]),
        ("*_T1w.*\n!*mprage*", ["acq-mprage_T1w.nii.gz"]),
        ("anat/nothing", ["acq-localizer_T1w.nii.gz"]),
    ],
)
def test_bidsignore_is_obeyed_wherever_one_starts(tmp_path, pattern, kept):
    put(tmp_path / "sub-01" / "anat", "sub-01_acq-localizer_T1w")
    put(tmp_path / "sub-01" / "anat", "sub-01_acq-mprage_T1w")
    (tmp_path / ".bidsignore").write_text(pattern)
    assert chosen(tmp_path)[0] == chosen(tmp_path / "sub-01" / "anat")[0] == kept
    if pattern.startswith("*acq"):
        (tmp_path / ".bidsignore").write_text("sub-01/\n")
        assert "no scan here" in refusal(sessions.find_sessions, tmp_path)


def test_fit_prepare_and_check_take_the_same_files(tmp_path):
    root = tmp_path / "raw"
    for name in ("sub-01_run-2_T1w", "sub-01_run-1_T1w", "sub-01_rec-x_T1w"):
        put(root / "sub-01" / "anat", name, volume=ball())
    for _ in prepare_dataset(root, tmp_path / "out", voxel_mm=6.0):
        pass
    told = json.loads(next((tmp_path / "out").rglob("*_T1w.json")).read_text())
    assert told["Sources"] == ["bids:raw:sub-01/anat/sub-01_run-1_T1w.nii.gz"]
    assert [scan.path.name for scan in sessions.read_session(root)] == ["sub-01_run-1_T1w.nii.gz"]
    said = CliRunner().invoke(app, ["check", str(root)])
    assert "sub-01_run-1_T1w.nii.gz" in said.stdout and "taken instead of" in said.stdout


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_within_itself_is_walked_once(tmp_path):
    put(tmp_path / "sub-01" / "anat", "sub-01_T1w")
    (tmp_path / "sub-01" / "ses-x").symlink_to(tmp_path / "sub-01", target_is_directory=True)
    (tmp_path / "sub-01" / "anat" / "anat").symlink_to("anat")  # to itself
    found = sessions.find_sessions(tmp_path)
    assert [len(paths) for paths in found.values()] == [1]


def test_a_link_to_nothing_says_so(tmp_path):
    path = put(tmp_path, "sub-01_T1w")
    path.unlink()
    path.symlink_to("/nowhere/annex/object")
    assert "a link to nothing" in refusal(nifti.read_scan, path)
