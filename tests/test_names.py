"""One name, one meaning: no public name is defined in two files of the package."""

from __future__ import annotations

import ast
from pathlib import Path

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
