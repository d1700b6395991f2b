"""Which files of a model go to a phone: all three kinds, of a store one model only, and what is none of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potluck.cli.adb_models import model_files
from potluck.errors import Misuse


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def store(folder: Path, **models: str) -> Path:
    """Each model's layers, a letter each; its configuration is the first."""
    (folder / "blobs").mkdir(parents=True)
    (folder / "manifests").mkdir()
    for name, letters in models.items():
        path = folder / "manifests/registry.ollama.ai/library" / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = [{"digest": digest(letter)} for letter in letters[1:]]
        path.write_text(json.dumps({"config": {"digest": digest(letters[0])}, "layers": layers}))
        for letter in letters:
            (folder / "blobs" / digest(letter).replace(":", "-")).touch()
    return folder


def sent(path: Path, model: str = "") -> list[str]:
    return [there for _, there in model_files([path], model)]


def blob(letter: str) -> str:
    return f"blobs/sha256-{letter * 64}"


def test_of_a_store_one_model_goes_and_its_manifest_last(tmp_path: Path) -> None:
    here = store(tmp_path / "store", tiny_latest="ab", large_7b="abcd")
    assert sent(here, "tiny") == [blob("a"), blob("b"), "manifests/registry.ollama.ai/library/tiny/latest"]
    assert sent(here, "large:7b")[:-1] == [blob(letter) for letter in "abcd"]
    with pytest.raises(Misuse, match=r"several models \(large:7b, tiny:latest\): name one with --model"):
        sent(here)
    with pytest.raises(Misuse, match="has no small; it has large:7b, tiny:latest"):
        sent(here, "small")
    assert len(sent(store(tmp_path / "one", tiny_latest="a"))) == 2


def test_a_store_that_lacks_something_is_a_sentence(tmp_path: Path) -> None:
    here = store(tmp_path, tiny_latest="ab")
    (here / blob("b")).unlink()
    with pytest.raises(Misuse, match=r"lacks sha256-b+ of tiny:latest: ollama pull tiny:latest"):
        sent(here)
    with pytest.raises(Misuse, match="has no model"):
        sent(store(tmp_path / "empty"))


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"config": {"digest": "sha256:../../x"}, "layers": []}', '{"config": 1, "layers": 2}']
)
def test_what_is_no_manifest_names_no_file(tmp_path: Path, said: str) -> None:
    here = store(tmp_path, tiny_latest="a")
    (here / "manifests/registry.ollama.ai/library/tiny/latest").write_text(said)
    with pytest.raises(Misuse, match="is no manifest"):
        sent(here)


def test_a_folder_of_safetensors_goes_whole_and_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", ".gitattributes"):
        (folder / name).touch()
    (folder / "onnx").mkdir()
    wanted = ["Tiny/config.json", "Tiny/model.safetensors", "Tiny/tokenizer.json"]
    assert sent(folder) == wanted
    monkeypatch.chdir(folder)
    assert sent(Path()) == wanted


def test_without_a_name_all_in_models_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_files(None, "") == []
    models = store(tmp_path / "models", tiny_latest="a")
    (models / "one.GGUF").touch()
    (models / "README.md").touch()
    (models / "Tiny").mkdir()
    (models / "Tiny" / "config.json").touch()
    (models / "Tiny" / "model.safetensors").touch()
    found = [there for _, there in model_files(None, "")]
    store_files = [blob("a"), "manifests/registry.ollama.ai/library/tiny/latest"]
    assert found == [*store_files, "Tiny/config.json", "Tiny/model.safetensors", "one.GGUF"]
    assert [there for _, there in model_files(None, "fetched:1b")] == found[2:]


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="there is no file"):
        sent(tmp_path / "none")
    with pytest.raises(Misuse, match="no GGUF file, no folder of safetensors"):
        sent(tmp_path)
