"""What a contender and the measurement say to each other: a line of JSON each way, over the contender's pipes.

A contender loads its model, writes one line with its facts, then answers each line that holds a `Load` with one that
holds an `Outcome`. Standard library only: it is imported in environments that have nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """Requests: token ids in, so many tokens out, greedy, ends of text ignored."""

    prompts: Sequence[Sequence[int]]
    outputs: Sequence[int]
    delays: Sequence[float] = ()  # seconds after which each arrives; empty: all at once

    def delay(self, at: int) -> float:
        return self.delays[at] if self.delays else 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    seconds: float
    tokens: Sequence[Sequence[int]]  # of each request
    stamps: Sequence[Sequence[float]] = ()  # seconds at which each request's tokens came, where the engine tells them

    @property
    def gaps_ms(self) -> list[float]:
        """Between tokens of one request."""
        return [(later - earlier) * 1000 for row in self.stamps for earlier, later in pairwise(row)]


def serve(
    facts: Mapping[str, Any],
    answer: Callable[[Load], Outcome],
    other: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Answer loads until the other side closes the pipe. Whatever libraries print goes to standard error.

    `other` answers what is no load: an object with a "word"."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _tell(replies, facts)
    for line in sys.stdin:
        message = json.loads(line)
        if other is not None and "word" in message:
            _tell(replies, other(message))
        else:
            _tell(replies, asdict(answer(Load(**message))))


def _tell(replies: Any, message: Mapping[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
