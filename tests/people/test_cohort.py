"""A cohort is what its recipe says: the people, the scans they could have had, and the truth behind them."""

from __future__ import annotations

import errno
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from test_anatomy import synthetic_head

from phyldm_core.machine import shards
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import anatomy, cohort
from phyldm_core.people.cohort import CohortRecipe, load_scans, load_truth, make_cohort, participants, simulate
from phyldm_core.people.open_field import N_OPEN
from phyldm_core.physics import Protocol, TissueMaps, effective_te, render
from phyldm_core.scans import bids
from phyldm_core.scans.oasis3 import SESSION_CONTRASTS
from phyldm_core.slices import LAYERS, MODALITIES, SPLITS

TINY = CohortRecipe(n_train=3, n_val=1, n_test=1, voxel_mm=6, slice_mm=6, shape=(32, 32), n_slices=2)
SILENT = replace(TINY, noise=(0.0, 0.0), bias=0.0)
FINE = replace(SILENT, voxel_mm=2, slice_mm=4, shape=(96, 80))
OPEN = replace(TINY, open_field=True, head=True, spread=2.0, n_train=1)


class InThisProcess(ThreadPoolExecutor):
    """The cohort's worker processes as threads: 5 s of imports less per cohort."""

    def __init__(self, n_workers, mp_context=None, **kwargs):
        super().__init__(n_workers, **kwargs)


@pytest.fixture(scope="module")
def load_once():
    """Recipes that differ in a seed share the head."""
    return lru_cache(maxsize=3)(anatomy.load_anatomy)


@pytest.fixture(autouse=True)
def workers_in_this_process(monkeypatch, load_once):
    monkeypatch.setattr(shards, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(cohort, "load_anatomy", load_once)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """The folder of a recipe's cohort, made once."""

    @cache
    def of(recipe):
        folder = tmp_path_factory.mktemp("cohorts") / "cohort"
        for _ in make_cohort(recipe, folder):
            pass
        return folder

    return of


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three label maps."""
    folder = tmp_path_factory.mktemp("heads")
    labels, affine = synthetic_head(size=64, voxel_mm=3)
    for name in ("a", "b", "c"):
        nibabel.Nifti1Image(labels, affine).to_filename(folder / f"{name}.nii.gz")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def gains(folder: Path, split: str) -> torch.Tensor:
    """``(people, m)``"""
    people = participants(folder)
    files = (
        folder / f"derivatives/truth/{n}/anat/{n}_gains.json" for n in people.participant_id[people.split == split]
    )
    return torch.tensor([[json.loads(file.read_text())[m] for m in MODALITIES] for file in files])


def rendered(folder: Path, split: str) -> torch.Tensor:
    """``(n, m, y, x)``: what the physics makes of the truth with the protocols as read back; 0 where no scan is.

    A voxel of several tissues is another matter: their signals add.
    """
    slices, truth = load_scans(folder, split), load_truth(folder, split)
    images = torch.zeros_like(slices.images)
    for i, m in slices.observed.nonzero():
        images[i, m] = render(TissueMaps.from_stack(truth.maps[i]), Protocol.from_settings(slices.settings[i, m]))
    return images


# --- the recipe decides ---------------------------------------------------------------------------


def test_equal_recipes_give_equal_bytes_in_any_number_of_processes(smoke_run, make):
    assert smoke_run.recipe not in (TINY, SILENT)
    one, other = content(smoke_run.cohort_folder), content(make(smoke_run.recipe))
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_another_seed_makes_other_people(make):
    one, other = (load_truth(make(replace(SILENT, seed=seed)), "train").maps for seed in (1, 2))
    inside = (one[:, 0] > 0) & (other[:, 0] > 0)
    assert ((one - other).abs().amax(1)[inside] > 0).float().mean() > 0.99


def test_people_of_one_cohort_differ(make):
    maps = load_truth(make(SILENT), "train").maps.unflatten(0, (3, 2))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (maps[a] - maps[b]).abs().mean() > 0.02


def test_nobody_is_in_two_splits(make):
    people = participants(make(TINY))
    assert people.participant_id.is_unique
    assert people.split.value_counts().to_dict() == {"train": 3, "val": 1, "test": 1}


def test_no_head_of_the_test_set_is_seen_in_training(heads, make, tmp_path):
    recipe = replace(TINY, anatomies=str(heads), n_train=4, n_val=2, n_test=3, test_anatomies=1)
    used = {split: {s.head for s in recipe.subjects() if s.split == split} for split in SPLITS}
    assert used == {"train": {"a.nii.gz", "b.nii.gz"}, "val": {"a.nii.gz", "b.nii.gz"}, "test": {"c.nii.gz"}}
    apart = replace(recipe, val_anatomies=1)
    used = {split: {s.head for s in apart.subjects() if s.split == split} for split in SPLITS}
    assert used == {"train": {"a.nii.gz"}, "val": {"b.nii.gz"}, "test": {"c.nii.gz"}}
    more = tmp_path / "more"
    more.mkdir()
    for name in ("a.nii.gz", "z.nii.gz"):
        shutil.copy(heads / "a.nii.gz", more / name)
    several = replace(apart, anatomies=(str(heads), str(more)), n_train=6)  # further folders only train
    used_then = {split: {s.head for s in several.subjects() if s.split == split} for split in SPLITS}
    assert used_then == used | {"train": {"a.nii.gz", "more/a.nii.gz", "more/z.nii.gz"}}
    with pytest.raises(BadInput, match="holds 2 heads, too few for 3 to test on"):
        replace(several, anatomies=(str(more), str(heads)), test_anatomies=2).subjects()
    people = participants(make(replace(apart, n_train=1, n_val=1, n_test=1)))
    assert dict(zip(people.split, people.anatomy, strict=True)) == {s: used[s].pop() for s in SPLITS}


# --- the scans ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_without_noise_and_bias_scans_of_one_tissue_are_the_rendered_truth(make, split):
    folder = make(FINE)
    truth, images, expected = load_truth(folder, split), load_scans(folder, split).images, rendered(folder, split)
    air = truth.fractions.sum(1) == 0
    assert (images.amax(1)[air & (expected.amax(1) == 0)] == 0).all()
    for name in ("WM", "CSF"):
        pure = truth.tissue(name, 0.99)[:, None].expand_as(images)
        assert pure.sum() > 50
        torch.testing.assert_close(images[pure], expected[pure], rtol=0.02, atol=0.015)  # a hundredth is another's


def test_scanner_units_differ_from_the_common_scale_by_one_gain_per_scan(make):
    common, raw = (load_scans(make(TINY), "test", common_scale=c).images for c in (True, False))
    gain = gains(make(TINY), "test")
    assert ((gain >= 200) & (gain <= 2000)).all()
    assert len(gain.unique()) == 3
    torch.testing.assert_close(raw, common * gain.float()[0, :, None, None], rtol=1e-5, atol=1e-3)


def test_a_t2w_keeps_its_nominal_echo_time_and_is_rendered_with_the_effective_one(make):
    folder = make(SILENT)
    people = participants(folder)
    name = people.participant_id[people.split == "test"].item()
    nominal = json.loads((folder / name / "anat" / f"{name}_T2w.json").read_text())["EchoTime"]
    used = load_scans(folder, "test").settings[0, MODALITIES.index("T2w"), 1].item()
    assert nominal > 0.3  # a variable-flip-angle train, as nearly all of OASIS-3
    assert used == pytest.approx(effective_te(nominal, "spin echo"))
    assert used < 0.15


def test_noise_is_rician_and_as_strong_as_asked(make):
    recipe = replace(TINY, shape=(64, 64), noise=(0.03, 0.03), bias=0.0)
    images, clean = (load_scans(make(replace(recipe, **more)), "test").images for more in ({}, {"noise": (0.0, 0.0)}))
    air = clean.amax(1) == 0
    assert air.float().mean() > 0.3
    for m in range(3):
        sd = 0.03 * torch.quantile(clean[:, m].flatten()[::7], 0.99).item()  # every 7th voxel is enough for the recipe
        floor = images[:, m][air]
        assert floor.mean() == pytest.approx(math.sqrt(math.pi / 2) * sd, rel=0.05)  # Rayleigh
        assert floor.std() == pytest.approx(math.sqrt(2 - math.pi / 2) * sd, rel=0.05)
        bright = clean[:, m] > 10 * sd
        excess = (images - clean)[:, m][bright]
        assert excess.std() == pytest.approx(sd, rel=0.1)
        assert excess.mean().abs() < 0.3 * sd


def test_the_receive_field_is_smooth_shared_by_a_person_s_scans_and_as_strong_as_asked(make):
    recipe = replace(SILENT, n_test=4, n_train=1)
    images, clean = (load_scans(make(replace(recipe, bias=bias)), "test").images for bias in (0.1, 0.0))
    inside = clean.amin(1) > 0.02
    logs = (images / clean.clamp_min(1e-6)).log()
    assert (logs[:, 0] - logs[:, 1])[inside].abs().max() < 1e-3
    steps = (logs[:, 0, 1:] - logs[:, 0, :-1])[inside[:, 1:] & inside[:, :-1]]
    assert steps.std() < 0.5 * logs[:, 0][inside].std()
    assert 0.05 < logs[:, 0][inside].std() < 0.2


def test_contrasts_are_missing_as_often_as_in_oasis3():
    rng = np.random.default_rng(0)
    n, total = 4000, sum(SESSION_CONTRASTS.values())
    sessions = [CohortRecipe().draw_session(rng, complete=False) for _ in range(n)]
    for held, count in SESSION_CONTRASTS.items():
        expected = count / total
        drawn = sum(tuple(m for m, p in zip(MODALITIES, s, strict=True) if p) == held for s in sessions) / n
        assert drawn == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n)), held
    assert all(p is not None for p in CohortRecipe().draw_session(rng, complete=True))


def test_a_missing_scan_is_zero_and_known_to_be_missing(smoke_run):
    slices = smoke_run.scans("train")
    assert slices.observed[:, 0].all()  # every session has a T1w
    assert not slices.observed.all()
    for part in (slices.images, slices.settings):
        assert (part[~slices.observed] == 0).all()
    assert (slices.images[slices.observed].amax((1, 2)) > 0.1).all()


def test_every_test_person_has_all_three_contrasts(smoke_run):
    assert smoke_run.scans("test").observed.all()


def test_slices_know_whose_they_are_and_how_high(smoke_run):
    slices = smoke_run.scans("train")
    assert slices.subject.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert slices.position.tolist() == [-1.0, 1.0] * 4
    some = slices[slices.subject == 2]
    assert len(some) == 2
    torch.testing.assert_close(some.images, slices.images[4:6])


# --- the truth ------------------------------------------------------------------------------------


def test_truth_is_zero_in_air_and_physiological_in_tissue(smoke_run):
    truth = smoke_run.truth("train")
    pd, t1, t2 = truth.maps.unbind(1)
    air = pd == 0
    assert 0.2 < air.float().mean() < 0.8
    assert t1[air].abs().max() == t2[air].abs().max() == 0
    assert pd.max() <= 1  # relative to water
    assert ((t1 > t2) & (t2 > 0.02) & (t1 < 6))[~air].all()
    assert truth.fractions.min() >= 0 and truth.fractions.sum(1).max() <= 1 + 1e-4


def test_pure_tissue_has_the_tissue_s_values(make):
    truth = load_truth(make(replace(TINY, shape=(64, 64), voxel_mm=3)), "train")
    medians = {
        name: truth.maps.permute(0, 2, 3, 1)[truth.tissue(name)].median(0).values for name in ("WM", "GM", "CSF")
    }
    assert medians["WM"][0] < medians["GM"][0] < medians["CSF"][0]
    assert medians["WM"][1] < medians["GM"][1] < medians["CSF"][1]
    assert medians["WM"][1] == pytest.approx(0.92, rel=0.15)
    assert medians["GM"][1] == pytest.approx(1.44, rel=0.15)
    assert truth.brain[truth.tissue("GM")].all()


def test_lesions_replace_white_matter(make):
    healthy, ill = (load_truth(make(replace(SILENT, lesions=p)), "train") for p in (0.0, 1.0))
    lost = healthy.fractions - ill.fractions
    assert lost[:, 0].max() > 0.5  # WM
    assert lost[:, 0].min() > -1e-4
    torch.testing.assert_close(healthy.fractions[:, 1:], ill.fractions[:, 1:])
    where = lost[:, 0] > 0.5
    assert (ill.maps[:, 1][where] > healthy.maps[:, 1][where]).float().mean() > 0.9  # T1 is longer


def test_scans_and_maps_lie_in_the_same_place(make):
    folder = make(TINY)
    files = [f for f in folder.rglob("*.nii.gz") if "sub-0001" in f.name]
    assert len(files) >= 5
    for file in files:
        image = nibabel.load(file)
        assert image.shape[:3] == (32, 32, 2)
        np.testing.assert_allclose(image.affine, [[6, 0, 0, -93], [0, 6, 0, -93], [0, 0, 6, -3], [0, 0, 0, 1]])


@pytest.mark.parametrize("recipe", [replace(SILENT, spread=4.0, texture=0.2), OPEN], ids=["brain", "head"])
def test_nobody_has_more_water_than_water(make, recipe):
    """However much people differ, and their tissue within itself."""
    pd = load_truth(make(recipe), "train").maps[:, 0]
    assert 0.9 < pd.max() <= 1


# --- the open field -------------------------------------------------------------------------------


def test_a_person_of_the_open_field_has_the_archive_s_contrasts_and_scans_of_any_protocol(make):
    slices = load_scans(make(OPEN), "train")
    assert slices.images.shape == (2, len(MODALITIES) + N_OPEN, 32, 32)
    assert slices.settings.shape == (2, len(MODALITIES) + N_OPEN, 6)
    assert slices.observed.all()
    protocols = [Protocol.from_settings(settings) for settings in slices.settings[0]]  # all of them can be run
    assert len({str(protocol) for protocol in protocols}) == len(protocols)
    assert (slices.images.amax((0, 2, 3)) > 0.02).all()


def test_layers_are_the_brain_and_what_surrounds_it(make):
    slices, truth = load_scans(make(OPEN), "train"), load_truth(make(OPEN), "train")
    air, brain, *_ = (slices.layers == number for number in range(len(LAYERS)))
    assert brain[truth.brain].float().mean() > 0.99
    assert (truth.maps[:, 0][air] < 0.6).all()
    assert all(layer.float().mean() > 0.02 for layer in (air, brain))
    assert load_scans(make(TINY), "train").layers is None


def test_one_person_may_be_scanned_with_other_protocols():
    """The truth is the same, and so is the scan that both sessions hold."""
    subject = SILENT.subjects()[0]
    usual, longer = (Protocol("FLAIR", te=0.01, tr=6.0, ti=ti) for ti in (0.4, 2.0))
    one, two = (simulate(subject, SILENT, protocols) for protocols in ([usual], [usual, longer]))
    own = simulate(subject, SILENT)
    assert one.nominal == [usual] and two.nominal == [usual, longer]
    assert one.images.shape[1] == 1 and two.images.shape[1] == 2
    for other in (two, own):
        torch.testing.assert_close(other.maps, one.maps, rtol=0, atol=0)
        torch.testing.assert_close(other.fractions, one.fractions, rtol=0, atol=0)
    scans = [person.images[:, 0] / person.gains[0] for person in (one, two)]
    torch.testing.assert_close(*scans, rtol=1e-4, atol=1e-6)


# --- making, remaking, and being interrupted ------------------------------------------------------


def test_a_cohort_that_is_there_is_left_alone(make):
    folder = make(TINY)
    before = times(folder)
    assert list(make_cohort(TINY, folder)) == []
    assert times(folder) == before


def test_a_killed_run_goes_on_with_the_next_person(tmp_path, make):
    recipe = replace(TINY, n_train=9)
    folder = tmp_path / "cohort"
    for done in make_cohort(recipe, folder, n_workers=1):
        assert done == 4
        break  # closes the generator, as Ctrl-C in a notebook does
    assert not folder.exists()
    [half] = tmp_path.iterdir()
    before = times(half)
    assert list(make_cohort(recipe, folder, n_workers=1))[-1] == 11
    after = times(folder)
    finished = [name for name in before if name.endswith("_gains.json")]
    assert 4 <= len(finished) < 11
    assert all(after[name] == before[name] for name in before if "sub-" in name and "recipe" not in name)
    assert list(tmp_path.iterdir()) == [folder]
    assert content(folder) == content(make(recipe))


def test_a_person_half_written_is_made_again(tmp_path, make, monkeypatch):
    """The disk fills up while the last file of a person is written."""

    def full(source, target, write=bids.os.replace):
        if str(target).endswith("sub-0002_gains.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(source, target)

    folder = tmp_path / "cohort"
    with monkeypatch.context() as patch:
        patch.setattr(bids.os, "replace", full)
        with pytest.raises(BadInput, match="sub-0002_gains.json: cannot write .No space left on device."):
            list(make_cohort(TINY, folder))
    assert not folder.exists()
    list(make_cohort(TINY, folder))
    assert content(folder) == content(make(TINY))


def test_another_recipe_replaces_a_cohort_only_when_it_is_complete(tmp_path, make):
    folder = tmp_path / "cohort"
    shutil.copytree(make(TINY), folder)
    before = content(folder)
    changed = replace(TINY, seed=3, n_train=9)
    for _ in make_cohort(changed, folder, n_workers=1):
        break
    assert content(folder) == before
    for _ in make_cohort(replace(changed, seed=4), folder, n_workers=1):  # a third recipe uses nothing of the second
        break
    assert content(folder) == before
    list(make_cohort(changed, folder))
    assert content(folder) == content(make(changed))
    assert list(tmp_path.iterdir()) == [folder]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput) as caught:
        list(make_cohort(TINY, tmp_path / "file" / "cohort"))
    assert "file" in str(caught.value) and "cannot write" in str(caught.value) and "\n" not in str(caught.value)


def test_heads_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "notes.nii").write_text("not an image")
    with pytest.raises(BadInput, match="notes.nii cannot be read"):
        list(make_cohort(replace(TINY, anatomies=str(tmp_path)), tmp_path / "cohort"))
    assert not (tmp_path / "cohort").exists()


def test_a_folder_without_a_cohort_says_where_one_comes_from(tmp_path):
    with pytest.raises(BadInput, match="is not a cohort.*03_train_vae"):
        load_scans(tmp_path, "train")


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text('{"n_train": ')
    with pytest.raises(BadInput, match="recipe.json: not a readable JSON file.*remove the cohort and make it again"):
        list(make_cohort(TINY, tmp_path))
