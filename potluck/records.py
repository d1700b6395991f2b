"""Streams of records, sans I/O: bytes in, events out, at any cut of the bytes.

`receive_data` returns what can be told, `end` is called once when no more bytes come and raises unless the stream's own
last record was there. So a stream that stops early is never taken for a whole one. Bounds a line before keeping it.
Knows nothing of HTTP or of who reads.
"""

from __future__ import annotations

import json
from typing import Protocol, TypeVar

from .answers import Answer, BatchItem, Queued, Record, Thinking, Token, as_record, read_answer, read_count
from .errors import AnswerCutShort, GatewayUnreachable, PotluckError, UnexpectedAnswer
from .refusals import refusal

# A token's line has some hundred bytes, a batch's line a whole answer; beyond this it is no gateway that speaks.
LONGEST_LINE_BYTES = 16 * 1024 * 1024

Event = TypeVar("Event")
AnswerEvent = Token | Thinking | Queued


class Reading(Protocol[Event]):
    """What a stream of either client needs to know of the records in it."""

    @property
    def failed(self) -> bool:
        """What came makes the rest worthless: read no further, `end` raises."""
        ...

    def receive_data(self, data: bytes) -> list[Event]: ...

    def end(self) -> None:
        """Raise unless the stream came to its own end."""
        ...

    def broken(self, error: PotluckError) -> PotluckError | None:
        """What a connection that broke here means for the stream; nothing (None) after its last record."""
        ...


class LineDecoder:
    """Bytes to lines. Pieces of a line are kept apart until it ends, so that long lines cost no repeated copies."""

    def __init__(self, longest_line_bytes: int = LONGEST_LINE_BYTES) -> None:
        self._longest_line_bytes = longest_line_bytes
        self._pieces: list[bytes] = []
        self._kept_bytes = 0

    def receive_data(self, data: bytes) -> list[bytes]:
        """Whole lines without their ends; blank ones are left out."""
        first, *others = data.split(b"\n")
        self._keep(first)
        lines = []
        for piece in others:
            lines.append(self.flush())
            self._keep(piece)
        return [line for line in lines if line]

    def flush(self) -> bytes:
        """What has come of the current line."""
        line = b"".join(self._pieces).strip()
        self._pieces.clear()
        self._kept_bytes = 0
        return line

    def _keep(self, piece: bytes) -> None:
        self._kept_bytes += len(piece)
        if self._kept_bytes > self._longest_line_bytes:
            raise UnexpectedAnswer(f"a line of the stream is longer than {self._longest_line_bytes} bytes")
        if piece:
            self._pieces.append(piece)


class AnswerReading:
    """One answer: tokens, places in the queue, then the record that ends it."""

    def __init__(self) -> None:
        self._lines = LineDecoder()
        self._told: list[str] = []
        self._thought: list[str] = []
        self._answer: Answer | None = None
        self._failure: PotluckError | None = None

    @property
    def text(self) -> str:
        return "".join(self._told)

    @property
    def answer(self) -> Answer | None:
        return self._answer

    @property
    def failed(self) -> bool:
        return self._failure is not None

    @property
    def _finished(self) -> bool:
        return self._answer is not None or self._failure is not None

    def receive_data(self, data: bytes) -> list[AnswerEvent]:
        events: list[AnswerEvent] = []
        try:
            for line in self._lines.receive_data(data):
                self._take(read_line(line), events)
        except UnexpectedAnswer as error:  # what came before it is told first, `end` raises
            self._fail(error)
        return events

    def end(self) -> None:
        rest = self._lines.flush()
        if rest and not self._finished:
            self._last_line(rest)
        if self._failure is not None:
            raise self._failure
        if self._answer is None:
            raise self._cut("the answer stopped before its end")

    def broken(self, error: PotluckError) -> PotluckError | None:
        if self._finished:
            return self._failure
        return self._cut(error.message) if isinstance(error, GatewayUnreachable) else error

    def _take(self, record: Record, events: list[AnswerEvent]) -> None:
        if self._finished:
            raise UnexpectedAnswer("the stream went on after its last record")
        if "error" in record:
            self._take_error(as_record(record["error"], "an object as 'error'"))
        elif record.get("done") is True:
            self._answer = read_answer(record, self.text, "".join(self._thought))
        elif isinstance(token := record.get("token"), str):
            self._told.append(token)
            events.append(Token(token))
        elif isinstance(thought := record.get("thinking"), str):
            self._thought.append(thought)
            events.append(Thinking(thought))
        elif "queued" in record:
            events.append(Queued(read_count(record, "queued")))

    def _take_error(self, error: Record) -> None:
        refused = refusal(error)
        if not self._told:
            self._failure = refused
            return
        nodes = error.get("nodes") or ([error["node"]] if error.get("node") else [])
        self._failure = self._cut(refused.message, tuple(map(str, nodes)), refused.code)
        self._failure.hint = refused.hint

    def _last_line(self, line: bytes) -> None:
        """The end of the last line may be missing; half a record means that the stream was cut."""
        try:
            self._take(read_line(line), [])
        except UnexpectedAnswer:
            self._failure = self._cut("the answer stopped in the middle of a record")

    def _fail(self, error: UnexpectedAnswer) -> None:
        if self._failure is None:
            self._failure = self._cut(error.message) if self._told and self._answer is None else error

    def _cut(self, reason: str, nodes: tuple[str, ...] = (), code: str | None = None) -> AnswerCutShort:
        return AnswerCutShort(reason, text=self.text, nodes=nodes, code=code)


class BatchReading:
    """A batch whose results come as they finish."""

    def __init__(self, size: int) -> None:
        self._lines = LineDecoder()
        self._awaited = set(range(size))
        self._done = False
        self._failure: PotluckError | None = None

    @property
    def failed(self) -> bool:
        return self._failure is not None

    @property
    def _finished(self) -> bool:
        return self._done or self._failure is not None

    def receive_data(self, data: bytes) -> list[BatchItem]:
        items: list[BatchItem] = []
        try:
            for line in self._lines.receive_data(data):
                self._take(read_line(line), items)
        except UnexpectedAnswer as error:
            self._failure = self._failure or error
        return items

    def end(self) -> None:
        rest = self._lines.flush()
        if rest and not self._finished:
            try:
                self._take(read_line(rest), [])
            except UnexpectedAnswer:
                self._failure = self._cut("the batch stopped in the middle of a record")
        if self._failure is not None:
            raise self._failure
        if not self._done or self._awaited:
            raise self._cut("the batch stopped before its end")

    def broken(self, error: PotluckError) -> PotluckError | None:
        if self._finished:
            return self._failure
        return self._cut(error.message) if isinstance(error, GatewayUnreachable) else error

    def _take(self, record: Record, items: list[BatchItem]) -> None:
        if self._finished:
            raise UnexpectedAnswer("the stream went on after its last record")
        if record.get("done") is True and "index" not in record:
            self._done = True
        elif "index" in record:
            item = read_item(record, read_count(record, "index"))
            if item.index not in self._awaited:
                raise UnexpectedAnswer(f"the batch has no open request {item.index}")
            self._awaited.remove(item.index)
            items.append(item)
        elif "error" in record:
            self._failure = refusal(as_record(record["error"], "an object as 'error'"))

    def _cut(self, reason: str) -> AnswerCutShort:
        missing = ", ".join(str(index) for index in sorted(self._awaited)[:10])
        return AnswerCutShort(f"{reason}; no result for: {missing or 'none, but no end either'}", text="")


def read_item(record: Record, index: int) -> BatchItem:
    """One result of a batch, from either kind of batch."""
    if "error" in record:
        return BatchItem(index, error=refusal(as_record(record["error"], "an object as 'error'")))
    return BatchItem(index, ok=read_answer(record))


def read_line(line: bytes) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and nesting without end
        raise UnexpectedAnswer("a line of the stream is not JSON") from error
    return as_record(value, "an object on every line")
