"""Modules of a plain model whose weights are held by a product: quantised ones, and 16-bit ones on CPUs that are slow
with them.

Invariants: a module keeps its place, its name and the dtype of what goes in and out; a weight that is quantised is read
one at a time and never all of them at once. Must not know families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gpu_node.engine.products.base import Numerics, Product, QuantisedWeight
from gpu_node.engine.products.choice import product_of
from gpu_node.engine.products.quantise import measure_error
from gpu_node.engine.weights.filling import Slot, buffer_views, by_group
from gpu_node.engine.weights.source import WeightSource


class ProductLinear(torch.nn.Module):
    def __init__(self, product: Product, compute: torch.dtype, owned: bool = True) -> None:
        """`owned`: the weight is this module's alone, not another's too."""
        super().__init__()
        self.product = product
        self.in_features, self.out_features = product.columns, product.rows
        self._compute = compute
        # Products keep their weights themselves; a model's own account of its memory counts buffers, and one without
        # storage costs nothing.
        self.register_buffer("held", _account(product.bytes if owned else 0), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        found = self.product(input.reshape(-1, self.in_features).to(self._compute))
        return found.to(input.dtype).view(*input.shape[:-1], self.out_features)


@dataclass(frozen=True, slots=True)
class Held:
    """For people: what became of the linear layers."""

    forms: dict[str, int]  # bytes by form of product
    error: float | None  # mean relative error of the products that were measured; None: nothing was quantised


def hold_linears(model: torch.nn.Module, slots: Collection[Slot], source: WeightSource, numerics: Numerics) -> Held:
    """Replaces the linear modules among `slots`, and fills them; the slots that are left are for `fill`.

    Raises torch's out-of-memory error, or `ModelError` as reading does.
    """
    linears = [slot for slot in slots if is_linear_weight(slot)]
    measured = {linears[0].name, linears[-1].name} if linears else set()
    forms: Counter[str] = Counter()
    errors = []
    for group in by_group(linears).values():
        views = _views(group, source, numerics)
        for slot in group:
            weight = _weight(slot, views, source, numerics)
            bias = _bias(slot, slots, source, numerics)
            product = product_of(weight, bias, numerics)
            forms[product.form] += product.bytes
            if slot.name in measured and (isinstance(weight, QuantisedWeight) or numerics.held_as != "given"):
                errors.append(measure_error(product, weight, numerics.compute, bias))
            _put(model, slot.name.rpartition(".")[0], ProductLinear(product, numerics.compute))
    return Held(dict(forms), sum(errors) / len(errors) if errors else None)


def hold_tied_head(model: Any, numerics: Numerics) -> None:
    """The output layer of a model whose embedding is its weight, too; to be called when that is filled."""
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear:
        product = product_of(head.weight.detach(), None, replace(numerics, held_as="given", may_round=False))
        path = next(name for name, module in model.named_modules() if module is head)
        _put(model, path, ProductLinear(product, numerics.compute, owned=False))


def is_linear_weight(slot: Slot) -> bool:
    return type(slot.module) is torch.nn.Linear and slot.own_name == "weight"


def _account(size_bytes: int) -> Tensor:
    return torch.empty(size_bytes, dtype=torch.uint8, device="meta")


def _put(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _views(group: Collection[Slot], source: WeightSource, numerics: Numerics) -> dict[str, Tensor]:
    """One buffer for those of a layer's matrices that stay as they come."""
    if numerics.held_as != "given":
        return {}
    plain = [slot for slot in group if not source.is_quantised(slot.source_name)]
    views = buffer_views([slot.shape for slot in plain], source.stored_dtype, numerics.device)
    return {slot.name: view for slot, view in zip(plain, views, strict=True)}


def _weight(
    slot: Slot, views: Mapping[str, Tensor], source: WeightSource, numerics: Numerics
) -> Tensor | QuantisedWeight:
    found = source.quantised(slot.source_name)
    if found is not None:
        return found.to(numerics.device)
    weight = views.get(slot.name)
    if weight is None:
        weight = torch.empty(slot.shape, dtype=source.stored_dtype, device=numerics.device)
    source.read_into(slot.source_name, weight)
    return weight


def _bias(slot: Slot, slots: Collection[Slot], source: WeightSource, numerics: Numerics) -> Tensor | None:
    for other in slots:
        if other.module is slot.module and other.own_name == "bias":
            bias = torch.empty(other.shape, dtype=numerics.compute, device=numerics.device)
            source.read_into(other.source_name, bias)
            return bias
    return None
