"""What makes it fast, measured here: ``python -m tests.speed``.

Prints a table of ratios, each of ways that took turns on the same inputs in one run, and writes
``data/speed/<machine>.json``. About a quarter of an hour on two idle cores.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated

import pandas
import torch
import typer

from phyldm_core.machine.errors import BadInput
from phyldm_core.machine.files import to_json, write_atomically
from phyldm_core.running.report import with_interval
from phyldm_core.running.run import MissingResult, reopen

from . import stages
from .timing import Row, machine, slug

IDEAS = ("rendering", "vae_step", "diffusion_step", "drawing", "people", "training_memory", "processes")


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Some of: {', '.join(IDEAS)}.")] = None,
    run: Annotated[Path | None, typer.Option(help="A trained run: adds quality against time, and its stages.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which the ways take turns.", min=1)] = 7,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; its own choice without it.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("data/speed"),
    note: Annotated[str, typer.Option(help="What a reader should know, such as who shared the machine.")] = "",
):
    if unknown := set(only or ()) - set(IDEAS):
        raise typer.BadParameter(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(IDEAS)}")
    if threads:
        torch.set_num_threads(threads)
    told = machine()
    path = out / f"{slug(told)}.json"
    result = json.loads(path.read_text()) if only and path.exists() else {"rows": {}}
    result |= {"machine": told, "note": note}
    for idea in only or IDEAS:
        found = []
        for row in importlib.import_module(f"tests.speed.{idea}").rows(rounds):
            found.append(row.as_dict())
            typer.echo(line(row))
        result["rows"][idea] = found
    if run is not None:
        result |= of_run(run)
    write_atomically(path, to_json(result))
    typer.echo(f"\n{path}\n{table(result).to_string(index=False)}")


def of_run(folder: Path) -> dict:
    """What only trained weights can tell, as far as the run has come."""
    from .drawing import quality_and_time

    kept = {"stages_s": stages.seconds(folder)}
    try:
        curve = quality_and_time(reopen(folder), 64)
        kept["quality_and_time"] = curve.to_dict("records")
    except MissingResult as error:
        typer.echo(f"no quality against time: {error}", err=True)
    return kept


def line(row: Row) -> str:
    goal = "" if row.floor is None else f", floor {row.floor:g}: {'reached' if row.ratio >= row.floor else 'MISSED'}"
    return f"{row.what}: {row.ratio:.2f} × ({row.low:.2f} to {row.high:.2f}{goal}), {row.ours} against {row.against}"


def table(result: dict) -> pandas.DataFrame:
    """One line a row: what, ratio with quartiles, floor and aim."""
    rows = pandas.DataFrame([row for rows in result["rows"].values() for row in rows])
    rows["ratio"] = [with_interval(r.ratio, r.low, r.high) for r in rows.itertuples()]
    return rows[["what", "ours", "against", "ratio", "floor", "aim"]].astype(object).fillna("")


if __name__ == "__main__":
    try:
        typer.run(main)
    except BadInput as error:
        raise SystemExit(f"tests.speed: {error}") from None
