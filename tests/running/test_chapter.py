"""What a chapter is given: its run's networks, or those of the release with people to try them on."""

from __future__ import annotations

import dataclasses

import pandas
import pytest
import torch

from phyldm_core.inference import explain, infer
from phyldm_core.machine.errors import BadInput
from phyldm_core.people.held_out import Heads
from phyldm_core.running import chapter
from phyldm_core.running.run import open_run
from phyldm_core.weights import load_weights


def test_a_trained_run_shows_its_own_networks(smoke_run):
    model = chapter.open_model(smoke_run)
    assert model.weights is None and "this run" in model.name
    assert len(model.test) == len(model.raw) == len(model.truth.maps)
    assert len(model.samples.pd) == smoke_run.profile.n_samples


def test_an_untrained_run_shows_the_release_with_new_people_and_draws_once(smoke_run, tmp_path, monkeypatch):
    weights = load_weights(smoke_run.folder)
    monkeypatch.setattr(chapter, "load_weights", lambda _: weights)
    monkeypatch.setattr(chapter, "choose_heads", lambda *_: Heads(("mni152",), (), True))
    model = chapter.open_model(open_run(tmp_path, "smoke"))
    assert model.weights is weights and "release" in model.name
    assert model.test.subject.unique().tolist() == list(range(chapter.N_PEOPLE))
    assert len(model.truth.maps) == len(model.test) and model.test.observed.all()
    assert not torch.equal(model.test.images, model.raw.images)  # a gain of its own for every scan
    first = model.samples
    assert len(first.pd) == chapter.N_BRAINS and model.steps > 1

    def never(*_, **__):
        raise AssertionError("drawn twice")

    monkeypatch.setattr(
        type(weights), "pipeline", lambda self: type("Pipe", (), {"usual_steps": 20, "__call__": never})()
    )
    torch.testing.assert_close(chapter.open_model(open_run(tmp_path, "smoke")).samples.t1, first.t1)


def test_a_laptop_s_half_hour_is_for_the_chapters_that_train(tmp_path):
    """Trained or not, later chapters show the release."""
    run = open_run(tmp_path, "laptop")
    assert chapter.open_model(run).weights.identity == load_weights("release").identity


def test_the_release_infers_as_fit_does_and_a_run_by_its_encoder(smoke_run):
    own, release = chapter.Model(smoke_run), chapter.Model(smoke_run, load_weights(smoke_run.folder))
    slices = smoke_run.scans("test")
    t1w = torch.tensor([True, False, False]).expand(len(slices), -1)
    for shown in (None, t1w):
        found = release.inferred(slices, shown=shown)
        rows = slices.subject == slices.subject[-1]
        gain, only = torch.ones(3), None if shown is None else shown[rows]
        assert torch.equal(found.t1[rows], explain(own.vae, slices[rows], only, gain=gain).maps.t1)
        assert torch.equal(own.inferred(slices, shown=shown).t1, infer(own.vae, slices, shown=shown)[1].t1)
    assert not torch.equal(release.inferred(slices, common_scale=False).pd, release.inferred(slices).pd)


def test_without_a_release_a_training_chapter_goes_on(smoke_run, monkeypatch, capsys):
    assert chapter.release_beside(smoke_run) is None  # smoke learns nothing to compare

    def refuse(_):
        raise BadInput("no weights here")

    monkeypatch.setattr(chapter, "load_weights", refuse)
    laptop = dataclasses.replace(smoke_run, profile=dataclasses.replace(smoke_run.profile, name="laptop"))
    assert chapter.release_beside(laptop) is None
    assert "no weights here" in capsys.readouterr().out


@pytest.mark.parametrize(("own", "of"), [(True, "this run"), (False, "the release")])
def test_an_evaluation_is_the_run_s_or_the_release_s(tmp_path, monkeypatch, own, of):
    run, release = open_run(tmp_path / "run", "smoke"), tmp_path / "release"
    rows = {
        "metric": ["bias"],
        "quantity": [None],
        "tissue": ["WM"],
        "inputs": ["network | T1w | any gain"],
        "value": [1],
    }
    release.mkdir()
    pandas.DataFrame({"table": ["evaluation"], **rows}).to_csv(release / "metrics.csv")
    monkeypatch.setattr(chapter, "RELEASE_FOLDER", release)
    if own:
        (run.folder / "evaluation").mkdir(parents=True)
        pandas.DataFrame(rows).to_csv(run.folder / "evaluation" / "metrics.csv")
    table = chapter.kept_evaluation(run)
    assert table.attrs["of"] == of and table.quantity.tolist() == [""] and "table" not in table
    monkeypatch.setattr(chapter, "RELEASE_FOLDER", tmp_path)
    assert own or chapter.kept_evaluation(run) is None


def test_a_paragraph_is_shown_on_one_line(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    chapter.say("""a
    b""")
    assert shown[0].data == "a b"
