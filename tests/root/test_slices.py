"""Scans as they arrive: what a cut scan lacks is exactly 0, and what it still shows is as it was."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from phyldm_core.slices import LAYERS, LEAST_LEFT, SPOILED, Slices, brightness, covered, spoiled

NY, NX = 64, 48
AIR, BRAIN, FAT, OTHER = range(len(LAYERS))


def head() -> tuple[torch.Tensor, torch.Tensor]:
    """A slice and its layers: a square brain, muscle and skull around it, a ring of fat, and air."""
    layers = torch.full((NY, NX), AIR, dtype=torch.uint8)
    layers[6:58, 6:42] = FAT
    layers[9:55, 9:39] = OTHER
    layers[16:48, 14:34] = BRAIN
    scan = 0.5 + torch.rand(NY, NX, generator=torch.Generator().manual_seed(0))
    return torch.where(layers == AIR, 0.02, 1.0) * scan, layers


def seeds(n: int = 20):
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def test_the_generator_decides_what_befalls_a_scan():
    scan, layers = head()
    one, again, other = (spoiled(scan, layers, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_scan_that_nothing_befalls_keeps_its_values():
    scan, layers = head()
    assert torch.equal(spoiled(scan, layers, torch.Generator(), ways=()), scan)


@pytest.mark.parametrize("way", ["stripped", "cropped", "half"])
def test_what_is_cut_is_0_and_what_is_left_keeps_its_values(way):
    scan, layers = head()
    for generator in seeds():
        cut = spoiled(scan, layers, generator, ways=[way])
        gone = cut == 0
        assert torch.equal(cut[~gone], scan[~gone])
        assert gone.float().mean() <= 1 - LEAST_LEFT
    assert any((spoiled(scan, layers, generator, [way]) == 0).float().mean() > 0.1 for generator in seeds())


def test_a_stripped_scan_shows_the_brain_and_at_most_a_rim_of_4_pixels():
    scan, layers = head()
    brain = (layers == BRAIN)[None].float()
    widest = torch.nn.functional.max_pool2d(brain, 9, 1, 4)[0] > 0
    for generator in seeds():
        stripped = spoiled(scan, layers, generator, ways=["stripped"])
        assert torch.equal(stripped[layers == BRAIN], scan[layers == BRAIN])
        assert (stripped[~widest] == 0).all()


def test_a_crop_leaves_a_rectangle_and_a_half_leaves_one_side():
    scan, layers = head()
    for way in ("cropped", "half"):
        for generator in seeds():
            kept = spoiled(scan, layers, generator, ways=[way]) != 0
            rows, columns = kept.any(1), kept.any(0)
            assert torch.equal(kept, rows[:, None] & columns)
            assert all(len(side.int().diff().nonzero()) <= 2 for side in (rows, columns))
            if way == "half":
                assert rows.all() != columns.all()
                assert 0.3 <= min(rows.float().mean(), columns.float().mean()) <= 0.85


def test_fat_suppression_darkens_fat_and_leaves_the_brain():
    scan, layers = head()
    inner = torch.nn.functional.avg_pool2d((layers == FAT)[None].float(), 3, 1, 1)[0] > 0.99
    assert inner.any()
    for generator in seeds():
        dark = spoiled(scan, layers, generator, ways=["fat suppressed"])
        assert torch.equal(dark[layers == BRAIN], scan[layers == BRAIN])
        assert (dark[inner] <= 0.5 * scan[inner] * (1 + 1e-6)).all()


@pytest.mark.parametrize("way", ["blurred", "thick"])
def test_coarser_voxels_smooth_a_scan_and_keep_its_brightness(way):
    scan, layers = head()
    for generator in seeds():
        smooth = spoiled(scan, layers, generator, ways=[way])
        assert smooth.shape == scan.shape
        assert smooth.mean() == pytest.approx(scan.mean().item(), rel=0.03)
        assert smooth[layers == BRAIN].std() < 0.9 * scan[layers == BRAIN].std()


def test_a_slice_without_brain_is_not_stripped_to_nothing():
    scan, layers = head()
    layers = torch.where(layers == BRAIN, OTHER, layers)
    assert torch.equal(spoiled(scan, layers, torch.Generator().manual_seed(0), ways=["stripped"]), scan)


def test_most_scans_arrive_whole_within_a_smooth_receive_field():
    scan, layers = head()
    scan = scan.clamp_min(0.01)
    arrived = [spoiled(scan, layers, generator) for generator in seeds(300)]
    cut = torch.tensor([bool((one == 0).any()) for one in arrived]).float().mean()
    parts = [1 - SPOILED[way] for way in ("stripped", "cropped", "half")]
    assert cut == pytest.approx(1 - parts[0] * parts[1] * parts[2], abs=0.08)
    factor = next(one / scan for one in arrived if (one != 0).all() and (one / scan).diff().abs().max() < 0.1)
    assert 0.05 < factor.log().std() < 0.3


def test_a_scan_that_was_cut_is_covered_where_it_was_not():
    scan, layers = head()
    half = spoiled(scan, layers, torch.Generator().manual_seed(0), ways=["half"])
    there = covered(half[None])[0]
    assert there[half != 0].all()
    beyond = torch.nn.functional.max_pool2d((half != 0)[None].float(), 5, 1, 2)[0] > 0
    assert torch.equal(there, beyond)


def test_layers_follow_their_slices():
    scan, layers = head()
    images, six = scan.expand(3, 1, -1, -1), torch.zeros(3, 1, 6)
    slices = Slices(images, six, torch.ones(3, 1).bool(), torch.arange(3), torch.zeros(3), torch.stack([layers] * 3))
    slices.layers[2] = FAT
    assert torch.equal(slices[1:].layers[0], layers)
    assert (slices[slices.subject == 2].layers == FAT).all()
    bare = Slices(images, six, torch.ones(3, 1).bool(), torch.arange(3), torch.zeros(3))
    assert bare[1:].layers is None


def test_a_real_part_is_as_bright_as_its_magnitude():
    scan, _ = head()
    sign = torch.where(torch.rand(NY, NX, generator=torch.Generator().manual_seed(1)) < 0.5, -1, 1)
    pair = [brightness(image[None, None], torch.ones(1, 1).bool(), torch.zeros(1)) for image in (scan, sign * scan)]
    assert_close(*pair, rtol=0, atol=0)
