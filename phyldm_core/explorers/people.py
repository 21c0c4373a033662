"""Whom to explore: people drawn by the model, people simulated with a known truth, one's own maps, and whole sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch

from ..figures.style import as_array
from ..machine.errors import BadInput
from ..machine.files import read_json
from ..physics import TissueMaps
from ..scans.maps import read_maps
from ..weights import RELEASE_FOLDER

LIKELY_MS = 20.0  # s; no tissue relaxes so slowly, so such maps are in ms

SHARP, SHARP_SEED = "MNI152 template, 1 mm", 1
N_OFFERED = 8  # of a run's generated brains, by name
Progress = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class TissueStack:
    """One person's tissue, slice by slice.

    Parameters
    ----------
    maps
        PD (water = 1), T1 and T2 (s), float32 tensors ``(z, y, x)``: z upwards, y towards anterior, x towards the
        patient's right; PD is 0 where there is no tissue.
    affine
        ``(4, 4)``, voxel (x, y, z) → RAS mm.
    skull_stripped
        As BIDS has it.
    """

    maps: TissueMaps
    affine: np.ndarray
    skull_stripped: bool = True

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """(z, y, x)."""
        return tuple(float(size) for size in nibabel.affines.voxel_sizes(self.affine)[::-1])


def problem_with(maps: TissueMaps) -> str | None:
    """One sentence on what is wrong with PD, T1 and T2 ``(y, x)`` or ``(z, y, x)``; None where they can be rendered."""
    pd, t1, t2 = (as_array(m) for m in maps)
    for name, times in (("T1", t1), ("T2", t2)):
        if times.shape != pd.shape:
            return f"The PD map has shape {pd.shape} and the {name} map {times.shape}: give maps of the same slices."
    if pd.ndim not in (2, 3):
        return f"The maps have shape {pd.shape}: give slices, with axes (y, x) or (z, y, x)."
    if not np.isfinite(pd).all() or (pd < 0).any():
        return "The PD map has values that are NaN, infinite or negative: set PD to 0 where there is no tissue."
    tissue = pd > 0
    if not tissue.any():
        return "The PD map is 0 everywhere: there is no tissue to show."
    for name, times in (("T1", t1[tissue]), ("T2", t2[tissue])):
        bad = int((~(np.isfinite(times) & (times >= 0))).sum())
        if bad:
            return f"The {name} map is NaN, infinite or negative in {bad} voxels that hold tissue: set PD to 0 there."
        if np.median(times) > LIKELY_MS:
            return f"The {name} map has a median of {np.median(times):.4g} s, which looks like ms: divide by 1000."
    return None


def of_maps(maps: TissueMaps, voxel_mm: float | tuple[float, float] = 2.0, slice_mm: float = 2.0) -> TissueStack:
    """A subject from maps ``(y, x)`` or ``(z, y, x)``, voxels as told, the middle of the stack at the origin.

    T1 and T2 mean nothing without protons and may be NaN there; they become 0.

    Raises
    ------
    BadInput
        :func:`problem_with` says what is wrong.
    """
    if problem := problem_with(maps):
        raise BadInput(problem)
    pd, t1, t2 = (torch.as_tensor(np.array(as_array(m), dtype=np.float32)) for m in maps)
    maps = TissueMaps(pd, torch.where(pd > 0, t1, 0.0), torch.where(pd > 0, t2, 0.0))
    maps = TissueMaps(*(m[None] if m.ndim == 2 else m for m in maps))
    mm_y, mm_x = np.broadcast_to(voxel_mm, 2)
    affine = np.diag([mm_x, mm_y, slice_mm, 1.0])
    affine[:3, 3] = -affine.diagonal()[:3] * (np.array(maps.pd.shape[::-1]) - 1) / 2
    return TissueStack(maps, affine)


def read_subject(folder: str | Path) -> TissueStack:
    """One's own maps: the folder of ``_PDmap``, ``_T1map``, ``_T2map`` that :func:`maps.read_maps` reads.

    Raises
    ------
    BadInput
        As :func:`maps.read_maps`.
    """
    volumes = read_maps(folder)
    images = [nibabel.as_closest_canonical(nibabel.Nifti1Image(v, volumes.affine)) for v in volumes.maps]
    maps = TissueMaps(*(torch.from_numpy(np.ascontiguousarray(np.asarray(i.dataobj).T)) for i in images))
    if problem := problem_with(maps):
        raise BadInput(f"{folder}: {problem}")
    return TissueStack(maps, images[0].affine, volumes.skull_stripped)


def simulate_person(seed: int, progress: Progress = lambda share: None) -> TissueStack:
    """A new person made from the MNI152 template: another head shape and other tissue for every seed."""
    from ..people.cohort import CohortRecipe, simulate  # nilearn takes a second that other subjects need not wait for

    recipe = CohortRecipe(n_train=1, n_val=0, n_test=0, seed=seed)
    progress(0.1)
    person = simulate(recipe.subjects()[0], recipe)
    progress(1.0)
    return of_maps(TissueMaps.from_stack(person.maps), recipe.voxel_mm, recipe.slice_mm)


def template_person(progress: Progress = lambda share: None, n_slices: int = 5) -> TissueStack:
    """A person made from the MNI152 template at 1 mm, as sharp as the template is: what explorers open with."""
    from ..people.cohort import CohortRecipe, simulate

    recipe = CohortRecipe(1, 0, 0, voxel_mm=1.0, shape=(224, 160), n_slices=n_slices, slice_mm=1.0, seed=SHARP_SEED)
    progress(0.1)
    person = simulate(recipe.subjects()[0], recipe)
    progress(1.0)
    return of_maps(TissueMaps.from_stack(person.maps), recipe.voxel_mm, recipe.slice_mm)


def draw_from(weights_dir: str | Path, seed: int, progress: Progress = lambda share: None) -> TissueStack:
    """A person drawn by the diffusion model of exported weights or of a run.

    Raises
    ------
    BadInput
        The folder is missing, or holds no diffusion model; :func:`weights.load_weights` has more.
    """
    from ..people import drawn
    from ..weights import load_weights

    weights = load_weights(weights_dir)
    progress(0.1)
    pipe = weights.pipeline()
    maps = drawn.draw_person(pipe, weights, seed, 0, on_share=lambda share: progress(0.2 + 0.8 * share))
    return of_maps(maps, weights.voxel_mm, float(weights.config["slice_mm"]))


def find_subjects(
    run_dir: str | Path, weights_dir: str | Path = RELEASE_FOLDER, seed: int = 7
) -> dict[str, TissueStack | Callable[[Progress], TissueStack] | BadInput]:
    """Whoever can be shown, the first at once: name → subject, or a function of a progress report that makes one.

    The sharp ones come first: the template, then whom a diffusion model at ``weights_dir`` draws. They are followed by
    the brains that the run's notebook 05 drew and a held-out person of the run's cohort with the maps they were
    simulated with. A new simulated person is last. Where drawn brains are there and cannot be read, the sentence that
    says so stands for them.
    """
    found: dict[str, TissueStack | Callable[[Progress], TissueStack] | BadInput] = {SHARP: template_person}
    if _can_draw(weights_dir):
        found[f"drawn, seed {seed}"] = lambda progress: draw_from(weights_dir, seed, progress)
    run_dir = Path(run_dir)
    if (run_dir / "samples").is_dir():
        try:
            maps, voxel_mm, slice_mm = read_samples(run_dir / "samples")
            for k in np.unique(np.linspace(0, len(maps.pd) - 1, N_OFFERED).astype(int)):
                brain = TissueMaps(*(m[k] for m in maps))
                found[f"generated brain {k + 1}"] = of_maps(brain, voxel_mm, slice_mm)
        except BadInput as error:
            found["generated brains"] = error
    if people := sorted((run_dir / "cohort" / "derivatives" / "truth").glob("sub-*")):
        last = people[-1]  # the test people come last
        found[f"simulated {last.name}, held out"] = lambda progress: read_subject(last)
    found[f"simulated, seed {seed}"] = lambda progress: simulate_person(seed, progress)
    return found


def weights_of(run_dir: str | Path, weights_dir: str | Path = RELEASE_FOLDER) -> Path:
    """Where the diffusion model is: the run, unless it holds none and ``weights_dir`` does."""
    return Path(weights_dir if _can_draw(weights_dir) and not _can_draw(run_dir) else run_dir)


def _can_draw(weights_dir: str | Path) -> bool:
    return (Path(weights_dir) / "pipeline").is_dir()


def read_samples(folder: Path) -> tuple[TissueMaps, float, float]:
    """A run's generated brains: maps ``(n, y, x)`` evenly spread over the stack, size of a voxel and slice (mm).

    Raises
    ------
    BadInput
        The folder holds no samples of a run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        cohort = read_json(folder / "made_with.json")["pipeline"]["composition"]["vae"]["cohort"]
        maps = TissueMaps(**load_file(folder / "maps.safetensors"))
        if maps.pd.ndim != 3 or problem_with(maps):
            raise ValueError(problem_with(maps) or f"maps of {maps.pd.ndim} axes, not 3")
        return maps, float(cohort["voxel_mm"]), float(cohort["slice_mm"])
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise BadInput(f"{folder}: not the samples of a run ({error}): run notebook 05_sample_tissue again") from None


# --- many at once, for the histograms ---------------------------------------------------------------


def find_populations(run_dir: str | Path) -> dict[str, TissueMaps | Callable[[Progress], TissueMaps] | BadInput]:
    """What a run has, name → maps ``(n, y, x)``: "true" held-out people, "generated" brains, "inferred" maps.

    Inferring takes a while, so a function of a progress report stands for it. Without a run, one simulated person
    is all there is. Where a part is there and cannot be read, the sentence that says so stands for it.
    """
    run_dir, found = Path(run_dir), {}
    cohort, simulated = run_dir / "cohort", False
    try:
        simulated = (cohort / "recipe.json").exists() and "data" not in read_json(cohort / "recipe.json")
        if simulated:
            from ..people.cohort import load_truth

            found["true"] = TissueMaps.from_stack(load_truth(cohort, "test").maps)
    except BadInput as error:
        found["true"] = error
    if (run_dir / "samples").is_dir():
        try:
            found["generated"] = read_samples(run_dir / "samples")[0]
        except BadInput as error:
            found["generated"] = error
    if simulated and (run_dir / "vae").is_dir():
        found["inferred"] = lambda progress: infer_test(run_dir, progress)
    return found or {"simulated": simulate_person(0).maps}


def infer_test(run_dir: Path, progress: Progress) -> TissueMaps:
    """Maps ``(n, y, x)`` that a run's VAE infers from the scans of its held-out people, person by person.

    Raises
    ------
    BadInput
        There is no VAE, or it is damaged (:func:`weights.load_weights`).
    """
    from ..inference import infer
    from ..people.cohort import load_scans
    from ..weights import load_weights

    vae, scans = load_weights(run_dir).vae(), load_scans(run_dir / "cohort", "test", common_scale=True)
    people, maps = scans.subject.unique(), []
    for i, person in enumerate(people):
        progress(i / len(people))
        maps.append(infer(vae, scans[scans.subject == person])[1])
    return TissueMaps(*(torch.cat(parts) for parts in zip(*maps, strict=True)))
