"""A run: one profile, one folder, and in it the cohort, the VAE, the diffusion model and the numbers.

Each part is made by one notebook and used by the later ones. A part is reused as long as the
settings it was made with are those asked for; a changed setting makes it anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import diffusers
import pandas
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import cohort, metrics
from .anatomy import Folders, in_recipe
from .bids import replace_folder, to_json, write_atomically
from .calibration import write_calibration
from .coarse import CoarseObjective, CoarseVAE, squeeze
from .cohort import CohortRecipe, Slices
from .diffusion import DiffusionObjective, Latents, TissuePipeline, TissueTransformer, make_scheduler, paper_unet
from .errors import BadInput
from .inference import INFERENCE_BATCH, encode
from .on_disk import in_a_file
from .physics import TissueMaps
from .precision import best_precision
from .processes import main_first
from .profiles import PROFILES, Profile, find_profile
from .scanned import ScanRecipe, read_scan_recipe
from .training import Step, VAEData, VAEObjective, training_loop
from .vae import PoEVAE, brightness


class MissingResult(BadInput):
    """Something an earlier notebook makes is not there."""


@dataclass(frozen=True)
class Run:
    """One experiment in one folder; get it from :func:`open_run`."""

    folder: Path
    profile: Profile
    recipe: CohortRecipe | ScanRecipe
    seed: int
    _encoded: dict[str, Latents] = field(default_factory=dict, init=False, compare=False, repr=False)  # by split

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
        else:
            yield from cohort.make_cohort(self.recipe, self.cohort_folder, n_workers, scheduler)

    def require_cohort(self) -> Path:
        """The cohort's folder, or :class:`MissingResult`."""
        if cohort.read_recipe(self.cohort_folder) != cohort.as_json(self.recipe):
            raise MissingResult(
                f"{self.cohort_folder} does not hold the cohort asked for: run notebook 02_cohort first"
            )
        return self.cohort_folder

    def scans(self, split: str, common_scale: bool | None = None) -> Slices:
        """Slices of a split, on a common scale where there is one (None) or as told."""
        common_scale = self.common_scale if common_scale is None else common_scale
        if common_scale and not self.common_scale:
            raise BadInput(f"{self.cohort_folder}: real scans have no common scale: ask for common_scale=False")
        return cohort.load_scans(self.require_cohort(), split, common_scale)

    def truth(self, split: str) -> cohort.Truth:
        if isinstance(self.recipe, ScanRecipe):
            raise MissingResult(f"{self.folder} was trained on real people: nobody knows their true maps")
        return cohort.load_truth(self.require_cohort(), split)

    # --- the VAE ---------------------------------------------------------------------------------

    def _vae_settings(self) -> dict:
        profile = self.profile
        return _as_json(
            cohort=cohort.as_json(self.recipe), network=profile.vae, loss=asdict(profile.vae_loss), seed=self.seed,
            schedule=asdict(profile.vae_schedule),
        )  # fmt: skip

    def train_vae(self) -> Iterator[Step]:
        """Train the VAE on the training scans, yielding every step; nothing happens where it exists."""
        folder, settings = self.folder / "vae", self._vae_settings()
        if _made_with(folder) == settings:
            return
        with main_first():
            work = _workspace(folder, settings)
        torch.manual_seed(self.seed)
        objective = self._vae_objective()
        train, held_out = (VAEData(self.scans(split), self.profile.vae_loss) for split in ("train", "val"))
        yield from training_loop(objective, train, self._schedule(self.profile.vae_schedule), work, held_out)
        with main_first():
            if _made_with(folder) == settings:
                return
            objective.vae.save_pretrained(work)
            self._calibrate(objective.vae.eval(), work)
            replace_folder(work, folder)

    def _vae_objective(self) -> VAEObjective:
        return VAEObjective(PoEVAE(**self.profile.vae), self.profile.vae_loss)

    def _calibrate(self, vae: PoEVAE, folder: Path):
        if isinstance(self.recipe, CohortRecipe):  # of real people nobody knows the truth
            heads = tuple(dict.fromkeys(p.head for p in self.recipe.subjects() if p.split == "val"))
            write_calibration(vae, self.recipe, heads, folder)

    def vae(self) -> PoEVAE:
        """The trained VAE, ready for inference."""
        if _made_with(self.folder / "vae") != self._vae_settings():
            raise MissingResult(f"{self.folder} holds no VAE of this profile: run notebook 03_train_vae first")
        return PoEVAE.from_pretrained(self.folder / "vae", local_files_only=True).eval()

    # --- the coarse level ------------------------------------------------------------------------

    def _coarse_settings(self) -> dict:
        profile = self.profile
        return _as_json(vae=self._vae_settings(), network=profile.coarse, kl=profile.coarse_kl,
                        schedule=asdict(profile.coarse_schedule))  # fmt: skip

    def fine_latents(self, split: str) -> Latents:
        """Posterior means of a split's scans under the trained VAE, mirror images included; encoded once.

        All splits are normalised as the training scans' latents.
        """
        if split not in self._encoded:
            like = None if split == "train" else self.fine_latents("train")
            self._encoded[split] = latents(self.vae(), self.scans(split), like, self.common_scale)
        return self._encoded[split]

    def train_coarse(self) -> Iterator[Step]:
        """Train the coarse level on the training scans' latents; nothing happens in a profile without one."""
        folder, settings = self.folder / "coarse", self._coarse_settings()
        if self.profile.coarse is None or _made_with(folder) == settings:
            return
        with main_first():
            work = _workspace(folder, settings)
        train, held_out = self.fine_latents("train"), self.fine_latents("val")
        torch.manual_seed(self.seed)
        coarse = CoarseVAE(train.values.shape[1], **self.profile.coarse)
        objective = CoarseObjective(coarse, self.vae(), train, self.profile.coarse_kl)
        yield from training_loop(objective, train, self._schedule(self.profile.coarse_schedule), work, held_out)
        with main_first():
            if _made_with(folder) == settings:
                return
            coarse.save_pretrained(work)
            replace_folder(work, folder)

    def coarse(self) -> CoarseVAE | None:
        """The trained coarse level; None in a profile without one."""
        if self.profile.coarse is None:
            return None
        if _made_with(self.folder / "coarse") != self._coarse_settings():
            raise MissingResult(f"{self.folder} holds no coarse level: run notebook 04_train_diffusion first")
        return CoarseVAE.from_pretrained(self.folder / "coarse", local_files_only=True).eval()

    # --- the diffusion model ---------------------------------------------------------------------

    def _diffusion_settings(self) -> dict:
        profile = self.profile
        return _as_json(
            coarse=self._coarse_settings(), process=profile.process, denoiser=profile.denoiser,
            schedule=asdict(profile.diffusion_schedule),
        )  # fmt: skip

    def train_diffusion(self) -> Iterator[Step]:
        """Encode the training scans once, train the diffusion model on their posterior means, yielding every step."""
        folder, settings = self.folder / "pipeline", self._diffusion_settings()
        if _made_with(folder) == settings:
            return
        coarse = self.coarse()
        with main_first():
            work = _workspace(folder, settings)
        fine = train = self.fine_latents("train")
        held_out = self.fine_latents("val")
        if coarse is not None:
            train = squeeze(coarse, fine)
            held_out = squeeze(coarse, held_out, train)
        torch.manual_seed(self.seed)
        channels, size = train.values.shape[1], tuple(train.values.shape[2:])
        if self.profile.denoiser is None:
            denoiser = paper_unet(channels, size)
        else:
            denoiser = TissueTransformer(channels + 1, channels, size, **self.profile.denoiser)
        objective = DiffusionObjective(denoiser, self.profile.process)
        yield from training_loop(objective, train, self._schedule(self.profile.diffusion_schedule), work, held_out)
        pipeline = TissuePipeline(
            denoiser, make_scheduler(self.profile.process), self.vae(), coarse,
            *(t.tolist() for t in (train.mean, train.scale, fine.mean, fine.scale)), size, self.recipe.voxel_mm,
        )  # fmt: skip
        with main_first():
            if _made_with(folder) == settings:
                return
            pipeline.save_pretrained(work)
            replace_folder(work, folder)

    def pipeline(self) -> TissuePipeline:
        """The trained pipeline: ``pipe(n, seed=…)`` gives tissue maps."""
        if _made_with(self.folder / "pipeline") != self._diffusion_settings():
            raise MissingResult(
                f"{self.folder} holds no diffusion model of this profile: run notebook 04_train_diffusion first"
            )
        diffusers.utils.logging.disable_progress_bar()  # a bar for four small files is noise in a notebook
        pipe = TissuePipeline.from_pretrained(self.folder / "pipeline", local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def make_samples(self) -> TissueMaps:
        """The profile's generated brains, ``(n, y, x)`` a map: drawn from the seed where they are not there yet."""
        folder, settings = self.folder / "samples", self._sample_settings()
        if _made_with(folder) != settings:
            profile = self.profile
            maps = self.pipeline()(profile.n_samples, seed=self.seed, num_inference_steps=profile.sampling_steps)
            work = _workspace(folder, settings)
            save_file({name: value.contiguous() for name, value in maps._asdict().items()}, work / "maps.safetensors")
            replace_folder(work, folder)
        return self.samples()

    def samples(self) -> TissueMaps:
        """The generated brains that :meth:`make_samples` drew."""
        if _made_with(self.folder / "samples") != self._sample_settings():
            raise MissingResult(f"{self.folder} holds no samples of this profile: run notebook 05_sample_tissue first")
        return TissueMaps(**load_file(self.folder / "samples" / "maps.safetensors"))

    def _sample_settings(self) -> dict:
        profile = self.profile
        return _as_json(pipeline=self._diffusion_settings(), n=profile.n_samples, steps=profile.sampling_steps)

    # --- what was measured -----------------------------------------------------------------------

    def training_log(self, part: str) -> pandas.DataFrame:
        """``log.csv`` of "vae" or "pipeline": step, seconds, loss, value."""
        return pandas.read_csv(self.folder / part / "log.csv")

    def write_metrics(self, name: str, table: pandas.DataFrame) -> Path:
        """Keep a table of numbers as ``metrics/<name>.csv``."""
        return metrics.write_table(table, self.folder / "metrics" / f"{name}.csv")

    def _schedule(self, schedule):
        return replace(schedule, seed=self.seed)


def open_run(folder: str | Path, profile: str = "laptop", anatomies: Folders = None, seed: int = 7) -> Run:
    """The run of a profile in a folder, which need not exist yet.

    Parameters
    ----------
    anatomies
        A folder of label maps or several; empty: the MNI152 template that nilearn ships. Without effect in a
        folder whose cohort are real people (``phyldm train``), which opens as it was trained.

    Raises
    ------
    BadInput
        Unknown profile.
    """
    settings = find_profile(profile)
    recorded = cohort.read_recipe(Path(folder) / "cohort")
    if recorded and "data" in recorded:
        return scan_run(folder, settings, read_scan_recipe(recorded), seed)
    recipe = replace(settings.cohort, anatomies=in_recipe(anatomies))
    return Run(Path(folder), settings, recipe, seed)


def reopen(folder: str | Path) -> Run:
    """The run in a folder, as its own files describe it: which profile, seed and anatomies its VAE was trained with.

    Raises
    ------
    MissingResult
        It holds no VAE of a known profile.
    """
    made = _made_with(Path(folder) / "vae") or {}
    for profile in PROFILES if made else ():
        run = open_run(folder, profile, made["cohort"].get("anatomies"), made["seed"])
        if run._vae_settings() == made:
            return run
    raise MissingResult(f"{folder} holds no VAE of a known profile: run phyldm reproduce first")


def scan_run(folder: str | Path, profile: Profile, recipe: ScanRecipe, seed: int) -> Run:
    """The run of a profile on real scans: no common scale, so every gain is solved for."""
    loss = replace(profile.vae_loss, gain="solved", unscaled=1.0)
    return Run(Path(folder), replace(profile, vae_loss=loss), recipe, seed)


# --- latents --------------------------------------------------------------------------------------


def latents(vae: PoEVAE, slices: Slices, like: Latents | None = None, common_scale: bool = True) -> Latents:
    """Posterior means of all slices and of their mirror images, encoded once; normalised ``like`` others if given.

    In the precision of training: bf16 rounds far below the spread of a posterior.
    """
    scale, half = brightness(slices.images, slices.observed, slices.subject), best_precision() == "bf16"

    def means() -> Iterator[Tensor]:
        for mirrored in (False, True):
            for rows in torch.arange(len(slices)).split(INFERENCE_BATCH):
                part = slices[rows]
                part = replace(part, images=part.images.flip(-1)) if mirrored else part
                with torch.autocast(vae.device.type, torch.bfloat16, enabled=half):
                    posterior = encode(vae, part, common_scale, scale=scale[rows])
                yield posterior.mean.float()

    return Latents(in_a_file(means()), slices.position.repeat(2), like)


# --- folders that are either complete or absent ---------------------------------------------------


def _as_json(**settings) -> dict:
    return json.loads(json.dumps(settings))


def _made_with(folder: Path) -> dict | None:
    path = folder / "made_with.json"
    return json.loads(path.read_text()) if path.exists() else None


def _workspace(folder: Path, settings: dict) -> Path:
    """The folder to train in: what a killed run of the same settings left there is kept."""
    work = folder.with_name(folder.name + ".part")
    if work.exists() and _made_with(work) != settings:
        shutil.rmtree(work)
    write_atomically(work / "made_with.json", to_json(settings))
    return work
