"""From scans to maps: the encoder starts, and the scans have the last word.

The encoder knows the protocols that it was trained on, and the physics knows them all. So the encoder tells where white
matter, grey matter and fluid are, these three tell the gains, and each pixel moves until the signal equations explain
the scans (:func:`explain`): any sequence that :mod:`physics` can render is taken at its word. ``fit --fast`` is the
encoder alone (:func:`infer`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu, threshold_otsu
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional

from .physics import TissueMaps, shown_signal, signal_slopes
from .slices import SIGNAL_ERROR, Scans, Slices, brightness, largest_piece
from .tissue import (
    NOISE_SQUARED,
    TISSUES,
    WATER_SPREAD,
    ThreeTissues,
    fit_three_tissues,
    implied_pd,
    in_vivo_3t,
    three_medians,
    water_line,
)
from .vae import TYPICAL_SIGNAL, PoEVAE, Posterior

INFERENCE_BATCH = 32  # slices at a time: fits any machine, and more is no faster


@torch.no_grad()
def encode(
    vae: PoEVAE,
    slices: Slices,
    common_scale: bool = True,
    shown: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> Posterior:
    """The posterior ``(n, c, y, x)`` of every slice; arguments as :func:`infer`."""
    shown = slices.observed if shown is None else shown & slices.observed
    scale = brightness(slices.images, slices.observed, slices.subject) if scale is None else scale
    parts = []
    for rows in torch.arange(len(slices)).split(INFERENCE_BATCH):
        inputs, level = slices.images[rows] / scale[rows][..., None, None], scale[rows] / TYPICAL_SIGNAL
        parts.append(
            vae.encode(inputs, slices.settings[rows], shown[rows], level, torch.full((len(rows),), common_scale))
        )
    return Posterior(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


@torch.no_grad()
def infer(
    vae: PoEVAE,
    slices: Slices,
    common_scale: bool = True,
    shown: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
):
    """Posterior ``(n, c, y, x)`` and tissue maps ``(n, y, x)`` of its mean, of every slice, from the encoder alone.

    Parameters
    ----------
    common_scale
        Whether ``slices.images`` share the scale of PD (see :func:`cohort.load_scans`).
    shown
        ``(n, m)`` bool, the scans the encoder may see; None: all that exist.
    scale
        ``(n, m)``, what each scan is divided by; None: :func:`slices.brightness` over these very slices.
    """
    posterior = encode(vae, slices, common_scale, shown, scale)
    maps = torch.cat([vae.decode(part).stack() for part in posterior.mean.split(INFERENCE_BATCH)])
    return posterior, TissueMaps.from_stack(maps)


# --- through the physics --------------------------------------------------------------------------

HUBER = 3.0  # SDs, beyond which a misfit counts by its size and not by its square: flow, vessels, motion
AT_A_TIME = 8  # slices: what a processor keeps near
ENOUGH = 100  # pixels of a tissue, for its median
LACKING = 3.0  # each signal of a tissue that an opinion lacks costs as one 4 SD off does: fewer are easier to explain
SWAPPED = 3.0  # white and grey matter are swapped where twice the cost and this is still less: real scans stray, too


class Explained(NamedTuple):
    """What scans say.

    Parameters
    ----------
    maps
        ``(n, y, x)``.
    tissues, unsure
        ``(3, 3)``: PD, T1 (s), T2 (s) of the person's WM, GM and CSF, and the SD of their logarithms.
    gain, noise
        ``(m,)``: takes the maps' signal to ``slices.images``, and the SD of the noise in the same unit.
    misfit
        ``(n,)``: of each slice, per pixel, in units of the noise's variance.
    """

    maps: TissueMaps
    tissues: Tensor
    unsure: Tensor
    gain: Tensor
    noise: Tensor
    misfit: Tensor


@torch.no_grad()
def explain(
    vae: PoEVAE,
    slices: Slices,
    shown: Tensor | None = None,
    scale: Tensor | None = None,
    gain: Tensor | None = None,
) -> Explained:
    """Tissue maps of one session that explain its scans.

    The encoder's maps tell where white matter, grey matter and fluid are. The median signals of these three tell the
    person's tissue and the gain of each scan (:func:`tissue.fit_three_tissues`). Then the encoder sees the scans on one
    scale. Each pixel starts at its tissue, else at what the encoder sees, or where its signals are far from that at
    what they are near (:func:`where_signals_are`), and moves until the equations explain it (:func:`sharpened`).

    Parameters
    ----------
    slices
        Of one session; ValueError if they are of several.
    shown, scale
        As :func:`infer` takes them.
    gain
        ``(m,)``, where it is known: of scans on the scale of PD it is 1. None: each scan has its own, unknown.
    """
    if len(slices.subject.unique()) > 1:
        raise ValueError("slices of several sessions: explain one session at a time")
    shown = slices.observed if shown is None else shown & slices.observed
    scale = brightness(slices.images, slices.observed, slices.subject) if scale is None else scale
    scans = Scans(slices.images / scale[..., None, None], slices.settings, shown)
    used = shown.any(0)
    _, alone = infer(vae, slices, False, shown, scale)
    unit = (shown * scale).sum(0) / shown.sum(0).clamp_min(1)
    known = None if gain is None else (gain / unit.clamp_min(1e-9))[used]
    masks, found = _best_explained(three_tissues(alone.stack(), scans), scans, used, known)
    tissues, unsure, gain = found.values, found.sd, torch.ones(len(used))
    gain[used] = found.gains
    on_one_scale = replace(slices, images=scans.images / gain[:, None, None])
    start = toward_fluid(infer(vae, on_one_scale, True, shown)[1].stack(), tissues)
    start = where_signals_are(start, tissues, scans, gain)
    for mask, values in zip(masks, tissues, strict=True):
        if mask.sum() >= ENOUGH:
            start = torch.where(mask[:, None], values[:, None, None], start)
    parts = torch.arange(len(slices)).split(AT_A_TIME)
    maps = torch.cat([sharpened(start[rows], scans[rows], gain, scans.noise) for rows in parts])
    counted = scans.counted.amax(1).sum((1, 2)).clamp_min(1)
    left = torch.cat([misfit(maps[rows], scans[rows], gain, scans.noise).sum((1, 2)) for rows in parts]) / counted
    return Explained(TissueMaps.from_stack(maps), tissues, unsure, gain * unit, scans.noise * unit, left)


def toward_fluid(maps: Tensor, tissues: Tensor) -> Tensor:
    """Maps ``(n, 3, y, x)`` whose fluid has at least the T2 that its T1 implies between grey matter and CSF.

    Hardly any scan tells T2 of fluid, so it stays near where it starts. ``tissues``: the person's WM, GM and CSF.
    """
    (_, t1, t2), (_, fluid_t1, fluid_t2) = tissues[1:].log()
    part = ((maps[:, 1].log() - t1) / (fluid_t1 - t1)).clamp(0, 1)
    implied = (t2 + part * (fluid_t2 - t2)).exp() * (maps[:, 1] > FLUID_T1)
    return torch.stack([maps[:, 0], maps[:, 1], torch.maximum(implied, maps[:, 2])], 1)


BETWEEN = (0.0, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Where else a pixel may start: at white matter (0), grey matter (1), fluid (2), or between two of them."""

WORSE = 6.0
"""By so much in the misfit the encoder must be wrong for that: far from home it may take cortex for fluid."""

DARKER = 2.0
"""The same where no scan shows anything: that is bone and air, or fluid where there is no T2w."""

AS_GOOD = 2.0
"""A pixel of the brain starts at one tissue if that explains it best of :data:`BETWEEN`, and at most by this worse than
the encoder does. Where scans tell little a pixel stays near its start, and the encoder is blurred."""

LEAST_PART = 0.01  # of a voxel that fat or muscle fills: a logarithm needs something


def where_signals_are(start: Tensor, tissues: Tensor, scans: Scans, gain: Tensor) -> Tensor:
    """Maps ``(n, 3, y, x)``, pixels whose signals are far from those of ``start`` moved to what they are near.

    That is one of :data:`BETWEEN`. Outside the brain it may also be fat or muscle, of which there is as much as the
    signals ask for: less than a voxel at the rim of the head, and next to nothing in bone and air.
    """
    noise = scans.noise
    off = misfit(start, scans, gain, noise, scans.measured)
    brain = functional.max_pool2d(_brain(start, scans.inside)[:, None].float(), 3, 1, 1)[:, 0] > 0
    best, least = start, torch.full_like(off, torch.inf)
    pure = torch.zeros_like(brain)
    for at in BETWEEN:
        i = min(int(at), 1)
        between = tissues[i] * (tissues[i + 1] / tissues[i]) ** (at - i)
        values = between[None, :, None, None]  # one voxel, held against all
        cost = misfit(values, scans, gain, noise)
        nearer = cost < least
        best, least = torch.where(nearer[:, None], values, best), torch.where(nearer, cost, least)
        pure = torch.where(nearer, at == int(at), pure)
    told = pure & brain & (scans.shown.any(0).sum() > 1)  # one scan tells no tissue from a mixture
    wrong = off * scans.inside - WORSE
    nearer = (least < wrong) | (told & (least < off + AS_GOOD))
    best, least = torch.where(nearer[:, None], best, start), torch.where(nearer, least, wrong)
    around = scans.measured.any(1) & ~brain
    least = torch.where(scans.inside, least, off - DARKER)
    for tissue in ("fat", "muscle"):
        values = torch.from_numpy(in_vivo_3t().median[TISSUES.index(tissue)]).float()[None, :, None, None]
        whole = gain[:, None, None] * shown_signal(values.unbind(1), scans.settings[:1])
        part = (scans.weight * whole * scans.over_noise).sum(1) / (scans.weight * whole**2).sum(1).clamp_min(1e-9)
        values = values.repeat(len(part), 1, *part.shape[1:])
        values[:, 0] *= part.clamp(LEAST_PART, 1)
        cost = misfit(values, scans, gain, noise, scans.measured)
        nearer = around & (cost < least)
        best, least = torch.where(nearer[:, None], values, best), torch.where(nearer, cost, least)
    return best


def _best_explained(
    candidates: list[list[Tensor]], scans: Scans, used: Tensor, gains: Tensor | None
) -> tuple[list[Tensor], ThreeTissues]:
    """Of several opinions on where the three tissues are, the one whose signals tissue explains best.

    Also with white and grey matter swapped (:data:`SWAPPED`): far from home the encoder may take one for the other.
    """
    opinions = []
    for masks in [*candidates, *([grey, white, fluid] for white, grey, fluid in candidates)]:
        signals = torch.full((len(used), 3), torch.nan)
        for k, mask in enumerate(masks):
            if mask.sum() >= ENOUGH:
                there = mask[:, None] & scans.measured & (scans.images != 0)
                signals[:, k] = torch.stack([scans.images[:, m][there[:, m]].median() for m in range(len(used))])
        found = fit_three_tissues(signals[used], scans.settings[0, used], scans.noise[used], gains)
        cost = found.cost + LACKING * int(signals[used].isnan().sum())
        cost += (len(opinions) >= len(candidates)) * (found.cost + SWAPPED)
        opinions.append((cost, masks, found))
    return min(opinions, key=lambda opinion: opinion[0])[1:]


def three_tissues(maps: Tensor, scans: Scans) -> list[list[Tensor]]:
    """Where WM, GM and CSF are: one or two opinions of three ``(n, y, x)`` bool each. Borders are left out.

    The encoder's maps ``(n, 3, y, x)`` tell the brain. Their T1 tells three groups: WM, GM, and what GM shares with
    fluid. A mixture of Gaussians starts from these; it knows the signals and that T1: the encoder sees neighbours, too.
    Another, of signals alone, starts from those of the literature's tissues and counts only if it finds all three.
    """
    brain = _brain(maps, scans.inside)
    fluid = brain & ((maps[:, 1] > FLUID_T1) | (maps[:, 2] > FLUID_T2))
    used = scans.shown.all(0)
    used = used if used.any() else torch.ones_like(used)
    images = scans.images[:, used]
    level = images.abs().flatten(2).quantile(0.95, 2)[..., None, None].clamp_min(1e-6)
    flat = brain & (_range_of(images / level).amax(1) < FLAT)
    solid = flat & ~fluid
    t1 = maps[:, 1]
    white_below, mixed_from = _cuts(t1[solid].numpy())
    starts = [solid & (t1 < white_below), solid & (t1 >= white_below) & (t1 < mixed_from)]
    if min(start.sum() for start in starts) < ENOUGH:
        return [[solid, torch.zeros_like(solid), fluid]]
    starts += [fluid & flat] if (fluid & flat).sum() >= ENOUGH else []
    pure = flat & (t1 > PURE_T1)  # most fluid lies in sulci and is shared: it has no Gaussian
    seen = [start & ~pure for start in starts[:2]]
    flat &= (images != 0).all(1)  # what a scan does not cover is no signal
    if min((start & flat).sum() for start in starts) < ENOUGH:
        return [[*seen, pure]]
    starts = [start & flat for start in starts]
    signals = images.movedim(1, -1).numpy().astype(float)
    both = np.concatenate([signals, t1.log()[..., None].numpy()], -1)
    groups = [both[start.numpy()] for start in starts]
    middle = [np.median(group, 0) for group in groups]
    width = [1.5 * np.median(np.abs(group - m), 0) + NARROWEST for group, m in zip(groups, middle, strict=True)]
    white, grey, *_ = _mixture(both, flat, middle, [OUTLYING * w for w in width])
    told = [white & ~pure, grey & ~pure]
    if min(mask.sum() for mask in told) >= SMALLEST_PART * sum(mask.sum() for mask in told):
        seen = told
    inside = signals[flat.numpy()]
    known = torch.tensor(list(three_medians().values()))[:, :, None, None]  # (tissue, quantity, 1, 1)
    expected = shown_signal(known.unbind(1), scans.settings[:1, used].expand(3, -1, -1))[..., 0, 0].numpy()
    expected *= np.median(np.abs(inside), 0) / np.maximum(np.abs(expected[:2]).mean(0), 1e-9)
    likely = _mixture(signals, flat, list(expected), [3 * inside.std(0)] * 3)
    return [[*seen, pure]] + ([likely] if min(mask.sum() for mask in likely) >= ENOUGH else [])


def _cuts(t1: NDArray) -> tuple[float, float]:
    """T1 (s) between WM and GM, and between GM and what it shares with fluid, of pixels ``(k,)``."""
    if len(t1) <= ENOUGH:
        return 0.0, np.inf
    try:
        return tuple(threshold_multiotsu(t1, 3))
    except ValueError:  # fewer than three values
        return threshold_otsu(t1), np.inf


def _mixture(signals: NDArray, flat: Tensor, middle: list[NDArray], reach: list[NDArray]) -> list[Tensor]:
    """Of each group, the pixels ``(n, y, x)`` that are surely its: Gaussians that start at ``middle`` ``(m,)``.

    What is farther than ``reach`` from all starts is scalp, vessel, or what else the encoder took for brain.
    """
    near = [(np.abs(signals - m) < r).all(-1) for m, r in zip(middle, reach, strict=True)]
    near = flat & torch.from_numpy(np.any(near, 0))
    sure = [torch.zeros_like(flat) for _ in middle]
    inside = signals[near.numpy()]
    if len(inside) < ENOUGH:
        return sure
    spread = inside.std(0) + 1e-9
    some, starts = inside[:: max(1, len(inside) // AT_MOST)] / spread, [m / spread for m in middle]
    mixture = GaussianMixture(len(starts), means_init=starts, reg_covar=1e-3, max_iter=60, random_state=0).fit(some)
    chances = torch.from_numpy(mixture.predict_proba(inside / spread))
    for k, mask in enumerate(sure):
        mask[near] = chances[:, k] > SURE
    return sure


FLUID_T1, FLUID_T2, PURE_T1 = 2.4, 0.3, 3.0  # s: longer is fluid, and fluid alone
FAT_T1 = 0.72  # s, as the encoder sees it: 0.5 to 0.67 where white matter is 1.0
FLAT = 0.25  # of a scan's brightness: a pixel whose neighbours differ by more is at a border
NARROWEST, OUTLYING = 0.03, 6.0  # of brightness or log T1, added to a group's spread; how many of the sum it reaches
AT_MOST = 15_000  # pixels that a mixture is fitted to
SURE = 0.9
SMALLEST_PART = 0.15  # of white and grey matter together: a smaller part is a mixture's mistake


def _range_of(images: Tensor) -> Tensor:
    """Largest less smallest of each 3×3 neighbourhood."""
    return functional.max_pool2d(images, 3, 1, 1) + functional.max_pool2d(-images, 3, 1, 1)


def _brain(maps: Tensor, inside: Tensor) -> Tensor:
    """``(n, y, x)`` bool: of each slice the largest piece that is neither fat, muscle nor bone."""
    soft = inside & (maps[:, 0] > 0.5) & (maps[:, 1] > FAT_T1) & (maps[:, 2] > 0.04)
    return torch.from_numpy(largest_piece(soft.numpy()))


OWN_SPREAD = (0.05, 0.1, 0.1)
"""SD of log PD, T1 and T2 of a pixel about where it starts: its tissue, or what the encoder, which sees no thin cortex,
says."""

WATER = (1.0, 4.8, 2.6)  # PD, T1 (s), T2 (s): nothing in a head has more water than water, nor relaxes slower
ROUNDS, FARTHEST = 4, 0.15  # Gauss–Newton steps and the longest of them, in logarithms


@torch.no_grad()
def sharpened(start: Tensor, scans: Scans, gain: Tensor, noise: Tensor) -> Tensor:
    """Maps ``(n, 3, y, x)``, each pixel where its signals, :data:`OWN_SPREAD` and the water line agree best.

    Gauss–Newton in log PD, log T1 and log T2 from ``start``.
    """
    first, held = start.log(), start.new_tensor(OWN_SPREAD) ** -2
    at = first
    for _ in range(ROUNDS):
        here, slopes = signal_slopes(at, scans.settings, gain)
        off, steepness = misfits(here, scans, noise)
        slopes = slopes * steepness[..., None]
        weight = scans.counted / (1 + (off / HUBER) ** 2).sqrt()
        line, from_line = water_slope(at)
        line = line / (1 + (from_line / HUBER)[..., None] ** 2)  # fat is not on it
        curvature = torch.einsum("nmyxp,nmyxq,nmyx->nyxpq", slopes, slopes, weight) + torch.diag(held)
        curvature = curvature + line[..., :, None] * line[..., None, :]
        wanted = torch.einsum("nmyxp,nmyx->nyxp", slopes, off * weight) - line * from_line[..., None]
        wanted = wanted - ((at - first) * held[:, None, None]).movedim(1, -1)
        at = at + torch.linalg.solve(curvature, wanted).clamp(-FARTHEST, FARTHEST).movedim(-1, 1)
    return torch.minimum(at.exp(), at.new_tensor(WATER)[:, None, None])


def misfits(here: Tensor, scans: Scans, noise: Tensor) -> tuple[Tensor, Tensor]:
    """How far scans are from signals ``here`` ``(n, m, y, x)``, in SDs, and the slope of that."""
    noise, signed = noise[:, None, None], scans.settings[..., 5, None, None] > 0
    doubt = (noise**2 + (SIGNAL_ERROR * scans.images) ** 2).sqrt()
    floored = (here**2 + NOISE_SQUARED * noise**2).sqrt()
    expected = torch.where(signed, here, floored)
    return (scans.images - expected) / doubt, torch.where(signed, 1, here / floored) / doubt


@torch.no_grad()
def misfit(maps: Tensor, scans: Scans, gain: Tensor, noise: Tensor, where: Tensor | None = None) -> Tensor:
    """``(n, y, x)``: how badly maps explain scans, robust, in units of the noise's variance; 0 outside the head.

    ``where`` ``(n, m, y, x)`` counts instead, if given.
    """
    off, _ = misfits(gain[:, None, None] * shown_signal(maps.unbind(1), scans.settings), scans, noise)
    counted = scans.counted if where is None else where
    return (HUBER**2 * ((1 + (off / HUBER) ** 2).sqrt() - 1) * counted).sum(1)


def water_slope(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Slope ``(n, y, x, 3)`` of the water line at log maps ``(n, 3, y, x)``, and how far off they lie, in its SDs."""
    (_, b, c), t1 = water_line(), logs[:, 1].exp()
    share = implied_pd(t1) * (b / t1 + 2 * c / t1**2)  # of the line's slope, in logarithms
    slope = torch.stack([torch.ones_like(share), -share, torch.zeros_like(share)], -1) / WATER_SPREAD
    return slope, (logs[:, 0] - implied_pd(t1).log()) / WATER_SPREAD
