"""People a minute that are simulated, by one worker and by all cores; and a session fitted, against a fit per voxel."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from phyldm_core.calibration import posterior_sd
from phyldm_core.inference import infer
from phyldm_core.people.cohort import load_scans, load_truth, make_cohort, simulate
from phyldm_core.physics import TissueMaps
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.vae import PoEVAE
from phyldm_core.voxelwise import baselines

from .timing import Row, compare, slope, take_turns

N_PEOPLE = 24


def cohort(n: int, workers: int, folder: Path | None = None):
    """Make ``n`` people of the laptop profile and throw them away, unless there is a folder to keep them in."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe = replace(LAPTOP.cohort, n_train=0, n_val=0, n_test=n)
        for _ in make_cohort(recipe, (folder or Path(scratch)) / "cohort", workers):
            pass


def rows(rounds: int) -> Iterator[Row]:
    workers = os.cpu_count() or 1
    ways = {"all cores": lambda: cohort(N_PEOPLE, workers), "one worker": lambda: cohort(N_PEOPLE, 1)}
    seconds = take_turns(ways, min(rounds, 3))
    recipe = LAPTOP.cohort
    simulate(recipe.subjects()[0], recipe)  # reads the head
    counts = {n: lambda n=n: [simulate(subject, recipe) for subject in recipe.subjects()[:n]] for n in (2, 4, 8)}
    alone = take_turns(counts, min(rounds, 3)).median()
    yield compare(
        f"simulate {N_PEOPLE} people on {workers} cores, start of the workers included", seconds,
        "all cores", "one worker",
        people_a_minute={way: 60 * N_PEOPLE / float(seconds[way].median()) for way in ways},
        people_a_minute_in_memory=60 * 8 / float(alone[8]), growth_with_people=slope(list(counts), alone),
    )  # fmt: skip
    yield from fit(rounds)


def fit(rounds: int) -> Iterator[Row]:
    """Maps and their SD of one person's slices, as ``phyldm fit`` infers them; time only, the weights are untrained."""
    with tempfile.TemporaryDirectory() as folder:
        cohort(1, 1, Path(folder))
        slices, truth = load_scans(Path(folder) / "cohort", "test"), load_truth(Path(folder) / "cohort", "test")
    vae = PoEVAE(**LAPTOP.vae).eval()

    def network() -> TissueMaps:
        posterior, _ = infer(vae, slices)
        return posterior_sd(vae, posterior, 8, torch.Generator().manual_seed(0))

    ways = {
        "network, with SD": network,
        "least squares a voxel, no SD": lambda: baselines.least_squares(slices, truth.brain),
    }
    seconds = take_turns(ways, min(rounds, 3))
    each = float(seconds["network, with SD"].median()) / len(slices)
    yield compare(
        f"fit {len(slices)} slices of one person", seconds, *ways, seconds_a_slice=each,
        seconds_for_a_brain_of_140_mm=each * 140 / LAPTOP.cohort.slice_mm,
    )  # fmt: skip
