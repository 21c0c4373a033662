"""What tissue measures in vivo at 3 T, and how one person differs from the next.

The numbers come from ``data/relaxation_times.csv`` (one row a published value, with its DOI). This
file states the rule by which they become a distribution to draw subjects from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas
import torch
from torch import Tensor

from .machine.carried import carried
from .physics import Protocol, TissueMaps, render, shown_signal

TABLE = carried("data/relaxation_times.csv")

BRAIN = ("WM", "GM", "CSF", "thalamus", "caudate", "putamen", "pallidum", "hippocampus",
         "cerebellar WM", "cerebellar GM", "brain stem", "lesion")  # fmt: skip
HEAD = ("fat", "muscle", "bone", "marrow", "blood", "eye")
TISSUES = BRAIN + HEAD
REPORTED = {
    "WM": ("WM", "cerebellar WM"),
    "GM": ("GM", "cerebellar GM", "hippocampus", "caudate", "putamen", "thalamus"),
    "CSF": ("CSF",),
}
"""Which tissues a table row "WM", "GM" or "CSF" pools; pallidum and brain stem are in neither."""
CLASSES = ("CSF", "GM", "WM")
"""Labels 1, 2, 3 of every segmentation, from dark to bright in a T1w image."""
AIR_PD = 0.05
"""PD of water below which there is no tissue: air, or bone without water, whose T1 and T2 nobody can tell."""

ROWS = {
    "WM": ("white matter", "white matter (frontal)", "white matter (splenium)"),
    "GM": ("cortical grey matter", "cortical grey matter (frontal)", "cortical grey matter (occipital)",
           "cortical grey matter (prefrontal)"),
    "CSF": ("CSF", "CSF (subarachnoid)", "CSF (lateral ventricle frontal horns)"),
    "thalamus": ("thalamus",),
    "caudate": ("caudate", "caudate head"),
    "putamen": ("putamen",),
    "pallidum": ("pallidum", "globus pallidus"),
    "hippocampus": ("hippocampus",),
    "fat": ("fat", "fat (subcutaneous)"),
    "muscle": ("muscle", "skeletal muscle"),
    "bone": ("cortical bone",),
    "marrow": ("bone marrow (L4)",),
    "blood": ("blood (venous, sagittal sinus)", "blood (arterial, ICA)", "whole blood"),
}  # fmt: skip
"""Names in the table's ``tissue`` column that stand for each of our tissues."""

ASSUMED = {
    ("thalamus", "PD"): 0.77, ("caudate", "PD"): 0.82, ("putamen", "PD"): 0.81, ("pallidum", "PD"): 0.74,
    ("hippocampus", "PD"): 0.83, ("cerebellar WM", "PD"): 0.71, ("cerebellar GM", "PD"): 0.82,
    ("brain stem", "PD"): 0.73, ("lesion", "PD"): 0.83, ("eye", "PD"): 0.98, ("fat", "PD"): 0.85,
    ("marrow", "PD"): 0.70,
    ("cerebellar WM", "T1"): 0.90, ("cerebellar GM", "T1"): 1.40, ("brain stem", "T1"): 1.00,
    ("lesion", "T1"): 1.35, ("eye", "T1"): 4.0, ("bone", "T1"): 0.25,
    ("cerebellar WM", "T2"): 0.072, ("cerebellar GM", "T2"): 0.083, ("brain stem", "T2"): 0.070,
    ("lesion", "T2"): 0.120, ("eye", "T2"): 1.0, ("bone", "T2"): 0.001, ("blood", "T2"): 0.045,
}  # fmt: skip
"""Where the table has no in-vivo 3 T value: our assumption, between the tissues that were measured."""

OUTER_BAND = {
    ("WM", "T1"): (0.70, 1.09), ("GM", "T1"): (1.17, 1.61), ("CSF", "T1"): (3.8, 4.65),
    ("WM", "T2"): (0.055, 0.080), ("GM", "T2"): (0.065, 0.110), ("CSF", "T2"): (1.6, 2.4),
    ("WM", "PD"): (0.65, 0.75), ("GM", "PD"): (0.76, 0.87), ("CSF", "PD"): (0.97, 1.0),
}  # fmt: skip
"""In-vivo 3 T values outside these are set aside: a CSF T2 of 0.5 s, for one, is partial volume."""

BETWEEN_SUBJECTS = {"PD": 0.02, "T1": 0.05, "T2": 0.06}
"""SD of the logarithm from person to person, half of its variance shared by all tissues of one person."""


@dataclass(frozen=True)
class TissueTable:
    """Medians to draw subjects around: ``median[k, p]`` for tissue ``k`` and property PD, T1 (s), T2 (s)."""

    tissues: tuple[str, ...]
    median: np.ndarray

    def draw(self, rng: np.random.Generator, spread: float = 1.0) -> np.ndarray:
        """One person's tissue: ``(k, 3)``, PD relative to water, T1 and T2 in s; ``spread`` times the usual SD."""
        sd = spread * np.array([BETWEEN_SUBJECTS[p] for p in ("PD", "T1", "T2")])
        shared = rng.standard_normal((1, 3)) * np.sqrt(0.5)
        own = rng.standard_normal((len(self.tissues), 3)) * np.sqrt(0.5)
        values = self.median * np.exp(sd * (shared + own))
        values[:, 0] = np.minimum(values[:, 0], 1.0)  # no tissue holds more water than water
        return values


@cache
def measurements() -> pandas.DataFrame:
    """The whole literature table, times converted to seconds (columns as in ``data/README.md``).

    Read once and shared: take rows of it, change none.
    """
    table = pandas.read_csv(TABLE, dtype={"field_T": str})
    in_ms = table.unit == "ms"
    table.loc[in_ms, ["mean", "sd", "low", "high"]] /= 1000
    table.loc[in_ms, "unit"] = "s"
    return table


def usable(tissue: str, quantity: str) -> pandas.DataFrame:
    """The rows of :func:`measurements` that count for one tissue and "PD", "T1" or "T2".

    In vivo at 3 T (water content: also gravimetric, which has no field), a mean given, and within
    :data:`OUTER_BAND` where one is known.
    """
    table = measurements()
    rows = table[table.tissue.isin(ROWS.get(tissue, ())) & (table.property == quantity) & table["mean"].notna()]
    settings = ("in vivo", "gravimetric") if quantity == "PD" else ("in vivo", "derived", "fit")
    rows = rows[rows.setting.isin(settings) & rows.field_T.isin(("3", "any"))]
    low, high = OUTER_BAND.get((tissue, quantity), (0, np.inf))
    return rows[rows["mean"].between(low, high)]


def ratio_to_white_matter(tissue: str, quantity: str) -> pandas.Series:
    """How many times white matter's the value of ``tissue`` is, a number a study that measured both.

    A study's regions (frontal and occipital cortex, say) are averaged first.
    """
    own, white = (usable(name, quantity).groupby("citation")["mean"].mean() for name in (tissue, "WM"))
    return (own / white).dropna()


@cache
def in_vivo_3t() -> TissueTable:
    """The median over usable rows for every tissue, :data:`ASSUMED` where there is none.

    T2 of grey matter is white matter's median times the median of :func:`ratio_to_white_matter`.
    """
    median = np.empty((len(TISSUES), 3))
    for k, tissue in enumerate(TISSUES):
        for p, quantity in enumerate(("PD", "T1", "T2")):
            rows = usable(tissue, quantity)
            median[k, p] = rows["mean"].median() if len(rows) else ASSUMED[tissue, quantity]
    # White matter's T2 is 56 to 77 ms between methods, as wide as the whole step to grey matter: only within one
    # study does the method cancel. The ratio decides which of the two is brighter on FLAIR. T1 needs none of this:
    # its medians differ by a factor that single studies found too.
    white, grey = TISSUES.index("WM"), TISSUES.index("GM")
    median[grey, 2] = median[white, 2] * ratio_to_white_matter("GM", "T2").median()
    return TissueTable(TISSUES, median)


def three_medians() -> dict[str, tuple[float, float, float]]:
    """PD, T1 (s) and T2 (s) of "WM", "GM" and "CSF", the medians of :func:`in_vivo_3t`."""
    table = in_vivo_3t()
    return {name: tuple(float(v) for v in table.median[table.tissues.index(name)]) for name in REPORTED}


@cache
def water_line() -> tuple[float, float, float]:
    """``(a, b, c)`` of 1/PD = a + b/T1 + c/T1² (b in s, c in s²): how water content and T1 go together in the brain.

    The relation is Fatouros et al. 1991 (Magn Reson Med 17:402) and Gelman et al. 2001 (Magn Reson Med 45:71), who draw
    a straight line. The best one through our own table's WM, GM and CSF gives grey matter 3.5 % less water than is
    measured, which is more than people differ by; the square bends it so that it meets all three.
    """
    rows = [TISSUES.index(tissue) for tissue in REPORTED]
    pd, t1 = in_vivo_3t().median[rows, 0], in_vivo_3t().median[rows, 1]
    c, b, a = np.polyfit(1 / t1, 1 / pd, 2)
    return float(a), float(b), float(c)


def implied_pd(t1: Tensor) -> Tensor:
    """PD that T1 (s) implies on the :func:`water_line`."""
    a, b, c = water_line()
    return 1 / (a + b / t1 + c / t1**2)


@cache
def fluid_line() -> tuple[float, float, float]:
    """``(a, b, t1_gm)`` of log T2 = a + b·log T1, the line from grey matter to CSF, and where it starts (T1 of GM, s).

    In a healthy brain what has a longer T1 than grey matter is grey matter mixed with CSF, so the two
    ends of our own table say what T2 to expect there.
    """
    gm, csf = (in_vivo_3t().median[TISSUES.index(tissue), 1:] for tissue in ("GM", "CSF"))
    b = np.log(csf[1] / gm[1]) / np.log(csf[0] / gm[0])
    return float(np.log(gm[1]) - b * np.log(gm[0])), float(b), float(gm[0])


def leaves_signal(protocol: Protocol, floor: float = 0.05) -> bool:
    """Whether WM, GM or CSF of typical in-vivo values gives at least ``floor`` of the signal of water at rest.

    Decided from the protocol alone, before any image is seen. Below 5 %, a fifth of white matter in a
    T1w scan, tissue drowns in the noise of a scanner; the nine settings of Figure 4 include one such.
    """
    median = in_vivo_3t().median[[TISSUES.index(name) for name in CLASSES]]
    return bool(render(TissueMaps(*torch.from_numpy(median.T)), protocol).max() >= floor)


def mix(shares: Tensor, values: Tensor) -> Tensor:
    """Maps ``(n, 3, y, x)`` of voxels that hold several tissues.

    PD adds up. One T1 and one T2 must stand for the mixture: the geometric mean weighted by water, which keeps
    the truth inside what a single-compartment model can hold.

    Parameters
    ----------
    shares
        ``(n, k, y, x)`` part of the voxel that each tissue fills.
    values
        ``(n, k, 3)`` or ``(k, 3)``: PD, T1 (s), T2 (s).
    """
    values = values.expand(len(shares), -1, -1)
    water = shares * values[:, :, 0, None, None]
    pd = water.sum(1, keepdim=True)
    log_times = torch.einsum("nkyx,nkt->ntyx", water / pd.clamp_min(1e-6), values[:, :, 1:].log())
    return torch.cat([pd, log_times.exp()], 1)


# --- three tissues explain a session ----------------------------------------------------------------

ANYBODY = {"WM": (0.04, 0.12, 0.14), "GM": (0.04, 0.12, 0.14), "CSF": (0.01, 0.05, 0.15)}
"""SD of log PD, T1 and T2 of somebody who is scanned, about :func:`three_medians`: people, ages, diseases and methods.

Half of the variance is shared by white and grey matter. Fluid is water in everybody: it is what the scale rests on.
"""

LINE_SD, WATER_SPREAD = 0.03, 0.05
"""SD of log PD about the water line, of a whole tissue and of a voxel."""

MEDIAN_ERROR = 0.015
"""Of a tissue's median signal: fields, mixtures and the signal equations leave as much."""

FAR = 2.0
"""Of these errors, beyond which a signal counts ever less: real sequences stray from the equations, most in fluid."""

GAIN_SD = 0.01  # of the logarithm of a gain that is known: the receive field is not

EVERYTHING = 1e3  # so far that every signal counts in full

VALLEYS = (0.0, -0.3, 0.3)
"""Of log T1, where the search starts: a magnitude has a valley on either side of a null point."""

NOISE_SQUARED = 1.4
"""A magnitude's squared median where there is no signal, over the variance of the noise (Rayleigh: 2 ln 2)."""


MOST_EVALUATIONS = 100
"""Of a search; good ones need 5 to 50, and one that wanders for hundreds ends in a worse valley than another's."""

SLOPE_STEP = 1e-5
"""Of a logarithm, for slopes in double precision."""


class ThreeTissues(NamedTuple):
    """What :func:`fit_three_tissues` found.

    Parameters
    ----------
    values, sd
        ``(3, 3)``: a row a tissue, PD, T1 (s), T2 (s), and the SD of their logarithms.
    gains
        ``(m,)``: signal of tissue → scan.
    cost
        Half the sum of squares that is left: how badly the signals are explained.
    """

    values: Tensor
    gains: Tensor
    sd: Tensor
    cost: float


def fit_three_tissues(signals: Tensor, settings: Tensor, noise: Tensor, gains: Tensor | None = None) -> ThreeTissues:
    """What WM, GM and CSF of a person are, and each scan's gain, from their median signals.

    Robust least squares (trust region) over nine logarithms and the gains: the signals' misfit, :data:`ANYBODY`
    about the literature's medians, and the water line.

    Parameters
    ----------
    signals
        ``(m, 3)``, each scan's median in WM, GM and CSF; NaN in a tissue that is not there.
    settings
        ``(m, 6)`` from :meth:`Protocol.settings`.
    noise
        ``(m,)``, SD.
    gains
        ``(m,)``, where they are known, to :data:`GAIN_SD`; None: they may be anything.

    Returns
    -------
        Where no tissue is there: the literature's values, gains of 1, and :data:`ANYBODY`.
    """
    from scipy.optimize import least_squares

    known, there = torch.tensor(list(three_medians().values())).log().double().flatten(), ~signals.isnan().any(0)
    if not there.any():
        unknown = torch.ones(len(signals)) if gains is None else gains
        return ThreeTissues(known.exp().float().view(3, 3), unknown, torch.tensor(list(ANYBODY.values())), math.inf)
    measured, noise, settings = signals[:, there].double(), noise.double()[:, None], settings[None].double()
    doubt = MEDIAN_ERROR * measured.abs() + 0.3 * noise
    sd = torch.tensor(list(ANYBODY.values())).double().flatten()
    covariance = torch.diag(sd**2)
    for q in range(3):
        covariance[q, 3 + q] = covariance[3 + q, q] = 0.5 * sd[q] * sd[3 + q]
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance))
    signed = settings[0, :, 5:] > 0

    def predict(logs: Tensor) -> Tensor:  # (b, 9) → (b, m, tissues)
        maps = logs.view(-1, 3, 3)[:, there].exp().movedim(2, 0)[:, :, None]
        return shown_signal(TissueMaps(*maps), settings.expand(len(logs), -1, -1))[:, :, 0]

    def residuals(x: Tensor, far: float) -> Tensor:  # (b, 9 + m): as many points as are asked for, at once
        logs, log_gains = x.split([9, len(signals)], 1)
        predicted = log_gains.exp()[..., None] * predict(logs)
        predicted = torch.where(signed, predicted, (predicted**2 + NOISE_SQUARED * noise**2).sqrt())
        pd, t1 = logs.view(-1, 3, 3)[:, :2, 0], logs.view(-1, 3, 3)[:, :2, 1]
        line = (pd - implied_pd(t1.exp()).log()) / LINE_SD
        off = ((predicted - measured) / doubt).flatten(1) / far
        off = far * off * (torch.log1p(off**2) / (off**2 + 1e-12)).sqrt()  # squared it is Cauchy's
        told = [] if gains is None else [(log_gains - gains.double().log()) / GAIN_SD]
        return torch.cat([off, (logs - known) @ whiten.T, line, *told], 1)

    def fit_from(start: np.ndarray, far: float):
        def at(x: np.ndarray) -> np.ndarray:
            return residuals(torch.from_numpy(x)[None], far)[0].numpy()

        def slopes(x: np.ndarray) -> np.ndarray:
            nudges = SLOPE_STEP * torch.eye(len(x), dtype=torch.float64)
            more, less = residuals(torch.from_numpy(x) + torch.cat([nudges, -nudges]), far).chunk(2)
            return ((more - less) / (2 * SLOPE_STEP)).T.numpy()

        return least_squares(at, start, slopes, max_nfev=MOST_EVALUATIONS)

    found = []
    for moved in VALLEYS:
        start = known.clone()
        start[[1, 4]] += moved
        ratio = (measured.abs() / predict(start[None])[0].abs().clamp_min(1e-9)).clamp_min(1e-9)
        start = torch.cat([start, ratio.log().median(1).values]).numpy()
        found.append(fit_from(start, FAR))
        found.append(fit_from(fit_from(start, EVERYTHING).x, FAR))  # far from all signals none would pull
    best = min(found, key=lambda fit: fit.cost)
    values = torch.from_numpy(best.x).exp().float()
    sd = np.sqrt(np.diag(np.linalg.pinv(best.jac.T @ best.jac, hermitian=True))[:9])  # a gain may be anything
    return ThreeTissues(values[:9].view(3, 3), values[9:], torch.from_numpy(sd).float().view(3, 3), float(best.cost))
