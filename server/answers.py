"""The answer cache: complete answers by everything that changes them, and equal requests in flight sharing one.

Bounded in entries and bytes, with a time to live (cachetools). Only complete successes get in. A joined request listens
to the leader's events from their beginning; one listener leaving never cancels the others, the last one leaving does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal

import orjson
from cachetools import TTLCache

from server.course import Course
from server.exchange import AskRequest, Done, Embedding, Event, Failed, Queued, Token
from server.nodes import ModelKey

CachePolicy = Literal["deterministic", "always", "never"]
# a request that only differs in these gives the same answer
IRRELEVANT_FIELDS = ("keep_alive",)
OBJECTS_PER_BYTE = 4  # what small dicts and numbers take in memory, against their JSON
ENTRY_OVERHEAD_BYTES = 512  # the values around the text


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    tokens: tuple[Token, ...]
    done: Done

    @property
    def size_bytes(self) -> int:
        text = sum(len(token.text) + len(token.thinking) for token in self.tokens)
        rest = [(token.tool_calls, token.logprobs) for token in self.tokens if token.tool_calls or token.logprobs]
        objects = OBJECTS_PER_BYTE * len(orjson.dumps(rest, default=str)) if rest else 0
        # 4 bytes a character is the most a str takes, 64 a Token beside its text
        return ENTRY_OVERHEAD_BYTES + 4 * text + objects + 64 * len(self.tokens) + 8 * len(self.done.context)


def answer_key(request: AskRequest, model: ModelKey | None, generation: int = 0) -> bytes:
    """A digest of everything that changes the answer: long prompts must not fill the cache with its keys.

    `generation` counts the changes of the fleet's models: a model that was pulled anew answers anew.
    """
    fields = {name: value for name, value in request.fields.items() if name not in IRRELEVANT_FIELDS}
    form = orjson.dumps(fields.pop("format", None), default=dict)  # an answer has its properties in the schema's order
    spelled = orjson.dumps(
        [generation, request.operation, model, request.messages, request.prompt, dict(request.options), fields],
        option=orjson.OPT_SORT_KEYS,
        default=dict,
    )
    return sha256(form + b"\n" + spelled).digest()


class SharedAnswer:
    """One answer in the making, and its listeners. The events so far are kept for those that join later."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.events: list[Event] = []
        self.ended = False
        self.listeners = 0
        self.fault: Exception | None = None  # what broke in the making, if it was our own fault
        self.on_abandoned: Callable[[], None] = lambda: None
        self._news = asyncio.Event()

    def tell(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def listen(self) -> Listening:
        """All events from the beginning, but for places in the queue that are history. Close it (aclose) at the end.

        Counts from now on: the last listener that leaves early cancels the making.
        """
        return Listening(self)

    async def news(self, heard: int) -> list[Event]:
        """The events after the first `heard`; empty at the end. Raises the fault that ended the making."""
        while heard == len(self.events) and not self.ended:
            await self._news.wait()
        if heard == len(self.events) and self.fault is not None:
            raise self.fault
        return self.events[heard:]


class Listening:
    """One listener's way through a shared answer. An async iterator of batches."""

    def __init__(self, shared: SharedAnswer) -> None:
        self._shared = shared
        self._heard = 0
        self._left = False
        shared.listeners += 1

    def __aiter__(self) -> Listening:
        return self

    async def __anext__(self) -> Sequence[Event]:
        news = await self._shared.news(self._heard)
        if not news:
            raise StopAsyncIteration
        self._heard += len(news)
        return [event for event in news if event is news[-1] or not isinstance(event, Queued)]

    async def aclose(self) -> None:
        if self._left:
            return
        self._left = True
        shared = self._shared
        shared.listeners -= 1
        if shared.listeners == 0 and not shared.ended:
            shared.on_abandoned()


@dataclass(slots=True)
class Answers:
    """The cache and the answers in flight. `now` is the clock that times entries out, in seconds."""

    max_entries: int
    max_bytes: int
    ttl_seconds: float
    now: Callable[[], float]
    enabled: bool = True
    policy: CachePolicy = "deterministic"
    hits: int = 0
    misses: int = 0
    generation: int = 0  # of the fleet's models; answers of an older one are not told again
    joined: int = 0
    in_flight: dict[bytes, SharedAnswer] = field(default_factory=dict)
    _cache: TTLCache[bytes, CachedAnswer] = field(init=False)

    def __post_init__(self) -> None:
        self._cache = TTLCache(self.max_bytes, self.ttl_seconds, timer=self.now, getsizeof=lambda a: a.size_bytes)

    def wants(self, request: AskRequest) -> bool:
        """Does this request take part? Our own API does; the dialects only where an answer is sure to repeat."""
        if not self.enabled or not request.cacheable:
            return False
        if request.dialect == "ask" or self.policy == "always":
            return True
        return self.policy == "deterministic" and request.deterministic

    def get(self, key: bytes) -> CachedAnswer | None:
        answer: CachedAnswer | None = self._cache.get(key)
        return answer

    def put(self, key: bytes, answer: CachedAnswer) -> None:
        if answer.size_bytes > self.max_bytes:
            return
        self._cache[key] = answer
        while len(self._cache) > self.max_entries:
            self._cache.popitem()

    @property
    def entries(self) -> int:
        return len(self._cache)

    @property
    def size_bytes(self) -> int:
        return round(self._cache.currsize)


def complete_answer(events: Sequence[Event]) -> CachedAnswer | None:
    """The answer worth keeping, if these events are one that ended well."""
    done = events[-1] if events else None
    if not isinstance(done, Done) or done.reason not in ("stop", "length", "tool_calls"):
        return None
    if any(isinstance(event, Embedding) for event in events):
        return None  # only text is kept: told again without its vectors it would be no answer
    return CachedAnswer(tuple(event for event in events if isinstance(event, Token)), done)


def replayed(answer: CachedAnswer, total_ms: float) -> list[Event]:
    """The events of a cached answer, told again at once."""
    timings = replace(answer.done.timings, queue=0.0, first_token=total_ms, total=total_ms)
    return [*answer.tokens, replace(answer.done, cache="hit", timings=timings, attempts=0)]


def is_last(event: Event) -> bool:
    return isinstance(event, Done | Failed)
