"""Where a model's files lie and what they say about it, read without torch: names, sizes, shapes, template, digest.

A model is a folder of safetensors, or a GGUF file, or a folder of the store: tokenizer and a note of where the GGUF
file lies. Invariant: the same weights and tokenizer have the same digest on every machine. Pickle checkpoints are
refused here, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_node.errors import ModelError
from gpu_node.gguf_config import config_values
from gpu_node.gguf_header import read_gguf_header

# Written by the store: which GGUF file the folder is for, and what it was when the store looked.
ORIGIN_FILE = "potluck.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
PICKLE_REFUSAL = (
    "pickle checkpoints (.bin, .pt, .pth, .ckpt, .pkl) can run any code when they are opened, "
    "so only .safetensors and .gguf are loaded"
)
# A header lists every tensor; 100 MB is what the format itself allows at most.
MAX_HEADER_BYTES = 100_000_000
# Weights are told apart by samples: reading tens of gigabytes at every start would take minutes.
SAMPLES, SAMPLE_BYTES = 16, 65_536
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class ModelDescription:
    family: str
    digest: str
    size_bytes: int
    quantisation: str
    context_length: int
    embedding_length: int
    modified_at: float
    template: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    tensors: tuple[Tensor, ...] = ()
    licence: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    format: str = "safetensors"  # or "gguf"

    @property
    def parameter_count(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def parameter_size(self) -> str:
        for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
            if self.parameter_count >= size:
                return f"{self.parameter_count / size:.2f}{unit}"
        return str(self.parameter_count)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    weights: Path  # a folder of safetensors, or a .gguf file
    tokenizer: Path | None  # a folder; None: only the GGUF file itself says how text becomes tokens

    @property
    def is_gguf(self) -> bool:
        return self.weights.suffix == ".gguf"


def model_files(path: Path) -> ModelFiles:
    """`path`: a folder, one of the store's folders, or a .gguf file. Raises `ModelError` when it is none of them."""
    if path.suffix == ".gguf" and not path.is_dir():
        return ModelFiles(path, None)
    origin = read_origin(path)
    if origin is not None and "weights" in origin:
        return ModelFiles(path / origin["weights"], path)
    weight_files(path)
    return ModelFiles(path, path)


def read_origin(folder: Path) -> dict[str, Any] | None:
    path = folder / ORIGIN_FILE
    return _json(path) if path.exists() else None


def describe(path: Path) -> ModelDescription:
    """`path` as for `model_files`. Raises `ModelError`."""
    files = model_files(path)
    return _describe_gguf(files) if files.is_gguf else _describe_folder(path)


def _describe_gguf(files: ModelFiles) -> ModelDescription:
    header = read_gguf_header(files.weights)
    origin = (read_origin(files.tokenizer) if files.tokenizer else None) or {}
    settings = files.tokenizer / "tokenizer_config.json" if files.tokenizer else None
    status = files.weights.stat()
    refuse_tower(files.weights, header.values.get(f"{header.architecture}.block_count"), len(header.tensors))
    config = config_values(header)
    return ModelDescription(
        family=header.architecture,
        digest=origin.get("digest") or sampled_digest(files.weights),
        size_bytes=status.st_size,
        quantisation=header.quantisation,
        context_length=config["max_position_embeddings"],
        embedding_length=config["hidden_size"],
        modified_at=status.st_mtime,
        template=str(header.values.get("tokenizer.chat_template", "")),
        config=config,
        tokenizer=_json(settings) if settings and settings.exists() else {},
        tensors=tuple(Tensor(tensor.name, tensor.block.name, tensor.shape) for tensor in header.tensors),
        licence=str(header.values.get("general.license", "")),
        format="gguf",
    )


def _describe_folder(folder: Path) -> ModelDescription:
    weights = weight_files(folder)
    config = _json(folder / "config.json")
    nested = config.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    tensors = tuple(tensor for path in weights for tensor in _tensors(path))
    refuse_tower(folder, _first_number(text, "num_hidden_layers", "n_layer", "num_layers"), len(tensors))
    return ModelDescription(
        family=str(config.get("model_type", "unknown")),
        digest=digest_of(folder, weights),
        size_bytes=sum(path.stat().st_size for path in weights),
        quantisation=_common_dtype(tensors),
        context_length=_first_number(text, "max_position_embeddings", "n_positions", "max_sequence_length"),
        embedding_length=_first_number(text, "hidden_size", "n_embd", "d_model"),
        modified_at=weights[0].stat().st_mtime,
        template=_template(folder),
        config=text,
        tokenizer=_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {},
        tensors=tensors,
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a complete model folder, or an error that says what is wrong with it."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = _names_in(index)
        missing = [name for name in names if not (folder / name).exists()]
        if missing or not names:
            raise ModelError(f"{folder} is not complete: {', '.join(missing[:3]) or 'every weight file'} is missing")
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    if any(path.suffix in PICKLE_SUFFIXES for path in folder.iterdir()):
        raise ModelError(f"{folder} holds no .safetensors: {PICKLE_REFUSAL}")
    raise ModelError(f"{folder} holds no .safetensors file")


def _names_in(index: Path) -> list[str]:
    """The files that an index names. They lie beside it."""
    named = _json(index).get("weight_map")
    names = set(named.values()) if isinstance(named, dict) and all(map(_is_text, named.values())) else {""}
    if any(not name or Path(name).name != name for name in names):
        raise ModelError(f"{index} does not say which files hold the weights")
    return sorted(names)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def refuse_tower(path: Path, layers: Any, tensors: int) -> None:
    """A model of millions of empty layers is built before anybody sees that nothing fills them.

    Raises `ModelError`."""
    if isinstance(layers, int) and layers > tensors:
        raise ModelError(f"{path} claims {layers} layers, and holds {tensors} tensors")


def digest_of(folder: Path, weights: list[Path]) -> str:
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    for path in weights:
        digest.update(sampled_digest(path).encode())
    return digest.hexdigest()


def sampled_digest(path: Path) -> str:
    """Size, beginning, end and evenly spread samples of a file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(SAMPLES + 1):
            file.seek(max(size - SAMPLE_BYTES, 0) * sample // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _tensors(path: Path) -> Iterator[Tensor]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {size} bytes")
            header = json.loads(file.read(size))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        found = [_tensor(name, entry) for name, entry in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}") from error
    yield from found


def _tensor(name: str, entry: Any) -> Tensor:
    """Raises `ValueError`."""
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ValueError(f"the tensor {name} has no type or no shape")
    return Tensor(name, dtype, tuple(shape))


def _common_dtype(tensors: tuple[Tensor, ...]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
    return max(sizes, key=lambda dtype: sizes[dtype], default="unknown")


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text()
    settings = folder / "tokenizer_config.json"
    template = _json(settings).get("chat_template") if settings.exists() else None
    return template if isinstance(template, str) else ""


def _first_number(config: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value
