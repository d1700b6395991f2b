"""The gateway over real relay nodes with a tiny model: an answer that a node's death cuts anywhere goes on exactly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gpu_node.engine.cache_size import CacheOptions
from gpu_node.engine.loader import LoadOptions, load_runner
from gpu_node.engine.step import ModelRunner
from server.exchange import AskRequest, Token
from server.patience import PatienceLimits
from tests.fakes.frame_cutter import FrameCutter, frame_cutter
from tests.fakes.phone import FakePhone
from tests.fakes.tiny_model import write_tiny_model
from tests.gpu_node.relay.relayed import NAME, Relayed, real
from tests.server.gateway_parts import Answered, Bench, gateway_over

BASE = {"num_predict": 10, "temperature": 0}
# The model tells noise: in most answers are characters that are made of several tokens.
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {
        "options": {**BASE, "repeat_penalty": 1.3, "frequency_penalty": 0.4},
        "fields": {"logprobs": True, "top_logprobs": 2},
    },
    "seeded": {"options": {**BASE, "temperature": 1.1, "seed": 5, "top_k": 0, "stop": ["e", "zz", "the"]}},
    "a form": {"options": {**BASE, "temperature": 0.9, "seed": 3}, "fields": {"format": {"type": "object"}}},
    "a raw prompt": {"options": BASE, "operation": "generate", "fields": {"raw": True}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Relayed, Relayed]]:
    def runner() -> ModelRunner:
        return load_runner(folder, LoadOptions(device="cpu", dtype="float32", cache=CacheOptions(block_count=64)))

    async with real(runner) as first, real(runner) as second:
        yield first, second


@asynccontextmanager
async def gateway(*doors: FrameCutter) -> AsyncIterator[Bench]:
    """The first node is asked first: the others are heavier to convince."""
    async with gateway_over(affinity=False, patience=PatienceLimits()) as bench:
        for index, door in enumerate(doors):
            await bench.list_phone(cast(FakePhone, door), kind="relay", name=f"node-{index}", weight=100.0 / 50**index)
        yield bench


def request_of(bench: Bench, **changes: Any) -> AskRequest:
    asked = bench.request("Tell me of the fox", model=NAME, **changes)
    return asked if asked.operation == "chat" else replace(asked, messages=(), prompt="the fox")


def told(answered: Answered) -> tuple[Any, ...]:
    """All that the client hears of it but for the times, and the prompt's tokens: they are an estimate where a node
    has died behind the last token that was allowed, since nobody is asked any more then."""
    logprobs = [
        (one["token"], round(one["logprob"], 4))
        for event in answered.events
        if isinstance(event, Token)
        for one in event.logprobs
    ]
    return answered.text, logprobs, answered.done.usage.completion_tokens, answered.done.reason


@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_death_behind_any_token_is_not_heard(folder: Path, changes: dict[str, Any]):
    async with two_nodes(folder) as (first, second), frame_cutter(second.port) as sound:
        async with frame_cutter(first.port) as door, gateway(door, sound) as bench:
            answered = await bench.ask(request_of(bench, **changes))
            whole = told(answered)
            frames, prompt_tokens = door.passed, answered.done.usage.prompt_tokens
        assert frames > 2 and whole[0]
        for tokens in range(frames + 1):
            async with frame_cutter(first.port, tokens) as door, gateway(door, sound) as bench:
                answered = await bench.ask(request_of(bench, **changes))
                assert told(answered) == whole, f"cut behind {tokens} of {frames}"
                ways = [share.way for share in answered.done.nodes]
                assert ways in (["first", "exact"], ["retry"], ["first"]), ways
                if ways != ["first"]:
                    assert answered.done.usage.prompt_tokens == prompt_tokens


async def test_an_answer_survives_death_after_death(folder: Path):
    """Three nodes die one after the other; each goes on where the one before it was."""
    async with two_nodes(folder) as (first, second), frame_cutter(first.port) as sound, gateway(sound) as bench:
        whole = told(await bench.ask(request_of(bench, **REQUESTS["a form"])))
        async with (
            frame_cutter(first.port, 4) as one,
            frame_cutter(second.port, 3) as two,
            gateway(one, two, sound) as all_of_them,
        ):
            answered = await all_of_them.ask(request_of(all_of_them, **REQUESTS["a form"]))
            assert told(answered) == whole
            assert [share.way for share in answered.done.nodes] == ["first", "exact", "exact"]
            assert [way for _, way in all_of_them.witness.resumed] == ["exact", "exact"]
