"""A dispatch that tells a script: for tests of the HTTP surface without nodes.

A script is a list of batches of events; an `asyncio.Event` between them holds the stream until it is set. What was
asked, and which streams were closed before their end, is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from server.errors import GatewayError
from server.exchange import (
    AskRequest,
    Done,
    Durations,
    Event,
    Failed,
    NodeShare,
    Started,
    Timings,
    Token,
    Usage,
)

Step = Sequence[Event] | asyncio.Event | BaseException
Script = Sequence[Step]

DONE = Done(
    reason="stop",
    model="qwen2.5:1.5b",
    node="kitchen",
    usage=Usage(12, 3),
    durations=Durations(900_000_000, 100_000_000, 200_000_000, 500_000_000),
    timings=Timings(1.5, 20.25, 900.0),
    attempts=1,
    nodes=(NodeShare("kitchen", 3, "first"),),
    cache="miss",
    context=(),
)


def tokens(*texts: str) -> list[Step]:
    return [[Token(text)] for text in texts]


def whole(*texts: str, done: Done = DONE) -> list[Step]:
    """The usual stream: started, a batch per token, done."""
    return [[Started(done.cache)], *tokens(*texts), [done]]


def failing(error: GatewayError, *texts: str) -> list[Step]:
    return [[Started("miss")], *tokens(*texts), [Failed(error)]]


class ScriptedDispatch:
    """Every request gets the script, or what the script function makes of the request."""

    def __init__(self, script: Script | Callable[[AskRequest], Script] = ()) -> None:
        self.script = script or whole("Par", "is", ".")
        self.asked: list[AskRequest] = []
        self.finished = 0
        self.abandoned = 0
        self.running = 0
        self.most_running = 0

    async def stream(self, request: AskRequest) -> AsyncGenerator[Sequence[Event], None]:
        self.asked.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        script = self.script(request) if callable(self.script) else self.script
        try:
            for step in script:
                await asyncio.sleep(0)
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, BaseException):
                    raise step
                else:
                    yield step
            self.finished += 1
        except (GeneratorExit, asyncio.CancelledError):
            self.abandoned += 1
            raise
        finally:
            self.running -= 1

    def queue_status(self) -> dict[str, Any]:
        return {"waiting": 0, "limit": 1024, "callers": {}, "oldest_s": None}

    def cache_status(self) -> dict[str, Any]:
        return {"enabled": True, "entries": 0, "bytes": 0, "hits": 0, "misses": 0, "joined": 0}

    def held_conversations(self, node_id: str) -> int:
        return 2


def done(**changes: Any) -> Done:
    return replace(DONE, **changes)
