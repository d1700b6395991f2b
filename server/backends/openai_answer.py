"""The streamed answer of a server with OpenAI's API, sans-IO: events' data in, our events out.

The name of the model in an answer is not compared: such servers serve what they were started with and call it as they
like. A stream that ends with neither a finish_reason nor [DONE] is broken, since that is how a dead runner ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from server.backends import extras
from server.backends.faults import error_of_line
from server.backends.figures import MOST_MILLISECONDS, figure, tokens
from server.backends.sse import EventReader
from server.errors import NodeBroken, NodeError
from server.exchange import Durations, NodeDone, NodeEvent, Token, Usage


@dataclass(slots=True)
class _PartialCall:
    """A tool call that comes in pieces: the name first, then its arguments as parts of a JSON text."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def whole(self) -> dict[str, Any]:
        """Raises ValueError where the arguments are no object."""
        arguments = orjson.loads(self.arguments) if self.arguments.strip() else {}
        if not isinstance(arguments, dict):
            raise ValueError("the arguments of a tool call are no object")
        call: dict[str, Any] = {"function": {"name": self.name, "arguments": arguments}}
        return {"id": self.id, **call} if self.id else call


class AnswerReader:
    """`feed` network reads, then `finish`; `error` is kept until the events before it have been passed on."""

    def __init__(self, address: str) -> None:
        self.error: NodeError | None = None
        self.ended = False  # [DONE] has come
        self.tokens = 0
        self.usage: Usage | None = None
        self.durations = Durations()
        self._address = address
        self._stream = EventReader(address)
        self._reason: str | None = None
        self._calls: dict[int, _PartialCall] = {}
        self._seen_event = False

    def feed(self, data: bytes) -> list[NodeEvent]:
        return self._guard(data)

    def finish(self) -> list[NodeEvent]:
        """The body has ended well."""
        events = self._guard(None)
        if self.error is None and self._reason is None and not self.ended:
            self.error = NodeBroken(f"{self._address} ended its answer without a finish_reason and without [DONE]")
        return events

    def done(self, model: str, generation_nanoseconds: int, total_nanoseconds: int) -> NodeDone:
        """The last event; what the server does not say about time is as we measured it."""
        usage = self.usage or Usage(0, self.tokens)
        told = self.durations
        generation = told.generation or generation_nanoseconds
        durations = Durations(total_nanoseconds, told.load, told.prompt, generation)
        return NodeDone(self._reason or "stop", model, usage, durations)

    def _guard(self, data: bytes | None) -> list[NodeEvent]:
        """Read, and keep what is wrong for later. `data` is None at the end."""
        events: list[NodeEvent] = []
        try:
            for field, text in self._stream.finish() if data is None else self._stream.feed(data):
                if self.error is None and not self.ended:
                    self._read(field, text, events)
        except NodeError as problem:
            self.error = problem
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as problem:
            self.error = NodeBroken(f"{self._address} sent an event that is none of OpenAI's: {problem}")
        return events

    def _read(self, field: bytes, text: bytes, events: list[NodeEvent]) -> None:
        if text == b"[DONE]":
            self.ended = True
            return
        record = orjson.loads(text)
        error = record if field == b"error" else record.get("error")
        if error is not None:
            self.error = error_of_line(self._address, error, first=not self._seen_event)
            return
        self._seen_event = True
        if record.get("usage"):
            self.usage = _usage(record["usage"])
        if record.get("timings"):
            self.durations = _timings(record["timings"])
        for choice in record.get("choices") or ():
            self._read_choice(choice, events)

    def _read_choice(self, choice: Mapping[str, Any], events: list[NodeEvent]) -> None:
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        for piece in delta.get("tool_calls") or ():
            self._read_call(piece)
        logprobs = extras.logprobs((choice.get("logprobs") or {}).get("content"))
        if text or thinking or logprobs:
            if not isinstance(text, str) or not isinstance(thinking, str):
                raise TypeError("a text that is no text")
            token = Token(text, thinking, logprobs=logprobs, tokens=len(logprobs) or 1)
            self.tokens += token.tokens
            events.append(token)
        if choice.get("finish_reason"):
            self._finish_choice(choice["finish_reason"], events)

    def _read_call(self, piece: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(int(piece.get("index", len(self._calls))), _PartialCall())
        function = piece.get("function") or {}
        call.id = call.id or piece.get("id") or ""
        call.name += function.get("name") or ""
        call.arguments += function.get("arguments") or ""

    def _finish_choice(self, reason: str, events: list[NodeEvent]) -> None:
        """A tool call is an ordinary stop in Ollama's terms."""
        self._reason = "stop" if reason in ("tool_calls", "function_call") else str(reason)
        if self._calls:
            calls = extras.tool_calls([self._calls[index].whole() for index in sorted(self._calls)])
            self._calls = {}
            events.append(Token(tool_calls=calls, tokens=1))


def _usage(record: Mapping[str, Any]) -> Usage:
    return Usage(tokens(record, "prompt_tokens"), tokens(record, "completion_tokens"))


def _timings(record: Mapping[str, Any]) -> Durations:
    """llama-server's own account, in milliseconds there."""
    prompt = figure(record, "prompt_ms", MOST_MILLISECONDS)
    generation = figure(record, "predicted_ms", MOST_MILLISECONDS)
    return Durations(prompt=int(prompt * 1e6), generation=int(generation * 1e6))
