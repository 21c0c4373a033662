"""Can anyone tell drawn slices from true ones? Two classifiers try, at full resolution.

Their AUC is 0.5 where the two sets cannot be told apart and 1 where every slice is recognised. A classifier may also
recognise a person, or the head that simulated people were made from: logistic regression told true people of three
heads from true people of ten others with an AUC of 0.75 where it had learned from other people of the same heads, and
not at all where the heads were new to it. So slices of one group never stand on both sides, among those it learns from
and those it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ..physics import REFERENCE, TissueMaps, effective_protocol, render
from ..vae import TYPICAL_SIGNAL

N_FOLDS = 3
N_EPOCHS = 10
BATCH = 16
BLACK = 0.05
"""Of a typical signal: below it a screen is black. What maps hold in air, where no scan shows anything, is no clue."""


def screens(maps: TissueMaps) -> Tensor:
    """``(n, 3, y, x)``: T1w, T2w and FLAIR of the whole head as a reader sees them, black air and bone."""
    images = torch.stack([render(maps, effective_protocol(p)) for p in REFERENCE.values()], 1) / TYPICAL_SIGNAL
    return torch.where(images > BLACK, images, 0.0)


def auc_of_features(one: NDArray, other: NDArray, groups: tuple[NDArray, NDArray], seed: int = 0) -> float:
    """AUC of logistic regression between two sets of features ``(n, f)``, as of :func:`brain_sets.features`.

    Parameters
    ----------
    groups
        Which head, or at least which person each slice is of, ``(n,)`` for either set, by the same numbers in both. At
        least :data:`N_FOLDS` in each set.
    """
    x, y, folds = _folds(np.concatenate([one, other]), len(one), groups, seed)
    found = []
    for learn, ask in folds:
        judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[learn], y[learn])
        found.append(roc_auc_score(y[ask], judge.decision_function(x[ask])))
    return float(np.mean(found))


def auc_of_network(
    one: Tensor, other: Tensor, groups: tuple[NDArray, NDArray], seed: int = 0, epochs: int = N_EPOCHS
) -> float:
    """AUC of a small convolutional network between two sets of :func:`screens`; ``groups`` as above.

    Four strided convolutions, then the mean and the largest of each channel over the slice, so that it may judge the
    whole as well as one spot. Slices are mirrored at random while it learns. On one core 600 slices of 224 × 160 take
    about two minutes.
    """
    x, y, folds = _folds(torch.cat([one, other]), len(one), groups, seed)
    found = []
    for fold, (learn, ask) in enumerate(folds):
        judge = _learn(x[learn], torch.from_numpy(y[learn]).float(), 100 * seed + fold, epochs)
        with torch.no_grad():
            answers = torch.cat([judge(part) for part in x[ask].split(64)])
        found.append(roc_auc_score(y[ask], answers.numpy()))
    return float(np.mean(found))


def _folds(x, n_one: int, groups, seed: int) -> tuple[object, NDArray, Iterator]:
    """Both sets together, which is which ``(n,)``, and the folds: (rows to learn from, rows to be asked)."""
    y = np.arange(len(x)) >= n_one
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    return x, y, folds.split(y, y, np.concatenate(groups))


class _Judge(nn.Module):
    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (16, 32, 64, 64)):
        super().__init__()
        layers = []
        for inside, outside in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(inside, outside, 4, 2, 1), nn.BatchNorm2d(outside), nn.LeakyReLU(0.2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(2 * widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.layers(images)
        return self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))[:, 0]


def _learn(x: Tensor, y: Tensor, seed: int, epochs: int) -> _Judge:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = _Judge(x.shape[1])
    optimiser = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-2)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            batch = x[rows].flip(-1) if torch.rand((), generator=generator) < 0.5 else x[rows]
            loss = nn.functional.binary_cross_entropy_with_logits(judge(batch), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return judge.eval()
