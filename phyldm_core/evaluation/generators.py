"""What the parts of the generator are worth: trainings that differ from a reference in one thing, judged as sets.

All learn from what one VAE inferred of the people of one run, and are judged against what it infers of people of heads
that none has seen, as much as a generator that learns from scans can know: ``python -m
phyldm_core.evaluation.generators RUN LAPTOP FOLDER``, on two runs of profile laptop: of several heads, and of MNI152.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from ..composition import Composition, CompositionVAE, restore
from ..diffusion import TissuePipeline, TissueTransformer, make_scheduler
from ..figures.grids import Panel, map_grid
from ..figures.style import use_house_style
from ..losses import CompositionBatch, CompositionData, CompositionObjective
from ..machine.files import read_json, write_atomically
from ..machine.processes import drawn, mean
from ..people import cohort
from ..people.segmentation import brain_of
from ..physics import TissueMaps
from ..running.latents import Composed, apart, seen_maps
from ..running.profiles import make_composition
from ..running.run import Run, reopen
from ..slices import brightness
from ..training import Step
from ..vae import Posterior
from .ablation_figures import generator_parts
from .brain_sets import FLOOR, Population, compare, features, pictures
from .brain_shapes import measure_shapes
from .told_apart import auc_of_features
from .variants import slug


@dataclass(frozen=True)
class Generator:
    """One change to the reference, and what to expect."""

    name: str
    prediction: str
    regression: bool = False  # an autoencoder that answers with maps, not with shares of tissues
    halved: float = 0.3  # of the composition autoencoder's steps are at half the resolution
    drawn: bool = True  # whether the decoder draws what the latent leaves in doubt, or answers once
    heads: int | None = None  # to learn from; None: all
    texture: bool = True
    length: float = 1.0  # of the reference's trainings
    another_seed: bool = False


UNVARIED = Generator("reference", "What all are held against.")
GENERATORS = (
    UNVARIED,
    Generator("another seed", "Smaller differences than this one mean nothing.", another_seed=True),
    Generator("regression of maps", "Doubt becomes blur: the distance grows several times.", regression=True),
    Generator("decoder asked once", "Blur where the latent leaves a fold in doubt.", drawn=False),
    Generator("no scale equivariance", "A latent that is harder to learn: a larger distance.", halved=0.0),
    Generator("10 heads", "Samples look like these ten: less of other people is covered.", heads=10),
    Generator("no texture", "Flat tissues: narrower histograms, the same anatomy.", texture=False),
    Generator("half as long", "Blurred cortex.", length=0.5),
    Generator("a quarter as long", "Still more so.", length=0.25),
)
"""The reference first."""

BY_GUIDE, ALONE, SQUEEZED = "drawn, guided", "drawn, no guide", "autoencoder alone"
JUDGED = ["variant", "slices", "metric", "quantity", "tissue", "value", "low", "high"]


# --- an autoencoder that answers with maps ------------------------------------------------------------

LOG_T1, LOG_T2 = np.log((0.2, 5.0)), np.log((0.01, 3.0))  # s
LAPLACE = 0.03
"""Scale of the errors that its loss takes for granted, of a map's range: the weight of maps beside the KL term."""


def as_pictures(maps: TissueMaps) -> Tensor:
    """``(n, 3, y, x)`` from 0 to 1: PD, log T1 and log T2; 0 in air."""
    t1, t2 = ((t.clamp_min(1e-3).log() - a) / (b - a) for t, (a, b) in ((maps.t1, LOG_T1), (maps.t2, LOG_T2)))
    return torch.stack([maps.pd / 1.05, t1, t2], 1).clamp(0, 1) * (maps.pd > 0.05)[:, None]


class MapsAutoencoder(CompositionVAE):
    """The network of :class:`composition.CompositionVAE` with a regression of maps in place of the choice of tissues.

    Its latent is all that is drawn. ``tissues`` are two names, so that three channels go in and out.
    """

    @property
    def drawn_channels(self) -> int:
        return self.config.latent_channels

    def join(self, composition: Composition) -> Tensor:
        return self.encode(as_pictures(restore(composition))).mean.float()

    def restored(self, z: Tensor) -> Tensor:
        """What the decoder says without any noise to start from."""
        ny, nx = (size * self.downsampling for size in z.shape[2:])
        nothing, told = z.new_zeros(len(z), 1 + len(self.config.tissues), ny, nx), z.new_zeros(len(z))
        return self.decoder(z, nothing, told + 1, told).float()

    def to_maps(self, latent: Tensor) -> TissueMaps:
        pd, t1, t2 = self.restored(latent).clamp(0, 1).unbind(1)
        t1, t2 = ((a + t * (b - a)).exp() * (pd > 0.05) for t, (a, b) in ((t1, LOG_T1), (t2, LOG_T2)))
        return TissueMaps(1.05 * pd, t1, t2)


class AskedOnce(CompositionVAE):
    """The same network whose decoder answers out of noise at once, with the mean of all that might be."""

    def to_maps(self, latent: Tensor) -> TissueMaps:
        return super().to_maps(latent, steps=1)


class MapsObjective(CompositionObjective):
    """Squeeze maps and restore them; ``shares`` of the batch are :func:`as_pictures`."""

    def forward(self, batch: CompositionBatch, step: int) -> dict[str, Tensor]:
        posterior = Posterior(*(t.float() for t in self.autoencoder.encode(batch.shares)))
        z, target = posterior.at(drawn(torch.randn, *posterior.mean.shape)), batch.shares
        if torch.rand(()) < self.weights.halved:
            z, target = functional.avg_pool2d(z, 2), functional.avg_pool2d(target, 2)
        off = mean((self.autoencoder.restored(z) - target).abs().sum(1)) / LAPLACE
        kl = mean(posterior.kl().sum((1, 2, 3))) / batch.shares[0, 0].numel()
        return {"total": off + self.weights.kl * kl, "absolute": off, "kl": kl}


# --- what is trained ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GeneratorRun(Run):
    """The training of one variant in a folder of its own, on the people and with the VAE of another run."""

    variant: Generator
    of: Run

    @property
    def cohort_folder(self) -> Path:
        return self.of.cohort_folder

    def vae_settings(self) -> dict:
        return self.of.vae_settings()

    def vae(self):
        return self.of.vae()

    def compositions(self, split: str) -> Composed:
        found = self.of.compositions(split)  # inferred once for all
        if split == "train" and self.variant.heads is not None:
            rows = self._rows()
            found = Composed(*(of_all[rows] for of_all in found))
        return found if self.variant.texture else found._replace(texture=torch.zeros_like(found.texture))

    def _rows(self) -> Tensor:
        """Training slices of people made from the first heads."""
        people = cohort.participants(self.cohort_folder)
        head = people.anatomy[people.split == "train"].astype("category").cat.codes.to_numpy()
        slices = self.scans("train")
        of_row = torch.from_numpy(head.astype(int))[slices.subject[apart(slices, self.recipe.slice_mm)]]
        return (of_row < self.variant.heads).nonzero()[:, 0]

    def composition(self) -> CompositionVAE:
        kind = MapsAutoencoder if self.variant.regression else CompositionVAE if self.variant.drawn else AskedOnce
        return kind.from_pretrained(self.folder / "composition", local_files_only=True).eval()

    def _composition_settings(self) -> dict:
        said = {"regression": self.variant.regression, "halved": self.variant.halved, "heads": self.variant.heads}
        said |= {"texture": self.variant.texture, "drawn": self.variant.drawn}
        return super()._composition_settings() | {"variant": said}

    def _composition_data(self, split: str) -> CompositionData:
        if not self.variant.regression:
            return super()._composition_data(split)
        found = self.compositions(split)
        parts = [as_pictures(restore(found.part(rows))) for rows in torch.arange(len(found.shares)).split(256)]
        return CompositionData((255 * torch.cat(parts)).round().byte())

    def _composition_objective(self) -> CompositionObjective:
        weights = replace(self.profile.composition_loss, halved=self.variant.halved)
        if self.variant.regression:
            return MapsObjective(MapsAutoencoder(("T1", "T2"), **self.profile.composition), weights)
        return CompositionObjective(make_composition(self.profile), weights)

    def pipeline(self) -> TissuePipeline:
        if type(decoder := self.composition()) is CompositionVAE:
            return super().pipeline()
        folder = self._finished("pipeline", self.diffusion_settings(), "diffusion model", "04_train_diffusion")
        networks = {
            name: TissueTransformer.from_pretrained(folder / name, local_files_only=True).eval()
            for name in ("denoiser", "guide")
            if (folder / name).exists()
        }
        scheduler, said = make_scheduler(self.profile.process), read_json(folder / "model_index.json")
        return _pipeline(**networks, scheduler=scheduler, decoder=decoder, **{k: said[k] for k in SETTINGS})

    def _describe(self):
        """Not here: a variant's folder is not one of weights."""

    def make(self) -> Iterator[Step]:
        """Train what is missing."""
        yield from self.train_composition()
        yield from self.train_diffusion()


def generator_runs(run: Run, variants: Iterable[Generator] = GENERATORS) -> dict[str, GeneratorRun]:
    """The runs of all variants, in subfolders of ``run``; nothing is made yet."""
    made = {}
    for variant in variants:
        longer = {
            name: replace(schedule, steps=max(2, round(schedule.steps * variant.length)))
            for name in ("composition_schedule", "diffusion_schedule")
            for schedule in [getattr(run.profile, name)]
        }
        profile = replace(run.profile, **longer)
        where, seed = run.folder / "generators" / slug(variant.name), run.seed + variant.another_seed
        made[variant.name] = GeneratorRun(where, profile, run.recipe, seed, variant=variant, of=run)
    return made


# --- how it is judged ---------------------------------------------------------------------------------


def remake_generators(run: Run, path: Path, variants: Iterable[Generator] = GENERATORS):
    """Train all variants and write what ``data/generators/generators.csv`` holds, anew after each.

    Columns :data:`JUDGED`. "frechet", "density", "coverage" and "wasserstein" are over the value that two halves of
    the people have; "auc" is that of logistic regression, "thickness" (mm) and "folding" are medians, of the
    people too; "minutes" were spent on the two trainings. Drawn slices are as many as the test people have.
    """
    rows = []
    for name, of in generator_runs(run, variants).items():
        kept = of.folder / "pipeline" / "judged.csv"  # goes with the weights when they are made anew
        if not kept.exists():
            for _ in of.make():
                pass
            write_judged(of, kept)
        rows.append(pandas.read_csv(kept, keep_default_na=False, na_values=["nan"]).assign(variant=name)[JUDGED])
        write_atomically(path, _csv(pandas.concat(rows, ignore_index=True)))


def write_judged(of: Run, path: Path):
    """Write what :func:`judged_sets` has of one run: columns :data:`JUDGED`, without the variant."""
    write_atomically(path, _csv(pandas.concat(judged_sets(of), ignore_index=True)[JUDGED[1:]]))


def _csv(table: pandas.DataFrame) -> bytes:
    return table.to_csv(index=False, float_format="%.5g", lineterminator="\n").encode()


def judged_sets(of: Run) -> Iterator[pandas.DataFrame]:
    """Tables of one run: drawn with and without its guide, and held-out people through its autoencoder."""
    slices, voxel_mm = of.scans("test"), of.recipe.voxel_mm
    person = slices.subject.numpy()
    even = person < 2 * (len(np.unique(person)) // 2)
    level = brightness(slices.images, slices.observed, slices.subject)
    inferred = TissueMaps(*(torch.cat(maps)[even] for maps in zip(*seen_maps(of.vae(), slices, level), strict=True)))
    population, shapes = Population(inferred, person[even], voxel_mm), measure_shapes(inferred, voxel_mm)
    pipe, where = of.pipeline(), slices.position[even]
    sets = {BY_GUIDE: pipe, ALONE: without_guide(pipe)}
    sets = {name: p(len(where), seed=of.seed, height=where) for name, p in sets.items() if p.guide or name == ALONE}
    sets[SQUEEZED] = pipe.decode(of.drawn_latents("test").values[: len(even)][even])
    for name, maps in sets.items():
        mine = Population(maps, len(person) + np.arange(len(maps.pd)), voxel_mm)
        yield over_halves(compare(mine, population, {}, seed=of.seed)).assign(slices=name)
        seen = [features(pictures(some)) for some in (maps, inferred)]
        groups = mine.person if name != SQUEEZED else population.person
        rows = [("auc", auc_of_features(*seen, (groups, population.person), of.seed))]
        rows += _shapes(measure_shapes(maps, voxel_mm))
        yield _table(rows, name)
    minutes = sum(of.training_log(part).seconds.max() for part in ("composition", "pipeline")) / 60
    yield _table([*_shapes(shapes)], "inferred people")
    yield _table([("minutes", minutes)], "both trainings")


def without_guide(pipe: TissuePipeline) -> TissuePipeline:
    """The same pipeline without its guide."""
    return _pipeline(**pipe.components | {"guide": None}, **{name: pipe.config[name] for name in SETTINGS})


SETTINGS = ("latent_mean", "latent_scale", "latent_size", "voxel_mm", "csf_shares", "guidance")


def _pipeline(**parts) -> TissuePipeline:
    pipe = TissuePipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _shapes(of: pandas.DataFrame) -> list[tuple[str, float]]:
    return [("thickness", of.cortical_thickness.median()), ("folding", of.folding.median())]


def _table(rows: list[tuple[str, float]], slices: str) -> pandas.DataFrame:
    blank = {"slices": slices, "quantity": "", "tissue": "", "low": np.nan, "high": np.nan}
    return pandas.DataFrame([{"metric": metric, "value": value, **blank} for metric, value in rows])


def over_halves(table: pandas.DataFrame) -> pandas.DataFrame:
    """Of :func:`brain_sets.compare`: the drawn set's distances over those of two halves of the true people."""
    keys = ["metric", "quantity", "tissue"]
    table = table[table.metric.isin(("frechet", "density", "coverage", "wasserstein"))].set_index(keys)
    ours, floor = table[table.inputs == "generated"], table[table.inputs == FLOOR].value
    return ours[["value", "low", "high"]].div(floor, axis=0).reset_index()


def output_layers(runs: dict[str, GeneratorRun], n: int = 6) -> Figure:
    """T1 of slices that three decoders draw, one row each, and people's: what each answer costs."""
    of, rows = runs[UNVARIED.name], []
    answers = {UNVARIED.name: "shares, drawn", "decoder asked once": "mean shares", "regression of maps": "mean maps"}
    for name, title in answers.items():
        drawn_maps = runs[name].pipeline()(n, seed=of.seed)
        rows.append([Panel(t1, "T1", side=title * (i == 0)) for i, t1 in enumerate(_t1_of_brain(drawn_maps))])
    slices = of.scans("test")
    where = torch.linspace(0, len(slices) - 1, n).long()
    level = brightness(slices.images, slices.observed, slices.subject)
    inferred = torch.cat([_t1_of_brain(maps) for maps in seen_maps(of.vae(), slices, level)])[where]
    rows.append([Panel(t1, "T1", side="people, inferred" * (i == 0)) for i, t1 in enumerate(inferred)])
    return map_grid(rows, voxel_mm=of.recipe.voxel_mm)


def _t1_of_brain(maps: TissueMaps) -> Tensor:
    return maps.t1 * brain_of(maps)


if __name__ == "__main__":
    run, laptop, out = reopen(sys.argv[1]), reopen(sys.argv[2]), Path(sys.argv[3])
    remake_generators(run, out / "generators.csv")
    write_judged(laptop, out / "laptop.csv")
    use_house_style()
    parts = generator_parts(pandas.read_csv(out / "generators.csv", keep_default_na=False, na_values=["nan", ""]))
    for name, fig in {"parts": parts, "output_layers": output_layers(generator_runs(run))}.items():
        fig.savefig(out / f"{name}.png", dpi=150, metadata={"Software": None})
