"""Streams that both clients hand out: iterate, stop early, reach the whole answer.

A stream opens its connection at the first step and closes it at its end, at an error and when it is left early; the
gateway then stops the work on the node. All that is decided about records is in `records.py`; here bytes are moved.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing
from typing import Generic, Self, TypeVar, cast

import httpx

from .answers import Answer, BatchItem, Token
from .errors import AnswerTimeout, GatewayUnreachable, PotluckError
from .records import AnswerEvent, AnswerReading, BatchReading, Reading
from .refusals import read_refusal
from .seam import translated

Event = TypeVar("Event")
Opening = Callable[[], AbstractContextManager[httpx.Response]]
AsyncOpening = Callable[[], AbstractAsyncContextManager[httpx.Response]]


class _Flow(Generic[Event]):
    """Events of one response, as an iterator that closes."""

    def __init__(self, opening: Opening, reading: Reading[Event], url: str) -> None:
        self._opening = opening
        self._reading = reading
        self._url = url
        self._events = self._flow()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the stream; the gateway stops what it was doing for it. Harmless when done twice."""
        self._events.close()

    def _flow(self) -> Generator[Event]:
        with translated(self._url), self._opening() as response:
            if response.status_code != 200:
                raise read_refusal(response.status_code, response.headers, response.read())
            chunks = response.iter_bytes()
            while (data := self._next_chunk(chunks)) is not None:
                yield from self._reading.receive_data(data)
                if self._reading.failed:
                    break
        self._reading.end()

    def _next_chunk(self, chunks: Iterator[bytes]) -> bytes | None:
        try:
            with translated(self._url):
                return next(chunks, None)
        except (GatewayUnreachable, AnswerTimeout) as error:
            if (failure := self._reading.broken(error)) is not None:
                raise failure from error
            return None  # after the last record nothing can be missing


class _AsyncFlow(Generic[Event]):
    """The same for asyncio."""

    def __init__(self, opening: AsyncOpening, reading: Reading[Event], url: str) -> None:
        self._opening = opening
        self._reading = reading
        self._url = url
        self._events = self._flow()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the stream; the gateway stops what it was doing for it. Harmless when done twice."""
        await self._events.aclose()

    async def _flow(self) -> AsyncGenerator[Event]:
        with translated(self._url):
            async with self._opening() as response:
                if response.status_code != 200:
                    raise read_refusal(response.status_code, response.headers, await response.aread())
                # httpx promises an iterator only, but it is a generator, and one that wants to be closed.
                async with aclosing(cast("AsyncGenerator[bytes]", response.aiter_bytes())) as chunks:
                    while (data := await self._next_chunk(chunks)) is not None:
                        for event in self._reading.receive_data(data):
                            yield event
                        if self._reading.failed:
                            break
        self._reading.end()

    async def _next_chunk(self, chunks: AsyncGenerator[bytes]) -> bytes | None:
        try:
            with translated(self._url):
                return await anext(chunks, None)
        except (GatewayUnreachable, AnswerTimeout) as error:
            if (failure := self._reading.broken(error)) is not None:
                raise failure from error
            return None  # after the last record nothing can be missing


def _whole(reading: AnswerReading) -> Answer:
    if reading.answer is None:
        raise PotluckError("the stream has not come to its end yet; read it with finish() or to its last token")
    return reading.answer


class Stream(_Flow[AnswerEvent]):
    """The tokens of one answer; `answer` is there after the last one, `text` is what has been told so far."""

    _reading: AnswerReading

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        for event in self._events:
            if isinstance(event, Token):
                return event
        raise StopIteration

    def events(self) -> Iterator[AnswerEvent]:
        """Tokens, thoughts and, where `progress=True` was asked for, places in the queue."""
        return self._events

    @property
    def text(self) -> str:
        return self._reading.text

    @property
    def answer(self) -> Answer:
        return _whole(self._reading)

    def finish(self) -> Answer:
        """Read what is left and return the whole answer."""
        for _ in self._events:
            pass
        return self.answer


class AsyncStream(_AsyncFlow[AnswerEvent]):
    """The same for asyncio; leave it with `async with` or `aclose()` when not read to its end."""

    _reading: AnswerReading

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        async for event in self._events:
            if isinstance(event, Token):
                return event
        raise StopAsyncIteration

    def events(self) -> AsyncIterator[AnswerEvent]:
        """Tokens, thoughts and, where `progress=True` was asked for, places in the queue."""
        return self._events

    @property
    def text(self) -> str:
        return self._reading.text

    @property
    def answer(self) -> Answer:
        return _whole(self._reading)

    async def finish(self) -> Answer:
        """Read what is left and return the whole answer."""
        async for _ in self._events:
            pass
        return self.answer


class BatchStream(_Flow[BatchItem]):
    """The results of a batch in the order in which they finish."""

    _reading: BatchReading

    def __iter__(self) -> Iterator[BatchItem]:
        return self._events


class AsyncBatchStream(_AsyncFlow[BatchItem]):
    """The same for asyncio."""

    _reading: BatchReading

    def __aiter__(self) -> AsyncIterator[BatchItem]:
        return self._events
