"""Killed at any moment and called again, a command ends with the files that it would have made undisturbed.

``python test_kills.py COMMAND FOLDER KILLS SEED WEIGHTS RAW`` is what the tests start: a process that has imported
everything once and forks for each call, because importing takes longer than most calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pandas
import pytest

KILLS = int(os.environ.get("PHYLDM_KILLS", "25"))
WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
"""What is counted of a call's doings on its own files, and interrupted at."""


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but hidden ones, which a killed call may leave, by its path.

    A training's log also says how many seconds each step took, which are never the same: they are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        content = path.read_bytes()
        if path.name == "log.csv":
            content = pandas.read_csv(path).drop(columns="seconds").to_csv().encode()
        if path.name == "config.json" and "files" in (config := json.loads(content)):
            config["files"] = {name: sha for name, sha in config["files"].items() if not name.endswith("log.csv")}
            content = json.dumps(config).encode()
        found["/".join(parts)] = hashlib.sha256(content).hexdigest()
    return found


# --- the process that forks -----------------------------------------------------------------------


def watch(out: Path, stop: int | None, count: Path | None):
    """Count what this process does to files below ``out``; end it, as a power cut would, before number ``stop``."""
    done = 0

    def see(event: str, arguments: tuple):
        nonlocal done
        if event not in WRITES or not str(arguments[0]).startswith(str(out)):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        done += 1
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        if count is not None:
            os.pwrite(counted, str(done).encode(), 0)

    if count is not None:
        counted = os.open(count, os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(see)


def call(arguments: list[str], out: Path, after: float | None = None, stop: int | None = None, count=None) -> int:
    """Exit status of the command line in a fork, which is killed ``after`` seconds or before its write ``stop``."""
    pid = os.fork()
    if pid == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        watch(out, stop, count)
        from phyldm_core.cli import app

        try:
            app(arguments, standalone_mode=True)
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
        except BaseException:
            os._exit(99)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def arguments_of(command: str, out: Path, weights: str, raw: str) -> list[str]:
    return {
        "fit": ["fit", raw, "--weights", weights, "--samples", "2", "--out", str(out)],
        "prepare": ["prepare", raw, "--out", str(out), "--voxel-mm", "6"],
        "simulate": ["simulate", "--profile", "smoke", "--workers", "1", "--out", str(out)],
        "train": ["train", "--profile", "smoke", "--out", str(out)],
    }[command]


def serve(command: str, folder: Path, kills: int, seed: int, weights: str, raw: str):
    import torch

    for name in ("running.run", "scans.fit", "scans.prepare_dataset"):  # once, before any fork
        import_module(f"phyldm_core.{name}")
    torch.set_num_threads(1)
    folder.mkdir()
    out, count = folder / "out", folder / "count"  # one place for all: some files name the folder they lie in
    arguments = arguments_of(command, out, weights, raw)
    start = time.monotonic()
    status = call(arguments, out, count=count)
    seconds, right = time.monotonic() - start, contents(out)
    assert status == 0 and right, f"undisturbed: exit status {status}, {len(right)} files"
    writes = int(count.read_text())
    rng, killed, recovered = random.Random(seed), 0, 0
    for i in range(kills):
        shutil.rmtree(out)
        moment = {"after": rng.uniform(0, seconds)} if i % 2 else {"stop": rng.randint(1, writes)}
        killed += call(arguments, out, **moment) == -signal.SIGKILL
        status = call(arguments, out)
        again = contents(out)
        wrong = {name for name in set(right) | set(again) if right.get(name) != again.get(name)}
        recovered += not status and not wrong
        if status or wrong:
            print(f"{command} killed {moment}: exit status {status}, other bytes in {sorted(wrong)[:5]}", flush=True)
    print(f"{command}: {killed} of {kills} killed, {recovered} recovered; a call: {writes} writes, {seconds:.1f} s")
    sys.exit(recovered < kills)


if __name__ == "__main__":
    command, folder, kills, seed, weights, raw = sys.argv[1:]
    serve(command, Path(folder), int(kills), int(seed), weights, raw)


# --- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    from test_fit import write_session

    root = tmp_path_factory.mktemp("raw")
    write_session(root / "sub-01" / "anat", "sub-01", ("T1w", "T2w"))
    for name in ("sub-02", "sub-03"):  # one scan each: laying two over each other takes longer than all else
        write_session(root / name / "anat", name, ("T1w",))
    return root


def recovers(command: str, folder: Path, kills: int, weights="-", raw="-") -> str:
    job = [sys.executable, __file__, command, str(folder), str(kills), "7", str(weights), str(raw)]
    done = subprocess.run(job, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_killed_prepare_is_recovered(raw, tmp_path):
    recovers("prepare", tmp_path / "kills", 2, raw=raw)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", ["prepare", "fit", "simulate", "train"])
def test_every_kill_is_recovered(command, raw, smoke_run, tmp_path):
    recovers(command, tmp_path / "kills", KILLS, smoke_run.folder, raw)
