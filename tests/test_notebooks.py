"""The chapters: each runs at `smoke`, after those it builds on, and what is kept of it is fit to be read."""

from __future__ import annotations

import ast
import json
import os
import re
import statistics
from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import ROOT
from warm_kernels import warm_kernels

from phyldm_core.running import reproduce
from phyldm_core.running.report import write_report
from phyldm_core.running.reproduce import run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
AGREED = {
    "profile": "laptop",
    "run_dir": "../runs/laptop",
    "figures_dir": "../runs/laptop/figures",
    "anatomies": "",
    "seed": 7,
}
ASTRAY = re.compile(
    r"""(?:^|[\s'"(=])/(?:home|Users|root|tmp|work|opt|usr|var|mnt|private)/  # a path of the machine it ran on
      | \b\w*Warning\b
      | \r | \d%\| | it/s\] | s/it\]  # a progress bar""",
    re.VERBOSE,
)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """One run, shared: a chapter finds what the chapters before it have made."""
    return tmp_path_factory.mktemp("smoke")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Every chapter has its own kernel still; test_reproduce.py and test_wheel.py start theirs as a user does."""
    with warm_kernels(tmp_path_factory.mktemp("k")) as command, pytest.MonkeyPatch.context() as patch:
        usual = reproduce.get_kernel_dict
        patch.setattr(reproduce, "get_kernel_dict", lambda told: usual(told) | {"argv": [*command, *told]})
        yield


@each_notebook
def test_runs_and_so_do_the_solutions_of_its_exercises(path, run_dir, kernels):
    """Solutions are run at the end of their chapter, where a reader would paste them."""
    (run_dir / "figures").mkdir(exist_ok=True)
    given = AGREED | {"profile": "smoke", "run_dir": str(run_dir), "figures_dir": str(run_dir / "figures")}
    solved = notebook(path)
    solved.cells += [nbformat.v4.new_code_cell(code) for code in solutions(solved)]
    (run_dir / "solved").mkdir(exist_ok=True)
    nbformat.write(solved, run_dir / "solved" / path.name)
    run_notebook(run_dir / "solved" / path.name, given, run_dir / "notebooks")


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
def test_the_report_holds_every_figure_of_the_run(run_dir):
    page = write_report(run_dir, run_dir / "figures").read_text(encoding="utf-8")
    figures = [p.stem for p in (run_dir / "figures").glob("*.png")]
    assert figures
    assert sorted(re.findall(r'<figure id="(\w+)">', page)) == sorted(figures)
    assert "earlier run" not in page


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
def test_every_figure_of_the_run_says_n_and_protocol_and_has_an_alternative(run_dir):
    """Of a scan or a contrast the caption has the protocol: its times, or how it was drawn, or where it is written."""
    shown = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (run_dir / "figures").glob("*.json")}
    assert shown
    of_scans, times = r"T1w|T2w|FLAIR|MPRAGE|spin echo|scan|image", r"\bTE\b|[Pp]rotocol|settings"
    for name, text in shown.items():
        caption, alt = text["caption"], text["alt"]
        assert len(alt) > 25 and alt != caption, name
        assert re.search(r"n =\s\d", caption), f"{name}: {caption}"
        assert not re.search(of_scans, caption + alt) or re.search(times, caption), f"{name}: {caption}"


@each_notebook
def test_a_question_comes_first_and_exercises_last(path):
    text = "\n".join(cell.source for cell in notebook(path).cells if cell.cell_type == "markdown")
    assert "**Question.**" in text and "**Predict" in text.partition("## Exercises")[0]
    assert 2 <= text.count("<details><summary>Solution") <= 3 and text.count("</details>") == text.count("<details>")


@each_notebook
def test_a_chapter_is_read_in_a_sitting_and_its_cells_at_a_glance(path):
    lines = [len(c.source.splitlines()) for c in notebook(path).cells if c.cell_type == "code"]
    assert len(notebook(path).cells) <= 30
    assert max(lines) <= 15 and statistics.median(lines) <= 10


def test_all_chapters_together_are_short():
    cells = [cell for path in NOTEBOOKS for cell in notebook(path).cells]
    assert len(NOTEBOOKS) == 10 and len(cells) <= 260
    assert statistics.median(len(c.source.splitlines()) for c in cells if c.cell_type == "code") <= 8


@each_notebook
def test_declares_the_agreed_parameters_with_their_defaults(path):
    cells = [c.source for c in notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    assigned = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cells[0]).body}
    assert {name: assigned.get(name) for name in AGREED} == AGREED


@each_notebook
def test_kept_outputs_come_from_one_run_from_top_to_bottom(path):
    code = [c for c in notebook(path).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o.ename for c in code for o in c.outputs if o.output_type == "error"]


@each_notebook
def test_kept_outputs_are_clean(path):
    found = [hit.group() for text in texts(notebook(path)) for hit in ASTRAY.finditer(text)]
    assert not found
    assert "papermill" not in notebook(path).metadata
    assert os.path.getsize(path) <= 1.5e6


@each_notebook
def test_text_twin_agrees(path):
    twin = path.parent / "text" / f"{path.stem}.py"
    assert cells(path) == cells(twin), "run: jupytext --sync notebooks/*.ipynb"


def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def solutions(book: nbformat.NotebookNode) -> list[str]:
    """The code in the hidden solutions, in order."""
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    hidden = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    return [code for block in hidden for code in re.findall(r"```python\n(.*?)```", block, re.DOTALL)]


def cells(path: Path) -> list[tuple[str, str]]:
    return [(c.cell_type, c.source) for c in jupytext.read(path).cells]


def texts(book: nbformat.NotebookNode) -> list[str]:
    """All that a reader can read in the outputs."""
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    streams = [output.text for output in outputs if output.output_type == "stream"]
    data = [output.data for output in outputs if "data" in output]
    return streams + [bundle[kind] for bundle in data for kind in bundle if kind.startswith("text/")]
