"""Chapters on people who were scanned: what needs the truth says so, everything else is made."""

from __future__ import annotations

import re

import pytest
from test_reproduce import refusal, write_notebook

from phyldm_core.machine.errors import BadInput
from phyldm_core.running.reproduce import run_notebook
from phyldm_core.running.without_truth import SAID, names_in

ASKS = 'fig, truth = "of the truth", (_ for _ in ()).throw(RuntimeError("run: nobody knows their true maps"))'


def ran(folder, *cells: str, scanned: bool = True) -> list[str]:
    """What each cell after the parameters printed."""
    book = run_notebook(write_notebook(folder / "notebooks", "03_maps", *cells), {}, folder / "run", scanned=scanned)
    assert [cell.source for cell in book.cells[2:]] == list(cells)
    assert not any("raises-exception" in cell.metadata.get("tags", []) for cell in book.cells)
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in book.cells[2:]]


def test_a_cell_that_needs_the_truth_and_those_that_use_it_say_so_and_the_others_run(tmp_path):
    first, asks, uses, follows, own, again = ran(
        tmp_path, 'fig = "of scans"; print(fig)', ASKS, "print(fig)", "def error():\n    return truth", "print('free')",
        "fig = 'anew'; print(fig)",
    )  # fmt: skip
    assert first == "of scans\n"
    assert asks == f"{SAID}this needs the true maps or how people were simulated.\n"
    assert uses == f"{SAID}this uses fig of a cell above that needs the truth.\n"  # not the figure of the first cell
    assert follows == f"{SAID}this uses truth of a cell above that needs the truth.\n"
    assert (own, again) == ("free\n", "anew\n")


def test_any_other_error_ends_the_chapter(tmp_path):
    with pytest.raises(BadInput, match=re.escape("stopped in cell 4 (ZeroDivisionError: division by zero)")):
        ran(tmp_path, "print('first')", "1 / 0", "open('reached', 'w')")
    assert not (tmp_path / "notebooks" / "reached").exists()
    with pytest.raises(BadInput, match="nobody knows"):
        ran(tmp_path, ASKS, scanned=False)


def test_what_a_cell_reads_is_what_it_has_not_bound_before():
    read, bound = names_in("import numpy as np\na = b\nc = a + np.pi\nfor i in range(n):\n    pass")
    assert read == {"b", "range", "n"} and bound == {"np", "a", "c", "i"}
    read, bound = names_in("x = [f(name) for name in names]\ndef g(m):\n    k = m + x + other\n    return k\ny = y + 1")
    assert read == {"f", "names", "other", "y"} and bound == {"x", "g", "y"}  # not name, m or k, which are their own
    read, bound = names_in("with open(p) as file:\n    for ax, t in pairs:\n        if t:\n            ax.plot(file)")
    assert read == {"open", "p", "pairs"} and bound == {"file", "ax", "t"}
    assert names_in("%matplotlib inline") == (set(), set())


def test_scanned_people_are_not_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "leave it out with --data" in refusal("reproduce", "--publish", "--data", tmp_path)
    assert not list((tmp_path / "runs").rglob("cohort"))
