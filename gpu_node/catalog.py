"""Which models a request may name: the one that was configured, those of the manifest, those that lie in `models/`, and
those that clients have pushed, which never take the place of another.

A name never reaches the file system as a path. Reading what a model is takes disk accesses, so it is kept until the
files change; call it in a thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpu_node.errors import NodeError
from gpu_node.manifest import Manifest
from gpu_node.model_folder import ModelDescription
from gpu_node.model_source import FolderSource, GgufSource, HubSource, KnownSource, ModelSource, names_of
from gpu_node.names import canonical, is_valid, same_model
from gpu_node.pushed import PushedModels

# Names of a hub are organisation/name; deeper paths are none.
HUB_NAME_PARTS = 2


class Store(Protocol):
    @property
    def manifest(self) -> Manifest: ...

    @property
    def pushed(self) -> PushedModels: ...

    def resolve(self, model: str) -> ModelSource: ...

    def find(self, source: ModelSource) -> Path | None: ...

    def describe(self, source: ModelSource, folder: Path) -> ModelDescription: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that could be served, and what it is where its files are there already."""

    name: str
    source: ModelSource
    description: ModelDescription | None


class Catalog:
    def __init__(self, store: Store, models: Path, configured: ModelSource) -> None:
        self._store, self._models, self._configured = store, models, configured
        self._kept: dict[str, tuple[float, ModelDescription]] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> ModelSource | None:
        """A model that a request may have loaded by naming it."""
        return self.find_own(name) or self._store.pushed.find(name)

    def find_own(self, name: str) -> ModelSource | None:
        """One that this machine's owner has put here."""
        known = self._store.manifest.find(name)
        if known is not None:
            return KnownSource(known)
        return next((source for source in self._side_loaded() if same_model(source.name, name)), None)

    def is_taken(self, name: str) -> bool:
        """Whether a client may push nothing under this name."""
        if self.find_own(name) is not None:
            return True
        pushed = self._configured == self._store.pushed.find(name)
        return not pushed and any(same_model(name, own) for own in names_of(self._configured))

    def find_fetchable(self, name: str) -> ModelSource | None:
        """Also one of the hub: only for who asks for a loading in so many words."""
        found = self.find(name)
        if found is not None or not is_valid(name) or len(name.split("/")) != HUB_NAME_PARTS:
            return found
        return HubSource(name)

    def sources(self) -> list[ModelSource]:
        own = [self._configured, *map(KnownSource, self._store.manifest.models), *self._side_loaded()]
        every = [*own, *self._store.pushed.sources()]
        found: dict[str, ModelSource] = {}
        for source in every:
            found.setdefault(canonical(source.name), source)
        return list(found.values())

    def entries(self) -> list[Entry]:
        return [Entry(source.name, source, self.describe(source)) for source in self.sources()]

    def describe(self, source: ModelSource) -> ModelDescription | None:
        """None while its files are not there, or are not whole. Reads the disk."""
        try:
            folder = self._store.find(source)
            if folder is None:
                return None
            changed = folder.stat().st_mtime
            with self._lock:
                kept = self._kept.get(source.name)
            if kept is not None and kept[0] == changed:
                return kept[1]
            description = self._store.describe(source, folder)
        except (NodeError, OSError):
            return None
        with self._lock:
            self._kept[source.name] = (changed, description)
        return description

    def _side_loaded(self) -> list[ModelSource]:
        if not self._models.is_dir():
            return []
        found: list[ModelSource] = []
        for entry in sorted(self._models.iterdir()):
            if entry.suffix == ".gguf" and entry.is_file():
                found.append(GgufSource(entry.resolve()))
            elif entry.is_dir() and (entry / "config.json").exists():
                found.append(FolderSource(entry.resolve()))
        known = {model.file for model in self._store.manifest.models}
        return [source for source in found if not (isinstance(source, GgufSource) and source.path.name in known)]
