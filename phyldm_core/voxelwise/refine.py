"""The last word is the scans': every voxel of the network's maps is moved to where the signal equations want it.

A network sees what is around a voxel, but its maps pass through a latent of half the resolution, and a fold of one
voxel comes out blurred. A fit of one voxel is as sharp as the scan, but one mixture of PD, T1 and T2 is nearly
invisible to it. So the network's maps are what is known before, as far as they are to be trusted: to a few per cent
inside a tissue, not at all across an edge. Then each voxel's own signals are weighed in. Nothing is learned, no truth
is used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..losses import gain_per_scan
from ..physics import TissueMaps, shown_signal, signed_signal
from ..slices import SIGNAL_ERROR, Slices
from ..tissue import TISSUES, WATER_SPREAD, fluid_line, implied_pd, in_vivo_3t
from .least_squares import BOUNDS, VOXELS_AT_A_TIME, into_maps, levenberg_marquardt, noise_of, spread_at

TRUST = 0.07
"""SD of the logarithm of the network's PD, T1 and T2 inside a tissue: what it is off on people whose truth is known."""

NEARBY_MM = 2.0
"""Its maps are off by as much as they change within this distance: what a fold that was lost would have changed."""

FLUID_MIXTURE_SPREAD = 0.1
"""SD of log T2 about the line from grey matter to CSF, on which their mixtures lie: a third of what training allows,
where a decoder still has to learn the line. The simulated cohort mixes by that very rule, so this flatters there."""

EDGE = 0.3
"""Where the network may be off by more, the fit also starts from fluid and from half-way to it."""

HIDDEN = 1e6
"""Noise of a scan that is not to be looked at."""

N_STEPS = 12


@torch.no_grad()
def refine(
    maps: TissueMaps,
    slices: Slices,
    brain: Tensor,
    voxel_mm: float,
    common_scale: bool = True,
    shown: Tensor | None = None,
    where: Tensor | None = None,
) -> tuple[TissueMaps, TissueMaps]:
    """The maps nearest to the network's and to the scans at once, and their SD.

    Per voxel, the sum of squares of: the scans' misfit over their noise and :data:`SIGNAL_ERROR`; log PD, T1 and T2
    against the network's (:data:`TRUST`, :data:`NEARBY_MM`); the water line and the fluid line of training
    (:func:`losses.water_prior`, :func:`losses.fluid_prior`). Levenberg–Marquardt starts from the network's value
    and at edges, because a magnitude has a valley on either side of a null point, from CSF's and from half-way to it.

    Parameters
    ----------
    maps
        ``(n, y, x)``, inferred from ``slices`` of one person.
    brain
        ``(n, y, x)`` bool: what noise and gains are told from.
    voxel_mm
        In the plane of the slices.
    common_scale
        If not, each scan is first divided by the gain that brings the network's prediction closest to it.
    shown
        ``(n, m)`` bool, the scans that may be used; None: all that exist.
    where
        ``(n, y, x)`` bool, voxels to refine; None: the brain's.

    Returns
    -------
        Maps, unchanged elsewhere, and their SD, 0 elsewhere: how far the scans' noise and the trust in the network let
        a voxel go. It knows nothing of errors that both share.
    """
    where = brain if where is None else where
    shown = slices.observed if shown is None else shown & slices.observed
    log_maps = maps.stack().log()
    known, settings = _what_is_known(log_maps, slices, brain, voxel_mm, common_scale, shown, where)
    low, high = torch.tensor(BOUNDS).double().log().T[..., None]
    found, sds = [], []
    for part in known.split(VOXELS_AT_A_TIME, 1):
        x = _fit(part, settings, low, high)
        found.append(x)
        sds.append(spread_at(lambda of, x: _residuals(of, x, settings), part, x))
    inside = where[:, None].expand_as(log_maps)
    moved = torch.where(inside, into_maps(torch.cat(found, 1), where), log_maps).exp()
    spread = moved * into_maps(torch.cat(sds, 1), where)
    return TissueMaps.from_stack(moved), TissueMaps.from_stack(spread)


def _fit(known: Tensor, settings: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Log maps ``(3, v)``: of all starts the smallest sum of squares."""
    x, cost = levenberg_marquardt(lambda of, x: _residuals(of, x, settings), known, known[:3], low, high, N_STEPS)
    edge = (known[3:6].amax(0) > EDGE).nonzero()[:, 0]
    grey, csf = (torch.from_numpy(in_vivo_3t().median[TISSUES.index(t)]).log()[:, None] for t in ("GM", "CSF"))
    for start in (csf, (grey + csf) / 2) if len(edge) else ():
        tried, tried_cost = levenberg_marquardt(
            lambda of, x: _residuals(of, x, settings), known[:, edge], start, low, high, N_STEPS
        )
        better = tried_cost < cost[edge]
        x[:, edge], cost[edge] = torch.where(better, tried, x[:, edge]), torch.where(better, tried_cost, cost[edge])
    return x


def _what_is_known(log_maps, slices: Slices, brain, voxel_mm, common_scale, shown, where) -> tuple[Tensor, Tensor]:
    """``(6 + 2m, v)``, in double precision, and the settings ``(1, m, 6)``.

    Rows: the network's log maps, how far they may be off; the signals, the SD of their noise.
    """
    if not (slices.settings == slices.settings[:1]).all():
        raise ValueError("slices of several sessions: refine one session at a time")
    reach = max(1, round(NEARBY_MM / voxel_mm))
    window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
    above, below = functional.max_pool2d(log_maps, **window), -functional.max_pool2d(-log_maps, **window)
    off = (TRUST**2 + (above - below) ** 2).sqrt()
    about = torch.cat([t.transpose(0, 1)[:, where] for t in (log_maps, off)]).double()
    n_scans = slices.images.shape[1]
    gains = torch.ones(n_scans)
    if not common_scale:
        predicted = shown_signal(TissueMaps.from_stack(log_maps.exp()), slices.settings)
        gains = gain_per_scan(predicted, slices.images, brain[:, None] & shown[..., None, None]).clamp_min(1e-9)
    signals = (slices.images.transpose(0, 1)[:, where] / gains[:, None]).double()
    sd = (noise_of(slices, brain) / gains).double()[:, None].expand_as(signals)
    used = shown.T[:, where.nonzero(as_tuple=True)[0]]
    signals, sd = torch.where(used, signals, 0.0), torch.where(used, sd, HIDDEN)
    return torch.cat([about, signals, sd]), slices.settings[:1]


def _residuals(known: Tensor, log_maps: Tensor, settings: Tensor) -> Tensor:
    m = settings.shape[1]
    network, off, signals, sd = known.split([3, 3, m, m])
    pd, t1, t2 = log_maps.exp()
    model = signed_signal(TissueMaps(*(t[None, None] for t in (pd, t1, t2))), settings)[0, :, 0]
    misfit = (model**2 + sd**2).sqrt() - signals
    doubt = (sd**2 + (SIGNAL_ERROR * signals) ** 2).sqrt()
    fa, fb, t1_gm = fluid_line()
    line = t2.log() - fa - fb * t1.clamp_min(t1_gm).log()
    return torch.cat(
        [
            torch.where(sd < HIDDEN, misfit / doubt, 0.0),
            (log_maps - network) / off,
            _student((pd / implied_pd(t1)).log()[None] / WATER_SPREAD),
            _student((line * (t1 > t1_gm))[None] / FLUID_MIXTURE_SPREAD),
        ]
    )


def _student(r: Tensor) -> Tensor:
    """A residual whose square is log(1 + r²): fat and lesions must be free to leave a line."""
    return r.sign() * torch.log1p(r**2).sqrt()
