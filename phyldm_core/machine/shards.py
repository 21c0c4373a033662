"""Work in independent shards: by processes of this machine, or by the workers of a Dask scheduler on many.

A shard is a function of its own arguments that writes files nobody else writes, all of them or none, and is
done again without harm. So the result is the same whoever does it and in which order, and a worker may die.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread

from .errors import BadInput

DEATHS = 3
"""Of workers one after the other, with no shard done between them, after which it is not bad luck any more."""


def run_shards(function: Callable, shards: list[tuple], n_workers: int = 1, scheduler: str | None = None) -> Iterator:
    """``function(*shard)`` for every shard, yielded as they are done, in no fixed order.

    Parameters
    ----------
    function
        Of a module, so that another process can import it.
    n_workers
        Processes of this machine. After one has been killed, half as many go on with what is not done: most are killed
        for want of memory.
    scheduler
        Address of a Dask scheduler (``tcp://…:8786``, or a scheduler file's path), whose workers see the same files;
        ``n_workers`` is then theirs to decide.

    Raises
    ------
    BadInput
        Workers are killed whenever they try, or the scheduler does not answer.
    """
    if scheduler:
        yield from _on_dask(function, shards, scheduler)
        return
    left, deaths = dict(enumerate(shards)), 0
    spawned = {"mp_context": get_context("spawn"), "initializer": _end_with_parent}
    while left:
        with ProcessPoolExecutor(min(n_workers, len(left)), **spawned) as pool:
            futures = {pool.submit(function, *shard): i for i, shard in left.items()}
            try:
                for future in as_completed(futures):
                    result = future.result()
                    del left[futures[future]]
                    deaths = 0
                    yield result
            except BrokenProcessPool:
                deaths += 1
                if deaths == DEATHS:
                    raise BadInput(
                        "workers are killed again and again, most likely for want of memory: run again with fewer "
                        "--workers, what is finished is kept"
                    ) from None
                n_workers = max(1, n_workers // 2)
            finally:
                pool.shutdown(cancel_futures=True)


def _end_with_parent():
    """Let this worker end as soon as whoever started it is gone: a parent that is killed cannot tell its workers."""

    def watch():
        wait([parent_process().sentinel])
        os._exit(1)  # at once: a shard that is half done is done again

    Thread(target=watch, daemon=True).start()


def _on_dask(function: Callable, shards: list[tuple], scheduler: str) -> Iterator:
    from distributed import Client, KilledWorker
    from distributed import as_completed as as_done

    try:
        client = Client(**({"address": scheduler} if "://" in scheduler else {"scheduler_file": scheduler}))
    except (OSError, ValueError) as error:
        raise BadInput(f"no Dask scheduler answers at {scheduler} ({error}): start one with dask scheduler") from None
    with client:
        futures = [client.submit(function, *shard, pure=False) for shard in shards]
        try:
            for _, result in as_done(futures, with_results=True):  # Dask gives a dead worker's shards to others
                yield result
        except KilledWorker as error:
            raise BadInput(f"a shard has killed every worker that tried it ({error}): see the workers' logs") from None
