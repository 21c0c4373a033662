"""A cohort whose truth is known: anatomy + measured tissue + OASIS-3 protocols → scans with their maps.

Nobody can measure the true T1, T2 and PD of OASIS-3. Here people are simulated, so that they are
known, and written as a small BIDS dataset: scans at the top, truth under ``derivatives/truth``.
Training reads the scans; only evaluation opens the truth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor

from ..machine.errors import BadInput
from ..machine.files import made_with, read_json, to_json, whole_folder, write_atomically
from ..machine.on_disk import in_a_file
from ..machine.shards import run_shards
from ..physics import Protocol, effective_protocol
from ..scans import bids, nifti
from ..scans.oasis3 import SESSION_CONTRASTS, oasis3_protocols
from ..scans.sessions import find_sessions, read_session
from ..slices import LAYERS, MODALITIES, SPLITS, Slices, Truth
from ..tissue import BRAIN, REPORTED, TISSUES, in_vivo_3t
from . import open_field
from .anatomy import Deformation, as_folders, deform, find_anatomies, load_anatomy
from .scanner import acquire, add_lesions, added_signals, draw_texture, mixed_maps, slice_points

MAP_SUFFIXES = ("PDmap", "T1map", "T2map")
LAYERS_NAME = "desc-layers_dseg"
RECIPE = "recipe.json"
"""The file in a cohort's folder that says what it was made by."""
AGAIN = "remove the cohort and make it again (notebook 03_train_vae)"


@dataclass(frozen=True)
class CohortRecipe:
    """Everything that decides what a cohort looks like; equal recipes give equal files."""

    n_train: int = 200
    n_val: int = 20
    n_test: int = 20
    anatomies: str | tuple[str, ...] | None = None  # folder(s) of label maps; None: the MNI152 template in nilearn
    test_anatomies: int = 5  # the last ones of the first folder, never seen in training
    val_anatomies: int = 0  # of the training ones; 0: validation has new people from training heads
    voxel_mm: float = 2.0
    shape: tuple[int, int] = (112, 80)  # y, x
    n_slices: int = 8  # central axial slices, as in the paper
    slice_mm: float = 2.0
    head: bool = False  # False: brain and its CSF only, easier to learn in minutes
    lesions: float = 0.0  # fraction of people with white-matter lesions
    complete: bool = False  # every session holds all three contrasts; else as often as in OASIS-3
    open_field: bool = False  # protocols of clinical practice at large beside OASIS-3's, and layers for spoiling scans
    spread: float = 1.0  # of tissue between people, times tissue.BETWEEN_SUBJECTS
    noise: tuple[float, float] = (0.01, 0.025)  # SD of the Rician noise, of a scan's 99th percentile
    bias: float = 0.04  # SD of the log receive field, smooth over 60 mm, shared by a person's scans
    texture: float = 0.03  # SD of the log of each map inside a tissue, smooth over 12 mm
    seed: int = 1
    deformation: Deformation = Deformation()

    def subjects(self) -> list[Subject]:
        """Who is in the cohort: people, the head each was made from, and the split each belongs to.

        With one head, the splits differ by deformation and tissue only. With several, the last
        ``test_anatomies`` of the first folder belong to the test set alone, the ``val_anatomies`` before them to
        validation, and all others, those of further folders included, train.

        Raises
        ------
        BadInput
            A folder cannot be used, or the first of several holds too few heads to test on.
        """
        heads, folders = find_anatomies(self.anatomies), as_folders(self.anatomies)
        own = len(find_anatomies(folders[:1]))
        held_out = self.test_anatomies + self.val_anatomies
        pools = dict.fromkeys(SPLITS, heads)
        if len(folders) > 1 and own < held_out:
            raise BadInput(
                f"{folders[0]} holds {own} heads, too few for {held_out} to test on: name a larger one first"
            )
        if len(heads) > held_out:
            test, val = own - self.test_anatomies, own - held_out
            pools["test"] = heads[test:own]
            pools["train"] = heads[:val] + heads[own:]
            pools["val"] = heads[val:test] or pools["train"]
        counts = (self.n_train, self.n_val, self.n_test)
        people = []
        for split, n in zip(SPLITS, counts, strict=True):
            for i in range(n):
                people.append(
                    Subject(f"sub-{len(people) + 1:04d}", split, pools[split][i % len(pools[split])], len(people))
                )
        return people

    def draw_session(self, rng: np.random.Generator, complete: bool) -> list[Protocol | None]:
        """Which contrasts this session holds and how each was acquired, as often as in OASIS-3 (nominal TE).

        ``complete`` sessions hold all three: of a test person every subset can then be judged. On the open field a
        person has many scans, of which a training step shows a few.
        """
        if self.open_field:
            return open_field.draw_scans(rng)
        held = list(SESSION_CONTRASTS)
        weights = np.array([SESSION_CONTRASTS[h] for h in held], float)
        present = held[rng.choice(len(held), p=weights / weights.sum())]
        session = []
        for modality in MODALITIES:
            rows = oasis3_protocols()[modality]
            counts = np.array([row.count for row in rows], float)
            row = rows[rng.choice(len(rows), p=counts / counts.sum())]
            session.append(row.nominal if complete or modality in present else None)
        return session


@dataclass(frozen=True)
class Subject:
    """One simulated person."""

    name: str
    split: str
    head: str
    index: int


# --- one person ---------------------------------------------------------------------------------


@dataclass
class Simulated:
    """One person's truth and scans: maps ``(z, 3, y, x)``, fractions ``(z, 3, y, x)``, images ``(z, m, y, x)``.

    ``layers`` ``(z, y, x)``: numbers of :data:`slices.LAYERS`.
    """

    maps: Tensor
    fractions: Tensor
    layers: Tensor
    images: Tensor
    nominal: list[Protocol | None]
    gains: np.ndarray


@lru_cache(maxsize=1)  # 200 MB a head, and a worker's people are sorted by head
def _anatomy(name: str, recipe: CohortRecipe):
    return load_anatomy(
        name,
        recipe.anatomies,
        slab_mm=recipe.n_slices * recipe.slice_mm,
        head=recipe.head,
        blur_mm=0.35 * recipe.voxel_mm,
    )


def simulate(subject: Subject, recipe: CohortRecipe, protocols: Sequence[Protocol] = ()) -> Simulated:
    """Make one person: deform the head, draw the tissue, mix it into maps, and scan them.

    ``protocols`` are what the session holds, in place of the recipe's; the person is the same.
    """
    rng = np.random.default_rng([recipe.seed, subject.index])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    fractions = deform(_anatomy(subject.head, recipe), slice_points(recipe), recipe.deformation, generator)
    if rng.random() < recipe.lesions:
        fractions = add_lesions(fractions, recipe.voxel_mm, generator)
    values = in_vivo_3t().draw(rng, recipe.spread)
    texture = draw_texture(fractions.shape[1:], recipe.texture, recipe.voxel_mm, generator)
    drawn = recipe.draw_session(rng, complete=recipe.complete or subject.split == "test")
    nominal = list(protocols) or drawn
    made = [effective_protocol(p) for p in nominal if p]
    clean = torch.zeros(len(fractions[0]), len(nominal), *recipe.shape)
    exists = torch.tensor([p is not None for p in nominal])
    clean[:, exists] = added_signals(fractions, values, texture, torch.stack([p.settings() for p in made]))
    images, gains = acquire(clean, recipe.bias, recipe.noise, recipe.voxel_mm, rng, generator)
    pooled = torch.stack([sum(fractions[TISSUES.index(t)] for t in tissues) for tissues in REPORTED.values()], 1)
    images = images * exists[None, :, None, None]
    maps = mixed_maps(fractions, values, texture)
    return Simulated(maps, pooled, _layers(fractions), images, nominal, gains)


def _layers(fractions: Tensor) -> Tensor:
    """``(z, y, x)`` uint8: which of :data:`slices.LAYERS` fills most of a voxel."""
    brain = sum(fractions[TISSUES.index(tissue)] for tissue in BRAIN)
    fat, head = fractions[TISSUES.index("fat")], fractions.sum(0)
    return torch.stack([1 - head, brain, fat, head - brain - fat]).argmax(0).to(torch.uint8)


# --- the dataset on disk ------------------------------------------------------------------------


def make_cohort(
    recipe: CohortRecipe, folder: str | Path, n_workers: int | None = None, scheduler: str | None = None
) -> Iterator[int]:
    """Write the cohort, yielding the number of people done; nothing happens where it exists already.

    A killed run goes on with the next person. Another recipe in ``folder`` is replaced only when
    the new cohort is complete. The files are the same whoever made them.

    Parameters
    ----------
    n_workers, scheduler
        Processes of this machine (None: one a core), or a Dask scheduler: :func:`shards.run_shards`.

    Raises
    ------
    BadInput
        The anatomies cannot be used, or the folder cannot be written.
    """
    folder = Path(folder).resolve()  # workers elsewhere start from folders of their own
    if read_recipe(folder) == as_json(recipe):
        return
    people = recipe.subjects()
    with whole_folder(folder, as_json(recipe), RECIPE) as building:
        todo = [p for p in people if not (_truth_dir(building, p) / f"{p.name}_gains.json").exists()]
        todo.sort(key=lambda p: p.head)  # a worker reads each head once
        done = len(people) - len(todo)
        chunks = [(todo[i : i + 4], recipe, building) for i in range(0, len(todo), 4)]
        for n in run_shards(_write_people, chunks, n_workers or os.cpu_count() or 1, scheduler):
            done += n
            yield done
        _write_dataset_files(building, people)


def as_json(recipe: CohortRecipe) -> dict:
    """The recipe as it stands in :data:`RECIPE`."""
    return json.loads(json.dumps(asdict(recipe)))


def read_recipe(folder: str | Path) -> dict | None:
    """The recipe a complete cohort was made by; None where there is none."""
    return made_with(folder, RECIPE, AGAIN)


def _truth_dir(folder: Path, subject: Subject) -> Path:
    return folder / "derivatives" / "truth" / subject.name / "anat"


def _slice_affine(recipe: CohortRecipe) -> np.ndarray:
    affine = np.diag([recipe.voxel_mm, recipe.voxel_mm, recipe.slice_mm, 1.0])
    affine[:3, 3] = slice_points(recipe)[0, 0, 0].numpy()
    return affine


def _volume(slices: Tensor) -> np.ndarray:
    """``(z, y, x)`` → ``(x, y, z)`` as NIfTI stores it."""
    return slices.permute(2, 1, 0).numpy()


def _write_people(people: list[Subject], recipe: CohortRecipe, folder: Path) -> int:
    torch.set_num_threads(1)  # a core a worker, and the same rounding however many there are
    affine = _slice_affine(recipe)
    for subject in people:
        person = simulate(subject, recipe)
        anat, truth = folder / subject.name / "anat", _truth_dir(folder, subject)
        names = _scan_names(recipe, person.nominal)
        for m, protocol in enumerate(person.nominal):
            if protocol:
                path = anat / f"{subject.name}_{names[m]}.nii.gz"
                nifti.write_image(path, _volume(person.images[:, m]), affine, bids.sidecar(protocol))
        for i, suffix in enumerate(MAP_SUFFIXES):
            unit = "arbitrary" if suffix == "PDmap" else "s"
            meta = {"Units": unit, "SkullStripped": not recipe.head, "Description": "simulated truth"}
            nifti.write_image(truth / f"{subject.name}_{suffix}.nii.gz", _volume(person.maps[:, i]), affine, meta)
        fractions = person.fractions.permute(3, 2, 0, 1).numpy()
        meta = {"LabelMap": list(REPORTED), "SkullStripped": not recipe.head}
        nifti.write_image(truth / f"{subject.name}_probseg.nii.gz", fractions, affine, meta)
        if recipe.open_field:
            meta = {"LabelMap": list(LAYERS), "SkullStripped": not recipe.head}
            path = truth / f"{subject.name}_{LAYERS_NAME}.nii.gz"
            nifti.write_image(path, _volume(person.layers), affine, meta, dtype=np.uint8)
        # written last: its presence says that this person is complete
        gains = dict(zip(names, person.gains, strict=True))
        write_atomically(truth / f"{subject.name}_gains.json", to_json(gains))
    return len(people)


def _scan_names(recipe: CohortRecipe, protocols: list[Protocol | None]) -> list[str]:
    """What a person's scans are called, after ``sub-…_``: a contrast, and its number where there are many."""
    if not recipe.open_field:
        return list(MODALITIES)
    return [f"acq-{m:02d}_{nifti.contrast_of(protocol)}" for m, protocol in enumerate(protocols)]


def _write_dataset_files(folder: Path, people: list[Subject]):
    bids.write_dataset_description(folder, "Simulated brains with known PD, T1 and T2", derivative=False)
    bids.write_dataset_description(
        folder / "derivatives" / "truth", "The maps the scans were made from", derivative=True
    )
    (folder / ".bidsignore").write_text(f"{RECIPE}\n")
    (folder / "derivatives" / "truth" / ".bidsignore").write_text("**/*_gains.json\n")
    (folder / "README").write_text("Simulated people: scans here, the maps they were made from in derivatives/truth.\n")
    columns = {
        "split": {
            "Description": "train, val or test; heads of the test set are in no other, if there is more than one"
        },
        "anatomy": {"Description": "the head this person was deformed from"},
    }
    (folder / "participants.json").write_text(json.dumps(columns, indent=1))
    rows = [{"participant_id": p.name, "split": p.split, "anatomy": p.head} for p in people]
    pandas.DataFrame(rows).to_csv(folder / "participants.tsv", sep="\t", index=False)


# --- reading it back ----------------------------------------------------------------------------


def participants(folder: str | Path) -> pandas.DataFrame:
    """``participants.tsv``: participant_id, split, anatomy."""
    path = Path(folder) / "participants.tsv"
    if not path.exists():
        raise BadInput(f"{folder} is not a cohort (no participants.tsv): make one with notebook 03_train_vae")
    try:
        return pandas.read_csv(path, sep="\t").astype({"participant_id": str, "split": str})
    except (ValueError, KeyError, OSError) as error:
        raise BadInput(f"{path}: not the table of a cohort ({str(error).strip()}): {AGAIN}") from None


def _members(folder: Path, split: str) -> list[str]:
    people = participants(folder)
    if not (names := people.participant_id[people.split == split].tolist()):
        raise BadInput(f"{folder / 'participants.tsv'}: nobody belongs to the {split} split: {AGAIN}")
    return names


def load_scans(folder: str | Path, split: str, common_scale: bool = True) -> Slices:
    """All slices of one split, as scanned.

    Parameters
    ----------
    common_scale
        Divide each scan by the gain it was simulated with, so that all scans share the scale of PD:
        the paper's assumption (gain 1), which no real archive grants. False: scanner units, a
        different gain for every scan.
    """
    folder = Path(folder)
    many = bool((read_recipe(folder) or {}).get("open_field"))
    told = []  # of each session: settings, observed, subject, position of its slices
    layers = []

    def sessions() -> Iterator[Tensor]:
        for name in _members(folder, split):
            gains, truth = None, folder / "derivatives" / "truth" / name / "anat"
            if common_scale:
                gains = read_json(truth / f"{name}_gains.json", f": {AGAIN}")
            for found in _sessions_of(folder / name, many):
                nx, ny, nz = next(iter(found.values())).image.shape
                names = list(found) if many else MODALITIES
                images = torch.zeros(nz, len(names), ny, nx)
                settings, observed = torch.zeros(nz, len(names), 6), torch.zeros(nz, len(names)).bool()
                for j, contrast in enumerate(names):
                    if contrast in found:
                        image = torch.from_numpy(np.ascontiguousarray(found[contrast].image.T))
                        images[:, j] = image / gains[contrast] if gains else image
                        settings[:, j] = found[contrast].protocol.settings()
                        observed[:, j] = True
                position = [2 * z / max(nz - 1, 1) - 1 for z in range(nz)]
                told.append((settings, observed, torch.full((nz,), len(told)), torch.tensor(position)))
                if many:
                    volume, _ = nifti.read_volume(truth / f"{name}_{LAYERS_NAME}.nii.gz")
                    layers.append(torch.from_numpy(np.ascontiguousarray(volume.T)).to(torch.uint8))
                yield images

    images = in_a_file(sessions())
    told = [torch.cat(of_all) for of_all in zip(*told, strict=True)]
    return Slices(images, *told, layers=torch.cat(layers) if many else None)


def _sessions_of(folder: Path, many: bool) -> Iterator[dict[str, nifti.Scan]]:
    """Of each session its scans, by contrast; of a cohort of the open field every scan, by its name."""
    if many:
        paths = sorted((folder / "anat").glob("*.nii.gz"))
        yield {bids.stem(path).removeprefix(f"{folder.name}_"): nifti.read_scan(path) for path in paths}
        return
    for labels in find_sessions(folder):
        yield {scan.suffix: scan for scan in read_session(folder, *labels)}


def load_truth(folder: str | Path, split: str) -> Truth:
    """The simulated maps of one split, in the order of :func:`load_scans`. For evaluation only."""
    import nibabel

    folder = Path(folder)
    maps, fractions = [], []
    for name in _members(folder, split):
        anat = folder / "derivatives" / "truth" / name / "anat"
        files = [anat / f"{name}_{kind}.nii.gz" for kind in (*MAP_SUFFIXES, "probseg")]
        try:
            *volumes, share = (nibabel.load(file).get_fdata(dtype=np.float32) for file in files)
            volumes = np.stack(volumes)
        except (*nifti.UNREADABLE, ValueError) as error:
            raise BadInput(f"{anat}: the maps cannot be read ({type(error).__name__}): {AGAIN}") from None
        maps.append(torch.from_numpy(volumes).permute(3, 0, 2, 1))
        fractions.append(torch.from_numpy(share).permute(2, 3, 1, 0))
    return Truth(torch.cat(maps).contiguous(), torch.cat(fractions).contiguous())
