"""Where the package finds what it carries: data, weights and chapters, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CARRIED = PACKAGE / "_carried"
"""Where the build puts ``data/``, ``notebooks/`` and ``tests/speed/`` of the repository (pyproject.toml)."""


def carried(name: str) -> Path:
    """A file or folder of the repository by its name there, such as ``data/relaxation_times.csv``.

    Inside the package where it was installed from a wheel, beside it in a checkout.
    """
    return (CARRIED if CARRIED.is_dir() else PACKAGE.parent) / name
