"""A worker may be killed: its shard is done again, and the result is that of a day on which nobody died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phyldm_core.machine.errors import BadInput
from phyldm_core.machine.shards import run_shards


def square(folder: Path, i: int, deadly: int, always: bool) -> int:
    """A shard that writes its square; the deadly one kills its process, the first time or always."""
    died = folder / "died"
    if i == deadly and (always or not died.exists()):
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(i)).write_text(str(i * i))
    return i


def shards(folder: Path, deadly: int = -1, always: bool = False) -> list[tuple]:
    return [(folder, i, deadly, always) for i in range(6)]


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "died"}


@pytest.fixture
def scheduler():
    """A Dask scheduler with two workers, which are processes of their own."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


def test_a_killed_worker_s_shard_is_done_again(tmp_path):
    done = list(run_shards(square, shards(tmp_path, deadly=2), n_workers=2))
    assert sorted(done) == list(range(6))
    assert (tmp_path / "died").exists()
    assert files(tmp_path) == {str(i): str(i * i) for i in range(6)}


def test_a_shard_that_kills_whoever_tries_it_is_said_and_what_is_done_is_kept(tmp_path):
    with pytest.raises(BadInput, match="killed again and again"):
        list(run_shards(square, shards(tmp_path, deadly=5, always=True), n_workers=1))
    assert set(files(tmp_path)) == set("01234")


def sleep(folder: Path, i: int):
    """A shard that says whose it is and takes longer than a test."""
    (folder / f"{i}.pid").write_text(str(os.getpid()))
    time.sleep(600)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    here = Path(__file__).resolve()
    (tmp_path / "parent.py").write_text(
        f"import sys\nfrom pathlib import Path\nsys.path[:0] = [{str(here.parent)!r}, {str(here.parents[2])!r}]\n"
        "from phyldm_core.machine.shards import run_shards\nfrom test_shards import sleep\n"
        f"shards = [(Path({str(tmp_path)!r}), i) for i in range(2)]\n"
        "if __name__ == '__main__':\n    list(run_shards(sleep, shards, 2))\n"
    )
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"])
    try:
        workers = [int(text) for text in _within(60, lambda: [p.read_text() for p in tmp_path.glob("*.pid")], 2)]
    finally:
        parent.kill()
        parent.wait()
    assert _within(10, lambda: [pid for pid in workers if not _runs(pid)], 2)


def _within(seconds: float, look, n: int) -> list:
    """What ``look`` gives once it gives ``n`` things that are not empty."""
    end = time.monotonic() + seconds
    while len(found := list(filter(None, look()))) < n:
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_dask_s_workers_do_it_too_and_one_of_them_is_killed(scheduler, tmp_path):
    done = list(run_shards(square, shards(tmp_path, deadly=2), scheduler=scheduler))
    assert sorted(done) == list(range(6))
    assert (tmp_path / "died").exists()
    assert files(tmp_path) == {str(i): str(i * i) for i in range(6)}


@pytest.mark.slow
def test_a_cohort_is_the_same_whoever_makes_it_and_whoever_dies(scheduler, tmp_path, monkeypatch):
    from dataclasses import replace

    from phyldm_core.machine import shards as module
    from phyldm_core.people.cohort import make_cohort
    from phyldm_core.running.profiles import SMOKE

    recipe = replace(SMOKE.cohort, n_train=4)  # two shards of four people

    def made(name: str, **by) -> dict[str, bytes]:
        for _ in make_cohort(recipe, tmp_path / name, **by):
            pass
        return {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*.*")}

    one = made("one", n_workers=1)
    assert len([name for name in one if name.endswith("_T1map.nii.gz")]) == 8
    assert made("two", n_workers=2) == one
    assert made("dask", scheduler=scheduler) == one

    class OneDies(module.ProcessPoolExecutor):
        """Kills a worker in the middle of its work, once."""

        dead = False

        def submit(self, function, people, *rest):
            if not OneDies.dead and people[0].name == "sub-0005":
                OneDies.dead = True
                function = dies
            return super().submit(function, people, *rest)

    monkeypatch.setattr(module, "ProcessPoolExecutor", OneDies)
    assert made("killed", n_workers=2) == one
    assert OneDies.dead


def dies(people, recipe, folder: Path):
    """Half of a shard's work, and then the end."""
    from phyldm_core.people.cohort import _write_people

    _write_people(people[:2], recipe, folder)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_scheduler_that_is_not_there(tmp_path, monkeypatch):
    import distributed

    monkeypatch.setitem(distributed.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    with pytest.raises(BadInput, match="no Dask scheduler"):
        list(run_shards(square, shards(tmp_path), scheduler="tcp://127.0.0.1:9"))
