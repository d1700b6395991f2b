"""The folder of pushed models: what lies in it is whole, and nothing leads out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpu_node.model_source import FolderSource, GgufSource
from gpu_node.pushed import NOTE_FILE, PushedModels, StoredFile, write_note


@pytest.fixture
def pushed(tmp_path: Path) -> PushedModels:
    return PushedModels(tmp_path / "pushed")


def made(pushed: PushedModels, name: str, text: str = "{}") -> Path:
    folder = pushed.staging / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"w")
    write_note(folder, name, (StoredFile("config.json", len(text), "aa"), StoredFile("model.safetensors", 1, "bb")))
    return folder


def test_a_published_model_has_its_name_in_any_case(pushed: PushedModels) -> None:
    assert pushed.find("Anna/Tiny") is None and pushed.sources() == []
    folder = pushed.publish(made(pushed, "new"), "Anna/Tiny")
    source = pushed.find("anna/TINY:latest")
    assert source == FolderSource(folder, "anna/tiny") and source.name == "anna/tiny"
    assert pushed.sources() == [source]
    assert not (pushed.staging / "new").exists()
    assert [file.name for file in pushed.files_of("ANNA/tiny")] == ["config.json", "model.safetensors"]


def test_a_gguf_file_is_called_as_it_was_pushed(pushed: PushedModels) -> None:
    folder = pushed.staging / "g"
    folder.mkdir(parents=True)
    (folder / "Tiny.Q4_0.gguf").write_bytes(b"w")
    target = pushed.publish(folder, "tiny")
    assert pushed.find("tiny") == GgufSource(target / "Tiny.Q4_0.gguf", "tiny")
    assert pushed.find("tiny").name == "tiny"


def test_a_new_one_takes_the_place_of_the_old_one(pushed: PushedModels) -> None:
    pushed.publish(made(pushed, "one", "1"), "tiny")
    folder = pushed.publish(made(pushed, "two", "22"), "Tiny")
    assert (folder / "config.json").read_text() == "22"
    assert sorted(entry.name for entry in pushed.folder.iterdir()) == [".staging", "tiny"]


def test_the_old_one_comes_back_when_the_new_one_never_came(pushed: PushedModels) -> None:
    folder = pushed.publish(made(pushed, "one", "1"), "tiny")
    with pytest.raises(OSError):
        pushed.publish(pushed.staging / "nothing", "tiny")
    assert (folder / "config.json").read_text() == "1"
    folder.rename(pushed.folder / ".aside-tiny")  # as if the power had failed between two steps
    pushed.recover()
    assert (folder / "config.json").read_text() == "1"
    shutil.copytree(folder, pushed.folder / ".aside-tiny")
    pushed.recover()
    assert sorted(entry.name for entry in pushed.folder.iterdir()) == [".staging", "tiny"]


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "/etc", ".staging", "a@b", "a\0b", "~", "x/../.."])
def test_no_name_leads_anywhere_else(pushed: PushedModels, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    made(pushed, "a@b").rename(pushed.folder / "a@b")
    assert pushed.find(name) is None
    assert pushed.find("a/b") is not None


def test_links_and_strangers_are_no_models(pushed: PushedModels, tmp_path: Path) -> None:
    elsewhere = made(pushed, "x").rename(tmp_path / "elsewhere")
    (pushed.folder / "linked").symlink_to(elsewhere)
    (pushed.folder / "empty").mkdir()
    (pushed.folder / "file").write_text("x")
    assert pushed.sources() == [] and pushed.find("linked") is None and pushed.find("empty") is None
    assert list(pushed.stored()) == []


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"files": 3}', '{"files": [{"name": "x"}]}', "\x00"])
def test_a_broken_note_says_nothing(pushed: PushedModels, note: str) -> None:
    folder = pushed.publish(made(pushed, "one"), "tiny")
    (folder / NOTE_FILE).write_text(note)
    assert pushed.files_of("tiny") == ()
    assert pushed.find("tiny") is not None
