"""What the processes of one training share: one batch, one stream of random numbers, one mean.

However many they are, each draws the noise of the whole batch and takes that of its own rows, and each divides by
the count of the whole batch. So a training is the same in any number of processes, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, distributed

_alone = False


def _state() -> PartialState:
    return PartialState(cpu=not torch.accelerator.is_available())


@contextmanager
def main_first() -> Iterator[None]:
    """Inside, the first process is done before the others begin: what it wrote, they find."""
    with _state().main_process_first():
        yield


def is_main() -> bool:
    """Whether this is the process that talks and writes."""
    return _state().is_main_process


def agreed(choice: str) -> str:
    """What the first process chose, for all of them."""
    _state()  # who they are has to be known
    return broadcast_object_list([choice])[0]


@contextmanager
def alone() -> Iterator[None]:
    """Inside, every process computes on rows of its own that are nobody's share, as in validation."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def share() -> slice:
    """The rows of a batch that are this process's: every k-th, of k processes; all of them where there is one."""
    if _alone or not (distributed.is_available() and distributed.is_initialized()):
        return slice(0, None, 1)
    return slice(distributed.get_rank(), None, distributed.get_world_size())


def drawn(draw, rows: int, *shape: int, **options) -> Tensor:
    """``draw(rows, *shape)``, such as :func:`torch.randn`: this process's rows of one draw for everybody's."""
    mine = share()
    return draw(mine.step * rows, *shape, **options)[mine]


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of everybody's ``values``, as far as they are this process's: averaged over the processes, it is exact.

    Parameters
    ----------
    weights
        Of the values, without gradients; 1 each where None.
    """
    if weights is None:
        if share().step == 1:
            return values.mean()
        total, count = values.sum(), torch.tensor(float(values.numel()), device=values.device)
    else:
        total, count = (values * weights).sum(), weights.sum().detach()
    if share().step > 1:
        distributed.all_reduce(count)
        count = count / share().step
    return total / count
