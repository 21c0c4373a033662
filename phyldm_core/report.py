"""One page, complete in itself: every figure, table and notebook of a run, to read or to send.

A figure or table ``NAME.png`` or ``NAME.csv`` may have a sidecar ``NAME.json`` beside it, with ``caption``
and, for a figure, ``alt``: what it shows to someone who cannot see it. Both are plain text.
"""

from __future__ import annotations

import base64
import json
import os
import platform
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import nbformat
import pandas

from .bids import write_atomically
from .errors import BadInput

VERSIONS = ("phyldm_core", "torch", "diffusers", "monai", "nilearn", "numpy", "scipy")
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
th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
"""


def write_report(run_dir: Path, figures_dir: Path) -> Path:
    """Gather a run into ``<run_dir>/report.html``.

    Parameters
    ----------
    run_dir
        Holds ``notebooks/*.ipynb`` as executed, and ``metrics/*.csv``.
    figures_dir
        Holds ``figNN_topic.png``.

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
    notebooks = {path: read(path, lambda p: nbformat.read(p, as_version=4)) for path in executed}
    records = [notebook.metadata.papermill for notebook in notebooks.values()]
    began = min((datetime.fromisoformat(r.start_time).timestamp() for r in records), default=0.0)

    figures = [figure(path, began) for path in sorted(figures_dir.glob("fig[0-9][0-9]_*.png"))]
    tables = [table(path) for path in sorted((run_dir / "metrics").glob("*.csv"))]
    rows = [chapter(path, notebook) for path, notebook in notebooks.items()]
    body = f"""<h2 id="figures">Figures</h2>
{"".join(figures) or "<p>No figure was made.</p>"}
<h2 id="numbers">Numbers</h2>
{"".join(tables) or "<p>No table was written.</p>"}
<h2 id="notebooks">Notebooks</h2>
<div class="table"><table><thead><tr><th scope="col">notebook<th scope="col">time</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
"""
    return write_page(run_dir / "report.html", "Physics-informed latent diffusion: a run", settings(records), body)


def write_page(path: Path, title: str, subtitle: str, body: str) -> Path:
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


def figure(path: Path, began: float) -> str:
    """A PNG, embedded, with its caption; ``began`` (s since the epoch) tells whether this run made it."""
    number, topic = path.stem[3:5].lstrip("0"), path.stem[6:].replace("_", " ")
    text = sidecar(path)
    caption = text.get("caption", topic)
    note = "" if path.stat().st_mtime >= began else " <em>(from an earlier run)</em>"
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure id="{path.stem}"><img src="data:image/png;base64,{data}" alt="{escape(text.get("alt", topic))}">'
        f"<figcaption><strong>Figure {number}.</strong> {escape(caption)}{note}</figcaption></figure>\n"
    )


def table(path: Path) -> str:
    """A CSV as a table, four digits a number."""
    frame = read(path, pandas.read_csv)
    caption = sidecar(path).get("caption", path.stem.replace("_", " "))
    if len(frame) > LONGEST_TABLE:
        caption += f" (first {LONGEST_TABLE} of {len(frame)} rows; all are in {path.name})"
    return frame_table(frame.head(LONGEST_TABLE), caption)


def frame_table(frame: pandas.DataFrame, caption: str) -> str:
    """A frame as a table, four digits a number; cells and caption are plain text."""
    html = frame.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format)
    html = html.replace("<th>", '<th scope="col">')
    return f'<div class="table">{html.replace("<thead>", f"<caption>{escape(caption)}</caption><thead>", 1)}</div>\n'


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
    heads = f"anatomies from {Path(given.anatomies).name}" if given.anatomies else "anatomy: MNI152"
    return f"Profile {given.profile}, {heads}, seed {given.seed}."


def duration(seconds: float) -> str:
    """12 s, 6 min 12 s, 1 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def sidecar(path: Path) -> dict:
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
