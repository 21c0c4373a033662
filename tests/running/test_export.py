"""Exported weights are those of the run, with what a stranger needs to know of them and nothing of the machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch

from phyldm_core.machine.errors import BadInput
from phyldm_core.machine.files import checksums, sha256
from phyldm_core.running import export
from phyldm_core.running.export import export_weights
from phyldm_core.running.profiles import SMOKE
from phyldm_core.weights import load_weights


@pytest.fixture(scope="module")
def exported(smoke_run, tmp_path_factory) -> Path:
    return export_weights(smoke_run, tmp_path_factory.mktemp("weights") / "smoke").folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_exported_weights_are_the_run_s(exported, smoke_run):
    trained, loaded = load_weights(smoke_run.folder), load_weights(exported)
    assert loaded.identity == trained.identity
    assert (loaded.voxel_mm, loaded.shape, loaded.slab_mm, loaded.head) == (6.0, SMOKE.cohort.shape, 12.0, False)
    assert loaded.config["profile"] == trained.config["profile"] == "smoke"
    for name, tensor in smoke_run.vae().state_dict().items():
        assert torch.equal(loaded.vae().state_dict()[name], tensor)
    drawn = [model.pipeline()(2, seed=1, num_inference_steps=2).stack() for model in (loaded, smoke_run)]
    torch.testing.assert_close(*drawn)


def test_a_folder_says_what_it_is_and_names_no_machine(exported, smoke_run):
    kinds = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors", ".csv", ".md", ".png"}
    text = "".join(p.read_text() for p in exported.rglob("*") if p.suffix in (".json", ".md", ".csv"))
    assert str(smoke_run.folder) not in text and "_name_or_path" not in text
    card = (exported / "README.md").read_text()
    assert "profile smoke" in card and "Nothing was measured in this run" in card and "32×32 pixels" in card
    assert "phyldm train --profile smoke --seed 7 --out RUN" in card and "| compositions | 8 × 4 | 0.001 |" in card
    assert json.loads((exported / "training.json").read_text())["vae"]["cohort"]["n_train"] == SMOKE.cohort.n_train


def test_the_card_holds_the_run_s_own_numbers(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    (run / "metrics").mkdir()
    (run / "metrics" / "vae_map_errors.csv").write_text(
        "metric,quantity,tissue,inputs,value,low,high,n\nmedian_absolute_error,T1,WM,common scale,0.1234,0.1,0.15,2\n"
    )
    folder = export_weights(run, tmp_path / "w").folder
    assert "| T1, common scale | 12.3 % (10.0–15.0) |" in (folder / "README.md").read_text()
    assert "vae_map_errors,median_absolute_error,T1,WM" in (folder / "metrics.csv").read_text()
    curves = pandas.read_csv(folder / "curves.csv").groupby(["part", "loss"]).size()
    assert curves["vae", "total"] == SMOKE.vae_schedule.steps and curves["pipeline", "val_total"] == 2


def test_the_card_has_a_row_for_each_protocol_set_that_was_examined(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "sets.csv").write_text(
        "set,method,tissue,quantity,n,value,low,high,r\n"
        "PDw + T2w spin echoes,through the physics,WM,T1,12,0.0511,0.04,0.06,0.5\n"
        "PDw + T2w spin echoes,through the physics,WM,T2,12,0.03,0.02,0.04,0.9\n"
    )
    folder = export_weights(run, tmp_path / "w").folder
    row = "| through the physics | PDw + T2w spin echoes | 5.1 % (4.0–6.0) | – | 3.0 % (2.0–4.0) | – |"
    assert row in (folder / "README.md").read_text()
    assert "sets,median_absolute_error,T1,WM,through the physics | PDw" in (folder / "metrics.csv").read_text()


def test_the_card_tells_what_the_vae_learned_from_and_what_the_generator(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    path = run / "training.json"
    told = json.loads(path.read_text())
    told["vae"]["cohort"] |= {"open_field": True, "n_slices": 11, "slice_mm": 13.0, "head": True}
    path.write_text(json.dumps(told))
    edit(run, files=json.loads((run / "config.json").read_text())["files"] | {"training.json": sha256(path)})
    exported = export_weights(run, tmp_path / "w")
    card = (exported.folder / "README.md").read_text()
    assert exported.whole_brain and exported.slab_mm == 143
    assert "13 mm apart, from cerebellum to vertex (143 mm), the whole head" in card and "fat suppressed" in card
    assert "6 mm apart, in the middle of the brain (12 mm), the brain and its CSF only" in card
    assert "extrapolated" not in card and card.count("drawn from all of clinical practice") == 1


def test_a_run_that_validated_nothing_has_curves_and_a_recipe_too(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    for log in run.glob("*/log.csv"):
        log.write_text("".join(line for line in log.open() if ",val_" not in line))
    edit(run, files=json.loads((run / "config.json").read_text())["files"] | checksums(run, "vae", "pipeline"))
    folder = export_weights(run, tmp_path / "w").folder
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert set(pandas.read_csv(folder / "curves.csv").loss) == {"total"}
    assert "| VAE | 8 × 4 | 0.001 | 0 | – |" in (folder / "README.md").read_text()


def test_a_run_on_real_scans_does_not_claim_to_be_simulated(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    path = run / "training.json"
    told = json.loads(path.read_text())
    geometry = {
        key: told["vae"]["cohort"][key] for key in ("voxel_mm", "slice_mm", "shape", "n_slices", "head", "seed")
    }
    real = geometry | {"data": "oasis3", "sessions": "ab12"}
    told["vae"]["cohort"] = told["pipeline"]["composition"]["cohort"] = real
    path.write_text(json.dumps(told))
    edit(run, files=json.loads((run / "config.json").read_text())["files"] | {"training.json": sha256(path)})
    card = (export_weights(run, tmp_path / "w").folder / "README.md").read_text()
    assert "Real scans of the dataset oasis3" in card and "deformed from" not in card


def test_several_folders_of_heads_are_named_without_their_places(smoke_run, tmp_path):
    left_out, folders = shutil.ignore_patterns("pipeline", "composition"), ("/far/heads", "/far/more")
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run", ignore=left_out))
    (run / "config.json").unlink()
    for path in (run / "vae" / "made_with.json", run / "cohort" / "recipe.json"):
        made = json.loads(path.read_text())
        made.get("cohort", made)["anatomies"] = folders
        path.write_text(json.dumps(made))
    trained = replace(smoke_run, folder=run, recipe=replace(smoke_run.recipe, anatomies=folders))
    assert list(trained.train_vae()) == []  # it is trained, and says so anew
    export_weights(run, tmp_path / "weights")
    training = (tmp_path / "weights" / "training.json").read_text()
    assert json.loads(training)["vae"]["cohort"]["anatomies"] == ["heads", "more"] and "/far" not in training
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "deformed from the label maps in heads and more" in card
    assert "--anatomies heads --anatomies more" in card


def test_exporting_again_changes_nothing(copy, smoke_run):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    export_weights(smoke_run, copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_an_older_export_is_replaced_as_a_whole(copy, smoke_run):
    (copy / "vae" / "config.json").write_text("{}")
    export_weights(smoke_run, copy)
    load_weights(copy)


def test_a_diffusion_model_of_another_vae_is_not_exported(smoke_run, tmp_path):
    shutil.copytree(smoke_run.folder, tmp_path / "run")
    run = replace(smoke_run, folder=tmp_path / "run", seed=99)
    list(run.train_vae())
    assert not load_weights(run.folder).has_pipeline
    with pytest.raises(BadInput, match="belongs to another VAE"):
        export_weights(run, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_somebody_s_folder_is_not_overwritten(smoke_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="holds something that is no export of weights"):
        export_weights(smoke_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_not_overwritten(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    for source in (smoke_run, run):
        with pytest.raises(BadInput, match="holds something that is no export of weights"):
            export_weights(source, run)
    assert load_weights(run).identity == load_weights(smoke_run.folder).identity


def test_a_full_disk_leaves_the_older_export(copy, smoke_run, monkeypatch):
    edit(copy, version="0.0.1")

    def full(*_):
        raise BadInput("README.md: cannot write (No space left on device)")

    monkeypatch.setattr(export, "write_atomically", full)
    with pytest.raises(BadInput, match="No space left"):
        export_weights(smoke_run, copy)
    assert load_weights(copy).config["version"] == "0.0.1"
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
