"""An evaluation says who was examined, keeps what is finished, and refuses what would flatter."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from typer.testing import CliRunner

from phyldm_core import cli, tissue
from phyldm_core.evaluation import examination, examination_report, metrics, protocol_sets
from phyldm_core.evaluation.examination import NETWORK, Examination, examine, n_parts, split_inputs
from phyldm_core.machine.errors import BadInput
from phyldm_core.people import held_out
from phyldm_core.people.cohort import CohortRecipe, Subject, simulate
from phyldm_core.people.held_out import choose_heads, draw_people, recipe_of, training_people
from phyldm_core.running.export import export_weights
from phyldm_core.weights import load_weights


def phyldm(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def exported(smoke_run, tmp_path_factory) -> Path:
    return export_weights(smoke_run, tmp_path_factory.mktemp("weights") / "smoke").folder


@pytest.fixture(scope="module")
def evaluated(exported, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    asked = ("--subjects", 2, "--sessions", 2, "--seen-heads")
    code, said, _ = phyldm("evaluate", "--weights", exported, "--out", out, *asked)
    assert code == 0
    return out, said


def pretend_trained_on(weights, heads: dict):
    """The same weights, whose people were made from other heads."""
    copy = replace(weights)
    copy.__dict__["training"] = weights.training | {"heads": heads}
    return copy


# --- who is examined --------------------------------------------------------------------------------


def test_weights_say_which_heads_they_saw_exported_or_not(exported, smoke_run):
    for folder in (exported, smoke_run.folder):
        assert load_weights(folder).training["heads"]["train"] == ["mni152"]


def test_heads_of_training_are_left_out_and_alone_refused(exported, tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"):
        (tmp_path / name).touch()
    weights = pretend_trained_on(load_weights(exported), {"train": ["a.nii.gz"], "val": ["b.nii.gz"], "test": []})
    heads = choose_heads(weights, tmp_path)
    assert heads.examined == ("c.nii.gz", "d.nii.gz") and heads.training == ("a.nii.gz",) and not heads.seen
    assert choose_heads(weights, tmp_path, seen=True).examined == ("a.nii.gz", "b.nii.gz")
    for name in "cd":
        (tmp_path / f"{name}.nii.gz").unlink()
    with pytest.raises(BadInput, match="every head was seen in training"):
        choose_heads(weights, tmp_path)
    (tmp_path / "a.nii.gz").unlink()
    assert choose_heads(weights, tmp_path, seen=True).training == ()  # its training people cannot be made again
    with pytest.raises(BadInput, match="does not say which heads"):
        choose_heads(pretend_trained_on(weights, {}), tmp_path)


def test_a_head_is_known_whichever_folder_came_first(exported, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for name in ("one/a.nii", "one/b.nii", "two/c.nii", "two/d.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    weights = pretend_trained_on(
        load_weights(exported), {"train": ["a.nii", "two/c.nii"], "val": [], "test": ["b.nii"]}
    )
    assert choose_heads(weights, [one, two]).examined == ("b.nii", "two/d.nii")
    assert choose_heads(weights, [two, one]).examined == ("d.nii", "one/b.nii")
    assert choose_heads(weights, two).examined == ("d.nii",)
    assert choose_heads(weights, [one, two]).training == ("a.nii", "two/c.nii")
    recipe = recipe_of(weights, [one, two])
    assert recipe.anatomies == (str(one), str(two)) and recipe_of(weights, one).anatomies == str(one)


def test_a_run_on_real_scans_has_seen_no_label_map(exported):
    weights = load_weights(exported)
    weights.__dict__["training"] = {"vae": {"cohort": {"data": "oasis3"}}, "heads": {}}
    assert choose_heads(weights, None).examined == ("mni152",)
    recipe = recipe_of(weights, None, seed=3)
    assert (recipe.voxel_mm, recipe.shape, recipe.seed) == (6.0, (32, 32), 3)
    assert not Examination(weights, None, Path("x")).has_common_scale


def test_people_are_new_the_same_each_time_and_their_training_fellows_are_made_again(exported, smoke_run):
    recipe = recipe_of(load_weights(exported), None)
    assert recipe == smoke_run.recipe
    trained = [truth.maps for truth in training_people(recipe, ("mni152",))]
    torch.testing.assert_close(torch.cat(trained), smoke_run.truth("train").maps, rtol=1e-4, atol=1e-5)
    once, twice = (list(draw_people(recipe, ("mni152",), 2)) for _ in range(2))
    assert torch.equal(once[0].common.images, twice[0].common.images)
    assert all(not torch.allclose(once[0].truth.maps, maps) for maps in trained)
    (second,) = draw_people(recipe, ("mni152",), 2, skip={"sub-0001"})
    assert torch.equal(second.scanned.images, once[1].scanned.images)


def test_scans_of_a_person_are_one_person_s_on_both_scales():
    recipe = CohortRecipe(voxel_mm=6.0, slice_mm=6.0, shape=(32, 32), n_slices=2)
    (person,) = draw_people(recipe, ("mni152",), 1)
    made = simulate(Subject("", "test", "mni152", held_out.FIRST), recipe)
    ratio = person.scanned.images / person.common.images.clamp_min(1e-9)
    for m, gain in enumerate(made.gains):
        assert ratio[:, m].median() == pytest.approx(gain, rel=1e-4)
    assert person.scanned.observed.all() and (person.nominal[..., 1] >= person.common.settings[..., 1]).all()


# --- the command ------------------------------------------------------------------------------------


def test_one_table_in_long_form_says_who_was_asked_with_what_and_that_heads_were_seen(evaluated):
    out, said = evaluated
    assert "2 people" in said
    table = pandas.read_csv(out / "metrics.csv", keep_default_na=False, na_values=[""])
    assert tuple(table.columns) == metrics.COLUMNS
    assert table.inputs.str.endswith("heads seen in training").all()
    rows = split_inputs(table)
    assert set(rows.method) == {*examination_report.NEEDS_OF, examination.SAMPLED_SD}
    network = rows[rows.method == NETWORK]
    assert network.groupby(["scans", "scale"]).ngroups == 14
    wanted = {"median_absolute_error", "bias", "coverage_50", "coverage_90", "psnr", "sd", "limit_low"}
    assert wanted <= set(network.metric)
    assert not table.duplicated(["metric", "quantity", "tissue", "inputs"]).any()
    assert {"frechet", "density", "coverage", "wasserstein", "diversity", "nearest_training", "memorised"} <= set(
        table.metric
    )
    assert table.value.notna().all()


def test_a_second_table_is_by_protocol_set_with_what_an_error_is_compared_with(evaluated):
    out, _ = evaluated
    sets = pandas.read_csv(out / "sets.csv")
    assert sets["set"].str.endswith("heads seen in training").all() and sets.n.max() == 2
    assert {"value", "low", "high", "p90", "r", "over_constant", "over_untouched", "holds"} <= set(sets)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"<td>{name}" in page for name in ("PDw + T2w spin echoes", "open field", protocol_sets.CONSTANT))


def test_the_report_holds_figures_and_says_what_was_examined(evaluated):
    out, _ = evaluated
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "HEADS SEEN IN TRAINING" in page and "mni152" in page and page.count("<figure") >= 5
    assert "Bayes per voxel" in page and str(out) not in page


def test_what_is_finished_is_kept_and_more_people_are_added(evaluated, exported, tmp_path, monkeypatch):
    out = Path(shutil.copytree(evaluated[0], tmp_path / "out"))
    before = (out / "metrics.csv").read_bytes()
    (out / "people" / "sub-0002.csv").unlink()  # as a killed call leaves it
    asked = []
    real = examination.examine_person
    monkeypatch.setattr(examination, "examine_person", lambda *a: asked.append(a[2].name) or real(*a))
    exam = Examination(load_weights(exported), None, out, n=2, seen=True, n_sessions=2)
    parts = list(examine(exam))
    assert asked == ["sub-0002"] and len(parts) == n_parts(exam)
    assert (out / "metrics.csv").read_bytes() == before
    list(examine(replace(exam, n=3)))
    assert asked == ["sub-0002", "sub-0003"] and len(list((out / "sets").glob("*.csv"))) == 3 + 2
    assert pandas.read_csv(out / "metrics.csv").n.max() > 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "every head was seen in training"),
        (("--seen-heads", "--subjects", 1), "at least 2 subjects"),
        (("--anatomies", "no/such/folder"), "is not a folder"),
    ],
)
def test_one_sentence_says_why_not(exported, tmp_path, options, sentence):
    code, _, said = phyldm("evaluate", "--weights", exported, "--out", tmp_path / "out", *options)
    assert code == 1 and sentence in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_seed_below_zero_is_refused_by_the_command_and_by_the_function(exported, tmp_path):
    code, _, said = phyldm("evaluate", "--weights", exported, "--out", tmp_path / "out", "--seed", -1)
    assert code == 2 and "--seed" in said and "Traceback" not in said
    with pytest.raises(BadInput, match="a seed of 0 or more"):
        next(examine(Examination(load_weights(exported), None, tmp_path / "out", seed=-1, seen=True)))
    code, _, said = phyldm("evaluate", "--weights", exported, "--out", tmp_path / "out", "--sessions", -1)
    assert code == 2 and "--sessions" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_another_evaluation_is_not_mixed_in(evaluated, exported, tmp_path):
    out = Path(shutil.copytree(evaluated[0], tmp_path / "out"))
    code, _, said = phyldm("evaluate", "--weights", exported, "--out", out, "--seen-heads", "--seed", 5)
    assert code == 1 and "holds an evaluation of other weights, heads or seed" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    code, _, said = phyldm("evaluate", "--weights", exported, "--out", tmp_path / "mine", "--seen-heads")
    assert code == 1 and "is not empty and holds no evaluation" in said


def test_weights_without_a_diffusion_model_say_so(exported, evaluated, smoke_run, tmp_path):
    left_out = shutil.ignore_patterns("pipeline", "composition")
    shutil.copytree(smoke_run.folder, tmp_path / "run", ignore=left_out)
    (tmp_path / "run" / "config.json").unlink()
    run = replace(smoke_run, folder=tmp_path / "run")
    assert list(run.train_vae()) == []  # it is trained, and says so in a new config.json
    export_weights(run, tmp_path / "w")
    out = Path(shutil.copytree(evaluated[0], tmp_path / "out", ignore=shutil.ignore_patterns("*.csv", "figures")))
    for kept in ("people", "sets"):  # of the same VAE: they are taken as they are
        shutil.copytree(evaluated[0] / kept, out / kept, dirs_exist_ok=True)
    asked = ("--subjects", 2, "--sessions", 2, "--seen-heads")
    code, said, warned = phyldm("evaluate", "--weights", tmp_path / "w", "--out", out, *asked)
    assert code == 0 and "hold no diffusion model" in warned and "2 people" in said
    assert "hold no diffusion model" in (out / "report.html").read_text()
    assert "frechet" not in (out / "metrics.csv").read_text()


def test_random_protocols_leave_signal_and_repeat():
    drawn = examination.random_protocols(9, seed=3)
    assert drawn == examination.random_protocols(9, seed=3) != examination.random_protocols(9, seed=4)
    assert all(tissue.leaves_signal(p) for p in drawn) and len({p.sequence for p in drawn}) == 3
