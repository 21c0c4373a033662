"""Variants of a training, each of which differs from a reference in one thing: what they change, and their runs.

A variant says what it changes and what to expect. Each is a run of its own in a subfolder of a run, made by the same
code as any (:class:`run.Run`), on the same cohort unless the cohort is what is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from torch import Tensor

from ..losses import VAEObjective
from ..machine.errors import BadInput
from ..people.cohort import CohortRecipe
from ..running.profiles import Profile
from ..running.run import Run
from ..scans.oasis3 import oasis3_protocols
from ..slices import Slices
from ..training import Step
from ..vae import PRIOR_MEDIANS, TYPICAL_SIGNAL, PoEVAE
from .examination import SCALES

SHORTER = 6
"""A variant is trained for the profile's steps divided by this: fifteen of them in little more than an hour."""

MOVED = 1.25
"""What the prior's T1 and T2 are multiplied and divided by: as far as published values of one tissue are apart."""


@dataclass(frozen=True)
class Variant:
    """One change to the reference, why it is asked about, and what to expect."""

    name: str
    of: str  # what is asked about
    why: str
    prediction: str
    loss: dict = field(default_factory=dict)  # fields of losses.VAELoss
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
    return replace(profile, vae_cohort=None, vae_loss=loss, vae_schedule=schedule)  # one cohort for all


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


@dataclass(frozen=True, kw_only=True)
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

    def vae_settings(self) -> dict:
        said = {"nominal_te": self.variant.nominal_te, "physics": self.variant.physics}
        return super().vae_settings() | {"variant": said}

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
        seed = run.seed + variant.another_seed
        made[variant.name] = VariantRun(folder, profile, recipe, seed, variant=variant, cohort_of=home)
    return made


def slug(name: str) -> str:
    """A variant's name as a folder's."""
    return name.replace(",", "").replace(" ", "_").lower()


# --- echo times -------------------------------------------------------------------------------------


def nominal_settings(settings: Tensor) -> Tensor:
    """``(..., 6)``: settings of OASIS-3's scans with the echo times of their headers for the effective ones."""
    flat = settings.reshape(-1, settings.shape[-1]).clone()
    for row in (row for rows in oasis3_protocols().values() for row in rows if row.nominal != row.effective):
        flat[(flat - row.effective.settings()).abs().amax(1) < 1e-6] = row.nominal.settings()
    return flat.reshape(settings.shape)
