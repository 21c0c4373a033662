"""One name, one meaning: no public name is defined in two files of the package, and chapters name what is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "phyldm_core"


def defined(tree: ast.Module) -> dict[str, int]:
    """Public functions, classes and constants at the top of a file, each with its line. An import defines nothing."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        else:
            continue
        found |= {name: node.lineno for name in names if not name.startswith("_")}
    return found


def twins(files: dict[str, str]) -> dict[str, list[str]]:
    """Name → "file:line" of each definition, of names that more than one of ``files`` (name → source) defines."""
    places: dict[str, list[str]] = {}
    for file, source in files.items():
        for name, line in defined(ast.parse(source)).items():
            places.setdefault(name, []).append(f"{file}:{line}")
    return {name: where for name, where in places.items() if len(where) > 1}


def test_every_public_name_stands_in_one_file():
    files = {str(p.relative_to(PACKAGE.parent)): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
    found = [f"{name}: {', '.join(where)}" for name, where in twins(files).items()]
    assert not found, "one name, one meaning; rename or import one of them:\n" + "\n".join(found)


def test_twins_are_found_and_imports_are_none():
    files = {
        "a.py": "LOW, HIGH = 1, 2\ndef f(): pass\n_own = 0\nn: int = 3",
        "b.py": "from a import f\nHIGH = 3\n_own = 1\ndef n(): pass",
    }
    assert twins(files) == {"HIGH": ["a.py:1", "b.py:2"], "n": ["a.py:4", "b.py:4"]}


@pytest.mark.parametrize("chapter", sorted((PACKAGE.parent / "notebooks" / "text").glob("*.py")), ids=lambda p: p.stem)
def test_what_a_chapter_names_is_there(chapter):
    """Told without running it: each name it imports, and each that it reads from a module, also in its solutions."""
    text, missing, modules = chapter.read_text(encoding="utf-8"), [], {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == PACKAGE.name:
            for name in (alias.name for alias in node.names):
                try:
                    modules[name] = importlib.import_module(f"{node.module}.{name}")
                except ModuleNotFoundError:
                    found = hasattr(importlib.import_module(node.module), name)
                    missing += [] if found else [f"{node.module}.{name}"]
    for module, name in re.findall(rf"(?<![\w./'\"])({'|'.join(modules) or '-'})\.([a-zA-Z]\w*)", text):
        if not hasattr(modules[module], name):
            missing.append(f"{module}.{name}")
    assert not missing
