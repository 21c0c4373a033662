"""How honest a trained VAE's SD is, measured on people made from the validation heads, whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..calibration import LEVEL, calibrate, calibrate_local
from ..people import open_field
from ..people.cohort import CohortRecipe, Subject
from ..people.held_out import FIRST, draw_people, session_of
from ..slices import Slices, Truth
from ..vae import PoEVAE

N_CALIBRATED = 5
"""People who tell what the SD of the posterior misses."""

N_SESSIONS = 24
"""Of random protocols, which tell what the SD of explained maps is to be multiplied by."""


def measure_sd(vae: PoEVAE, recipe: CohortRecipe, own: CohortRecipe, seed: int) -> dict:
    """What :data:`calibration.NAME` holds: level, people, heads, and the numbers of both calibrations.

    Parameters
    ----------
    recipe, own
        Of the run's people and of those that the VAE learned from, made from the same heads.
    seed
        Of the protocols.
    """
    heads = tuple(dict.fromkeys(p.head for p in recipe.subjects() if p.split == "val"))
    people = list(draw_people(recipe, heads, N_CALIBRATED, 3 * FIRST))
    said = {"level": LEVEL, "people": N_CALIBRATED, "heads": list(heads), "of": "simulated people, truth known"}
    return said | calibrate(vae, people) | {"explained": calibrate_local(vae, random_sessions(own, heads, seed))}


def random_sessions(recipe: CohortRecipe, heads: tuple[str, ...], seed: int) -> list[tuple[Slices, Truth]]:
    """Sessions of the open field of people from ``heads``, who differ as those of ``recipe`` do."""
    rng, sessions = np.random.default_rng(seed), []
    recipe = replace(recipe, n_slices=2, slice_mm=max(recipe.slice_mm, 2 * recipe.voxel_mm))
    for i in range(N_SESSIONS):
        subject = Subject(f"sub-{i + 1:04d}", "test", heads[i * len(heads) // N_SESSIONS], 5 * FIRST + i)
        slices, truth, _ = session_of(subject, recipe, open_field.draw_session(rng))
        sessions.append((slices, truth))
    return sessions
