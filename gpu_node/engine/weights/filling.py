"""Builds a model of transformers without weights and fills it from a source, layer by layer.

Invariants: a parameter exists once, at its final place and in its final type; the weights of a layer lie in one buffer
of their own; a parameter that the source lacks is an error, never a random number. Must not know which file it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gpu_node.engine.weights.source import WeightSource
from gpu_node.errors import ModelError

# The alignment that vector units and copies to a GPU like best.
ALIGNMENT = 256
_LAYER = re.compile(r"^(.*?\.\d+)\.")


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter still to be filled."""

    name: str
    module: torch.nn.Module
    own_name: str  # in its module
    source_name: str
    shape: tuple[int, ...]

    @property
    def group(self) -> str:
        return group_of(self.name)


def group_of(name: str) -> str:
    """A parameter's layer; what belongs to no layer stays with its module."""
    match = _LAYER.match(name)
    return match[1] if match else name.rpartition(".")[0]


def empty_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Parameters without memory, buffers with their values."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for module in model.modules():
        names = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if names:
            # The model's own rule for what no checkpoint holds, such as rotary frequencies. Parameters have no memory
            # yet, so it changes none.
            with torch.device(device):
                model._init_weights(module)
    return model.eval()


def slots_of(model: Any, source: WeightSource) -> list[Slot] | None:
    """Where every parameter comes from; None when the source names some differently, or shapes them so."""
    names, found = source.names(), []
    for name, parameter in model.named_parameters():
        own = _name_in(names, name, model.base_model_prefix)
        if own is None or source.shape(own) != tuple(parameter.shape):
            return None
        module_name, _, last = name.rpartition(".")
        found.append(Slot(name, model.get_submodule(module_name), last, own, tuple(parameter.shape)))
    return found


def missing_from(model: Any, source: WeightSource) -> str:
    """For people: the first parameter that cannot be filled, and why."""
    for name, parameter in model.named_parameters():
        own = _name_in(source.names(), name, model.base_model_prefix)
        if own is None:
            return f"it holds no weight {name}"
        if source.shape(own) != tuple(parameter.shape):
            return f"{own} has the shape {list(source.shape(own))}, and the model wants {list(parameter.shape)}"
    return ""


def unused_in(slots: Collection[Slot], source: WeightSource) -> list[str]:
    used = {slot.source_name for slot in slots}
    return [name for name in source.names() if name not in used]


def fill(slots: Collection[Slot], source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
    """Afterwards no slot's parameter is without memory.

    Raises torch's out-of-memory error, or `ModelError` where the file ends or does not fit.
    """
    for group in by_group(slots).values():
        for slot, view in zip(group, buffer_views([slot.shape for slot in group], dtype, device), strict=True):
            source.read_into(slot.source_name, view)
            slot.module._parameters[slot.own_name] = torch.nn.Parameter(view, requires_grad=False)


def by_group(slots: Collection[Slot]) -> Mapping[str, list[Slot]]:
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.group, []).append(slot)
    return groups


def buffer_views(shapes: Collection[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """One buffer for all of them: views of it, one after the other."""
    unit = ALIGNMENT // dtype.itemsize
    sizes = [-(-torch.Size(shape).numel() // unit) * unit for shape in shapes]
    buffer = torch.empty(sum(sizes), dtype=dtype, device=device)
    views, at = [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        views.append(buffer[at : at + torch.Size(shape).numel()].view(shape))
        at += size
    return views


def gather_layers(model: Any) -> None:
    """For a model that was filled otherwise: move every layer's parameters into one buffer, one layer at a time."""
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for own_name, parameter in module._parameters.items():
            if parameter is not None:  # a tied one has several places
                places.setdefault(id(parameter), []).append((module, own_name))
    groups: dict[str, list[list[tuple[torch.nn.Module, str]]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(group_of(name), []).append(places[id(parameter)])
    for group in groups.values():
        _gather(group)


def _gather(group: list[list[tuple[torch.nn.Module, str]]]) -> None:
    old = [module.get_parameter(name).detach() for (module, name), *_ in group]
    if len({tensor.dtype for tensor in old}) != 1:
        return  # a few families keep single tensors in another precision; those layers stay as they are
    views = buffer_views([tuple(tensor.shape) for tensor in old], old[0].dtype, old[0].device)
    for tensor, view, places in zip(old, views, group, strict=True):
        moved = torch.nn.Parameter(view.copy_(tensor), requires_grad=False)
        for module, name in places:
            module._parameters[name] = moved


def tie(model: Any) -> None:
    """Give the output layer the embedding again where the model shares them; filling has replaced one of the two."""
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise ModelError(f"{left[0]} was not filled")


def _name_in(names: Collection[str], name: str, prefix: str) -> str | None:
    """Checkpoints of the bare model lack the prefix of the model with an output layer."""
    if name in names:
        return name
    bare = name.removeprefix(f"{prefix}.")
    return bare if bare in names else None
