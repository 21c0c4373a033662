"""The weights that come with the repository: small, whole, honest about their heads, and right on heads never seen."""

from __future__ import annotations

import numpy as np
import pytest

from phyldm_core.inference import explain
from phyldm_core.people.held_out import choose_heads, draw_people, recipe_of
from phyldm_core.people.segmentation import segmented_values
from phyldm_core.physics import TissueMaps
from phyldm_core.weights import RELEASE_FOLDER, load_weights

MB = 10**6


@pytest.fixture(scope="module")
def release():
    return load_weights("release")


def test_it_can_be_carried_by_a_repository(release):
    sizes = [path.stat().st_size for path in RELEASE_FOLDER.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * MB and sum(sizes) <= 40 * MB


def test_it_knows_whole_heads_at_a_millimetre_and_says_whose(release):
    assert (release.voxel_mm, release.shape, release.head) == (1.0, (224, 160), True)
    heads = release.training["heads"]
    assert [len(heads[split]) for split in ("train", "val", "test")] == [58, 2, 3]
    assert len({head for split in heads.values() for head in split}) == 63


def test_it_is_right_on_a_head_it_never_saw(release, shared_data):
    heads = shared_data / "synthseg_labels"
    examined = choose_heads(release, heads).examined
    assert [name[-9:-7] for name in examined] == ["13", "14", "15"]
    (person,) = draw_people(recipe_of(release, heads, 0), examined, 1)
    maps, truth = explain(release.vae(), person.scanned).maps, TissueMaps.from_stack(person.truth.maps)
    for name in ("WM", "GM"):
        where = person.truth.tissue(name)
        errors = [float(((ours - true) / true)[where].abs().median()) for ours, true in zip(maps, truth, strict=True)]
        assert all(error < 0.1 for error in errors), (name, errors)


def test_it_draws_tissue_that_relaxes_like_tissue(release):
    maps = release.pipeline()(4, seed=7, num_inference_steps=10)
    assert maps.pd.shape == (4, 224, 160)
    medians = {key: float(np.median(values)) for key, values in segmented_values(maps).items()}
    assert 0.8 < medians["WM", "T1"] < 1.2 < medians["GM", "T1"] < 1.7 and medians["CSF", "T1"] > 2
    assert 0.06 < medians["WM", "T2"] < 0.1


def test_its_card_says_how_its_drawn_slices_look(release):
    card = (release.folder / "README.md").read_text(encoding="utf-8")
    assert "Fréchet distance, over that of two halves of true people" in card and "one closed ring" in card
