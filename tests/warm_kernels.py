"""Kernels that find the large libraries imported: forks of one process that has done so, and runs nothing itself.

Importing takes a third of a chapter's time at `smoke`. Names are still missing in a chapter that does not import them.

``python warm_kernels.py ADDRESS`` is that process; ``python warm_kernels.py ADDRESS ARGUMENTS…`` asks it for a kernel
with these arguments and lives as long as the kernel does.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

IMPORTED = ("scipy.ndimage", "scipy.stats", "pandas", "sklearn", "torch", "diffusers", "phyldm_core.running.run")
"""No matplotlib: what it draws with is settled when it is imported, and a kernel settles it for its notebook."""


@contextmanager
def warm_kernels(folder: Path) -> Iterator[list[str]]:
    """While it lasts, the command of a kernel specification whose kernels are forks."""
    address = str(folder / "kernels")
    server = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE)
    try:
        while not os.path.exists(address):  # bound when all is imported
            assert server.poll() is None, "the process that forks kernels has ended"
            time.sleep(0.05)
        yield [sys.executable, "-S", __file__, address, "-f", "{connection_file}"]
    finally:
        server.kill()  # a kernel that is left over notices
        server.wait()


def serve(address: str):
    for name in IMPORTED:
        import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + ".new")
        listening.listen()
        os.rename(address + ".new", address)
        while listening in select.select([listening, sys.stdin], [], [])[0]:  # stdin ends with who started this
            asking, _ = listening.accept()
            reap()
            message, outputs, _, _ = socket.recv_fds(asking, 2**20, 2)
            if os.fork() == 0:
                listening.close()
                run(json.loads(message), outputs)  # `asking` is closed when it ends, which who asks waits for
            for end in (asking.fileno(), *outputs):
                os.close(end)
            asking.detach()


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def run(asked: dict, outputs: list[int]):
    """A kernel in this process, as ``python -m ipykernel_launcher`` would be."""
    try:
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        os.setsid()
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"], JPY_PARENT_PID=str(os.getppid()))
        sys.path[0], sys.argv = "", ["ipykernel_launcher", *asked["arguments"]]
        runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def ask(address: str, arguments: list[str]):
    asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(asked).encode()], [1, 2])
        connection.recv(1)  # nothing, at the end


if __name__ == "__main__":
    if sys.argv[2:]:
        ask(sys.argv[1], sys.argv[2:])
    else:
        serve(sys.argv[1])
