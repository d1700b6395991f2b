"""From a source of weights to a chain of parts in own layers: each part reads its own layers and nothing else.

Invariants: the parts' layers are the model's, each once and in order; parts on CPUs share one set of kernels; when one
part cannot be made, what was opened is closed. Must not know batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

from gpu_node.engine.attention import Attention, PagedAttention
from gpu_node.engine.chain import Holding, StageChain
from gpu_node.engine.layers.assembly import Assembly, Ends
from gpu_node.engine.layers.layer import Layer
from gpu_node.engine.layers.part import Assembled, LayeredPart
from gpu_node.engine.layers.recipe import NotCovered, Recipe, recipe_of
from gpu_node.engine.layers.rotary import RotaryTables
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.choice import with_kernels
from gpu_node.engine.weights.source import WeightSource
from gpu_node.errors import UsageError


@dataclass(frozen=True, slots=True)
class Share:
    """What one part is to hold, and with what it computes."""

    layers: int
    numerics: Numerics
    attention: Attention
    budget_bytes: int | None = None  # for weights and cache; None: as much as there is


def layered_stage(
    source: WeightSource, numerics: Numerics, attention: Attention | None = None
) -> StageChain | NotCovered:
    """The model of `source` in own layers as one part, or why the plain path must run it.

    Reads everything; the caller closes the source. Raises `ModelError` when weights are missing or misshapen."""
    recipe = recipe_of(source.config)
    if isinstance(recipe, NotCovered):
        return recipe
    return _chain(source, recipe, [Share(recipe.layers, numerics, attention or PagedAttention())])


def layered_chain(source: WeightSource, shares: Sequence[Share]) -> StageChain | NotCovered:
    """The same as one part a share. Raises `UsageError` when the shares are not the model's layers, and
    `DeviceOutOfMemory` when a part's weights are more than its budget."""
    recipe = recipe_of(source.config)
    if isinstance(recipe, NotCovered):
        return recipe
    counts = [share.layers for share in shares]
    if sum(counts) != recipe.layers or min(counts) < 1:
        raise UsageError(f"{source.label} has {recipe.layers} layers, and parts of {counts} are not all of them")
    return _chain(source, recipe, shares)


def layered_part(source: WeightSource, recipe: Recipe, span: tuple[int, int], share: Share) -> LayeredPart:
    """The layers `span[0]` to `span[1]` (excluded) of the whole model that `recipe` is of.

    Reads their weights only, and those of the ends that belong to them. `share.numerics` has its kernels open."""
    numerics = share.numerics
    model = _assembled(source, recipe, span, numerics)
    kept = source.stored_dtype if numerics.compute is torch.float32 else numerics.compute
    return LayeredPart(model, numerics, share.attention, kept)


def _chain(source: WeightSource, recipe: Recipe, shares: Sequence[Share]) -> StageChain:
    kernels = SharedKernels()
    parts: list[LayeredPart] = []
    try:
        spans = pairwise(accumulate((share.layers for share in shares), initial=0))
        for span, share in zip(spans, shares, strict=True):
            parts.append(layered_part(source, recipe, span, replace(share, numerics=kernels.given(share.numerics))))
        return StageChain(parts, [share.budget_bytes for share in shares], kernels.close)
    except BaseException:
        kernels.close()
        raise


class SharedKernels:
    """Threads of kernels belong to the process: parts on the CPU use the same ones, one after the other."""

    def __init__(self) -> None:
        self._opened: Any = None

    def given(self, numerics: Numerics) -> Numerics:
        """Raises `ModelError` as `with_kernels` does."""
        if self._opened is not None and numerics.device.type == "cpu" and numerics.compute is torch.float32:
            numerics = replace(numerics, compiled=self._opened)
        found = with_kernels(numerics)
        if found is not numerics:
            self._opened = found.compiled
        return found

    def close(self) -> None:
        """Those that came open are their owner's."""
        if self._opened is not None:
            self._opened.close()


def _assembled(source: WeightSource, recipe: Recipe, span: tuple[int, int], numerics: Numerics) -> Assembled:
    own = recipe.part(*span)
    assembly = Assembly(source, own, numerics)
    # The ends are read first: what is held twice while a large table is repacked goes before layers come.
    ends = assembly.ends(first=span[0] == 0, last=span[1] == recipe.layers)
    measured = {0, recipe.layers - 1}  # the first and the last layer speak for the rest: measuring takes time
    layers = tuple(Layer(own, at, assembly.layer(at, own.first + at in measured)) for at in range(own.layers))
    tables = dict.fromkeys(name for name in own.turns if name is not None)
    rotary = RotaryTables(source.config, recipe.family.rotary, tables, numerics.compute).to(numerics.device)
    return Assembled(own, layers, ends, rotary, _holding(layers, ends, assembly.errors))


def _holding(layers: tuple[Layer, ...], ends: Ends, errors: list[float]) -> Holding:
    forms: Counter[str] = Counter()
    for layer in layers:
        for product in layer.weights.products.values():
            forms[product.form] += product.bytes
    if ends.exit is not None:
        forms[ends.exit.head.form] += ends.exit.head.bytes
    if ends.lookup is not None and not ends.shared:
        forms["embedding"] += ends.lookup.bytes
    return Holding(dict(forms), tuple(errors))
