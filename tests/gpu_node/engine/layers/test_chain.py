"""Parts of a model in a row give what the whole gives: every family, every way to divide its layers."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from gpu_node.engine.attention import AttentionTerms, PagedAttention
from gpu_node.engine.batch import Batch, batch_of
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.chain import Holding, StageChain
from gpu_node.engine.graphs import GraphedStage
from gpu_node.engine.kv_pool import KvPool
from gpu_node.engine.layers.part import COMPILED_TOKENS, LayeredPart
from gpu_node.engine.layers.recipe import NotCovered
from gpu_node.engine.layers.stage import layered_chain, layered_stage
from gpu_node.engine.products.base import Numerics
from gpu_node.engine.products.quantise import quantised_int4, quantised_int8
from gpu_node.engine.runner import Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.step import BlockCopy, Row
from gpu_node.errors import DeviceOutOfMemory, UsageError
from tests.fakes.greedy_steps import GreedySteps, generated, some_prompts
from tests.fakes.tiny_families import VOCABULARY, tiny_family
from tests.gpu_node.engine.layers import test_compiled as compiled
from tests.gpu_node.engine.layers.chains import LAYERS, TORCH, chained, divisions, four_layers
from tests.gpu_node.engine.layers.model_source import ModelSource
from tests.gpu_node.engine.layers.test_stage import BLOCK, COVERED, forward, plain_logits, prompt, row, same

PROMPTS = some_prompts(VOCABULARY, (13, 26))
COUNT = 7


def taken(chain: StageChain) -> StageChain:
    chain.take_cache(BLOCK, 64)
    return chain


def pieces(stage: Any, row: Any = row, forward: Any = forward) -> torch.Tensor:
    """A prompt in pieces beside another one, and decodes of both."""
    long, short = prompt(23, seed=1), prompt(9, seed=2)
    return torch.cat(
        [
            forward(stage, row(long, 0, 9)),
            forward(stage, row(short, 0, 4, first_block=16), row(long, 9, 1)),
            forward(stage, row(long, 10, 12), row(short, 4, 4, first_block=16)),
            forward(stage, row(short, 8, 1, first_block=16), row(long, 22, 1)),
        ]
    )


def test_all_ways_to_divide_four_layers_are_tried() -> None:
    assert sorted(len(counts) for counts in divisions(LAYERS)) == [1, 2, 2, 2, 3, 3, 3, 4]


@pytest.mark.parametrize("family", COVERED)
def test_every_division_gives_the_numbers_of_the_whole(family: str) -> None:
    model = four_layers(family)
    expected = [generated(model, ids, COUNT) for ids in PROMPTS]
    whole = layered_stage(ModelSource(model), TORCH)
    assert isinstance(whole, StageChain) and len(whole.parts) == 1
    assert GreedySteps(whole).answers(PROMPTS, COUNT) == expected
    assert GreedySteps(chained(model, (1,) * LAYERS)).answers(PROMPTS, COUNT) == expected
    logits = pieces(taken(layered_stage(ModelSource(model), TORCH)))
    for counts in divisions(LAYERS):
        assert torch.equal(pieces(taken(chained(model, counts))), logits), counts


def programmed(chain: StageChain) -> StageChain:
    chain.take_cache(compiled.BLOCK, compiled.BLOCKS)
    assert all(isinstance(part, LayeredPart) and part.compiled for part in chain.parts)
    return chain


class NotAsked:
    """Attention that no program leaves to torch."""

    def attend(
        self, query: torch.Tensor, layer: int, batch: Batch, pool: KvPool, terms: AttentionTerms
    ) -> torch.Tensor:
        raise AssertionError("a compiled part asks nobody for attention")


@pytest.mark.parametrize("family", COVERED)
def test_few_tokens_are_one_compiled_program_a_part(family: str, kernels: Any) -> None:
    heads = {"head_dim": 16} if family in ("mistral", "qwen3", "gemma2", "gemma3") else {}
    model = four_layers(family, hidden_size=64, **heads)
    numerics = Numerics(compiled=kernels)
    long = prompt(23, seed=1)
    logits = pieces(programmed(chained(model, (LAYERS,), numerics, NotAsked())), compiled.row, compiled.forward)
    same(logits[[*range(9), 13, *range(14, 26), 31]], plain_logits(model, long))
    several = ((1, 3), (3, 1), (1, 2, 1), (1, 1, 1, 1))
    for counts in several if family == "llama" else several[2:3]:  # a program takes a while to compile
        chain = programmed(chained(model, counts, numerics, NotAsked()))
        assert torch.equal(pieces(chain, compiled.row, compiled.forward), logits), counts


def test_programs_and_torch_take_turns_in_every_part(kernels: Any) -> None:
    """Long pieces go through torch, short ones through programs; both read what the other wrote."""
    model = four_layers("llama", hidden_size=64)
    chain = programmed(chained(model, (1, 2, 1), Numerics(compiled=kernels)))
    ids = prompt(COMPILED_TOKENS + 80, seed=3)
    wanted, long = plain_logits(model, ids), COMPILED_TOKENS + 5
    same(compiled.forward(chain, compiled.row(ids, 0, long)), wanted[:long])
    same(compiled.forward(chain, compiled.row(ids, long, 3)), wanted[long : long + 3])
    same(compiled.forward(chain, compiled.row(ids, long + 3, len(ids) - long - 3)), wanted[long + 3 :])


@pytest.mark.parametrize("tied", [True, False])
def test_the_ends_lie_where_they_belong(tied: bool) -> None:
    model = four_layers("llama-tied" if tied else "llama")
    sources = [ModelSource(model), ModelSource(model)]
    whole, chain = chained(sources[0], (LAYERS,)), chained(sources[1], (1, 2, 1))
    first, middle, last = (part.holding.forms for part in chain.parts)
    table = VOCABULARY * 32 * 4
    assert first["embedding"] == table
    assert "embedding" not in middle and "embedding" not in last
    assert chain.memory_bytes == whole.memory_bytes + (table if tied else 0)
    twice = [name for name in sources[1].reads if sources[1].reads.count(name) > 1]
    assert set(twice) == ({"model.embed_tokens.weight"} if tied else set())
    assert set(sources[1].reads) == set(sources[0].reads)


def test_each_part_reads_its_own_layers_only() -> None:
    model = four_layers("qwen3")
    source = ModelSource(model)
    marks: list[int] = []

    class Marked(ModelSource):
        """Notes how much was read when a part was whole: before the next one asks for its first weight."""

        def read_into(self, name: str, target: torch.Tensor) -> None:
            marks.extend(int(word) for word in name.split(".") if word.isdigit())
            super().read_into(name, target)

    chained(Marked(model), (2, 1, 1))
    assert marks == sorted(marks) and set(marks) == set(range(LAYERS))
    assert len(marks) == sum("layers" in name for name in source.names())


@pytest.mark.parametrize("held_as", ["stored", "int8", "int4"])
@pytest.mark.parametrize("by_kernels", [True, False])
def test_quantised_weights_are_the_same_in_parts(
    held_as: Any, by_kernels: bool, request: pytest.FixtureRequest
) -> None:
    model = four_layers("llama-tied", hidden_size=64, intermediate_size=96, vocab_size=208)
    quantised = {}
    if held_as == "stored":
        for name, weight in model.state_dict().items():
            if "proj" in name:
                quantised[name] = quantised_int8(weight, 32) if "v_proj" in name else quantised_int4(weight)
        quantised["model.embed_tokens.weight"] = quantised_int8(model.state_dict()["model.embed_tokens.weight"], 32)
    given = "given" if held_as == "stored" else held_as
    numerics = Numerics(compiled=request.getfixturevalue("kernels")) if by_kernels else TORCH
    numerics = Numerics(kernels=numerics.kernels, compiled=numerics.compiled, held_as=given)
    ids = [token % 208 for token in prompt(20, seed=10)]
    run, rows = (compiled.forward, compiled.row) if by_kernels else (forward, row)
    found = []
    for counts in ((LAYERS,), (1, 3), (2, 1, 1)):
        chain = (programmed if by_kernels else taken)(chained(ModelSource(model, quantised), counts, numerics))
        found.append(torch.cat([run(chain, rows(ids, 0, 15)), run(chain, rows(ids, 15, 5))]))
        assert chain.holding.error is not None and len(chain.holding.errors) > 1
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_hidden_states_and_nothing_are_answers_too() -> None:
    model = four_layers("llama")
    chain = taken(chained(model, (1, 1, 2)))
    ids = prompt(10, seed=6)
    with torch.inference_mode():
        wanted = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    assert forward(chain, row(ids, 0, 6, outputs=0), want="nothing").shape[0] == 0
    torch.testing.assert_close(forward(chain, row(ids, 6, 4), want="hidden"), wanted[6:], rtol=1e-4, atol=1e-4)


def test_given_embeddings_enter_the_first_part() -> None:
    model = four_layers("granite")
    chain = taken(chained(model, (2, 2)))
    ids = prompt(9, seed=6)
    with torch.inference_mode():
        vectors = model.get_input_embeddings()(torch.tensor(ids)).numpy()
    same(forward(chain, Row(0, [0] * 9, 0, (5, 2, 7), "logits", 9, vectors)), plain_logits(model, ids))


def test_blocks_are_copied_and_cleared_in_every_part() -> None:
    chain = taken(chained(four_layers("llama"), (1, 2, 1)))
    assert [len(pool.shapes) for pool in chain.pools] == [1, 2, 1]
    for number, pool in enumerate(chain.pools):
        pool.storage[3] = number + 1.0
    chain.copy_blocks([BlockCopy(3, 9), BlockCopy(9, 11)])
    chain.clear_blocks(iter([3]))
    for number, pool in enumerate(chain.pools):
        assert bool((pool.storage[11] == number + 1.0).all()) and not pool.storage[3].any()


def test_a_fresh_block_is_cleared_where_each_part_keeps_it() -> None:
    chain = taken(chained(four_layers("llama"), (1, 2, 1)))
    ids = prompt(6, seed=4)
    before = forward(chain, row(ids, 0, 6))
    for pool in chain.pools:
        pool.storage.fill_(float("nan"))
    assert torch.equal(forward(chain, row(ids, 0, 6)), before)


def test_an_earlier_cache_is_let_go() -> None:
    chain = taken(chained(four_layers("llama"), (3, 1)))
    kept = [weakref.ref(pool) for pool in chain.pools]
    chain.take_cache(BLOCK, 8)
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    assert [pool.block_count for pool in chain.pools] == [8, 8]
    chain.drop_cache()
    assert chain.pools == ()


def test_a_closed_chain_holds_nothing_and_closes_what_was_shared_last() -> None:
    order: list[str] = []

    class Closing:
        layer_shapes, holding, token_bytes = (), Holding({}), 0

        def close(self) -> None:
            order.append("part")

    parts: list[Any] = [Closing(), Closing()]
    StageChain(parts, on_close=lambda: order.append("shared")).close()
    assert order == ["part", "part", "shared"]
    chain = taken(chained(four_layers("llama"), (3, 1)))
    held = [weakref.ref(part._model.layers[0]) for part in chain.parts if isinstance(part, LayeredPart)]
    chain.close()
    gc.collect()
    assert chain.pools == () and [ref() for ref in held] == [None, None]


def test_shares_are_all_layers_of_the_model() -> None:
    for counts in ((1, 2), (4, 1), (0, 4), (5, -1)):
        with pytest.raises(UsageError, match="has 4 layers"):
            chained(four_layers("llama"), counts)
    refused = layered_chain(ModelSource(tiny_family("phi3-long")), [])
    assert isinstance(refused, NotCovered) and "change with the length" in refused.reason


# Budgets


def budgets_of(chain: StageChain, tokens: int) -> list[int]:
    return [part.holding.bytes + tokens * part.token_bytes for part in chain.parts]


def test_the_poorest_part_says_how_large_the_cache_is() -> None:
    model = four_layers("llama")
    exact = budgets_of(chained(model, (1, 2, 1)), 40)
    chain = chained(model, (1, 2, 1), budgets=[exact[0] + 10**6, exact[1], None])
    assert chain.most_blocks(4) == 10
    runner = Runner(chain, None, Sampler(), CacheOptions(block_tokens=4))
    assert runner.cache.block_count == 10
    assert runner.cache.block_bytes == 4 * chain.token_bytes == sum(pool.block_bytes for pool in chain.pools)
    assert chained(model, (1, 2, 1)).most_blocks(4) is None
    assert GraphedStage(chain, 64).most_blocks(4) == 10


def test_more_than_a_budget_is_refused_with_the_figures() -> None:
    model = four_layers("llama")
    exact = budgets_of(chained(model, (1, 3)), 40)
    chain = chained(model, (1, 3), budgets=exact)
    weights, cache = chain.parts[0].holding.bytes, 44 * chain.parts[0].token_bytes
    with pytest.raises(DeviceOutOfMemory) as caught:
        Runner(chain, None, Sampler(), CacheOptions(block_tokens=4, block_count=11))
    assert str(caught.value) == (
        f"part 0 (layers 0 to 0) takes {weights + cache:,} bytes ({weights:,} of weights, {cache:,} for 44 tokens) "
        f"and may take {exact[0]:,}"
    )
    assert chain.pools == ()
    Runner(chain, None, Sampler(), CacheOptions(block_tokens=4, block_count=10))


def test_weights_beyond_a_budget_are_refused_at_once() -> None:
    model = four_layers("llama")
    second = chained(model, (1, 3)).parts[1].holding.bytes
    with pytest.raises(DeviceOutOfMemory, match=r"part 1 \(layers 1 to 3\)"):
        chained(model, (1, 3), budgets=[None, second - 1])
    full = chained(model, (1, 3), budgets=[None, second])
    with pytest.raises(DeviceOutOfMemory, match="no room for the cache"):
        Runner(full, None, Sampler(), CacheOptions(block_tokens=4))


def test_a_batch_on_another_device_is_the_same_batch() -> None:
    batch = batch_of([Row(0, [1, 2, 3], 0, (4,), "logits", 1)], BLOCK)
    batch.plans["seen"] = 1
    moved = batch.on(torch.device("meta"))
    assert moved.tokens.device.type == moved.slots[1].device.type == moved.tables.device.type == "meta"
    assert (moved.starts, moved.lengths, moved.fresh, moved.plans) == (batch.starts, batch.lengths, batch.fresh, {})


def test_attention_plans_are_shared_by_parts_of_one_device() -> None:
    """Worked out once a step, not once a part."""
    chain = taken(chained(four_layers("llama"), (1, 1, 2), attention=PagedAttention()))
    batch = batch_of([row(prompt(9, seed=1), 0, 9)], BLOCK)
    with torch.inference_mode():
        chain.forward(batch, "logits")
    assert len(batch.plans) == 1
