"""The models that clients have pushed: one folder each, beneath `pushed/` in the node's cache.

Invariants: a folder here is whole, since it is renamed into place last, with a note of what it is made of; its name is
the model's, in small letters, with `@` for `/`, so no name leads anywhere else; links are not followed. An older model
of the same name is set aside meanwhile, and comes back if the node dies just then. How files arrive is not known.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_node.model_source import FolderSource, GgufSource, ModelSource
from gpu_node.names import canonical

# Hidden names: no file and no model of a client can have one.
NOTE_FILE = ".pushed.json"
STAGING = ".staging"
_ASIDE = ".aside-"
_SLASH = "@"  # in no name of a model

PushedSource = FolderSource | GgufSource


@dataclass(frozen=True, slots=True)
class StoredFile:
    name: str
    size: int
    digest: str  # SHA-256, hexadecimal


class PushedModels:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staging = folder / STAGING

    def find(self, name: str) -> PushedSource | None:
        folder = self._folder_of(canonical(name))
        return source_of(folder) if folder is not None and _is_folder(folder) else None

    def sources(self) -> list[ModelSource]:
        return list(filter(None, map(source_of, self._folders())))

    def files_of(self, model: str) -> tuple[StoredFile, ...]:
        """What the model is made of, as it was pushed; empty where there is none of that name."""
        folder = self._folder_of(canonical(model))
        return read_note(folder) if folder is not None and _is_folder(folder) else ()

    def stored(self) -> Iterator[tuple[Path, StoredFile]]:
        """Every file of every model, and where it lies."""
        for folder in self._folders():
            for file in read_note(folder):
                yield folder / file.name, file

    def publish(self, made: Path, model: str) -> Path:
        """`made`, a whole folder beneath `staging`, becomes the model. Raises OSError."""
        target = self._folder_of(canonical(model))
        assert target is not None, "the offer was looked at before"
        aside = self.folder / f"{_ASIDE}{target.name}"
        if _is_folder(target):
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(target, aside)
        try:
            os.rename(made, target)
        except OSError:
            if _is_folder(aside):
                os.rename(aside, target)
            raise
        sync_folder(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        return target

    def recover(self) -> None:
        """After a start: what was set aside for a successor that never came is the model again."""
        for aside in self.folder.glob(f"{_ASIDE}*") if self.folder.is_dir() else ():
            target = self.folder / aside.name.removeprefix(_ASIDE)
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.rename(aside, target)

    def _folder_of(self, name: str) -> Path | None:
        """None for what can be no model here, whoever asks."""
        plain = name.replace("/", _SLASH)
        if not name or name.startswith(".") or _SLASH in name or Path(plain).name != plain or "\0" in name:
            return None
        return self.folder / plain

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(entry for entry in self.folder.iterdir() if entry.name[0] != "." and _is_folder(entry))


def source_of(folder: Path) -> PushedSource | None:
    """None for a folder that holds no model."""
    name = folder.name.replace(_SLASH, "/")
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return FolderSource(folder, name)
    found = [path for path in folder.iterdir() if path.suffix == ".gguf"]
    return GgufSource(found[0], name) if len(found) == 1 else None


def read_note(folder: Path) -> tuple[StoredFile, ...]:
    """Empty where there is no note, or one that means nothing: the folder was not made by this store."""
    try:
        entries = json.loads((folder / NOTE_FILE).read_bytes())["files"]
        return tuple(StoredFile(str(one["name"]), int(one["size"]), str(one["digest"])) for one in entries)
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def write_note(folder: Path, model: str, files: tuple[StoredFile, ...]) -> None:
    entries = [{"name": file.name, "size": file.size, "digest": file.digest} for file in files]
    with (folder / NOTE_FILE).open("w") as note:
        json.dump({"model": model, "files": entries}, note, indent=2)
        note.flush()
        os.fsync(note.fileno())


def sync_folder(folder: Path) -> None:
    """The names in it outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
