"""The house: folders from left to right, and every file imports from its own folder or from further left."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "phyldm_core"
ORDER = ("machine", "", "voxelwise", "scans", "people", "figures", "running", "evaluation", "explorers", "cli")
"""From left to right; "" is the root of the package, the core that a student reads."""
RULE = "a file imports only from its own folder and from what stands to its left: " + " · ".join(
    folder or "root" for folder in ORDER
)
LEFTMOST = ("__init__",)  # names no other file, so that all may use them
MOST_FILES, MOST_LINES = 14, 400


def files() -> dict[str, Path]:
    """Dotted name inside the package → file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> list[tuple[int, str]]:
    """``(line, dotted name)`` of every file of the package that ``path`` imports, also inside functions."""
    here = path.relative_to(PACKAGE).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            asked = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["phyldm_core", *here[: len(here) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            asked = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in asked:
            if parts[0] != "phyldm_core":
                continue
            for end in range(len(parts), 1, -1):  # the longest that is a file: the rest are names in it
                if (name := ".".join(parts[1:end])) in known:
                    found.append((node.lineno, name))
                    break
    return found


def place(name: str) -> int:
    """How far to the right a file stands."""
    if name in LEFTMOST:
        return 0
    if name in ("cli", "__main__"):
        return len(ORDER) - 1
    top = name.split(".")[0]
    return ORDER.index(top if top in ORDER else "")


def test_files_import_only_from_their_own_folder_or_from_further_left():
    known = files()
    against = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: imports {other}: {RULE}"
        for name, path in known.items()
        for line, other in imports(path, known)
        if place(other) > place(name)
    ]
    assert not against, "\n".join(against)


def test_no_circle_of_files():
    known = files()
    graph = {name: {other for _, other in imports(path, known) if other != name} for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the files


def test_the_rule_sees_imports_inside_functions_and_subfolders(tmp_path):
    """The rule is only as good as its eyes: both kinds of import are found, with their lines."""
    known = files()
    inside = PACKAGE / "people" / "cohort.py"
    found = {other for _, other in imports(inside, known)}
    assert "people.anatomy" in found and "physics" in found
    nested = [(line, other) for line, other in imports(PACKAGE / "cli.py", known) if other.startswith("running.")]
    assert nested, "cli.py imports its commands inside functions"


def test_every_folder_can_be_read_in_a_sitting():
    folders: dict[Path, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        folders.setdefault(path.parent, []).append(path)
    crowded = {str(f.relative_to(PACKAGE.parent)): len(p) for f, p in folders.items() if len(p) > MOST_FILES + 1}
    lines = {str(p.relative_to(PACKAGE.parent)): p.read_text(encoding="utf-8").count("\n") for p in files().values()}
    assert not crowded
    assert not {name: n for name, n in lines.items() if n > MOST_LINES}
