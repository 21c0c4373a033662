"""``phyldm reproduce --data``: chapters on people who were scanned, whose true maps nobody knows.

A cell that asks for the truth, or for how people were simulated, says that it cannot be had; so does every cell that
uses what such a cell would have made. All others run as ever, so that each figure is made that real scans can give.
"""

from __future__ import annotations

import ast
import re
import symtable

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
    read: set[str] = set()
    bound: set[str] = set()

    def take(node: ast.AST):
        """One statement or expression: variables of comprehensions and functions are their own."""
        used, made = _of_scope(symtable.symtable(ast.unparse(node), "cell", "exec"))
        read.update(used - bound)
        bound.update(made)

    def go(statements: list[ast.stmt]):
        for statement in statements:
            if isinstance(statement, ast.For | ast.While | ast.If | ast.With | ast.Try):
                for name in ("iter", "test"):
                    if hasattr(statement, name):
                        take(getattr(statement, name))
                opened = getattr(statement, "items", ())
                for item in opened:
                    take(item.context_expr)
                targets = [getattr(statement, "target", None), *(item.optional_vars for item in opened)]
                bound.update(n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name))
                for name in ("body", "orelse", "finalbody"):
                    go(getattr(statement, name, []))
                for handler in getattr(statement, "handlers", ()):
                    go(handler.body)
            else:
                take(statement)

    try:
        go(ast.parse(source).body)
    except SyntaxError:
        return set(), set()
    return read, bound


def _of_scope(table: symtable.SymbolTable) -> tuple[set[str], set[str]]:
    """Names that a module's code reads, also within its functions, and names that it binds."""
    symbols = table.get_symbols()
    read = {s.get_name() for s in symbols if s.is_referenced() and (table.get_type() == "module" or s.is_global())}
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    for inner in table.get_children():
        read |= _of_scope(inner)[0]
    return read, bound
