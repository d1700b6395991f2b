"""Streams that both clients hand out: iterate, stop early, reach the whole answer.

A stream closes its connection at its end, at an error, and when it is left early, be it by `close` or because nobody
holds it any more; the gateway then stops the work on the node. How that is done is in `flows.py`: a stream must hold
its flow and never the other way round.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Generic, Self, TypeVar

from .answers import Answer, BatchItem, Token
from .errors import PotluckError
from .flows import AsyncFlow, Flow
from .records import AnswerEvent, AnswerReading

Event = TypeVar("Event")


class _Left(Generic[Event]):
    """What is left by `with` or `close`."""

    def __init__(self, flow: Flow[Event]) -> None:
        self._flow = flow

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the stream; the gateway stops what it was doing for it. Harmless when done twice."""
        self._flow.close()


class _AsyncLeft(Generic[Event]):
    """The same for asyncio."""

    def __init__(self, flow: AsyncFlow[Event]) -> None:
        self._flow = flow

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream; the gateway stops what it was doing for it. Harmless when done twice."""
        await self._flow.aclose()


def _whole(reading: AnswerReading) -> Answer:
    if reading.answer is None:
        raise PotluckError("the stream has not come to its end yet; read it with finish() or to its last token")
    return reading.answer


class Stream(_Left[AnswerEvent]):
    """The tokens of one answer; `answer` is there after the last one, `text` is what has been told so far."""

    def __init__(self, flow: Flow[AnswerEvent], reading: AnswerReading) -> None:
        super().__init__(flow)
        self._reading = reading

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        for event in self._flow:
            if isinstance(event, Token):
                return event
        raise StopIteration

    def events(self) -> Iterator[AnswerEvent]:
        """Tokens, thoughts and, where `progress=True` was asked for, places in the queue."""
        return self._flow

    @property
    def text(self) -> str:
        return self._reading.text

    @property
    def answer(self) -> Answer:
        return _whole(self._reading)

    def finish(self) -> Answer:
        """Read what is left and return the whole answer."""
        for _ in self._flow:
            pass
        return self.answer


class AsyncStream(_AsyncLeft[AnswerEvent]):
    """The same for asyncio; `async with` or `aclose()` leave it at once, wherever else it is still held."""

    def __init__(self, flow: AsyncFlow[AnswerEvent], reading: AnswerReading) -> None:
        super().__init__(flow)
        self._reading = reading

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        async for event in self._flow:
            if isinstance(event, Token):
                return event
        raise StopAsyncIteration

    def events(self) -> AsyncIterator[AnswerEvent]:
        """Tokens, thoughts and, where `progress=True` was asked for, places in the queue."""
        return self._flow

    @property
    def text(self) -> str:
        return self._reading.text

    @property
    def answer(self) -> Answer:
        return _whole(self._reading)

    async def finish(self) -> Answer:
        """Read what is left and return the whole answer."""
        async for _ in self._flow:
            pass
        return self.answer


class BatchStream(_Left[BatchItem]):
    """The results of a batch in the order in which they finish."""

    def __iter__(self) -> Iterator[BatchItem]:
        return self._flow


class AsyncBatchStream(_AsyncLeft[BatchItem]):
    """The same for asyncio."""

    def __aiter__(self) -> AsyncIterator[BatchItem]:
        return self._flow
