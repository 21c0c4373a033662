"""One page, complete in itself: every figure, table and notebook of a run, to read or to send; and one of the figures.

It opens as the paper's section of figures does, Figures 1 to 5 and Table 1 under the paper's numbers, then ours.
A figure or table ``NAME.png`` or ``NAME.csv`` may have a sidecar ``NAME.json`` beside it, with ``caption``
and, for a figure, ``alt``: what it shows to someone who cannot see it. Both are plain text.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
from collections.abc import Mapping
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas

from ..machine.errors import BadInput
from ..machine.files import write_atomically
from ..people.anatomy import as_folders
from ..slices import MODALITIES

if TYPE_CHECKING:
    import nbformat

VERSIONS = ("phyldm_core", "torch", "diffusers", "monai", "nilearn", "numpy", "scipy")
PAPER_FIGURES = ("fig01", "fig02", "fig03", "fig04", "fig05")  # the paper's own; its Table 1 is RECONSTRUCTION
RECONSTRUCTION = "vae_reconstruction.csv"
METRICS = {"mse": "MSE × 1000", "mae": "MAE (%)", "psnr": "PSNR (dB)", "ms_ssim": "MS-SSIM"}
PAGE_TITLE = "# Figures, with what they show\n"
EXPLORE = "explore.html"  # beside the figures: tissue under any protocol
STYLE_PAGE = "STYLE.md"  # beside the figures: their rules
LONGEST_TABLE = 40  # rows; a loss curve is a figure, its table stays in the CSV

STYLE = """
:root { color-scheme: light dark; --ink: #1b1e22; --quiet: #5a626c; --paper: #fcfcfa; --rule: #d9dcdf; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --quiet: #a5adb6; --paper: #16181b; --rule: #3a3f45; } }
body { margin: 0 auto; padding: 2rem 1.25rem 5rem; max-width: 60rem; background: var(--paper); color: var(--ink);
       font: 1.0625rem/1.55 Charter, "Bitstream Charter", Georgia, serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; } h2 { margin: 3rem 0 1rem; font-size: 1.35rem; }
.quiet, figcaption, caption { color: var(--quiet); } a { color: inherit; }
figure { margin: 0 0 2.5rem; } figcaption, caption { font-size: .95rem; max-width: 46rem; text-align: left; }
figure img { display: block; box-sizing: border-box; max-width: 100%; height: auto; background: #fff; padding: .75rem;
             border: 1px solid var(--rule); border-radius: 6px; margin-bottom: .6rem; }
.table { overflow-x: auto; margin-bottom: 2.5rem; } caption { padding-bottom: .5rem; }
table { border-collapse: collapse; font: .875rem/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
nav ol { columns: 2; padding-left: 1.2rem; font-size: .95rem; } nav li { break-inside: avoid; list-style: none; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
"""


def write_report(run_dir: Path, figures_dir: Path) -> Path:
    """Gather a run into ``<run_dir>/report.html``.

    Parameters
    ----------
    run_dir
        Holds ``notebooks/*.ipynb`` as executed, and ``metrics/*.csv``.
    figures_dir
        Holds ``figNN_topic.png``, and maybe :data:`EXPLORE`.

    Returns
    -------
        The report.

    Raises
    ------
    BadInput
        Where a table, notebook or sidecar cannot be read.
    """
    run_dir, figures_dir = Path(run_dir), Path(figures_dir)
    executed = [p for p in sorted((run_dir / "notebooks").glob("*.ipynb")) if not p.name.endswith(".partial.ipynb")]
    notebooks = {path: read(path, read_notebook) for path in executed}
    records = [notebook.metadata.papermill for notebook in notebooks.values()]
    began = min((datetime.fromisoformat(r.start_time).timestamp() for r in records), default=0.0)

    makers = {path: "\n".join(cell.source for cell in notebook.cells) for path, notebook in notebooks.items()}
    paths = sorted(figures_dir.glob("fig[0-9][0-9]_*.png"))
    shown = {path: figure(path, began, makers) for path in paths}
    theirs = [path for path in paths if path.stem[:5] in PAPER_FIGURES]
    missing = [f"Figure {int(n[3:])}" for n in PAPER_FIGURES if n not in {path.stem[:5] for path in theirs}]
    csvs = sorted((run_dir / "metrics").glob("*.csv"))
    table1 = [reconstruction_table(path) for path in csvs if path.name == RECONSTRUCTION]
    missing += [] if table1 else ["Table 1"]
    tables = [table(path) for path in csvs if path.name != RECONSTRUCTION]
    rows = [chapter(path, notebook) for path, notebook in notebooks.items()]
    contents = [f'<li><a href="#{path.stem}">Figure {number(path)}</a> {escape(title(path))}' for path in theirs]
    contents += ['<li><a href="#table1">Table 1</a> how well scans are explained'] if table1 else []
    ours = (path for path in paths if path not in theirs)
    contents += [f'<li><a href="#{p.stem}">Figure {number(p)}</a> {escape(title(p))}' for p in ours]
    page = figures_dir / EXPLORE
    link = f'<p><a href="{os.path.relpath(page, run_dir)}">Drag TE, TR and TI</a> and watch tissue become contrast.</p>'
    body = f"""{link if page.exists() else ""}<nav aria-label="Figures"><ol>{"".join(contents)}</ol></nav>
<h2 id="paper">Figures and table of the paper</h2>
{f'<p class="quiet">Not made in this run: {", ".join(missing)}.</p>' if missing else ""}
{"".join(shown[path] for path in theirs)}{"".join(table1)}
<h2 id="figures">Further figures</h2>
{"".join(shown[path] for path in paths if path not in theirs) or "<p>No other figure was made.</p>"}
<h2 id="numbers">Numbers</h2>
{"".join(tables) or "<p>No table was written.</p>"}
<h2 id="notebooks">Notebooks</h2>
<div class="table"><table><thead><tr><th scope="col">notebook<th scope="col">time</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
"""
    return write_html(run_dir / "report.html", "Physics-informed latent diffusion: a run", settings(records), body)


def write_html(path: Path, title: str, subtitle: str, body: str) -> Path:
    """Write a page of its own, whole or not at all; ``title`` and ``subtitle`` are plain text, ``body`` is HTML."""
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<main>
<h1>{escape(title)}</h1>
<p class="quiet">{escape(subtitle)}</p>
{body}<h2 id="versions">Versions</h2>
<p class="quiet">Python {platform.python_version()}, {", ".join(f"{name} {version(name)}" for name in VERSIONS)}</p>
</main>
</html>
"""
    write_atomically(path, page.encode())
    return path


def write_figures_page(figures_dir: Path, notebooks_dir: Path) -> Path:
    """Write ``<figures_dir>/README.md``, :func:`figures_page`, whole or not at all."""
    path = figures_dir / "README.md"
    write_atomically(path, figures_page(figures_dir, notebooks_dir).encode())
    return path


def figures_page(figures_dir: Path, notebooks_dir: Path) -> str:
    """A folder of figures as Markdown: every picture with its alternative text, its caption and the notebook behind it.

    Notebooks are linked where the figures lie in the same repository as they do.

    Raises
    ------
    BadInput
        A sidecar or notebook cannot be read.
    """
    figures_dir, notebooks_dir = Path(figures_dir).resolve(), Path(notebooks_dir).resolve()
    books = sorted(notebooks_dir.glob("[0-9][0-9]_*.ipynb"))
    sources = {path: "\n".join(cell.source for cell in read(path, read_notebook).cells) for path in books}
    further = sorted({path.parent.name for path in figures_dir.glob("*/fig[0-9][0-9]_*.png")})
    entries = []
    for path in sorted(figures_dir.glob("fig[0-9][0-9]_*.png")):
        text, name = captions(path), title(path)
        by = [book for book, source in sources.items() if f'"{path.stem}"' in source]
        if figures_dir.is_relative_to(notebooks_dir.parent):
            links = [f"[{p.stem[:2]}]({Path(os.path.relpath(p, figures_dir)).as_posix()})" for p in by]
        else:
            links = [p.stem[:2] for p in by]
        alt, caption = (in_markdown(text.get(key, name)) for key in ("alt", "caption"))
        ends = "" if caption.endswith((".", "?", "!")) else "."
        made_by = f" Notebook {', '.join(links)}." if links else ""
        entries.append(
            f"## Figure {number(path)}: {in_markdown(name)}\n\n![{alt}]({path.name})\n\n{caption}{ends}{made_by}\n"
        )
    more = f" More: {', '.join(f'[{name}]({name}/README.md)' for name in further)}." if further else ""
    more += (
        f" [{STYLE_PAGE}]({STYLE_PAGE}) says why they look as they do." if (figures_dir / STYLE_PAGE).exists() else ""
    )
    begins = f"Made by `phyldm reproduce` from the JSON beside each picture. Figures 1 to 5 are the paper's.{more}\n"
    return "\n".join([PAGE_TITLE, begins, *entries])


def check_figures_page(figures_dir: Path):
    """Refuse a folder whose README.md is somebody's own: :func:`write_figures_page` would replace it."""
    path = figures_dir / "README.md"
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(PAGE_TITLE):
        raise BadInput(f"{os.path.relpath(path)} was not made by phyldm and would be replaced: choose other --figures")


def in_markdown(text: str) -> str:
    """Plain text, in one line, that no character of it formats."""
    return re.sub(r"([\\`*_\[\]<>|$~&])", r"\\\1", " ".join(text.split()))


def read_notebook(path: Path) -> nbformat.NotebookNode:
    import nbformat  # a second and more, which every kernel and command would wait for, since a run writes tables

    return nbformat.read(path, as_version=4)


def number(path: Path) -> int:
    """3 for fig03_samples.png."""
    return int(path.stem[3:5])


def title(path: Path) -> str:
    """A figure's title in words: the first sentence of its caption; what its file is called where it has none."""
    caption = " ".join(captions(path).get("caption", "").split())
    first = re.split(r"[.;?!](?:\s|$)|\s\(", caption, maxsplit=1)[0]
    return first or path.stem[6:].replace("_", " ")


def figure(path: Path, began: float = 0.0, makers: Mapping[Path, str] = MappingProxyType({})) -> str:
    """A PNG, embedded, with its caption and the notebook that made it.

    ``began`` (s since the epoch) tells whether this run made it; ``makers`` maps notebooks to their source.
    """
    text = captions(path)
    caption, alt = (escape(text.get(key, title(path))) for key in ("caption", "alt"))
    note = "" if path.stat().st_mtime >= began else " <em>(from an earlier run)</em>"
    by = [notebook for notebook, source in makers.items() if f'"{path.stem}"' in source]
    links = ", ".join(f'<a href="notebooks/{notebook.name}">{notebook.stem[:2]}</a>' for notebook in by)
    made_by = f" Notebook {links}." if links else ""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure id="{path.stem}"><img src="data:image/png;base64,{data}" alt="{alt}">'
        f'<figcaption><a href="#{path.stem}"><strong>Figure {number(path)}.</strong></a> {caption}{note}{made_by}'
        "</figcaption></figure>\n"
    )


def reconstruction_table(path: Path) -> str:
    """Table 1: a row a contrast, a column a metric, 95 % interval over people in brackets."""
    frame = read(path, pandas.read_csv)
    lacking = {"metric", "quantity", "inputs", "value", "low", "high", "n"} - set(frame)
    if lacking:
        raise BadInput(f"{os.path.relpath(path)} has no column {min(lacking)}: remove it and run notebook 03 again")
    scale, digits = {"mse": 1000, "mae": 100}, {"mse": 2, "mae": 2, "psnr": 1, "ms_ssim": 3}

    def cell(row) -> str:
        numbers = (scale.get(row.metric, 1) * x for x in (row.value, row.low, row.high))
        return with_interval(*numbers, digits[row.metric])

    frame = frame[frame.metric.isin(METRICS)]
    frame = frame.assign(cell=[cell(row) for row in frame.itertuples()], metric=frame.metric.map(METRICS))
    frame = frame.rename(columns={"inputs": "scans", "quantity": "contrast"})
    wide = frame.pivot(index=["scans", "contrast"], columns="metric", values="cell").reindex(columns=METRICS.values())
    wide = wide.reindex(MODALITIES, level="contrast").reset_index().rename_axis(columns=None)
    caption = f"""<strong>Table 1.</strong> How well the scans are explained by the tissue inferred from them: each scan
divided by its own 99.5th percentile, inside the brain; mean and 95 % interval over n = {frame.n.max()} people."""
    html = wide.to_html(index=False, border=0, na_rep="–").replace("<th>", '<th scope="col">')
    return (
        f'<div class="table" id="table1">{html.replace("<thead>", f"<caption>{caption}</caption><thead>", 1)}</div>\n'
    )


def with_interval(value: float, low: float, high: float, digits: int = 2, unit: str = "") -> str:
    """A number as text, "3.70 (3.10–4.40)", the unit after the number; without an interval where ``low`` is NaN."""
    interval = f" ({low:.{digits}f}–{high:.{digits}f})" if pandas.notna(low) else ""
    return f"{value:.{digits}f}{unit}{interval}".replace("-", "−")


def in_percent(row, digits: int = 1) -> str:
    """A table's row (``value``, ``low``, ``high``, fractions) as "3.7 % (3.1–4.4)"."""
    return with_interval(100 * row.value, 100 * row.low, 100 * row.high, digits, " %")


def table(path: Path) -> str:
    """A CSV as a table, four digits a number."""
    frame = read(path, pandas.read_csv)
    caption = captions(path).get("caption", path.stem.replace("_", " "))
    if len(frame) > LONGEST_TABLE:
        caption += f" (first {LONGEST_TABLE} of {len(frame)} rows; all are in {path.name})"
    return frame_table(frame.head(LONGEST_TABLE), caption)


def frame_table(frame: pandas.DataFrame, caption: str) -> str:
    """A frame as a table, four digits a number; cells and caption are plain text."""
    return framed(frame.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format), escape(caption))


def framed(html: str, caption: str) -> str:
    """A table with a caption, which scrolls where it is wider than the page; both are HTML."""
    html = html.replace("<th>", '<th scope="col">').replace("<thead>", f"<caption>{caption}</caption><thead>", 1)
    return f'<div class="table">{html}</div>\n'


def chapter(path: Path, notebook: nbformat.NotebookNode) -> str:
    """A row: the notebook's title, linked, and how long it took."""
    headings = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    title = next((line.lstrip("# ") for line in headings if line.startswith("# ")), path.stem.replace("_", " "))
    took = duration(notebook.metadata.papermill.duration)
    return f'<tr><td><a href="notebooks/{path.name}">{escape(title)}</a><td>{took}</tr>\n'


def settings(records: list) -> str:
    """Profile, anatomies and seed, from what the notebooks were given."""
    if not records:
        return "No notebook has run."
    given = records[-1].parameters
    folders = ", ".join(folder.name for folder in as_folders(given.anatomies))
    heads = f"anatomies from {folders}" if folders else "anatomy: MNI152"
    return f"Profile {given.profile}, {heads}, seed {given.seed}."


def duration(seconds: float) -> str:
    """12 s, 6 min 12 s, 1 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def captions(path: Path) -> dict:
    """Caption and alternative text of a figure or table; empty where there is no sidecar."""
    beside = path.with_suffix(".json")
    return read(beside, lambda p: json.loads(p.read_text(encoding="utf-8"))) if beside.exists() else {}


def read(path: Path, reader):
    """``reader(path)``, or one sentence that names the file."""
    try:
        return reader(path)
    except ValueError as error:  # what pandas, json and nbformat raise
        reason = str(error).splitlines()[0]
        raise BadInput(f"{os.path.relpath(path)} cannot be read ({reason}): remove it and run again") from None


def write_table(table: pandas.DataFrame, path: str | Path) -> Path:
    """Write a table as CSV (six significant digits), whole or not at all; BadInput where that cannot be."""
    write_atomically(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    return Path(path)
