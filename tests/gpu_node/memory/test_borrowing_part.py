"""Parts of a model whose blocks lie partly elsewhere give what they give over one pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from gpu_node.engine.batch import batch_of
from gpu_node.engine.chain import StageChain
from gpu_node.engine.layers.part import LayeredPart
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.step import Row
from tests.gpu_node.engine.layers.chains import chained, four_layers
from tests.gpu_node.memory.lending_pair import Borrowed, borrowing

NEAR, BLOCKS, BLOCK_TOKENS = 5, 24, 4
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "qwen2-sliding"]


@contextmanager
def over_places(chain: StageChain, block_tokens: int = BLOCK_TOKENS) -> Iterator[list[Borrowed]]:
    """Every part has a few blocks of its own, and the others lie with two lenders."""
    found = []
    with ExitStack() as stack:
        for part in chain.parts:
            assert isinstance(part, LayeredPart)
            part.take_cache(block_tokens, NEAR)
            assert part.pool is not None
            borrowed = stack.enter_context(borrowing(part.pool, BLOCKS, (1, 2)))
            borrowed.borrow(1, NEAR, 14)
            borrowed.borrow(2, 14, BLOCKS)
            part.extend(borrowed.cache)
            found.append(borrowed)
        yield found
        for part in chain.parts:
            part.drop_cache()


STEPS = (
    (Row(0, range(3, 20), 0, (2, 7, 15, 1, 20), "nothing"), Row(1, range(5), 0, (0, 3), "logits", 5)),
    (Row(1, [9], 5, (0, 3), "logits", 1), Row(0, [4, 5], 17, (2, 7, 15, 1, 20), "logits", 2)),
    (Row(2, [7], 8, (2, 7, 4), "logits", 1), Row(1, [1], 6, (0, 3), "hidden", 1), Row(0, [6], 19, (2, 7, 15, 1, 20))),
    (Row(1, [1], 7, (0, 3), "logits", 1),),
)


@torch.inference_mode()
def outputs(chain: StageChain, block_tokens: int = BLOCK_TOKENS) -> list[torch.Tensor]:
    found = []
    for rows in STEPS:
        want = "logits" if any(row.output == "logits" for row in rows) else "nothing"
        found.append(chain.forward(batch_of(rows, block_tokens), want).clone())
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("counts", [(4,), (1, 3)])
def test_a_model_over_places_is_the_model(family: str, counts: tuple[int, ...]) -> None:
    chain = chained(four_layers(family), counts)
    chain.take_cache(BLOCK_TOKENS, BLOCKS)
    expected = outputs(chain)
    with over_places(chain) as borrowed:
        found = outputs(chain)
        layers = [len(part.layer_shapes) for part in chain.parts]
        for each, count in zip(borrowed, layers, strict=True):
            # Three of the steps have far rows, each with blocks at both lenders: one round trip a layer and lender.
            assert each.cache.round_trips == 3 * count * 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    chain.close()


class NoAttention:
    """What came here would not have run compiled."""

    def attend(self, *_: object) -> torch.Tensor:
        raise AssertionError("it ran layer by layer")


def test_what_lies_between_attention_runs_compiled(kernels: object) -> None:
    model = four_layers("llama", hidden_size=64)
    chain = chained(model, (2, 2), Numerics(kernels="compiled", compiled=kernels), NoAttention())
    chain.take_cache(8, BLOCKS)
    expected = outputs(chain, 8)
    with over_places(chain, 8) as borrowed:
        assert all(isinstance(part, LayeredPart) and part.compiled for part in chain.parts)
        found = outputs(chain, 8)
        assert all(each.cache.round_trips == 3 * 2 * 2 for each in borrowed)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    chain.close()


def test_copies_go_across_places() -> None:
    chain = chained(four_layers("llama"), (4,))
    chain.take_cache(BLOCK_TOKENS, BLOCKS)

    @torch.inference_mode()
    def answers() -> torch.Tensor:
        chain.forward(batch_of(STEPS[0], BLOCK_TOKENS), "logits")
        part = chain.parts[0]
        assert isinstance(part, LayeredPart)
        for source, target in ((2, 8), (7, 4), (15, 16), (7, 10), (20, 22), (1, 0)):
            part.copy(source, target)
        return chain.forward(batch_of([Row(5, [4], 17, (8, 10, 16, 0, 22), "logits", 1)], BLOCK_TOKENS), "logits")

    expected = answers()
    with over_places(chain):
        torch.testing.assert_close(answers(), expected, rtol=1e-4, atol=1e-4)
    chain.close()
