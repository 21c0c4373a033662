"""``phyldm evaluate``: how right weights are on people whose truth is known, beside what needs no network.

A person is examined at a time and what was found is kept, so that a killed evaluation goes on. Then the people are put
together (:func:`summary`), drawn brains are compared with true ones, other people are scanned with other protocols
(:mod:`protocol_sets`), and a report is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from .. import __version__, tissue
from ..calibration import explained_sd, honest_sd, posterior_sd
from ..composition import CompositionVAE, restore
from ..inference import explain, infer
from ..machine.errors import BadInput
from ..machine.files import read_json, to_json, write_atomically
from ..people.anatomy import Folders
from ..people.held_out import FIRST, Heads, choose_heads, draw_people, recipe_of, training_people
from ..physics import Protocol, Sequence, TissueMaps
from ..running.report import write_table
from ..slices import ALL_SCANS, SUBSETS, Person, Truth
from ..tissue import REPORTED
from ..voxelwise import baselines
from ..voxelwise.refine import refine
from ..voxelwise.shares import compose_scans
from ..weights import TENSORS, Weights
from . import metrics, tables
from .brain_sets import Population, compare, features, novelty, pictures, thumbnails
from .brain_shapes import measure_shapes, share_in_range
from .protocol_sets import EXPLAINED, SetsExam, by_set, examine_sets, read_sets
from .told_apart import N_FOLDS, auc_of_features, auc_of_network, screens

KEYS = ["metric", "quantity", "tissue", "inputs"]
SEPARATOR = " | "
SCALES = ("common scale", "any gain")
NETWORK, REFINED = "network", "network, refined"
FIT, PRIORS = "least squares", "least squares, priors"
BAYES, PAINTED = "Bayes per voxel", "literature painted"
SAMPLED_SD = "network, SD of samples"
SEEN = "heads seen in training"
N_FITTED = 1000
"""Voxels of each tissue that a fit is asked for where no image is made of them."""

N_LOOKED_AT = 38
"""People in each set whose slices are looked at one by one: 304 slices of eight each, or ``n`` people's if more."""

GAIN_ONE = 10**2.8
"""Middle of the simulated gains (200 to 2000): what scans are divided by where a gain of 1 is assumed."""


@dataclass(frozen=True)
class Examination:
    """What is examined, on whom; see :func:`examine`."""

    weights: Weights
    anatomies: Folders
    out: Path
    n: int = 10
    seed: int = 0
    seen: bool = False
    n_sessions: int = 0  # of random protocols; the command asks for 100
    n_samples: int = 8  # of the posterior, for its SD
    n_voxels: int = 200  # kept of each tissue and person, for Bland and Altman's plots

    @property
    def has_common_scale(self) -> bool:
        """Whether the network was ever shown scans on a common scale."""
        return "data" not in self.weights.training["vae"]["cohort"]

    @property
    def sets(self) -> SetsExam:
        """Whom and what the tables by protocol set are of."""
        return SetsExam(self.weights, self.anatomies, self.n, self.n_sessions, self.seed, self.seen)

    def settings(self) -> dict:
        """What kept parts depend on; more people are only added to them."""
        asked = {"seed": self.seed, "seen": self.seen, "n_samples": self.n_samples, "n_voxels": self.n_voxels}
        heads = choose_heads(self.weights, self.anatomies, self.seen)
        vae = self.weights.config["files"][f"vae/{TENSORS}"]  # a diffusion model may be trained later
        return asked | {"vae": vae, "heads": list(heads.examined), "version": __version__}


class Estimate(NamedTuple):
    """Maps that somebody makes of one person, ``(z, y, x)``, with an SD where there is one; ``where``: None is all."""

    method: str
    scans: str
    scale: str
    maps: TissueMaps
    sd: TissueMaps | None = None
    where: Tensor | None = None

    @property
    def label(self) -> str:
        return SEPARATOR.join((self.method, self.scans, self.scale))


def examine(exam: Examination) -> Iterator[str]:
    """Do it, yielding what was finished: each person's name, "samples", people and sessions by set, at last "numbers".

    Afterwards ``out`` holds ``metrics.csv`` (long form; ``inputs`` reads "method | scans | scale", with a fourth part
    where heads were seen in training), ``sets.csv`` (:func:`protocol_sets.by_set`; a set's name ends so, too), and what
    they were made from in ``people/`` and ``sets/``; :func:`examination_report.write_examination` makes figures and a
    page of them. :func:`n_parts` says how many parts to expect.

    Raises
    ------
    BadInput
        No head to examine on (:func:`held_out.choose_heads`), fewer than 2 people, a negative number of sessions or
        seed, or ``out`` holds another evaluation.
    """
    if exam.n < 2 or exam.seed < 0 or exam.n_sessions < 0:
        raise BadInput(
            f"{exam.n} subjects, {exam.n_sessions} sessions, seed {exam.seed}: at least 2 subjects, 0 sessions and a "
            "seed of 0 or more are needed"
        )
    heads = choose_heads(exam.weights, exam.anatomies, exam.seen)
    _own_folder(exam)
    recipe = recipe_of(exam.weights, exam.anatomies, exam.seed)
    done, vae = {p.stem for p in (exam.out / "people").glob("sub-????.csv")}, None
    yield from sorted(done)[: exam.n]
    for person in draw_people(recipe, heads.examined, exam.n, skip=done):
        vae = vae or exam.weights.vae()
        table, voxels = examine_person(exam, vae, person)
        write_atomically(exam.out / "people" / f"{person.name}_voxels.csv", _csv(voxels))
        write_atomically(exam.out / "people" / f"{person.name}.csv", _csv(table))  # last: this person is complete
        yield person.name
    parts = [summary(exam)]
    if exam.weights.has_pipeline:
        path = exam.out / f"samples_{exam.n}_{exam.weights.identity[:12]}.csv"
        if not path.exists():
            write_atomically(path, _csv(examine_samples(exam, heads)))
        parts.append(pandas.read_csv(path, keep_default_na=False, na_values=[""]).fillna(dict.fromkeys(KEYS, "")))
        yield "samples"
    table = pandas.concat(parts, ignore_index=True)
    yield from examine_sets(exam.sets, exam.out / "sets")
    sets = by_set(read_sets(exam.sets, exam.out / "sets"), seed=exam.seed)
    if exam.seen:
        table["inputs"] += SEPARATOR + SEEN
        sets["set"] += SEPARATOR + SEEN
    write_table(sets, exam.out / "sets.csv")
    write_table(table, exam.out / "metrics.csv")
    yield "numbers"


def n_parts(exam: Examination) -> int:
    return exam.n + exam.weights.has_pipeline + exam.n + exam.n_sessions + 1


def _own_folder(exam: Examination):
    path, asked = exam.out / "evaluation.json", exam.settings()
    if path.exists():
        if read_json(path, ": choose another folder") != asked:
            raise BadInput(f"{exam.out}: holds an evaluation of other weights, heads or seed: choose another folder")
    elif exam.out.is_dir() and any(exam.out.iterdir()):
        raise BadInput(f"{exam.out}: is not empty and holds no evaluation: choose another folder")
    write_atomically(path, to_json(asked))


def _csv(table: pandas.DataFrame) -> bytes:
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


# --- one person -------------------------------------------------------------------------------------


def estimates(exam: Examination, vae, person: Person) -> Iterator[Estimate]:
    """From each subset of scans on either scale the network's maps, those through the physics, and the rivals'.

    And once the paper's own choices.
    """
    generator = torch.Generator().manual_seed(exam.seed)
    brain = person.truth.brain
    everything, some = SUBSETS[ALL_SCANS], some_voxels(person.truth, N_FITTED, exam.seed)
    for scale, slices in zip(SCALES, (person.common, person.scanned), strict=True):
        common = scale == SCALES[0]
        for scans, shown in SUBSETS.items():
            where = None if scans == ALL_SCANS else some
            if exam.has_common_scale or not common:
                shows = torch.tensor(shown).expand(len(slices), -1)
                posterior, maps = infer(vae, slices, common, shows)
                sampled = posterior_sd(vae, posterior, exam.n_samples, generator)
                sd = honest_sd(sampled, maps, slices, common, exam.weights.calibration, shows)
                yield Estimate(NETWORK, scans, scale, maps, sd)
                if exam.weights.calibration:
                    yield Estimate(SAMPLED_SD, scans, scale, maps, sampled, some)
                found = explain(vae, slices, shows, gain=torch.ones(len(shown)) if common else None)
                sd = explained_sd(found, slices, exam.weights.calibration, shows)
                yield Estimate(EXPLAINED, scans, scale, found.maps, sd)
                refined = refine(maps, slices, brain, exam.weights.voxel_mm, common, shows, where)
                yield Estimate(REFINED, scans, scale, *refined, where)
            fitted = baselines.least_squares(slices, brain, shown, common, where=where)
            yield Estimate(PRIORS, scans, scale, fitted, where=where)
            yield Estimate(BAYES, scans, scale, *baselines.dictionary(slices, brain, shown, common, where), where)
            if sum(shown) == 1:
                yield Estimate(PAINTED, scans, scale, baselines.literature(slices, brain, shown))
        fitted = baselines.least_squares(slices, brain, everything, common, priors=False, where=some)
        yield Estimate(FIT, ALL_SCANS, scale, fitted, where=some)
    nominal = replace(person.common, settings=person.nominal)
    fitted = baselines.least_squares(nominal, brain, where=some)
    yield Estimate(f"{PRIORS}, nominal TE", ALL_SCANS, SCALES[0], fitted, where=some)
    if exam.has_common_scale:
        yield Estimate(f"{NETWORK}, nominal TE", ALL_SCANS, SCALES[0], infer(vae, nominal)[1])
        with torch.no_grad():
            drawn = vae.decode(infer(vae, person.common)[0].sample(generator))
        yield Estimate(f"{NETWORK}, a sampled latent", ALL_SCANS, SCALES[0], drawn)
        as_one = replace(person.scanned, images=person.scanned.images / GAIN_ONE)
        yield Estimate(f"{NETWORK}, gain taken for 1", ALL_SCANS, SCALES[1], infer(vae, as_one)[1])


def some_voxels(truth: Truth, n: int, seed: int) -> Tensor:
    """``(z, y, x)`` bool: ``n`` pure voxels of WM, GM and CSF each, or all there are; medians need no more."""
    where, generator = torch.zeros_like(truth.brain), torch.Generator().manual_seed(seed)
    for name in REPORTED:
        pure = truth.tissue(name).nonzero()
        where[tuple(pure[torch.randperm(len(pure), generator=generator)[:n]].T)] = True
    return where


def examine_person(exam: Examination, vae, person: Person) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """One person's numbers in long form (a value a row, no intervals yet), and voxels to draw."""
    parts, voxels, others = [], [], random_protocols(9, exam.seed)
    for found in estimates(exam, vae, person):
        truth, common = person.truth, found.scale == SCALES[0]
        if found.where is not None:
            truth = Truth(truth.maps, truth.fractions * found.where[:, None])
        slices = person.common if common else person.scanned
        about = (truth, slices, found.label)
        parts.append(tables.map_errors(found.maps, *about))
        if found.sd is not None:
            parts.append(tables.map_calibration(found.maps, found.sd, *about))
        scale = {"common_scale": common, "inputs": found.label}
        whole = found.scans == ALL_SCANS
        judges = [metrics.psnr]
        if whole and min(truth.brain.shape[-2:]) >= tables.SMALLEST_FOR_MS_SSIM:
            judges.append(metrics.ms_ssim)
        ours = found.method in (NETWORK, EXPLAINED)
        shows_images = found.where is None and (whole or ours and common)
        if shows_images:
            unseen = tables.unseen_errors(found.maps, truth, slices, judges=judges, **scale)
            parts.append(unseen if (ours or found.method == REFINED) and whole else _mean_rows(unseen))
        if ours or found.method == REFINED and whole:
            parts.append(tables.contrast_order(found.maps, *about))
            if shows_images:
                parts.append(tables.reconstruction_errors(found.maps, slices, truth.brain, common, found.label))
            if whole:
                at_random = tables.unseen_errors(found.maps, truth, slices, others, judges=judges, **scale)
                parts.append(_mean_rows(at_random, f"mean of {len(others)} random protocols"))
                voxels.append(tables.voxel_pairs(found.maps, found.sd, truth, exam.n_voxels, exam.seed, found.label))
    return pandas.concat(parts, ignore_index=True)[[*KEYS, "value"]], pandas.concat(voxels, ignore_index=True)


def _mean_rows(table: pandas.DataFrame, name: str = tables.MEAN_OF_SIGNAL) -> pandas.DataFrame:
    return table[table.quantity == tables.MEAN_OF_SIGNAL].assign(quantity=name)


def random_protocols(n: int, seed: int) -> list[Protocol]:
    """``n`` protocols that leave signal, a third of each sequence, from the range that clinics use."""
    rng, drawn = np.random.default_rng(seed), []
    while len(drawn) < n:
        sequence = (Sequence.MPRAGE, Sequence.SPIN_ECHO, Sequence.FLAIR)[len(drawn) % 3]
        if sequence is Sequence.MPRAGE:
            times = rng.uniform(0.002, 0.005), rng.uniform(1.5, 3.0), rng.uniform(0.3, 1.3)
        elif sequence is Sequence.SPIN_ECHO:
            times = np.exp(rng.uniform(*np.log((0.01, 0.15)))), rng.uniform(0.5, 6.0)
        else:
            times = np.exp(rng.uniform(*np.log((0.02, 0.15)))), rng.uniform(6.0, 12.0), rng.uniform(1.5, 3.0)
        protocol = Protocol(sequence, *(round(float(t), 4) for t in times))
        if tissue.leaves_signal(protocol):
            drawn.append(protocol)
    return drawn


def summary(exam: Examination) -> pandas.DataFrame:
    """All people's numbers: mean over people with its 95 % bootstrap interval over people."""
    files = [exam.out / "people" / f"sub-{i + 1:04d}.csv" for i in range(exam.n)]
    people = pandas.concat([pandas.read_csv(path, keep_default_na=False) for path in files], ignore_index=True)
    people["value"] = people["value"].astype(float)
    return metrics.long_form(
        dict(zip(KEYS, key, strict=True)) | {"value": metrics.bootstrap_interval(values, seed=exam.seed)}
        for key, values in people.groupby(KEYS, sort=False)["value"]
    )


def kept_voxels(exam: Examination) -> pandas.DataFrame:
    """The voxels kept of all people: quantity, tissue, inputs, estimate, truth, sd."""
    files = [exam.out / "people" / f"sub-{i + 1:04d}_voxels.csv" for i in range(exam.n)]
    return pandas.concat([pandas.read_csv(path) for path in files], ignore_index=True)


def split_inputs(table: pandas.DataFrame) -> pandas.DataFrame:
    """The same table with ``inputs`` taken apart into ``method``, ``scans`` and ``scale``, without rows on samples."""
    rows = table[table.inputs.str.count(r" \| ") >= 2]
    parts = rows.inputs.str.split(SEPARATOR, expand=True, regex=False)
    return rows.assign(method=parts[0], scans=parts[1], scale=parts[2])


# --- drawn brains -----------------------------------------------------------------------------------


def examine_samples(exam: Examination, heads: Heads) -> pandas.DataFrame:
    """Drawn slices against true ones: as sets, as many as ``n`` people have, and slice by slice (:func:`look_at`)."""
    recipe, voxel_mm = recipe_of(exam.weights, exam.anatomies, exam.seed), exam.weights.voxel_mm
    n_slices, n_looked = recipe.n_slices, max(exam.n, N_LOOKED_AT)
    vae, pipe, maps, inferred, who, whose_head = exam.weights.vae(), exam.weights.pipeline(), [], [], [], []
    for person in draw_people(recipe, heads.examined, 2 * n_looked):
        maps.append(person.truth.maps)
        who += [int(person.name.removeprefix("sub-")) - 1] * n_slices
        whose_head += [heads.examined.index(person.head)] * n_slices
        if who[-1] < n_looked:
            inferred.append(_told(vae, pipe.decoder, person, exam.has_common_scale))
    maps, who, whose_head = torch.cat(maps), np.array(who), np.array(whose_head)
    height = torch.linspace(-1, 1, n_slices).repeat(n_looked)
    drawn = pipe(n_slices * n_looked, seed=exam.seed, num_inference_steps=pipe.usual_steps, height=height).stack()
    looked = look_at(drawn, maps, torch.cat(inferred), who, whose_head, voxel_mm, exam.seed)
    if not recipe.head:
        looked = looked[looked.metric != "skull_closed"]

    def population(maps: Tensor, who: np.ndarray) -> Population:
        return Population(TissueMaps.from_stack(maps), who, voxel_mm)

    few, some, others = who < 2 * exam.n, n_slices * exam.n, {}
    true, generated = population(maps[few], who[few]), population(drawn[:some], np.arange(some))
    if heads.training:
        fresh = torch.cat([p.truth.maps for p in draw_people(recipe, heads.training, exam.n, 2 * FIRST)])
        others["true, training heads"] = population(fresh, np.arange(some) // n_slices)
    parts = [compare(generated, true, others, seed=exam.seed), looked]
    if heads.training:
        fresh = others["true, training heads"]
        parts.append(novelty(generated, _training_thumbnails(exam, heads), fresh, true, exam.seed))
    return pandas.concat(parts, ignore_index=True)


def _told(vae, decoder, person: Person, common_scale: bool) -> Tensor:
    """Maps ``(n, 3, y, x)`` of all that a person's scans tell a generator: of shares of tissue, if it draws those."""
    slices = person.common if common_scale else person.scanned
    if not isinstance(decoder, CompositionVAE):
        return infer(vae, slices, common_scale)[1].stack()
    explained = explain(vae, slices, gain=torch.ones(slices.images.shape[1]) if common_scale else None)
    return restore(compose_scans(explained, slices, decoder.config.tissues, decoder.downsampling // 2)).stack()


def look_at(
    drawn: Tensor, true: Tensor, inferred: Tensor, who: np.ndarray, whose_head: np.ndarray, voxel_mm: float, seed: int
) -> pandas.DataFrame:
    """Drawn slices judged one by one: are they shaped as people's are, and can classifiers tell them from people's?

    Parameters
    ----------
    drawn, true, inferred
        Maps ``(n, 3, y, x)``: generated; of people; what the scans of the first half of these people tell, which is all
        that a generator trained on scans can know of them.
    who, whose_head
        Person and head of each true slice, ``(n,)``, counted from 0; ``inferred`` has the same order.

    Returns
    -------
        Rows of :func:`brain_shapes.share_in_range`, and metric "auc" by quantity "logistic regression" (on the features
        of the Fréchet distance) and "network": the set in ``inputs`` against true people's slices, "generated, against
        inferred" the one against the other. Cross-validated by head, or by person where there are few heads.
    """
    groups = whose_head if len(np.unique(whose_head)) >= N_FOLDS else who
    first = who < (who.max() + 1) // 2
    shapes = [measure_shapes(TissueMaps.from_stack(maps), voxel_mm) for maps in (drawn, inferred, true)]
    within = share_in_range({"generated": shapes[0], "true, inferred": shapes[1]}, shapes[2], who, seed=seed)
    sets = {"drawn": (drawn, len(who) + np.arange(len(drawn))), "true": (true[first], groups[first]),
            "rest": (true[~first], groups[~first]), "inferred": (inferred, groups[first])}  # fmt: skip
    pairs = {"generated": ("drawn", "true"), "true, other half": ("rest", "true"),
             "true, inferred": ("inferred", "rest"), "generated, against inferred": ("drawn", "inferred")}  # fmt: skip
    seen, rows = {}, []
    for name, (maps, _) in sets.items():
        maps = TissueMaps.from_stack(maps)
        seen[name] = features(pictures(maps)), screens(maps)
    for name, (one, other) in pairs.items():
        of, key = (sets[one][1], sets[other][1]), {"metric": "auc", "inputs": name, "n": len(sets[one][1])}
        for i, (judge, auc) in enumerate({"logistic regression": auc_of_features, "network": auc_of_network}.items()):
            rows.append({**key, "quantity": judge, "value": auc(seen[one][i], seen[other][i], of, seed)})
    return pandas.concat([within, metrics.long_form(rows)], ignore_index=True)


def _training_thumbnails(exam: Examination, heads: Heads) -> np.ndarray:
    """Of every slice that was trained on and of its mirror image; kept, because making all the people takes minutes."""
    path = exam.out / "training_thumbnails.safetensors"
    if not path.exists():
        recipe, parts = recipe_of(exam.weights, exam.anatomies), []
        for truth in training_people(recipe, heads.training):
            images = pictures(TissueMaps.from_stack(truth.maps))
            parts += [thumbnails(one, recipe.voxel_mm) for one in (images, images.flip(-1))]
        write_atomically(path, save({"thumbnails": np.concatenate(parts).astype(np.float32)}))
    return load_file(path)["thumbnails"]
