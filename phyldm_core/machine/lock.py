"""One process at a time: two that write into one folder would leave a mixture of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from .errors import BadInput


@contextmanager
def alone_with(out: Path, name: str) -> Iterator[None]:
    """Inside, no other process works on ``name`` (a session) of ``out``; a process that dies holds nothing.

    Raises
    ------
    BadInput
        Another one does, or ``out`` cannot be written.
    """
    path = out / ".phyldm" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise BadInput(f"{out}: another phyldm is working on {name}: wait for it, or choose another --out") from None
    except OSError as error:
        raise BadInput(f"{out}: cannot write ({error.strerror}): choose another folder or free some space") from None
    try:
        yield
    finally:
        lock.release()
