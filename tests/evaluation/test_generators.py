"""What the generator's parts are worth: variants differ in what they say, and are judged on one scale."""

from __future__ import annotations

from dataclasses import replace

import pandas
import pytest
import torch
from matplotlib import pyplot as plt

from phyldm_core.evaluation import generators
from phyldm_core.evaluation.ablation_figures import LOOKS, generator_parts
from phyldm_core.evaluation.generators import (
    GENERATORS,
    UNVARIED,
    MapsAutoencoder,
    as_pictures,
    generator_runs,
    over_halves,
    without_guide,
)
from phyldm_core.people import cohort
from phyldm_core.physics import TissueMaps
from phyldm_core.running.latents import apart
from phyldm_core.running.profiles import SMOKE


@pytest.fixture(scope="module")
def runs(smoke_run):
    return generator_runs(smoke_run)


@pytest.fixture(scope="module")
def regression(runs, tmp_path_factory):
    run = replace(runs["regression of maps"], folder=tmp_path_factory.mktemp("regression"))
    for _ in run.make():
        pass
    return run


def test_each_variant_differs_from_the_reference_in_one_thing():
    for variant in GENERATORS[1:]:
        same = replace(variant, name=UNVARIED.name, prediction=UNVARIED.prediction)
        changed = [name for name in vars(same) if getattr(same, name) != getattr(UNVARIED, name)]
        assert len(changed) == 1, variant.name


def test_variants_learn_from_one_vae_and_one_cohort_in_folders_of_their_own(runs, smoke_run):
    assert len({of.folder for of in runs.values()}) == len(GENERATORS)
    settings = [of.diffusion_settings() for of in runs.values()]
    assert len({str(s) for s in settings}) == len(GENERATORS)
    for of in runs.values():
        assert of.cohort_folder == smoke_run.cohort_folder and of.vae_settings() == smoke_run.vae_settings()


def test_fewer_heads_are_fewer_slices_and_no_texture_is_none(runs, smoke_run, monkeypatch):
    few = replace(runs["10 heads"], variant=replace(runs["10 heads"].variant, heads=1))
    everyone, people = smoke_run.compositions("train"), cohort.participants(smoke_run.cohort_folder)
    split = people.split == "train"
    told = people.assign(anatomy=["a", "b"] * (len(people) // 2))  # people in turn from two heads
    monkeypatch.setattr(cohort, "participants", lambda _: told)
    first = torch.from_numpy((told[split].anatomy == "a").to_numpy())
    subject = smoke_run.scans("train").subject[apart(smoke_run.scans("train"), smoke_run.recipe.slice_mm)]
    assert torch.equal(few.compositions("train").shares[:], everyone.shares[first[subject]])
    assert 0 < len(few.compositions("train").shares) < len(everyone.shares)
    assert len(few.compositions("val").shares) == len(smoke_run.compositions("val").shares)
    assert not runs["no texture"].compositions("train").texture.any() and everyone.texture.any()


def test_maps_survive_as_pictures():
    maps = TissueMaps(torch.tensor([[[0.7, 1.0, 0.0]]]), torch.tensor([[[0.9, 4.2, 0.0]]]),
                      torch.tensor([[[0.07, 2.0, 0.0]]]))  # fmt: skip
    pictures = as_pictures(maps)
    assert float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    autoencoder = MapsAutoencoder(("T1", "T2"), **SMOKE.composition)
    autoencoder.restored = lambda z: pictures
    torch.testing.assert_close(autoencoder.to_maps(None).stack(), maps.stack(), rtol=1e-4, atol=1e-5)


def test_a_regression_of_maps_is_trained_and_draws(regression):
    maps = regression.pipeline()(2, seed=1, num_inference_steps=3)
    assert maps.t1.shape == (2, 32, 32) and maps.stack().isfinite().all()
    assert isinstance(regression.composition(), MapsAutoencoder)


def test_without_its_guide_a_pipeline_is_the_same_but_for_the_guide(regression):
    pipe = regression.pipeline()
    alone = without_guide(pipe)
    assert pipe.guide is not None and alone.guide is None
    assert alone.config.latent_mean == pipe.config.latent_mean
    one, other = (p(2, seed=1, num_inference_steps=6).t1 for p in (pipe, alone))
    assert not torch.equal(one, other)


def test_distances_are_over_that_of_two_halves_of_people():
    rows = [("frechet", "generated", 6.0), ("frechet", "true, other half", 2.0), ("diversity", "generated", 1.0)]
    table = pandas.DataFrame(rows, columns=["metric", "inputs", "value"])
    found = over_halves(table.assign(quantity="", tissue="", low=table.value / 2, high=2 * table.value))
    assert found.metric.tolist() == ["frechet"]
    assert found[["value", "low", "high"]].iloc[0].tolist() == [3.0, 1.5, 6.0]


def test_the_figure_shows_every_variant_and_minutes():
    rows = [
        (v, s, m, 2.0)
        for v in ("reference", "half as long")
        for s in LOOKS
        for m in ("frechet", "folding", "thickness")
    ]
    rows += [(v, "both trainings", "minutes", 9.0) for v in ("reference", "half as long")]
    rows += [("reference", "inferred people", m, 4.0) for m in ("thickness", "folding")]
    table = pandas.DataFrame(rows, columns=["variant", "slices", "metric", "value"]).assign(quantity=None)
    fig = generator_parts(table)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["reference", "half as long"]
    assert fig.axes[3].get_xlabel() == "minutes of training"
    plt.close(fig)


def test_what_was_judged_is_kept(smoke_run, tmp_path, monkeypatch):
    calls = []

    def judged_sets(of):
        calls.append(of.variant.name)
        yield pandas.DataFrame([dict.fromkeys(generators.JUDGED[1:], 1.0)])

    monkeypatch.setattr(generators, "judged_sets", judged_sets)
    monkeypatch.setattr(generators.GeneratorRun, "make", lambda self: iter(()))
    run = replace(smoke_run, folder=tmp_path / "run")
    for _ in range(2):
        generators.remake_generators(run, tmp_path / "out.csv", GENERATORS[:2])
    assert calls == [v.name for v in GENERATORS[:2]]
    assert pandas.read_csv(tmp_path / "out.csv").variant.tolist() == calls
