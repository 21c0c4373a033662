"""What matters: short trainings that differ from a reference in one thing each, judged on the same held-out people.

A variant says what it changes and what to expect. Each is a run of its own in a subfolder of a run, made by the same
code as any (:class:`run.Run`), on the same cohort unless the cohort is what is changed. Differences from the reference
are taken person by person, and the reference trained again from another seed says which differences mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor

from .. import tissue
from ..errors import BadInput
from ..inference import infer, posterior_sd
from ..losses import VAEObjective, gain_per_scan
from ..machine.files import write_atomically
from ..people.cohort import CohortRecipe
from ..physics import UNSEEN, Protocol, TissueMaps, render
from ..running.profiles import Profile
from ..running.run import Run
from ..scans.oasis3 import oasis3_protocols
from ..slices import ALL_SCANS, SUBSETS, Slices, Truth
from ..training import Step
from ..vae import PRIOR_MEDIANS, TYPICAL_SIGNAL, PoEVAE
from ..voxelwise import baselines
from . import metrics, tables
from .examination import GAIN_ONE, SCALES, some_voxels
from .tables import MEAN_OF_SIGNAL

SHORTER = 6
"""A variant is trained for the profile's steps divided by this: fifteen of them in little more than an hour."""

MOVED = 1.25
"""What the prior's T1 and T2 are multiplied and divided by: as far as published values of one tissue are apart."""

SHOWN = ("T1w", "T1w+T2w", ALL_SCANS)
"""What every variant is judged from; the reference from all seven of :data:`slices.SUBSETS`."""

ON_ONE = ", on one protocol"

KEYS = ["metric", "quantity", "tissue", "variant", "scans", "scale"]


@dataclass(frozen=True)
class Variant:
    """One change to the reference, why it is asked about, and what to expect."""

    name: str
    of: str  # what is asked about
    why: str
    prediction: str
    loss: dict = field(default_factory=dict)  # fields of training.VAELoss
    network: dict = field(default_factory=dict)  # arguments of vae.PoEVAE
    nominal_te: bool = False  # believe the echo time in the header
    one_protocol: bool = False  # train on people who were all scanned alike
    physics: bool = True  # False: the decoder gives three images instead of three maps
    another_seed: bool = False


UNCHANGED = Variant("reference", "", "The profile's network, fewer steps, no adversary.", "What all are held against.")


def moved_prior(factor: float) -> dict:
    """Arguments of :class:`vae.PoEVAE` as if the literature's T1 and T2 were all ``factor`` times as long."""
    pd, t1, t2 = PRIOR_MEDIANS
    return {"prior_medians": (pd, t1 * factor, t2 * factor)}


VARIANTS = (
    UNCHANGED,
    Variant(
        "another seed", "chance", "Two trainings differ by chance alone: smaller differences mean nothing.",
        "Some per cent of the error itself.", another_seed=True,
    ),
    Variant(
        "gain solved", "gain", "Without a common scale, least squares may take the gain, or it may have to be guessed.",
        "A solved gain teaches less about the scale: PD and T2 worse without a common scale, as good with one.",
        loss={"gain": "solved"},
    ),
    Variant(
        "gain known", "gain", "The paper's assumption: every scan of every scanner on one scale.",
        "A little better where that holds; useless where it does not.", loss={"unscaled": 0.0},
    ),
    Variant(
        "gain never known", "gain", "What any archive delivers.",
        "As good as the reference without a scale: the half of its rows that had one taught it little about the other.",
        loss={"unscaled": 1.0, "gain": "solved"},
    ),
    Variant(
        "nominal TE", "echo time", "The paper reads 455 ms in the header and believes it.",
        "T2 some times too long: e^(-TE/T2) is the same where both are multiplied.", nominal_te=True,
    ),
    Variant(
        "all scans shown", "modality dropout", "Hiding scans costs the encoder evidence in training.",
        "As good from all scans, worse from one: nobody asked for a T2w that was not shown.", loss={"keep_scan": 1.0},
    ),
    Variant(
        "adversary", "adversary", "A patch adversary makes images sharp, as the paper's does.",
        "Sharper, no more right: what looks real is not what was there.", loss={"adversarial": 0.05},
    ),
    Variant(
        "no KL", "KL", "The term that keeps a posterior from being a point.",
        "Maps as right or better; the spread of samples vanishes, and with it any coverage.", loss={"kl": 0.0},
    ),
    Variant(
        "strong KL", "KL", "The same term at 0.01, a hundred times what `laptop` has.",
        "Details cost too much: blurred maps, larger errors, more spread.", loss={"kl": 1e-2},
    ),
    Variant(
        "no priors", "map prior", "Medians, PD's line and fluid's line are all taken away.",
        "PD, T1 and T2 trade against each other: all worse, CSF's T2 most.",
        loss={"map_prior": 0.0, "water": 0.0, "fluid": 0.0},
    ),
    Variant(
        "prior longer", "map prior", "As if all literature had T1 and T2 longer by a quarter.",
        "Where scans speak, nothing moves; where they do not, all of it does.", network=moved_prior(MOVED),
    ),
    Variant(
        "prior shorter", "map prior", "As if all literature had T1 and T2 shorter by a fifth.",
        "The same, the other way.", network=moved_prior(1 / MOVED),
    ),
    Variant(
        "one protocol", "field of protocols", "Everybody scanned with the most frequent protocol of each contrast.",
        "A little better on that protocol, worse on the others of OASIS-3.", one_protocol=True,
    ),
    Variant(
        "images, no physics", "physics", "A decoder that gives the three scans themselves, no tissue.",
        "Scans it was shown come back sharper; a scan it was not shown has no protocol, and no other contrast exists.",
        loss={"map_prior": 0.0, "water": 0.0, "fluid": 0.0, "air": 0.0},
        network={"prior_medians": (TYPICAL_SIGNAL,) * 3}, physics=False,
    ),
)  # fmt: skip
"""The reference first."""


def reference(profile: Profile) -> Profile:
    """The profile that every variant departs from: the same in all, and short."""
    schedule = replace(profile.vae_schedule, steps=max(2, profile.vae_schedule.steps // SHORTER))
    loss = replace(profile.vae_loss, gain="fixed", unscaled=0.5, adversarial=0.0, adversarial_after=schedule.steps // 3)
    return replace(profile, vae_loss=loss, vae_schedule=schedule)


# --- what is trained --------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneProtocol(CohortRecipe):
    """The same people with the same tissue and noise, all scanned with the most frequent protocols of OASIS-3."""

    protocols: str = "most frequent"

    def draw_session(self, rng, complete):
        drawn = super().draw_session(rng, complete)  # the same random numbers: all else stays as it is
        usual = [rows[0].nominal for rows in oasis3_protocols().values()]
        return [protocol and one for protocol, one in zip(drawn, usual, strict=True)]


class ImageVAE(PoEVAE):
    """The same network without physics: the three maps of its decoder are the T1w, the T2w and the FLAIR themselves."""

    def decode_log(self, z: Tensor) -> Tensor:
        return self.decoder(z).float()  # no bound by water: these are signals


class ImageObjective(VAEObjective):
    """The VAE's loss where there is nothing to render."""

    def render(self, maps, settings):
        return maps


@dataclass(frozen=True)
class VariantRun(Run):
    """The training of one variant, in a folder of its own; get it from :func:`variant_runs`."""

    variant: Variant
    cohort_of: Path  # the folder of the run whose cohort is used

    @property
    def cohort_folder(self) -> Path:
        return self.cohort_of / "cohort"

    @property
    def scales(self) -> list[str]:
        """Those of :data:`examination.SCALES` that training has seen, or that its assumption is held to."""
        return list(SCALES[self.profile.vae_loss.unscaled == 1 :])

    def make(self) -> Iterator[int | Step]:
        """Make what is missing: a cohort of its own if need be, the VAE; yields people done and steps."""
        yield from self.make_cohort()
        yield from self.train_vae()

    def scans(self, split: str, common_scale: bool | None = None) -> Slices:
        """As :meth:`run.Run.scans`, with the echo times that this variant believes."""
        return self.believed(super().scans(split, common_scale))

    def believed(self, slices: Slices) -> Slices:
        """The slices with the settings that this variant is told."""
        return replace(slices, settings=nominal_settings(slices.settings)) if self.variant.nominal_te else slices

    def vae(self) -> PoEVAE:
        trained = super().vae()
        if self.variant.physics:
            return trained
        images = ImageVAE(**self.profile.vae)
        images.load_state_dict(trained.state_dict())
        return images.eval()

    def _vae_settings(self) -> dict:
        said = {"nominal_te": self.variant.nominal_te, "physics": self.variant.physics}
        return super()._vae_settings() | {"variant": said}

    def _vae_objective(self) -> VAEObjective:
        if self.variant.physics:
            return super()._vae_objective()
        return ImageObjective(ImageVAE(**self.profile.vae), self.profile.vae_loss)

    def _calibrate(self, vae, folder):
        """Not here: how much a posterior spreads by itself is one of the things asked."""

    def _describe(self):
        """Not here: a variant's maps may be no tissue, so its folder is not one of weights."""


def variant_runs(run: Run, variants: Iterable[Variant] = VARIANTS) -> dict[str, VariantRun]:
    """The runs of all variants, in subfolders of ``run`` and mostly on its cohort; nothing is made yet.

    Raises
    ------
    BadInput
        The run's people are real: nobody knows their truth.
    """
    if not isinstance(run.recipe, CohortRecipe):
        raise BadInput(f"{run.folder}: its people are real and their truth is unknown: use a run on simulated people")
    base, made = reference(run.profile), {}
    for variant in variants:
        folder, recipe, home = run.folder / "ablations" / slug(variant.name), run.recipe, run.folder
        if variant.one_protocol:
            recipe, home = OneProtocol(**{f.name: getattr(recipe, f.name) for f in fields(recipe)}), folder
        profile = replace(
            base, cohort=recipe, vae=base.vae | variant.network, vae_loss=replace(base.vae_loss, **variant.loss)
        )
        made[variant.name] = VariantRun(folder, profile, recipe, run.seed + variant.another_seed, variant, home)
    return made


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return name.replace(",", "").replace(" ", "_").lower()


# --- echo times -------------------------------------------------------------------------------------


def nominal_settings(settings: Tensor) -> Tensor:
    """``(..., 4)``: settings of OASIS-3's scans with the echo times of their headers for the effective ones."""
    flat = settings.reshape(-1, settings.shape[-1]).clone()
    for row in (row for rows in oasis3_protocols().values() for row in rows if row.nominal != row.effective):
        flat[(flat - row.effective.settings()).abs().amax(1) < 1e-6] = row.nominal.settings()
    return flat.reshape(settings.shape)


def t2_asked_for(t2, te, believed_te):
    """The T2 (s) that a spin echo asks for where its TE is taken for another: e^(−TE/T2) stays, so both are scaled."""
    return t2 * believed_te / te


# --- how it is judged -------------------------------------------------------------------------------


def measure(run: Run, runs: dict[str, VariantRun]) -> pandas.DataFrame:
    """What all variants say of the held-out people of ``run``: a number a row and person, no intervals yet.

    What was found is kept beside each VAE and read again. What was trained on one protocol, and the reference, are also
    judged on the same people scanned with that protocol alone, as a variant "…, on one protocol".

    Returns
    -------
        Columns :data:`KEYS`, person, value. Metrics of :mod:`evaluation`, and "sharpness": fine detail of the T1w that
        the maps give, over that of the true maps. Without physics, "psnr" of a contrast nobody acquired is that of
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
    return pandas.concat(found, ignore_index=True)[[*KEYS, "person", "value"]]


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


def summary(people: pandas.DataFrame) -> pandas.DataFrame:
    """Means over people with 95 % bootstrap intervals over people, in long form: :data:`KEYS`, value, low, high, n.

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
    for key, values in people.groupby(KEYS, sort=False)["value"]:
        value, low, high, n = metrics.bootstrap_interval(values)
        rows.append((*key, last(value), last(low), last(high), n))
    return pandas.DataFrame(rows, columns=[*KEYS, "value", "low", "high", "n"])


def fitted_te(on: Run, n_voxels: int = 200) -> pandas.DataFrame:
    """What the physics alone predicts of the nominal TE: least squares with the priors of training, told that TE.

    Rows as of :func:`measure`, variant "fit, nominal TE", metric "bias", for the scans of :data:`SHOWN` with a T2w.
    """
    slices, truth, found = on.scans("test"), on.truth("test"), []
    for person in slices.subject.unique():
        rows = slices.subject == person
        of, told = Truth(truth.maps[rows], truth.fractions[rows]), slices[rows]
        told = replace(told, settings=nominal_settings(told.settings))
        where = some_voxels(of, n_voxels, seed=0)
        counted = Truth(of.maps, of.fractions * where[:, None])
        for scans in SHOWN[1:]:
            maps = baselines.least_squares(told, of.brain, SUBSETS[scans], where=where)
            bias = tables.map_errors(maps, counted, told)
            found.append(bias[bias.metric == "bias"].assign(scans=scans, person=int(person)))
    said = {"variant": "fit, nominal TE", "scale": SCALES[0]}
    return pandas.concat(found, ignore_index=True).assign(**said)[[*KEYS, "person", "value"]]
