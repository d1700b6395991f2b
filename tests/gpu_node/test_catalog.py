"""What a request may name, and that a name is never a path."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from gpu_node.catalog import Catalog
from gpu_node.manifest import models_folder
from gpu_node.model_source import FolderSource, HubSource, KnownSource
from gpu_node.model_store import ModelStore
from gpu_node.progress import Progress


@pytest.fixture
def models(tmp_path: Path, tiny_folder: Path) -> Path:
    folder = tmp_path / "models"
    shutil.copytree(tiny_folder, folder / "My Tiny")
    shutil.copy(models_folder() / "manifest.json", folder)
    (folder / "notes").mkdir()
    (folder / "Other.gguf").write_bytes(b"not yet read")
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"the manifest's own")
    return folder


@pytest.fixture
def catalog(models: Path, tmp_path: Path) -> Catalog:
    store = ModelStore(tmp_path / "cache", models, Progress(io.StringIO()))
    return Catalog(store, models, FolderSource(models / "My Tiny"))


def test_known_and_side_loaded_models_are_found_by_name(catalog: Catalog, models: Path) -> None:
    known = catalog.find("SmolLM2:latest")
    assert isinstance(known, KnownSource) and known.name == "smollm2:135m"
    assert catalog.find("my-tiny") == FolderSource((models / "My Tiny").resolve())
    assert [source.name for source in catalog.sources()] == ["my-tiny", "smollm2:135m", "other"]


@pytest.mark.parametrize("name", ["notes", "/etc", "..", "models/notes", "~", "organisation/name", "other.gguf"])
def test_nothing_else_is(catalog: Catalog, name: str, models: Path) -> None:
    assert catalog.find(name) is None
    assert catalog.find(str(models / "My Tiny")) is None


def test_the_hub_is_for_loadings(catalog: Catalog) -> None:
    assert catalog.find_fetchable("organisation/name") == HubSource("organisation/name")
    assert catalog.find_fetchable("my-tiny") == catalog.find("my-tiny")
    for name in ("../name", "a/b/c", "name", "/etc/passwd"):
        assert catalog.find_fetchable(name) is None


def test_descriptions_are_there_where_the_files_are_and_are_read_once(catalog: Catalog) -> None:
    entries = {entry.name: entry for entry in catalog.entries()}
    described = entries["my-tiny"].description
    assert described is not None and described.family == "llama"
    assert entries["smollm2:135m"].description is None
    assert entries["other"].description is None, "it is no GGUF file"
    assert catalog.describe(entries["my-tiny"].source) is described
