"""Who weights are examined on: new people, simulated from heads that the weights have not seen, with a known truth.

Their tissue, protocols, noise and field are drawn as those of the training people were, with other random
numbers; what a head is like inside, no training saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..machine.errors import BadInput
from ..physics import Protocol, effective_protocol
from ..slices import Person, Slices, Truth
from ..weights import Weights, drawn_from
from .anatomy import Deformation, Folders, as_folders, find_anatomies, in_recipe
from .cohort import CohortRecipe, Subject, simulate

FIRST = 100_000
"""Index of the first person: beyond any training cohort, so that a seen head still gives a new person."""


@dataclass(frozen=True)
class Heads:
    """Which label maps of a folder to use: ``examined``, and those of the ``training`` people if all are there."""

    examined: tuple[str, ...]
    training: tuple[str, ...]
    seen: bool  # whether the examined ones were seen in training


def choose_heads(weights: Weights, anatomies: Folders, seen: bool = False) -> Heads:
    """The heads to examine on.

    Parameters
    ----------
    anatomies
        Folders of label maps; None: the MNI152 template.
    seen
        Take heads that training (or its validation) saw, instead of those it did not.

    Raises
    ------
    BadInput
        The folder holds no such head, or the weights do not say which heads they saw.
    """
    record, found = weights.training.get("heads"), find_anatomies(anatomies)
    folders = as_folders(anatomies)
    where = ", ".join(map(str, folders)) or "the MNI152 template"
    cohort = drawn_from(weights.training)
    if not record and "data" not in cohort:
        raise BadInput(
            f"{weights.folder}: does not say which heads it was trained on: export it from a run with its cohort"
        )
    record = record or {}
    known = set(record.get("train", [])) | set(record.get("val", []))
    # one training names a head by its file, another folder/file: what may have been seen counts as seen
    also = {
        name: {name, name.rpartition("/")[2], *(f"{folder.name}/{name}" for folder in folders[:1])} for name in found
    }
    examined = tuple(name for name in found if bool(also[name] & known) == seen)
    if not examined and seen:
        raise BadInput(f"{where}: holds no head that {weights.folder} was trained on: leave out --seen-heads")
    if not examined:
        raise BadInput(
            f"{where}: every head was seen in training of {weights.folder}: give other heads with --anatomies, or "
            "say --seen-heads, and the result will say so"
        )
    training = tuple(record.get("train", []))
    return Heads(examined, training if set(training) <= set(found) else (), seen)


def recipe_of(weights: Weights, anatomies: Folders, seed: int | None = None) -> CohortRecipe:
    """The training cohort's recipe with the heads in ``anatomies``; another ``seed`` draws other people.

    Weights trained on real scans get simulated people of their geometry, everything else as the recipe's defaults.
    """
    cohort = drawn_from(weights.training)
    if "data" in cohort:
        keys = ("voxel_mm", "slice_mm", "n_slices", "head")
        recipe = CohortRecipe(shape=weights.shape, **{key: weights.config[key] for key in keys})
    else:
        deformation = Deformation(**cohort["deformation"])
        pairs = {key: tuple(value) if isinstance(value, list) else value for key, value in cohort.items()}
        recipe = CohortRecipe(**pairs | {"deformation": deformation})
    recipe = replace(recipe, anatomies=in_recipe(anatomies))
    return recipe if seed is None else replace(recipe, seed=seed)


def draw_people(
    recipe: CohortRecipe, heads: tuple[str, ...], n: int, first: int = FIRST, skip: set[str] = frozenset()
) -> Iterator[Person]:
    """``n`` people, head by head (a head is read once), each the same however many are drawn or skipped.

    Parameters
    ----------
    first
        Index of the first one; ``sub-0001`` is its name.
    skip
        Names of people not to make.
    """
    everyone = [Subject(f"sub-{i + 1:04d}", "test", heads[i % len(heads)], first + i) for i in range(n)]
    for subject in sorted(everyone, key=lambda s: s.head):
        if subject.name not in skip:
            yield _person(subject, recipe)


def training_people(recipe: CohortRecipe, heads: tuple[str, ...]) -> Iterator[Truth]:
    """The true maps of the people that were trained on, made again; ``recipe`` is theirs, seed included."""
    everyone = [Subject("", "train", heads[i % len(heads)], i) for i in range(recipe.n_train)]
    for subject in sorted(everyone, key=lambda s: s.head):
        made = simulate(subject, recipe)
        yield Truth(made.maps, made.fractions)


def _person(subject: Subject, recipe: CohortRecipe) -> Person:
    made = simulate(subject, recipe)
    n = len(made.images)
    nominal, effective = (
        torch.stack([p.settings() for p in protocols]).expand(n, -1, -1)
        for protocols in (made.nominal, [effective_protocol(p) for p in made.nominal])
    )
    position = torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)
    alone, observed = torch.zeros(n, dtype=torch.long), torch.ones(made.images.shape[:2], dtype=torch.bool)
    scanned = Slices(made.images, effective, observed, alone, position)
    gains = torch.from_numpy(made.gains).float()[None, :, None, None]
    return Person(
        subject.name, subject.head, replace(scanned, images=made.images / gains), scanned, nominal,
        Truth(made.maps, made.fractions),
    )  # fmt: skip


def session_of(subject: Subject, recipe: CohortRecipe, protocols: Sequence[Protocol]) -> tuple[Slices, Truth, Tensor]:
    """A person scanned with ``protocols``, each scan in its own unit: slices, their truth, and layers ``(z, y, x)``."""
    made = simulate(subject, recipe, protocols)
    n, m = made.images.shape[:2]
    settings = torch.stack([effective_protocol(p).settings() for p in made.nominal]).expand(n, -1, -1)
    position = torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1)
    slices = Slices(
        made.images, settings, torch.ones(n, m, dtype=torch.bool), torch.zeros(n, dtype=torch.long), position
    )
    return slices, Truth(made.maps, made.fractions), made.layers
