"""``phyldm lecture``: chapters to fill in, slides of their figures, and a syllabus with the times a run took.

Slides are one HTML file a chapter, complete in itself: nothing is asked of a network, neither pictures nor scripts.
"""

from __future__ import annotations

import base64
import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat

from ..machine.carried import CARRIED, carried
from ..machine.errors import BadInput
from ..machine.files import read_json, to_json, whole_folder, write_atomically
from .report import captions, duration, number, read, read_notebook, write_html

MARK = "lecture.json"  # in a folder that this command has made, and may replace
TIMES = "times.json"  # in a run: seconds of each chapter
SOLUTION = re.compile(r"\n*<details>\s*<summary>\s*Solution.*?</details>", re.DOTALL)
PREDICT = re.compile(r"\*\*Predict.*?(?=\n\s*\n|\Z)", re.DOTALL)  # the paragraph that asks
FIGURE_NAMED = re.compile(r'"(fig\d\d_\w+)"')
CHAPTERS_TABLE = re.compile(
    r"(?<=<!-- chapters: phyldm reproduce --publish -->\n).*?(?=<!-- end of chapters -->)", re.DOTALL
)


@dataclass(frozen=True)
class Chapter:
    """What its notebook says of itself, as Markdown in one line each; "" where it does not say."""

    path: Path
    book: nbformat.NotebookNode
    title: str
    question: str
    goals: str


def read_chapter(path: Path) -> Chapter:
    """Title, question and learning goals are the first cell's: its heading, ``**Question.**`` and ``**You will**``."""
    book = read(path, read_notebook)
    first = next((cell.source for cell in book.cells if cell.cell_type == "markdown"), "")

    def said(pattern: str) -> str:
        found = re.search(pattern, first, re.DOTALL | re.MULTILINE)
        return " ".join(found[1].split()) if found else ""

    title = said(r"^# (.*?)$") or path.stem.replace("_", " ")
    return Chapter(path, book, title, said(r"\*\*Question\.\*\* (.*?)(?:\n\n|\Z)"),
                   said(r"\*\*You will\*\* (.*?)(?:\*CPU|\n\n|\Z)").rstrip(" ."))  # fmt: skip


def make_lecture(out: Path, run_dir: Path, notebooks_dir: Path | None = None) -> Path:
    """Write the lecture, whole or not at all.

    Parameters
    ----------
    out
        ``SYLLABUS.html``, ``chapters/*.ipynb`` without outputs and solutions, ``slides/*.html``.
    run_dir
        A run, whose figures are shown and whose times are told. Where it has none, figures are those of the clone.

    Returns
    -------
        The syllabus.

    Raises
    ------
    BadInput
        ``out`` is somebody's own, or there are no figures.
    """
    out, run_dir = Path(out), Path(run_dir)
    notebooks_dir = Path(notebooks_dir or carried("notebooks"))
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} holds something else than a lecture and stays as it is: choose another folder")
    chapters = [read_chapter(path) for path in sorted(notebooks_dir.glob("[0-9][0-9]_*.ipynb"))]
    figures = find_figures(run_dir, notebooks_dir)
    with whole_folder(out) as part:
        for chapter in chapters:
            write_atomically(part / "chapters" / chapter.path.name, to_fill_in(chapter.book))
            write_atomically(part / "slides" / f"{chapter.path.stem}.html", slides(chapter, figures).encode())
        write_syllabus_page(part / "SYLLABUS.html", chapters, read_times(run_dir))
        write_atomically(part / MARK, to_json({"made_by": "phyldm lecture", "chapters": len(chapters)}))
    return out / "SYLLABUS.html"


def find_figures(run_dir: Path, notebooks_dir: Path) -> dict[str, Path]:
    """Name → picture: a run's, or the clone's where the run has none.

    Raises
    ------
    BadInput
        Neither has any.
    """
    places = [run_dir / "figures"] + ([] if CARRIED.is_dir() else [notebooks_dir.parent / "figures"])
    for folder in places:
        if found := {path.stem: path for path in sorted(folder.glob("fig[0-9][0-9]_*.png"))}:
            return found
    raise BadInput(f"no figures in {run_dir}: run phyldm reproduce first, or name another run with --run")


# --- the chapters -------------------------------------------------------------------------------------------------


def to_fill_in(book: nbformat.NotebookNode) -> bytes:
    """A chapter without outputs and without the solutions of its exercises."""
    book = copy.deepcopy(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = SOLUTION.sub("", cell.source)
    book.cells = [cell for cell in book.cells if cell.source.strip()]
    return (nbformat.writes(book) + "\n").encode()


# --- the slides ---------------------------------------------------------------------------------------------------

SLIDE_STYLE = """
:root { color-scheme: light; } * { box-sizing: border-box; }
html { scroll-snap-type: y mandatory; } body { margin: 0; background: #fff; color: #1b1e22;
  font: clamp(16px, 2.6vh, 30px)/1.4 "DejaVu Sans", Verdana, system-ui, sans-serif; }
section { height: 100vh; padding: 4vh 4vw 5vh; scroll-snap-align: start; position: relative; overflow: hidden;
  display: flex; flex-direction: column; justify-content: center; break-after: page; }
h1 { font-size: 1.8em; line-height: 1.2; margin: 0 0 .6em; } p { margin: 0 0 .7em; max-width: 50em; }
.ask { font-size: 1.3em; } figure { margin: 0; min-height: 0; display: flex; flex-direction: column; height: 100%; }
figure img { min-height: 0; flex: 1; width: 100%; object-fit: contain; }
figcaption { font-size: .62em; margin-top: 1vh; }
.place { position: absolute; right: 2vw; bottom: 1.2vh; font-size: .6em; color: #565e68; }
@page { size: 297mm 167mm; margin: 0; }
"""
TURNS = """
const all = [...document.querySelectorAll("section")];
const here = () => all.findIndex(each => each.getBoundingClientRect().bottom > innerHeight / 2);
const go = n => all[Math.max(0, Math.min(all.length - 1, n))].scrollIntoView();
const steps = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key in steps) go(here() + steps[event.key]);
  else if (event.key === "Home") go(0);
  else if (event.key === "End") go(all.length - 1);
  else return;
  event.preventDefault();
});
"""
NOWHERE = "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'"


def slides(chapter: Chapter, figures: Mapping[str, Path]) -> str:
    """A chapter's title and goals, then in its own order the questions to predict and the figures that answer."""
    goals = f"<p>You will {in_html(chapter.goals)}.</p>" if chapter.goals else ""
    parts = [f"<h1>{in_html(chapter.title)}</h1><p class='ask'>{in_html(chapter.question)}</p>{goals}"]
    shown = set()
    for cell in chapter.book.cells:
        if cell.cell_type == "markdown":
            asked = PREDICT.findall(SOLUTION.sub("", cell.source).partition("## Exercises")[0])
            parts += [f"<p class='ask'>{in_html(question)}</p>" for question in asked]
            continue
        for name in FIGURE_NAMED.findall(cell.source):
            if name in figures and name not in shown:
                shown.add(name)
                parts.append(figure_slide(figures[name]))
    place = "<p class='place'>{} · {} of {}</p>".format
    sections = "\n".join(
        f"<section>{part}{place(escape(chapter.path.stem[:2]), n, len(parts))}</section>"
        for n, part in enumerate(parts, 1)
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{NOWHERE}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(chapter.title)}</title>
<style>{SLIDE_STYLE}</style>
<main>
{sections}
</main>
<script>{TURNS}</script>
</html>
"""


def figure_slide(path: Path) -> str:
    """A figure, embedded, with its caption beneath."""
    text, data = captions(path), base64.b64encode(path.read_bytes()).decode()
    caption, alt = (escape(text.get(key, path.stem)) for key in ("caption", "alt"))
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">'
        f"<figcaption><b>Figure {number(path)}.</b> {caption}</figcaption></figure>"
    )


def in_html(markdown: str) -> str:
    """One paragraph of Markdown; links lose their targets, which a slide does not have."""
    from nbconvert.filters.markdown import markdown2html  # a second, which no other command waits for

    plain = re.sub(r"\$([^$]+)\$", lambda found: formula(found[1]), markdown)
    made = markdown2html(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)).strip()
    return made.removeprefix("<p>").removesuffix("</p>")


def formula(tex: str) -> str:
    """A short formula without a typesetter, who would come over the network: indices, powers, names of functions."""
    for mark, tag in (("_", "sub"), ("^", "sup")):
        tex = re.sub(rf"\{mark}(?:\{{([^}}]*)\}}|(\w))", rf"<{tag}>\1\2</{tag}>", tex)
    return re.sub(r"\\([a-zA-Z]+)", r"\1", tex)


# --- the syllabus -------------------------------------------------------------------------------------------------


def record_time(run_dir: Path, name: str, seconds: float):
    """Keep how long a chapter took, and the longest that it ever took in this run, which is when it trained."""
    path = run_dir / TIMES
    told = read_json(path) if path.exists() else {}
    told = told if told.get("cores") == os.cpu_count() else {"cores": os.cpu_count(), "chapters": {}}
    longest = max(seconds, told["chapters"].get(name, {}).get("longest", 0.0))
    told["chapters"][name] = {"longest": round(longest, 1), "last": round(seconds, 1)}
    write_atomically(path, to_json(told))


def read_times(run_dir: Path) -> dict:
    """What :func:`record_time` kept, ``{"cores": …, "chapters": {name: {"longest": s, "last": s}}}``; {} without."""
    path = Path(run_dir) / TIMES
    return read_json(path) if path.exists() else {}


def times_of(chapter: Chapter, times: dict) -> tuple[str, str]:
    """The longest and the last time of a chapter in words."""
    told = times.get("chapters", {}).get(chapter.path.name)
    return tuple(duration(told[key]) for key in ("longest", "last")) if told else ("not yet run", "not yet run")


def write_syllabus_page(path: Path, chapters: list[Chapter], times: dict):
    """Write ``SYLLABUS.html``: a row a chapter, with links to the notebook and the slides."""
    heads = ("chapter", "slides", "question", "you will", "first run", "run again")
    rows = []
    for each in chapters:
        name, (longest, last) = each.path.name, times_of(each, times)
        chapter = f'<a href="chapters/{name}">{in_html(each.title)}</a>'
        link = f'<a href="slides/{each.path.stem}.html">slides</a>'
        cells = (chapter, link, in_html(each.question), in_html(each.goals), longest, last)
        rows.append(f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>")
    took = "No run has been timed yet: phyldm reproduce does."
    if times:
        took = f"Times were taken on {times['cores']} cores; the first run of a chapter has its training, too."
    body = f"""<p>Chapters come without outputs and without solutions. Slides open in any browser, without a network:
arrow keys, Page Up and Page Down turn them. {took}</p>
<div class="table"><table><thead><tr>{"".join(f'<th scope="col">{head}' for head in heads)}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
"""
    write_html(path, "Syllabus", "Physics-informed latent diffusion for brain MRI", body)


def chapters_table(chapters: list[Chapter], times: dict) -> str:
    """The table of ``notebooks/SYLLABUS.md``."""
    took = f"Measured on {times['cores']} cores by `phyldm reproduce`." if times else "Not yet measured."
    rows = []
    for each in chapters:
        cells = (f"[{each.title}]({each.path.name})", each.goals.replace("|", "\\|"), *times_of(each, times))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([
        "", "| chapter | you will | first run | run again |", "|---|---|---|---|", *rows, "",
        f"Times are those of the computer, the first with training. {took}", "", "",
    ])  # fmt: skip


def refresh_syllabus(notebooks_dir: Path, run_dir: Path) -> Path | None:
    """Bring the table of a clone's ``SYLLABUS.md`` up to date; None where there is no such page."""
    path = notebooks_dir / "SYLLABUS.md"
    if not path.exists():
        return None
    chapters = [read_chapter(book) for book in sorted(notebooks_dir.glob("[0-9][0-9]_*.ipynb"))]
    table = chapters_table(chapters, read_times(run_dir))
    write_atomically(path, CHAPTERS_TABLE.sub(lambda found: table, path.read_text(encoding="utf-8")).encode())
    return path
