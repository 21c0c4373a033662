"""How right maps are by the protocols that they were inferred from: OASIS-3's, six clinical sets, and random sessions.

People of unseen heads, who differ as people, methods and diseases do; every scan with its own unknown gain. Each person
is scanned with every set; with OASIS-3's also from cerebellum to vertex, and in each way that scans arrive spoiled.
Beside each error stands that of a constant, the known mean of the tissue, and the correlation over people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor

from ..calibration import LEVEL, explained_sd
from ..inference import explain, infer
from ..machine.files import write_atomically
from ..people import open_field
from ..people.anatomy import Folders
from ..people.cohort import CohortRecipe, Subject
from ..people.held_out import FIRST, choose_heads, recipe_of, session_of
from ..physics import Protocol
from ..running.profiles import RELEASE
from ..slices import MAPS, Slices, Truth, covered, spoiled
from ..tissue import three_medians
from ..weights import Weights
from .tables import pure_tissue

OASIS3 = "MPRAGE 1.0 + T2w + FLAIR (OASIS-3)"
SETS = {
    OASIS3: (
        Protocol("MPRAGE", te=0.003, tr=2.4, ti=1.0), Protocol("spin echo", te=0.1, tr=3.2),
        Protocol("FLAIR", te=0.091, tr=9.0, ti=2.5),
    ),
    "MPRAGE 0.45 + T2w": (Protocol("MPRAGE", te=0.003, tr=2.0, ti=0.45), Protocol("spin echo", te=0.1, tr=4.0)),
    "IR 0.8 + T2w + FLAIR": (
        Protocol("FLAIR", te=0.02, tr=2.0, ti=0.8), Protocol("spin echo", te=0.12, tr=6.0),
        Protocol("FLAIR", te=0.09, tr=5.0, ti=1.8),
    ),
    "IR 0.5 + T2w + IR 2": (
        Protocol("FLAIR", te=0.012, tr=15.0, ti=0.5), Protocol("spin echo", te=0.09, tr=5.0),
        Protocol("FLAIR", te=0.012, tr=15.0, ti=2.0),
    ),
    "T1w + PDw + T2w spin echoes": (
        Protocol("spin echo", te=0.015, tr=0.5), Protocol("spin echo", te=0.015, tr=3.0),
        Protocol("spin echo", te=0.09, tr=3.0),
    ),
    "PDw + T2w spin echoes": (Protocol("spin echo", te=0.01, tr=5.0), Protocol("spin echo", te=0.09, tr=5.0)),
    "gradient echoes 4°, 20° + T2w": (
        Protocol("spoiled gradient echo", te=0.004, tr=0.02, flip_angle_deg=4),
        Protocol("spoiled gradient echo", te=0.004, tr=0.02, flip_angle_deg=20), Protocol("spin echo", te=0.09, tr=4.0),
    ),
}  # fmt: skip
"""The protocols that tables are by: of OASIS-3, of five clinics, and one sequence that no training scan had."""

RANDOM = "open field, 2–4 scans"
CONSTANT, ENCODER, EXPLAINED = "known mean", "encoder alone", "through the physics"
HEIGHTS = {"cerebellum": slice(0, 2), "middle": slice(2, 5), "vertex": slice(5, 7)}
"""Slices of a stack over the whole brain, :data:`N_HIGH` of them, :data:`SLICES_APART_MM` apart."""

HIGH = {f"{OASIS3}, {height}": f"{OASIS3}, middle" for height in HEIGHTS}
SPOILED_WAYS = {f"{OASIS3}, {way}": OASIS3 for way in ("stripped", "fat suppressed", "cropped", "half")}
"""Set → what its error is compared with: the central slab, and the same scans untouched."""

PURITY = 0.95
"""Of a voxel: one T1 and one T2 are those of a tissue only where there is one."""

N_SLICES, N_HIGH, SLICES_APART_MM = 2, 7, 20.0
"""Slices of a person, about the middle of the head."""


@dataclass(frozen=True)
class SetsExam:
    """Whom and what: ``n`` people, each with every set, and ``n_random`` sessions of the open field."""

    weights: Weights
    anatomies: Folders
    n: int = 10
    n_random: int = 100
    seed: int = 0
    seen: bool = False  # heads that training saw, and no others
    spread: float = 2.0  # times tissue.BETWEEN_SUBJECTS

    def subjects(self) -> list[Subject]:
        """People, then those of the random sessions: each the same however many there are."""
        heads = choose_heads(self.weights, self.anatomies, self.seen).examined
        asked = [("sub", 4 * FIRST, self.n), ("open", 6 * FIRST, self.n_random)]
        return [
            Subject(f"{kind}-{i + 1:04d}", "test", heads[i % len(heads)], first + i)
            for kind, first, n in asked
            for i in range(n)
        ]

    def recipe(self, n_slices: int) -> CohortRecipe:
        """Of the geometry that the weights know; heads as bent as the release's VAE has seen them, and no lesions."""
        return replace(
            recipe_of(self.weights, self.anatomies, 1000 + self.seed), n_slices=n_slices, slice_mm=SLICES_APART_MM,
            lesions=0.0, spread=self.spread, deformation=RELEASE.vae_cohort.deformation,
        )  # fmt: skip


def examine_sets(exam: SetsExam, folder: Path) -> Iterator[str]:
    """Write the errors of one person or session after the other, ``folder/NAME.csv``, yielding names; resumes.

    Columns: set, person, head, method, tissue, quantity (PD relative to the person's CSF), error (median over pure
    voxels that a scan covers, a fraction), estimate and truth (medians; s), holds (share of true values in the 90 %
    interval; only of maps through the physics).

    Raises
    ------
    BadInput
        No head to examine on (:func:`held_out.choose_heads`).
    """
    vae = None
    for subject in sorted(exam.subjects(), key=lambda s: s.head):  # a head is read once or twice
        path = folder / f"{subject.name}.csv"
        if not path.exists():
            vae = vae or exam.weights.vae()
            examine = _random_session if subject.index >= 6 * FIRST else _every_set
            table = pandas.concat(examine(exam, vae, subject), ignore_index=True)
            write_atomically(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
        yield subject.name


def read_sets(exam: SetsExam, folder: Path) -> pandas.DataFrame:
    """What :func:`examine_sets` wrote of all people and sessions."""
    return pandas.concat([pandas.read_csv(folder / f"{s.name}.csv") for s in exam.subjects()], ignore_index=True)


def _every_set(exam: SetsExam, vae, subject: Subject) -> Iterator[pandas.DataFrame]:
    recipe, calibration = exam.recipe(N_SLICES), exam.weights.calibration
    for name, protocols in SETS.items():
        slices, truth, layers = session_of(subject, recipe, protocols)
        yield _judged(name, subject, _found(vae, calibration, slices), truth)
        if name == OASIS3:
            for said in SPOILED_WAYS:
                way = said.removeprefix(f"{OASIS3}, ")
                touched = replace(slices, images=_spoil(slices.images, layers, way, subject.index))
                yield _judged(said, subject, _found(vae, calibration, touched), truth)
    slices, truth, _ = session_of(subject, exam.recipe(N_HIGH), SETS[OASIS3])
    found = _found(vae, calibration, slices)
    for name, rows in zip(HIGH, HEIGHTS.values(), strict=True):
        yield _judged(name, subject, found, truth, rows)


def _random_session(exam: SetsExam, vae, subject: Subject) -> Iterator[pandas.DataFrame]:
    protocols = open_field.draw_session(np.random.default_rng([exam.seed, subject.index]))
    slices, truth, _ = session_of(subject, exam.recipe(N_SLICES), protocols)
    yield _judged(RANDOM, subject, _found(vae, exam.weights.calibration, slices), truth)


def _spoil(images: Tensor, layers: Tensor, way: str, seed: int) -> Tensor:
    """Every scan of a session spoiled in one way."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(images, layers, strict=True)
    return torch.stack([torch.stack([spoiled(x, layer, generator, (way,)) for x in scans]) for scans, layer in pairs])


@dataclass(frozen=True)
class Found:
    """Maps ``(n, 3, y, x)`` by method, the SD of those through the physics, and ``(n, y, x)`` where a scan measured."""

    maps: dict[str, Tensor]
    sd: Tensor
    measured: Tensor


def _found(vae, calibration: dict | None, slices: Slices) -> Found:
    explained = explain(vae, slices)
    sd = explained_sd(explained, slices, calibration)
    _, alone = infer(vae, slices, common_scale=False)
    maps = {ENCODER: alone.stack(), EXPLAINED: explained.maps.stack()}
    return Found(maps, sd.stack(), covered(slices.images).any(1))


def _judged(name: str, subject: Subject, found: Found, truth: Truth, rows: slice = slice(None)) -> pandas.DataFrame:
    z, table = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + LEVEL) / 2)), []
    known, seen = three_medians(), Truth(truth.maps, truth.fractions * found.measured[:, None])
    key = {"set": name, "person": subject.name, "head": subject.head}
    for method, maps in found.maps.items():
        for quantity, tissue, estimate, true, where, unit in pure_tissue(maps, seen, rows, PURITY):
            estimate, true, p, holds = estimate[where], true[where], MAPS.index(quantity), np.nan
            if method == ENCODER:
                constant = known[tissue][p] / (known["CSF"][p] if quantity == "PD" else 1.0)
                table.append(key | _row(CONSTANT, tissue, quantity, torch.full_like(true, constant), true))
            else:
                sd = found.sd[rows, p][where] / unit
                holds = float(((true - estimate).abs() < z * sd).float().mean())
            table.append(key | _row(method, tissue, quantity, estimate, true) | {"holds": holds})
    columns = (*key, "method", "tissue", "quantity", "error", "estimate", "truth", "holds")
    return pandas.DataFrame(table, columns=columns)


def _row(method: str, tissue: str, quantity: str, estimate: Tensor, true: Tensor) -> dict:
    error = float(((estimate - true) / true).abs().median())
    medians = {"estimate": float(estimate.median()), "truth": float(true.median())}
    return {"method": method, "tissue": tissue, "quantity": quantity, "error": error} | medians


def by_set(table: pandas.DataFrame, n_resamples: int = 2000, seed: int = 0) -> pandas.DataFrame:
    """Per set, method, tissue and quantity: mean error with a 95 % interval, and what it is to be compared with.

    The interval resamples heads, and people within a head: people of one head are more alike than strangers.

    Returns
    -------
        Columns: the four; n (people); value, low, high (the error, a fraction); p90 (its 90th percentile over people);
        r (of estimate and truth, over people); over_constant (ratio to the error of :data:`CONSTANT`); over_untouched
        (ratio to that of the central slab, or of the same scans untouched); holds.
    """
    rng, keys, out = np.random.default_rng(seed), ["set", "method", "tissue", "quantity"], []
    errors = table.groupby(keys)["error"].mean()
    for names, part in table.groupby(keys, sort=False):
        by_head = [group.error.to_numpy() for _, group in part.groupby("head")]
        k, which = len(by_head), rng.integers(len(by_head), size=(n_resamples, len(by_head), 1))
        drawn = np.stack([rng.choice(of_head, (n_resamples, k, len(of_head))).mean(-1) for of_head in by_head], -1)
        means = np.take_along_axis(drawn, which, -1).mean((1, 2))
        name, _, *what = names
        varies, reference = part.estimate.std() > 0 and len(part) > 2, (HIGH | SPOILED_WAYS).get(name)
        untouched = errors.get((reference, *names[1:]), np.nan)
        low, high = np.quantile(means, (0.025, 0.975))
        out.append(dict(zip(keys, names, strict=True)) | {
            "n": len(part), "value": part.error.mean(), "low": low, "high": high, "p90": part.error.quantile(0.9),
            "r": part.estimate.corr(part.truth) if varies else np.nan,
            "over_constant": part.error.mean() / errors[name, CONSTANT, *what],
            "over_untouched": part.error.mean() / untouched, "holds": part.holds.mean(),
        })  # fmt: skip
    return pandas.DataFrame(out)
