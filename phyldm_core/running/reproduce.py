"""Run the notebooks in order, stop at the first that fails, and say where everything is.

A notebook is its own program: it knows what it needs, what it can reuse and what it writes. This file
gives it folders, a profile and a seed, watches it, and keeps what it leaves behind.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color
from tqdm import tqdm

from ..figures.style import PDF
from ..machine.carried import carried
from ..machine.errors import BadInput
from ..people.anatomy import Folders, as_folders, find_anatomies
from ..people.scanned import scan_cohort
from .lecture import record_time
from .outcomes import finish, prepare_all
from .profiles import find_profile
from .publish import check_publishable, publish_run
from .report import check_figures_page, duration, write_figures_page, write_report
from .without_truth import WithoutTruth

logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is said once, by us

NOTEBOOKS = carried("notebooks")
ON_REQUEST = 10
"""From this number on, notebooks run when asked for (``--only``, ``--from``): they would not fit the half hour."""
SPACE_NEEDED = 2 * 2**30  # bytes; a laptop run with its cohort, weights and notebooks needs less


def reproduce(
    profile: str = "laptop",
    *,
    anatomies: Folders = None,
    only: int | None = None,
    start: int | None = None,
    run_dir: Path | None = None,
    figures_dir: Path | None = None,
    seed: int = 7,
    pdf: bool = False,
    publish: bool = False,
    data: Path | None = None,
    notebooks_dir: Path = NOTEBOOKS,
    make_page: Callable[[Path, Path], Path] | None = None,
) -> Path:
    """Run the notebooks and write the report.

    Parameters
    ----------
    profile
        One of :data:`profiles.PROFILES`.
    anatomies
        Folder of label maps or several; None for the MNI152 template that nilearn ships.
    only, start
        Number of the one notebook to run, or of the first.
    run_dir
        Where the run is kept; None for ``runs/<profile>`` where the user stands (``runs/<profile>-scans`` of ``data``).
    figures_dir
        Where figures go; None for ``figures/`` inside the run, so that a clone stays as it was.
    seed
        Given to every notebook.
    pdf
        Every figure also as a PDF.
    publish
        Then figures and executed chapters also go to the clone (:mod:`publish`).
    data
        BIDS dataset of people who were scanned, in place of simulated ones (:mod:`without_truth`). They are prepared
        in ``<run_dir>/prepared``, as ``phyldm train`` does; what is there is kept.
    notebooks_dir
        Where the notebooks are.
    make_page
        Makes ``explore.html`` of the run's folder in that of the figures, after the notebooks (:mod:`explorers.page`).

    Returns
    -------
        The report, ``<run_dir>/report.html``.

    Raises
    ------
    BadInput
        In one sentence, before anything runs where that is possible; also when a notebook fails.
    """
    like = find_profile(profile).cohort
    run_dir = Path(run_dir or Path("runs") / (f"{profile}-scans" if data else profile)).resolve()
    figures_dir = Path(figures_dir or run_dir / "figures").resolve()
    notebooks = choose(find_notebooks(notebooks_dir), only, start)
    folders = [seen_from(notebooks_dir, folder) for folder in as_folders(anatomies)]
    parameters = {
        "profile": profile,
        "run_dir": seen_from(notebooks_dir, run_dir),
        "figures_dir": seen_from(notebooks_dir, figures_dir),
        "anatomies": folders[0] if len(folders) == 1 else folders or "",
        "seed": seed,
    }
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    if publish and data:
        raise BadInput("--publish shows simulated people, whose truth is known: leave it out with --data")
    if publish:
        check_publishable(notebooks, parameters, Path(notebooks_dir))
    find_anatomies(anatomies)  # folders without label maps are refused before half an hour has gone by
    check_writable(run_dir, "--out")
    check_writable(figures_dir, "--figures")
    check_figures_page(figures_dir)
    check_space(run_dir)

    began, outcomes = time.monotonic(), []
    if data:
        mask = None if like.head else "template"
        outcomes = prepare_all(data, run_dir / "prepared", like.voxel_mm, 1, mask)
        scan_cohort(run_dir / "prepared", outcomes, like, run_dir / "cohort", data=data, mask=mask, seed=seed)
    for notebook in notebooks:
        executed = run_notebook(notebook, parameters, run_dir / "notebooks", pdf, scanned=data is not None)
        record_time(run_dir, notebook.name, executed.metadata.papermill.duration)
    page = make_page(run_dir, figures_dir) if make_page else None
    report = write_report(run_dir, figures_dir)
    write_figures_page(figures_dir, notebooks_dir)

    print(f"\nDone in {duration(time.monotonic() - began)}.")
    print(f"  report     {os.path.relpath(report)}")
    if page:
        print(f"  page       {os.path.relpath(page)}")
    print(f"  figures    {os.path.relpath(figures_dir)}")
    print(f"  numbers    {os.path.relpath(run_dir / 'metrics')}")
    print(f"  notebooks  {os.path.relpath(run_dir / 'notebooks')}")
    if publish:
        shown = publish_run(run_dir, figures_dir, notebooks, Path(notebooks_dir))
        print(f"  published  {len(shown)} files in {os.path.relpath(Path(notebooks_dir).parent)}: see git status")
    if data:
        finish(outcomes, run_dir / "prepared")
    return report


def run_notebook(
    notebook: Path, parameters: dict, folder: Path, pdf: bool = False, scanned: bool = False
) -> nbformat.NotebookNode:
    """Execute one notebook in a fresh kernel of this interpreter; its own folder is the working folder.

    ``scanned``: its people are, so that cells which need their truth say so and the others run.

    ``<folder>/<stem>.ipynb`` appears when it has succeeded. Until then, and if it fails, what has run
    so far is ``<stem>.partial.ipynb``; what it printed is ``<stem>.log``.

    Raises
    ------
    BadInput
        Naming notebook, cell and error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial, log_path = folder / f"{notebook.stem}.partial.ipynb", folder / f"{notebook.stem}.log"
    title = notebook.stem.replace("_", " ", 1)
    kept = f"the notebook so far is {os.path.relpath(partial)}, its log {os.path.relpath(log_path)}"
    n_cells = len(nbformat.read(notebook, as_version=4).cells)
    began = time.monotonic()
    log_path.unlink(missing_ok=True)  # and append, because the kernel writes there, too
    with open(log_path, "a", encoding="utf-8") as log, Watch(title, n_cells, log, scanned) as watch:
        try:
            executed = papermill.execute_notebook(
                notebook,
                partial,
                parameters,
                kernel_name="python3",
                language="python",
                cwd=notebook.parent,
                progress_bar=False,  # papermill's own bar cannot show what the notebook prints
                stdout_file=watch,
                stderr_file=watch,
                on_cell_start=watch.on_cell_start,
                on_cell_executed=watch.on_cell_executed,
                kernel_manager_class=this_interpreter(log, pdf),
                coalesce_streams=True,  # of a progress bar, keep the last state only
            )
        except KeyboardInterrupt:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of a cell that nobody waits for any more
            raise
        except PapermillExecutionError as error:
            log.write(strip_color("\n".join(error.traceback)) + "\n")
            said = f"{error.ename}: {error.evalue}".splitlines()[0]
            cell = watch.numbers[error.cell_index]
            raise BadInput(f"notebook {notebook.stem} stopped in cell {cell} ({said}); {kept}") from None
        except DeadKernelError:
            raise BadInput(
                f"notebook {notebook.stem} stopped in cell {watch.numbers[-1]}: its process was ended from outside, "
                f"most often for lack of memory (close other programs and run again, finished work is reused); {kept}"
            ) from None
    for path in ("input_path", "output_path"):  # absolute, so true on this machine only
        del executed.metadata.papermill[path]
    watch.without.restore(executed.cells)
    nbformat.write(executed, partial)
    os.replace(partial, folder / notebook.name)
    untold = f"; {watch.without.n_cells} cells need the truth and say so" if watch.without.n_cells else ""
    print(f"{title} … {duration(time.monotonic() - began)}{untold}", flush=True)
    return executed


class Watch:
    """Listens to a running notebook: all it prints goes to the log, its last line beside a bar over its cells."""

    def __init__(self, title: str, n_cells: int, log, scanned: bool = False):
        self.log, self.scanned, self.without = log, scanned, WithoutTruth()
        self.numbers: list[int] = []  # of the cells as started: their place in the notebook as it is kept, from 1
        self.bar = tqdm(
            bar_format="{desc} |{bar:20}| cell {n_fmt}/{total_fmt} [{elapsed}]{postfix}",
            desc=title,
            total=n_cells,
            disable=None,  # in a log file, the closing line is enough
            dynamic_ncols=True,
            leave=False,
        )

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_):
        self.bar.close()

    def on_cell_start(self, cell, cell_index):
        previous = self.numbers[-1] if self.numbers else 0
        self.numbers.append(previous + ("injected-parameters" not in cell.metadata.get("tags", [])))
        self.bar.n = self.numbers[-1]
        self.bar.refresh()
        if self.scanned:
            self.without.before(cell, cell_index)

    def on_cell_executed(self, cell, cell_index, execute_reply):
        if self.scanned:
            self.without.after(cell)

    def write(self, text: str):
        self.log.write(text)
        lines = text.replace("\r", "\n").split("\n")
        self.bar.set_postfix_str(next((line.strip() for line in reversed(lines) if line.strip()), ""))

    def flush(self):
        self.log.flush()


def this_interpreter(log, pdf: bool) -> type[AsyncKernelManager]:
    """Starts the kernel in the interpreter that runs us, whichever kernels the user has registered.

    What the kernel says outside of any cell, a crash for instance, goes to ``log``, not to the terminal.
    """

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            quiet = "--IPKernelApp.log_level=ERROR"  # else it warns of talking over the loopback address
            return KernelSpec(**get_kernel_dict([quiet]), env={PDF: "1"} if pdf else {})

        async def start_kernel(self, **settings):
            return await super().start_kernel(stderr=log, **settings)

    return ThisInterpreter


def find_notebooks(folder: Path) -> list[Path]:
    """The numbered notebooks, in order."""
    found = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise BadInput(f"no notebooks in {os.path.relpath(folder)}: install phyldm_core again, they come with it")
    return found


def choose(notebooks: list[Path], only: int | None, start: int | None) -> list[Path]:
    """Those that ``--only`` or ``--from`` name; without either, all below :data:`ON_REQUEST`."""
    if only is not None and start is not None:
        raise BadInput("--only and --from contradict each other: give one of them")
    numbers = {int(path.name[:2]): path for path in notebooks}
    asked = only if start is None else start
    if asked is not None and asked not in numbers:
        raise BadInput(f"no notebook {asked}: there are {', '.join(str(n) for n in numbers)}")
    if asked is None:
        return [path for n, path in numbers.items() if n < ON_REQUEST]
    return [path for n, path in numbers.items() if n == only or (start is not None and n >= start)]


def check_parameters(notebook: Path, parameters: dict):
    """Refuse a notebook that does not declare what we are about to set: papermill would only log it."""
    declared = papermill.inspect_notebook(notebook)
    missing = [name for name in parameters if name not in declared]
    if missing:
        raise BadInput(f"{notebook.name} has no {', '.join(missing)} in a cell tagged `parameters`: add it there")


def check_writable(folder: Path, option: str):
    """Make the folder and try to write in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        where, reason = os.path.relpath(folder), error.strerror.lower()
        raise BadInput(f"cannot write in {where} ({reason}): choose another folder with {option}") from None


def check_space(folder: Path):
    """Refuse a disk that would fill up on the way."""
    free = shutil.disk_usage(folder).free
    if free < SPACE_NEEDED:
        raise BadInput(
            f"only {free / 2**30:.1f} GiB are free where {os.path.relpath(folder)} is, and {SPACE_NEEDED / 2**30:.0f} "
            "are needed: make room or choose another disk with --out"
        )


def seen_from(notebooks_dir: Path, path: Path) -> str:
    """``path`` as a notebook should be given it: relative inside the repository, absolute elsewhere."""
    path, folder = Path(path).resolve(), Path(notebooks_dir).resolve()
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(folder.parent) else str(path)
