"""Scans are told apart into the tissues that their signals were added from."""

import pytest
import torch
from heads_in_rings import AIR, CSF, FAT, GM, LESION, MUSCLE, WM, of, rings

from phyldm_core.composition import BRAIN_PARTS, HEAD_PARTS, Composition, medians_of, restore
from phyldm_core.inference import Explained
from phyldm_core.physics import REFERENCE, Protocol, Sequence, TissueMaps, effective_protocol, signed_signal
from phyldm_core.slices import Scans, Slices
from phyldm_core.tissue import mix
from phyldm_core.voxelwise.shares import EMPTY, FULL, anatomical, compose_scans, unmix_signals, without_strays

SETTINGS = torch.stack([effective_protocol(p).settings() for p in REFERENCE.values()])


def added(shares: torch.Tensor, values: torch.Tensor, settings: torch.Tensor = SETTINGS) -> torch.Tensor:
    """T1w, T2w and FLAIR ``(n, 3, y, x)`` of shares ``(n, 1 + k, y, x)``: signals add, and then lose their sign."""
    signals = signed_signal(values.T[..., None, None], settings.expand(len(values), -1, -1))[..., 0, 0]
    return torch.einsum("nkyx,km->nmyx", shares[:, 1:], signals).abs()


def scans_of(images: torch.Tensor, settings: torch.Tensor = SETTINGS) -> Scans:
    n, m = images.shape[:2]
    return Scans(images, settings.expand(n, -1, -1), torch.ones(n, m, dtype=torch.bool))


@pytest.mark.parametrize(
    "parts",
    [
        [(WM, 1.0)], [(WM, 0.6), (GM, 0.4)], [(GM, 0.5), (CSF, 0.5)], [(FAT, 0.5), (MUSCLE, 0.5)], [(FAT, 0.4)],
        [(LESION, 1.0)], [],
    ],
    ids=["white matter", "its border", "a sulcus", "under the skin", "the rim of the head", "a lesion", "bone"],
)  # fmt: skip
def test_scans_are_told_apart_into_what_their_signals_were_added_from(parts):
    shares, values = of(*parts).expand(1, 7, 24, 24).clone(), medians_of(HEAD_PARTS)
    shares[:, AIR] = 1 - shares[:, 1:].sum(1)
    images = added(shares, values) + 1e-4  # a scan that is exactly 0 measures nothing
    found = unmix_signals(scans_of(images), values, HEAD_PARTS)
    seen = ((1 - shares[:, :1] - EMPTY) / (FULL - EMPTY)).clamp(0, 1)  # a part that is too small is noise
    wanted = torch.cat([1 - seen, seen * shares[:, 1:] / (1 - shares[:, :1]).clamp_min(1e-6)], 1)
    torch.testing.assert_close(found, wanted, atol=0.08, rtol=0)


def test_grey_matter_and_fluid_that_cancel_are_told_apart():
    """At a TI of 1.5 s fluid is still upside down, and about as much of it as of grey matter gives no signal."""
    long, short = (Protocol(Sequence.FLAIR, te=0.012, tr=15.0, ti=ti) for ti in (1.5, 0.5))
    settings = torch.stack([p.settings() for p in (long, Protocol(Sequence.SPIN_ECHO, te=0.09, tr=5.0), short)])
    shares, values = of((GM, 0.55), (CSF, 0.45)).expand(1, 7, 8, 8), medians_of(HEAD_PARTS)
    images = added(shares, values, settings)
    assert images[0, 0].max() < 0.3 * added(of((GM, 1.0)), values, settings)[0, 0].max()
    found = unmix_signals(scans_of(images + 1e-4, settings), values, HEAD_PARTS)
    assert found[0, CSF, 0, 0].item() == pytest.approx(0.45, abs=0.05)


def told(maps: torch.Tensor, values: torch.Tensor) -> Composition:
    """What is told apart of scans of two heads in :func:`rings` of tissue ``values``, explained by ``maps``."""
    three = values[:3]
    explained = Explained(
        TissueMaps.from_stack(maps), three, torch.zeros(3, 3), 100 * torch.ones(3), torch.ones(3), torch.zeros(2)
    )
    slices = Slices(
        100 * added(rings(2), values) + 1e-2, SETTINGS.expand(2, -1, -1), torch.ones(2, 3, dtype=torch.bool),
        torch.zeros(2, dtype=torch.long), torch.zeros(2),
    )  # fmt: skip
    return compose_scans(explained, slices, HEAD_PARTS, cell=8)


def test_a_session_is_told_apart_with_the_tissue_that_its_signals_told():
    """And its texture is what voxels of one tissue have beyond that: here T1 is 4 % longer everywhere."""
    shares, values = rings(2), medians_of(HEAD_PARTS).clone()
    values[0, 1] *= 1.1
    found = told(mix(shares[:, 1:], values) * torch.tensor([1.0, 1.04, 1.0]).view(3, 1, 1), values)
    torch.testing.assert_close(found.values[:, :3], values[:3].expand(2, -1, -1))
    assert (found.shares - shares)[:, 1:4].abs().mean() < 0.01
    assert found.texture[0, 1, 4, 2].exp().item() == pytest.approx(1.04, abs=0.01)


def test_a_scalp_that_maps_show_too_dark_has_the_water_of_fat_and_muscle():
    shares, values = rings(2), medians_of(HEAD_PARTS)
    scalp = shares[:, FAT : MUSCLE + 1].sum(1, keepdim=True) > 0.5
    maps = mix(shares[:, 1:], values)
    maps[:, :1] = torch.where(scalp, 0.8 * maps[:, :1], maps[:, :1])
    found = told(maps, values)
    torch.testing.assert_close(found.values[:, FAT - 1 : MUSCLE, 0], values[FAT - 1 : MUSCLE, 0].expand(2, -1))
    water = restore(found).stack()[:, :1][scalp].median().item()
    assert water == pytest.approx(mix(shares[:, 1:], values)[:, :1][scalp].median().item(), rel=0.05)


def test_a_piece_in_air_is_noise_and_the_scalp_is_none():
    clean = rings(1)
    noisy = clean.clone()
    noisy[0, :, 61:63, 61:63] = 0
    noisy[0, MUSCLE, 61:63, 61:63] = 1
    assert torch.equal(without_strays(noisy), clean) and torch.equal(without_strays(clean), clean)


def _put(shares: torch.Tensor, where: torch.Tensor, tissue: int) -> torch.Tensor:
    """A copy whose voxels ``where`` are one tissue."""
    there = of((tissue, 1.0))
    return torch.where(where, there, shares)


def test_skin_that_noise_pierced_is_whole_and_no_white_matter_is_in_the_scalp():
    clean = rings(2)
    noise = torch.rand(clean[:, :1].shape, generator=torch.Generator().manual_seed(0))
    scalp = clean[:, FAT : MUSCLE + 1].sum(1, keepdim=True) > 0.5
    noisy = _put(_put(clean, scalp & (noise < 0.15), AIR), scalp & (noise > 0.85), WM)
    found = anatomical(noisy, HEAD_PARTS)
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
    before, after = (float((x[:, :1][scalp] > 0.5).float().mean()) for x in (noisy, found))
    assert before > 0.1 and after < 0.05  # what is left is at the outline, where nothing tells it from air
    assert found[:, 1:4].sum(1, keepdim=True)[scalp].max() < 1e-6
    bone = (clean[:, :1] > 0.5) & ~scalp
    assert (found[:, :1][bone] > 0.5).float().mean() > 0.98  # bone is not filled, nor is air


def test_there_is_no_air_inside_a_brain_and_its_rim_keeps_what_it_has():
    for parts, clean in ((HEAD_PARTS, rings(1)), (BRAIN_PARTS, _stripped(rings(1)))):
        brain = clean[:, 1:4].sum(1, keepdim=True) > 0.5
        holes = brain & (torch.rand(brain.shape, generator=torch.Generator().manual_seed(0)) < 0.05)
        rim = brain & (torch.nn.functional.avg_pool2d(brain.float(), 3, 1, 1) < 0.99)
        half = 0.6 * clean + 0.4 * of((AIR, 1.0))[:, : clean.shape[1]]
        found = anatomical(torch.where(holes, half, clean), parts)
        assert float(found[:, :1][holes & ~_wider(rim)].max()) == 0
        torch.testing.assert_close(anatomical(torch.where(rim, half, clean), parts)[:, :1][rim], half[:, :1][rim])


def _stripped(shares: torch.Tensor) -> torch.Tensor:
    brain = shares[:, 1:4]
    return torch.cat([1 - brain.sum(1, keepdim=True), brain], 1)


def _wider(mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(mask.float(), 5, 1, 2) > 0
