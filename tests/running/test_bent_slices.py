"""Bent slices are still slices of heads: what they learn from stays plausible."""

import torch

from phyldm_core.composition import Composition
from phyldm_core.running import latents
from phyldm_core.running.latents import bent


def rings(n: int) -> Composition:
    """A round head of 100 × 80 voxels: a disc of brain within a ring of fat, air around."""
    y, x = torch.meshgrid(torch.arange(100.0) - 49.5, torch.arange(80.0) - 39.5, indexing="ij")
    radius = (y**2 + x**2).sqrt()
    shares = torch.stack([(radius >= 30), (radius < 25), (radius >= 25) & (radius < 30)]).float()
    return Composition(shares.expand(n, -1, -1, -1), torch.rand(n, 2, 3), 0.1 * torch.randn(n, 3, 25, 20))


def test_bent_slices_are_whole_and_of_usual_size():
    head = rings(40)
    made = bent(head, 2.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.shares.sum(1), torch.ones(40, 100, 80))
    assert (made.shares >= -1e-6).all()
    growth = made.shares[:, 1].sum((1, 2)) / head.shares[:, 1].sum((1, 2))
    assert 0.75 < growth.min() < 1 < growth.max() < 1.3  # some heads smaller, some larger, none a dwarf's
    assert torch.equal(made.values, head.values)


def test_every_copy_is_bent_in_its_own_way():
    made = bent(rings(3), 2.0, torch.Generator().manual_seed(0)).shares
    assert (made[0] - made[1]).abs().mean() > 0.01 and (made[1] - made[2]).abs().mean() > 0.01


def test_a_slice_that_nothing_bends_stays(monkeypatch):
    monkeypatch.setattr(latents, "ROTATION", 0.0)
    monkeypatch.setattr(latents, "LOG_SCALE", 0.0)
    monkeypatch.setattr(latents, "BEND_MM", {})
    head = rings(2)
    torch.testing.assert_close(bent(head, 2.0, torch.Generator()).shares, head.shares, atol=1e-4, rtol=0)


def test_rotation_keeps_shape_where_voxels_are_square(monkeypatch):
    """A slice is not square: a rotation that forgot that would shear the head."""
    monkeypatch.setattr(latents, "ROTATION", 0.5)
    monkeypatch.setattr(latents, "LOG_SCALE", 0.0)
    monkeypatch.setattr(latents, "BEND_MM", {})
    head = rings(5)
    made = bent(head, 2.0, torch.Generator().manual_seed(0)).shares
    assert (made[:, 1] - head.shares[:, 1]).abs().sum() < 0.04 * head.shares[:, 1].sum()  # a disc turned is a disc
