"""``phyldm explore``: the explorers full-page in a browser, served by Voilà to this machine alone."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
import webbrowser
from pathlib import Path

import nbformat

from ..machine.errors import BadInput

FIRST_PORT = 8866
HOST = "127.0.0.1"
THIS_MACHINE_ONLY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data: ws://127.0.0.1:{port}"
"""What a page may load: Voilà's template asks a server elsewhere for icons, which a browser must not do for us."""

PAGES = {
    "contrasts": """\
from phyldm_core.explorers.contrasts import ContrastExplorer
from phyldm_core.explorers.people import find_subjects, weights_of
ContrastExplorer(find_subjects({run!r}), weights_dir=weights_of({run!r}))""",
    "histograms": """\
from phyldm_core.explorers.histograms import HistogramExplorer
from phyldm_core.explorers.people import find_populations
HistogramExplorer(find_populations({run!r}), "figures")""",
    "latents": """\
from phyldm_core.explorers.latents import LatentExplorer
LatentExplorer({run!r})""",
}
"""What each page runs; the chapters show the same explorers."""


def write_pages(folder: Path, run_dir: Path):
    """One notebook a page, each with links to all pages; files are saved where the command was given."""
    links = " · ".join(f"[{name}]({name}.ipynb)" for name in PAGES)
    for name, source in PAGES.items():
        code = f"import os\nos.chdir({str(Path.cwd())!r})\n" + source.format(run=str(run_dir))
        cells = [nbformat.v4.new_markdown_cell(links), nbformat.v4.new_code_cell(code)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"{name}.ipynb")


def free_port(asked: int | None = None) -> int:
    """The port asked for, or the first free one from :data:`FIRST_PORT` on.

    Raises
    ------
    BadInput
        The port asked for is taken or not to be had.
    """
    for port in [asked] if asked else range(FIRST_PORT, FIRST_PORT + 50):
        try:
            with socket.socket() as probe:
                probe.bind((HOST, port))
            return port
        except OSError as error:
            why = error.strerror
        except OverflowError:
            why = "there are 65535"
    of = f"port {asked}" if asked else f"every port from {FIRST_PORT} to {port}"
    raise BadInput(f"{of} cannot be used ({why}): choose another with --port")


def serve(page: str, run_dir: Path, port: int | None = None, browser: bool = True):
    """Serve the pages until interrupted.

    Parameters
    ----------
    page
        Which of :data:`PAGES` to open.
    run_dir
        Whose people and model to show; where nothing is there, a simulated person is made.

    Raises
    ------
    BadInput
        There is no such page, or the port is taken.
    """
    if page not in PAGES:
        raise BadInput(f"there is no explorer {page!r}: choose one of {', '.join(PAGES)}")
    port = free_port(port)
    from voila.app import Voila

    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, whichever others the user has
    with tempfile.TemporaryDirectory() as folder:
        write_pages(Path(folder), run_dir.resolve())
        url = f"http://{HOST}:{port}/voila/render/{page}.ipynb"
        print(f"phyldm: explorers at {url} (stop with Ctrl-C)", flush=True)
        if browser:
            threading.Thread(target=_open_when_up, args=(url, port), daemon=True).start()
        quiet = ["--no-browser", "--Voila.log_level=ERROR", "--VoilaConfiguration.show_tracebacks=True"]
        Voila.launch_instance(
            [folder, f"--port={port}", f"--Voila.ip={HOST}", "--Voila.port_retries=0", *quiet],
            tornado_settings={"headers": {"Content-Security-Policy": THIS_MACHINE_ONLY.format(port=port)}},
        )


def _open_when_up(url: str, port: int):
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                webbrowser.open(url)
                return
        time.sleep(0.2)
