"""What `--model` means, decided without loading anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.errors import UsageError
from gpu_node.manifest import models_folder, read_manifest
from gpu_node.model_source import FolderSource, GgufSource, HubSource, KnownSource, ModelSource, names_of, resolve

MANIFEST = read_manifest(models_folder())


def of(model: str, models: Path = Path("/nowhere")) -> ModelSource:
    return resolve(model, MANIFEST, models)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_known_names_and_aliases() -> None:
    source = of("default")
    assert isinstance(source, KnownSource)
    assert of("SmolLM2:135M") == source == of("smollm2")
    assert names_of(source)[0] == "smollm2:135m"
    assert "default" in names_of(source)


def test_a_gguf_file_and_a_folder_with_one(tmp_path: Path) -> None:
    path = touch(tmp_path / "Some Model.Q4_K_M.gguf")
    assert of(str(path)) == GgufSource(path)
    assert of(str(tmp_path)) == GgufSource(path)
    assert GgufSource(path).name == "some-model.q4_k_m"


def test_a_folder_of_safetensors_even_beside_pickle(tmp_path: Path) -> None:
    touch(tmp_path / "My-Model/model.safetensors")
    touch(tmp_path / "My-Model/pytorch_model.bin")
    source = of(str(tmp_path / "My-Model"))
    assert source == FolderSource(tmp_path / "My-Model")
    assert names_of(source) == ("my-model", "default")


def test_a_hub_id() -> None:
    source = of("HuggingFaceTB/SmolLM2-360M-Instruct")
    assert source == HubSource("HuggingFaceTB/SmolLM2-360M-Instruct")
    assert source.name == "huggingfacetb/smollm2-360m-instruct"


def test_what_lies_in_the_models_folder_needs_no_path(tmp_path: Path) -> None:
    path = touch(tmp_path / "Qwen2.5-0.5B.gguf")
    touch(tmp_path / "tuned/config.json")
    touch(tmp_path / "tuned/model.safetensors")
    assert of("qwen2.5-0.5b", tmp_path) == GgufSource(path)
    assert of("Qwen2.5-0.5B.gguf", tmp_path) == GgufSource(path)
    assert of("tuned", tmp_path) == FolderSource(tmp_path / "tuned")


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl"])
def test_pickle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    path = touch(tmp_path / "p" / name)
    for given in (path, path.parent):
        with pytest.raises(UsageError, match="can run any code"):
            of(str(given))


@pytest.mark.parametrize(
    ("files", "given", "told"),
    [
        (["a.gguf", "b.gguf"], "", "holds 2 GGUF files"),
        (["readme.txt"], "", "holds no model"),
        (["m.safetensors"], "m.safetensors", "give the folder"),
        (["m.txt"], "m.txt", "is no model"),
    ],
)
def test_what_is_no_model_is_one_sentence(tmp_path: Path, files: list[str], given: str, told: str) -> None:
    for name in files:
        touch(tmp_path / name)
    with pytest.raises(UsageError, match=told):
        of(str(tmp_path / given))


@pytest.mark.parametrize("given", ["/no/such", "./no", "~/no-such-thing", "missing.gguf", "models/missing.bin"])
def test_a_path_that_is_not_there(given: str) -> None:
    with pytest.raises(UsageError, match="there is no file or folder"):
        of(given)


def test_an_unknown_name_tells_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'gpt-9' is unknown: give smollm2:135m, a path"):
        of("gpt-9")
