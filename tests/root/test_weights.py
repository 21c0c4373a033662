"""Weights are what they say they are, or one sentence says why not; nothing in a folder of weights is ever run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from phyldm_core import weights
from phyldm_core.machine.errors import BadInput
from phyldm_core.machine.files import sha256
from phyldm_core.weights import TENSORS, load_weights


@pytest.fixture
def copy(smoke_run, tmp_path) -> Path:
    """The folder of a run is one of weights."""
    return Path(shutil.copytree(smoke_run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("cohort")))


def edit(folder: Path, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def relist(folder: Path, name: str):
    """Pretend that a changed file was written so."""
    files = json.loads((folder / "config.json").read_text())["files"]
    edit(folder, files=files | {name: sha256(folder / name)})


def refusal(folder) -> str:
    with pytest.raises(BadInput) as caught:
        load_weights(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


# --- whole ----------------------------------------------------------------------------------------


def test_a_run_s_folder_is_a_folder_of_weights(smoke_run):
    loaded = load_weights(smoke_run.folder)
    shape = smoke_run.recipe.shape
    assert (loaded.voxel_mm, loaded.shape, loaded.slab_mm, loaded.head) == (6.0, shape, 12.0, False)
    assert loaded.config["profile"] == "smoke" and loaded.training["heads"]["test"] == ["mni152"]
    assert {path.relative_to(smoke_run.folder).as_posix() for path in (smoke_run.folder / "vae").iterdir()} <= set(
        loaded.config["files"]
    )
    for name, tensor in smoke_run.vae().state_dict().items():
        assert torch.equal(loaded.vae().state_dict()[name], tensor)
    drawn = [model.pipeline()(2, seed=1, num_inference_steps=2).stack() for model in (loaded, smoke_run)]
    torch.testing.assert_close(*drawn)


def test_weights_are_looked_for_where_reproduce_puts_them(smoke_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "RELEASE_FOLDER", tmp_path / "released")
    with pytest.raises(BadInput, match="runs/laptop: no weights here: make them with phyldm reproduce"):
        load_weights()
    with pytest.raises(BadInput, match="released: no such folder of weights"):
        load_weights("release")
    shutil.copytree(smoke_run.folder, tmp_path / "released")
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
    assert "changed since it was written" in refusal(copy)


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
