"""How right maps are by the protocols that they were inferred from: OASIS-3's, six clinical sets, and random sessions.

People of unseen heads, who differ as people, methods and diseases do; every scan with its own unknown gain. Beside each
error stands that of a constant, the known mean of the tissue, and the correlation over people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor

from ..calibration import calibrated, local_sd
from ..inference import explain, infer
from ..machine.errors import BadInput
from ..people import open_field
from ..people.anatomy import Folders
from ..people.cohort import Subject
from ..people.held_out import FIRST, choose_heads, session_of
from ..physics import Protocol
from ..running.profiles import RELEASE
from ..slices import Slices, Truth, spoiled
from ..tissue import TISSUES, in_vivo_3t
from ..weights import Weights

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
WAYS_ASKED = ("stripped", "fat suppressed", "cropped", "half")
PURITY = 0.95
"""Of a voxel: one T1 and one T2 are those of a tissue only where there is one."""

N_SLICES, SLICES_APART_MM = 2, 20.0
"""Slices of a person, about the middle of the head, and how far apart."""


@dataclass(frozen=True)
class SetsExam:
    """Whom and what: ``n`` people a set, ``n_random`` sessions of the open field."""

    weights: Weights
    anatomies: Folders
    n: int = 6
    n_random: int = 24
    seed: int = 0
    spread: float = 2.0  # times tissue.BETWEEN_SUBJECTS


def examine_sets(exam: SetsExam) -> Iterator[pandas.DataFrame]:
    """The errors of one session after the other, in long form.

    Columns: set, person, head, method, tissue, quantity, error (median over pure voxels, a fraction), estimate and
    truth (medians, s), holds (share of true values in the 90 % interval; of the encoder nothing is said).

    Raises
    ------
    BadInput
        Weights of another voxel size than the release's, or no unseen head.
    """
    if exam.weights.voxel_mm != RELEASE.cohort.voxel_mm or not exam.weights.head:
        raise BadInput(f"{exam.weights.folder}: protocol sets are examined on whole heads at 1 mm: give such weights")
    heads, vae = choose_heads(exam.weights, exam.anatomies).examined, exam.weights.vae()
    recipe = replace(
        RELEASE.vae_cohort, anatomies=str(Path(exam.anatomies)), n_slices=N_SLICES, slice_mm=SLICES_APART_MM, lesions=0.0,
        spread=exam.spread, seed=1000 + exam.seed,
    )  # fmt: skip
    rng = np.random.default_rng(exam.seed)
    asked = [(name, protocols, i) for name, protocols in SETS.items() for i in range(exam.n)]
    asked += [(RANDOM, open_field.draw_session(rng), i) for i in range(exam.n_random)]
    for name, protocols, i in sorted(asked, key=lambda job: job[2] % len(heads)):  # a head is read once
        subject = Subject(f"sub-{i + 1:04d}", "test", heads[i % len(heads)], 4 * FIRST + i)
        slices, truth, layers = session_of(subject, recipe, protocols)
        yield _judged(name, subject, vae, exam.weights.calibration, slices, truth)
        if name == OASIS3:
            for what in WAYS_ASKED:
                spoiled_too = replace(slices, images=_spoil(slices.images, layers, what, i))
                yield _judged(f"{name}, {what}", subject, vae, exam.weights.calibration, spoiled_too, truth)


def _spoil(images: Tensor, layers: Tensor, what: str, seed: int) -> Tensor:
    """Every scan of a session spoiled in one way."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(images, layers, strict=True)
    return torch.stack([torch.stack([spoiled(x, layer, generator, (what,)) for x in scans]) for scans, layer in pairs])


def _judged(name: str, subject: Subject, vae, calibration, slices: Slices, truth: Truth) -> pandas.DataFrame:
    explained = explain(vae, slices)
    sd = calibrated(local_sd(explained, slices), explained.maps, (calibration or {}).get("explained")).stack()
    _, alone = infer(vae, slices, common_scale=False)
    known = in_vivo_3t().median[[TISSUES.index("WM"), TISSUES.index("GM")], 1:]
    rows, z = [], 1.645
    for k, tissue in enumerate(("WM", "GM")):
        pure = truth.tissue(tissue, PURITY) & (slices.images != 0).any(1)
        for q, quantity in enumerate(("T1", "T2")):
            true, found = truth.maps[:, q + 1][pure], explained.maps[q + 1][pure]
            holds = float(((true - found).abs() < z * sd[:, q + 1][pure]).float().mean())
            constant = torch.full_like(true, float(known[k, q]))
            methods = {CONSTANT: (constant, np.nan), ENCODER: (alone[q + 1][pure], np.nan), EXPLAINED: (found, holds)}
            for method, (estimate, share) in methods.items():
                rows.append({
                    "set": name, "person": subject.name, "head": subject.head, "method": method, "tissue": tissue,
                    "quantity": quantity, "error": float(((estimate - true) / true).abs().median()),
                    "estimate": float(estimate.median()), "truth": float(true.median()), "holds": share,
                })  # fmt: skip
    return pandas.DataFrame(rows)


def by_set(table: pandas.DataFrame, n_resamples: int = 2000, seed: int = 0) -> pandas.DataFrame:
    """Per set, method, tissue and quantity: mean error with a 90 % interval, r over people, ratio to the constant's.

    The interval resamples heads, and people within a head: people of one head are more alike than strangers.
    """
    rng, keys, out = np.random.default_rng(seed), ["set", "method", "tissue", "quantity"], []
    for names, part in table.groupby(keys, sort=False):
        by_head = [group.error.to_numpy() for _, group in part.groupby("head")]
        means = []
        for _ in range(n_resamples):
            heads = rng.integers(len(by_head), size=len(by_head))
            means.append(np.mean([rng.choice(by_head[h], len(by_head[h])).mean() for h in heads]))
        varies = part.estimate.std() > 0 and len(part) > 2
        constant = table[(table.set == names[0]) & (table.method == CONSTANT)]
        constant = constant[(constant.tissue == names[2]) & (constant.quantity == names[3])].error.mean()
        out.append(dict(zip(keys, names, strict=True)) | {
            "n": len(part), "error": part.error.mean(), "low": np.quantile(means, 0.05),
            "high": np.quantile(means, 0.95), "p90": part.error.quantile(0.9),
            "r": part.estimate.corr(part.truth) if varies else np.nan, "over_constant": part.error.mean() / constant,
            "holds": part.holds.mean(),
        })  # fmt: skip
    return pandas.DataFrame(out)
