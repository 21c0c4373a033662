"""What a run's folder says of itself, so that it can be loaded as weights: ``training.json`` and ``config.json``."""

from __future__ import annotations

from dataclasses import replace

from .. import __version__
from ..machine.files import checksums, made_with, to_json, write_atomically
from ..machine.processes import main_first
from ..people import cohort
from ..people.anatomy import as_folders
from ..slices import SPLITS
from ..weights import CONVENTIONS, FORMAT


def describe(run: Run):
    """Write what :func:`weights.load_weights` needs to know of what is trained.

    Where there is a ``config.json`` it is true: it is removed before a part is replaced, and written last.
    """
    with main_first():
        if (run.folder / "config.json").exists():
            return
        recipe, told = run.recipe, run
        if getattr(recipe, "anatomies", None):  # which folder it was is nobody's business, that it was one is
            names = tuple(folder.name for folder in as_folders(recipe.anatomies))
            told = replace(run, recipe=replace(recipe, anatomies=names if len(names) > 1 else names[0]))
        parts = {"vae": told.vae_settings()}
        if made_with(run.folder / "pipeline") == run.diffusion_settings():
            parts["pipeline"] = told.diffusion_settings()
        write_atomically(run.folder / "training.json", to_json(parts | {"heads": heads_of(run)}))
        config = {
            "format": FORMAT,
            "package": "phyldm_core",
            "version": __version__,
            "profile": run.profile.name,
            "slice_shape": list(recipe.shape),
            **{name: getattr(recipe, name) for name in ("voxel_mm", "slice_mm", "n_slices", "head")},
            "conventions": CONVENTIONS,
            "files": checksums(run.folder, *parts, "training.json"),
        }
        write_atomically(run.folder / "config.json", to_json(config))


def heads_of(run: Run) -> dict[str, list[str]]:
    """Split → heads that people were made from, for the VAE or the generator; empty where nobody can tell."""
    seen = {split: list(run.vae_settings().get("heads", {}).get(split, [])) for split in SPLITS}
    told = False
    for folder, recipe in {run.cohort_folder: run.recipe, run.vae_cohort_folder: run.vae_recipe}.items():
        if run.common_scale and cohort.read_recipe(folder) == cohort.as_json(recipe):
            people, told = cohort.participants(folder), True
            for split in SPLITS:
                seen[split] += people.anatomy[people.split == split].tolist()
    return {split: list(dict.fromkeys(names)) for split, names in seen.items()} if told else {}
