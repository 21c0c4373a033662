"""One function per number we report: arrays (or CPU tensors) in, plain floats out.

Estimates are compared inside a stated mask, per contrast and per subject; spread is a bootstrap over
subjects. NaN or an empty mask is refused in a sentence: a number that silently left voxels out is no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

COLUMNS = ("metric", "quantity", "tissue", "inputs", "value", "low", "high", "n")


def _inside(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """Both arrays as 1-D float64 inside the mask, checked."""
    estimate, truth = np.asarray(estimate, dtype=float), np.asarray(truth, dtype=float)
    if estimate.shape != truth.shape:
        raise ValueError(f"estimate {estimate.shape} and truth {truth.shape} differ in shape: compare the same voxels")
    where = np.ones(truth.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if where.shape != truth.shape:
        raise ValueError(f"the mask has shape {where.shape} and the images {truth.shape}: they must agree")
    if not where.any():
        raise ValueError("the mask is empty: there is nothing to compare")
    for name, values in (("estimate", estimate[where]), ("truth", truth[where])):
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} holds NaN or infinity inside the mask: mend it or shrink the mask")
    return estimate[where], truth[where]


def _relative(estimate, truth, mask) -> NDArray:
    e, t = _inside(estimate, truth, mask)
    if (t <= 0).any():
        raise ValueError("the truth is not positive inside the mask: an error relative to it has no meaning there")
    return (e - t) / t


def median_absolute_error(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Median of |estimate − truth| / truth over the mask, a fraction of truth."""
    return float(np.median(np.abs(_relative(estimate, truth, mask))))


def bias(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Median of (estimate − truth) / truth over the mask, a signed fraction of truth."""
    return float(np.median(_relative(estimate, truth, mask)))


def agreement_limits(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> tuple[float, float]:
    """Bland and Altman's 95 % limits: 2.5th and 97.5th percentile of the difference over the mean of both."""
    e, t = _inside(estimate, truth, mask)
    low, high = np.percentile(2 * (e - t) / (e + t), (2.5, 97.5))
    return float(low), float(high)


def interval_coverage(
    estimate: ArrayLike, sd: ArrayLike, truth: ArrayLike, level: float, mask: ArrayLike | None = None
) -> float:
    """Share of the mask whose truth lies in the central Gaussian interval of ``level`` about the estimate.

    An honest SD gives ``level``; less is overconfidence, more is excess of caution.
    """
    e, t = _inside(estimate, truth, mask)
    spread, _ = _inside(sd, truth, mask)
    if (spread < 0).any():
        raise ValueError("an SD below 0 inside the mask")
    return float(np.mean(np.abs(e - t) <= stats.norm.ppf((1 + level) / 2) * spread))


def mae(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean of |estimate − truth| over the mask, in the unit of the truth."""
    e, t = _inside(estimate, truth, mask)
    return float(np.mean(np.abs(e - t)))


def mse(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Mean of (estimate − truth)² over the mask, in the squared unit of the truth."""
    e, t = _inside(estimate, truth, mask)
    return float(np.mean((e - t) ** 2))


def correlation(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Pearson's correlation over the mask; ValueError where either is constant."""
    e, t = _inside(estimate, truth, mask)
    if np.ptp(e) == 0 or np.ptp(t) == 0:
        raise ValueError("correlation is undefined for a constant image")
    return float(np.corrcoef(e, t)[0, 1])


def peak_of(truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """99.5th percentile of the true image inside the mask: the peak of PSNR and the range of SSIM."""
    _, t = _inside(truth, truth, mask)
    peak = float(np.percentile(t, 99.5))
    if peak <= 0:
        raise ValueError("the true image has no signal inside the mask, so it has no peak")
    return peak


def psnr(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None, peak: float | None = None) -> float:
    """10 log₁₀(peak² / MSE) over the mask, dB, infinite for a perfect estimate; ``peak``: default :func:`peak_of`."""
    error = mse(estimate, truth, mask)
    peak = peak_of(truth, mask) if peak is None else peak
    return float(10 * np.log10(peak**2 / error)) if error > 0 else float("inf")


def ssim(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None, peak: float | None = None) -> float:
    """Structural similarity (Wang 2004, Gaussian window σ = 1.5 pixels): its map, averaged over the mask.

    Arrays ``(y, x)`` or ``(..., y, x)``: similarity is taken slice by slice, in the plane.
    """
    _inside(estimate, truth, mask)
    peak = peak_of(truth, mask) if peak is None else peak
    e, t = (np.asarray(a, dtype=float).reshape(-1, *np.shape(a)[-2:]) for a in (estimate, truth))
    look = {"data_range": peak, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    # Outside the mask there may be NaN ("no value"), which the window would smear into the brain.
    maps = np.stack([structural_similarity(*np.nan_to_num((a, b)), **look)[1] for a, b in zip(t, e, strict=True)])
    where = np.ones(maps.shape, bool) if mask is None else np.asarray(mask).astype(bool).reshape(maps.shape)
    return float(maps[where].mean())


def ms_ssim(estimate: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None, peak: float | None = None) -> float:
    """Multi-scale structural similarity (Wang 2003), mean over slices ``(..., y, x)``; outside the mask both are 0.

    Three scales with the usual 11-pixel window, their weights rescaled to sum to 1: five scales would need
    176 pixels, and the same three serve slices of 80 and of 160 pixels. The smaller side must be at least 44.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure  # 2 s, for this alone

    _inside(estimate, truth, mask)
    peak = peak_of(truth, mask) if peak is None else peak
    e, t = (np.asarray(a, dtype=float) for a in (estimate, truth))
    if min(t.shape[-2:]) < 44:
        raise ValueError(f"MS-SSIM over three scales needs slices of at least 44 × 44 pixels, not {t.shape[-2:]}")
    if mask is not None:
        e, t = (np.where(np.asarray(mask).astype(bool), a, 0.0) for a in (e, t))
    e, t = (torch.from_numpy(a.reshape(-1, 1, *a.shape[-2:])) for a in (e, t))
    weights = np.array([0.0448, 0.2856, 0.3001])
    betas = tuple(weights / weights.sum())
    return float(multiscale_structural_similarity_index_measure(e, t, data_range=peak, betas=betas, normalize="relu"))


def fine_detail(images: ArrayLike, mask: ArrayLike) -> float:
    """Mean power inside the mask of what a blur of one pixel takes away from ``(n, y, x)`` images: how sharp they are.

    In the images' units squared; a ratio of two sets compares their sharpness, whatever they show.
    """
    images = np.asarray(images, dtype=float)
    return mse(images, ndimage.gaussian_filter(images, (0, 1, 1)), mask)


def histogram_distance(sample: ArrayLike, truth: ArrayLike) -> float:
    """Wasserstein-1 distance of two sets of values over the median of the truth: 0.1 = mass moved by 10 % of it."""
    sample, truth = (np.asarray(values, dtype=float).ravel() for values in (sample, truth))
    for name, values in (("sample", sample), ("truth", truth)):
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"the {name} has no values, or holds NaN or infinity: choose finite voxels of one tissue")
    return float(stats.wasserstein_distance(sample, truth) / np.median(truth))


class Interval(NamedTuple):
    """An estimate, the bounds of its interval (NaN where one value gives none) and the number of subjects."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    values: ArrayLike, n: int = 2000, seed: int = 0, *, statistic=np.mean, level: float = 0.95
) -> Interval:
    """``statistic`` of one value per subject, with its percentile bootstrap interval over subjects.

    Parameters
    ----------
    values
        ``(n_subjects,)``.
    n
        Resamples; the same ``seed`` gives the same interval.

    Raises
    ------
    ValueError
        For no values, NaN or infinity (the PSNR of a perfect estimate, for one).
    """
    values = np.asarray(values, dtype=float).ravel()
    if not values.size or not np.isfinite(values).all():
        raise ValueError("an interval needs at least one value, all finite: leave out the rest, and say so")
    value = float(statistic(values))
    if values.size == 1:
        return Interval(value, float("nan"), float("nan"), 1)
    # The plain percentile method: BCa has no answer for constant values, and its correction is noise at n = 5.
    drawn = stats.bootstrap((values,), statistic, n_resamples=n, confidence_level=level, method="percentile",
                            rng=np.random.default_rng(seed))  # fmt: skip
    low, high = drawn.confidence_interval
    return Interval(value, float(low), float(high), values.size)


def cnr(signal: Mapping[str, float], noise: float) -> dict[tuple[str, str], float]:
    """Contrast-to-noise ratio |a − b| / noise SD for every pair of tissues in ``signal`` (name → mean signal)."""
    if not noise > 0:
        raise ValueError(f"noise must be a positive standard deviation, not {noise:g}")
    return {(a, b): abs(float(signal[a]) - float(signal[b])) / noise for a, b in combinations(signal, 2)}


def long_form(rows: Iterable[Mapping]) -> pandas.DataFrame:
    """One number a row: columns :data:`COLUMNS`; ``value`` may be an :class:`Interval`, the rest may be left out.

    Raises
    ------
    ValueError
        For a key that is no column, or a row without metric or value.
    """
    table = []
    for row in rows:
        row = dict(row)
        if isinstance(row.get("value"), Interval):
            row |= row["value"]._asdict()
        if unknown := set(row) - set(COLUMNS):
            raise ValueError(f"no column {sorted(unknown)[0]!r} in a table of numbers: use {', '.join(COLUMNS)}")
        if "metric" not in row or "value" not in row:
            raise ValueError(f"a row needs a metric and a value: {row}")
        table.append({"quantity": "", "tissue": "", "inputs": "", "low": np.nan, "high": np.nan, "n": 1} | row)
    numbers = {"value": float, "low": float, "high": float, "n": int}
    return pandas.DataFrame(table, columns=list(COLUMNS)).astype(numbers)
