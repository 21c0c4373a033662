"""The weights that come with the repository: small, whole, honest about their heads, and right on heads never seen."""

from __future__ import annotations

import pytest

from phyldm_core.held_out import choose_heads, draw_people, recipe_of
from phyldm_core.inference import infer
from phyldm_core.physics import TissueMaps
from phyldm_core.weights import RELEASE, load_weights

MB = 10**6


@pytest.fixture(scope="module")
def release():
    return load_weights("release")


def test_it_can_be_carried_by_a_repository(release):
    sizes = [path.stat().st_size for path in RELEASE.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * MB and sum(sizes) <= 40 * MB


def test_it_knows_whole_heads_at_a_millimetre_and_says_whose(release):
    assert (release.voxel_mm, release.shape, release.head) == (1.0, (224, 160), True)
    heads = release.training["heads"]
    assert [len(heads[split]) for split in ("train", "val", "test")] == [10, 2, 3]
    assert len({head for split in heads.values() for head in split}) == 15


def test_it_is_right_on_a_head_it_never_saw(release, shared_data):
    heads = shared_data / "synthseg_labels"
    examined = choose_heads(release, heads).examined
    assert [name[-9:-7] for name in examined] == ["13", "14", "15"]
    (person,) = draw_people(recipe_of(release, heads, 0), examined, 1)
    maps, truth = infer(release.vae(), person.common)[1], TissueMaps.from_stack(person.truth.maps)
    for name in ("WM", "GM"):
        where = person.truth.tissue(name)
        errors = [float(((ours - true) / true)[where].abs().median()) for ours, true in zip(maps, truth, strict=True)]
        assert all(error < 0.1 for error in errors), (name, errors)
