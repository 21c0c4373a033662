"""A scanner adds up signals, not relaxation times: what it shows of voxels that hold several tissues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from phyldm_core.people.scanner import acquire, added_signals, draw_texture, mixed_maps
from phyldm_core.physics import Protocol, TissueMaps, null_ti, render
from phyldm_core.tissue import AIR_PD, TISSUES, in_vivo_3t

MEDIANS = in_vivo_3t().median
WM, GM, CSF = (TISSUES.index(name) for name in ("WM", "GM", "CSF"))
INVERSION_RECOVERY = Protocol("FLAIR", te=0.01, tr=6.0, ti=1.2)  # white matter is up, CSF still down
EVEN = torch.ones(3, 1, 1, 1)  # tissue alike everywhere


def voxel(**shares: float) -> torch.Tensor:
    """Fractions ``(k, 1, 1, 1)`` of one voxel; what is left is air."""
    fractions = torch.zeros(len(TISSUES), 1, 1, 1)
    for name, share in shares.items():
        fractions[TISSUES.index(name)] = share
    return fractions


def shown(fractions: torch.Tensor, *protocols: Protocol) -> list[float]:
    settings = torch.stack([protocol.settings() for protocol in protocols])
    return added_signals(fractions, MEDIANS, EVEN, settings)[0, :, 0, 0].tolist()


def of_tissue(k: int, protocol: Protocol) -> float:
    """Its signal with the sign."""
    maps = TissueMaps(*torch.from_numpy(MEDIANS[k]))
    real = Protocol(protocol.sequence, protocol.te, protocol.tr, protocol.ti, protocol.flip_angle_deg, signed=True)
    return render(maps, real).item()


def test_signals_of_a_voxel_add_and_those_of_opposite_sign_cancel():
    wm, csf = (of_tissue(k, INVERSION_RECOVERY) for k in (WM, CSF))
    assert csf < 0 < wm
    [found] = shown(voxel(WM=0.5, CSF=0.5), INVERSION_RECOVERY)
    assert found == pytest.approx(abs(0.5 * wm + 0.5 * csf), rel=1e-4)
    assert found < 0.5 * abs(wm) and found < 0.5 * abs(csf)  # the dark rim between the two


def test_the_signal_of_a_mixed_voxel_is_not_that_of_its_mean_t1():
    half = voxel(WM=0.5, CSF=0.5)
    [found] = shown(half, INVERSION_RECOVERY)
    one_compartment = TissueMaps.from_stack(mixed_maps(half, MEDIANS, EVEN))
    mean_t1 = TissueMaps(*torch.from_numpy(MEDIANS[[WM, CSF]].mean(0)))
    for maps in (one_compartment, mean_t1):
        assert abs(found - render(maps, INVERSION_RECOVERY).item()) > 0.05


@pytest.mark.parametrize("tissue", TISSUES)
def test_a_voxel_of_one_tissue_shows_that_tissue(tissue):
    protocols = (
        INVERSION_RECOVERY,
        Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0),
        Protocol("spin echo", te=0.1, tr=4.0),
        Protocol("spoiled gradient echo", te=0.004, tr=0.02, flip_angle_deg=20),
        Protocol("inversion-recovery gradient echo", te=0.004, tr=2.5, ti=0.6, flip_angle_deg=9),
    )
    expected = [abs(of_tissue(TISSUES.index(tissue), protocol)) for protocol in protocols]
    assert shown(voxel(**{tissue: 1.0}), *protocols) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert shown(voxel(**{tissue: 0.25}), *protocols) == pytest.approx([s / 4 for s in expected], rel=1e-4, abs=1e-5)


def test_where_csf_is_nulled_only_what_lies_beside_it_is_seen():
    protocol = Protocol("FLAIR", te=0.09, tr=9.0, ti=null_ti(MEDIANS[CSF, 1], 9.0, "FLAIR"))
    alone, beside = (shown(voxel(GM=0.3, **more), protocol)[0] for more in ({}, {"CSF": 0.7}))
    assert beside == pytest.approx(alone, rel=1e-3)


def test_air_is_silent_and_has_no_tissue():
    assert shown(voxel(), INVERSION_RECOVERY) == [0]
    assert (mixed_maps(voxel(), MEDIANS, EVEN) == 0).all()
    assert (mixed_maps(voxel(WM=0.5 * AIR_PD), MEDIANS, EVEN) == 0).all()


def test_maps_of_a_mixed_voxel_lie_between_its_tissues_and_water_adds():
    pd, t1, t2 = mixed_maps(voxel(WM=0.5, CSF=0.5), MEDIANS, EVEN)[0, :, 0, 0].tolist()
    assert pd == pytest.approx(MEDIANS[[WM, CSF], 0].mean(), rel=1e-5)
    assert MEDIANS[WM, 1] < t1 < MEDIANS[CSF, 1]
    assert MEDIANS[WM, 2] < t2 < MEDIANS[CSF, 2]


def test_texture_changes_what_is_scanned_as_it_changes_the_map():
    texture = torch.tensor([0.98, 1.1, 0.9]).view(3, 1, 1, 1)
    pure = voxel(GM=1.0)
    maps = mixed_maps(pure, MEDIANS, texture)
    assert_close(maps[0, :, 0, 0], torch.from_numpy(MEDIANS[GM]).float() * texture[:, 0, 0, 0])
    settings = INVERSION_RECOVERY.settings()[None]
    expected = render(TissueMaps.from_stack(maps), INVERSION_RECOVERY)
    assert_close(added_signals(pure, MEDIANS, texture, settings)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_water_varies_half_as_much_inside_a_tissue_as_relaxation():
    logs = draw_texture((40, 60, 60), 0.1, 2.0, torch.Generator().manual_seed(0)).log().flatten(1).std(1)
    assert_close(logs, torch.tensor([0.05, 0.1, 0.1]), rtol=0.1, atol=0)


def test_no_texture_lifts_proton_density_above_water():
    lifted = torch.full((3, 1, 1, 1), 1.2)
    assert mixed_maps(voxel(CSF=1.0), MEDIANS, lifted)[0, 0].item() == 1
    protocol = Protocol("spin echo", te=1e-4, tr=59.0)
    [found] = added_signals(voxel(CSF=1.0), MEDIANS, lifted, protocol.settings()[None]).flatten().tolist()
    assert 0.99 < found <= 1


def test_where_there_is_no_signal_noise_is_rayleigh():
    """A magnitude of nothing but noise is never 0 and has a mean of √(π/2) SD."""
    clean = torch.zeros(4, 1, 64, 64)
    clean[:, :, :, :32] = 1.0
    images, gains = acquire(clean, 0.0, (0.02, 0.02), 2.0, np.random.default_rng(0), torch.Generator().manual_seed(0))
    images = images / gains[0]
    floor, tissue = images[..., 32:], images[..., :32]
    assert floor.min() > 0
    assert floor.mean() == pytest.approx(math.sqrt(math.pi / 2) * 0.02, rel=0.03)
    assert tissue.mean() == pytest.approx(1, abs=0.002)
    assert tissue.std() == pytest.approx(0.02, rel=0.03)
