"""Training loops that yield what happened: notebooks plot, a log file keeps, a killed run resumes.

One loop serves the VAE and the diffusion model. What differs is the objective: a module that draws
nothing itself and turns a batch into named losses.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

from .machine.errors import BadInput
from .machine.precision import best_precision
from .machine.processes import agreed, alone, share


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; defaults suit minutes on two cores."""

    steps: int = 1000
    batch_size: int = 8  # of all processes together: how many they are does not change what is learned
    learning_rate: float = 1e-3
    warmup: int = 50  # steps until the full learning rate; a cosine brings it to zero at the end
    ema_decay: float = 0.995  # the averaged weights are what is kept
    max_grad_norm: float = 1.0
    validate_every: int = 200
    save_every: int = 200
    precision: str = "auto"  # accelerate's mixed precision: "no", "bf16", or bf16 where that is faster
    seed: int = 0


HALFWAY = "halfway.safetensors"
"""The file in the folder of a training with the averaged weights of half of its steps."""


class Step(NamedTuple):
    """What one training step reports."""

    step: int
    losses: dict[str, float]
    seconds: float  # of training so far, earlier runs included


def training_loop(
    objective: nn.Module,
    data,
    schedule: Schedule,
    folder: str | Path,
    validation=None,
    halfway: bool = False,
) -> Iterator[Step]:
    """Train ``objective`` on ``data``, yielding every step.

    Parameters
    ----------
    objective
        Called as ``objective(batch, step)``, gives ``{"total": loss, …}``.
    data, validation
        Have a length, ``draw(n, generator)`` and ``batch(rows, generator)``; the generator makes every random choice.
    folder
        Holds ``checkpoint/`` while training and ``log.csv``; a run that was killed goes on from the
        last checkpoint and yields the same losses as one that was not.
    halfway
        Also keep the averaged weights of half of the steps, as :data:`HALFWAY`.

    Afterwards ``objective`` holds the averaged weights. Started by ``torchrun`` or ``accelerate launch``, the processes
    share each batch; losses and weights are those of one process, to rounding, and a checkpoint serves any number.

    Raises
    ------
    BadInput
        The checkpoint in ``folder`` is of another network or schedule, or the processes cannot share a batch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=agreed(best_precision()) if schedule.precision == "auto" else schedule.precision,
        cpu=not torch.accelerator.is_available(),  # unasked, torchrun without a GPU trains every rank on its own
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # the adversary starts late
    )
    if schedule.batch_size % accelerator.num_processes:
        raise BadInput(
            f"{accelerator.num_processes} processes cannot share batches of {schedule.batch_size} evenly: "
            "start a number of processes that divides it, or change the profile's batch size"
        )
    torch.manual_seed(schedule.seed)  # dropout and posterior noise draw from torch's own generator
    generator = torch.Generator().manual_seed(schedule.seed)
    optimizer = torch.optim.AdamW(
        objective.parameters(), lr=schedule.learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    ema = EMAModel(objective.parameters(), decay=schedule.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    checkpoint = Checkpoint(folder / "checkpoint", objective, optimizer, ema, generator, schedule)
    first, spent = checkpoint.load()
    for group in optimizer.param_groups:
        group["initial_lr"] = schedule.learning_rate  # what a schedule that starts in the middle goes by
    rate = get_scheduler(
        "cosine",
        optimizer,
        num_warmup_steps=schedule.warmup,
        num_training_steps=schedule.steps,
        last_epoch=first - 1,
    )
    prepared, optimizer = accelerator.prepare(objective, optimizer)
    ema.to(accelerator.device)
    log = TrainingLog(folder / "log.csv", first) if accelerator.is_main_process else None
    start = time.perf_counter() - spent
    for step in range(first, schedule.steps):
        rows = data.draw(schedule.batch_size, generator)
        batch = data.batch(rows, generator)
        batch = type(batch)(*(t[share()].to(accelerator.device) for t in batch))
        with accelerator.autocast():
            losses = prepared(batch, step)
        accelerator.backward(losses["total"])
        accelerator.clip_grad_norm_(objective.parameters(), schedule.max_grad_norm)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        ema.step(objective.parameters())
        means = accelerator.reduce(torch.stack([value.detach() for value in losses.values()]), "mean")
        values = dict(zip(losses, means.tolist(), strict=True))
        if not np.isfinite(values["total"]):
            raise BadInput(f"training diverged at step {step} (loss is {values['total']}): lower the learning rate")
        last = step + 1 == schedule.steps
        if validation is not None and ((step + 1) % schedule.validate_every == 0 or last):
            values |= {f"val_{k}": v for k, v in validate(objective, ema, validation, schedule, step).items()}
        report = Step(step, values, time.perf_counter() - start)
        if log:
            log.write(report)
            if halfway and step + 1 == schedule.steps // 2:
                save_file(averaged(objective, ema), folder / HALFWAY)  # before the checkpoint: a killed run has both
            if (step + 1) % schedule.save_every == 0 and not last:
                checkpoint.save(step + 1, report.seconds)
        yield report
    ema.copy_to(objective.parameters())
    if log:
        log.close()
        checkpoint.remove()


def averaged(objective: nn.Module, ema: EMAModel) -> dict[str, torch.Tensor]:
    """A copy of the objective's state with the averaged weights."""
    ema.store(objective.parameters())
    ema.copy_to(objective.parameters())
    state = {name: value.detach().cpu().clone() for name, value in objective.state_dict().items()}
    ema.restore(objective.parameters())
    return state


@torch.no_grad()
def validate(objective, ema: EMAModel, data, schedule: Schedule, step: int) -> dict[str, float]:
    """Losses of the averaged weights on held-out slices, the same random choices every time."""
    generator = torch.Generator().manual_seed(schedule.seed + 1)
    ema.store(objective.parameters())
    ema.copy_to(objective.parameters())
    device = next(objective.parameters()).device
    sums: dict[str, list[float]] = {}
    with alone(), torch.random.fork_rng():  # validation must not change what training draws next, on any device
        torch.manual_seed(schedule.seed + 1)
        for rows in torch.arange(len(data))[:128].split(2 * schedule.batch_size):
            batch = data.batch(rows, generator)
            for name, value in objective(type(batch)(*(t.to(device) for t in batch)), step).items():
                sums.setdefault(name, []).append(float(value))
    ema.restore(objective.parameters())
    return {name: float(np.mean(values)) for name, values in sums.items()}


class Checkpoint:
    """Everything a run needs to go on exactly: weights, averages, optimiser, random states. No pickles."""

    def __init__(
        self, folder: Path, objective, optimizer, ema: EMAModel, generator: torch.Generator, schedule: Schedule
    ):
        self.folder, self.objective, self.optimizer = folder, objective, optimizer
        self.ema, self.generator, self.schedule = ema, generator, schedule

    def save(self, step: int, seconds: float):
        tensors = {f"model.{k}": v for k, v in self.objective.state_dict().items()}
        tensors |= {f"ema.{i}": p for i, p in enumerate(self.ema.shadow_params)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors |= {"random.batches": self.generator.get_state(), "random.torch": torch.get_rng_state()}
        if torch.cuda.is_available():  # posterior noise is drawn where the network is
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        self.folder.mkdir(parents=True, exist_ok=True)
        meta = {
            "step": step,
            "seconds": seconds,
            "ema_step": self.ema.optimization_step,
            "schedule": repr(self.schedule),
        }
        part = self.folder / "state.part"
        tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
        save_file(tensors, part, metadata={"run": json.dumps(meta)})
        os.replace(part, self.folder / "state.safetensors")  # never half a checkpoint

    def load(self) -> tuple[int, float]:
        """Restore, if there is something to restore; the step to go on with and the seconds spent."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return 0, 0.0
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()["run"])
        if meta["schedule"] != repr(self.schedule):
            raise BadInput(f"{path} is of a run with other settings: delete {self.folder} to start anew")
        tensors = load_file(path)
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        own = self.objective.state_dict()
        if {k: v.shape for k, v in model.items()} != {k: v.shape for k, v in own.items()}:
            raise BadInput(f"{path} is of another network: delete {self.folder} to start anew")
        self.objective.load_state_dict(model)
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.ema.shadow_params = [tensors[f"ema.{i}"] for i in range(len(self.ema.shadow_params))]
        self.ema.optimization_step = meta["ema_step"]
        self.generator.set_state(tensors["random.batches"])
        torch.set_rng_state(tensors["random.torch"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        return meta["step"], meta["seconds"]

    def remove(self):
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()


class TrainingLog:
    """``log.csv`` in long form (step, seconds, loss, value), cut back to where a resumed run goes on."""

    def __init__(self, path: Path, first: int):
        kept = []
        if first and path.exists():
            kept = [line for line in path.read_text().splitlines()[1:] if int(line.split(",", 1)[0]) < first]
        self.file = path.open("w")
        self.file.write("\n".join(["step,seconds,loss,value", *kept]) + "\n")

    def write(self, report: Step):
        for name, value in report.losses.items():
            self.file.write(f"{report.step},{report.seconds:.2f},{name},{value:.6g}\n")
        self.file.flush()

    def close(self):
        self.file.close()
