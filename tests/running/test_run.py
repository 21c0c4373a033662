"""A run makes each part once, makes it again only when asked for something else, and never takes half for whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch

from phyldm_core import inference
from phyldm_core.inference import infer
from phyldm_core.machine.errors import BadInput
from phyldm_core.people.cohort import participants
from phyldm_core.physics import TissueMaps
from phyldm_core.running import latents as latents_module
from phyldm_core.running import run as module
from phyldm_core.running.export import export_weights
from phyldm_core.running.latents import BENT, apart, composed, csf_quantiles, explained_people, joined, latents
from phyldm_core.running.profiles import SMOKE, find_profile
from phyldm_core.running.run import MissingResult, Run, open_run, reopen
from phyldm_core.slices import brightness
from phyldm_core.vae import PoEVAE
from phyldm_core.voxelwise.shares import compose_scans
from phyldm_core.weights import load_weights


@pytest.fixture
def copy(smoke_run, tmp_path) -> Run:
    """The complete run in a folder of the test's own."""
    shutil.copytree(smoke_run.folder, tmp_path / "run")
    return replace(smoke_run, folder=tmp_path / "run")


def files(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def test_a_folder_is_enough_to_open_a_run_again(smoke_run, tmp_path):
    assert module.reopen(smoke_run.folder) == smoke_run
    with pytest.raises(MissingResult, match="holds no VAE of a known profile"):
        module.reopen(tmp_path)


# --- whole ----------------------------------------------------------------------------------------


def test_a_run_leaves_what_later_chapters_need(copy):
    train, truth = copy.scans("train"), copy.truth("train")
    assert train.images.shape == truth.maps.shape == (8, 3, *SMOKE.cohort.shape)
    maps = copy.make_samples()
    assert isinstance(maps, TissueMaps)
    assert maps.pd.shape == (SMOKE.n_samples, *SMOKE.cohort.shape)
    assert all((m > 0).all() and torch.isfinite(m).all() for m in maps)
    parts = ["cohort", "composition", "config.json", "pipeline", "samples", "training.json", "vae"]
    assert sorted(p.name for p in copy.folder.iterdir()) == parts
    assert not [f for f in copy.folder.rglob("*") if f.suffix in (".pt", ".bin", ".pkl", ".part")]


def test_the_second_time_nothing_is_made(copy):
    copy.make_samples()
    before = files(copy.folder)
    for part in (copy.make_cohort, copy.train_vae, copy.train_composition, copy.train_diffusion):
        assert list(part()) == []
    copy.make_samples()
    assert files(copy.folder) == before


def test_samples_are_those_of_the_pipeline_and_the_seed(copy):
    kept = copy.make_samples()
    drawn = copy.pipeline()(SMOKE.n_samples, seed=copy.seed, num_inference_steps=SMOKE.sampling_steps)
    torch.testing.assert_close(kept.stack(), drawn.stack())


def test_the_pipeline_decodes_with_the_run_s_composition_autoencoder(smoke_run):
    parts = smoke_run.composition(), smoke_run.pipeline().decoder
    for a, b in zip(*(part.parameters() for part in parts), strict=True):
        torch.testing.assert_close(a.half().float(), b, rtol=0, atol=0)  # kept in half precision


def test_slices_that_are_almost_one_are_not_trained_on_twice(smoke_run):
    slices = smoke_run.scans("train")
    assert torch.equal(apart(slices, slice_mm=6.0), torch.arange(len(slices)))
    rows = apart(slices, slice_mm=1.0)  # two a person here: the lower one of the first, the upper of the second …
    assert slices.subject[rows].tolist() == slices.subject.unique().tolist()
    assert slices.position[rows].tolist() == [-1, 1, -1, 1]


def test_mirror_images_are_drawn_from_too(smoke_run):
    composed, latents = smoke_run.compositions("train"), smoke_run.drawn_latents("train")
    n = len(composed.shares)
    assert len(latents) == 2 * n * (1 + BENT)
    assert torch.equal(latents.conditions[:n], latents.conditions[n : 2 * n])
    k = smoke_run.composition().config.latent_channels
    texture = (latents.values * latents.scale[:, None, None] + latents.mean[:, None, None])[:, k : k + 12]
    here, there = (torch.nn.functional.pixel_shuffle(part, 2) for part in texture[: 2 * n].split(n))
    torch.testing.assert_close(here, there.flip(-1), atol=1e-5, rtol=1e-3)


def test_a_given_vae_is_taken_and_not_trained(smoke_run, tmp_path):
    given = export_weights(smoke_run, tmp_path / "weights")
    run = open_run(tmp_path / "run", "smoke", seed=8, given=given)
    shutil.copytree(smoke_run.cohort_folder, run.cohort_folder)
    assert list(run.train_vae()) == []
    for a, b in zip(run.vae().parameters(), smoke_run.vae().parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(list(run.train_composition())) == SMOKE.composition_schedule.steps
    assert len(list(run.train_diffusion())) == SMOKE.diffusion_schedule.steps
    trained = load_weights(run.folder)
    assert trained.training["vae"]["seed"] == smoke_run.seed  # the record is the given one's
    assert trained.training["heads"] == given.training["heads"]
    assert reopen(run.folder).pipeline().config == run.pipeline().config
    with pytest.raises(BadInput, match="its VAE knows slices of 6 mm of the brain alone, profile release has others"):
        open_run(tmp_path / "other", "release", given=given)


def test_people_whom_the_vae_does_not_know_are_inferred_through_the_physics(smoke_run, tmp_path):
    given = open_run(tmp_path / "run", "smoke", given=export_weights(smoke_run, tmp_path / "weights")).given
    abroad = replace(smoke_run, folder=tmp_path / "abroad", given=(given[0], given[1] | {"cohort": {"of": "others"}}))
    shutil.copytree(smoke_run.cohort_folder, abroad.cohort_folder)
    assert list(abroad.train_vae()) == []
    slices = smoke_run.scans("val")
    level = brightness(slices.images, slices.observed, slices.subject)
    explained = list(explained_people(smoke_run.vae(), slices, level=level))
    assert len(explained) == SMOKE.cohort.n_val  # a person at a time
    tissues, cell = smoke_run.composition().config.tissues, smoke_run.composition().downsampling // 2
    parts = (compose_scans(found, part, tissues, cell) for part, found in explained)
    wanted = composed(parts, slices, participants(smoke_run.cohort_folder), "val")
    found, at_home = abroad.compositions("val"), smoke_run.compositions("val")
    assert torch.equal(found.shares, wanted.shares) and torch.equal(found.height, wanted.height)
    assert not torch.equal(found.values, at_home.values)


def test_slices_tell_whether_their_head_is_of_the_first_folder(smoke_run):
    slices, some = smoke_run.scans("train"), smoke_run.compositions("train")
    rows = slices.subject < 2  # the first of them with a head of another folder
    slices, some = slices[rows], [some.part(rows)]
    two = pandas.DataFrame({"split": ["train", "train", "test"], "anatomy": ["old/a.nii.gz", "b.nii.gz", "c.nii.gz"]})
    told = composed(some, slices, two, "train")
    assert torch.equal(told.first_folder, slices.subject.float())
    assert composed(some, slices, participants(smoke_run.cohort_folder), "train").first_folder.all()
    drawn = joined(smoke_run.composition(), told)
    assert torch.equal(drawn.conditions[:, 2], told.first_folder.repeat(2))
    known = drawn.conditions[drawn.conditions[:, 2] == 1, 1]
    assert csf_quantiles(drawn)[::20] == pytest.approx([known.min().item(), known.max().item()], abs=1e-4)


def test_training_is_kept_as_a_table(smoke_run):
    schedules = {
        "vae": SMOKE.vae_schedule, "composition": SMOKE.composition_schedule,
        "pipeline": SMOKE.diffusion_schedule,
    }  # fmt: skip
    for part, schedule in schedules.items():
        log = smoke_run.training_log(part)
        assert list(log.columns) == ["step", "seconds", "loss", "value"]
        assert log.step[log.loss == "total"].tolist() == list(range(schedule.steps))
        assert "val_total" in set(log.loss)


def test_numbers_are_kept_in_the_run(copy):
    path = copy.write_metrics("map_error", pandas.DataFrame({"tissue": ["WM"], "T1 (%)": [7.5]}))
    assert path == copy.folder / "metrics" / "map_error.csv"
    assert pandas.read_csv(path)["T1 (%)"].item() == 7.5


# --- changed --------------------------------------------------------------------------------------


def test_another_setting_is_trained_anew_and_what_depends_on_it_too(copy):
    changed = replace(copy, profile=replace(SMOKE, vae_loss=replace(SMOKE.vae_loss, kl=0.1)))
    assert list(changed.make_cohort()) == []  # the cohort is the same
    for part in (changed.vae, changed.pipeline, changed.samples):
        with pytest.raises(MissingResult):
            part()
    assert len(list(changed.train_vae())) == SMOKE.vae_schedule.steps
    with pytest.raises(MissingResult, match="04_train_diffusion"):
        changed.pipeline()  # the old one speaks the old VAE's latents
    assert len(list(changed.train_composition())) == SMOKE.composition_schedule.steps
    assert len(list(changed.train_diffusion())) == SMOKE.diffusion_schedule.steps
    changed.pipeline()
    with pytest.raises(MissingResult):
        copy.vae()


def test_another_sampler_needs_no_training(copy):
    changed = replace(copy, profile=replace(SMOKE, sampling_steps=2))
    assert [*changed.train_vae(), *changed.train_composition(), *changed.train_diffusion()] == []
    assert (changed.make_samples().pd - copy.make_samples().pd).abs().max() > 0


def test_the_seed_is_part_of_the_settings(copy):
    with pytest.raises(MissingResult):
        replace(copy, seed=copy.seed + 1).vae()


# --- missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "notebook"),
    [
        (lambda run: run.scans("train"), "03_train_vae"),
        (lambda run: run.truth("test"), "03_train_vae"),
        (lambda run: next(run.train_vae()), "03_train_vae"),
        (lambda run: run.vae(), "03_train_vae"),
        (lambda run: next(run.train_composition()), "03_train_vae"),
        (lambda run: next(run.train_diffusion()), "04_train_diffusion"),
        (lambda run: run.pipeline(), "04_train_diffusion"),
        (lambda run: run.make_samples(), "04_train_diffusion"),
        (lambda run: run.samples(), "05_sample_tissue"),
    ],
)
def test_what_is_missing_names_the_notebook_that_makes_it(ask, notebook, tmp_path):
    with pytest.raises(MissingResult, match=f"run notebook {notebook} first") as caught:
        ask(open_run(tmp_path / "nothing", "smoke"))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_another_cohort_in_the_folder_is_not_taken_for_the_one_asked_for(copy):
    other = replace(copy, recipe=replace(copy.recipe, seed=99))
    with pytest.raises(MissingResult, match="does not hold the cohort asked for: run notebook 03_train_vae"):
        other.scans("train")
    with pytest.raises(MissingResult):
        other.vae()  # it was trained on other people


def test_an_unknown_profile_is_refused():
    with pytest.raises(BadInput, match="unknown profile 'desktop': choose one of smoke, laptop, release, paper"):
        open_run("runs/x", "desktop")
    assert find_profile("smoke") is SMOKE


# --- half done ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "train"), [("vae", "train_vae"), ("pipeline", "train_diffusion")])
def test_a_killed_training_is_no_result_and_goes_on(copy, part, train):
    finished = copy.training_log(part)
    shutil.rmtree(copy.folder / part)
    for step in getattr(copy, train)():
        if step.step == 5:
            break
    with pytest.raises(MissingResult):
        getattr(copy, part)()
    assert [step.step for step in getattr(copy, train)()] == [4, 5, 6, 7]
    getattr(copy, part)()
    again = copy.training_log(part)
    pandas.testing.assert_frame_equal(again.drop(columns="seconds"), finished.drop(columns="seconds"))


def test_a_result_half_saved_is_no_result(copy, monkeypatch):
    shutil.rmtree(copy.folder / "vae")

    def full(self, folder, **kwargs):
        (Path(folder) / "config.json").write_text("{")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PoEVAE, "save_pretrained", full)
        with pytest.raises(OSError, match="No space"):
            list(copy.train_vae())
    with pytest.raises(MissingResult):
        copy.vae()
    list(copy.train_vae())
    copy.vae()


def test_a_new_result_replaces_the_old_one_only_when_it_is_whole(copy):
    before = files(copy.folder / "vae")
    changed = replace(copy, seed=copy.seed + 1)
    for step in changed.train_vae():
        if step.step == 5:
            break
    assert files(copy.folder / "vae") == before
    copy.vae()


@pytest.mark.parametrize("part, train", [("vae", "train_vae"), ("pipeline", "train_diffusion")])
def test_a_run_killed_before_it_said_what_it_trained_says_so_later(copy, part, train, monkeypatch):
    """Old checksums never stand beside new weights: without a ``config.json`` there is nothing to load."""
    before = load_weights(copy.folder).identity
    shutil.rmtree(copy.folder / part)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_describe", lambda _: None)
        list(getattr(copy, train)())
    with pytest.raises(BadInput, match="no config.json"):
        load_weights(copy.folder)
    assert list(getattr(copy, train)()) == []
    assert load_weights(copy.folder).identity == before and load_weights(copy.folder).has_pipeline


# --- inference ------------------------------------------------------------------------------------


def test_a_person_s_maps_come_from_the_scans_that_are_shown(smoke_run):
    vae, slices = smoke_run.vae(), smoke_run.scans("test")
    posterior, maps = infer(vae, slices)
    assert maps.pd.shape == (len(slices), *SMOKE.cohort.shape)
    only_t1w = torch.tensor([[True, False, False]]).expand(len(slices), -1)
    vaguer, _ = infer(vae, slices, shown=only_t1w)
    assert (vaguer.log_variance > posterior.log_variance).all()
    torch.testing.assert_close(vae.decode(posterior.mean).stack(), maps.stack())


def test_the_batch_size_does_not_matter(smoke_run, monkeypatch):
    vae, slices = smoke_run.vae(), smoke_run.scans("test")
    whole = infer(vae, slices)[1]
    monkeypatch.setattr(inference, "INFERENCE_BATCH", 3)
    for a, b in zip(whole, infer(vae, slices)[1], strict=True):
        torch.testing.assert_close(a, b)


def test_in_scanner_units_an_arbitrary_gain_changes_nothing(smoke_run):
    vae = smoke_run.vae()
    common, raw = (infer(vae, smoke_run.scans("test", common_scale=c), common_scale=False)[1] for c in (True, False))
    torch.testing.assert_close(common.stack(), raw.stack(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision, off", [("no", 1e-5), ("bf16", 0.1)])  # of a spread
def test_latents_are_posterior_means_of_all_slices_and_their_mirror_images(smoke_run, monkeypatch, precision, off):
    monkeypatch.setattr(latents_module, "best_precision", lambda: precision)
    vae, slices = smoke_run.vae(), smoke_run.scans("train")
    train = latents(vae, slices)
    assert len(train) == 2 * len(slices) and train.values.dtype == torch.float32
    posterior, _ = infer(vae, slices)
    expected = (posterior.mean - train.mean[:, None, None]) / train.scale[:, None, None]
    torch.testing.assert_close(train.values[: len(slices)], expected, rtol=1e-3, atol=off)
    assert (train.values[: len(slices)] - expected).square().mean().sqrt() < off / 5
    assert (train.values[: len(slices)] - train.values[len(slices) :]).abs().max() > 0
    assert torch.equal(train.conditions[:, 0], slices.position.repeat(2)) and train.conditions[:, 1:].isnan().all()
    assert latents(vae, slices, train).scale is train.scale
