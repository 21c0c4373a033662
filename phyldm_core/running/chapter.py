"""What every chapter begins with: the house style, its run, and one way to publish a figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas

from ..figures.style import save_figure, use_house_style
from ..people.anatomy import Folders
from .run import Run, open_run


def open_chapter(
    run_dir: str | Path, figures_dir: str | Path, profile: str, anatomies: Folders, seed: int
) -> tuple[Run, Callable]:
    """The run of a chapter's parameters, and ``publish(fig, name, caption, alt)``, which saves a figure of it.

    Line breaks of a caption do not count; :func:`style.save_figure` has what the four are. Tables are shown with all
    their words.

    Raises
    ------
    BadInput
        Unknown profile.
    """
    use_house_style()
    pandas.set_option("display.max_colwidth", None)

    def publish(fig, name: str, caption: str, alt: str):
        save_figure(fig, figures_dir, name, caption=" ".join(caption.split()), alt=alt)

    return open_run(run_dir, profile, anatomies, seed), publish
