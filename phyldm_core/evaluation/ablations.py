"""What matters: short trainings that differ from a reference in one thing each, judged on the same held-out people.

What is trained is in :mod:`.variants`. Differences from the reference are taken person by person, and the reference
trained again from another seed says which differences mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor

from .. import tissue
from ..calibration import posterior_sd
from ..inference import infer
from ..losses import gain_per_scan
from ..machine.files import write_atomically
from ..physics import UNSEEN, Protocol, TissueMaps, render
from ..running.run import Run
from ..slices import ALL_SCANS, SUBSETS, Slices, Truth
from ..vae import PoEVAE
from . import metrics, tables
from .examination import GAIN_ONE, SCALES
from .tables import MEAN_OF_SIGNAL
from .variants import MOVED, UNCHANGED, VARIANTS, Variant, VariantRun, variant_runs

SHOWN = ("T1w", "T1w+T2w", ALL_SCANS)
"""What every variant is judged from; the reference from all seven of :data:`slices.SUBSETS`."""

ON_ONE = ", on one protocol"
IMAGES = next(variant.name for variant in VARIANTS if not variant.physics)

VARIANT_KEYS = ["metric", "quantity", "tissue", "variant", "scans", "scale"]


def remake(run: Run, path: Path, variants: Iterable[Variant] = VARIANTS):
    """Train all variants and write what ``data/ablations.csv`` holds: an hour and a half of the ``laptop`` profile.

    Trainings and judgements that are there already are not made again. Columns: :data:`VARIANT_KEYS`, value, low, high,
    n. Error ratios of all scans, the share of the prior, and PSNR of unseen contrasts with and without physics.
    """
    runs = variant_runs(run, variants)
    for of in runs.values():
        for _ in of.make():
            pass
    people = measure(run, runs)
    table = against_reference(people)
    ratios = table[(table.metric == "error_ratio") & (table.scans == ALL_SCANS) & (table.tissue != "CSF")]
    ratios = ratios[~ratios.variant.str.endswith(ON_ONE)]
    psnr = table[(table.metric == "psnr") & (table.scale == SCALES[0]) & table.variant.isin((UNCHANGED.name, IMAGES))]
    table = pandas.concat([ratios, prior_share(people), psnr[psnr.scans.isin(SHOWN)]], ignore_index=True)
    write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())


# --- how it is judged -------------------------------------------------------------------------------


def measure(run: Run, runs: dict[str, VariantRun]) -> pandas.DataFrame:
    """What all variants say of the held-out people of ``run``: a number a row and person, no intervals yet.

    What was found is kept beside each VAE and read again. What was trained on one protocol, and the reference, are also
    judged on the same people scanned with that protocol alone, as a variant "…, on one protocol".

    Returns
    -------
        Columns :data:`VARIANT_KEYS`, person, value. Metrics of :mod:`.tables`, and "sharpness": fine detail of the T1w
        that the maps give, over that of the true maps. Without physics, "psnr" of a contrast nobody acquired is that of
        :func:`nearest_image`.
    """
    alike = [other for other in runs.values() if other.variant.one_protocol]
    found = []
    for name, of in runs.items():
        vae, asked = of.vae(), {name: ("judged.csv", run)}
        if alike and name in (UNCHANGED.name, alike[0].variant.name):
            asked[name + ON_ONE] = ("judged_on_one_protocol.csv", alike[0])
        for label, (file, on) in asked.items():
            path = of.folder / "vae" / file  # goes with the weights when they are made anew
            if not path.exists():
                table = pandas.concat(judge(of, vae, on), ignore_index=True)
                write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())
            found.append(pandas.read_csv(path, keep_default_na=False, na_values=["nan"]).assign(variant=label))
    return pandas.concat(found, ignore_index=True)[[*VARIANT_KEYS, "person", "value"]]


def judge(of: VariantRun, vae: PoEVAE, on: Run) -> Iterator[pandas.DataFrame]:
    """Numbers of one variant on the test people of a run: from :data:`SHOWN`, on every scale it can be asked on."""
    reference = of.variant.name == UNCHANGED.name and not isinstance(on, VariantRun)
    truth, subsets = on.truth("test"), SUBSETS if reference else SHOWN
    for scale in of.scales:
        common = scale == SCALES[0]
        slices = of.believed(on.scans("test", common))
        told_common = common or of.profile.vae_loss.unscaled == 0
        given = slices if common or not told_common else replace(slices, images=slices.images / GAIN_ONE)
        for scans in subsets:
            shown = torch.tensor(SUBSETS[scans]).expand(len(slices), -1)
            posterior, maps = infer(vae, given, told_common, shown)
            sd = None
            if scans == ALL_SCANS and of.variant.physics and scale == of.scales[0]:  # the slow part: once a variant
                sd = posterior_sd(vae, posterior, 8, torch.Generator().manual_seed(of.seed))
            for person in slices.subject.unique():
                rows = slices.subject == person
                of_person = Truth(truth.maps[rows], truth.fractions[rows]), slices[rows], common
                parts = (m if m is None else TissueMaps(*(t[rows] for t in m)) for m in (maps, sd))
                found = _of_person(*parts, *of_person, of.variant.physics, scans == ALL_SCANS)
                yield pandas.concat(found).assign(person=int(person), scans=scans, scale=scale)


def _of_person(maps, sd, truth: Truth, slices: Slices, common: bool, physics: bool, whole: bool):
    """Tables of one person; without physics ``maps`` are the T1w, T2w and FLAIR."""
    brain = truth.brain
    if physics:
        yield tables.map_errors(maps, truth, slices)
        images = tables.rescan(maps, slices, common, brain)
    else:
        images = tables.in_scale_of(maps.stack().clone(), slices, common, brain)
    found = tables.image_errors(images, slices, brain)
    yield found[found.metric.isin(("psnr", "ms_ssim"))]
    if not whole:
        return
    true = tables.rescan(TissueMaps.from_stack(truth.maps), slices, common, brain)
    sharp = metrics.fine_detail(images[:, 0], brain) / metrics.fine_detail(true[:, 0], brain)
    rows = [{"metric": "sharpness", "quantity": "T1w", "tissue": "brain", "value": sharp}]
    if physics:
        unseen = tables.unseen_errors(maps, truth, slices, common_scale=common, judges=(metrics.psnr,))
        yield unseen[unseen.quantity == MEAN_OF_SIGNAL]
        if sd is not None:
            honest = tables.map_calibration(maps, sd, truth, slices)
            yield honest[honest.metric == "coverage_90"]
    else:
        nearest = [float(nearest_image(maps.stack(), truth, p)[1]) for p in UNSEEN if tissue.leaves_signal(p)]
        rows.append({"metric": "psnr", "quantity": MEAN_OF_SIGNAL, "tissue": "brain", "value": np.mean(nearest)})
    yield metrics.long_form(rows)


def nearest_image(images: Tensor, truth: Truth, protocol: Protocol) -> tuple[Tensor, float]:
    """What a model without physics has for a contrast nobody acquired: the best of its images, its gain solved.

    Parameters
    ----------
    images
        ``(n, m, y, x)`` of one person.

    Returns
    -------
        The image ``(n, y, x)`` nearest to the contrast that the true maps give, and its PSNR in the brain (dB). Truth
        tells which is nearest, and at what gain: no such model could know.
    """
    brain, true = truth.brain, render(TissueMaps.from_stack(truth.maps), protocol)
    tries = []
    for image in images.unbind(1):
        scaled = image * gain_per_scan(image[:, None], true[:, None], brain[:, None])
        tries.append((scaled, metrics.psnr(scaled, true, brain)))
    return max(tries, key=lambda pair: pair[1])


# --- what it says -----------------------------------------------------------------------------------


def against_reference(people: pandas.DataFrame) -> pandas.DataFrame:
    """Means over people with 95 % bootstrap intervals: :data:`VARIANT_KEYS`, value, low, high, n.

    "error_ratio" is a variant's median absolute error over the reference's: the geometric mean over people of the
    ratio that each has, so that what makes a person hard does not count.
    """
    errors = people[people.metric == "median_absolute_error"]
    ours = errors[errors.variant == UNCHANGED.name].drop(columns="variant")
    pairs = errors.merge(ours, on=["metric", "quantity", "tissue", "scans", "scale", "person"], suffixes=("", "_of"))
    pairs = pairs[(pairs.value > 0) & (pairs.value_of > 0)]
    ratios = pairs.assign(metric="error_ratio", value=np.log(pairs.value / pairs.value_of))[people.columns]
    return pandas.concat([intervals(people), intervals(ratios, np.exp)], ignore_index=True)


def prior_share(people: pandas.DataFrame) -> pandas.DataFrame:
    """How much of an estimate is the prior's: how far it moves, of how far the prior was moved (logarithms of both).

    0: all from the scans; 1: all from the prior. Metric "prior_share", variant "prior moved". PD's prior was not moved
    itself, but the line that ties it to T1 was; it is left out.
    """
    bias = people[(people.metric == "bias") & people.quantity.isin(["T1", "T2"])]
    longer, shorter = (bias[bias.variant == name].drop(columns="variant") for name in ("prior longer", "prior shorter"))
    keys = ["metric", "quantity", "tissue", "scans", "scale", "person"]
    pairs = longer.merge(shorter, on=keys, suffixes=("", "_shorter"))
    share = np.log((1 + pairs.value) / (1 + pairs.value_shorter)) / np.log(MOVED**2)
    return intervals(pairs.assign(metric="prior_share", variant="prior moved", value=share)[people.columns])


def intervals(people: pandas.DataFrame, last=lambda value: value) -> pandas.DataFrame:
    """One row for every key: the mean over people and its interval, both passed through ``last``."""
    rows = []
    for key, values in people.groupby(VARIANT_KEYS, sort=False)["value"]:
        value, low, high, n = metrics.bootstrap_interval(values)
        rows.append((*key, last(value), last(low), last(high), n))
    return pandas.DataFrame(rows, columns=[*VARIANT_KEYS, "value", "low", "high", "n"])


def t2_asked_for(t2, te, believed_te):
    """The T2 (s) that a spin echo asks for where its TE is taken for another: e^(−TE/T2) stays, so both are scaled."""
    return t2 * believed_te / te
