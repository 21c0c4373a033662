"""Two processes that train one model, against one process with the same cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas
import torch

from phyldm_core.losses import VAEData, VAEObjective
from phyldm_core.running.profiles import LAPTOP
from phyldm_core.training import training_loop
from phyldm_core.vae import PoEVAE

from .timing import Row, compare
from .training_memory import made_up

STEPS, SKIPPED = 24, 4  # the first steps make plans and buffers


def train(folder: str):
    """What each process runs."""
    torch.manual_seed(0)
    data, objective = VAEData(made_up(20), LAPTOP.vae_loss), VAEObjective(PoEVAE(**LAPTOP.vae), LAPTOP.vae_loss)
    for _ in training_loop(objective, data, replace(LAPTOP.vae_schedule, steps=STEPS), folder):
        pass
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def seconds_a_step(n: int, cores: int) -> float:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n), "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // n))}
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher, "-m", "tests.speed.processes", folder]
        subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        log = pandas.read_csv(Path(folder) / "log.csv").drop_duplicates("step")
    return (log.seconds.iloc[-1] - log.seconds.iloc[SKIPPED]) / (STEPS - 1 - SKIPPED)


def rows(rounds: int) -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0))
    ways = {"two processes": 2, "one process": 1}
    taken = [{way: seconds_a_step(n, cores) for way, n in ways.items()} for _ in range(min(rounds, 3))]
    what = f"VAE step of one global batch, {cores} cores in all"
    yield compare(what, pandas.DataFrame(taken), *ways, floor=0.8)


if __name__ == "__main__":
    train(sys.argv[1])
