"""One attempt that goes on after what was told, and what the client heard of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from server.affinity import conversation
from server.attempt import tell
from server.backends.base import Call
from server.course import Attempt, Course
from server.exchange import AskRequest, Event, NodeDone, Token, Usage
from server.patience import Patience
from server.retry import Outage
from tests.server.scripted_backend import (
    ScriptedBackend,
)
from tests.server.scripted_nodes import MODEL, chat, node_of, report_of, seat_of

GREEDY = {"temperature": 0}
DONE = NodeDone("stop", "qwen:1b", Usage(10, 5))
RENDERS = node_of("a", report_of(renders=True))
OURS = node_of("a", report_of(continues_assistant=True))
PATIENCE = Patience()


def course_of(request: AskRequest | None = None, told: str = "", attempts: int = 0, thinking: str = "") -> Course:
    request = request or chat("hi", options=GREEDY)
    course = Course(request, conversation(request), 0.0, Outage(5), attempts=attempts)
    if told or thinking:
        course.told.add(Token(told, thinking, tokens=4))
    return course


def tokens(*texts: str) -> list[Token]:
    return [Token(text) for text in texts]


class Telling:
    """One attempt that goes on after `told`, and what the client heard of it."""

    def __init__(self, course: Course, way: str, steps: Sequence[Any]) -> None:
        self.course = course
        self.attempt = Attempt(seat_of(RENDERS), way, course.told.tokens)
        self.backend = ScriptedBackend(steps)
        self.batches: list[Sequence[Event]] = []
        self._now = 0.0

    def clock(self) -> float:
        self._now += 1.0
        return self._now

    async def run(self) -> Telling:
        call = Call("chat", MODEL)
        stream = tell(self.course, self.attempt, call, self.backend, PATIENCE, self.clock)
        async with aclosing(stream) as batches:
            async for batch in batches:
                self.batches.append(batch)
        return self

    @property
    def text(self) -> str:
        return "".join(event.text for batch in self.batches for event in batch if isinstance(event, Token))
