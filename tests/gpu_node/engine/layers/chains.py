"""Models of transformers as chains of parts, in every way that their layers can be divided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpu_node.engine.attention import Attention, PagedAttention
from gpu_node.engine.chain import StageChain
from gpu_node.engine.layers.stage import Share, layered_chain
from gpu_node.engine.products.base import Numerics
from tests.fakes.tiny_families import SLIDING, tiny_family
from tests.gpu_node.engine.layers.model_source import ModelSource

LAYERS = 4
TORCH = Numerics(kernels="torch")


def divisions(layers: int) -> Iterator[tuple[int, ...]]:
    """All ways to give so many layers to one part or more."""
    yield (layers,)
    for first in range(1, layers):
        for rest in divisions(layers - first):
            yield (first, *rest)


def four_layers(family: str, **changes: Any) -> Any:
    model = tiny_family(family, num_hidden_layers=LAYERS, **_types(family), **changes)
    assert model.config.num_hidden_layers == LAYERS
    return model


def _types(family: str) -> dict[str, Any]:
    return {"layer_types": [*SLIDING, "full_attention"]} if family in ("qwen2-sliding", "gemma3") else {}


def chained(
    source: Any,
    counts: Sequence[int],
    numerics: Numerics = TORCH,
    attention: Attention | None = None,
    budgets: Sequence[int | None] = (),
) -> StageChain:
    """`source`: a model, or a source of weights."""
    source = source if hasattr(source, "read_into") else ModelSource(source)
    attention, limits = attention or PagedAttention(), budgets or [None] * len(counts)
    shares = [Share(count, numerics, attention, limit) for count, limit in zip(counts, limits, strict=True)]
    chain = layered_chain(source, shares)
    assert isinstance(chain, StageChain), chain
    return chain
