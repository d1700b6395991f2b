"""An engine over parts answers what a single stage answers alone, whatever happens to its requests meanwhile."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.loader import LoadOptions, PartOptions, load_runner
from gpu_node.engine.sequence import Bounds, Done, GenerationRequest, SamplingOptions, Token, TokenPrompt
from gpu_node.errors import DeviceOutOfMemory, ModelError, UsageError
from tests.fakes.greedy_steps import generated, some_prompts
from tests.fakes.tiny_model import VOCABULARY, write_tiny_model
from tests.gpu_node.engine.layers.chains import LAYERS, divisions
from tests.gpu_node.serving import until_true

EXACT = LoadOptions("cpu", "float32", kernels="torch", cache=CacheOptions(block_tokens=4, block_count=200))
GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0)
RANDOM = SamplingOptions(temperature=1.0, seed=5, repeat_penalty=1.1)
SHARED = some_prompts(VOCABULARY, (24,), seed=3)[0]
ENDS = some_prompts(VOCABULARY, (3, 9, 5), seed=4)
# Of few words that repeat, a guess is right now and then; which comes is still the model's word.
FEW_WORDS = replace(GREEDY, logit_bias=tuple((word, 60.0) for word in range(70, 76)))
REPEATING = [70, 71, 70, 70, 71, 71] * 4
BOUNDS = Bounds(256, max_tokens=14, ignore_end=True)


def asked(prompt: list[int], sampling: SamplingOptions = GREEDY, **more: Any) -> GenerationRequest:
    return GenerationRequest(TokenPrompt(tuple(prompt)), sampling, BOUNDS, **more)


REQUESTS = (
    *(asked(SHARED + end) for end in ENDS),
    asked(SHARED + ENDS[0], RANDOM, samples=3),
    replace(asked(REPEATING, FEW_WORDS), bounds=replace(BOUNDS, max_tokens=40)),
    asked(REPEATING[2:], replace(RANDOM, logit_bias=FEW_WORDS.logit_bias, logprobs=2)),
)
# Their clients leave in the middle, and there is one however late that is.
LEAVING = tuple(replace(request, bounds=replace(BOUNDS, max_tokens=-1)) for request in REQUESTS[:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("four") / "tiny", num_hidden_layers=LAYERS)


@asynccontextmanager
async def engine_of(folder: Path, options: LoadOptions = EXACT, **limits: Any) -> AsyncIterator[Engine]:
    engine = Engine(lambda: load_runner(folder, options), options=EngineOptions(**limits))
    await engine.load()
    try:
        yield engine
    finally:
        assert await engine.close()


async def ids_of(engine: Engine, request: GenerationRequest, stop_after: int = 0) -> list[list[int]]:
    """Sample by sample; with `stop_after` the client leaves after so many events."""
    found: dict[int, list[int]] = defaultdict(list)
    count = 0
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            count += 1
            if isinstance(event, Done) or count == stop_after:
                break
            assert isinstance(event, Token)
            found[event.sample] += event.ids
    return [found[sample] for sample in sorted(found)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[list[int]]]:
    """Each request by itself on a single stage, with room for everything and without guesses."""

    async def answers() -> list[list[list[int]]]:
        async with engine_of(folder, max_drafts=0) as engine:
            return [await ids_of(engine, replace(request, cache_salt=str(at))) for at, request in enumerate(REQUESTS)]

    return asyncio.run(answers())


def test_alone_they_are_what_generate_says(folder: Path, alone: list[list[list[int]]]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for request, answer in zip(REQUESTS, alone, strict=True):
        if request.sampling == GREEDY and isinstance(request.prompt, TokenPrompt):
            assert answer == [generated(model, request.prompt.ids, BOUNDS.max_tokens)]
    assert len({token for answer in alone for sample in answer for token in sample}) > 30
    assert len({tuple(sample) for sample in alone[3]}) == 3


@pytest.mark.parametrize("counts", list(divisions(LAYERS)), ids=str)
async def test_answers_are_those_of_requests_alone(
    folder: Path, alone: list[list[list[int]]], counts: tuple[int, ...]
) -> None:
    """Too few blocks for all of them, prefixes that are shared, guesses, and clients that leave in the middle."""
    cache = replace(EXACT.cache, block_count=20)
    options = replace(EXACT, cache=cache, parts=tuple(PartOptions(count) for count in counts))
    async with engine_of(folder, options, step_tokens=16, mixed_step_tokens=9) as engine:
        await ids_of(engine, asked(SHARED))
        leaving = [asyncio.create_task(ids_of(engine, request, stop_after=3)) for request in LEAVING]
        found = await asyncio.gather(*(ids_of(engine, request) for request in REQUESTS))
        await asyncio.gather(*leaving)
        await until_true(lambda: engine.stats().cancelled == 2)
        stats = engine.stats()
    assert found == alone
    assert stats.preemptions and stats.cached_prompt_tokens and stats.accepted_drafts


def test_a_budget_of_each_part_bounds_its_weights_and_cache(folder: Path) -> None:
    def load(*budgets: int | None, **cache: Any) -> Any:
        parts = tuple(PartOptions(2, budget) for budget in budgets)
        return load_runner(folder, replace(EXACT, cache=CacheOptions(block_tokens=4, **cache), parts=parts))

    free = load(None, None, block_count=10)
    first, second = (part.holding.bytes + 20 * part.token_bytes for part in free._stage.parts)
    free.close()
    bounded = load(first, second)
    assert bounded.cache.block_count == 5
    bounded.close()
    with pytest.raises(DeviceOutOfMemory, match=r"part 1 \(layers 2 to 3\) takes .* for 20 tokens"):
        load(first, second - 1, block_count=5)
    with pytest.raises(DeviceOutOfMemory, match=r"part 0 .* for 24 tokens\) and may take"):
        load(first, second + 10**6, block_count=6)


def test_what_cannot_be_split_is_said_in_one_sentence(folder: Path) -> None:
    parts = (PartOptions(1), PartOptions(2))
    with pytest.raises(UsageError, match=r"has 4 layers, and parts of \[1, 2\] are not all of them"):
        load_runner(folder, replace(EXACT, parts=parts))
    with pytest.raises(ModelError, match="cannot be split over devices, only run by transformers' own modules: asked"):
        load_runner(folder, replace(EXACT, parts=(PartOptions(4),), layers="plain"))


async def test_a_smaller_cache_is_smaller_in_every_part(folder: Path, alone: list[list[list[int]]]) -> None:
    runner = load_runner(folder, replace(EXACT, parts=(PartOptions(1), PartOptions(3))))
    assert runner.shrink_cache(40).block_count == 40
    assert [pool.block_count for pool in runner._stage.pools] == [40, 40]
    engine = Engine(lambda: runner)
    await engine.load()
    assert await ids_of(engine, REQUESTS[0]) == alone[0]
    assert await engine.close()
