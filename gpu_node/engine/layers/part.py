"""A part of a model in own layers: the same numbers as the family's modules, with a fraction of their calls.

Only the first part of a model knows tokens, only the last one logits; what lies between them are hidden states.
Invariants: a forward writes the keys and values of exactly the batch's slots and may be repeated; the model's last
layer computes its second half only for tokens whose output is wanted. Must not know scheduling, sampling, other parts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from gpu_node.engine.attention import Attention
from gpu_node.engine.batch import Batch
from gpu_node.engine.chain import Holding
from gpu_node.engine.kv_pool import KvPool, LayerShape, token_bytes
from gpu_node.engine.layers.assembly import Ends, Exit
from gpu_node.engine.layers.compiled import CompiledLayers
from gpu_node.engine.layers.elsewhere import Elsewhere, Far
from gpu_node.engine.layers.layer import Layer, LayerWeights, Scene
from gpu_node.engine.layers.operations import capped_in_place, normalised
from gpu_node.engine.layers.recipe import Recipe
from gpu_node.engine.layers.rotary import Angles, RotaryTables
from gpu_node.engine.layers.workspace import Workspace
from gpu_node.engine.products.base import Lookup, Numerics
from gpu_node.engine.products.kernels.weights import Unsuitable
from gpu_node.engine.step import Output

# Forwards of so many tokens or fewer are one compiled program: decodes, also beside pieces of prompts.
COMPILED_TOKENS = 64

log = logging.getLogger("gpu_node.engine")


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """Everything a part computes with. None of it changes, so another part may hold some of the same."""

    whole: Recipe  # of the model
    recipe: Recipe  # of these layers only
    layers: tuple[Layer, ...]
    ends: Ends
    rotary: RotaryTables
    numerics: Numerics
    errors: Mapping[int, tuple[float, ...]]  # of products that were measured, by the model's layer

    @property
    def span(self) -> tuple[int, int]:
        """Layers of the model, the last one excluded; less than the recipe's where some were let go."""
        return self.recipe.first, self.recipe.first + len(self.layers)

    @property
    def holding(self) -> Holding:
        forms: Counter[str] = Counter()
        for layer in self.layers:
            for product in layer.weights.products.values():
                forms[product.form] += product.bytes
        ends = self.ends
        if ends.exit is not None:
            forms[ends.exit.head.form] += ends.exit.head.bytes
        if ends.lookup is not None and not ends.shared:
            forms["embedding"] += ends.lookup.bytes
        errors = [error for layer in sorted(self.errors) for error in self.errors[layer]]
        return Holding(dict(forms), (*(ends.errors if ends.exit is not None else ()), *errors))

    @property
    def tables(self) -> dict[int, int]:
        """Bytes by identity of what holds them: those of two parts together are counted once."""
        found = {id(layer.weights): layer.weights.bytes for layer in self.layers}
        ends = self.ends
        if ends.pair is not None:
            found[id(ends.pair[1])] = ends.pair[1].bytes
            return found
        if ends.lookup is not None:
            found[id(ends.lookup)] = ends.lookup.bytes
        if ends.exit is not None:
            found[id(ends.exit.head)] = ends.exit.head.bytes
        return found

    def weights(self, layer: int) -> LayerWeights | None:
        """Of one of the model's layers; None where it is not here."""
        first, behind = self.span
        return self.layers[layer - first].weights if first <= layer < behind else None

    def within(self, span: tuple[int, int]) -> Assembled:
        """What a part of `span` can use of it, without the rest."""
        first, behind = max(span[0], self.span[0]), min(span[1], self.span[1])
        layers = self.layers[first - self.span[0] : max(behind, first) - self.span[0]]
        ends = self.ends.within(span[0] == 0, span[1] == self.whole.layers)
        errors = {layer: self.errors[layer] for layer in self.errors if first <= layer < behind}
        kept = self.whole.part(first, first + len(layers))
        return replace(self, recipe=kept, layers=layers, ends=ends, errors=errors)

    def serves(self, whole: Recipe, numerics: Numerics) -> bool:
        """Whether its weights are such as these would be, from the same files."""
        own = self.numerics
        return own == numerics and own.compiled is numerics.compiled and self.whole == whole


class LayeredPart:
    def __init__(self, model: Assembled, numerics: Numerics, attention: Attention, cache_dtype: torch.dtype) -> None:
        """The kernels of `numerics` are closed by whoever opened them, after the part."""
        recipe = model.recipe
        assert recipe.layers == len(model.layers), "a part has all layers of its recipe"
        self._model: Assembled | None = model
        self._numerics, self._attention, self._dtype = numerics, attention, cache_dtype
        self._pool: KvPool | None = None
        self._room: Workspace | None = None
        self._compiled: CompiledLayers | None = None
        self._elsewhere: Elsewhere | None = None
        self.holding = model.holding
        self.vocabulary_size, self.hidden_size = recipe.vocabulary_size, recipe.hidden_size
        self.layer_shapes = tuple(
            LayerShape(recipe.kv_heads, recipe.head_dim, recipe.head_dim, window) for window in recipe.windows
        )

    @property
    def device(self) -> torch.device:
        return self._numerics.device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def token_bytes(self) -> int:
        return token_bytes(self.layer_shapes, self._dtype)

    @property
    def pool(self) -> KvPool | None:
        return self._pool

    @property
    def assembled(self) -> Assembled | None:
        """For the part that comes after it; None once it is closed."""
        return self._model

    @property
    def cache_bytes(self) -> int:
        return 0 if self._pool is None else self._pool.block_bytes * self._pool.block_count

    @property
    def compiled(self) -> bool:
        """Whether few tokens run as one compiled program; known once a pool is bound."""
        return self._compiled is not None

    def take_cache(self, block_tokens: int, block_count: int) -> None:
        self.drop_cache()
        self.bind(KvPool(self.layer_shapes, block_tokens, block_count, self._dtype, self.device))

    def drop_cache(self) -> None:
        """Programs hold addresses of the pool, so they go with it."""
        self._pool = self._room = self._compiled = self._elsewhere = None

    def bind(self, pool: KvPool) -> None:
        """From now on keys and values go to `pool`, made for `layer_shapes`; an earlier one is let go."""
        self.drop_cache()
        self._pool = pool
        model, kernels = self._model, self._numerics.compiled
        if model is None or kernels is None:
            return
        recipe, leaving = model.recipe, model.ends.exit
        turned = {name: table.cosine.shape[1] for name, table in model.rotary.reaching(1).items()}
        mlp_size = model.layers[0].weights.down.columns
        room = Workspace(recipe, mlp_size, turned, COMPILED_TOKENS, pool.block_count)
        try:
            norm = None if leaving is None else leaving.norm
            self._compiled = CompiledLayers(recipe, model.layers, norm, kernels, pool, room)
            self._room = room
        except Unsuitable as error:
            log.info("These layers run without compiled programs: %s", error)

    def extend(self, elsewhere: Elsewhere) -> None:
        """Blocks behind the pool's own are there from now on, until the cache is dropped."""
        assert self._pool is not None, "a cache is taken before it is extended"
        self._elsewhere = elsewhere

    def copy(self, source: int, target: int) -> None:
        """A block of the cache, wherever both are."""
        kept = self._elsewhere or self._pool
        assert kept is not None, "a cache is taken before the first copy"
        kept.copy(source, target)

    def forward(self, batch: Batch, hidden: Tensor | None, want: Output) -> Tensor:
        elsewhere, pool = self._elsewhere, self._pool
        assert pool is not None, "a pool is bound before the first forward"
        far = elsewhere.far_rows(batch) if elsewhere is not None else ()
        if elsewhere is None or not far:
            pool.clear(batch.fresh)
            return self._computed(batch, hidden, want)
        return self._computed(batch, hidden, want, elsewhere.opened(batch))

    def _computed(self, batch: Batch, hidden: Tensor | None, want: Output, far: Far | None = None) -> Tensor:
        """`far`: keys and values go there, and are attended to there."""
        model, pool = self._model, self._pool
        assert model is not None and pool is not None, "not after close"
        lookup, leaving = model.ends.lookup, model.ends.exit
        if lookup is not None:
            hidden = _entered(model.recipe, lookup, batch)
        assert hidden is not None, "hidden states come from the part before"
        angles = model.rotary.reaching(max(batch.lengths))
        states = self._compiled_states(batch, hidden, angles, far)
        if states is not None:
            return states if leaving is None else _left(model.recipe, leaving, states[batch.output_rows], want)
        # To a layer what is far looks like a pool and like an attention at once.
        kept, attention = (pool, self._attention) if far is None else (cast(KvPool, far), far)
        scene = Scene(batch, kept, _at(angles, batch), attention)
        hidden = hidden.to(self._numerics.compute)
        if leaving is None:
            return _through(model.layers, hidden, scene)
        hidden = _through(model.layers[:-1], hidden, scene)
        last = model.layers[-1]
        hidden = last.mix(last.attend(hidden, scene)[batch.output_rows])
        return _left(model.recipe, leaving, normalised(hidden, leaving.norm, model.recipe.residual_epsilon), want)

    def _compiled_states(
        self, batch: Batch, hidden: Tensor, angles: dict[str, Angles], far: Far | None
    ) -> Tensor | None:
        """None: these layers are not compiled, or the batch is too large for that."""
        compiled, room, model = self._compiled, self._room, self._model
        if compiled is None or room is None or model is None:
            return None
        count = hidden.shape[0]
        if far is None:
            if not room.fits(batch):
                return None
            room.fill(batch, hidden, angles)
            return compiled.run(count)
        if count > room.tokens:
            return None

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            far.write(index, batch.slots, key, value)
            return far.attend(query, index, batch, far, model.layers[index].terms)

        room.fill(batch, hidden, angles, tables=False)
        return compiled.run_around(count, attend)

    def close(self) -> None:
        self.drop_cache()
        self._model = None


def _entered(recipe: Recipe, lookup: Lookup, batch: Batch) -> Tensor:
    """The hidden states [tokens, hidden size] that the first layer gets."""
    hidden = lookup(batch.tokens)
    if recipe.scales.embedding != 1.0:
        hidden = hidden.mul_(recipe.scales.embedding)
    return batch.with_given(hidden, recipe.scales.given)


def _through(layers: tuple[Layer, ...], hidden: Tensor, scene: Scene) -> Tensor:
    for layer in layers:
        hidden = layer.mix(layer.attend(hidden, scene))
    return hidden


def _left(recipe: Recipe, leaving: Exit, states: Tensor, want: Output) -> Tensor:
    """`states` [outputs, hidden size] after the last norm, or the logits that they give."""
    if want != "logits" or not states.shape[0]:
        return states
    logits = leaving.head(states)
    if recipe.scales.logits != 1.0:
        logits = logits.mul_(recipe.scales.logits)
    return capped_in_place(logits, recipe.caps.logits)


def _at(angles: dict[str, Angles], batch: Batch) -> dict[str, Angles]:
    return {name: table.at(batch.positions) for name, table in angles.items()}
