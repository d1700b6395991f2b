"""One layer's weights and what it computes: attention, then the gated product, each added to the residual.

Invariants: `hidden` is used up by each half and its successor returned; the cache is written before it is read. A half
adds nothing but its own part to the residual, so that a layer equals the family's own but for the order of sums.
Must not know where weights come from, nor which kernels multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gpu_node.engine.attention import Attention, AttentionTerms
from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool
from gpu_node.engine.layers.operations import gated, normalised, normalised_heads, turned
from gpu_node.engine.layers.recipe import Recipe
from gpu_node.engine.layers.rotary import Angles
from gpu_node.engine.products.base import Product


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """Norms are in the compute dtype and multiply as they are: a family's "1 + weight" is already added."""

    qkv: Product
    output: Product
    gate_up: Product
    down: Product
    before_attention: Tensor | None = None
    after_attention: Tensor | None = None
    before_mlp: Tensor | None = None
    after_mlp: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    head_norm: Tensor | None = (
        None  # [heads + kv_heads, head_dim]: queries' and keys' in one, when heads are normalised
    )

    @property
    def products(self) -> dict[str, Product]:
        return {"qkv": self.qkv, "output": self.output, "gate_up": self.gate_up, "down": self.down}

    @property
    def bytes(self) -> int:
        """Of the products."""
        return sum(product.bytes for product in self.products.values())


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What all layers of one forward share."""

    batch: Batch
    pool: KvPool
    angles: dict[str, Angles]  # of the batch's positions, by table
    attention: Attention


class Layer:
    def __init__(self, recipe: Recipe, index: int, weights: LayerWeights) -> None:
        self._recipe, self._index, self._weights = recipe, index, weights
        self._turn = recipe.turns[index]
        self._terms = AttentionTerms(recipe.scales.attention, recipe.windows[index], recipe.caps.attention)

    @property
    def weights(self) -> LayerWeights:
        return self._weights

    @property
    def terms(self) -> AttentionTerms:
        return self._terms

    def attend(self, hidden: Tensor, scene: Scene) -> Tensor:
        """[tokens, hidden size] -> the same with this layer's attention added; writes the batch's keys and values."""
        weights, recipe = self._weights, self._recipe
        qkv = weights.qkv(self._prepared(hidden, weights.before_attention))
        query = self._stored(qkv, scene)
        found = scene.attention.attend(query, self._index, scene.batch, scene.pool, self._terms)
        return self._added(hidden, weights.output, found.view(-1, recipe.query_size), weights.after_attention)

    def mix(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden size] -> the same with this layer's gated product added."""
        weights = self._weights
        wide = weights.gate_up(self._prepared(hidden, weights.before_mlp))
        return self._added(hidden, weights.down, gated(wide, self._recipe.activation), weights.after_mlp)

    def _stored(self, qkv: Tensor, scene: Scene) -> Tensor:
        """Keys and values go to the cache; the queries are returned, [tokens, heads, head_dim]."""
        recipe, weights = self._recipe, self._weights
        turned_size = recipe.query_size + recipe.key_size
        if weights.query_norm is not None and weights.key_norm is not None:
            _normalise_all(qkv, recipe, weights.query_norm, weights.key_norm)
        tokens = qkv.shape[0]
        asked = qkv[:, :turned_size].view(tokens, -1, recipe.head_dim)
        value = qkv[:, turned_size:].view(tokens, -1, recipe.head_dim)
        if weights.head_norm is not None:
            asked = normalised_heads(asked, weights.head_norm, recipe.epsilon)
        if self._turn is not None:
            asked = turned(asked, scene.angles[self._turn])
        scene.pool.write(self._index, scene.batch.slots, asked[:, recipe.heads :], value)
        return asked[:, : recipe.heads]

    def _prepared(self, hidden: Tensor, norm: Tensor | None) -> Tensor:
        return hidden if norm is None else normalised(hidden, norm, self._recipe.residual_epsilon)

    def _added(self, hidden: Tensor, product: Product, x: Tensor, norm: Tensor | None) -> Tensor:
        if norm is None:
            return product.add_to(hidden, x)
        return hidden.add_(normalised(product(x), norm, self._recipe.epsilon))


def _normalise_all(qkv: Tensor, recipe: Recipe, query_norm: Tensor, key_norm: Tensor) -> None:
    """All heads of a token together, in place."""
    query = qkv[:, : recipe.query_size]
    key = qkv[:, recipe.query_size : recipe.query_size + recipe.key_size]
    query.copy_(normalised(query, query_norm, recipe.epsilon))
    key.copy_(normalised(key, key_norm, recipe.epsilon))
