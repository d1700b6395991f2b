"""All layers over few tokens as one call into compiled code: no Python and no torch between the first and the last.

Invariants: computes what `Layer` does, in the same order; a program is made for every number of tokens when it first
comes. Importing this module does not import llvmlite. Must not know batches: `Workspace` brings them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor

from gpu_node.engine.kv_pool import KvPool
from gpu_node.engine.layers.layer import Layer, LayerWeights
from gpu_node.engine.layers.recipe import Recipe
from gpu_node.engine.layers.workspace import Workspace
from gpu_node.engine.products.base import Product
from gpu_node.engine.products.compiled import CompiledProduct
from gpu_node.engine.products.kernels.tensors import Look, Paged, RoundingRoom
from gpu_node.engine.products.kernels.weights import KernelWeight, Unsuitable
from gpu_node.engine.products.stacked import StackedProduct

if TYPE_CHECKING:
    from gpu_node.engine.products.kernels.kernels import Kernels
    from gpu_node.engine.products.kernels.program import Operation, Program

# Programs for so many tokens are made at once: each takes some ten milliseconds, which an answer would wait for.
READY_TOKENS = 8
# Of a layer: queries, keys and values [tokens, heads, head_dim] to what was attended to, in the shape of the queries.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class CompiledLayers:
    def __init__(
        self,
        recipe: Recipe,
        layers: Sequence[Layer],
        norm: Tensor | None,
        kernels: Kernels,
        pool: KvPool,
        room: Workspace,
    ) -> None:
        """`norm`: after the model's last layer, if that is one of these. Raises `Unsuitable` where kernels lack."""
        self._recipe, self._layers, self._norm = recipe, layers, norm
        self._kernels, self._pool, self._room = kernels, pool, room
        self._programs: dict[int, Program] = {}
        self._pieces: dict[int, list[Program]] = {}
        # One for all: programs of every length with rooms of their own would outweigh the model.
        widest = max(product.columns for layer in layers for product in layer.weights.products.values())
        self._rounding = RoundingRoom.of(room.tokens, widest)
        for tokens in range(1, READY_TOKENS + 1):
            self._program(tokens)

    def run(self, tokens: int) -> Tensor:
        """The first `tokens` of the workspace's hidden states go through all layers, and the last norm if there is one.

        Returns a view of the workspace, [tokens, hidden size]."""
        self._program(tokens).run()
        return (self._room.hidden if self._norm is None else self._room.prepared)[:tokens]

    def run_around(self, tokens: int, attend: Attend) -> Tensor:
        """As `run`, with attention and the cache left to `attend`: what lies between them is compiled."""
        recipe, room = self._recipe, self._room
        pieces = self._pieces.get(tokens)
        if pieces is None:
            pieces = self._pieces[tokens] = [self._kernels.program(list(piece)) for piece in self._around(tokens)]
        heads = room.qkv[:tokens].view(tokens, -1, recipe.head_dim)
        asked, kept = recipe.heads, recipe.heads + recipe.kv_heads
        query, key, value = heads[:, :asked], heads[:, asked:kept], heads[:, kept:]
        for index in range(len(self._layers)):
            pieces[index].run()
            room.attended[:tokens] = attend(index, query, key, value)
        pieces[-1].run()
        return (room.hidden if self._norm is None else room.prepared)[:tokens]

    def _around(self, tokens: int) -> Iterable[Iterable[Operation]]:
        """What comes before the first layer's attention, between two of them, and behind the last one."""
        behind: Iterable[Operation] = ()
        for index, layer in enumerate(self._layers):
            yield chain(behind, self._ask(index, tokens))
            behind = chain(self._take_in(layer.weights, tokens), self._mix(layer.weights, tokens))
        yield chain(behind, self._prepare(self._norm, tokens))

    def _program(self, tokens: int) -> Program:
        program = self._programs.get(tokens)
        if program is None:
            program = self._programs[tokens] = self._kernels.program(self._operations(tokens))
        return program

    def _operations(self, tokens: int) -> list[Operation]:
        halves = (
            chain(self._attend(index, tokens), self._mix(layer.weights, tokens))
            for index, layer in enumerate(self._layers)
        )
        return [*chain.from_iterable(halves), *self._prepare(self._norm, tokens)]

    def _attend(self, index: int, tokens: int) -> Iterable[Operation]:
        return chain(
            self._ask(index, tokens), self._look(index, tokens), self._take_in(self._layers[index].weights, tokens)
        )

    def _ask(self, index: int, tokens: int) -> Iterable[Operation]:
        """Queries, keys and values, as attention wants them."""
        weights, recipe, room, kernels = self._layers[index].weights, self._recipe, self._room, self._kernels
        qkv = room.qkv[:tokens]
        yield from self._prepare(weights.before_attention, tokens)
        yield from self._multiply(weights.qkv, self._input(weights.before_attention, tokens), qkv)
        asked = qkv[:, : recipe.query_size + recipe.key_size]
        yield from self._normalise_heads(weights, asked)
        heads = asked.view(tokens, -1, recipe.head_dim)
        turn = recipe.turns[index]
        if turn is not None:
            half = room.cosines[turn].shape[1] // 2
            # The halves of both tables are alike, and the second of the sines has no minus.
            yield from kernels.rotate(heads, room.cosines[turn][:tokens, half:], room.sines[turn][:tokens, half:])

    def _look(self, index: int, tokens: int) -> Iterable[Operation]:
        recipe, room, kernels = self._recipe, self._room, self._kernels
        turned_size = recipe.query_size + recipe.key_size
        heads = room.qkv[:tokens, :turned_size].view(tokens, -1, recipe.head_dim)
        value = room.qkv[:tokens, turned_size:].view(tokens, -1, recipe.head_dim)
        where = (room.blocks[:tokens], room.places[:tokens])
        yield from kernels.store(heads[:, recipe.heads :], self._pool.keys(index), *where)
        yield from kernels.store(value, self._pool.values(index), *where)
        paged = Paged(
            self._pool.keys(index), self._pool.values(index), room.tables, room.rows[:tokens], room.positions[:tokens]
        )
        look = Look(recipe.scales.attention, recipe.windows[index], recipe.caps.attention or 0.0)
        attended = room.attended[:tokens]
        yield from kernels.attend(heads[:, : recipe.heads], paged, look, attended)

    def _take_in(self, weights: LayerWeights, tokens: int) -> Iterable[Operation]:
        attended = self._room.attended[:tokens].view(tokens, -1)
        yield from self._add(weights.output, attended, weights.after_attention)

    def _mix(self, weights: LayerWeights, tokens: int) -> Iterable[Operation]:
        gate_up, gated = self._room.gate_up[:tokens], self._room.gated[:tokens]
        size = gated.shape[1]
        yield from self._prepare(weights.before_mlp, tokens)
        yield from self._multiply(weights.gate_up, self._input(weights.before_mlp, tokens), gate_up)
        yield from self._kernels.gate(gate_up[:, :size], gate_up[:, size:], gated, self._recipe.activation)
        yield from self._add(weights.down, gated, weights.after_mlp)

    def _prepare(self, norm: Tensor | None, tokens: int) -> Iterable[Operation]:
        if norm is not None:
            hidden, prepared = self._room.hidden[:tokens], self._room.prepared[:tokens]
            yield from self._kernels.normalise(hidden, norm, prepared, self._recipe.residual_epsilon)

    def _input(self, norm: Tensor | None, tokens: int) -> Tensor:
        return (self._room.hidden if norm is None else self._room.prepared)[:tokens]

    def _normalise_heads(self, weights: LayerWeights, asked: Tensor) -> Iterable[Operation]:
        """Queries and keys in place, `asked` [tokens, query and key numbers]."""
        recipe, normalise = self._recipe, self._kernels.normalise
        query, key = asked[:, : recipe.query_size], asked[:, recipe.query_size :]
        if weights.query_norm is not None and weights.key_norm is not None:
            yield from normalise(query, weights.query_norm, query, recipe.epsilon)
            yield from normalise(key, weights.key_norm, key, recipe.epsilon)
        if weights.head_norm is not None:
            parts = ((query, weights.head_norm[0]), (key, weights.head_norm[-1]))
            # Heads of one token are evenly apart; those of the next token are not.
            for part, norm in ((part[token], norm) for part, norm in parts for token in range(asked.shape[0])):
                heads = part.view(-1, recipe.head_dim)
                yield from normalise(heads, norm, heads, recipe.epsilon)

    def _multiply(self, product: Product, x: Tensor, y: Tensor, adds: bool = False) -> Iterable[Operation]:
        at = 0
        for weight in kernel_weights(product):
            yield from self._kernels.multiply(weight, x, y[:, at : at + weight.rows], adds, self._rounding)
            at += weight.rows

    def _add(self, product: Product, x: Tensor, norm: Tensor | None) -> Iterable[Operation]:
        tokens = x.shape[0]
        hidden, added = self._room.hidden[:tokens], self._room.added[:tokens]
        if norm is None:
            yield from self._multiply(product, x, hidden, adds=True)
            return
        yield from self._multiply(product, x, added)
        yield from self._kernels.normalise(added, norm, added, self._recipe.epsilon)
        # Only its addition is wanted here; what it writes is overwritten by whoever needs the place.
        scratch = self._room.prepared[:tokens]
        yield from self._kernels.normalise(hidden, norm, scratch, self._recipe.epsilon, delta=added)


def kernel_weights(product: Product) -> list[KernelWeight]:
    """Raises `Unsuitable` for a product that is not compiled."""
    if isinstance(product, CompiledProduct):
        return [product.weight]
    if isinstance(product, StackedProduct):
        return [weight for part in product.parts for weight in kernel_weights(part)]
    raise Unsuitable(f"{product.form} has no kernel.")
