"""Weights as files a user can trust: what they are, what they were trained on, and that they are unchanged.

A folder of weights holds ``config.json`` (what follows from it is in :class:`Weights`), ``training.json`` (the
cohort's recipe, losses and schedules), ``vae/`` and, where a diffusion model was trained, ``pipeline/`` in
diffusers' form. A run's folder is one; an exported one holds a model card and its numbers, too. Everything that
could run code on loading is refused: weights are safetensors, and only this package's classes are made from them.
Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError, safe_open

from . import __version__
from .machine.carried import carried
from .machine.errors import BadInput
from .machine.files import read_json, sha256
from .physics import SEQUENCES

FORMAT = 1
"""Version of the folder's layout; a reader refuses one that it does not know."""

DEFAULT = Path("runs/laptop")
"""Where the commands look for weights first when they are not told: what ``phyldm reproduce`` makes."""

RELEASE_FOLDER = carried("data/weights/release")
"""The weights that come with the package; wherever a folder of weights is asked for, "release" means this one."""

CONVENTIONS = {
    "maps": ["PD relative to water = 1", "T1 in s", "T2 in s"],
    "slice": "(y, x) of an axial slice in RAS+: y to anterior, x to the patient's right",
    "sequences": [sequence.value for sequence in SEQUENCES],
    "settings": "sequence, TE, TR, TI in s, flip angle in rad, real part or not; TE contrast-equivalent",
}
"""What the numbers that go in and come out mean; weights with others would give wrong maps without a word."""

LOADABLE = {
    "PoEVAE": "phyldm_core.vae",
    "CompositionVAE": "phyldm_core.composition",
    "TissueTransformer": "phyldm_core.diffusion",
    "UNet2DModel": "diffusers",
    "DPMSolverMultistepScheduler": "diffusers",
    "DDIMScheduler": "diffusers",
}
"""What a pipeline may be made of; any other name in its files is refused before it is imported."""

TENSORS = "diffusion_pytorch_model.safetensors"
EXAMINED = {".json", ".safetensors", ".csv", ".md"}  # the only kinds of file a folder of weights holds


BRAIN_MM = 140.0
"""From the foot of the cerebellum to the vertex an adult's brain measures no more."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Trained weights, checked; get them from :func:`load_weights`.

    Parameters
    ----------
    folder
        That holds ``vae/`` and maybe ``pipeline/``.
    config
        What ``config.json`` says: ``profile``, ``voxel_mm``, ``slice_mm``, ``slice_shape`` (y, x), ``n_slices`` and
        ``head`` of the people that the last part was trained on, ``files`` with their SHA-256.
    """

    folder: Path
    config: dict

    @property
    def voxel_mm(self) -> float:
        """Of the slices the networks were trained on, in the plane."""
        return float(self.config["voxel_mm"])

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) of those slices."""
        return tuple(self.config["slice_shape"])

    @property
    def slab_mm(self) -> float:
        """Of the slices that the VAE was trained on, about the middle of the brain: outside them it extrapolates."""
        seen = self.training["vae"]["cohort"]  # the generator's people, of which config.json speaks, may be others
        return float(seen["n_slices"] * seen["slice_mm"])

    @property
    def whole_brain(self) -> bool:
        """Whether these slices lay from the cerebellum to the vertex."""
        return self.slab_mm >= BRAIN_MM

    @property
    def head(self) -> bool:
        """Whether the training scans kept skull and scalp."""
        return bool(self.config["head"])

    @property
    def has_pipeline(self) -> bool:
        return "pipeline/model_index.json" in self.config["files"]

    @cached_property
    def training(self) -> dict:
        """How they were made: ``vae`` (its ``cohort``, loss and schedule), maybe ``pipeline``, and ``heads`` by split.

        Heads are names of label maps, "mni152" for the template; there are none where real people were scanned.
        """
        return _read_json(self.folder / "training.json")

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the hashes of all tensors: equal weights, equal name, exported or not."""
        networks = {k: v for k, v in self.config["files"].items() if k.startswith(("vae/", "pipeline/"))}
        tensors = sorted((name, sha) for name, sha in networks.items() if name.endswith(".safetensors"))
        return hashlib.sha256(json.dumps(tensors).encode()).hexdigest()

    @cached_property
    def calibration(self) -> dict | None:
        """What samples of the posterior miss (:mod:`calibration`); None where it was not measured."""
        from .calibration import read_calibration

        return read_calibration(self.folder / "vae")

    def vae(self):
        """The :class:`vae.PoEVAE`, ready for inference."""
        from .vae import PoEVAE

        return PoEVAE.from_pretrained(self.folder / "vae", local_files_only=True, use_safetensors=True).eval()

    def pipeline(self):
        """The :class:`diffusion.TissuePipeline`: ``pipe(n, seed=…)`` gives tissue maps.

        Raises
        ------
        BadInput
            These weights hold none.
        """
        if not self.has_pipeline:
            raise BadInput(f"{self.folder}: holds a VAE but no diffusion model: run notebook 04_train_diffusion first")
        import diffusers

        from .diffusion import TissuePipeline

        diffusers.utils.logging.disable_progress_bar()
        pipe = TissuePipeline.from_pretrained(self.folder / "pipeline", local_files_only=True, use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def load_weights(folder: str | Path | None = None) -> Weights:
    """Weights from a run's folder, or from one that was exported, checked.

    Parameters
    ----------
    folder
        "release": :data:`RELEASE_FOLDER`. None: :data:`DEFAULT`, relative to the working directory; where it holds
        no weights, the release.

    Raises
    ------
    BadInput
        In one sentence: nothing there; a format or conventions this version does not know; a file missing,
        changed, or of a kind that could run code; a tensor missing, left over or of another shape.
    """
    own = (DEFAULT / "config.json").exists()  # chapters that open on the release keep figures there, too
    if folder is None and not (own or RELEASE_FOLDER.is_dir()):
        raise BadInput(f"{DEFAULT}: no weights here: make them with phyldm reproduce, or name a folder with --weights")
    if folder is None:
        folder = DEFAULT if own else RELEASE_FOLDER
    folder = RELEASE_FOLDER if str(folder) == "release" else Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder of weights: give one that phyldm export or phyldm reproduce made")
    if not (folder / "config.json").exists():
        raise BadInput(f"{folder}: neither exported weights nor a trained run (no config.json): name another")
    weights = Weights(folder, _read_json(folder / "config.json"))
    _check_config(weights)
    _check_files(weights)
    _check_network(folder / "vae", "PoEVAE")
    if weights.has_pipeline:
        _check_pipeline(folder / "pipeline")
    return weights


def drawn_from(training: dict) -> dict:
    """The recipe of the people that the last part was trained on: the generator's, where there is one, else the VAE's.

    They differ where the VAE was not trained with the generator but given. ``training`` is :attr:`Weights.training`.
    """
    return training.get("pipeline", {}).get("composition", training["vae"]).get("cohort", training["vae"]["cohort"])


# --- checks ---------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict:
    return read_json(path, ": export the weights again")


def _check_config(weights: Weights):
    where, config = weights.folder / "config.json", weights.config
    if (version := config.get("format")) != FORMAT:
        raise BadInput(
            f"{where}: weights of format {version}, but phyldm_core {__version__} reads format {FORMAT}: "
            f"export them again with this version, or install phyldm_core {config.get('version', '')}".rstrip()
        )
    for name, kind in (("slice_shape", list), ("voxel_mm", (int, float)), ("slice_mm", (int, float)), ("n_slices", int),
                       ("head", bool), ("files", dict)):  # fmt: skip
        if not isinstance(config.get(name), kind):
            raise BadInput(f"{where}: {name} is missing or of the wrong kind: export the weights again")
    for name, ours in CONVENTIONS.items():
        theirs = config.get("conventions", {}).get(name)
        if theirs != ours:
            raise BadInput(f"{where}: convention {name!r} is {theirs}, here {ours}: its maps would be wrong")


def _check_files(weights: Weights):
    """Every file is there, unchanged, and of a kind that cannot run code."""
    folder, listed = weights.folder, weights.config["files"]
    for name, expected in listed.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BadInput(f"{folder / 'config.json'}: lists {name}, which lies outside the folder: do not trust it")
        if not path.is_file():
            raise BadInput(f"{path}: missing, though config.json lists it: copy the weights again")
        if sha256(path) != expected:
            raise BadInput(f"{path}: changed since it was written (SHA-256 differs): copy the weights again")
    parts = ("vae", "pipeline") if weights.has_pipeline else ("vae",)  # what belongs to another VAE is not loaded
    present = {p.relative_to(folder).as_posix() for part in parts for p in (folder / part).rglob("*") if p.is_file()}
    if extra := sorted(present - set(listed)):
        raise BadInput(f"{folder / extra[0]}: not listed in config.json: take it out, weights are loaded as exported")


def _check_pipeline(folder: Path):
    index = _read_json(folder / "model_index.json")
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)):
            continue  # a setting of the pipeline, or a component that is absent
        library, kind = value
        if LOADABLE.get(kind) != library:
            raise BadInput(f"{folder / 'model_index.json'}: {name} is a {library}.{kind}, which no pipeline here uses")
        if not kind.endswith("Scheduler"):
            _check_network(folder / name, kind)


def _check_network(folder: Path, kind: str):
    """The tensors on disk are those the network asks for, told from their names and shapes alone."""
    import torch

    if unfit := sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in EXAMINED):
        raise BadInput(f"{folder / unfit[0]}: weights are safetensors only, nothing is unpickled: take it out")
    if not (folder / TENSORS).is_file() or not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: lacks config.json or {TENSORS}: train or copy the weights again")
    network = getattr(import_module(LOADABLE[kind]), kind)
    config = {k: v for k, v in _read_json(folder / "config.json").items() if not k.startswith("_")}
    try:
        with torch.device("meta"):  # shapes without memory
            expected = {name: list(t.shape) for name, t in network(**config).state_dict().items()}
    except (TypeError, ValueError) as error:
        raise BadInput(f"{folder / 'config.json'}: no {kind} can be made of it ({error}): export it again") from None
    try:
        with safe_open(folder / TENSORS, "numpy") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        said = "not a safetensors file, or cut short: copy or train the weights again"
        raise BadInput(f"{folder / TENSORS}: {said}") from None
    for name in sorted(expected.keys() | found.keys()):
        want, got = (None if s is None else "×".join(map(str, s)) for s in (expected.get(name), found.get(name)))
        if want != got:
            said = "is missing" if got is None else "is left over" if want is None else f"is {got}, not {want}"
            raise BadInput(f"{folder / TENSORS}: tensor {name} {said} for a {kind} of this version: export it again")
