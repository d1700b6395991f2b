"""The values that a gateway's answers become: frozen, typed, checked while they are read.

Reading never invents: a missing or wrongly typed field that matters raises `UnexpectedAnswer`; fields that a newer
gateway adds are left alone. Knows nothing of HTTP, of streams' framing, or of how a request was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import RequestRefused, UnexpectedAnswer

Record = Mapping[str, Any]


class Token(str):
    """A piece of an answer, as the node cut it. It is text: print it, join it, compare it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of what the model thinks before it answers; no part of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Queued:
    """The request still waits for a node; `position` counts from 1."""

    position: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written, summed over all nodes that told a part of the answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds since the gateway got the request; None where nothing was measured (a cached answer)."""

    queue_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None


@dataclass(frozen=True, slots=True)
class NodeShare:
    """Which node told how much, and how it came to go on: first, retry, chat, raw or replay."""

    node: str
    tokens: int | None = None
    way: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `str(answer)` is its text."""

    text: str
    model: str
    node: str
    cached: bool
    usage: Usage
    timings: Timings
    tokens_per_second: float | None
    attempts: int
    nodes: tuple[NodeShare, ...]
    done_reason: str | None = None
    thinking: str = ""

    def __str__(self) -> str:
        return self.text

    def as_record(self) -> dict[str, Any]:
        """The answer as the gateway's JSON, field for field."""
        return {
            "response": self.text,
            **({"thinking": self.thinking} if self.thinking else {}),
            "model": self.model,
            "node": self.node,
            "cached": self.cached,
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
            },
            "timings_ms": {
                "queue": self.timings.queue_ms,
                "first_token": self.timings.first_token_ms,
                "total": self.timings.total_ms,
            },
            "tokens_per_second": self.tokens_per_second,
            "attempts": self.attempts,
            "nodes": [{"node": share.node, "tokens": share.tokens, "way": share.way} for share in self.nodes],
            "done_reason": self.done_reason,
        }


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What became of one request of a batch. Exactly one of `ok` and `error` is there."""

    index: int
    ok: Answer | None = None
    error: RequestRefused | None = None

    @property
    def answer(self) -> Answer:
        """The answer; raises the item's own error where there is none."""
        if self.error is not None:
            raise self.error
        assert self.ok is not None
        return self.ok

    @property
    def text(self) -> str:
        return self.answer.text


def read_answer(record: Record, text: str | None = None, thinking: str = "") -> Answer:
    """`text` (and `thinking`) is what a stream told; without it the record must bring its own `response`."""
    usage = read_record(record, "usage")
    timings = read_record(record, "timings_ms")
    return Answer(
        text=read_text(record, "response") if text is None else text,
        model=read_text(record, "model"),
        node=read_text(record, "node"),
        cached=record.get("cached") is True,
        usage=Usage(read_count(usage, "prompt_tokens"), read_count(usage, "completion_tokens")),
        timings=Timings(
            read_number(timings, "queue"), read_number(timings, "first_token"), read_number(timings, "total")
        ),
        tokens_per_second=read_number(record, "tokens_per_second"),
        attempts=read_count(record, "attempts"),
        nodes=tuple(_read_share(share) for share in record.get("nodes") or ()),
        done_reason=read_optional_text(record, "done_reason"),
        thinking=thinking or read_optional_text(record, "thinking") or "",
    )


def _read_share(share: object) -> NodeShare:
    if isinstance(share, str):
        return NodeShare(share)
    record = as_record(share, "a node's share")
    tokens = read_number(record, "tokens")
    return NodeShare(
        read_text(record, "node"), None if tokens is None else int(tokens), read_optional_text(record, "way")
    )


def as_record(value: object, what: str) -> Record:
    if not isinstance(value, Mapping):
        raise UnexpectedAnswer(f"the gateway's answer should hold {what}, but holds {type(value).__name__}")
    return value


def read_record(record: Record, name: str) -> Record:
    value = record.get(name)
    return {} if value is None else as_record(value, f"an object as {name!r}")


def read_text(record: Record, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise UnexpectedAnswer(f"the gateway's answer has no text as {name!r}")
    return value


def read_optional_text(record: Record, name: str) -> str | None:
    return None if record.get(name) is None else read_text(record, name)


def read_number(record: Record, name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnexpectedAnswer(f"the gateway's answer has no number as {name!r}")
    return value


def read_count(record: Record, name: str) -> int:
    return int(read_number(record, name) or 0)
