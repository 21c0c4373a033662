"""A tensor in a file is a tensor: same numbers, no file left, and no more memory for a larger one."""

from __future__ import annotations

import os
import tempfile

import torch

from phyldm_core.machine.on_disk import in_a_file


def test_it_is_the_parts_one_after_the_other_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parts = [torch.rand(n, 3, 5).transpose(1, 2) for n in (2, 1, 4)]
    joined = in_a_file(iter(parts))
    assert torch.equal(joined, torch.cat(parts))
    assert torch.equal(joined[torch.tensor([6, 0, 0])], torch.cat(parts)[[6, 0, 0]])
    assert not list(tmp_path.iterdir())


def test_a_change_stays_with_the_one_who_made_it():
    whole = in_a_file([torch.zeros(4)])
    whole[1] = 5
    assert whole.tolist() == [0, 5, 0, 0]


def test_rows_in_a_file_are_no_memory_of_the_process(tmp_path, monkeypatch):
    if not os.path.exists("/proc/self/status"):
        return
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = own_memory()
    joined = in_a_file(torch.rand(1, 2**18) for _ in range(64))  # 64 MiB
    assert joined.sum() > 0  # every page read
    assert own_memory() - before < 16 * 2**20


def own_memory() -> int:
    """Bytes that are neither a file's nor shared."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))
