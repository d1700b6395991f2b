"""The JSON objects of answers, field by field as Ollama 0.24 sends them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from gpu_node.engine.sequence import Done
from gpu_node.model_folder import ModelDescription

# What Ollama answers for a model that stays for ever: the longest time that Go can count.
LONGEST_STAY = timedelta(days=292 * 365)

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    total_ns: int
    load_ns: int


class Dialect(Protocol):
    """Where an answer's text stands: the only difference between the two ways to ask."""

    def piece(self, text: str) -> Record: ...

    def rendering(self) -> Record: ...

    def ending(self, done: Done) -> Record: ...


class ChatDialect:
    def piece(self, text: str) -> Record:
        return {"message": {"role": "assistant", "content": text}}

    def rendering(self) -> Record:
        return {"message": {"role": "", "content": ""}}

    def ending(self, done: Done) -> Record:
        return {}


@dataclass(frozen=True, slots=True)
class GenerateDialect:
    with_context: bool

    def piece(self, text: str) -> Record:
        return {"response": text}

    def rendering(self) -> Record:
        return {"response": ""}

    def ending(self, done: Done) -> Record:
        return {"context": list(done.context)} if self.with_context else {}


def piece(model: str, dialect: Dialect, text: str) -> Record:
    return {"model": model, "created_at": timestamp(), **dialect.piece(text), "done": False}


def ending(model: str, dialect: Dialect, text: str, done: Done, timing: Timing) -> Record:
    return {
        **finished(model, dialect, done.reason, text),
        **dialect.ending(done),
        "total_duration": timing.total_ns,
        "load_duration": timing.load_ns,
        "prompt_eval_count": done.prompt_tokens,
        "prompt_eval_duration": done.prompt_ns,
        "eval_count": done.output_tokens,
        "eval_duration": done.output_ns,
    }


def with_logprobs(record: Record, logprobs: Sequence[Record]) -> Record:
    return {**record, "logprobs": list(logprobs)} if logprobs else record


def finished(model: str, dialect: Dialect, reason: str, text: str = "") -> Record:
    """The answer to a request that only loads or unloads, and the beginning of every last record."""
    return {**piece(model, dialect, text), "done": True, "done_reason": reason}


def rendered(model: str, dialect: Dialect, text: str) -> Record:
    return {
        "model": model,
        "created_at": timestamp(),
        **dialect.rendering(),
        "done": False,
        "_debug_info": {"rendered_template": text},
    }


def listed(name: str, model: ModelDescription) -> Record:
    details = {**details_of(model), "context_length": model.context_length, "embedding_length": model.embedding_length}
    return {
        "name": name,
        "model": name,
        "modified_at": timestamp(model.modified_at),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": details,
        "capabilities": ["completion"],
    }


@dataclass(frozen=True, slots=True)
class Residence:
    """Where a loaded model is and how long it stays."""

    memory_bytes: int
    on_gpu: bool
    context_length: int
    seconds_left: float


def resident(name: str, model: ModelDescription, where: Residence) -> Record:
    stay = timedelta(seconds=where.seconds_left) if math.isfinite(where.seconds_left) else LONGEST_STAY
    return {
        "name": name,
        "model": name,
        "size": where.memory_bytes,
        "digest": model.digest,
        "details": details_of(model),
        "expires_at": _format(datetime.now(UTC) + min(stay, LONGEST_STAY)),
        "size_vram": where.memory_bytes if where.on_gpu else 0,
        "context_length": where.context_length,
    }


def shown(name: str, model: ModelDescription, begins_with_bos: bool | None) -> Record:
    info = _model_info(model)
    if begins_with_bos is not None:
        info["tokenizer.ggml.add_bos_token"] = begins_with_bos
    record: Record = {
        "modelfile": f"# served by Potluck\nFROM {name}\n",
        "parameters": _parameter_lines(model.parameters),
        "template": model.template,
        "details": details_of(model),
        "model_info": info,
        "tensors": [{"name": t.name, "type": t.dtype, "shape": list(t.shape)} for t in model.tensors],
        "capabilities": ["completion"],
        "modified_at": timestamp(model.modified_at),
    }
    return {"license": model.licence, **record} if model.licence else record


def details_of(model: ModelDescription) -> Record:
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantisation,
    }


def embedded(model: str, vectors: Sequence[Sequence[float]], timing: Timing, tokens: int) -> Record:
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": timing.total_ns,
        "load_duration": timing.load_ns,
        "prompt_eval_count": tokens,
    }


def timestamp(seconds: float | None = None) -> str:
    return _format(datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC))


def _format(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _model_info(model: ModelDescription) -> Record:
    family, config = model.family, model.config
    sizes = {
        "attention.head_count": config.get("num_attention_heads"),
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "block_count": config.get("num_hidden_layers"),
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
        "feed_forward_length": config.get("intermediate_size"),
        "vocab_size": config.get("vocab_size"),
    }
    ids = {f"tokenizer.ggml.{word}_token_id": config.get(f"{word}_token_id") for word in ("bos", "eos")}
    info: Mapping[str, Any] = {
        "general.architecture": family,
        "general.parameter_count": model.parameter_count,
        "general.license": model.licence or None,
        **{f"{family}.{key}": value for key, value in sizes.items()},
        **ids,
    }
    return {key: value for key, value in info.items() if value is not None}


def _parameter_lines(parameters: Mapping[str, Any]) -> str:
    """One value a line; an option with several values has several lines."""
    pairs = [(key, one) for key, value in parameters.items() for one in (value if isinstance(value, list) else [value])]
    return "\n".join(f"{key:<30} " + (f'"{value}"' if isinstance(value, str) else str(value)) for key, value in pairs)
