"""Two sets of brains compared: do generated slices look like true ones, and are they new?

A distance means nothing alone. Every number here is asked of equally large sets: generated against true people,
and true people against other true people, which is the floor that no generator can get under.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist
from torch import Tensor, nn

from ..people.segmentation import brain_of, segment_slices, tissue_values
from ..physics import REFERENCE, TissueMaps, effective_protocol, render
from ..tissue import CLASSES
from ..vae import TYPICAL_SIGNAL
from . import metrics

FLOOR = "true, other half"
"""What true people are from each other."""
N_FEATURES = 24
N_NEIGHBOURS = 5
BLUR_MM = 4.0
"""SD of the blur under which brains are compared one by one: finer than gyri nobody would call two brains equal."""


# --- what a slice looks like ------------------------------------------------------------------------


class RandomFeatures(nn.Module):
    """A fixed space to compare pictures in: random filters, the same on every machine, nothing to download.

    The usual space is that of a network trained on photographs, which must be fetched and knows dogs. Random
    convolutions measure what counts here, brightness, edges and texture at four scales: for pictures unlike
    photographs they judge generators at least as well (Naeem et al. 2020, arXiv 2002.09797).
    Orthogonal filters (no two measure the same) that sum to zero (else the brightness by which people differ
    drowns edges and texture), the mean and SD of every rectified response over the slice, and a random projection
    to few numbers, so that a covariance can be had from a few hundred slices.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        widths, generator = (16, 32, 32, 32), torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        for inside, outside in pairwise((3, *widths)):
            layer = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
            nn.init.orthogonal_(layer.weight, gain=2**0.5, generator=generator)
            layer.weight.data -= layer.weight.data.mean((2, 3), keepdim=True)
            self.layers.append(layer)
        projection = torch.empty(2 * sum(widths), N_FEATURES)
        self.register_buffer("projection", nn.init.orthogonal_(projection, generator=generator))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, 3, y, x)`` → features ``(n, 24)``."""
        found, h = [], images
        for i, layer in enumerate(self.layers):
            h = nn.functional.leaky_relu(layer(nn.functional.avg_pool2d(h, 2) if i else h), 0.2)
            found += [h.mean((2, 3)), h.std((2, 3))]
        return torch.cat(found, 1) @ self.projection


@cache
def _random_features() -> RandomFeatures:
    return RandomFeatures().eval()


def pictures(maps: TissueMaps) -> Tensor:
    """``(n, 3, y, x)``: the reference T1w, T2w (contrast-equivalent TE) and FLAIR of the brain, 0 outside it."""
    brain = brain_of(maps)[:, None]
    protocols = [effective_protocol(p) for p in REFERENCE.values()]
    return torch.stack([render(maps, p) for p in protocols], 1) * brain / TYPICAL_SIGNAL


def features(images: Tensor) -> NDArray:
    """``(n, 24)`` of :func:`pictures`, in the space of :class:`RandomFeatures`."""
    return torch.cat([_random_features()(part) for part in images.split(64)]).double().numpy()


def thumbnails(images: Tensor, voxel_mm: float) -> NDArray:
    """``(n, p)``: the T1w of :func:`pictures` under a blur of :data:`BLUR_MM`, so that sharpness counts little."""
    sd = BLUR_MM / voxel_mm
    soft = ndimage.gaussian_filter(images[:, 0].numpy(), (0, sd, sd))
    step = max(1, round(sd))
    return soft[:, ::step, ::step].reshape(len(soft), -1)


# --- sets -------------------------------------------------------------------------------------------


def frechet(one: NDArray, other: NDArray) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features ``(n, f)``: |Δμ|² + tr(A + B − 2√(AB))."""
    means = [x.mean(0) for x in (one, other)]
    a, b = (np.cov(x, rowvar=False) + 1e-9 * np.eye(x.shape[1]) for x in (one, other))
    root = sqrtm(a)
    cross = sqrtm(root @ b @ root)  # symmetric, so that its root is real
    return float(max(((means[0] - means[1]) ** 2).sum() + np.trace(a + b - 2 * np.real(cross)), 0))


def density_coverage(sample: NDArray, truth: NDArray) -> tuple[float, float]:
    """Naeem et al. 2020: how densely true ones surround the samples, and what share of true ones has a sample near.

    Near is within the distance to the fifth other true one (:data:`N_NEIGHBOURS`). Two sets of one kind have a density
    of 1; density falls where samples are unlike any true one, coverage where true ones are unlike any sample.
    """
    k = min(N_NEIGHBOURS, len(truth) - 1)
    radius = np.sort(cdist(truth, truth), 1)[:, k]  # the 0th is itself
    near = cdist(truth, sample) <= radius[:, None]
    return float(near.sum() / (k * len(sample))), float(near.any(1).mean())


def memorised(sample: NDArray, training: NDArray, fresh: NDArray) -> tuple[NDArray, float]:
    """Distance ``(n,)`` of each sample to its nearest training slice, and the distance below which it is a copy.

    All are :func:`thumbnails`; distances are root mean squares. A copy is nearer than any of the ``fresh`` slices:
    true people nobody trained on.
    """
    nearest = [cdist(x, training).min(1) / np.sqrt(training.shape[1]) for x in (sample, fresh)]
    return nearest[0], float(nearest[1].min())


def tissue_shares(labels: NDArray) -> NDArray:
    """``(n, 3)``: share of CSF, GM and WM in the brain of each slice, of labels 1, 2, 3 ``(n, y, x)``."""
    counts = np.stack([(labels == k).sum((1, 2)) for k in (1, 2, 3)], 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


class Population:
    """Slices of one set, with all that is compared; ``person`` ``(n,)`` says whose each is."""

    def __init__(self, maps: TissueMaps, person: NDArray, voxel_mm: float):
        images = pictures(maps)
        self.person, self.features, self.thumbnails = person, features(images), thumbnails(images, voxel_mm)
        labels = segment_slices(maps)
        self.shares, stack = tissue_shares(labels), maps.stack().numpy()
        self.values = [tissue_values(stack[i : i + 1], labels[i : i + 1]) for i in range(len(stack))]

    def rows(self, people: NDArray) -> NDArray:
        return np.flatnonzero(np.isin(self.person, people))


def _judge(one: Population, a: NDArray, other: Population, b: NDArray) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Every distance of rows ``a`` of one population to rows ``b`` of another."""
    yield ("frechet", "", ""), frechet(one.features[a], other.features[b])
    density, coverage = density_coverage(one.features[a], other.features[b])
    yield ("density", "", ""), density
    yield ("coverage", "", ""), coverage
    for k, name in enumerate(CLASSES):
        yield ("share_distance", "volume share", name), metrics.histogram_distance(one.shares[a, k], other.shares[b, k])
        yield ("share", "volume share", name), float(one.shares[a, k].mean())
        for quantity in ("T1", "T2", "PD"):
            mine, theirs = (
                np.concatenate([p.values[i][name, quantity] for i in rows]) for p, rows in ((one, a), (other, b))
            )
            if mine.size and theirs.size:
                yield ("wasserstein", quantity, name), metrics.histogram_distance(mine, theirs)
    yield ("diversity", "", ""), float(pdist(one.thumbnails[a]).mean() / np.sqrt(one.thumbnails.shape[1]))


def compare(
    generated: Population, true: Population, others: dict[str, Population], n_halvings: int = 20, seed: int = 0
) -> pandas.DataFrame:
    """Generated and other sets against true people, beside true people against each other.

    The ``true`` people, an even number, are split at random in two halves again and again. Each time the others, as
    many slices as one half has, are held against that half, and so is the other half.

    Parameters
    ----------
    others
        Name → another population of true people, compared as the generated one is.

    Returns
    -------
        Long form: the mean over halvings with their 2.5th and 97.5th percentiles, ``n`` people a half; ``inputs`` says
        what was compared with true people: "generated", a name of ``others``, or :data:`FLOOR`.
    """
    rng, people, found = np.random.default_rng(seed), np.unique(true.person), {}
    for _ in range(n_halvings):
        half, rest = (true.rows(part) for part in np.array_split(rng.permutation(people), 2))
        sets = {"generated": (generated, rng.permutation(len(generated.person))[: len(half)])}
        sets |= {name: (other, rng.permutation(len(other.person))[: len(half)]) for name, other in others.items()}
        for name, (other, rows) in (sets | {FLOOR: (true, rest)}).items():
            for key, value in _judge(other, rows, true, half):
                found.setdefault((*key, name), []).append(value)
    return metrics.long_form(
        {"metric": m, "quantity": q, "tissue": t, "inputs": i,
         "value": metrics.Interval(float(np.mean(v)), *np.percentile(v, (2.5, 97.5)).tolist(), len(people) // 2)}
        for (m, q, t, i), v in found.items()
    )  # fmt: skip


def novelty(
    generated: Population, training: NDArray, fresh: Population, held_out: Population, seed: int = 0
) -> pandas.DataFrame:
    """How near the training slices (:func:`thumbnails`, mirror images included) the nearest is, for each set.

    Returns
    -------
        Metrics "nearest_training" (median, with a 95 % bootstrap interval) and "memorised" (share nearer than any slice
        of a ``fresh`` person made from a training head).
    """
    rows = []
    for name, population in (("generated", generated), ("true, training heads", fresh), ("true, held out", held_out)):
        nearest, limit = memorised(population.thumbnails, training, fresh.thumbnails)
        person = pandas.Series(nearest).groupby(population.person).median()
        rows.append({"metric": "nearest_training", "inputs": name,
                     "value": metrics.bootstrap_interval(person, seed=seed, statistic=np.median)})  # fmt: skip
        share = float((nearest < limit).mean())
        rows.append({"metric": "memorised", "inputs": name, "value": share, "n": len(nearest)})
    return metrics.long_form(rows)
