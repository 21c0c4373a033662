"""Which numbers a machine multiplies fastest: bf16 or float32?"""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch.nn import functional

WORTHWHILE = 1.25
"""bf16 must be this many times as fast: below, a busy machine could decide otherwise on the next day."""


@lru_cache
def best_precision() -> str:
    """accelerate's "bf16" where training is faster in it, else "no" (float32).

    On a CPU no list of abilities tells: some with dot products of bf16 take convolutions a third slower in it, others
    twice as fast. So both are timed, a quarter of a second in all.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if bf16_speed_up() > WORTHWHILE else "no"


@torch.enable_grad()  # whoever asks first may want none
def bf16_speed_up(rounds: int = 5) -> float:
    """How many times as fast as in float32 a 3×3 convolution and its gradients are in bf16, on this CPU."""
    image, kernel = torch.randn(6, 64, 56, 40), torch.randn(64, 64, 3, 3)  # a layer of the laptop's decoder
    fastest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(rounds + 1):  # in turn, so that what slows the machine slows both; the first warms up
        for kind in fastest:
            x, w = (t.to(kind).requires_grad_() for t in (image, kernel))
            start = time.perf_counter()
            functional.conv2d(x, w, padding=1).sum().backward()
            fastest[kind] = min(fastest[kind], time.perf_counter() - start)
    return fastest[torch.float32] / fastest[torch.bfloat16]
