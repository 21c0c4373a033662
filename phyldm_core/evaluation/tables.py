"""Tables of numbers over subjects: :mod:`phyldm_core.evaluation.metrics` asked for every person, with intervals.

Every table is in long form (:data:`metrics.COLUMNS`): a mean over subjects, its 95 % bootstrap interval
over subjects, and their number ``n``. A person who lacks what a row needs (no pure grey matter at 6 mm,
no FLAIR) is not in that row's ``n``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas
import torch
from torch import Tensor

from .. import tissue
from ..losses import gain_per_scan
from ..people import segmentation
from ..people.segmentation import segment_slices, segmented_values
from ..physics import REFERENCE, UNSEEN, Protocol, TissueMaps, effective_protocol, render, shown_signal
from ..slices import ALL_SCANS, MAPS, MODALITIES, Slices, Truth
from ..tissue import REPORTED
from . import metrics

MEAN_OF_SIGNAL = "mean of those that leave signal"
SMALLEST_FOR_MS_SSIM = 44  # pixels, see metrics.ms_ssim


def map_errors(maps: TissueMaps, truth: Truth, slices: Slices, inputs: str = ALL_SCANS) -> pandas.DataFrame:
    """Median absolute relative error and bias of PD, T1 and T2 in voxels that are at least 90 % WM, GM or CSF.

    PD is relative to the person's own CSF: estimate and truth are each divided by their median in that
    person's pure CSF voxels, so that an unknown gain costs nothing.

    Parameters
    ----------
    maps
        Inferred, each ``(n, y, x)``, in the order of ``truth`` and ``slices``.
    inputs
        Which scans were shown, for the table.

    Returns
    -------
        Metrics "median_absolute_error" and "bias", fractions of the truth.
    """
    estimate = _checked(maps, truth)

    def of_person(rows):
        for quantity, name, e, t, where, _ in pure_tissue(estimate, truth, rows):
            for metric in (metrics.median_absolute_error, metrics.bias):
                yield (metric.__name__, quantity, name), metric(e, t, where)

    return _over_subjects(of_person, slices.subject, inputs)


def map_calibration(
    maps: TissueMaps, sd: TissueMaps, truth: Truth, slices: Slices, inputs: str = ALL_SCANS
) -> pandas.DataFrame:
    """How honest the SD of the maps is, in the voxels that :func:`map_errors` counts.

    Returns
    -------
        Metrics "coverage_50" and "coverage_90" (share of true values inside these intervals), "sd" (its median, a
        fraction of the estimate), and "limit_low", "limit_high" (:func:`metrics.agreement_limits`, which the SD should
        tell). PD and its SD are relative to the person's CSF, as in :func:`map_errors`.
    """
    estimate, spread = _checked(maps, truth), sd.stack()

    def of_person(rows):
        for quantity, name, e, t, where, unit in pure_tissue(estimate, truth, rows):
            s = spread[rows, MAPS.index(quantity)] / unit
            for level in (0.5, 0.9):
                key = (f"coverage_{100 * level:.0f}", quantity, name)
                yield key, metrics.interval_coverage(e, s, t, level, where)
            yield ("sd", quantity, name), float((s / e)[where].median())
            for end, limit in zip(("low", "high"), metrics.agreement_limits(e, t, where), strict=True):
                yield (f"limit_{end}", quantity, name), limit

    return _over_subjects(of_person, slices.subject, inputs)


def voxel_pairs(
    maps: TissueMaps, sd: TissueMaps, truth: Truth, n: int, seed: int = 0, inputs: str = ALL_SCANS
) -> pandas.DataFrame:
    """At most ``n`` voxels of each tissue and quantity, to be drawn: quantity, tissue, inputs, estimate, truth, sd.

    The maps are of one person; PD is relative to CSF as in :func:`map_errors`.
    """
    rng, estimate, spread, parts = np.random.default_rng(seed), _checked(maps, truth), sd.stack(), []
    for quantity, name, e, t, where, unit in pure_tissue(estimate, truth, slice(None)):
        values = [v[where].numpy() for v in (e, t, spread[:, MAPS.index(quantity)] / unit)]
        some = rng.permutation(len(values[0]))[:n]
        columns = dict(zip(("estimate", "truth", "sd"), (v[some] for v in values), strict=True))
        parts.append(pandas.DataFrame({"quantity": quantity, "tissue": name, "inputs": inputs, **columns}))
    return pandas.concat(parts, ignore_index=True)


def _checked(maps: TissueMaps, truth: Truth) -> Tensor:
    estimate = maps.stack()
    if estimate.shape != truth.maps.shape:
        raise ValueError(f"maps {tuple(estimate.shape)} and truth {tuple(truth.maps.shape)} differ in shape")
    return estimate


def pure_tissue(estimate: Tensor, truth: Truth, rows, purity: float = 0.9):
    """Of one person: quantity, tissue, estimate and truth ``(z, y, x)``, where they count, unit of the estimate.

    Maps ``(n, 3, y, x)``; ``rows`` are the person's slices. What holds less than ``purity`` of a tissue counts not.
    """
    tissues = {name: truth.tissue(name, purity)[rows] for name in REPORTED}
    for p, quantity in enumerate(MAPS):
        e, t, unit = estimate[rows, p], truth.maps[rows, p], 1.0
        if quantity == "PD":
            if not tissues["CSF"].any():
                continue
            unit = float(e[tissues["CSF"]].median())
            e, t = e / unit, t / t[tissues["CSF"]].median()
        for name, where in tissues.items():
            if where.any():
                yield quantity, name, e, t, where, unit


def contrast_order(
    maps: TissueMaps, truth: Truth, slices: Slices, inputs: str = ALL_SCANS, noise: float = 0.02
) -> pandas.DataFrame:
    """Whether contrasts rendered from the maps show WM, GM and CSF as those of the true maps do.

    The paper's reference T1w, T2w (contrast-equivalent TE) and FLAIR, each in its own scale.

    Parameters
    ----------
    noise
        SD of the noise that contrast is compared with, a fraction of an image's peak.

    Returns
    -------
        Metrics "cnr" and "cnr_truth" per pair of tissues (in ``quantity``) and contrast (in ``tissue``), from medians
        of pure voxels; "same_order" per contrast: the share of people whose three tissues come in the true order.
    """
    pairs = {
        name: (render(maps, p), render(TissueMaps.from_stack(truth.maps), p))
        for name, p in ((name, effective_protocol(p)) for name, p in REFERENCE.items())
    }

    def of_person(rows):
        where = {name: truth.tissue(name)[rows] for name in REPORTED}
        if not all(there.any() for there in where.values()):
            return
        brain = truth.brain[rows]
        for contrast, images in pairs.items():
            order = []
            for metric, image in zip(("cnr", "cnr_truth"), (image[rows] for image in images), strict=True):
                signal = {name: float(image[there].median()) for name, there in where.items()}
                order.append(sorted(signal, key=signal.get))
                for (one, other), value in metrics.cnr(signal, noise * metrics.peak_of(image, brain)).items():
                    yield (metric, f"{one}-{other}", contrast), value
            yield ("same_order", "", contrast), float(order[0] == order[1])

    return _over_subjects(of_person, slices.subject, inputs)


def rescan(maps: TissueMaps, slices: Slices, common_scale: bool = True, brain: Tensor | None = None) -> Tensor:
    """``(n, m, y, x)``: each scan predicted from the maps and its own protocol, in the scale of ``slices.images``.

    Without a common scale, one gain per scan of a person brings the prediction closest to the scan
    (least squares over all its slices, inside ``brain`` ``(n, y, x)`` if given).
    """
    return in_scale_of(shown_signal(maps, slices.settings), slices, common_scale, brain)


def in_scale_of(predicted: Tensor, slices: Slices, common_scale: bool = True, brain: Tensor | None = None) -> Tensor:
    """Predicted scans ``(n, m, y, x)`` brought to the scale of ``slices.images`` as :func:`rescan` does, in place."""
    if common_scale:
        return predicted
    counted = torch.ones_like(predicted[:, 0], dtype=torch.bool) if brain is None else brain
    for rows in _people(slices.subject):
        gain = gain_per_scan(predicted[rows], slices.images[rows], counted[rows][:, None])
        predicted[rows] *= gain[:, None, None]
    return predicted


def reconstruction_errors(
    maps: TissueMaps, slices: Slices, brain: Tensor, common_scale: bool = True, inputs: str = ALL_SCANS
) -> pandas.DataFrame:
    """The paper's table T1: how well the scans, rendered again from the maps, match the scans that were acquired.

    Parameters
    ----------
    brain
        ``(n, y, x)`` bool, where errors count.
    common_scale
        Whether ``slices.images`` share the scale of PD; if not, the gain of each scan is solved.

    Returns
    -------
        Metrics "mse", "mae", "psnr" (dB) and "ms_ssim" per contrast (in ``quantity``). A scan is divided by the 99.5th
        percentile of its brain first, so errors are fractions of that peak. Slices below 44 pixels have no MS-SSIM.
    """
    return image_errors(rescan(maps, slices, common_scale, brain), slices, brain, inputs)


def image_errors(predicted: Tensor, slices: Slices, brain: Tensor, inputs: str = ALL_SCANS) -> pandas.DataFrame:
    """The numbers of :func:`reconstruction_errors` for scans ``(n, m, y, x)``, wherever they come from."""
    judges = [metrics.mse, metrics.mae, metrics.psnr]
    if min(brain.shape[-2:]) >= SMALLEST_FOR_MS_SSIM:
        judges.append(metrics.ms_ssim)

    def of_person(rows):
        for m, modality in enumerate(MODALITIES):
            if slices.observed[rows, m].all():
                peak = metrics.peak_of(slices.images[rows, m], brain[rows])
                pair = predicted[rows, m] / peak, slices.images[rows, m] / peak
                for judge in judges:
                    known_peak = {"peak": 1.0} if judge in (metrics.psnr, metrics.ms_ssim) else {}
                    yield (judge.__name__, modality, "brain"), judge(*pair, brain[rows], **known_peak)

    return _over_subjects(of_person, slices.subject, inputs)


def unseen_errors(
    maps: TissueMaps,
    truth: Truth,
    slices: Slices,
    protocols: Sequence[Protocol] = UNSEEN,
    common_scale: bool = True,
    inputs: str = ALL_SCANS,
    judges: Sequence[Callable] = (metrics.psnr, metrics.ssim),
) -> pandas.DataFrame:
    """Contrasts nobody acquired, rendered from the inferred maps and compared with those of the true maps.

    Parameters
    ----------
    protocols
        The settings to render; default: the nine of the paper's Figure 4.
    common_scale
        Whether the maps were inferred from scans on a common scale. If not, the scale of PD is the
        model's own, and one gain per image is solved first.
    judges
        Functions of :mod:`metrics` that take estimate, truth and mask.

    Returns
    -------
        Metrics "psnr" (dB, peak: 99.5th percentile of the true image in the brain) and "ssim", or what the judges are
        called, inside the brain; the setting is in ``quantity``, and a last column ``leaves_signal``
        (:func:`tissue.leaves_signal`).
        Two rows called :data:`MEAN_OF_SIGNAL` are of each person's mean over the settings that leave signal.
    """
    brain, true_maps = truth.brain, TissueMaps.from_stack(truth.maps)
    pairs = {str(p): (render(maps, p), render(true_maps, p)) for p in protocols}
    lit = {str(p): tissue.leaves_signal(p) for p in protocols}

    def of_person(rows):
        found = {metric.__name__: [] for metric in judges}
        for setting, images in pairs.items():
            estimate, true = (image[rows] for image in images)
            if not common_scale:
                estimate = estimate * gain_per_scan(estimate[:, None], true[:, None], brain[rows][:, None])
            for metric in judges:
                value = metric(estimate, true, brain[rows])
                yield (metric.__name__, setting, "brain"), value
                if lit[setting]:
                    found[metric.__name__].append(value)
        for name, values in found.items():
            if values:
                yield (name, MEAN_OF_SIGNAL, "brain"), float(np.mean(values))

    table = _over_subjects(of_person, slices.subject, inputs)
    return table.assign(leaves_signal=[lit.get(setting, True) for setting in table.quantity])


# --- generated brains against true ones -----------------------------------------------------------


def sample_histograms(sample_maps: TissueMaps, truth: Truth, slices: Slices) -> pandas.DataFrame:
    """How far the tissue of generated brains is from that of true ones, beside how far true ones are from each other.

    Parameters
    ----------
    sample_maps
        Generated, each ``(n_samples, y, x)``.
    truth, slices
        Of held-out people.

    Returns
    -------
        Metric "wasserstein": samples against all true slices, ``n`` samples. Metric "wasserstein_floor": one half
        of the people against the other, mean over 20 halvings with their 2.5th and 97.5th percentiles, ``n`` people;
        absent for one person. Both are :func:`metrics.histogram_distance` of T1, T2 and PD in WM, GM and CSF; a
        tissue that the segmentation finds in only one of the two has no row.
    """
    generated, n_samples = segmented_values(sample_maps), len(sample_maps.pd)
    true_maps = TissueMaps.from_stack(truth.maps)
    labels = segment_slices(true_maps)
    people = [rows.numpy() for rows in _people(slices.subject)]
    stack = truth.maps.numpy()
    true_values = segmentation.tissue_values(stack, labels)
    by_person = [segmentation.tissue_values(stack[rows], labels[rows]) for rows in people]
    rng = np.random.default_rng(0)  # 0: which halves are compared is no result
    orders = [rng.permutation(len(people)) for _ in range(20)] if len(people) > 1 else []
    rows = []
    for (name, quantity), values in true_values.items():
        key = {"quantity": quantity, "tissue": name}
        if values.size and generated[name, quantity].size:
            distance = metrics.histogram_distance(generated[name, quantity], values)
            rows.append({"metric": "wasserstein", **key, "value": distance, "n": n_samples})
        floor = []
        for order in orders:
            halves = [[by_person[i][name, quantity] for i in half] for half in np.array_split(order, 2)]
            one, other = (np.concatenate(half) for half in halves)
            if one.size and other.size:
                floor.append(metrics.histogram_distance(one, other))
        if floor:
            low, high = np.percentile(floor, (2.5, 97.5))
            interval = metrics.Interval(float(np.mean(floor)), float(low), float(high), len(people))
            rows.append({"metric": "wasserstein_floor", **key, "value": interval})
    return metrics.long_form(rows)


# --- over subjects ----------------------------------------------------------------------------------

Key = tuple[str, str, str]
"""Metric, quantity, tissue: what names a row."""


def _people(subject: Tensor) -> list[Tensor]:
    """Rows ``(n,)`` bool of each person's slices."""
    return [subject == person for person in subject.unique()]


def _over_subjects(
    of_person: Callable[[Tensor], Iterator[tuple[Key, float]]], subject: Tensor, inputs: str
) -> pandas.DataFrame:
    """Collect what ``of_person(rows)`` yields for each person and give every key its interval."""
    found: dict[Key, list[float]] = {}
    for rows in _people(subject):
        for key, value in of_person(rows):
            found.setdefault(key, []).append(value)
    return metrics.long_form(
        {"metric": m, "quantity": q, "tissue": t, "inputs": inputs, "value": metrics.bootstrap_interval(values)}
        for (m, q, t), values in found.items()
    )
