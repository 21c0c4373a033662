"""What every comparison here shares: ways that take turns, ratios within a round, and the machine it is about."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pandas
import torch


@dataclass(frozen=True)
class Row:
    """One comparison: how many times faster (or smaller) ``ours`` is than ``against``; larger is better for us.

    ``ratio`` is the median over rounds, ``low`` and ``high`` its quartiles; ``floor`` and ``aim`` what it must reach.
    """

    what: str
    ours: str
    against: str
    ratio: float
    low: float
    high: float
    floor: float | None = None
    aim: float | None = None
    details: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        return asdict(self)


def take_turns(ways: dict[str, Callable], rounds: int) -> pandas.DataFrame:
    """Seconds ``(round × way)``. Each way has its turn in each round: a slow moment of the machine is everyone's.

    A round before the first warms up and is not kept.
    """
    seconds = []
    for _ in range(rounds + 1):
        seconds.append({name: seconds_of(way) for name, way in ways.items()})
    return pandas.DataFrame(seconds[1:])


def seconds_of(way: Callable) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(what: str, seconds: pandas.DataFrame, ours: str, against: str, **more) -> Row:
    """The row of two ways that took turns; ``more`` are floor, aim and further details."""
    low, ratio, high = np.quantile(seconds[against] / seconds[ours], (0.25, 0.5, 0.75))
    limits = {key: more.pop(key) for key in ("floor", "aim") if key in more}
    details = {"seconds": {way: float(seconds[way].median()) for way in (ours, against)}, "rounds": len(seconds)} | more
    return Row(what, ours, against, float(ratio), float(low), float(high), **limits, details=details)


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent of growth: 1 where twice the work takes twice the time."""
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 2)


# --- memory ---------------------------------------------------------------------------------------


def peak_mib(function: Callable, *args) -> float:
    """MiB that a fresh process has of its own, at most, while it runs ``function(*args)``; Linux only, else NaN.

    Pages of files, which the system takes back when it needs room, are not counted.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_watched, function, args).result()


def _watched(function: Callable, args: tuple) -> float:
    done, seen = Event(), []

    def watch():
        while not done.wait(0.02):
            seen.append(own_mib())

    watcher = Thread(target=watch)
    watcher.start()
    function(*args)
    done.set()
    watcher.join()
    return max(seen, default=float("nan"))


def own_mib() -> float:
    """MiB of this process that no file holds."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return sum(int(kib) for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status)) / 1024


# --- the machine ----------------------------------------------------------------------------------


def machine() -> dict:
    """Hardware and libraries, without the machine's name; ``load`` is what others were doing as we began."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def slug(told: dict) -> str:
    """A file's name for a machine: ``amd-epyc-2-cores``."""
    words = f"{told['accelerator'] or told['processor']} {told['cores']} cores"
    return "-".join(re.findall(r"[a-z0-9]+", words.lower()))
