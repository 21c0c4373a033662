"""A run: one profile, one folder, and in it the cohort, the VAE, the diffusion model and the numbers.

Each part is made by one notebook and used by the later ones, and made anew where its settings have changed.
``config.json`` and ``training.json`` describe it, so that the folder loads as weights (:func:`weights.load_weights`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import diffusers
import pandas
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..calibration import NAME
from ..composition import CompositionVAE, compose
from ..diffusion import DiffusionObjective, Latents, TissuePipeline, make_scheduler
from ..losses import CompositionData, CompositionObjective, VAEData, VAEObjective
from ..machine.errors import BadInput
from ..machine.files import made_with, to_json, unfinished, whole_folder, write_atomically
from ..machine.processes import main_first
from ..people import cohort
from ..people.anatomy import Folders, in_recipe
from ..people.cohort import CohortRecipe
from ..people.scanned import ScanRecipe, read_scan_recipe
from ..physics import TissueMaps
from ..slices import Slices, Truth, brightness
from ..training import HALFWAY, Schedule, Step, training_loop
from ..vae import PoEVAE
from ..voxelwise.shares import compose_scans
from ..weights import Weights
from .describe import describe
from .honest import measure_sd
from .latents import BENT, Composed, apart, composed, csf_quantiles, explained_people, joined, latents, seen_maps
from .profiles import PROFILES, Profile, find_profile, make_composition, make_denoiser, make_vae
from .report import write_table


class MissingResult(BadInput):
    """Something an earlier notebook makes is not there."""


@dataclass(frozen=True)
class Run:
    """One experiment in one folder; get it from :func:`open_run`."""

    folder: Path
    profile: Profile
    recipe: CohortRecipe | ScanRecipe
    seed: int
    given: tuple[Path, dict] | None = None  # folder of a VAE to take instead of training one, and how that was made
    _encoded: dict[str, Latents] = field(default_factory=dict, init=False, compare=False, repr=False)  # by split
    _composed: dict[str, Composed] = field(default_factory=dict, init=False, compare=False, repr=False)  # by split
    _joined: dict[str, Latents] = field(default_factory=dict, init=False, compare=False, repr=False)  # by split

    @property
    def common_scale(self) -> bool:
        """Whether training may see scans on a common scale: simulated ones only, whose gains are known."""
        return isinstance(self.recipe, CohortRecipe)

    # --- the cohort ------------------------------------------------------------------------------

    @property
    def cohort_folder(self) -> Path:
        return self.folder / "cohort"

    def make_cohort(self, n_workers: int | None = None, scheduler: str | None = None) -> Iterator[int]:
        """Write the cohort if it is not there, yielding the number of people done; see :func:`cohort.make_cohort`."""
        if isinstance(self.recipe, ScanRecipe):
            self.require_cohort()  # real people cannot be made
            return
        yield from cohort.make_cohort(self.recipe, self.cohort_folder, n_workers, scheduler)
        if self.vae_recipe is not self.recipe and self.given is None:
            yield from cohort.make_cohort(self.vae_recipe, self.vae_cohort_folder, n_workers, scheduler)

    @property
    def vae_recipe(self) -> CohortRecipe | ScanRecipe:
        """Whom the VAE learns from, made from the same heads."""
        others = self.profile.vae_cohort
        if others is None or isinstance(self.recipe, ScanRecipe):
            return self.recipe
        return replace(others, anatomies=self.recipe.anatomies)

    @property
    def vae_cohort_folder(self) -> Path:
        return self.cohort_folder if self.vae_recipe is self.recipe else self.folder / "vae_cohort"

    def vae_scans(self, split: str) -> Slices:
        """What the VAE learns from."""
        if self.vae_recipe is self.recipe:
            return self.scans(split)
        return cohort.load_scans(_require(self.vae_cohort_folder, self.vae_recipe), split)

    def require_cohort(self) -> Path:
        """The cohort's folder, or :class:`MissingResult`."""
        return _require(self.cohort_folder, self.recipe)

    def scans(self, split: str, common_scale: bool | None = None) -> Slices:
        """Slices of a split, on a common scale where there is one (None) or as told."""
        common_scale = self.common_scale if common_scale is None else common_scale
        if common_scale and not self.common_scale:
            raise BadInput(f"{self.cohort_folder}: real scans have no common scale: ask for common_scale=False")
        return cohort.load_scans(self.require_cohort(), split, common_scale)

    def truth(self, split: str) -> Truth:
        if isinstance(self.recipe, ScanRecipe):
            raise MissingResult(f"{self.folder} was trained on real people: nobody knows their true maps")
        return cohort.load_truth(self.require_cohort(), split)

    # --- the VAE ---------------------------------------------------------------------------------

    def vae_settings(self) -> dict:
        if self.given is not None:
            return self.given[1]
        profile = self.profile
        return _as_json(
            cohort=cohort.as_json(self.vae_recipe), network=profile.vae, loss=asdict(profile.vae_loss), seed=self.seed,
            schedule=asdict(profile.vae_schedule),
        )  # fmt: skip

    def train_vae(self) -> Iterator[Step]:
        """Train the VAE on the training scans, yielding every step; where it exists or is given nothing happens."""
        settings = self.vae_settings()
        if made_with(self.folder / "vae") == settings:
            return self._describe()
        if self.given is not None:
            with main_first():
                if made_with(self.folder / "vae") != settings:
                    with whole_folder(self.folder / "vae", settings) as part:
                        shutil.copytree(self.given[0], part, dirs_exist_ok=True)
            return self._describe()
        torch.manual_seed(self.seed)
        objective = self._vae_objective()
        train, held_out = (VAEData(self.vae_scans(split), self.profile.vae_loss) for split in ("train", "val"))

        def keep(folder: Path):
            objective.vae.save_pretrained(folder)
            self._calibrate(objective.vae.eval(), folder)

        yield from self._train("vae", settings, self.profile.vae_schedule, objective, train, held_out, keep)

    def _vae_objective(self) -> VAEObjective:
        return VAEObjective(make_vae(self.profile), self.profile.vae_loss)

    def _calibrate(self, vae: PoEVAE, folder: Path):
        if isinstance(self.recipe, CohortRecipe):  # of real people nobody knows the truth
            write_atomically(folder / NAME, to_json(measure_sd(vae, self.recipe, self.vae_recipe, self.seed)))

    def vae(self) -> PoEVAE:
        """The trained VAE, ready for inference."""
        folder = self._finished("vae", self.vae_settings(), "VAE", "03_train_vae")
        return PoEVAE.from_pretrained(folder, local_files_only=True).eval()

    # --- the level of compositions ---------------------------------------------------------------

    def _composition_settings(self) -> dict:
        profile = self.profile
        return _as_json(
            vae=self.vae_settings(), cohort=cohort.as_json(self.recipe), network=profile.composition, seed=self.seed,
            loss=asdict(profile.composition_loss), schedule=asdict(profile.composition_schedule),
        )  # fmt: skip

    def fine_latents(self, split: str) -> Latents:
        """Posterior means of a split's scans under the trained VAE, mirror images included; encoded once.

        All splits are normalised as the training scans' latents.
        """
        if split not in self._encoded:
            like = None if split == "train" else self.fine_latents("train")
            self._encoded[split] = latents(self.vae(), self.scans(split), like, self.common_scale)
        return self._encoded[split]

    def compositions(self, split: str) -> Composed:
        """What is inferred from a split's scans, told apart into tissues; inferred once.

        By the encoder alone where it learned from these very people, and else through the physics.
        """
        if split not in self._composed:
            vae, slices, network = self.vae(), self.scans(split), make_composition(self.profile)
            level = brightness(slices.images, slices.observed, slices.subject)
            rows = apart(slices, self.recipe.slice_mm) if split == "train" else torch.arange(len(slices))
            slices, level = slices[rows], level[rows]
            tissues, cell = network.config.tissues, network.downsampling // 2
            if self.common_scale and self.vae_settings()["cohort"] == cohort.as_json(self.recipe):
                parts = (compose(maps, tissues, cell) for maps in seen_maps(vae, slices, level))
            else:
                told = explained_people(vae, slices, self.common_scale, level=level)
                parts = (compose_scans(found, scans, tissues, cell) for scans, found in told)
            self._composed[split] = composed(parts, slices, cohort.participants(self.cohort_folder), split)
        return self._composed[split]

    def train_composition(self) -> Iterator[Step]:
        """Train the autoencoder of compositions on inferred maps; nothing happens in a profile without one."""
        settings = self._composition_settings()
        if self.profile.composition is None or made_with(self.folder / "composition") == settings:
            return
        train, held_out = (self._composition_data(split) for split in ("train", "val"))
        torch.manual_seed(self.seed)
        of, schedule = self._composition_objective(), self.profile.composition_schedule
        yield from self._train("composition", settings, schedule, of, train, held_out, of.autoencoder.save_pretrained)

    def _composition_data(self, split: str) -> CompositionData:
        return CompositionData(self.compositions(split).shares)

    def _composition_objective(self) -> CompositionObjective:
        return CompositionObjective(make_composition(self.profile), self.profile.composition_loss)

    def composition(self) -> CompositionVAE | None:
        """The trained autoencoder of compositions; None in a profile without one."""
        if self.profile.composition is None:
            return None
        folder = self._finished("composition", self._composition_settings(), "autoencoder", "04_train_diffusion")
        return CompositionVAE.from_pretrained(folder, local_files_only=True).eval()

    # --- the diffusion model ---------------------------------------------------------------------

    def diffusion_settings(self) -> dict:
        profile = self.profile
        return _as_json(
            composition=self._composition_settings(), process=profile.process, denoiser=profile.denoiser,
            guidance=profile.guidance, schedule=asdict(profile.diffusion_schedule),
        )  # fmt: skip

    def drawn_latents(self, split: str) -> Latents:
        """The latents that the diffusion model learns to draw, mirror images included; made once.

        All splits are normalised as the training people's.
        """
        if self.profile.composition is None:
            return self.fine_latents(split)
        if split not in self._joined:
            like = None if split == "train" else self.drawn_latents("train")
            copies, voxel_mm = BENT if split == "train" else 0, self.recipe.voxel_mm
            self._joined[split] = joined(self.composition(), self.compositions(split), like, copies, voxel_mm)
        return self._joined[split]

    def train_diffusion(self) -> Iterator[Step]:
        """Encode the training people once, train the diffusion model on their latents, yielding every step."""
        settings = self.diffusion_settings()
        if made_with(self.folder / "pipeline") == settings:
            return self._describe()
        decoder = self.composition() or self.vae()
        train, held_out = (self.drawn_latents(split) for split in ("train", "val"))
        torch.manual_seed(self.seed)
        channels, size = train.values.shape[1], tuple(train.values.shape[2:])
        denoiser = make_denoiser(self.profile, channels, size)
        objective = DiffusionObjective(denoiser, self.profile.process)

        def keep(folder: Path):
            guide, early = None, folder / HALFWAY
            if early.exists():
                guide = make_denoiser(self.profile, channels, size)
                DiffusionObjective(guide, self.profile.process).load_state_dict(load_file(early))
            pipeline = TissuePipeline(
                denoiser, make_scheduler(self.profile.process), decoder, train.mean.tolist(), train.scale.tolist(),
                size, self.recipe.voxel_mm, csf_quantiles(train), guide, self.profile.guidance,
            )  # fmt: skip
            pipeline.to(torch.float16).save_pretrained(folder)  # half the size; it is loaded as float32
            early.unlink(missing_ok=True)

        yield from self._train("pipeline", settings, self.profile.diffusion_schedule, objective, train, held_out, keep)

    def pipeline(self) -> TissuePipeline:
        """The trained pipeline: ``pipe(n, seed=…)`` gives tissue maps."""
        folder = self._finished("pipeline", self.diffusion_settings(), "diffusion model", "04_train_diffusion")
        diffusers.utils.logging.disable_progress_bar()  # a bar for four small files is noise in a notebook
        pipe = TissuePipeline.from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def make_samples(self) -> TissueMaps:
        """The profile's generated brains, ``(n, y, x)`` a map: drawn from the seed where they are not there yet."""
        folder, settings = self.folder / "samples", self._sample_settings()
        if made_with(folder) != settings:
            n, steps = self.profile.n_samples, self.profile.sampling_steps
            maps = self.pipeline()(n, seed=self.seed, num_inference_steps=steps)
            with whole_folder(folder, settings) as part:
                save_file({name: m.contiguous() for name, m in maps._asdict().items()}, part / "maps.safetensors")
        return self.samples()

    def samples(self) -> TissueMaps:
        """The generated brains that :meth:`make_samples` drew."""
        folder = self._finished("samples", self._sample_settings(), "samples", "05_sample_tissue")
        return TissueMaps(**load_file(folder / "maps.safetensors"))

    def _sample_settings(self) -> dict:
        n, steps = self.profile.n_samples, self.profile.sampling_steps
        return _as_json(pipeline=self.diffusion_settings(), n=n, steps=steps)

    # --- parts that are whole or absent ----------------------------------------------------------

    def _train(
        self, part: str, settings: dict, schedule: Schedule, objective: nn.Module, train, held_out,
        keep: Callable[[Path], None],
    ) -> Iterator[Step]:  # fmt: skip
        """Train a part, yielding every step, and let ``keep`` write what was learned; a killed training goes on."""
        folder = self.folder / part
        halfway = part == "pipeline" and self.profile.guidance != 1
        with main_first():
            work = unfinished(folder, settings)
        yield from training_loop(objective, train, replace(schedule, seed=self.seed), work, held_out, halfway)
        with main_first():
            if made_with(folder) != settings:
                with whole_folder(folder, settings) as work:
                    keep(work)
                    if part in ("vae", "pipeline"):  # config.json speaks of the one that is about to go
                        (self.folder / "config.json").unlink(missing_ok=True)
        self._describe()

    def _finished(self, part: str, settings: dict, what: str, notebook: str) -> Path:
        """The folder of a part that is there, or :class:`MissingResult`."""
        if made_with(self.folder / part) != settings:
            raise MissingResult(f"{self.folder} holds no {what} of this profile: run notebook {notebook} first")
        return self.folder / part

    def _describe(self):
        describe(self)

    def training_log(self, part: str) -> pandas.DataFrame:
        """``log.csv`` of a part: step, seconds, loss, value."""
        return pandas.read_csv(self.folder / part / "log.csv")

    def write_metrics(self, name: str, table: pandas.DataFrame) -> Path:
        """Keep a table of numbers as ``metrics/<name>.csv``."""
        return write_table(table, self.folder / "metrics" / f"{name}.csv")


def open_run(
    folder: str | Path, profile: str = "laptop", anatomies: Folders = None, seed: int = 7, given: Weights | None = None
) -> Run:
    """The run of a profile in a folder, which need not exist yet.

    Parameters
    ----------
    anatomies
        A folder of label maps or several; empty: the MNI152 template that nilearn ships. Without effect in a
        folder whose cohort are real people (``phyldm train``), which opens as it was trained.
    given
        Weights whose VAE is taken instead of one trained on these people; it must see slices like theirs.

    Raises
    ------
    BadInput
        Unknown profile, or the given VAE is of other slices.
    """
    settings = find_profile(profile)
    recorded = cohort.read_recipe(Path(folder) / "cohort")
    if recorded and "data" in recorded:
        return scan_run(folder, settings, read_scan_recipe(recorded), seed)
    recipe = replace(settings.cohort, anatomies=in_recipe(anatomies))
    if given is not None and (given.voxel_mm, given.head) != (recipe.voxel_mm, recipe.head):
        kept = "with the head" if given.head else "of the brain alone"
        raise BadInput(
            f"{given.folder}: its VAE knows slices of {given.voxel_mm:g} mm {kept}, profile {profile} has others: "
            "leave out --vae, or choose the profile it was trained with"
        )
    made = given and (given.folder / "vae", given.training["vae"] | {"heads": given.training["heads"]})
    return Run(Path(folder), settings, recipe, seed, made)


def reopen(folder: str | Path) -> Run:
    """The run in a folder, as its own files describe it: which profile, seed and anatomies its VAE was trained with.

    Raises
    ------
    MissingResult
        It holds no VAE of a known profile.
    """
    vae = Path(folder) / "vae"
    made = made_with(vae) or {}
    given, own = (vae, made) if "heads" in made else None, made  # only a VAE from elsewhere brings its heads along
    if given:
        own = made_with(Path(folder) / "composition") or made
    for profile in PROFILES if made else ():
        run = open_run(folder, profile, own["cohort"].get("anatomies"), own["seed"])
        if _as_json(**run.profile.vae) == made["network"] and (given or run.vae_settings() == made):
            return replace(run, given=given)
    raise MissingResult(f"{folder} holds no VAE of a known profile: run phyldm reproduce first")


def scan_run(folder: str | Path, profile: Profile, recipe: ScanRecipe, seed: int) -> Run:
    """The run of a profile on real scans: no common scale, so every gain is solved for."""
    loss = replace(profile.vae_loss, gain="solved", unscaled=1.0)
    return Run(Path(folder), replace(profile, vae_loss=loss), recipe, seed)


def _as_json(**settings) -> dict:
    return json.loads(json.dumps(settings))


def _require(folder: Path, recipe: CohortRecipe | ScanRecipe) -> Path:
    if cohort.read_recipe(folder) != cohort.as_json(recipe):
        raise MissingResult(f"{folder} does not hold the cohort asked for: run notebook 03_train_vae first")
    return folder
