"""``phyldm reproduce --data``: chapters on people who were scanned, whose true maps nobody knows.

A cell that asks for the truth, or for how people were simulated, says that it cannot be had; so does every cell that
uses what such a cell would have made. All others run as ever, so that each figure is made that real scans can give.
"""

from __future__ import annotations

import ast
import re

import nbformat

NEEDS_TRUTH = re.compile(
    r"nobody knows their true maps|real scans have no common scale"
    r"|'(?:ScanRecipe|Subject)' object has no attribute|has no attribute '(?:subjects|anatomies)'"
)
"""What is raised where a chapter asks a cohort of scanned people for what only a simulated one has."""
ALLOWED = "raises-exception"  # the tag by which a cell may fail and the next one runs all the same
SAID = "Not made from real scans: "


class WithoutTruth:
    """Decides cell by cell of one chapter, as it runs."""

    def __init__(self):
        self.lost: set[str] = set()  # names that a cell would have bound and has not
        self.n_cells = 0  # that could not be run
        self._sources: dict[int, str] = {}

    def before(self, cell: nbformat.NotebookNode, index: int):
        """Empty a cell that would use what is not there, or something else of the same name from a cell above."""
        if cell.cell_type != "code" or "injected-parameters" in cell.metadata.get("tags", []):
            return
        read, bound = names_in(cell.source)
        if missing := sorted(read & self.lost):
            self._lose(cell, bound, f"this uses {', '.join(missing[:3])} of a cell above that needs the truth.")
            self._sources[index], cell.source = cell.source, ""
        else:
            cell.metadata.tags = [*cell.metadata.get("tags", []), ALLOWED]

    def after(self, cell: nbformat.NotebookNode):
        """A cell that asked for the truth says so; any other error is one, and ends the chapter."""
        if ALLOWED not in cell.metadata.tags:
            return
        errors, bound = [o for o in cell.outputs if o.output_type == "error"], names_in(cell.source)[1]
        if not errors:
            self.lost -= bound
        elif NEEDS_TRUTH.search(errors[0].evalue):
            self._lose(cell, bound, "this needs the true maps or how people were simulated.")
        else:
            cell.metadata.tags.remove(ALLOWED)

    def restore(self, cells: list[nbformat.NotebookNode]):
        """Cells that were emptied have their code again, and no cell is marked any more."""
        for cell in cells:
            if ALLOWED in cell.metadata.get("tags", []):
                cell.metadata.tags.remove(ALLOWED)
        for index, source in self._sources.items():
            cells[index].source = source

    def _lose(self, cell: nbformat.NotebookNode, names: set[str], why: str):
        self.n_cells += 1
        self.lost |= names
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{SAID}{why}\n")]


def names_in(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell reads before it binds them itself, and those that it binds; nothing of what is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return set(), set()
    read, bound = set(), set()
    for statement in tree.body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        read |= {node.id for node in names if isinstance(node.ctx, ast.Load)} - bound
        bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            bound.add(statement.name)
        if isinstance(statement, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    return read, bound
