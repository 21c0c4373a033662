"""An SD that is right as often as it says, measured on validation people.

Samples of the latent posterior share the model's own errors: the receive field, directions the scans cannot
see, what training has not learned. So their spread is too small. What is missing is measured after training, on
simulated people made from the validation heads, whose truth is known, and added to the variance. It depends on
the scans that were shown and on the inferred T1, which tells fluid from tissue without a label: a T2 of CSF is known
far less than one of white matter.

Maps that the scans explained (:func:`inference.explain`) have an SD from the curvature of their misfit, voxel by voxel:
what the protocols do not tell is as wide as people are (:func:`local_sd`). Factors that make it right are measured on
sessions of random protocols (:func:`calibrate_local`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from .inference import INFERENCE_BATCH, Explained, explain, infer, water_slope
from .physics import SEQUENCES, TissueMaps, signal_slopes
from .slices import MAPS, SIGNAL_ERROR, SUBSETS, Person, Slices, Truth
from .vae import PoEVAE, Posterior

NAME = "posterior_sd.json"
"""The file in the folder of a VAE."""

T1_NODES = (0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.8, 4.0)
"""s. Between them the missing part is interpolated, beyond them it stays."""

LEVEL = 0.9
SO_MANY = 0.75  # of the sessions
N_SAMPLES = 4


@torch.no_grad()
def posterior_sd(vae: PoEVAE, posterior: Posterior, n_samples: int, generator: torch.Generator) -> TissueMaps:
    """SD of PD, T1 (s) and T2 (s) over decoded samples of the posterior, each ``(n, y, x)``.

    It is how sure the model is, not how right: an error that all samples share does not show. On a simulated whole
    brain, weights of the laptop profile had one in twenty true values within two of these SDs.

    Parameters
    ----------
    n_samples
        At least 2; the SD itself is known to a fraction 1/√(2(n − 1)).
    """
    spread = []
    for mean, log_variance in zip(*(t.split(INFERENCE_BATCH) for t in posterior), strict=True):
        part, middle = Posterior(mean, log_variance), vae.decode(mean).stack()
        total, squares = torch.zeros_like(middle), torch.zeros_like(middle)
        for _ in range(n_samples):
            off = vae.decode(part.sample(generator)).stack() - middle  # small numbers: their squares keep all digits
            total += off
            squares += off**2
        spread.append(((squares - total**2 / n_samples) / (n_samples - 1)).clamp_min(0).sqrt())
    return TissueMaps.from_stack(torch.cat(spread))


def calibrate(vae, people: list[Person], scales: tuple[bool, ...] = (True, False), seed: int = 0) -> dict:
    """The missing SD, a fraction of the estimate, so that :data:`LEVEL` of the true values lie in their intervals.

    Every voxel of the brain counts, mixtures of tissue too. PD is taken relative to the person's own CSF where there is
    any, because the scale of PD is unknown without a common scale.

    Parameters
    ----------
    people
        Scanned with all three contrasts; simulated.
    scales
        Whether scans share a scale, as far as the VAE was trained for it.

    Returns
    -------
        ``"t1_nodes"`` (s), and ``"missing"``: scale → sequences shown → quantity → a number per node.
    """
    z, generator, missing = stats.norm.ppf((1 + LEVEL) / 2), torch.Generator().manual_seed(seed), {}
    for common in scales:
        for shown in SUBSETS.values():
            t1, needed = [], []
            for person in people:
                slices = person.common if common else person.scanned
                posterior, maps = infer(vae, slices, common, torch.tensor(shown).expand(len(slices), -1))
                sd = posterior_sd(vae, posterior, N_SAMPLES, generator).stack()
                estimate, brain = maps.stack(), person.truth.brain
                truth = _on_scale_of(estimate, person.truth)
                off = ((truth - estimate) / estimate / z) ** 2 - (sd / estimate) ** 2  # variance that would do
                needed.append(off.transpose(0, 1)[:, brain])
                t1.append(maps.t1[brain])
            keys = missing.setdefault(_scale(common), {})
            keys[_key(slices.settings[0], torch.tensor(shown))] = _by_t1(torch.cat(t1), torch.cat(needed, 1))
    return {"t1_nodes": list(T1_NODES), "missing": missing}


def _on_scale_of(estimate: Tensor, truth: Truth) -> Tensor:
    """True maps ``(n, 3, y, x)`` with PD such that the person's own CSF has that of the estimate, if there is any."""
    maps, csf = truth.maps.clone(), truth.tissue("CSF")
    if csf.any():
        maps[:, 0] *= estimate[:, 0][csf].median() / maps[:, 0][csf].median()
    return maps


def _by_t1(t1: Tensor, needed: Tensor) -> dict[str, list[float]]:
    """Per quantity and node: the SD that covers :data:`LEVEL` of the voxels whose T1 is nearest to the node.

    A node with too few voxels takes that of all.
    """
    nearest = np.abs(np.log(t1.clamp_min(1e-3).numpy())[:, None] - np.log(T1_NODES)).argmin(1)
    out = {}
    for quantity, values in zip(MAPS, needed.numpy(), strict=True):
        whole = np.quantile(values, LEVEL)
        near = [values[nearest == k] for k in range(len(T1_NODES))]
        variances = [np.quantile(part, LEVEL) if part.size > FEWEST else whole for part in near]
        out[quantity] = [round(float(np.sqrt(max(variance, 0))), 5) for variance in variances]
    return out


FEWEST = 50  # voxels, for a quantile


def honest_sd(
    sd: TissueMaps, maps: TissueMaps, slices: Slices, common_scale: bool, calibration: dict | None,
    shown: Tensor | None = None,
) -> TissueMaps:  # fmt: skip
    """The SD of posterior samples with what they miss, for maps ``(n, y, x)`` inferred from ``slices``.

    Parameters
    ----------
    calibration
        Of :func:`calibrate`; None, and combinations of scans that it does not hold, leave the SD as it is.
    shown
        ``(n, m)`` bool, as :func:`inference.infer` takes it.
    """
    known = (calibration or {}).get("missing", {}).get(_scale(common_scale))
    if not known:
        return sd
    shown = slices.observed if shown is None else shown & slices.observed
    out, log_nodes = sd.stack().clone(), np.log(calibration["t1_nodes"])
    for i in range(len(slices)):
        missing = known.get(_key(slices.settings[i], shown[i]))
        if missing is None:
            continue
        log_t1 = np.log(maps.t1[i].clamp_min(1e-3).numpy())
        for p, quantity in enumerate(MAPS):
            share = torch.from_numpy(np.interp(log_t1, log_nodes, missing[quantity])).float()
            out[i, p] = (out[i, p] ** 2 + (share * maps[p][i]) ** 2).sqrt()
    return TissueMaps.from_stack(out)


def read_calibration(folder: Path) -> dict | None:
    """What the folder of a VAE holds, or None."""
    path = folder / NAME
    return json.loads(path.read_text()) if path.exists() else None


def _scale(common: bool) -> str:
    return "common scale" if common else "any gain"


def _key(settings: Tensor, shown: Tensor) -> str:
    """Which sequences were shown, each named once: "MPRAGE + FLAIR"."""
    kinds = {int(index) for index, there in zip(settings[:, 0], shown, strict=True) if there}
    return " + ".join(SEQUENCES[k].value for k in sorted(kinds))


# --- of maps that the scans explained -------------------------------------------------------------

PEOPLE_SD = (0.08, 0.25, 0.3)
"""SD of log PD, T1 and T2 before any scan is seen: tissues of one kind, among people, methods and diseases."""


@torch.no_grad()
def local_sd(explained: Explained, slices: Slices, shown: Tensor | None = None) -> TissueMaps:
    """SD of PD, T1 (s) and T2 (s) in each voxel, each ``(n, y, x)``: how far its signals let its tissue go.

    The curvature in log PD, log T1 and log T2 of the voxel's misfit (noise and :data:`slices.SIGNAL_ERROR`), of the
    water line, and of :data:`PEOPLE_SD`, inverted; and how unsure the person's nearest tissue is, and with it the
    gains. It knows nothing of partial volume: :func:`calibrate_local` measures what that amounts to.
    """
    shown = slices.observed if shown is None else shown & slices.observed
    logs = explained.maps.stack().log()
    here, slopes = signal_slopes(logs, slices.settings, explained.gain)
    doubt = (explained.noise[:, None, None] ** 2 + (SIGNAL_ERROR * here) ** 2).sqrt().clamp_min(1e-9)
    slopes = slopes / doubt[..., None] * shown[..., None, None, None]
    curvature = torch.einsum("nmyxp,nmyxq->nyxpq", slopes, slopes)
    curvature += torch.diag(logs.new_tensor(PEOPLE_SD) ** -2)
    line, _ = water_slope(logs)
    curvature += line[..., :, None] * line[..., None, :]
    own = torch.linalg.inv(curvature).diagonal(dim1=-2, dim2=-1).clamp_min(0).movedim(-1, 1)
    nearest = (logs[:, 1, ..., None] - explained.tissues[:, 1].log()).abs().argmin(-1)
    sd = (own + explained.unsure.square()[nearest].movedim(-1, 1)).sqrt()
    return TissueMaps.from_stack(sd * explained.maps.stack())


PURE = 0.9  # part of a voxel that one tissue fills


def calibrate_local(vae, sessions: list[tuple[Slices, Truth]]) -> dict[str, list[float]]:
    """What to multiply :func:`local_sd` by, per quantity and node of T1, so that :data:`LEVEL` of truth lies within.

    In voxels of one tissue: one that cortex and fluid share has no one T2, and no SD of it. And in :data:`SO_MANY` of
    the sessions: in some of random protocols fluid is taken for tissue, and no usable interval would hold in those.

    Parameters
    ----------
    sessions
        Slices of one session each, with their truth: simulated people, protocols drawn at random.
    """
    z, found = stats.norm.ppf((1 + LEVEL) / 2), []
    for slices, truth in sessions:
        pure = torch.stack([truth.tissue(name, PURE) for name in ("WM", "GM", "CSF")]).any(0)
        explained = explain(vae, slices)
        sd, estimate = local_sd(explained, slices).stack(), explained.maps.stack()
        off = (((_on_scale_of(estimate, truth) - estimate) / sd / z) ** 2).transpose(0, 1)[:, pure]
        found.append(_by_t1(explained.maps.t1[pure], off))
    return {name: np.quantile([one[name] for one in found], SO_MANY, 0).round(5).tolist() for name in MAPS}


def calibrated(sd: TissueMaps, maps: TissueMaps, factors: dict[str, list[float]] | None) -> TissueMaps:
    """:func:`local_sd` times the factors of :func:`calibrate_local`; None leaves it as it is."""
    if not factors:
        return sd
    log_t1, nodes = np.log(maps.t1.clamp_min(1e-3).numpy()), np.log(T1_NODES)
    times = (torch.from_numpy(np.interp(log_t1, nodes, factors[name])).float() for name in MAPS)
    return TissueMaps(*(values * factor for values, factor in zip(sd, times, strict=True)))


def explained_sd(
    explained: Explained, slices: Slices, calibration: dict | None, shown: Tensor | None = None
) -> TissueMaps:
    """:func:`local_sd` times what ``calibration``, the content of :data:`NAME`, has for it; None leaves it as it is."""
    return calibrated(local_sd(explained, slices, shown), explained.maps, (calibration or {}).get("explained"))
