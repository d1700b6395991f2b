"""What a request may name, and that a name is never a path."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from gpu_node.catalog import Catalog
from gpu_node.manifest import models_folder
from gpu_node.model_source import FolderSource, GgufSource, HubSource, KnownSource
from gpu_node.model_store import ModelStore
from gpu_node.progress import Progress
from gpu_node.staging import Staging
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.offers import Files, chunks_of, files_of, offer_of


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


@pytest.fixture
def store(models: Path, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "cache", models, Progress(io.StringIO()))


def push(store: ModelStore, model: str, files: Files) -> None:
    incoming = Staging(store.pushed, free=lambda _: 1 << 50).begin(offer_of(model, files))
    for one in chunks_of(files, incoming.held):
        incoming.write(one)
    assert incoming.finish() == []


def test_pushed_models_are_found_listed_described_and_provided(
    store: ModelStore, models: Path, tiny_folder: Path, tiny_gguf: Path
) -> None:
    catalog = Catalog(store, models, FolderSource(models / "My Tiny"))
    push(store, "Anna/Tiny", files_of(tiny_folder))
    push(store, "packed", {"Tiny.F32.gguf": tiny_gguf.read_bytes()})
    entries = {entry.name: entry for entry in catalog.entries()}
    assert entries["anna/tiny"].description is not None
    assert entries["packed"].description is None, "a GGUF file is looked at once before it is used"
    for name in ("anna/tiny", "PACKED:latest"):
        source = catalog.find(name)
        assert source is not None and source == catalog.find_fetchable(name) == store.resolve(name)
        folder = store.provide(source)
        described = catalog.describe(source)
        assert described is not None and described.family == "llama"
        # The process that prepares a model is told its path, and must come to the same folder.
        assert isinstance(source, FolderSource | GgufSource)
        assert store.find(store.resolve(str(source.path))) == folder


def test_a_model_that_was_pushed_anew_is_described_anew(store: ModelStore, models: Path, tmp_path: Path) -> None:
    catalog = Catalog(store, models, FolderSource(models / "My Tiny"))
    lengths = []
    for number, positions in enumerate((128, 256)):
        push(store, "tiny", files_of(write_tiny_model(tmp_path / str(number), max_position_embeddings=positions)))
        source = catalog.find("tiny")
        assert source is not None
        described = catalog.describe(source)
        assert described is not None
        lengths.append(described.context_length)
    assert lengths == [128, 256]


def test_names_of_the_nodes_own_are_taken(store: ModelStore, models: Path, tiny_folder: Path) -> None:
    own = Catalog(store, models, FolderSource(models / "My Tiny"))
    for name in ("my-tiny", "MY-TINY", "default", "smollm2", "other"):
        assert own.is_taken(name), name
    assert not own.is_taken("anna/tiny")
    push(store, "tiny", files_of(tiny_folder))
    main = Catalog(store, models, store.resolve("tiny"))
    assert not main.is_taken("tiny"), "who pushed it may push it anew"
    assert main.is_taken("default")
    assert Catalog(store, models, FolderSource(Path("/elsewhere/tiny"))).is_taken("tiny")


def test_the_owners_models_come_before_pushed_ones(store: ModelStore, models: Path, tiny_folder: Path) -> None:
    push(store, "late", files_of(tiny_folder))
    shutil.copytree(tiny_folder, models / "late")
    catalog = Catalog(store, models, FolderSource(models / "My Tiny"))
    assert catalog.find("late") == FolderSource((models / "late").resolve())
    assert [source.name for source in catalog.sources()].count("late") == 1
