"""bf16 is used where it is measured to be faster, and all processes of a training use the same."""

import pytest
import torch

from phyldm_core.machine import precision, processes


@pytest.fixture(autouse=True)
def measured_anew():
    precision.best_precision.cache_clear()
    yield
    precision.best_precision.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is not timed")
@pytest.mark.parametrize("speed_up, choice", [(0.7, "no"), (1.1, "no"), (1.8, "bf16")])
def test_a_cpu_trains_in_bf16_only_where_that_is_clearly_faster(monkeypatch, speed_up, choice):
    monkeypatch.setattr(precision, "bf16_speed_up", lambda: speed_up)
    assert precision.best_precision() == choice
    monkeypatch.setattr(precision, "bf16_speed_up", lambda: 1 / speed_up)
    assert precision.best_precision() == choice  # once a process: a training does not change its mind


def test_both_precisions_are_timed(monkeypatch):
    """A clock on which every step in float32 takes three times as long as in bf16."""
    kinds, now = iter([torch.float32, torch.bfloat16] * 9), [0.0]
    taken = {torch.float32: 3.0, torch.bfloat16: 1.0}
    called = []

    def clock() -> float:
        called.append(None)
        if len(called) % 2 == 0:
            now[0] += taken[next(kinds)]
        return now[0]

    monkeypatch.setattr(precision.time, "perf_counter", clock)
    assert precision.bf16_speed_up(rounds=2) == pytest.approx(3)
    assert len(called) == 2 * 2 * 3


def test_what_the_first_process_chose_is_everybody_s(monkeypatch):
    def from_the_first(choices):
        choices[0] = "bf16"
        return choices

    monkeypatch.setattr(processes, "broadcast_object_list", from_the_first)
    assert processes.agreed("no") == "bf16"


def test_speed_is_told_also_where_no_gradients_are_wanted():
    with torch.no_grad():
        assert precision.bf16_speed_up(rounds=1) > 0
