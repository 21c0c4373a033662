"""``phyldm explore`` as far as it goes without a browser."""

from __future__ import annotations

import ast
import importlib
import socket
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from phyldm_core.cli import app
from phyldm_core.explorers import serve
from phyldm_core.machine.errors import BadInput


def refused(*arguments) -> str:
    done = CliRunner().invoke(app, ["explore", *map(str, arguments)])
    assert done.exit_code == 1
    assert done.stderr.startswith("phyldm: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_a_port_that_is_taken_is_told_in_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} cannot be used" in refused("--port", port)
        assert "choose another with --port" in refused("--port", port)


def test_without_a_port_the_first_free_one_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(serve, "FIRST_PORT", taken.getsockname()[1])
        assert serve.free_port() > serve.FIRST_PORT


def test_no_port_beyond_the_last():
    with pytest.raises(BadInput, match="port 70000 cannot be used"):
        serve.free_port(70000)


def test_an_explorer_nobody_knows_is_told_with_those_there_are():
    assert "no explorer 'noises': choose one of contrasts, histograms, latents" in refused("noises")


def test_a_run_that_is_not_there(tmp_path):
    assert "no such run: make one with phyldm reproduce" in refused("--run", tmp_path / "nowhere")


def test_every_page_is_a_notebook_that_links_to_all_and_names_the_run(tmp_path):
    serve.write_pages(tmp_path, Path("/data/it's a run"))
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(serve.PAGES)
    for name in serve.PAGES:
        links, code = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4).cells
        assert all(f"]({other}.ipynb)" in links.source for other in serve.PAGES)
        ast.parse(code.source)
        assert "it's a run" in code.source


@pytest.mark.parametrize("page", serve.PAGES)
def test_what_a_page_imports_is_there(page):
    for node in ast.parse(serve.PAGES[page].format(run="a run")).body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
