"""Many small least-squares problems at once, one a voxel: what refining maps and rivals without a network share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..slices import Slices

BOUNDS = ((0.2, 1.05), (0.2, 6.0), (0.02, 4.0))
"""PD (water = 1), T1 (s), T2 (s): no voxel of a brain lies outside."""

VOXELS_AT_A_TIME = 2048  # what a processor keeps near: more at a time is slower
NUDGE = 1e-5  # of a logarithm, for differences in double precision


def noise_of(slices: Slices, brain: Tensor) -> Tensor:
    """``(m,)``: SD of each scan's noise, told from the air, where magnitudes are Rayleigh: SD² = mean square / 2.

    Where there is no air in the picture: 2 % of the scan's 99th percentile in the brain.
    """
    sds = []
    for m in range(slices.images.shape[1]):
        image = slices.images[:, m]
        inside = image[brain]
        peak = torch.quantile(inside, 0.99)
        dark = image[~brain]
        dark = dark[(dark > 0) & (dark < 0.15 * peak)]  # air and what else is dark; 0 is where nothing was scanned
        sds.append((dark**2).mean().div(2).sqrt() if len(dark) > 100 else 0.02 * peak)
    return torch.stack(sds).clamp_min(1e-6)


def levenberg_marquardt(
    residuals: Callable[[Tensor, Tensor], Tensor], known: Tensor, start: Tensor, low: Tensor, high: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """Minimise Σ residuals² of every voxel.

    Parameters
    ----------
    residuals
        ``(known (k, v), x (p, v)) → (r, v)``.
    known
        ``(k, v)``, what is known of each voxel; only ``residuals`` reads it.
    start
        ``(p, v)``, or ``(p, 1)`` for all alike.
    low, high
        ``(p, 1)``.

    Returns
    -------
        Minima ``(p, v)`` and their sums of squares ``(v,)``.
    """
    x = start.expand(-1, known.shape[1]).clamp(low, high)
    cost = (residuals(known, x) ** 2).sum(0)
    damping, going = torch.full_like(cost, 1e-2), torch.arange(len(cost))  # the problems that still move
    for _ in range(n_steps):
        here, of, c, ridge = x[:, going], known[:, going], cost[going], damping[going]
        r, normal, slope = _linearised(residuals, of, here)
        # At a bound, a parameter that would leave it is held, so that the others do not go where it cannot follow.
        held = (((here <= low) & (slope.T > 0)) | ((here >= high) & (slope.T < 0))).T
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        added = ridge[:, None] * (diagonal + 1e-6) + 1e-9 + torch.where(held, 1e12, 0.0)
        move = torch.linalg.solve(normal + torch.diag_embed(added), -slope[..., None])[..., 0].T
        tried = (here + move.clamp(-1, 1)).clamp(low, high)
        tried_cost = (residuals(of, tried) ** 2).sum(0)
        better = tried_cost < c
        x[:, going], cost[going] = torch.where(better, tried, here), torch.where(better, tried_cost, c)
        damping[going] = torch.where(better, ridge / 5, ridge * 6).clamp(1e-9, 1e6)
        there = (tried - here).abs().amax(0) < 1e-4  # a ten-thousandth of the value
        going = going[~there]
        if not len(going):
            break
    return x, cost


def spread_at(residuals: Callable[[Tensor, Tensor], Tensor], known: Tensor, x: Tensor) -> Tensor:
    """``(p, v)``: SD of each parameter at a minimum, if residuals are unit Gaussians: √ of the diagonal of (JᵀJ)⁻¹."""
    normal = _linearised(residuals, known, x)[1]
    return torch.linalg.inv(normal).diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().T


def _linearised(residuals, known: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals ``(r, v)``, JᵀJ ``(v, p, p)`` and Jᵀr ``(v, p)``."""
    r = residuals(known, x)
    jacobian = torch.stack([(residuals(known, _nudged(x, p)) - r) / NUDGE for p in range(len(x))], 1)
    return r, torch.einsum("rpv,rqv->vpq", jacobian, jacobian), torch.einsum("rpv,rv->vp", jacobian, r)


def _nudged(x: Tensor, p: int) -> Tensor:
    moved = x.clone()
    moved[p] += NUDGE
    return moved


def into_maps(values: Tensor, where: Tensor) -> Tensor:
    """``(3, v)`` back into ``(n, 3, y, x)``, 0 elsewhere."""
    stack = torch.zeros(3, *where.shape)
    stack[:, where] = values.float()
    return stack.transpose(0, 1)
