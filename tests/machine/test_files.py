"""A folder is whole or the one before it; what a killed call has done is not done twice."""

from __future__ import annotations

import contextlib

import pytest

from phyldm_core.machine import files
from phyldm_core.machine.errors import BadInput
from phyldm_core.machine.files import checksums, made_with, sha256, whole_folder


@pytest.fixture
def folder(tmp_path):
    """A folder that says "old"."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "what.txt").write_text("old")
    return tmp_path / "run"


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_as_a_whole(folder):
    with whole_folder(folder) as part:
        (part / "new.txt").write_text("new")
        assert (folder / "what.txt").read_text() == "old"
    assert names(folder) == ["new.txt"] and names(folder.parent) == ["run"]


def test_what_fails_leaves_the_old_one_and_nothing_else(folder):
    with pytest.raises(RuntimeError, match="power cut"), whole_folder(folder) as part:
        (part / "what.txt").write_text("half")
        raise RuntimeError("power cut")
    assert (folder / "what.txt").read_text() == "old" and names(folder.parent) == ["run"]


def test_a_place_that_cannot_be_taken_keeps_what_it_holds(folder, monkeypatch):
    real = files.os.replace

    def full(source, target):
        if target == folder and source.name.endswith(".part"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(BadInput, match="run: cannot write .No space left on device"), whole_folder(folder) as part:
        (part / "what.txt").write_text("new")
    assert (folder / "what.txt").read_text() == "old" and names(folder.parent) == ["run"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "notes").write_text("a file, no folder")
    with pytest.raises(BadInput, match="people: cannot write"), whole_folder(tmp_path / "notes" / "people"):
        pass


def test_equal_settings_go_on_and_others_start_anew(folder):
    def attempt(settings: dict, done: str):
        with contextlib.suppress(RuntimeError), whole_folder(folder, settings) as part:
            (part / done).touch()
            raise RuntimeError("killed")

    attempt({"seed": 1}, "first")
    assert made_with(folder) is None and (folder / "what.txt").exists()
    attempt({"seed": 1}, "second")
    with whole_folder(folder, {"seed": 1}) as part:
        assert names(part) == ["first", "made_with.json", "second"]
    assert made_with(folder) == {"seed": 1} and names(folder.parent) == ["run"]
    attempt({"seed": 2}, "third")
    with whole_folder(folder, {"seed": 3}):
        pass
    assert names(folder) == ["made_with.json"] and made_with(folder) == {"seed": 3}


def test_damaged_settings_are_named(folder):
    (folder / "recipe.json").write_text("{")
    with pytest.raises(BadInput, match="recipe.json: not a readable JSON file.*: make it again"):
        made_with(folder, "recipe.json", "make it again")


def test_checksums_are_of_the_parts_asked_for(folder):
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    assert set(checksums(folder)) == {"what.txt", "vae/config.json"}
    assert checksums(folder, "vae", "nothing") == {"vae/config.json": sha256(folder / "vae" / "config.json")}
    assert set(checksums(folder, "what.txt")) == {"what.txt"}
