"""What `--model` means: a known name, a GGUF file, a folder of safetensors, or a hub id. Decides, loads nothing.

A mistake is a `UsageError` with one sentence, before anything is started.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_node.errors import UsageError
from gpu_node.manifest import KnownModel, Manifest
from gpu_node.model_folder import PICKLE_REFUSAL, PICKLE_SUFFIXES
from gpu_node.names import name_of_path, same_model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class KnownSource:
    model: KnownModel

    @property
    def name(self) -> str:
        return self.model.name


@dataclass(frozen=True, slots=True)
class GgufSource:
    path: Path
    called: str = ""  # otherwise than the file

    @property
    def name(self) -> str:
        return self.called or name_of_path(self.path.stem)


@dataclass(frozen=True, slots=True)
class FolderSource:
    path: Path
    called: str = ""  # otherwise than the folder

    @property
    def name(self) -> str:
        return self.called or name_of_path(self.path.name)


@dataclass(frozen=True, slots=True)
class HubSource:
    repository: str

    @property
    def name(self) -> str:
        return self.repository.lower()


ModelSource = KnownSource | GgufSource | FolderSource | HubSource


def names_of(source: ModelSource) -> tuple[str, ...]:
    """The name the node lists first, then those it also answers to."""
    aliases = source.model.aliases if isinstance(source, KnownSource) else ()
    return (source.name, *aliases, "default")


def resolve(
    model: str, manifest: Manifest, models: Path, pushed: Callable[[str], ModelSource | None] = lambda _: None
) -> ModelSource:
    """`models` is the folder of side-loaded files: their names work without a path. `pushed` knows what clients sent.

    Raises `UsageError`."""
    known = manifest.find(model)
    if known is not None:
        return KnownSource(known)
    path = Path(model).expanduser()
    if path.exists():
        return _of_path(path.resolve())
    side_loaded = _side_loaded(model, models)
    if side_loaded is not None:
        return _of_path(side_loaded.resolve())
    sent = pushed(model)
    if sent is not None:
        return sent
    if path.suffix in PICKLE_SUFFIXES | {".gguf", ".safetensors"} or model.startswith(("/", ".", "~")):
        raise UsageError(f"there is no file or folder {model}")
    if _HUB_ID.fullmatch(model):
        return HubSource(model)
    names = ", ".join(known.name for known in manifest.models)
    raise UsageError(
        f"the model {model!r} is unknown: give {names}, a path to a .gguf file or a folder of "
        "safetensors, or a hub id like organisation/name"
    )


def _of_path(path: Path) -> ModelSource:
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".gguf":
        return GgufSource(path)
    if path.suffix == ".safetensors":
        raise UsageError(f"{path} is only a part of a model: give the folder that it lies in")
    if path.suffix in PICKLE_SUFFIXES:
        raise UsageError(f"{path} is refused: {PICKLE_REFUSAL}")
    raise UsageError(f"{path} is no model: give a .gguf file or a folder of safetensors")


def _of_folder(path: Path) -> ModelSource:
    if any(path.glob("*.safetensors")):
        return FolderSource(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return GgufSource(files[0])
    if files:
        raise UsageError(f"{path} holds {len(files)} GGUF files: give one of them, as {files[0]}")
    if any(entry.suffix in PICKLE_SUFFIXES for entry in path.iterdir()):
        raise UsageError(f"{path} is refused: {PICKLE_REFUSAL}")
    raise UsageError(f"{path} holds no model: there is neither a .safetensors nor a .gguf file in it")


def _side_loaded(model: str, models: Path) -> Path | None:
    if not models.is_dir():
        return None
    for entry in sorted(models.iterdir()):
        usable = entry.suffix == ".gguf" or (entry.is_dir() and (entry / "config.json").exists())
        own = entry.stem if entry.suffix == ".gguf" else entry.name
        if usable and (same_model(model, name_of_path(own)) or model == entry.name):
            return entry
    return None
