"""What every chapter begins with: the house style, its run, networks to show, and one way to publish a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas
import torch
from safetensors.torch import load_file, save_file

from ..figures.style import save_figure, use_house_style
from ..inference import infer
from ..machine.errors import BadInput
from ..machine.files import made_with, whole_folder
from ..people.anatomy import Folders
from ..people.held_out import choose_heads, draw_people, recipe_of
from ..physics import TissueMaps
from ..slices import Person, Slices, Truth
from ..weights import RELEASE_FOLDER, Weights, load_weights
from .latents import explained_people
from .run import MissingResult, Run, open_run

N_PEOPLE, N_BRAINS = 3, 8
"""Held-out people, and drawn brains, of the release: enough to look at, and made in seconds at 1 mm."""


def open_chapter(
    run_dir: str | Path, figures_dir: str | Path, profile: str, anatomies: Folders, seed: int
) -> tuple[Run, Callable]:
    """The run of a chapter's parameters, and ``publish(fig, name, caption, alt)``, which saves a figure of it.

    Line breaks of a caption do not count; :func:`style.save_figure` has what the four are. Tables are shown with all
    their words.

    Raises
    ------
    BadInput
        Unknown profile.
    """
    use_house_style()
    pandas.set_option("display.max_colwidth", None)

    def publish(fig, name: str, caption: str, alt: str):
        save_figure(fig, figures_dir, name, caption=" ".join(caption.split()), alt=alt)

    return open_run(run_dir, profile, anatomies, seed), publish


def say(text: str):
    """Show a paragraph of Markdown whose numbers were just measured: prose that stays true whatever was trained."""
    from IPython.display import Markdown, display

    display(Markdown(" ".join(text.split())))


@dataclass(frozen=True, eq=False)
class Model:
    """Trained networks, and held-out people with a known truth to try them on; get one from :func:`open_model`.

    Parameters
    ----------
    run
        The run of the chapter.
    weights
        Networks from elsewhere; None: those that the run trained.
    """

    run: Run
    weights: Weights | None = None

    @property
    def name(self) -> str:
        return "the networks of this run" if self.weights is None else "the networks of the release"

    @cached_property
    def recipe(self):
        """Of the held-out people."""
        if self.weights is None:
            return self.run.recipe
        return recipe_of(self.weights, self.run.recipe.anatomies, self.run.seed)

    @property
    def voxel_mm(self) -> float:
        return self.recipe.voxel_mm

    @cached_property
    def vae(self):
        return (self.weights or self.run).vae()

    @cached_property
    def pipeline(self):
        return (self.weights or self.run).pipeline()

    @property
    def steps(self) -> int:
        """From noise to a brain."""
        return self.run.profile.sampling_steps if self.weights is None else self.pipeline.usual_steps

    @cached_property
    def _people(self) -> list[Person]:
        heads = choose_heads(self.weights, self.run.recipe.anatomies).examined
        return list(draw_people(self.recipe, heads, N_PEOPLE))

    @cached_property
    def test(self) -> Slices:
        """Held-out people, scanned on a common scale."""
        return self.run.scans("test") if self.weights is None else joined_people([p.common for p in self._people])

    @cached_property
    def raw(self) -> Slices:
        """The same scans in scanner units, each with a gain of its own."""
        if self.weights is None:
            return self.run.scans("test", common_scale=False)
        return joined_people([p.scanned for p in self._people])

    def inferred(self, slices: Slices, common_scale: bool = True, shown: torch.Tensor | None = None) -> TissueMaps:
        """Maps of people: by the encoder of a run, which knows their protocols, by the release through the physics."""
        if self.weights is None:
            return infer(self.vae, slices, common_scale, shown)[1]
        parts = (found.maps for _, found in explained_people(self.vae, slices, common_scale, shown))
        return TissueMaps(*(torch.cat(maps) for maps in zip(*parts, strict=True)))

    @cached_property
    def truth(self) -> Truth:
        """What those people were simulated from."""
        if self.weights is None:
            return self.run.truth("test")
        parts = [p.truth for p in self._people]
        return Truth(torch.cat([p.maps for p in parts]), torch.cat([p.fractions for p in parts]))

    @cached_property
    def samples(self) -> TissueMaps:
        """Drawn brains ``(n, y, x)``, their heights spread evenly from −1 to 1; drawn once and kept."""
        if self.weights is None:
            return self.run.make_samples()
        folder, settings = self.run.folder / "release_samples", {"weights": self.weights.identity, "n": N_BRAINS}
        settings |= {"seed": self.run.seed, "steps": self.steps}
        if made_with(folder) != settings:
            maps = self.pipeline(N_BRAINS, seed=self.run.seed, num_inference_steps=self.steps)
            with whole_folder(folder, settings) as part:
                save_file({name: m.contiguous() for name, m in maps._asdict().items()}, part / "maps.safetensors")
        return TissueMaps(**load_file(folder / "maps.safetensors"))


def open_model(run: Run, own: bool = False) -> Model:
    """What chapters after 04 show: the networks of the release, or those that the run trained.

    The release where nothing is trained, so that a chapter opens in seconds, and in place of profile laptop, whose half
    hour is for chapters 03 and 04. Other profiles, and runs on real scans, show their ``own``, and all where asked to.
    """
    if run.profile.name == "laptop" and run.common_scale and not own:
        return Model(run, load_weights("release"))
    try:
        run.vae(), run.pipeline()
    except MissingResult:
        return Model(run, load_weights("release"))
    return Model(run)


def release_beside(run: Run) -> Model | None:
    """The release, to show beside a run's networks; None, with a reason printed, where there is nothing to compare."""
    if run.profile.name == "smoke":
        print("profile smoke learns nothing: it is not compared with the release")
        return None
    try:
        return Model(run, load_weights("release"))
    except BadInput as error:
        print(f"no comparison with the release: {error}")
        return None


def joined_people(people: list[Slices]) -> Slices:
    """Slices of several people as one set, people counted from 0."""
    fields = ("images", "settings", "observed", "position")
    joined = {name: torch.cat([getattr(person, name) for person in people]) for name in fields}
    subject = torch.cat([torch.full((len(person),), i) for i, person in enumerate(people)])
    return replace(people[0], **joined, subject=subject, layers=None)


def kept_evaluation(run: Run) -> pandas.DataFrame | None:
    """What ``phyldm evaluate`` found: of the run, else of the release; None where neither was evaluated.

    An attribute ``of`` of the table says whose it is.
    """
    for path, of in (
        (run.folder / "evaluation" / "metrics.csv", "this run"),
        (RELEASE_FOLDER / "metrics.csv", "the release"),
    ):
        if path.exists():
            table = pandas.read_csv(path)
            table = table[table.table == "evaluation"].drop(columns="table") if "table" in table else table
            if len(table):
                table = table.assign(**{key: table[key].astype(object).fillna("") for key in ("quantity", "tissue")})
                table.attrs["of"] = of
                return table
    return None
