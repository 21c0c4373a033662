"""Equal sets cannot be told apart, unequal ones can, and recognising a person does not help."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from phyldm_core.evaluation.told_apart import auc_of_features, auc_of_network, screens
from phyldm_core.physics import TissueMaps


def pictures(n: int, seed: int, sd: float = 1.0) -> torch.Tensor:
    """``(n, 3, 32, 32)``: blobs ``sd`` pixels wide, all of the same contrast."""
    noise = np.random.default_rng(seed).standard_normal((n, 3, 32, 32))
    soft = ndimage.gaussian_filter(noise, (0, 0, sd, sd))
    return torch.from_numpy(soft / soft.std((2, 3), keepdims=True)).float()


def own(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n)


def test_logistic_regression_finds_a_shift_as_often_as_theory_says():
    """Two unit Gaussians d apart: AUC = Φ(d/√2), 0.76 for d = 1."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (1500, 5)), rng.normal([1, 0, 0, 0, 0], 1, (1500, 5))
    people = own(1500), own(1500, 1500)
    assert auc_of_features(one, other, people) == pytest.approx(0.76, abs=0.03)
    assert auc_of_features(one, rng.normal(0, 1, (1500, 5)), people) == pytest.approx(0.5, abs=0.05)


def test_knowing_a_person_again_is_no_help():
    """Eight slices a person, much alike: only with the person on both sides would the two sets be told apart."""
    rng = np.random.default_rng(1)
    one, other = (np.repeat(rng.normal(0, 1, (30, 60)), 8, 0) + rng.normal(0, 0.1, (240, 60)) for _ in range(2))
    by_person = np.repeat(own(30), 8), np.repeat(own(30, 30), 8)
    assert auc_of_features(one, other, by_person) == pytest.approx(0.5, abs=0.15)
    assert auc_of_features(one, other, (own(240), own(240, 240))) > 0.9


def test_the_network_sees_texture_that_no_brightness_tells():
    people = own(72), own(72, 72)
    assert auc_of_network(pictures(72, 0), pictures(72, 1, sd=1.5), people, epochs=4) > 0.8
    assert auc_of_network(pictures(72, 0), pictures(72, 1), people, epochs=4) == pytest.approx(0.5, abs=0.15)


def test_the_same_seed_gives_the_same_answer_and_leaves_the_global_one_alone():
    people, sets = (own(24), own(24, 24)), (pictures(24, 0), pictures(24, 1))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert auc_of_network(*sets, people, seed=3, epochs=1) == auc_of_network(*sets, people, seed=3, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_maps_hold_in_air_is_black_on_a_screen():
    """PD of 1 %: nothing is seen, whatever T1 and T2 are said to be there."""
    noise = 0.5 + torch.rand(2, 3, 8, 8)
    noise[:, 0] = 0.01
    assert not screens(TissueMaps.from_stack(noise)).any()
    noise[:, 0] = 0.8
    assert screens(TissueMaps.from_stack(noise)).any()
