"""Tensors that lie in a file: a cohort may be larger than the memory of the machine that trains on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import torch
from torch import Tensor


def in_a_file(parts: Iterable[Tensor]) -> Tensor:
    """``torch.cat(parts)`` whose numbers lie in a file without a name; what is indexed is read, and nothing else kept.

    The file is in the system's temporary folder (the environment variable TMPDIR moves it) and goes with the tensor.
    Its pages in memory are the system's cache, given back when anybody needs room.
    """
    n = 0
    with tempfile.NamedTemporaryFile() as file:
        for part in parts:
            file.write(part.detach().cpu().contiguous().numpy().data)
            n += len(part)
        file.flush()
        shape = (n, *part.shape[1:])
        return torch.from_file(file.name, shared=False, size=n * part[0].numel(), dtype=part.dtype).view(shape)
