"""Preparing real scans on the command line: a bar while it runs, then what was done and what was not, and why."""

from __future__ import annotations

from pathlib import Path

import typer
from tqdm import tqdm

from ..scans.prepare_dataset import prepare_dataset
from ..scans.sessions import find_sessions


def prepare_all(
    data: Path, out: Path, voxel_mm: float, workers: int, mask: str | None, scheduler: str | None = None
) -> list:
    """Every session of a data set, prepared in ``out``: the outcomes of :func:`prepare_dataset.prepare_dataset`."""
    n = len(find_sessions(data, {}))
    steps = prepare_dataset(data, out, voxel_mm=voxel_mm, mask=mask, n_workers=workers, scheduler=scheduler)
    return list(tqdm(steps, desc="prepare", total=n, unit="session", disable=None))


def finish(outcomes: list, out: Path):
    """Say what was done and what was not, and why; exit 1 if anything was not."""
    for doubt in (f"{o.name}: doubtful: {doubt}" for o in outcomes for doubt in o.doubts):
        typer.echo(doubt, err=True)
    count = {status: sum(o.status == status for o in outcomes) for status in ("prepared", "kept", "skipped")}
    typer.echo(f"{count['prepared']} sessions prepared, {count['kept']} kept, {count['skipped']} skipped, in {out}")
    reasons = [(o.name or "somebody unnamed", scan, why) for o in outcomes for scan, why in o.left_out.items()]
    if reasons:
        for name, scan, why in sorted(reasons)[:20]:
            typer.echo(f"  {name}{' ' + scan if scan else ''}: {why}", err=True)
        typer.echo(
            f"phyldm: {len(reasons)} scans or sessions were not used; all reasons: {out / 'skipped.tsv'}", err=True
        )
        raise typer.Exit(1)
