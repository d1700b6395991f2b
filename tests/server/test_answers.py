"""The answer cache, and equal requests that share one answer in the making."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from server.affinity import conversation
from server.answers import (
    Answers,
    CachedAnswer,
    SharedAnswer,
    answer_key,
    complete_answer,
    is_last,
    replayed,
)
from server.course import Course
from server.errors import NoNodes
from server.exchange import (
    AskRequest,
    CallerId,
    Done,
    Durations,
    Embedding,
    Event,
    Failed,
    NodeShare,
    Queued,
    RequestId,
    Started,
    Timings,
    Token,
    Usage,
)
from server.nodes import ModelKey
from server.retry import Outage
from tests.server.scripted_nodes import MODEL, chat

REQUEST = chat("hi", options={"temperature": 0, "seed": 1}, fields={"format": "json"}, cacheable=True)
SHARES = (NodeShare("a", 2, "first"),)
DONE = Done("stop", "qwen:1b", "a", Usage(3, 2), Durations(generation=10), Timings(1, 2, 3), 1, SHARES)
ANSWER = CachedAnswer((Token("he"), Token("llo")), DONE)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answers_of(max_entries: int = 10, max_bytes: int = 1 << 20, ttl: float = 60.0, **changes: Any) -> Answers:
    return Answers(max_entries, max_bytes, ttl, changes.pop("now", Clock()), **changes)


def key_of(request: AskRequest, model: ModelKey | None = MODEL) -> bytes:
    return answer_key(request, model)


# --- keys


@pytest.mark.parametrize(
    "changes",
    [
        {"operation": "generate"},
        {"messages": ({"role": "user", "content": "hi "},)},
        {"messages": ({"role": "system", "content": "hi"},)},
        {"messages": ({"role": "user", "content": "hi", "images": ["x"]},)},
        {"prompt": "x"},
        {"options": {"temperature": 0, "seed": 2}},
        {"options": {"temperature": 0}},
        {"options": {"temperature": 0, "seed": 1, "num_ctx": 8192}},
        {"options": {"temperature": 0, "seed": 1, "stop": ["x"]}},
        {"fields": {}},
        {"fields": {"format": {}}},
        {"fields": {"format": {"properties": {"a": {}, "b": {}}}}},
        {"fields": {"format": "json", "tools": [{}]}},
        {"fields": {"format": "json", "think": True}},
        {"fields": {"format": "json", "system": "x"}},
        {"fields": {"format": "json", "truncate": False}},
    ],
)
def test_everything_that_changes_the_answer_changes_the_key(changes: dict[str, Any]) -> None:
    """Key = everything that changes the answer."""
    assert key_of(replace(REQUEST, **changes)) != key_of(REQUEST)


def test_the_order_of_a_schemas_properties_changes_the_key() -> None:
    """An answer has its properties in the schema's order."""
    orders = ({"a": {}, "b": {}}, {"b": {}, "a": {}})
    assert len({key_of(replace(REQUEST, fields={"format": {"properties": order}})) for order in orders}) == 2


def test_the_model_changes_the_key() -> None:
    assert len({key_of(REQUEST), key_of(REQUEST, ModelKey("other")), key_of(REQUEST, None)}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"id": RequestId("r2")},
        {"caller": CallerId("bob")},
        {"priority": 9},
        {"deadline_seconds": 3.0},
        {"dialect": "openai"},
        {"model": "QWEN:1b"},  # resolved to the same
        {"options": {"seed": 1, "temperature": 0}},
        {"fields": {"format": "json", "keep_alive": "1h"}},
    ],
)
def test_what_changes_nothing_does_not_change_the_key(changes: dict[str, Any]) -> None:
    assert key_of(replace(REQUEST, **changes)) == key_of(REQUEST)


def test_long_prompts_have_short_keys() -> None:
    """Bounded in bytes: the keys count as well."""
    assert len(key_of(chat("x" * 1_000_000))) == len(key_of(chat("x"))) <= 64


# --- what is kept


def test_an_answer_is_told_again_as_it_was() -> None:
    cache = answers_of()
    cache.put(b"k", ANSWER)
    again = cache.get(b"k")
    assert again == ANSWER
    *tokens, done = replayed(ANSWER, total_ms=7.0)
    assert tokens == list(ANSWER.tokens)
    assert isinstance(done, Done)
    assert (done.cache, done.attempts, done.timings) == ("hit", 0, Timings(0.0, 7.0, 7.0))
    assert (done.usage, done.nodes, done.reason) == (DONE.usage, DONE.nodes, DONE.reason)


def test_entries_time_out() -> None:
    """With a TTL, on the clock that was handed in."""
    clock = Clock()
    cache = answers_of(ttl=60.0, now=clock)
    cache.put(b"k", ANSWER)
    clock.now = 59.9
    assert cache.get(b"k") == ANSWER
    clock.now = 60.1
    assert cache.get(b"k") is None
    assert (cache.entries, cache.size_bytes) == (0, 0)


def test_it_is_bounded_in_entries_least_recently_used_first() -> None:
    """LRU bounded in entries."""
    cache = answers_of(max_entries=3)
    for key in (b"1", b"2", b"3"):
        cache.put(key, ANSWER)
    cache.get(b"1")
    cache.put(b"4", ANSWER)
    assert [bool(cache.get(key)) for key in (b"1", b"2", b"3", b"4")] == [True, False, True, True]
    assert cache.entries == 3


def test_it_is_bounded_in_bytes() -> None:
    long = CachedAnswer((Token("x" * 1000),), DONE)
    cache = answers_of(max_entries=1000, max_bytes=20_000)
    for number in range(50):
        cache.put(str(number).encode(), long)
        assert cache.size_bytes <= 20_000
    assert 1 <= cache.entries <= 5
    cache.put(b"huge", CachedAnswer((Token("x" * 10_000),), DONE))
    assert cache.get(b"huge") is None
    assert cache.get(b"49") is not None, "what does not fit pushes nothing out"


@pytest.mark.parametrize(("entries", "size"), [(0, 1 << 20), (10, 0)])
def test_a_cache_without_room_keeps_nothing(entries: int, size: int) -> None:
    cache = answers_of(entries, size)
    cache.put(b"k", ANSWER)
    assert cache.get(b"k") is None


@pytest.mark.parametrize(
    "token",
    [Token("x" * 500), Token("", "x" * 500), Token("x", logprobs=({"t": "x" * 500},)), Token("", "", ("y" * 500,))],
)
def test_everything_that_takes_memory_counts(token: Token) -> None:
    assert CachedAnswer((token,), DONE).size_bytes > CachedAnswer((Token("x"),), DONE).size_bytes + 500
    assert CachedAnswer((), replace(DONE, context=(1,) * 100)).size_bytes > CachedAnswer((), DONE).size_bytes + 500


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_complete_answers_are_worth_keeping(reason: str) -> None:
    done = replace(DONE, reason=reason)
    events: list[Event] = [Started("miss"), Queued(1), *ANSWER.tokens, done]
    assert complete_answer(events) == CachedAnswer(ANSWER.tokens, done)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [Token("x")],
        [Token("x"), Failed(NoNodes("x"))],
        [replace(DONE, reason="load")],
        [replace(DONE, reason="unload")],
        [Embedding([[1.0]]), DONE],
    ],
)
def test_only_complete_successes_are_kept(events: list[Event]) -> None:
    """Only complete successes: failures are never cached, nor is what is no text."""
    assert complete_answer(events) is None


def test_which_event_is_the_last() -> None:
    assert is_last(DONE)
    assert is_last(Failed(NoNodes("x")))
    assert not any(is_last(event) for event in (Started("off"), Queued(1), Token("x"), Embedding([])))


# --- who takes part

ASK = chat("hi", cacheable=True)
GREEDY = chat("hi", cacheable=True, dialect="openai", options={"temperature": 0})
FREE = chat("hi", cacheable=True, dialect="openai")


@pytest.mark.parametrize(
    ("changes", "takes_part"),
    [
        ({}, (True, True, False)),
        ({"policy": "always"}, (True, True, True)),
        ({"policy": "never"}, (True, False, False)),
        ({"enabled": False}, (False, False, False)),
        ({"enabled": False, "policy": "always"}, (False, False, False)),
    ],
)
def test_who_takes_part(changes: dict[str, Any], takes_part: tuple[bool, ...]) -> None:
    """On for `/ask*`; in the dialects only where the answer is deterministic; a setting changes that, another
    switches it off."""
    cache = answers_of(**changes)
    assert tuple(cache.wants(request) for request in (ASK, GREEDY, FREE)) == takes_part


def test_a_request_may_stay_out() -> None:
    """`cache: false` in a request."""
    cache = answers_of(policy="always")
    assert not any(cache.wants(replace(request, cacheable=False)) for request in (ASK, GREEDY, FREE))


# --- answers in the making


def shared_answer() -> SharedAnswer:
    request = chat("hi")
    return SharedAnswer(Course(request, conversation(request), 0.0, Outage(5)))


async def hear(shared: SharedAnswer, heard: list[Event]) -> None:
    async with aclosing(shared.listen()) as batches:
        async for batch in batches:
            assert batch
            heard.extend(batch)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_joins_late_hears_everything_from_the_beginning() -> None:
    """Equal requests in flight share one generation."""
    shared = shared_answer()
    first: list[Event] = []
    late: list[Event] = []
    tasks = [asyncio.create_task(hear(shared, first))]
    await settled()
    shared.tell([Token("a")])
    await settled()
    tasks.append(asyncio.create_task(hear(shared, late)))
    await settled()
    assert first == late == [Token("a")]
    shared.tell([Token("b"), DONE])
    shared.end()
    await asyncio.gather(*tasks)
    assert first == late == [Token("a"), Token("b"), DONE]
    after: list[Event] = []
    await hear(shared, after)
    assert after == first


async def test_a_place_in_the_queue_is_told_while_it_is_true() -> None:
    shared = shared_answer()
    heard: list[Event] = []
    shared.tell([Queued(3)])
    shared.tell([Queued(2)])
    task = asyncio.create_task(hear(shared, heard))
    await settled()
    assert heard == [Queued(2)]
    shared.tell([Queued(1), Token("a"), DONE])
    shared.end()
    await task
    assert heard == [Queued(2), Token("a"), DONE]


async def test_one_listener_leaving_does_not_end_it_for_the_others_the_last_one_does() -> None:
    """A cancel of one does not cancel the others; the last one leaving cancels the making."""
    shared = shared_answer()
    abandoned: list[bool] = []
    shared.on_abandoned = lambda: abandoned.append(True)
    heard: list[Event] = []
    tasks = [asyncio.create_task(hear(shared, heard)) for _ in range(3)]
    await settled()
    for number, task in enumerate(tasks):
        assert abandoned == []
        assert shared.listeners == 3 - number
        task.cancel()
        await settled()
    assert abandoned == [True]
    assert shared.listeners == 0


async def test_a_listener_counts_from_the_moment_it_joins() -> None:
    """Joined, but not yet listening: the other one's leaving must not end it; its own leaving must."""
    shared = shared_answer()
    abandoned: list[bool] = []
    shared.on_abandoned = lambda: abandoned.append(True)
    one, two = shared.listen(), shared.listen()
    await one.aclose()
    await one.aclose()
    assert (shared.listeners, abandoned) == (1, [])
    await two.aclose()
    assert abandoned == [True]


async def test_leaving_after_the_end_abandons_nothing() -> None:
    shared = shared_answer()
    abandoned: list[bool] = []
    shared.on_abandoned = lambda: abandoned.append(True)
    shared.tell([DONE])
    shared.end()
    heard: list[Event] = []
    await hear(shared, heard)
    assert (heard, abandoned) == ([DONE], [])


async def test_a_fault_in_the_making_reaches_every_listener() -> None:
    shared = shared_answer()
    heard: list[list[Event]] = [[], []]
    tasks = [asyncio.create_task(hear(shared, mine)) for mine in heard]
    await settled()
    shared.tell([Token("a")])
    shared.fault = ZeroDivisionError("ours")
    shared.end()
    outcome = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in outcome] == [ZeroDivisionError, ZeroDivisionError]
    assert heard == [[Token("a")], [Token("a")]]
