"""Which files of a model go to a phone, and where to: a GGUF file, a folder of safetensors, or an Ollama store.

Looks at files here only. On the phone they lie below `models` as they lay here, which is how the set-up script knows
them. Of a store one model goes: its manifest and the blobs that this names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from potluck.errors import Misuse

MODELS = Path("models")
LIBRARY = "registry.ollama.ai"
MOST_MANIFEST_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Push = tuple[Path, str]  # a file here, and its name below the phone's `models`


def model_files(named: Sequence[Path] | None, model: str) -> list[Push]:
    """Of the models that are named, else of all in ./models. `model`: which one of a store. Raises Misuse."""
    paths = list(named) if named else [path for path in _found() if not _is_store(path) or _may_have(path, model)]
    return [push for path in paths for push in _files_of(path, model)]


def _found() -> Iterator[Path]:
    if _is_store(MODELS):
        yield MODELS
    for path in sorted(MODELS.glob("*")):
        if _is_gguf(path) or _is_safetensors(path) or _is_store(path):
            yield path


def _files_of(path: Path, model: str) -> list[Push]:
    if _is_gguf(path):
        return [(path, path.name)]
    if _is_store(path):
        return _of_store(path, model)
    if _is_safetensors(path):
        inside = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        return [(each, f"{path.resolve().name}/{each.name}") for each in inside]
    if not path.exists():
        raise Misuse(f"there is no file {path}")
    raise Misuse(f"{path} is no GGUF file, no folder of safetensors with its config.json and no Ollama store")


def _may_have(store: Path, model: str) -> bool:
    """A store that nobody named is passed over for a model that the phone is to fetch itself."""
    return not model or _full(model) in _models_of(store)


def _models_of(store: Path) -> dict[str, Path]:
    return {_called(path.relative_to(store / "manifests")): path for path in _manifests(store)}


def _of_store(store: Path, model: str) -> list[Push]:
    manifests = _models_of(store)
    if not manifests:
        raise Misuse(f"the Ollama store {store} has no model")
    wanted = _full(model) if model else next(iter(manifests)) if len(manifests) == 1 else None
    if wanted is None:
        raise Misuse(f"the Ollama store {store} has several models ({', '.join(manifests)}): name one with --model")
    if wanted not in manifests:
        raise Misuse(f"the Ollama store {store} has no {model}; it has {', '.join(manifests)}")
    manifest = manifests[wanted]
    blobs = [store / "blobs" / digest.replace(":", "-") for digest in _digests(manifest)]
    missing = [blob.name for blob in blobs if not blob.is_file()]
    if missing:
        raise Misuse(f"the Ollama store {store} lacks {missing[0]} of {wanted}: ollama pull {wanted}")
    # The manifest last: with it the phone has the model.
    return [(each, each.relative_to(store).as_posix()) for each in (*blobs, manifest)]


def _manifests(store: Path) -> list[Path]:
    found = (store / "manifests").rglob("*")
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _digests(manifest: Path) -> list[str]:
    try:
        if manifest.stat().st_size > MOST_MANIFEST_BYTES:
            raise ValueError
        told = json.loads(manifest.read_bytes())
        digests = [part["digest"] for part in (told["config"], *told["layers"])]
    except (ValueError, KeyError, TypeError):
        digests = [""]
    if not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
        raise Misuse(f"{manifest} is no manifest of Ollama's")
    return list(dict.fromkeys(digests))


def _called(manifest: Path) -> str:
    """A manifest's path -> what people call its model."""
    *path, tag = manifest.parts
    name = "/".join(path).removeprefix(f"{LIBRARY}/").removeprefix("library/")
    return f"{name}:{tag}"


def _full(model: str) -> str:
    name = model.removeprefix(f"{LIBRARY}/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _is_gguf(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".gguf"


def _is_store(path: Path) -> bool:
    return (path / "blobs").is_dir() and (path / "manifests").is_dir()


def _is_safetensors(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))
