"""``phyldm check``: the table of what would be fitted, without weights, torch or voxels."""

from __future__ import annotations

import json
import subprocess
import sys

from test_nifti import put
from test_wild_names import T2W, ball
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.scans.sessions import choose_headers, find_scans


def check(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_a_dataset_without_doubt_exits_0(tmp_path):
    for sub in ("01", "02"):
        put(tmp_path / f"sub-{sub}" / "anat", f"sub-{sub}_T1w", volume=wide(), MagneticFieldStrength=2.89)
        put(tmp_path / f"sub-{sub}" / "anat", f"sub-{sub}_T2w", volume=wide(), **T2W)
    said = check(tmp_path)
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert lines[0].split() == ["session", "contrast", "file", "protocol", "what", "to", "know"]
    assert len(lines) == 5 and "sub-02  " in lines[3] and "MPRAGE, TE 3 ms, TR 2.4 s, TI 1 s" in lines[3]


def wide():
    return ball().repeat(2, 0).repeat(2, 1)  # 80 × 88 voxels of 2 mm: no head is cut


def test_everything_doubtful_is_named_and_the_rest_is_listed_too(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    put(anat, "sub-01_T1w", volume=wide(), ContrastBolusIngredient="GADOLINIUM", MagneticFieldStrength=1.5)
    put(anat, "sub-01_T2w", volume=wide(), **T2W | {"EchoTime": None})
    put(tmp_path / "sub-02" / "anat", "sub-02_acq-small_T1w")
    put(tmp_path / "sub-03" / "anat", "sub-03_T1w", volume=wide())
    (tmp_path / "sub-03" / "anat" / "sub-03_T1w.nii.gz").write_bytes(b"no image")
    put(tmp_path / "sub-04" / "anat", "sub-04_T1w", volume=wide())
    put(tmp_path / "sub-04" / "anat", "sub-04_T2w", volume=wide(), **T2W)
    said = check(tmp_path)
    assert said.exit_code == 1 and "3 of 4 sessions are doubtful or cannot be used" in said.stderr
    table = said.stdout
    for words in ("contrast agent (GADOLINIUM)", "at 1.5 T", "T2: these protocols hardly depend on it", "no EchoTime",
                  "cuts the head", "not NIfTI"):  # fmt: skip
        assert words in table, words
    assert "sub-04   T1w       sub-04_T1w.nii.gz" in table


def test_check_decides_as_fit_does(tmp_path):
    """Both ask :func:`sessions.find_scans` and :func:`sessions.choose_headers`: file and protocol are the same."""
    put(tmp_path, "sub-01_run-2_T1w", volume=wide())
    put(tmp_path, "sub-01_run-1_T1w", volume=wide())
    (session,) = find_scans([tmp_path])
    header = choose_headers(session.paths, {})["T1w"][0]
    said = check(tmp_path).stdout
    assert header.path.name == "sub-01_run-1_T1w.nii.gz" and header.path.name in said and str(header.protocol) in said
    by_hand = check(tmp_path, "--protocol", "T1w: MPRAGE, te 0.004, tr 2, ti 0.9").stdout
    assert "TE 4 ms, TR 2 s, TI 0.9 s" in by_hand
    wrong = check(tmp_path, "--protocol", "T2w: spin echo, te 0.1, tr 4")
    assert wrong.exit_code == 1 and "no scan has this name or suffix" in wrong.stderr


def test_neither_torch_nor_weights_are_needed(tmp_path):
    put(tmp_path, volume=wide())
    put(tmp_path, "sub-01_T2w", volume=wide(), **T2W)
    code = (
        "import sys; from phyldm_core.cli import app\n"
        f"try: app(['check', {json.dumps(str(tmp_path))}])\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'SimpleITK', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
