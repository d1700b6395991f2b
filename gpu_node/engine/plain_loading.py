"""Fills transformers' own modules with a source's weights, for models without layers of ours and as their measure.

Invariants: a checkpoint whose names are the model's own is read straight into place; one that transformers has to
convert first (experts one by one, older names) is read by transformers, a tensor at a time, and gathered by layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from gpu_node.engine.attention import Attention
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.weights.filling import (
    Slot,
    fill,
    gather_layers,
    slots_of,
    tie,
    unused_in,
)
from gpu_node.engine.weights.linear import Held, hold_linears, hold_tied_head
from gpu_node.engine.weights.views import SourceView
from gpu_node.errors import ModelError

HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Plain:
    stage: PlainStage
    forms: dict[str, int] = field(default_factory=dict)
    error: float | None = None


def fitting_slots(model: Any, source: SourceView) -> list[Slot] | None:
    """Where each parameter of the empty `model` comes from; None when transformers must convert the names first.

    Raises `ModelError` for a weight that the model has no place for: it would be missing from every answer.
    """
    slots = slots_of(model, source)
    if slots is None:
        return None
    tied = getattr(source.config, "tie_word_embeddings", False)
    left = [name for name in unused_in(slots, source) if not _harmless(name) and not (tied and name == HEAD)]
    if left:
        raise ModelError(f"{source.label} holds {left[0]}, which a {source.config.model_type} model has no place for")
    return slots


def load_plain(
    model: Any, slots: list[Slot], source: SourceView, numerics: Numerics, attention: Attention, context: int
) -> Plain:
    """Raises `ModelError` where the files end early, or as `PlainStage` does."""
    held = _filled(model, slots, source, numerics)
    return Plain(PlainStage(model, attention, _context(model, context)), held.forms, held.error)


def load_converted(folder: Path, source: SourceView, numerics: Numerics, attention: Attention, context: int) -> Plain:
    """A folder whose names transformers has to convert. Raises `ModelError` unless every weight finds its place."""
    model = _converted(folder, source.stored_dtype, numerics.device)
    return Plain(PlainStage(model, attention, _context(model, context)))


def _filled(model: Any, slots: list[Slot], source: SourceView, numerics: Numerics) -> Held:
    dtype, held = source.stored_dtype, Held({}, None)
    quantised = any(source.is_quantised(slot.source_name) for slot in slots)
    if quantised or numerics.held_as != "given" or numerics.compute is not dtype:
        held = hold_linears(model, slots, source, numerics)
    replaced = {id(module) for module in model.modules()}
    fill([slot for slot in slots if id(slot.module) in replaced], source, dtype, numerics.device)
    tie(model)
    if held.forms:
        hold_tied_head(model, numerics)
    return held


def _harmless(name: str) -> bool:
    """Older checkpoints keep tables that are computed now."""
    return name.endswith(("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias"))


def _converted(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        wrong = sorted(map(str, told.get(kind) or ()))
        if wrong and not all(_harmless(name) for name in wrong):
            raise ModelError(f"{folder.name} does not fit its own configuration: {kind.replace('_', ' ')}: {wrong[0]}")
    model = model.to(device).eval()
    gather_layers(model)
    return model


def _context(model: Any, context: int) -> int:
    own = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(own, context) if isinstance(own, int) else context
