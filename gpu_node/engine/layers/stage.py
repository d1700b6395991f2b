"""From a source of weights to a chain of parts in own layers: each part reads its own layers and nothing else.

Invariants: the parts' layers are the model's, each once and in order; parts on CPUs share one set of kernels; when one
part cannot be made, what was opened is closed. Must not know batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch

from gpu_node.engine.attention import Attention, PagedAttention
from gpu_node.engine.chain import StageChain
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


def layered_part(
    source: WeightSource,
    recipe: Recipe,
    span: tuple[int, int],
    share: Share,
    earlier: Assembled | None = None,
    allow: Callable[[int], None] = lambda _: None,
) -> LayeredPart:
    """The layers `span[0]` to `span[1]` (excluded) of the whole model that `recipe` is of.

    Reads their weights only, and those of the ends that belong to them. `share.numerics` has its kernels open.
    `earlier`: of a part that was read from the same files in the same numbers; what it has is used again, and not read.
    `allow` is told, before each layer is read, how many bytes the weights that are read for this part will then take;
    what it raises ends the loading."""
    numerics = share.numerics
    had = earlier if earlier is not None and earlier.serves(recipe, numerics) else None
    model = _assembled(source, recipe, span, numerics, had, allow)
    kept = source.stored_dtype if numerics.compute is torch.float32 else numerics.compute
    return LayeredPart(model, numerics, share.attention, kept)


def part_weights(source: WeightSource, recipe: Recipe, span: tuple[int, int]) -> tuple[str, ...]:
    """Names of all that a part of `span` is read from."""
    own = recipe.part(*span)
    assembly = Assembly(source, own, Numerics())
    ends = assembly.end_weights(span[0] == 0, span[1] == recipe.layers)
    return tuple(dict.fromkeys((*ends, *(name for at in range(own.layers) for name in assembly.weights(at)))))


def held_weights(source: WeightSource, had: Assembled) -> frozenset[str]:
    """Of these, names of what a part made out of `had` does not read."""
    assembly, ends = Assembly(source, had.recipe, Numerics()), had.ends
    table = ends.lookup is not None or ends.pair is not None
    names = [name for at in range(len(had.layers)) for name in assembly.weights(at)]
    return frozenset((*assembly.end_weights(table, ends.exit is not None), *names))


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


def _assembled(
    source: WeightSource,
    recipe: Recipe,
    span: tuple[int, int],
    numerics: Numerics,
    had: Assembled | None,
    allow: Callable[[int], None],
) -> Assembled:
    own = recipe.part(*span)
    assembly = Assembly(source, own, numerics)
    # The ends are read first: what is held twice while a large table is repacked goes before layers come.
    ends = assembly.ends(span[0] == 0, span[1] == recipe.layers, None if had is None else had.ends)
    read, expected = _new_bytes(ends, had), 0
    measured = {0, recipe.layers - 1}  # the first and the last layer speak for the rest: measuring takes time
    layers, errors = [], dict(had.within(span).errors) if had is not None else {}
    for at in range(own.layers):
        weights = None if had is None else had.weights(own.first + at)
        if weights is None:
            allow(read + expected)
            weights, found = assembly.layer(at, own.first + at in measured)
            errors |= {own.first + at: found} if found else {}
            expected = weights.bytes  # layers of a model are about alike
            read += expected
        layers.append(Layer(own, at, weights))
    allow(read)
    tables = dict.fromkeys(name for name in own.turns if name is not None)
    rotary = RotaryTables(source.config, recipe.family.rotary, tables, numerics.compute).to(numerics.device)
    return Assembled(recipe, own, tuple(layers), ends, rotary, numerics, errors)


def _new_bytes(ends: Ends, had: Assembled | None) -> int:
    """Of the ends that are not in `had`."""
    before = Ends(None, None) if had is None else had.ends
    if ends.pair is not None:
        return 0 if before.pair is ends.pair else ends.pair[1].bytes
    lookup = 0 if ends.lookup is None or ends.lookup is before.lookup else ends.lookup.bytes
    head = 0 if ends.exit is None or ends.exit is before.exit else ends.exit.head.bytes
    return lookup + head
