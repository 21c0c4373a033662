"""``data/OASIS-3.md`` does what it says: its very commands, run on an archive with OASIS-3's layout, names and gaps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas
import pytest
import typer
from test_prepare_dataset import Archive

from phyldm_core import physics
from phyldm_core.people import scanned
from phyldm_core.running.reproduce import reproduce
from phyldm_core.running.without_truth import SAID
from phyldm_core.scans import oasis3

PAGE = Path(__file__).resolve().parents[2] / "data" / "OASIS-3.md"
SESSIONS = (("OAS30001", "d0129"), ("OAS30001", "d0757"), ("OAS30002", "d0371"), ("OAS30003", "d0558"),
            ("OAS30004", "d1101"))  # fmt: skip
DOWNLOADER = """#!/bin/bash
# sessions.csv folder user types, like the archive's own: a header, then a session a line
[ "$3" = somebody ] && [ "$4" = T1w,T2w,FLAIR ] || exit 9
sed 1d "$1" | while read -r name; do
  subject=${name%%_*}; session=${name##*_}
  mkdir -p "$2/sub-$subject" && cp -r "$ARCHIVE/sub-$subject/ses-$session" "$2/sub-$subject/" || exit 8
done
"""


def blocks() -> dict[str, str]:
    """The page's commands, by the step they belong to."""
    text = PAGE.read_text(encoding="utf-8")
    download, flat, train = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {"download": download, "flat": flat, "train": train}


@pytest.fixture
def archive(tmp_path, simulated_session) -> Archive:
    """Five sessions of four people as the archive has them, one contrast or time missing here and there."""
    made = Archive(tmp_path / "archive", simulated_session)
    for suffix in ("T1w", "T2w", "FLAIR"):
        made.put("OAS30001", "d0129", suffix, "run-01_" if suffix == "T1w" else "")
    made.put("OAS30001", "d0757", "T1w", "run-01_")
    made.put("OAS30001", "d0129", "T1w", "run-02_")
    made.put("OAS30002", "d0371", "T1w", InversionTime=None)
    made.put("OAS30002", "d0371", "FLAIR", InversionTime=None)
    made.put("OAS30003", "d0558", "T1w", "run-01_")
    made.put("OAS30003", "d0558", "T2w", "acq-TSE_", EchoTime=0.003, RepetitionTime=0.26)  # mislabelled
    made.put("OAS30004", "d1101", "T1w")
    for subject, session in SESSIONS:  # what else lies there
        folder = made.root / f"sub-{subject}" / f"ses-{session}"
        (folder / "dataset_description.json").write_text(json.dumps({"Name": "OASIS3", "BIDSVersion": "1.0.1"}))
        (folder / "func").mkdir()
        (folder / "func" / f"sub-{subject}_ses-{session}_task-rest_run-01_bold.json").write_text("{}")
    return made


def run(commands: str, folder: Path, archive: Path, expected: int) -> str:
    """What bash says to ``commands`` in ``folder``, with this phyldm and a git that knows one repository."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in {
        "phyldm": f'#!/bin/bash\nexec "{sys.executable}" -m phyldm_core "$@"\n',
        "git": '#!/bin/bash\n[ "$*" = "clone https://github.com/NrgXnat/oasis-scripts" ] || exit 9\n'
        'mkdir -p oasis-scripts/download_scans && cp "$DOWNLOADER" oasis-scripts/download_scans/\n',
        "download_oasis_scans_bids.sh": DOWNLOADER,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    told = {"PATH": f"{tools}:{os.environ['PATH']}", "ARCHIVE": str(archive), "NITRC_USER": "somebody"}
    told |= {"DOWNLOADER": str(tools / "download_oasis_scans_bids.sh")}
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", commands], cwd=folder, env=os.environ | told,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_commands_lead_from_the_table_of_sessions_to_a_model(archive, tmp_path):
    table = "MR ID,Subject,Scanner\r\n0AS_data_files_MR_d0000,0AS_data_files,\r\n"
    table += "".join(f"{subject}_MR_{session},{subject},3.0T\r\n" for subject, session in SESSIONS)
    (tmp_path / "mr_sessions.csv").write_bytes(table.encode())
    run(blocks()["download"], tmp_path, archive.root, 0)
    there = sorted(path.relative_to(tmp_path / "OASIS3") for path in (tmp_path / "OASIS3").rglob("*.nii.gz"))
    assert there == sorted(path.relative_to(archive.root) for path in archive.root.rglob("*.nii.gz"))

    train = blocks()["train"].replace("profile=laptop", "profile=smoke")
    assert "profile=smoke" in train
    said = run(train, tmp_path, archive.root, 1)  # trained, but one scan could not be used
    out = tmp_path / "runs" / "oasis3"
    assert "5 sessions prepared, 0 kept, 0 skipped" in said and "trained in" in said
    skipped = pandas.read_csv(out / "prepared" / "skipped.tsv", sep="\t")
    assert len(skipped) == 1 and "mislabelled" in skipped.reason[0] and "acq-TSE" in skipped.scan[0]
    people = pandas.read_csv(out / "cohort" / "participants.tsv", sep="\t").set_index("participant_id")
    assert dict(people.sessions) == {"sub-OAS30001": 2, "sub-OAS30002": 1, "sub-OAS30003": 1, "sub-OAS30004": 1}
    assert set(people.split) == {"train", "val", "test"}
    assert (out / "vae").is_dir() and (out / "pipeline").is_dir()
    for named in re.findall(r"^\| `(runs/oasis3/[\w/.]+?)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        assert (tmp_path / named).exists(), named


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_chapter_shows_the_archive_s_scans_and_says_what_needs_their_truth(archive, tmp_path):
    given = {"profile": "laptop", "run_dir": "", "figures_dir": "", "anatomies": "", "seed": 7}
    cells = [nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in given.items()))]
    cells[0].metadata.tags = ["parameters"]
    cells += map(nbformat.v4.new_code_cell, (
        "from phyldm_core.running.chapter import open_chapter\n"
        "run, publish = open_chapter(run_dir, figures_dir, profile, anatomies, seed)\nscans = run.scans('test')",
        "truth = run.truth('test')",
        "print(truth.maps.shape)",
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\n_ = ax.imshow(scans.images[0, 0])\n"
        "publish(fig, 'fig03_scans', 'A scan, n = 1.', 'one slice')",
    ))  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "notebooks").mkdir()
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(book, tmp_path / "notebooks" / "05_scans.ipynb")
    out = tmp_path / "run"
    with pytest.raises(typer.Exit):  # a scan could not be used, as train says it
        reproduce("smoke", data=archive.root, run_dir=out, notebooks_dir=tmp_path / "notebooks")
    assert (out / "figures" / "fig03_scans.png").exists() and (out / "report.html").exists()
    ran = nbformat.read(out / "notebooks" / "05_scans.ipynb", as_version=4).cells
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in ran]
    assert [text.startswith(SAID) for text in said[-4:]] == [False, True, True, False]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_chapters_run_on_the_archive(archive, tmp_path):
    """All of the plain run: samples and contrasts need no truth, and are there; what needs it says so."""
    said = run(f"phyldm reproduce --data {archive.root} --profile smoke", tmp_path, archive.root, 1)
    print(said)  # one scan could not be used, hence the 1
    assert "5 sessions prepared, 0 kept, 0 skipped" in said and "1 scans or sessions were not used" in said
    folder = tmp_path / "runs" / "smoke-scans"
    made = {path.stem for path in (folder / "figures").glob("fig*.png")}
    print("made:", ", ".join(sorted(made)))
    assert {"fig02_architecture", "fig03_samples", "fig04_unseen"} <= made
    kept, told = sorted((PAGE.parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb")), 0
    for path in (path for path in kept if (folder / "notebooks" / path.name).exists()):
        book = nbformat.read(folder / "notebooks" / path.name, as_version=4)
        cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.tags]
        assert [c.source for c in cells] == [c.source for c in nbformat.read(path, as_version=4).cells]
        told += sum(SAID in output.get("text", "") for c in cells for output in c.get("outputs", []))
    assert told and told == sum(map(int, re.findall(r"; (\d+) cells need the truth", said)))


def test_the_other_layout_is_put_in_order(archive, tmp_path):
    for path in archive.root.rglob("anat/*"):
        subject, session = path.name.split("_")[:2]
        flat = tmp_path / "OASIS3-flat" / f"{subject[4:]}_MR_{session[4:]}" / f"anat{1 + len(path.name) % 3}"
        flat.mkdir(parents=True, exist_ok=True)
        (flat / path.name).write_bytes(path.read_bytes())
    run(blocks()["flat"], tmp_path, archive.root, 0)
    files = {path.relative_to(archive.root): path.read_bytes() for path in archive.root.rglob("anat/*")}
    assert {path.relative_to(tmp_path / "OASIS3"): path.read_bytes() for path in tmp_path.rglob("anat/*")
            if path.is_relative_to(tmp_path / "OASIS3")} == files  # fmt: skip


def test_the_page_counts_what_the_table_holds():
    rows = re.findall(r"^\| (.+?) \| (.+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    said = {what: [int(n) for n in re.findall(r"\d+", counts)] for what, counts in rows}
    untold = {(name, oasis3.family_ti(name, tr) is None): 0 for name, _, tr, ti, _ in oasis3._rows()}
    for name, _, tr, ti, n in oasis3._rows():
        untold[name, oasis3.family_ti(name, tr) is None] += n * (ti is None)
    excluded = oasis3.oasis3_excluded()
    long = [sum(n for name, te, *_, n in oasis3._rows() if name == which and te > physics.EFFECTIVE_TE_ABOVE)
            for which in ("T2w", "FLAIR")]  # fmt: skip
    assert said["T1w without InversionTime in its sidecar"] == [untold["T1w", False]]
    assert said["the same, TR shared by no other"] == [untold["T1w", True]]
    assert said["FLAIR without InversionTime"] == [untold["FLAIR", False]]
    assert said["T2w with TE 3 ms, or with TR 0.26 s: mislabelled"] == [sum(r.contrast == "T2w" for r in excluded)]
    assert next(v for k, v in said.items() if k.startswith("T2w and FLAIR with nominal")) == [long[0], 2, long[1]]
    held = oasis3.SESSION_CONTRASTS
    lacking = [held["T1w", "T2w"], held["T1w", "FLAIR"], held[("T1w",)]]
    found = said["contrasts that a session lacks"]
    assert [found[0], found[1], found[3]] == lacking
    assert f"({sum(held.values())} sessions" in PAGE.read_text(encoding="utf-8")
    assert "5 % of the subjects are for validation and 5 %" in PAGE.read_text(encoding="utf-8")
    assert scanned.HELD_OUT == {"val": 0.05, "test": 0.05}
