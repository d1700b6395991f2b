"""Which models the engine can run, why others cannot, and how our attention gets into a model of transformers.

A model works when it is decoder-only, keeps nothing of the past but keys and values, and calls the attention function
that is plugged into it once a layer. What a layer keeps and how far it looks back is seen from one traced forward, not
from names of families. Must not know batches, the pool, or how weights were read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from gpu_node.engine.attention import AttentionTerms
from gpu_node.engine.kv_pool import LayerShape
from gpu_node.errors import ModelError

# Under this name transformers finds our function. There is no mask under it: then models make none.
IMPLEMENTATION = "potluck_paged"
CARRIED = "_potluck_attention"  # the attribute by which a module knows where its attention is computed
LAYER_TYPES = ("full_attention", "sliding_attention")
# What models hand to the attention function and what says nothing about the numbers, or is in `AttentionTerms`.
HARMLESS = frozenset(
    (
        *("dropout", "scaling", "sliding_window", "softcap", "s_aux", "is_causal", "deterministic"),
        *("position_ids", "position_embeddings", "cache_position", "use_cache", "past_key_values"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    )
)

Attend = Callable[[int, Tensor, Tensor, Tensor, AttentionTerms], Tensor]


@dataclass(frozen=True, slots=True)
class Plug:
    """Where a model's attention modules find what computes for them: `attend(layer, query, key, value, terms)`.

    Query, key and value are [tokens, heads, dim], as is the answer.
    """

    attend: Attend


@dataclass(frozen=True, slots=True)
class _Socket:
    """What an attention module carries once the plug is in."""

    plug: Plug
    layer: int
    window: int | None

    def __call__(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> Tensor:
        scale = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        terms = AttentionTerms(scale, self.window, options.get("softcap"), options.get("s_aux"))
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
        return self.plug.attend(self.layer, query, key, value, terms)[None]


@dataclass(frozen=True, slots=True)
class _Call:
    module: torch.nn.Module
    shape: LayerShape
    options: Mapping[str, Any]


class _Tracer:
    """Carried by every module during one forward, to see which of them compute attention, and of what shape."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def __call__(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]
    ) -> Tensor:
        shape = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], options.get("sliding_window"))
        self.calls.append(_Call(module, shape, options))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])


def refusal(config: Any) -> str | None:
    """Why a model with this config (of transformers) cannot run; None: nothing speaks against it so far.

    Needs no weights, so that nothing is read in vain."""
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder; only decoders run here"
    text = config.get_text_config(decoder=True)
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - set(LAYER_TYPES))
    if strange:
        return f"its layers of type {', '.join(strange)} keep more or other things than keys and values"
    if getattr(text, "alibi", False) or getattr(text, "position_embedding_type", "") == "alibi":
        return "its positions are biases on attention scores (ALiBi)"
    if getattr(text, "add_cross_attention", False):
        return "it attends to something other than its own text"
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return "its tokens see those that come after them"
    return None


def model_refusal(model: Any) -> str | None:
    """As `refusal`, with what only the model's class tells."""
    reason = refusal(model.config)
    if reason is not None:
        return reason
    if getattr(model, "_is_stateful", False):
        return "it is recurrent: its state cannot be kept by the token"
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced: it does not use transformers' attention interface"
    return None


def plug_in(model: Any, plug: Plug) -> tuple[LayerShape, ...]:
    """Let every attention layer of `model` compute through `plug`; answers what each of them keeps, in the order in
    which they are called. Raises `ModelError` when the model cannot run like that."""
    AttentionInterface.register(IMPLEMENTATION, _plugged)
    model.set_attn_implementation(IMPLEMENTATION)
    calls = _traced(model)
    reason = _doubt(model.config.get_text_config(decoder=True), calls)
    if reason is not None:
        raise ModelError(f"this model cannot run here: {reason}")
    types = _layer_types(model, len(calls))
    shapes = []
    for layer, (call, kind) in enumerate(zip(calls, types, strict=True)):
        window = None if kind == "full_attention" else call.shape.window
        shapes.append(LayerShape(call.shape.kv_heads, call.shape.key_dim, call.shape.value_dim, window))
        setattr(call.module, CARRIED, _Socket(plug, layer, window))
    return tuple(shapes)


def _plugged(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' signature: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    return getattr(module, CARRIED)(module, query, key, value, options), None


def _traced(model: Any) -> list[_Call]:
    """The calls of one small forward; what it computes is of no use."""
    tracer = _Tracer()
    for module in model.modules():
        setattr(module, CARRIED, tracer)
    try:
        with torch.inference_mode():
            positions = torch.arange(3, device=model.device)[None]
            model(input_ids=positions + 1, position_ids=positions, use_cache=False)
    finally:
        for module in model.modules():
            delattr(module, CARRIED)
    return tracer.calls


def _doubt(config: Any, calls: list[_Call]) -> str | None:
    layers = config.num_hidden_layers
    if len(calls) != layers or len({id(call.module) for call in calls}) != layers:
        return f"{len(calls)} of its {layers} layers compute attention through transformers' attention interface"
    for call in calls:
        strange = sorted(name for name, value in call.options.items() if value is not None and name not in HARMLESS)
        if strange:
            return f"its attention depends on {', '.join(strange)}"
        if call.options.get("is_causal") is False:
            return "its tokens see those that come after them"
    for kind, call in zip(getattr(config, "layer_types", None) or (), calls, strict=False):
        if kind == "sliding_attention" and call.shape.window is None:
            return "its sliding layers do not say how far they look back"
    return None


def _layer_types(model: Any, layers: int) -> list[str]:
    """One a layer; where the config names none, a layer that hands over a window has one."""
    return getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ["sliding_attention"] * layers


def freeze_positions(model: Any, context: int) -> None:
    """Make rotary positions independent of what else is in a batch: some models choose frequencies by the longest
    position of a forward. LongRoPE takes its long factors when `context` passes the length trained on (as llama.cpp and
    vLLM do), dynamic scaling stays at its first frequencies."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            _freeze(module, kinds, None, context)
            module.rope_type = "frozen"
        elif isinstance(kinds, dict):
            for name, kind in kinds.items():
                _freeze(module, kind, name, context)
            module.rope_type = dict.fromkeys(kinds, "frozen")


def _freeze(module: Any, kind: str, layer_type: str | None, context: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind != "longrope":
        return
    parameters = module.config.rope_parameters
    parameters = parameters if layer_type is None else parameters[layer_type]
    trained = parameters["original_max_position_embeddings"]
    buffer = getattr(module, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq")
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
        module.config, buffer.device, seq_len=trained + (context > trained), layer_type=layer_type
    )
    buffer.copy_(frequencies)
