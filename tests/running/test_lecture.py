"""A lecture: chapters to fill in, slides that need no network, a syllabus with times that a run has measured."""

from __future__ import annotations

import base64
import json
import re

import nbformat
import pytest
from conftest import ROOT
from test_reproduce import ONE_PIXEL, PARAMETERS, phyldm, refusal

from phyldm_core.running import lecture

FIRST = """# 01 · On tissue

**Question.** What does a scanner show?

**You will** null CSF and see $T_1$. *CPU, a minute.*

[Contents](00.ipynb)"""
ASKED = """## Curves
**Predict:** which [tissue](elsewhere.ipynb) crosses zero first,
and why?

More text."""
EXERCISES = """## Exercises
1. **Predict first:** and then?

<details><summary>Solution 1</summary>

Forty-two.
</details>

<details><summary>Solution 2</summary>
None.
</details>

## Limits
Few."""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A chapter as kept, and a run that has made its figure and timed it."""
    cells = [nbformat.v4.new_markdown_cell(FIRST), nbformat.v4.new_code_cell(PARAMETERS)]
    cells += [nbformat.v4.new_markdown_cell(ASKED), nbformat.v4.new_code_cell('publish(fig, "fig06_curves", "", "")')]
    cells += [nbformat.v4.new_markdown_cell(EXERCISES)]
    cells[3].outputs = [nbformat.v4.new_output("stream", text="the answer")]
    cells[3].execution_count = 2
    for folder in ("notebooks", "run/figures"):
        (tmp_path / folder).mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "01_tissue.ipynb")
    (tmp_path / "run" / "figures" / "fig06_curves.png").write_bytes(base64.b64decode(ONE_PIXEL))
    told = {"caption": "Signal < 1 of n = 3 tissues", "alt": "three curves"}
    (tmp_path / "run" / "figures" / "fig06_curves.json").write_text(json.dumps(told))
    lecture.record_time(tmp_path / "run", "01_tissue.ipynb", 372)
    lecture.record_time(tmp_path / "run", "01_tissue.ipynb", 12)
    monkeypatch.setattr(lecture, "carried", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lecture_is_chapters_slides_and_a_syllabus(clone):
    code, out, _ = phyldm("lecture", "talk", "--run", "run")
    assert code == 0 and "talk/SYLLABUS.html" in out
    files = {path.relative_to(clone / "talk").as_posix() for path in (clone / "talk").rglob("*") if path.is_file()}
    assert files == {"SYLLABUS.html", "lecture.json", "chapters/01_tissue.ipynb", "slides/01_tissue.html"}
    assert not list(clone.glob(".talk*"))


def test_chapters_have_neither_outputs_nor_solutions_and_all_the_rest(clone):
    phyldm("lecture", "talk", "--run", "run")
    kept = nbformat.read(clone / "notebooks" / "01_tissue.ipynb", as_version=4)
    book = nbformat.read(clone / "talk" / "chapters" / "01_tissue.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.source for cell in book.cells[:-1]] == [cell.source for cell in kept.cells[:-1]]
    assert book.cells[-1].source == "## Exercises\n1. **Predict first:** and then?\n\n## Limits\nFew."
    assert kept.cells[3].outputs, "the clone's own chapter stays as it was"


def test_slides_ask_before_they_show_and_need_no_network(clone):
    phyldm("lecture", "talk", "--run", "run")
    page = (clone / "talk" / "slides" / "01_tissue.html").read_text(encoding="utf-8")
    slides = re.findall(r"<section>(.*?)</section>", page, re.DOTALL)
    assert len(slides) == 3
    assert "<h1>01 · On tissue</h1>" in slides[0] and "You will null CSF and see T<sub>1</sub>." in slides[0]
    assert "which tissue crosses zero first,\nand why?" in slides[1] and "More text" not in slides[1]
    assert f'<img src="data:image/png;base64,{ONE_PIXEL}" alt="three curves">' in slides[2]
    assert "<b>Figure 6.</b> Signal &lt; 1 of n = 3 tissues" in slides[2]
    assert "default-src 'none'" in page
    for written in (page, (clone / "talk" / "SYLLABUS.html").read_text(encoding="utf-8")):
        assert not re.search(r"https?:|//\w|@import|url\(", written.replace(ONE_PIXEL, ""))


def test_the_syllabus_tells_goals_and_measured_times(clone):
    phyldm("lecture", "talk", "--run", "run")
    page = (clone / "talk" / "SYLLABUS.html").read_text(encoding="utf-8")
    for told in ("What does a scanner show?", "<td>null CSF and see T<sub>1</sub>", "<td>6 min 12 s<td>12 s"):
        assert told in page
    for link in re.findall(r'href="(\w+/[^"]*)"', page):
        assert (clone / "talk" / link).exists()


def test_a_lecture_is_made_again_and_nothing_else_is_replaced(clone):
    for _ in range(2):
        assert phyldm("lecture", "talk", "--run", "run")[0] == 0
    (clone / "mine").mkdir()
    assert phyldm("lecture", "mine", "--run", "run")[0] == 0  # an empty folder is nobody's
    (clone / "thesis").mkdir()
    (clone / "thesis" / "chapter.tex").touch()
    (clone / "file").touch()
    for name in ("thesis", "file"):
        assert f"{name} holds something else than a lecture" in refusal("lecture", name, "--run", "run")
    assert [path.name for path in (clone / "thesis").iterdir()] == ["chapter.tex"]


def test_a_lecture_is_whole_or_absent(clone, monkeypatch):
    monkeypatch.setattr(lecture, "slides", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        phyldm("lecture", "talk", "--run", "run")
    assert sorted(path.name for path in clone.iterdir()) == ["notebooks", "run"]


def test_without_figures_it_says_what_makes_them(clone):
    assert "no figures in elsewhere: run phyldm reproduce first" in refusal("lecture", "talk", "--run", "elsewhere")


def test_the_clone_s_syllabus_follows_a_published_run(clone):
    page = clone / "notebooks" / "SYLLABUS.md"
    page.write_text("Before\n<!-- chapters: phyldm reproduce --publish -->\nold\n<!-- end of chapters -->\nAfter\n")
    lecture.refresh_syllabus(clone / "notebooks", clone / "run")
    text = page.read_text(encoding="utf-8")
    assert "| [01 · On tissue](01_tissue.ipynb) | null CSF and see $T_1$ | 6 min 12 s | 12 s |" in text
    assert text.startswith("Before\n<!--") and text.endswith("-->\nAfter\n") and "old" not in text
    lecture.refresh_syllabus(clone / "notebooks", clone / "run")
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_every_chapter_says_its_question_and_its_goals_and_is_cleared(path):
    chapter = lecture.read_chapter(path)
    assert chapter.title.startswith(path.stem[:2]) and chapter.question.endswith("?") and len(chapter.goals) > 20
    assert b"<details>" not in lecture.to_fill_in(chapter.book)


@pytest.mark.slow
def test_slides_turn_by_keyboard_in_a_browser_without_a_network(browser, tmp_path):
    assert phyldm("lecture", tmp_path / "talk")[0] == 0
    context, asked = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True), []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    for path in sorted((tmp_path / "talk" / "slides").glob("*.html")):
        page.goto(path.as_uri())
        n = page.locator("section").count()
        for key, place in (("ArrowRight", 2), ("PageDown", 3), ("PageUp", 2), ("End", n), ("Home", 1)):
            page.keyboard.press(key)
            page.wait_for_function(
                f"Math.abs(document.querySelectorAll('section')[{min(place, n) - 1}].getBoundingClientRect().top) < 2"
            )
        sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().height])")
        assert all(width > 100 and 150 < height < 700 for width, height in sizes), path.name
    context.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
