"""Which tensors of a GGUF file make which parameter of a transformers model, and how they must be turned for it.

Invariant: every tensor of the file has a place, or is refused by name; none is dropped silently. Standard library
only. Layouts: what llama.cpp's `convert_hf_to_gguf.py` does to each architecture, backwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpu_node.errors import ModelError
from gpu_node.gguf_config import FACTOR_TENSORS, Architecture, architecture_of
from gpu_node.gguf_header import GgufHeader, GgufTensor

Layout = Literal["plain", "pairs", "thirds", "transposed"]

_LLAMA = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
}  # fmt: skip
_AFTER = {
    **_LLAMA,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {**_LLAMA, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
_GPT_NEOX = {
    "attn_norm": "input_layernorm", "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True, slots=True)
class _Names:
    layer: str
    inner: Mapping[str, str]
    outer: Mapping[str, str]


_NAMES = {
    "gemma2": _Names("model.layers", _AFTER, _OUTER),
    "gemma3": _Names("model.layers", _AFTER, _OUTER),
    "olmo2": _Names("model.layers", _AFTER, _OUTER),
    "phi3": _Names("model.layers", _PHI3, _OUTER),
    "gpt2": _Names(
        "transformer.h",
        _GPT2,
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
    ),
    "gptneox": _Names(
        "gpt_neox.layers",
        _GPT_NEOX,
        {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "lm_head"},
    ),
}
_PLAIN_NAMES = _Names("model.layers", _LLAMA, _OUTER)
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a parameter's numbers come from. With two tensors each fills half of the second dimension."""

    tensors: tuple[GgufTensor, ...]
    layout: Layout = "plain"
    heads: int = 0  # for "pairs" and "thirds"
    offset: float = 0.0  # is taken away from every number

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.tensors[0].shape
        if self.layout == "transposed":
            return shape[::-1]
        return shape if len(self.tensors) == 1 else (shape[0], 2 * shape[1], *shape[2:])


def origins(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Origin]:
    """By parameter name; `config` as from `config_values`. Raises `ModelError` for a tensor without a place."""
    architecture = architecture_of(header)
    names = _NAMES.get(header.architecture, _PLAIN_NAMES)
    tensors = {tensor.name: tensor for tensor in header.tensors if tensor.name not in FACTOR_TENSORS}
    found: dict[str, Origin] = {}
    for name, tensor in tensors.items():
        layer, short, suffix = _parts(name)
        if short in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            _place_experts(found, names, tensors, layer, short)
            continue
        table = names.outer if layer is None else names.inner
        if short not in table:
            raise ModelError(f"the tensor {name} has no place in a {header.architecture} model")
        target = table[short] if layer is None else f"{names.layer}.{layer}.{table[short]}"
        found[f"{target}.{suffix}"] = _turned(tensor, short, suffix, header.architecture, architecture, config)
    return found


def _parts(name: str) -> tuple[str | None, str, str]:
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise ModelError(f"the tensor {name} has a name that no model here knows")
    return match[1], match[2], match[3]


def _turned(
    tensor: GgufTensor, short: str, suffix: str, name: str, architecture: Architecture, config: Mapping[str, Any]
) -> Origin:
    if architecture.pairs and short in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if short == "attn_q" else "num_key_value_heads"]
        return Origin((tensor,), "pairs", heads)
    if architecture.offset_norms and short.endswith("norm"):
        return Origin((tensor,), offset=1.0)
    if name == "gptneox" and short == "attn_qkv":
        return Origin((tensor,), "thirds", config["num_attention_heads"])
    if name == "gpt2" and short in _GPT2 and suffix == "weight" and len(tensor.shape) == 2:
        return Origin((tensor,), "transposed")
    return Origin((tensor,))


def _place_experts(
    found: dict[str, Origin], names: _Names, tensors: Mapping[str, GgufTensor], layer: str | None, short: str
) -> None:
    place = f"{names.layer}.{layer}.mlp.experts"
    if short == "ffn_down_exps":
        found[f"{place}.down_proj"] = Origin((tensors[f"blk.{layer}.ffn_down_exps.weight"],))
        return
    both = tuple(tensors.get(f"blk.{layer}.{part}.weight") for part in ("ffn_gate_exps", "ffn_up_exps"))
    gate, up = both
    if gate is None or up is None or gate.shape != up.shape or len(gate.shape) != 3:
        raise ModelError(f"the experts of layer {layer} are not whole")
    found[f"{place}.gate_up_proj"] = Origin((gate, up))
