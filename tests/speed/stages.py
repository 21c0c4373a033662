"""Where ``make reproduce`` spends its time, from the notebooks that a run keeps."""

from __future__ import annotations

from pathlib import Path

import nbformat


def seconds(run: Path) -> dict[str, float]:
    """Seconds by notebook, as papermill noted them in the executed ones."""
    taken = {}
    for path in sorted(run.glob("notebooks/[0-9][0-9]_*.ipynb")):
        noted = nbformat.read(path, as_version=4).metadata.get("papermill", {})
        if noted.get("duration"):
            taken[path.stem] = round(noted["duration"], 1)
    return taken
