"""The commands: notebooks in order, one sentence when something is wrong, nothing half done.

The notebooks here are tiny ones made for the occasion, run by the real runner in real kernels.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from phyldm_core import cli, physics
from phyldm_core.explorers import page as explore
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import fetch
from phyldm_core.running import profiles, publish, reproduce
from phyldm_core.running.report import duration, figures_page, write_report

PARAMETERS = """profile = "laptop"
run_dir = "../runs/laptop"
figures_dir = "../figures"
anatomies = ""
seed = 7"""
ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="  # PNG, white
MAKES_A_FIGURE = f"""
import base64, json
from pathlib import Path
figures, metrics = Path(figures_dir), Path(run_dir) / "metrics"
metrics.mkdir(exist_ok=True)
_ = (figures / "fig01_inferred_maps.png").write_bytes(base64.b64decode("{ONE_PIXEL}"))
_ = (figures / "fig01_inferred_maps.json").write_text(json.dumps({{"caption": "T₁ < 2 s", "alt": 'three "maps"'}}))
_ = (metrics / "map_error.csv").write_text("tissue,T1 (%)\\nWM,7.123456\\nCSF,\\n")
"""


def write_notebook(folder: Path, stem: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """Cell 1 is a title, cell 2 the parameters, ``cells`` follow."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {stem[:2]} · On {stem[3:]}")]
    if parameters is not None:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in cells]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{stem}.ipynb")
    return folder / f"{stem}.ipynb"


def phyldm(*arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``phyldm``."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refusal(*arguments) -> str:
    """The one sentence that ``phyldm`` refuses with."""
    code, _, said = phyldm(*arguments)
    assert code == 1
    assert said.startswith("phyldm: ")
    assert said.count("\n") == 1
    return said


def without_brains(run_dir: Path, figures_dir: Path) -> Path:
    """The page that ends a run, without the half minute that drawing its brains takes."""
    return explore.write_page(figures_dir / "explore.html", {})


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with its own notebooks, in which the commands run."""
    runner = functools.partial(reproduce.reproduce, notebooks_dir=tmp_path / "notebooks")
    monkeypatch.setattr(reproduce, "reproduce", runner)
    monkeypatch.setattr(explore, "make_page", without_brains)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two notebooks on a machine whose user registered another Python under the same kernel name."""
    root = tmp_path_factory.mktemp("clone")
    kernel = root / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    another = {"argv": [shutil.which("false"), "{connection_file}"], "display_name": "another", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(another))
    progress = "from tqdm import tqdm\nfor _ in tqdm(range(3), mininterval=0): pass"
    given = "import sys, os\nprint(profile, run_dir, figures_dir, seed, repr(anatomies))\nprint(sys.executable)"
    write_notebook(root / "notebooks", "00_tissue", given, MAKES_A_FIGURE)
    write_notebook(root / "notebooks", "01_training", progress)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(root / "jupyter"))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
        patch.chdir(root)
        runner = functools.partial(reproduce.reproduce, notebooks_dir=root / "notebooks")
        patch.setattr(reproduce, "reproduce", runner)
        patch.setattr(explore, "make_page", without_brains)
        code, out, err = phyldm("reproduce", "--profile", "smoke", "--out", "runs/smoke", "--seed", "11")
    assert code == 0, err
    return root, out, err


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)


def test_the_terminal_shows_a_line_per_notebook_and_where_things_are(finished):
    _, out, err = finished
    assert re.search(r"^00 tissue … \d+ s\n01 training … \d+ s\n", out)
    for place in ("report.html", "figures", "figures/explore.html", "metrics", "notebooks"):
        assert re.search(rf"^  \w+ +{re.escape(os.path.join('runs', 'smoke', place))}$", out, re.MULTILINE)
    assert err == ""


def test_notebooks_get_their_parameters_as_seen_from_their_folder(finished):
    root, _, _ = finished
    assert "smoke ../runs/smoke ../runs/smoke/figures 11 ''" in printed(root / "runs/smoke/notebooks/00_tissue.ipynb")
    assert (root / "runs/smoke/figures/fig01_inferred_maps.png").exists()


def test_the_kernel_is_this_interpreter(finished):
    root, _, _ = finished
    assert printed(root / "runs/smoke/notebooks/00_tissue.ipynb").splitlines()[1] == sys.executable


def test_of_a_progress_bar_the_last_state_is_kept(finished):
    root, _, _ = finished
    kept = printed(root / "runs/smoke/notebooks/01_training.ipynb")
    assert "3/3" in kept
    assert "0/3" not in kept
    assert "0/3" in (root / "runs/smoke/notebooks/01_training.log").read_text()


def test_a_finished_run_leaves_no_unfinished_files_and_no_path_of_this_machine(finished):
    root, _, _ = finished
    assert not list(root.rglob("*partial*"))
    executed = nbformat.read(root / "runs/smoke/notebooks/01_training.ipynb", as_version=4)
    assert str(root) not in nbformat.writes(executed)


def test_the_report_is_one_page_with_every_figure_and_number(finished):
    root, _, _ = finished
    page = (root / "runs/smoke/report.html").read_text(encoding="utf-8")
    assert f'src="data:image/png;base64,{ONE_PIXEL}" alt="three &quot;maps&quot;"' in page
    assert "<strong>Figure 1.</strong></a> T₁ &lt; 2 s" in page
    assert "<caption>map error</caption>" in page
    assert "<td>7.123</td>" in page
    assert "00 · On tissue" in page
    assert "Profile smoke, anatomy: MNI152, seed 11." in page
    assert '<p><a href="figures/explore.html">Drag TE, TR and TI</a>' in page
    assert f"torch {metadata.version('torch')}" in page
    assert str(root) not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)  # nothing is loaded from elsewhere


def test_the_kernel_is_told_to_write_pdfs_when_it_is_asked_to(clone):
    write_notebook(clone / "notebooks", "00_first", "import os\nprint(os.environ.get('PHYLDM_PDF'))")
    for asked, told in (((), "None"), (("--pdf",), "1")):
        assert phyldm("reproduce", "--out", "run", *asked)[0] == 0
        assert printed(clone / "run" / "notebooks" / "00_first.ipynb").split() == [told]


def test_the_figures_come_with_a_page_of_what_they_show(finished):
    root, _, _ = finished
    page = (root / "runs/smoke/figures/README.md").read_text(encoding="utf-8")
    assert '![three "maps"](fig01_inferred_maps.png)' in page
    assert "T₁ \\< 2 s.\n" in page


def test_a_page_that_somebody_wrote_is_not_replaced(clone):
    write_notebook(clone / "notebooks", "00_first", "open('reached', 'w')")
    (clone / "README.md").write_text("# My own")
    assert "README.md was not made by phyldm" in refusal("reproduce", "--out", "run", "--figures", ".")
    assert (clone / "README.md").read_text() == "# My own" and not (clone / "notebooks" / "reached").exists()


def test_a_failure_names_the_cell_and_the_next_run_goes_on_from_there(clone):
    waits = "from pathlib import Path\nassert Path('../mended').exists(), 'two\\nlines'"
    write_notebook(clone / "notebooks", "00_first", "print('first')")
    write_notebook(clone / "notebooks", "01_second", "print('so far')", waits)
    write_notebook(clone / "notebooks", "02_third", "print('third')")
    kept = clone / "run" / "notebooks"

    said = refusal("reproduce", "--profile", "smoke", "--out", "run")
    assert "notebook 01_second stopped in cell 4 (AssertionError: two)" in said
    for left in (kept / "01_second.partial.ipynb", kept / "01_second.log"):
        assert os.path.relpath(left) in said
        assert "so far" in left.read_text()
    assert "AssertionError" in (kept / "01_second.log").read_text()
    assert sorted(p.name for p in kept.glob("*.ipynb")) == ["00_first.ipynb", "01_second.partial.ipynb"]
    assert not (clone / "run" / "report.html").exists()

    (clone / "mended").touch()
    code, out, _ = phyldm("reproduce", "--profile", "smoke", "--out", "run", "--from", "1")
    assert code == 0
    assert [line.split(" … ")[0] for line in out.splitlines() if " … " in line] == ["01 second", "02 third"]
    assert sorted(p.name for p in kept.glob("*.ipynb")) == ["00_first.ipynb", "01_second.ipynb", "02_third.ipynb"]


def test_a_kernel_that_dies_is_said_to_have_died(clone):
    write_notebook(clone / "notebooks", "04_hungry", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    said = refusal("reproduce", "--out", "run")
    assert "notebook 04_hungry stopped in cell 3" in said
    assert "memory" in said


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_an_interrupt_stops_the_kernel_keeps_the_notebook_and_exits_130(tmp_path):
    endless = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    notebook = write_notebook(tmp_path / "notebooks", "00_endless", endless)
    program = "\n".join([
        "import signal",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # what a shell starts behind it ignores Ctrl-C
        "from pathlib import Path",
        "from phyldm_core import cli",
        "from phyldm_core.running import reproduce",
        "reproduce.reproduce.__kwdefaults__['notebooks_dir'] = Path('notebooks')",
        "cli.app(['reproduce', '--out', 'run'])",
    ])  # fmt: skip
    phyldm = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    pid = notebook.parent / "pid"
    until(lambda: pid.exists() and pid.read_text(), seconds=120)
    os.killpg(phyldm.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    _, said = phyldm.communicate(timeout=60)
    assert phyldm.returncode == 130
    assert said.startswith("phyldm: stopped;")
    assert said.count("\n") == 1
    assert (tmp_path / "run" / "notebooks" / "00_endless.partial.ipynb").exists()
    until(lambda: not alive(int(pid.read_text())), seconds=20)


def until(condition, seconds: float):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {seconds} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- refused before anything runs -------------------------------------------------------------------------------------


@pytest.fixture
def readable(clone):
    """A clone whose notebook must not be reached."""
    write_notebook(clone / "notebooks", "03_train_vae", "open('reached', 'w')")
    yield clone
    assert not (clone / "notebooks" / "reached").exists()


def test_an_unknown_profile_is_answered_with_the_known_ones(readable):
    said = refusal("reproduce", "--profile", "lapotp")
    assert "'lapotp'" in said
    assert ", ".join(profiles.PROFILES) in said


def test_a_parameter_that_the_notebook_does_not_declare(readable):
    write_notebook(readable / "notebooks", "03_train_vae", parameters=PARAMETERS.replace("seed", "sede"))
    assert "03_train_vae.ipynb has no seed in a cell tagged `parameters`" in refusal("reproduce", "--out", "run")


def test_a_notebook_without_a_parameters_cell(readable):
    write_notebook(readable / "notebooks", "03_train_vae", "seed = 7", parameters=None)
    assert "profile, run_dir, figures_dir, anatomies, seed" in refusal("reproduce", "--out", "run")


def test_no_notebooks(clone):
    assert "no notebooks in notebooks" in refusal("reproduce", "--out", "run")


@pytest.mark.parametrize("option", ["--out", "--figures"])
def test_a_folder_that_cannot_be_written(readable, option):
    (readable / "file").touch()
    said = refusal("reproduce", "--out", "run", option, "file/inside")
    assert "cannot write in file" in said
    assert option in said


def test_a_full_disk(readable, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100 * 2**30, 99 * 2**30, 2**30))
    assert "only 1.0 GiB are free where run is, and 2 are needed" in refusal("reproduce", "--out", "run")


@pytest.mark.parametrize(("name", "complaint"), [("absent", "is not a folder"), ("empty", "holds no label map")])
def test_anatomies_that_are_not_there(readable, name, complaint):
    (readable / "empty").mkdir()
    said = refusal("reproduce", "--out", "run", "--anatomies", name)
    assert f"--anatomies {name} {complaint}" in said


def test_only_and_from_choose_by_number():
    books = [Path(f"{n:02}_x.ipynb") for n in (0, 1, 2, reproduce.ON_REQUEST)]
    assert reproduce.choose(books, None, None) == books[:-1]  # the last is for those who ask
    assert reproduce.choose(books, reproduce.ON_REQUEST, None) == books[-1:]
    assert reproduce.choose(books, 2, None) == [books[2]]
    assert reproduce.choose(books, 0, None) == [books[0]]
    assert reproduce.choose(books, None, 1) == books[1:]
    for only, start in ((5, None), (None, 5)):
        with pytest.raises(BadInput, match=f"no notebook 5: there are 0, 1, 2, {reproduce.ON_REQUEST}"):
            reproduce.choose(books, only, start)
    with pytest.raises(BadInput, match="contradict"):
        reproduce.choose(books, 1, 2)


def test_paths_outside_the_repository_are_given_whole(tmp_path):
    notebooks = tmp_path / "clone" / "notebooks"
    assert reproduce.seen_from(notebooks, tmp_path / "clone" / "runs") == "../runs"
    assert reproduce.seen_from(notebooks, tmp_path / "scratch") == str(tmp_path / "scratch")


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (0.4, 59.6, 372, 3905)] == ["0 s", "1 min 0 s", "6 min 12 s", "1 h 5 min"]


def git(folder: Path, *arguments) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost", "-c", "core.hooksPath="]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def tracked(clone):
    """A clone in which git keeps a chapter, as it was run before, and its figure."""
    write_notebook(clone / "notebooks", "01_tissue", MAKES_A_FIGURE + 'name = "fig01_inferred_maps"', "6 * 7")
    (clone / "figures").mkdir()
    (clone / "figures" / "fig01_inferred_maps.png").write_bytes(b"of another day")
    (clone / "figures" / "fig09_another.png").write_bytes(b"of another chapter")
    (clone / ".gitignore").write_text("/runs/\n")
    git(clone, "init", "--quiet")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message", "as cloned")
    return clone


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_a_run_leaves_the_clone_clean(tracked, profile):
    assert phyldm("reproduce", "--profile", profile)[0] == 0
    assert (tracked / "runs" / profile / "figures" / "fig01_inferred_maps.png").exists()
    assert git(tracked, "status", "--porcelain") == ""


def test_publishing_shows_what_the_run_has_made(tracked):
    code, out, _ = phyldm("reproduce", "--publish")
    assert code == 0 and "published  5 files" in out
    changed = git(tracked, "status", "--porcelain", "--untracked-files=all").split()[1::2]
    assert changed == [
        "figures/fig01_inferred_maps.png", "notebooks/01_tissue.ipynb", "figures/README.md",
        "figures/explore.html", "figures/fig01_inferred_maps.json",
    ]  # fmt: skip
    book = nbformat.read(tracked / "notebooks" / "01_tissue.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3]  # without the cell of injected parameters
    assert code[-1].outputs[0].data["text/plain"] == "42" and code[-1].outputs[0].execution_count == 3
    assert code[0].source == PARAMETERS and "papermill" not in book.metadata
    git(tracked, "add", ".")
    assert phyldm("reproduce", "--publish")[0] == 0
    changed = {line for line in git(tracked, "status", "--porcelain").splitlines() if line[1] != " "}
    assert not changed, "what was published once is published again, byte by byte"


def test_a_run_with_other_parameters_than_the_chapters_say_is_not_published(readable):
    said = refusal("reproduce", "--publish", "--profile", "smoke")
    assert "03_train_vae.ipynb says profile = 'laptop', not 'smoke': leave --publish out" in said


def test_a_chapter_that_was_changed_while_it_ran_is_not_published(tracked):
    edits = "p = __import__('pathlib').Path('02_edited.ipynb')\n_ = p.write_text(p.read_text().replace('On', 'Of'))"
    write_notebook(tracked / "notebooks", "02_edited", edits)
    git(tracked, "add", ".")
    assert "02_edited.ipynb was changed while it ran" in refusal("reproduce", "--publish")
    changed = [line[3:] for line in git(tracked, "status", "--porcelain").splitlines() if line[1] != " "]
    assert changed == ["notebooks/02_edited.ipynb"]


def test_an_installed_package_has_no_clone_to_publish_in(readable, monkeypatch):
    monkeypatch.setattr(publish, "CARRIED", readable)
    assert "in a clone" in refusal("reproduce", "--publish")


# --- one sentence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BadInput("scan.nii.gz is empty: export it again"), "phyldm: scan.nii.gz is empty: export it again\n"),
        (physics.ProtocolError("TE of 90 s looks like milliseconds"), "phyldm: TE of 90 s looks like milliseconds\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "vae/weights.safetensors"),
            "phyldm: vae/weights.safetensors: No space left on device (make room and run again, "
            "finished work is reused)\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs"),
            "phyldm: runs: Permission denied (choose a folder you may write in)\n",
        ),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_sentence(monkeypatch, error, sentence):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(reproduce, "reproduce", fails)
    assert phyldm("reproduce") == (1, "", sentence)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(reproduce, "reproduce", lambda *_, **__: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        phyldm("reproduce")


# --- the report's own cases -------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """What a run leaves, without running one."""
    for name in ("notebooks", "metrics", "figures"):
        (tmp_path / name).mkdir()
    notebook = nbformat.v4.new_notebook()
    given = {"profile": "laptop", "seed": 7, "anatomies": "../../heads"}
    notebook.metadata.papermill = {"start_time": "2026-01-01T00:00:00+00:00", "duration": 3.2, "parameters": given}
    nbformat.write(notebook, tmp_path / "notebooks" / "02_cohort.ipynb")
    return tmp_path


def page_of(run: Path) -> str:
    return write_report(run, run / "figures").read_text(encoding="utf-8")


def test_a_figure_from_an_earlier_run_is_marked(run):
    for name in ("fig02_old", "fig10_new"):
        (run / "figures" / f"{name}.png").write_bytes(base64.b64decode(ONE_PIXEL))
    os.utime(run / "figures" / "fig02_old.png", (0, 0))
    page = page_of(run)
    assert "<strong>Figure 2.</strong></a> old <em>(from an earlier run)</em>" in page
    assert "<strong>Figure 10.</strong></a> new</figcaption>" in page
    assert "anatomies from heads" in page


def test_the_paper_s_figures_and_table_come_first_under_its_numbers(run):
    for name in ("fig00_idea", "fig01_inference", "fig03_samples", "fig10_new"):
        (run / "figures" / f"{name}.png").write_bytes(base64.b64decode(ONE_PIXEL))
    row = "psnr,{},brain,common scale,{},27.04,31.96,25\n"
    numbers = "".join(row.format(*pair) for pair in (("FLAIR", 28.25), ("T1w", 30.0), ("T2w", 29.0)))
    header = "metric,quantity,tissue,inputs,value,low,high,n\n"
    (run / "metrics" / "vae_reconstruction.csv").write_text(header + numbers)
    notebook = nbformat.read(run / "notebooks" / "02_cohort.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell('save(fig, "fig03_samples")'))
    nbformat.write(notebook, run / "notebooks" / "02_cohort.ipynb")
    page = page_of(run)
    order = ["Figure 1.", "Figure 3.", "Table 1.", "Figure 0.", "Figure 10."]
    places = [page.index(f"<strong>{name}</strong>") for name in order]
    assert places == sorted(places)
    assert "Not made in this run: Figure 2, Figure 4, Figure 5." in page
    assert "28.2 (27.0–32.0)" in page and "n = 25 people" in page
    assert page.index("<td>T1w</td>") < page.index("<td>T2w</td>") < page.index("<td>FLAIR</td>")
    for name in ("fig01_inference", "fig10_new", "table1"):  # every link has its place
        assert f'href="#{name}"' in page and f'id="{name}"' in page
    assert 'Notebook <a href="notebooks/02_cohort.ipynb">02</a>.' in page


def test_figures_elsewhere_name_their_notebooks_without_links_and_no_character_of_a_caption_formats(run):
    elsewhere = run / "figures"
    (elsewhere / "fig02_cohort.png").write_bytes(base64.b64decode(ONE_PIXEL))
    (elsewhere / "fig02_cohort.json").write_text('{"caption": "A *b*\\n  [c](d), n = 3?", "alt": "e_f"}')
    notebooks = write_notebook(run / "clone" / "notebooks", "02_cohort", 'save(fig, "fig02_cohort")').parent
    page = figures_page(elsewhere, notebooks)
    assert "![e\\_f](fig02_cohort.png)\n\nA \\*b\\* \\[c\\](d), n = 3? Notebook 02.\n" in page
    assert str(run) not in page


def test_a_table_of_another_kind_in_the_place_of_table_1(run):
    (run / "metrics" / "vae_reconstruction.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="vae_reconstruction.csv has no column"):
        page_of(run)


def test_a_long_table_says_where_the_rest_is(run):
    (run / "metrics" / "loss.csv").write_text("step,loss\n" + "".join(f"{i},0.5\n" for i in range(100)))
    (run / "metrics" / "loss.json").write_text('{"caption": "Loss & step"}')
    page = page_of(run)
    assert "Loss &amp; step (first 40 of 100 rows; all are in loss.csv)" in page
    assert page.count("<td>0.5</td>") == 40


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics/empty.csv", ""), ("notebooks/03_x.ipynb", "{"), ("figures/fig01_x.json", "{caption")],
)
def test_a_report_names_what_it_cannot_read(run, name, content):
    (run / "figures" / "fig01_x.png").write_bytes(base64.b64decode(ONE_PIXEL))
    (run / name).write_text(content)
    with pytest.raises(BadInput, match=re.escape(Path(name).name)):
        page_of(run)
    assert not (run / "report.html").exists()


# --- fetch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Two small files served on this machine in place of the published fifteen."""
    (tmp_path / "public").mkdir()
    files = {"a.nii.gz": b"left", "b.nii.gz": b"right"}
    for name, content in files.items():
        (tmp_path / "public" / name).write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "public"))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    sums = (
        f"{name} {hashlib.sha256(content).hexdigest()} http://127.0.0.1:{server.server_port}/{name}\n"
        for name, content in files.items()
    )
    (tmp_path / "registry.txt").write_text("# of two\n" + "".join(sums))
    monkeypatch.setattr(fetch, "carried", lambda _: tmp_path / "registry.txt")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stop = contextlib.ExitStack()
    stop.callback(thread.join)
    stop.callback(server.server_close)
    stop.callback(server.shutdown)
    with stop:
        yield tmp_path / "public", stop.close


def test_fetch_keeps_what_arrived_and_asks_for_the_rest_only(mirror, tmp_path):
    public, disconnect = mirror
    heads = tmp_path / "heads"
    (public / "b.nii.gz").rename(public / "away")
    assert "b.nii.gz could not be fetched" in refusal("fetch", "synthseg", "--out", heads)
    assert [p.name for p in heads.iterdir()] == ["a.nii.gz"]

    (public / "away").rename(public / "b.nii.gz")
    (public / "a.nii.gz").unlink()
    code, out, _ = phyldm("fetch", "synthseg", "--out", heads)
    assert code == 0
    assert f"2 heads in {heads}" in out
    disconnect()
    assert phyldm("fetch", "synthseg", "--out", heads)[0] == 0


def test_fetch_keeps_nothing_of_a_file_that_was_altered(mirror, tmp_path):
    public, _ = mirror
    (public / "a.nii.gz").write_bytes(b"something else")
    assert "a.nii.gz differs from the published file" in refusal("fetch", "synthseg", "--out", tmp_path / "heads")
    assert not list((tmp_path / "heads").iterdir())


def test_the_patient_comes_with_sidecars_and_can_be_read(mirror, tmp_path, monkeypatch):
    out, here = tmp_path / "patient", fetch.carried
    monkeypatch.setattr(fetch, "carried", lambda name: ROOT / name if name.endswith(".json") else here(name))
    code, said, _ = phyldm("fetch", "open-ms", "--out", out)
    assert code == 0 and f"phyldm fit {out}" in said
    sidecar = json.loads((out / "sub-07" / "anat" / "sub-07_FLAIR.json").read_text())
    assert sidecar["InversionTime"] == 1.8 and (out / "a.nii.gz").exists()
    assert json.loads((out / "dataset_description.json").read_text())["License"] == "CC-BY"


def test_fetch_without_a_network_says_so(mirror, tmp_path):
    _, disconnect = mirror
    disconnect()
    assert "check the network" in refusal("fetch", "synthseg", "--out", tmp_path / "heads")
    assert not list((tmp_path / "heads").iterdir())


@pytest.mark.parametrize("heads", list(cli.HeadSet))
def test_the_published_checksums_are_those_of_the_offline_twin(shared_data, heads):
    twin = shared_data / {"synthseg": "synthseg_labels"}.get(heads, heads.replace("-", "_"))
    if not twin.is_dir():
        pytest.skip(f"no label maps at {twin}")
    published = fetch.listed(heads, twin)
    found = {p.relative_to(twin).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in twin.rglob("*.gz")}
    assert published.registry == found
    if heads == fetch.PATIENT:  # which its publisher names otherwise
        sidecars = json.loads((ROOT / "data" / "open_ms.json").read_text())
        assert sidecars == {p.relative_to(twin).as_posix(): json.loads(p.read_text()) for p in twin.rglob("*.json")}
    else:
        assert all(url.endswith(name) for name, url in published.urls.items())  # each at its commit, under its own name


def test_each_set_s_licence_stands_on_the_page():
    page = ROOT / "data" / "README.md"
    rows = {row.split("|")[1].strip(): row for row in page.read_text().splitlines() if "phyldm fetch" in row}
    licences = {"synthseg": "Apache-2.0", "synthseg-2020a": "no licence", "brainweb": "citation", "open-ms": "CC-BY"}
    for heads, licence in licences.items():
        assert licence in rows[f"`phyldm fetch {heads}`"]
    assert set(rows) == {f"`phyldm fetch {heads}`" for heads in cli.HeadSet}
