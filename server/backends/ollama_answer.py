"""Ollama's streamed answer, sans-IO: bytes in, events out, however the network cuts them.

One record a line. A half line waits; an error line, a record that is none, another model than asked for, or a body that
ends without `done: true` is a `NodeError`, kept in `error` until the events before it have been passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from server.backends import extras
from server.backends.faults import error_of_line
from server.backends.figures import nanoseconds, tokens
from server.errors import NodeBroken, NodeError
from server.exchange import Durations, NodeDone, NodeEvent, Token, Usage
from server.nodes import model_key

MAX_LINE_BYTES = 8 * 1024 * 1024  # a last record holds `context`, a number for each token; nothing comes near this


class AnswerReader:
    """Reads one answer of /api/chat or /api/generate. `done` once the last record has been read."""

    def __init__(self, address: str, model: str, *, chat: bool) -> None:
        self.done = False
        self.error: NodeError | None = None
        self._address = address
        self._model = model
        self._token = _chat_token if chat else _generate_token
        self._seen_record = False
        self._half: list[bytes] = []
        self._half_bytes = 0

    def feed(self, data: bytes) -> list[NodeEvent]:
        """The events of the lines that are whole by now. Looks no further than the last record or the first error."""
        events: list[NodeEvent] = []
        cut = data.rfind(b"\n")
        if cut < 0:
            self._keep_half(data)
            return events
        lines = data[:cut].split(b"\n")
        if self._half:
            lines[0] = b"".join(self._half) + lines[0]
            self._half = []
        rest = data[cut + 1 :]
        self._half_bytes = 0
        if rest:
            self._keep_half(rest)
        self._read_lines(lines, events)
        return events

    def finish(self) -> list[NodeEvent]:
        """The body has ended well: a last line may have come without its line break."""
        events: list[NodeEvent] = []
        if self._half:
            self._read_lines([b"".join(self._half)], events)
            self._half = []
        if not self.done and self.error is None:
            self.error = NodeBroken(f"{self._address} ended its answer without a last record")
        return events

    def _keep_half(self, data: bytes) -> None:
        self._half.append(data)
        self._half_bytes += len(data)
        if self._half_bytes > MAX_LINE_BYTES:
            self._half = []
            self.error = NodeBroken(f"{self._address} sent a line of more than {MAX_LINE_BYTES} bytes")

    def _read_lines(self, lines: list[bytes], events: list[NodeEvent]) -> None:
        try:
            for line in lines:
                if self.done or self.error is not None:
                    return
                if line and not line.isspace():
                    self._read_record(orjson.loads(line), events)
        except orjson.JSONDecodeError as problem:
            self.error = NodeBroken(f"{self._address} sent a line that is no JSON: {problem}")
        except (TypeError, ValueError, AttributeError, OverflowError) as problem:
            self.error = NodeBroken(f"{self._address} sent a record that is none of Ollama's: {problem}")

    def _read_record(self, record: Any, events: list[NodeEvent]) -> None:
        if type(record) is not dict:
            raise TypeError(f"a {type(record).__name__} instead of an object")
        if "error" in record:
            self.error = error_of_line(self._address, record["error"], first=not self._seen_record)
            return
        self._seen_record = True
        model = record.get("model", self._model)
        if model != self._model and model_key(model) != model_key(self._model):
            self.error = NodeBroken(f"{self._address} answered with model {model!r} instead of {self._model!r}")
            return
        token = self._token(record)
        if token is not None:
            events.append(token)
        if record.get("done") is True:
            events.append(done_of(record, self._model))
            self.done = True


def _chat_token(record: Mapping[str, Any]) -> Token | None:
    message = record.get("message")
    if message is None:
        return None
    text = message.get("content") or ""
    thinking = message.get("thinking") or ""
    calls = message.get("tool_calls")
    logprobs = record.get("logprobs")
    if calls or logprobs or thinking or type(text) is not str:
        return _rare_token(text, thinking, calls, logprobs)
    return Token(text) if text else None


def _generate_token(record: Mapping[str, Any]) -> Token | None:
    text = record.get("response") or ""
    thinking = record.get("thinking") or ""
    logprobs = record.get("logprobs")
    if logprobs or thinking or type(text) is not str:
        return _rare_token(text, thinking, None, logprobs)
    return Token(text) if text else None


def _rare_token(text: Any, thinking: Any, calls: Any, logprobs: Any) -> Token:
    """A token with more than text; with log-probabilities it also tells how many tokens it is made of."""
    if not isinstance(text, str) or not isinstance(thinking, str):
        raise TypeError("a text that is no text")
    listed = extras.logprobs(logprobs)
    return Token(text, thinking, extras.tool_calls(calls), listed, tokens=len(listed) or 1)


def done_of(record: Mapping[str, Any], model: str) -> NodeDone:
    """The last record's counts; old versions leave out the reason. Raises ValueError or TypeError for a foreign one."""
    context = record.get("context") or []
    if type(context) is not list:
        raise TypeError("a context that is no list")
    return NodeDone(
        reason=str(record.get("done_reason") or "stop"),
        model=str(record.get("model") or model),
        usage=Usage(tokens(record, "prompt_eval_count"), tokens(record, "eval_count")),
        durations=Durations(
            total=nanoseconds(record, "total_duration"),
            load=nanoseconds(record, "load_duration"),
            prompt=nanoseconds(record, "prompt_eval_duration"),
            generation=nanoseconds(record, "eval_duration"),
        ),
        context=tuple(context),
    )
