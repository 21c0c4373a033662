"""``phyldm reproduce --publish``: what a run has made takes the place of what the clone shows.

A run writes into its own folder only. Publishing is the one step that changes files which git tracks: figures and the
page that explores go to ``figures/``, outputs of the executed chapters into ``notebooks/``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import nbformat
import papermill

from ..machine.carried import CARRIED
from ..machine.errors import BadInput
from ..machine.files import write_atomically
from .lecture import refresh_syllabus
from .report import EXPLORE, check_figures_page, read, read_notebook, write_figures_page

TOLD = ("profile", "anatomies", "seed")  # parameters that a chapter declares, and must have been run with
ENDINGS = (".png", ".json")  # what is published of a figure


def check_publishable(notebooks: Iterable[Path], parameters: dict, notebooks_dir: Path):
    """Refuse, before anything runs, what would not be a page of this clone.

    Raises
    ------
    BadInput
        There is no clone, its ``figures/README.md`` is somebody's own, or a chapter would say other parameters than
        those it was run with.
    """
    if notebooks_dir.is_relative_to(CARRIED):
        raise BadInput("--publish changes figures/ and notebooks/ of a clone, and this phyldm_core was installed: "
                       "run it in a clone, or leave --publish out")  # fmt: skip
    check_figures_page(notebooks_dir.parent / "figures")
    for notebook in notebooks:
        declared = papermill.inspect_notebook(notebook)
        for name in TOLD:
            default = ast.literal_eval(declared[name]["default"])
            if parameters[name] != default:
                raise BadInput(
                    f"--publish keeps chapters as they are written, and {notebook.name} says {name} = {default!r}, not "
                    f"{parameters[name]!r}: leave --publish out"
                )


def publish_run(run_dir: Path, figures_dir: Path, notebooks: Iterable[Path], notebooks_dir: Path) -> list[Path]:
    """Put figures of the chapters that ran, the page and the outputs of these chapters into the clone.

    The pages that list them follow: of figures, and of chapters with their times (:mod:`lecture`).

    Raises
    ------
    BadInput
        A chapter has been changed since it ran; nothing is published then.
    """
    ran = {path: read(path, read_notebook) for path in notebooks}
    for path, chapter in ran.items():
        take_outputs(chapter, read(run_dir / "notebooks" / path.name, read_notebook), path.name)
    folder, source = notebooks_dir.parent / "figures", "\n".join(c.source for book in ran.values() for c in book.cells)
    made = [p for p in sorted(figures_dir.glob("fig[0-9][0-9]_*.*")) if p.suffix in ENDINGS and f'"{p.stem}"' in source]
    made += [figures_dir / EXPLORE] if (figures_dir / EXPLORE).exists() else []
    if folder.resolve() != figures_dir.resolve():
        for path in made:
            write_atomically(folder / path.name, path.read_bytes())
    for path, chapter in ran.items():
        write_atomically(path, (nbformat.writes(chapter) + "\n").encode())
    pages = [write_figures_page(folder, notebooks_dir), refresh_syllabus(notebooks_dir, run_dir)]
    return [*(folder / path.name for path in made), *ran, *filter(None, pages)]


def take_outputs(chapter: nbformat.NotebookNode, executed: nbformat.NotebookNode, name: str):
    """Give a chapter the outputs of its run, counted 1 to n: the cell of injected parameters is not one of its own."""
    done = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in done] != [cell.source for cell in chapter.cells]:
        raise BadInput(f"{name} was changed while it ran: run it again with --publish")
    code = [pair for pair in zip(chapter.cells, done, strict=True) if pair[0].cell_type == "code"]
    for count, (cell, ran) in enumerate(code, 1):
        cell.outputs, cell.execution_count = ran.outputs, count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
