"""From the metadata of a GGUF file to the configuration that transformers builds the model from.

Invariants: everything that shapes the arithmetic comes from the file, or is a constant of its architecture that
llama.cpp keeps in its code too; what cannot be expressed is refused with the reason. Standard library only: describing
a file must not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_node.errors import ModelError
from gpu_node.gguf_header import GgufHeader

# Tensors that hold numbers of the configuration: factors of the rotary frequencies.
FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# The published models with this scheme all share these numbers; the file keeps only their result.
LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_ORIGINAL = 1.0, 4.0, 8192
# More than any model has; lists as long as the layers are made before a single weight is looked at.
MOST_LAYERS = 4096

Factors = Mapping[str, Sequence[float]]


class _Metadata:
    """The file's values by llama.cpp's names, without the architecture in front of each."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.shapes = {tensor.name: tensor.shape for tensor in header.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.values.get(f"{self.header.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ModelError(f"the GGUF file lacks {self.header.architecture}.{key}")
        return value

    def one(self, key: str, default: Any = None) -> Any:
        """Some files repeat a number for every layer; they must all be equal."""
        value = self.get(key, default)
        if not isinstance(value, tuple):
            return value
        if len(set(value)) != 1:
            raise ModelError(f"the GGUF file gives each layer its own {key}, which is not supported")
        return value[0]

    def has(self, part: str) -> bool:
        return any(part in name for name in self.shapes)

    @property
    def heads(self) -> int:
        return int(self.one("attention.head_count") or self.need("attention.head_count"))

    @property
    def head_size(self) -> int:
        hidden = int(self.need("embedding_length"))
        return int(self.get("attention.key_length") or hidden // max(self.heads, 1))


Extra = Callable[[_Metadata], dict[str, Any]]


def _nothing(metadata: _Metadata) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What transformers calls it, and what its files leave unsaid."""

    model_type: str
    pairs: bool = False  # query and key rows lie in pairs, as llama.cpp turns them
    offset_norms: bool = False  # norms are stored as 1 + w
    extra: Extra = _nothing
    constants: Mapping[str, Any] = field(default_factory=dict)


def _llama(metadata: _Metadata) -> dict[str, Any]:
    if metadata.get("expert_count"):
        return {
            "model_type": "mixtral",
            "num_local_experts": metadata.need("expert_count"),
            "num_experts_per_tok": metadata.need("expert_used_count"),
        }
    return {"attention_bias": metadata.has("attn_q.bias"), "mlp_bias": metadata.has("ffn_up.bias")}


def _qwen3_moe(metadata: _Metadata) -> dict[str, Any]:
    return {
        "num_experts": metadata.need("expert_count"),
        "num_experts_per_tok": metadata.need("expert_used_count"),
        "moe_intermediate_size": metadata.need("expert_feed_forward_length"),
        "intermediate_size": metadata.get("feed_forward_length") or metadata.need("expert_feed_forward_length"),
    }


def _gemma2(metadata: _Metadata) -> dict[str, Any]:
    # The 27B model alone scales by its hidden size; llama.cpp knows it by its layers, too.
    whole = metadata.need("embedding_length") // metadata.heads
    return {
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.get("final_logit_softcapping", 30.0),
        "sliding_window": metadata.get("attention.sliding_window", 4096),
        "query_pre_attn_scalar": whole if metadata.need("block_count") == 46 else metadata.head_size,
    }


def _gemma3(metadata: _Metadata) -> dict[str, Any]:
    whole = metadata.need("embedding_length") // metadata.heads
    layers = metadata.need("block_count")
    kinds = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(layers)]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base", 1_000_000.0)}
    if metadata.get("rope.scaling.factor"):
        rope |= {"rope_type": "linear", "factor": metadata.get("rope.scaling.factor")}
    local = metadata.get("rope.freq_base_swa", 10_000.0)
    return {
        "sliding_window": metadata.get("attention.sliding_window", 1024),
        "query_pre_attn_scalar": whole if layers == 62 else metadata.head_size,
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _phi3(metadata: _Metadata) -> dict[str, Any]:
    window = metadata.get("attention.sliding_window")
    original = metadata.get("rope.scaling.original_context_length") or metadata.need("context_length")
    return {"sliding_window": window or None, "original_max_position_embeddings": original}


def _granite(metadata: _Metadata) -> dict[str, Any]:
    return {
        "attention_multiplier": metadata.get("attention.scale") or metadata.head_size**-0.5,
        "embedding_multiplier": metadata.get("embedding_scale", 1.0),
        "residual_multiplier": metadata.get("residual_scale", 1.0),
        "logits_scaling": metadata.get("logit_scale", 1.0),
        "attention_bias": metadata.has("attn_q.bias"),
    }


def _gpt2(metadata: _Metadata) -> dict[str, Any]:
    return {
        "n_positions": metadata.need("context_length"),
        "n_embd": metadata.need("embedding_length"),
        "n_layer": metadata.need("block_count"),
        "n_head": metadata.heads,
        "n_inner": metadata.need("feed_forward_length"),
        "layer_norm_epsilon": metadata.get("attention.layer_norm_epsilon", 1e-5),
    }


def _gpt_neox(metadata: _Metadata) -> dict[str, Any]:
    return {
        "layer_norm_eps": metadata.get("attention.layer_norm_epsilon", 1e-5),
        "use_parallel_residual": bool(metadata.get("use_parallel_residual", True)),
    }


_QWEN = {"use_sliding_window": False}
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", pairs=True, extra=_llama),
    "qwen2": Architecture("qwen2", constants=_QWEN),
    "qwen3": Architecture("qwen3", constants=_QWEN),
    "qwen3moe": Architecture(
        "qwen3_moe", extra=_qwen3_moe, constants={**_QWEN, "norm_topk_prob": True, "decoder_sparse_step": 1}
    ),
    "gemma2": Architecture("gemma2", offset_norms=True, extra=_gemma2),
    "gemma3": Architecture("gemma3_text", offset_norms=True, extra=_gemma3),
    "phi3": Architecture("phi3", extra=_phi3),
    "granite": Architecture("granite", pairs=True, extra=_granite),
    "olmo2": Architecture("olmo2"),
    "smollm3": Architecture("smollm3", pairs=True, constants={"no_rope_layer_interval": 4}),
    "gpt2": Architecture("gpt2", extra=_gpt2),
    "gptneox": Architecture("gpt_neox", extra=_gpt_neox),
}


def architecture_of(header: GgufHeader) -> Architecture:
    """Raises `ModelError` for one whose names and layouts are not known."""
    found = ARCHITECTURES.get(header.architecture)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"GGUF files of the architecture {header.architecture!r} are not supported; known: {known}")
    return found


def config_values(header: GgufHeader, factors: Factors | None = None) -> dict[str, Any]:
    """What transformers' configuration class takes, with its `model_type`.

    `factors` are the contents of those of `FACTOR_TENSORS` that the file has; without them long contexts are described
    but for their scaling. Raises `ModelError`.
    """
    architecture, metadata = architecture_of(header), _Metadata(header)
    try:
        if not 0 < metadata.need("block_count") <= MOST_LAYERS:
            raise ModelError(f"the GGUF file speaks of {metadata.need('block_count')} layers")
        return _values(architecture, metadata, factors or {})
    except (ArithmeticError, TypeError, ValueError) as error:  # a size of 0, or a word in its place
        raise ModelError(f"the sizes that the GGUF file states make no model: {error}") from error


def _values(architecture: Architecture, metadata: _Metadata, factors: Factors) -> dict[str, Any]:
    header = metadata.header
    vocabulary = metadata.shapes.get("token_embd.weight", (0,))[0]
    values = {
        "model_type": architecture.model_type,
        "vocab_size": vocabulary,
        "max_position_embeddings": metadata.need("context_length"),
        "hidden_size": metadata.need("embedding_length"),
        "num_hidden_layers": metadata.need("block_count"),
        "intermediate_size": metadata.one("feed_forward_length"),
        "num_attention_heads": metadata.heads,
        "num_key_value_heads": metadata.one("attention.head_count_kv", metadata.heads),
        "head_dim": metadata.get("attention.key_length") or _rotary_head(header, metadata),
        "rms_norm_eps": metadata.get("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(metadata, factors),
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
        **_token_ids(header, vocabulary),
        **architecture.constants,
        **architecture.extra(metadata),
    }
    return {key: value for key, value in values.items() if value is not None or key.endswith("_token_id")}


def _rotary_head(header: GgufHeader, metadata: _Metadata) -> int | None:
    """Older files of the llama kind state the size of a head only as the dimensions that turn."""
    return metadata.get("rope.dimension_count") if header.architecture == "llama" else None


def _token_ids(header: GgufHeader, vocabulary: int) -> dict[str, int | None]:
    ids = {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = header.values.get(f"tokenizer.ggml.{name}_token_id")
        ids[f"{key}_token_id"] = value if isinstance(value, int) and value < vocabulary else None
    return ids


def _rope(metadata: _Metadata, factors: Factors) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base", 10_000.0)}
    turned = metadata.get("rope.dimension_count")
    if turned and turned != metadata.head_size and not metadata.get("attention.key_length"):
        rope["partial_rotary_factor"] = turned / metadata.head_size
    if "rope_freqs.weight" in factors:
        return rope | llama3_scaling(factors["rope_freqs.weight"], rope["rope_theta"])
    if "rope_factors_long.weight" in factors:
        return rope | _long_rope(metadata, factors)
    return rope | _scaling(metadata)


def _scaling(metadata: _Metadata) -> dict[str, Any]:
    kind, factor = metadata.get("rope.scaling.type"), metadata.get("rope.scaling.factor")
    if kind in (None, "none", "longrope") or not factor:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = metadata.need("rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelError(f"the rotary scaling {kind!r} of this GGUF file is not supported")


def _long_rope(metadata: _Metadata, factors: Factors) -> dict[str, Any]:
    original = metadata.need("rope.scaling.original_context_length")
    scaling = {
        "rope_type": "longrope",
        "long_factor": [float(value) for value in factors["rope_factors_long.weight"]],
        "short_factor": [float(value) for value in factors["rope_factors_short.weight"]],
        "original_max_position_embeddings": original,
        "factor": metadata.need("context_length") / original,
    }
    attention = metadata.get("rope.scaling.attn_factor")
    return scaling | ({"attention_factor": attention} if attention else {})


def llama3_scaling(stored: Sequence[float], theta: float) -> dict[str, Any]:
    """The settings that give these factors; the file has only what became of them. Raises `ModelError` for others."""
    scale = max(stored)
    settings = {
        "rope_type": "llama3",
        "factor": float(scale),
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_ORIGINAL,
    }
    expected = [_llama3_factor(theta ** (index / len(stored)), scale) for index in range(len(stored))]
    if not all(math.isclose(one, other, rel_tol=1e-3) for one, other in zip(stored, expected, strict=True)):
        raise ModelError("the rotary factors of this GGUF file follow no scheme that is known here")
    return settings if scale > 1 else {}


def _llama3_factor(inverse_frequency: float, scale: float) -> float:
    wavelength = 2 * math.pi * inverse_frequency
    if wavelength < LLAMA3_ORIGINAL / LLAMA3_HIGH:
        return 1.0
    if wavelength > LLAMA3_ORIGINAL / LLAMA3_LOW:
        return scale
    smooth = (LLAMA3_ORIGINAL / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)
    return 1 / ((1 - smooth) / scale + smooth)
