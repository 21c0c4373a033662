"""Whom the explorers show: what a run has, and a simulated person where it has nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from phyldm_core.explorers import people
from phyldm_core.explorers.people import SHARP, TissueStack, find_subjects, of_maps, read_samples, weights_of
from phyldm_core.inference import infer
from phyldm_core.machine.errors import BadInput
from phyldm_core.machine.files import to_json
from phyldm_core.people import cohort
from phyldm_core.physics import TissueMaps

MAPS = TissueMaps(*(torch.full((3, 5, 4), v) for v in (0.7, 1.0, 0.1)))


@pytest.fixture
def run_dir(tmp_path):
    samples = tmp_path / "run" / "samples"
    samples.mkdir(parents=True)
    save_file(MAPS._asdict(), samples / "maps.safetensors")
    made = {"pipeline": {"composition": {"vae": {"cohort": {"voxel_mm": 1.5, "slice_mm": 4.0}}}}}
    (samples / "made_with.json").write_bytes(to_json(made))
    return tmp_path / "run"


def test_a_stack_lies_about_the_origin():
    person = of_maps(MAPS, (2.0, 1.0), 3.0)
    assert person.voxel_mm == (3.0, 2.0, 1.0)
    middle = person.affine @ [(4 - 1) / 2, (5 - 1) / 2, (3 - 1) / 2, 1]
    np.testing.assert_allclose(middle, [0, 0, 0, 1])
    assert of_maps(TissueMaps(*(m[0] for m in MAPS))).maps.pd.shape == (1, 5, 4)


def test_times_without_protons_become_zero():
    maps = TissueMaps(*(m.clone() for m in MAPS))
    maps.pd[0], maps.t1[0] = 0, float("nan")
    assert of_maps(maps).maps.t1[0].max() == 0


def test_where_nothing_is_a_person_is_simulated_only_when_asked_for(tmp_path):
    found = find_subjects(tmp_path / "nowhere", tmp_path / "no weights", seed=3)
    assert list(found) == [SHARP, "simulated, seed 3"]
    shares = []
    person = found["simulated, seed 3"](shares.append)
    assert person.maps.pd.shape == (8, 112, 80) and person.voxel_mm == (2.0, 2.0, 2.0)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_the_first_to_be_shown_is_as_sharp_as_the_template(tmp_path):
    first = next(iter(find_subjects(tmp_path / "nowhere", tmp_path / "no weights").values()))
    person = first(lambda share: None)
    assert person.voxel_mm == (1.0, 1.0, 1.0) and person.maps.pd.shape[1:] == (224, 160)


def test_a_run_s_brains_come_after_the_sharp_ones_then_its_people(run_dir, tmp_path):
    (run_dir / "cohort" / "derivatives" / "truth" / "sub-0001").mkdir(parents=True)
    found = find_subjects(run_dir, tmp_path / "no weights")
    assert list(found) == [SHARP] + [f"generated brain {k}" for k in (1, 2, 3)] + [
        "simulated sub-0001, held out", "simulated, seed 7"
    ]  # fmt: skip
    assert found["generated brain 2"].voxel_mm == (4.0, 1.5, 1.5)


def test_weights_to_give_away_draw_where_the_run_does_not(run_dir, tmp_path):
    weights = tmp_path / "release"
    weights.mkdir()  # holding a VAE only, they cannot draw anybody
    assert list(find_subjects(run_dir, weights))[:2] == [SHARP, "generated brain 1"]
    assert weights_of(run_dir, weights) == run_dir
    (weights / "pipeline").mkdir()
    assert list(find_subjects(run_dir, weights))[1] == "drawn, seed 7"  # before the run's own, which are not as sharp
    assert list(find_subjects(tmp_path / "nowhere", weights))[1] == "drawn, seed 7"
    assert weights_of(run_dir, weights) == weights
    (run_dir / "pipeline").mkdir()
    assert weights_of(run_dir, weights) == run_dir
    assert weights_of(run_dir, tmp_path / "no weights") == run_dir


def is_told(found, what: str):
    """One sentence stands for what is not there: where it is damaged, and what to do."""
    assert isinstance(found, BadInput) and what in str(found) and "\n" not in str(found)
    return str(found)


@pytest.mark.parametrize("broken", ["maps.safetensors", "made_with.json", "NaN", "shapes", "axes"])
def test_samples_that_cannot_be_read_give_one_sentence_and_leave_the_others(run_dir, tmp_path, broken):
    samples = run_dir / "samples"
    if broken in ("maps.safetensors", "made_with.json"):
        (samples / broken).write_text("{}")
    else:
        t1 = {"NaN": torch.full_like(MAPS.t1, torch.nan), "shapes": MAPS.t1[1:], "axes": MAPS.t1}[broken]
        maps = {name: m[0] if broken == "axes" else m for name, m in MAPS._replace(t1=t1)._asdict().items()}
        save_file({name: m.clone() for name, m in maps.items()}, samples / "maps.safetensors")
    found = find_subjects(run_dir, tmp_path / "no weights")
    said = is_told(found["generated brains"], "run notebook 05_sample_tissue again")
    assert str(samples) in said
    assert list(found) == [SHARP, "generated brains", "simulated, seed 7"]
    others = people.find_populations(run_dir)
    assert list(others) == ["generated"] and str(others["generated"]) == said


@pytest.fixture
def damaged(smoke_run, tmp_path):
    return shutil.copytree(smoke_run.folder, tmp_path / "damaged", ignore=shutil.ignore_patterns("samples"))


@pytest.mark.parametrize("part", ["a map", "a missing map", "people", "nobody", "recipe"])
def test_a_damaged_truth_gives_one_sentence_and_leaves_the_others(damaged, part):
    cohort_folder = damaged / "cohort"
    one = next((cohort_folder / "derivatives" / "truth").glob(f"{last_person(cohort_folder)}/anat/*_T1map.nii.gz"))
    table = cohort_folder / "participants.tsv"
    if part == "a map":
        one.write_bytes(one.read_bytes()[:-200])
    elif part == "a missing map":
        one.unlink()
    elif part == "people":
        table.write_bytes(b"\x1f\x8b not a table")
    elif part == "nobody":
        table.write_text(table.read_text().splitlines()[0] + "\n")
    else:
        (cohort_folder / "recipe.json").write_text("{")
    found = people.find_populations(damaged)
    said = is_told(found["true"], str(cohort_folder))
    assert part == "recipe" or "make it again (notebook 03_train_vae)" in said
    if part != "recipe":
        assert callable(found["inferred"])


def last_person(folder) -> str:
    return cohort.participants(folder).participant_id.iloc[-1]


def test_a_brain_is_drawn_from_a_seed_with_progress(smoke_run):
    shares = []
    person = people.draw_from(smoke_run.folder, 2, shares.append)
    again = people.draw_from(smoke_run.folder, 2)
    assert isinstance(person, TissueStack) and shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert torch.equal(person.maps.t1, again.maps.t1)


def test_populations_of_a_run_are_its_truth_its_brains_and_what_is_inferred(smoke_run):
    smoke_run.make_samples()
    found = people.find_populations(smoke_run.folder)
    assert list(found) == ["true", "generated", "inferred"]
    assert torch.equal(found["true"].t1, smoke_run.truth("test").maps[:, 1])
    assert torch.equal(found["generated"].pd, read_samples(smoke_run.folder / "samples")[0].pd)
    shares = []
    inferred = found["inferred"](shares.append)
    assert shares == [0, 0.5]
    whole = infer(smoke_run.vae(), cohort.load_scans(smoke_run.cohort_folder, "test", True))[1]
    torch.testing.assert_close(inferred.t1, whole.t1, rtol=1e-4, atol=1e-5)


def test_without_a_run_one_simulated_person_is_all_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(people, "simulate_person", lambda seed: of_maps(MAPS))
    assert list(people.find_populations(tmp_path)) == ["simulated"]
