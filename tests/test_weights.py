"""Weights are what they say they are, or one sentence says why not; nothing in a folder of weights is ever run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from phyldm_core import weights
from phyldm_core.errors import BadInput
from phyldm_core.profiles import SMOKE
from phyldm_core.weights import TENSORS, export_weights, load_weights, sha256


@pytest.fixture(scope="module")
def exported(smoke_run, tmp_path_factory) -> Path:
    return export_weights(smoke_run, tmp_path_factory.mktemp("weights") / "smoke").folder


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relist(folder: Path, name: str):
    """Pretend that a changed file was exported so."""
    files = json.loads((folder / "config.json").read_text())["files"]
    edit(folder, files=files | {name: sha256(folder / name)})


def refusal(folder) -> str:
    with pytest.raises(BadInput) as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


# --- whole ----------------------------------------------------------------------------------------


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
    assert "phyldm train --profile smoke --seed 7 --out RUN" in card and "| coarse level | 8 × 4 | 0.001 |" in card
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


def test_a_run_that_validated_nothing_has_curves_and_a_recipe_too(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    for log in run.glob("*/log.csv"):
        log.write_text("".join(line for line in log.open() if ",val_" not in line))
    folder = export_weights(run, tmp_path / "w").folder
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert set(pandas.read_csv(folder / "curves.csv").loss) == {"total"}
    assert "| VAE | 8 × 4 | 0.001 | 0 | – |" in (folder / "README.md").read_text()


def test_a_run_on_real_scans_does_not_claim_to_be_simulated(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("pipeline")))
    path = run / "vae" / "made_with.json"
    settings = json.loads(path.read_text())
    geometry = {key: settings["cohort"][key] for key in ("voxel_mm", "slice_mm", "shape", "n_slices", "head", "seed")}
    path.write_text(json.dumps(settings | {"cohort": geometry | {"data": "oasis3", "sessions": "ab12"}}))
    card = (export_weights(run, tmp_path / "w").folder / "README.md").read_text()
    assert "Real scans of the dataset oasis3" in card and "deformed from" not in card


def test_several_folders_of_heads_are_named_without_their_places(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("pipeline", "coarse")))
    for path in (run / "vae" / "made_with.json", run / "cohort" / "recipe.json"):
        made = json.loads(path.read_text())
        made.get("cohort", made)["anatomies"] = ["/far/away/heads", "/far/away/more"]
        path.write_text(json.dumps(made))
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


def test_weights_are_looked_for_where_reproduce_puts_them(smoke_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "RELEASE", tmp_path / "released")
    with pytest.raises(BadInput, match="runs/laptop: no weights here: make them with phyldm reproduce"):
        load_weights()
    with pytest.raises(BadInput, match="released: no such folder of weights"):
        load_weights("release")
    export_weights(smoke_run, tmp_path / "released")
    assert load_weights().folder == load_weights("release").folder == tmp_path / "released"
    shutil.copytree(smoke_run.folder, tmp_path / "runs" / "laptop")
    assert load_weights().config["profile"] == "smoke" and load_weights().folder == weights.DEFAULT


# --- not to be trusted ----------------------------------------------------------------------------


def test_another_format_names_the_version_that_reads_it(copy):
    edit(copy, format=99, version="7.0")
    assert "format 99" in refusal(copy) and "install phyldm_core 7.0" in refusal(copy)


def test_other_conventions_would_give_wrong_maps(copy):
    edit(copy, conventions=weights.CONVENTIONS | {"maps": ["PD in %", "T1 in ms", "T2 in ms"]})
    assert "T1 in ms" in refusal(copy) and "its maps would be wrong" in refusal(copy)


def test_a_changed_file_is_not_loaded(copy):
    path = copy / "vae" / TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "changed since it was exported" in refusal(copy)


def test_a_missing_file_is_named(copy):
    (copy / "pipeline" / "denoiser" / TENSORS).unlink()
    assert f"denoiser/{TENSORS}: missing" in refusal(copy)


@pytest.mark.parametrize("name", ["vae/extra.bin", "pipeline/denoiser/diffusion_pytorch_model.bin", "vae/code.py"])
def test_what_could_run_code_is_refused(copy, name):
    (copy / name).write_bytes(b"\x80\x04.")
    assert "not listed in config.json" in refusal(copy)
    relist(copy, name)
    assert "nothing is unpickled" in refusal(copy)


def test_a_pipeline_of_foreign_classes_is_not_imported(copy):
    path = copy / "pipeline" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"denoiser": ["os", "system"]}))
    relist(copy, "pipeline/model_index.json")
    assert "denoiser is a os.system, which no pipeline here uses" in refusal(copy)


def test_a_tensor_of_another_shape_is_named(copy):
    tensors = load_file(copy / "vae" / TENSORS)
    tensors["encoder.stem.1.bias"] = torch.zeros(7)
    save_file(tensors, copy / "vae" / TENSORS)
    relist(copy, f"vae/{TENSORS}")
    assert "tensor encoder.stem.1.bias is 7, not 16" in refusal(copy)


def test_a_tensor_too_few_or_too_many_is_named(copy):
    tensors = load_file(copy / "vae" / TENSORS)
    moved = {("zz" if name == "encoder.stem.1.bias" else name): tensor for name, tensor in tensors.items()}
    save_file(moved, copy / "vae" / TENSORS)
    relist(copy, f"vae/{TENSORS}")
    assert "tensor encoder.stem.1.bias is missing" in refusal(copy)
    save_file(tensors | {"zz": torch.zeros(1)}, copy / "vae" / TENSORS)
    relist(copy, f"vae/{TENSORS}")
    assert "tensor zz is left over" in refusal(copy)


def test_tensors_cut_short(copy):
    file = copy / "vae" / TENSORS
    file.write_bytes(file.read_bytes()[:-1000])
    relist(copy, f"vae/{TENSORS}")
    assert "not a safetensors file, or cut short" in refusal(copy)


def test_text_instead_of_tensors(copy):
    (copy / "vae" / TENSORS).write_text("version https://git-lfs.github.com/spec/v1")
    relist(copy, f"vae/{TENSORS}")
    assert "not a safetensors file, or cut short" in refusal(copy)


def test_a_folder_without_weights_is_no_weights(tmp_path):
    assert "neither exported weights nor a trained run" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "nothing")


def test_a_diffusion_model_of_another_vae_is_not_exported(smoke_run, tmp_path):
    run = Path(shutil.copytree(smoke_run.folder, tmp_path / "run"))
    path = run / "vae" / "made_with.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 99}))
    with pytest.raises(BadInput, match="belongs to another VAE"):
        export_weights(run, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_somebody_s_folder_is_not_overwritten(smoke_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="holds something that is no export of weights"):
        export_weights(smoke_run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_the_older_export(copy, smoke_run, monkeypatch):
    edit(copy, version="0.0.1")

    def full(*_):
        raise BadInput("README.md: cannot write (No space left on device)")

    monkeypatch.setattr(weights, "replace_folder", full)
    with pytest.raises(BadInput, match="No space left"):
        export_weights(smoke_run, copy)
    assert load_weights(copy).config["version"] == "0.0.1"
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
