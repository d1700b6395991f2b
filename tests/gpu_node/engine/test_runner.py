"""A step in, choices and arrays out; memory taken, told and given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from gpu_node.engine.attention import PagedAttention
from gpu_node.engine.batch import Batch
from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.runner import Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.stage import PlainStage
from gpu_node.engine.step import BlockCopy, CacheShape, ModelRunner, Output, Pick, Row, Step
from gpu_node.errors import DeviceOutOfMemory
from tests.fakes.greedy_steps import generated, some_prompts
from tests.fakes.tiny_families import VOCABULARY, tiny_family
from tests.gpu_node.engine.layers.chains import chained

GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0)
PROMPT = some_prompts(VOCABULARY, (13,))[0]
COUNT = 12


class Words:
    """No test here turns text into tokens."""

    size, end_ids, begins_with_bos = VOCABULARY, frozenset[int](), False

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def render(self, messages: Sequence[Any]) -> str:
        raise NotImplementedError


def made(name: str = "llama", counts: Sequence[int] = (), **options: Any) -> Runner:
    """`counts`: over a chain of parts with so many layers; none: over the model's own modules."""
    cache = CacheOptions(**{"block_tokens": 4, "block_count": 32, **options})
    model = tiny_family(name)
    stage = chained(model, counts) if counts else PlainStage(model, PagedAttention())
    return Runner(stage, Words(), Sampler(), cache, {"weights": "as they are"})


@pytest.fixture(scope="module", params=[(), (3,), (1, 1, 1)], ids=str)
def counts(request: pytest.FixtureRequest) -> tuple[int, ...]:
    found: tuple[int, ...] = request.param
    return found


@pytest.fixture(scope="module")
def runner(counts: tuple[int, ...]) -> Runner:
    return made(counts=counts)


@pytest.fixture(scope="module")
def answer() -> list[int]:
    return generated(tiny_family("llama"), PROMPT, COUNT)


def pick(row: int, history: Sequence[int], drafts: tuple[int, ...] = (), key: int = 0) -> Pick:
    return Pick(row, GREEDY, key, len(history) - len(PROMPT), history, drafts)


def greedy(runner: Runner, prompt: Sequence[int], count: int, blocks: Sequence[int]) -> list[int]:
    history, computed = list(prompt), 0
    while len(history) < len(prompt) + count:
        row = Row(0, history[computed:], computed, blocks, "logits", 1)
        computed = len(history)
        history += runner.run(Step((row,)), [pick(0, history)]).choices[0].tokens
    return history[len(prompt) :]


def test_it_is_what_the_engine_asks_for(runner: Runner, counts: tuple[int, ...]) -> None:
    asked: ModelRunner = runner
    assert (asked.device, asked.dtype, asked.embedding_length) == ("cpu", "float32", 32)
    model = tiny_family("llama")
    matrices = sum(weight.nbytes for weight in model.parameters() if weight.dim() > 1)
    assert asked.memory_bytes == (matrices if counts else model.get_memory_footprint())
    assert asked.cache == CacheShape(4, 32, block_bytes=4 * 3 * 2 * 2 * 8 * 4)
    assert asked.summary["weights"] == "as they are"
    assert asked.summary["cache_bytes"] == 32 * asked.cache.block_bytes


def test_steps_make_the_answer_of_generate(runner: Runner, answer: list[int]) -> None:
    assert greedy(runner, PROMPT, COUNT, (9, 30, 2, 17, 5, 11, 3)) == answer


def test_drafts_are_judged_and_what_they_left_is_overwritten(runner: Runner, answer: list[int]) -> None:
    blocks = (4, 1, 6, 0, 8, 10, 12)
    first = runner.run(Step((Row(0, PROMPT, 0, blocks, "logits", 1),)), [pick(0, PROMPT)]).choices[0].tokens
    history = [*PROMPT, *first]
    drafts = (answer[1], answer[2], (answer[3] + 1) % VOCABULARY, 5)
    row = Row(0, [history[-1], *drafts], len(PROMPT), blocks, "logits", 5)
    choice = runner.run(Step((row,)), [pick(0, history, drafts)]).choices[0]
    assert list(choice.tokens) == answer[1:4]
    history += choice.tokens
    row = Row(0, history[-1:], len(history) - 1, blocks, "logits", 1)
    assert runner.run(Step((row,)), [pick(0, history)]).choices[0].tokens == (answer[4],)


def test_copies_come_before_rows(runner: Runner, answer: list[int]) -> None:
    begin = (20, 21, 22, 23)
    runner.run(Step((Row(0, PROMPT, 0, begin),)), [])
    history = [*PROMPT, answer[0]]
    copied = (20, 21, 22, 29)
    row = Row(1, history[-1:], len(PROMPT), copied, "logits", 1)
    result = runner.run(Step((row,), (BlockCopy(23, 29),)), [pick(0, history)])
    assert result.choices[0].tokens == (answer[1],)


def test_several_samples_may_pick_from_one_row(runner: Runner, answer: list[int]) -> None:
    rows = (Row(0, [3, 1], 0, (25,), "logits", 1), Row(1, PROMPT, 0, (20, 21, 22, 23), "logits", 1))
    choices = runner.run(Step(rows), [pick(1, PROMPT), pick(0, [3, 1]), pick(1, PROMPT, key=9)]).choices
    assert choices[0].tokens == choices[2].tokens == (answer[0],)
    assert len(choices[1].tokens) == 1


def test_rows_that_nobody_picks_from_are_arrays(runner: Runner, answer: list[int]) -> None:
    rows = (
        Row(0, PROMPT, 0, (0, 1, 2, 3), "hidden", len(PROMPT)),
        Row(1, PROMPT[:6], 0, (4, 5), "logits", 6),
        Row(2, PROMPT, 0, (6, 7, 8, 9), "logits", 1),
        Row(3, [1, 2], 0, (10,)),
    )
    result = runner.run(Step(rows), [pick(2, PROMPT)])
    assert result.choices[0].tokens == (answer[0],)
    assert sorted(result.arrays) == [0, 1]
    model = tiny_family("llama")
    with torch.inference_mode():
        states = model.model(torch.tensor([PROMPT])).last_hidden_state[0].numpy()
        logits = model(torch.tensor([PROMPT[:6]])).logits[0].numpy()
    numpy.testing.assert_allclose(result.arrays[0], states, atol=1e-5, rtol=1e-4)
    numpy.testing.assert_allclose(result.arrays[1], logits, atol=1e-5, rtol=1e-4)
    assert {array.dtype for array in result.arrays.values()} == {numpy.dtype(numpy.float32)}


def test_a_step_may_be_repeated(runner: Runner, answer: list[int]) -> None:
    step = Step((Row(0, PROMPT, 0, (0, 1, 2, 3), "logits", 1),))
    assert [runner.run(step, [pick(0, PROMPT)]).choices[0].tokens for _ in range(3)] == [(answer[0],)] * 3


def test_a_smaller_cache_is_an_empty_one(answer: list[int], counts: tuple[int, ...]) -> None:
    runner = made(counts=counts)
    greedy(runner, PROMPT, 2, range(20, 30))
    assert runner.shrink_cache(8).block_count == runner.cache.block_count == 8
    assert greedy(runner, PROMPT, COUNT, range(7)) == answer


@pytest.mark.parametrize(("name", "window"), [("llama", None), ("mistral", 7), ("gemma3", None)])
def test_a_window_is_told_when_every_layer_has_one(name: str, window: int | None, counts: tuple[int, ...]) -> None:
    assert made(name, counts).cache.window == window


def test_a_closed_runner_holds_nothing() -> None:
    runner = made()
    greedy(runner, PROMPT, 1, range(5))
    pool = weakref.ref(runner._stage.pools[0])
    model = weakref.ref(runner._stage._model)  # type: ignore[attr-defined]
    runner.close()
    gc.collect()
    assert pool() is None and model() is None


class Failing:
    """A stage that raises what it is told to."""

    device, dtype, layer_shapes = torch.device("cpu"), torch.float32, (LayerShape(1, 8, 8),)
    vocabulary_size, hidden_size, memory_bytes = 10, 8, 0

    def __init__(self, error: Exception) -> None:
        self.error = error

    token_bytes, pools = 64, ()

    def most_blocks(self, block_tokens: int) -> int | None: ...

    def take_cache(self, block_tokens: int, block_count: int) -> None:
        KvPool(self.layer_shapes, block_tokens, block_count, self.dtype)

    def drop_cache(self) -> None: ...

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None: ...

    def clear_blocks(self, blocks: Iterable[int]) -> None: ...

    def forward(self, batch: Batch, want: Output) -> Tensor:
        raise self.error

    def close(self) -> None: ...


def test_running_out_of_memory_has_a_name() -> None:
    texts = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes."
    for error in (torch.OutOfMemoryError("no"), MemoryError(), RuntimeError(texts)):
        with pytest.raises(DeviceOutOfMemory):
            Runner(Failing(error), Words(), Sampler(), CacheOptions()).run(Step((Row(0, [1], 0, (0,)),)), [])
    with pytest.raises(RuntimeError, match="shapes"):
        Runner(Failing(RuntimeError("shapes")), Words(), Sampler(), CacheOptions()).run(
            Step((Row(0, [1], 0, (0,)),)), []
        )


def test_a_cache_that_does_not_fit_has_the_same_name() -> None:
    with pytest.raises(DeviceOutOfMemory):
        Runner(Failing(ValueError()), Words(), Sampler(), CacheOptions(block_count=1 << 46))


def test_torch_itself_is_understood() -> None:
    class Greedy(Failing):
        def forward(self, batch: Batch, want: Output) -> Tensor:
            return torch.empty(1 << 50)

    with pytest.raises(DeviceOutOfMemory):
        Runner(Greedy(ValueError()), Words(), Sampler(), CacheOptions()).run(Step((Row(0, [1], 0, (0,)),)), [])
