"""A stage of own layers: the same numbers as the family's modules, with a fraction of their calls.

Invariants: a forward writes the keys and values of exactly the batch's slots and may be repeated; the last layer
computes its second half only for tokens whose output is wanted. Must not know scheduling or sampling.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_node.engine.attention import Attention, PagedAttention
from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.layers.assembly import Assembly, Ends
from gpu_node.engine.layers.compiled import CompiledLayers
from gpu_node.engine.layers.layer import Layer, Scene
from gpu_node.engine.layers.operations import capped_in_place, normalised
from gpu_node.engine.layers.recipe import NotCovered, Recipe, recipe_of
from gpu_node.engine.layers.rotary import Angles, RotaryTables
from gpu_node.engine.layers.workspace import Workspace
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.choice import with_kernels
from gpu_node.engine.products.kernels.weights import Unsuitable
from gpu_node.engine.step import Output
from gpu_node.engine.weights.source import WeightSource

# Forwards of so many tokens or fewer are one compiled program: decodes, also beside pieces of prompts.
COMPILED_TOKENS = 64

log = logging.getLogger("gpu_node.engine")


@dataclass(frozen=True, slots=True)
class Holding:
    """For people: how the weights are held."""

    forms: dict[str, int]  # bytes by form of product
    error: float | None  # mean relative error of the products measured against the weights given; None: nothing lost

    @property
    def bytes(self) -> int:
        return sum(self.forms.values())


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """Everything a stage computes with."""

    recipe: Recipe
    layers: tuple[Layer, ...]
    ends: Ends
    rotary: RotaryTables
    holding: Holding


class LayeredStage:
    def __init__(
        self,
        model: Assembled,
        numerics: Numerics,
        attention: Attention,
        cache_dtype: torch.dtype,
        owns_kernels: bool = False,
    ) -> None:
        """`owns_kernels`: `close` closes those of `numerics`."""
        recipe = model.recipe
        self._model: Assembled | None = model
        self._numerics, self._attention, self._dtype = numerics, attention, cache_dtype
        self._pool: KvPool | None = None
        self._room: Workspace | None = None
        self._compiled: CompiledLayers | None = None
        self._owns_kernels = owns_kernels
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
    def memory_bytes(self) -> int:
        return self.holding.bytes

    @property
    def compiled(self) -> bool:
        """Whether few tokens run as one compiled program; known once a pool is bound."""
        return self._compiled is not None

    def bind(self, pool: KvPool) -> None:
        self._pool = pool
        self._room = self._compiled = None
        model, kernels = self._model, self._numerics.compiled
        if model is None or kernels is None:
            return
        recipe = model.recipe
        turned = {name: table.cosine.shape[1] for name, table in model.rotary.reaching(1).items()}
        mlp_size = model.layers[0].weights.down.columns
        room = Workspace(recipe, mlp_size, turned, COMPILED_TOKENS, pool.block_count)
        try:
            self._compiled = CompiledLayers(recipe, model.layers, model.ends.norm, kernels, pool, room)
            self._room = room
        except Unsuitable as error:
            log.info("These layers run without compiled programs: %s", error)

    def forward(self, batch: Batch, want: Output) -> Tensor:
        model, pool = self._model, self._pool
        assert model is not None and pool is not None, "a pool is bound before the first forward, and not after close"
        pool.clear(batch.fresh)
        hidden = model.ends.lookup(batch.tokens)
        scales = model.recipe.scales
        if scales.embedding != 1.0:
            hidden = hidden.mul_(scales.embedding)
        hidden = batch.with_given(hidden, scales.given)
        angles = model.rotary.reaching(max(batch.lengths))
        if self._compiled is not None and self._room is not None and self._room.fits(batch):
            self._room.fill(batch, hidden, angles)
            states = self._compiled.run(hidden.shape[0])
            return self._answer(model, states[batch.output_rows], want)
        hidden = self._layer_by_layer(model, hidden, Scene(batch, pool, _at(angles, batch), self._attention))
        return self._answer(model, normalised(hidden, model.ends.norm, model.recipe.residual_epsilon), want)

    def close(self) -> None:
        self._model = self._pool = self._room = self._compiled = None
        if self._owns_kernels and self._numerics.compiled is not None:
            self._numerics.compiled.close()

    def _layer_by_layer(self, model: Assembled, hidden: Tensor, scene: Scene) -> Tensor:
        for layer in model.layers[:-1]:
            hidden = layer.mix(layer.attend(hidden, scene))
        last = model.layers[-1]
        return last.mix(last.attend(hidden, scene)[scene.batch.output_rows])

    def _answer(self, model: Assembled, states: Tensor, want: Output) -> Tensor:
        """`states` [outputs, hidden size] after the last norm."""
        if want != "logits" or not states.shape[0]:
            return states
        logits = model.ends.head(states)
        if model.recipe.scales.logits != 1.0:
            logits = logits.mul_(model.recipe.scales.logits)
        return capped_in_place(logits, model.recipe.caps.logits)


def _at(angles: dict[str, Angles], batch: Batch) -> dict[str, Angles]:
    return {name: table.at(batch.positions) for name, table in angles.items()}


def layered_stage(
    source: WeightSource, numerics: Numerics, attention: Attention | None = None
) -> LayeredStage | NotCovered:
    """The model of `source` in own layers, or why the plain path must run it.

    Reads everything; the caller closes the source. Raises `ModelError` when weights are missing or misshapen."""
    recipe = recipe_of(source.config)
    if isinstance(recipe, NotCovered):
        return recipe
    opened = with_kernels(numerics)
    try:
        model = _assembled(source, recipe, opened)
    except BaseException:
        if opened is not numerics:
            opened.compiled.close()
        raise
    kept = source.stored_dtype if numerics.compute is torch.float32 else numerics.compute
    return LayeredStage(model, opened, attention or PagedAttention(), kept, opened is not numerics)


def _assembled(source: WeightSource, recipe: Recipe, numerics: Numerics) -> Assembled:
    assembly = Assembly(source, recipe, numerics)
    ends = assembly.ends()
    measured = {0, recipe.layers - 1}  # the first and the last layer speak for the rest: measuring takes time
    layers = tuple(Layer(recipe, at, assembly.layer(at, at in measured)) for at in range(recipe.layers))
    tables = dict.fromkeys(name for name in recipe.turns if name is not None)
    rotary = RotaryTables(source.config, recipe.family.rotary, tables, numerics.compute).to(numerics.device)
    return Assembled(recipe, layers, ends, rotary, _holding(layers, ends, assembly.errors))


def _holding(layers: tuple[Layer, ...], ends: Ends, errors: list[float]) -> Holding:
    forms: Counter[str] = Counter()
    for layer in layers:
        for product in layer.weights.products.values():
            forms[product.form] += product.bytes
    forms[ends.head.form] += ends.head.bytes
    if not ends.tied:
        forms["embedding"] += ends.lookup.bytes
    return Holding(dict(forms), sum(errors) / len(errors) if errors else None)
