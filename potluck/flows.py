"""The events of one response, as an iterator that owns the connection.

The connection opens at the first step and is closed at the end, at an error, by `close`, and when nobody holds the flow
any more. For the last one a flow must be no part of a reference cycle, and no generator of ours may stand between it
and the response. All that is decided about records is in `records.py`; here bytes are moved.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import httpx

from .errors import AnswerTimeout, GatewayUnreachable, Misuse, PotluckError
from .leftovers import AsyncLeftovers, Leftovers, close_response
from .records import Reading
from .refusals import read_refusal
from .seam import translated

Event = TypeVar("Event")


class _FlowState(Generic[Event]):
    """What both kinds of flow know, and the decisions in which there is nothing to wait for."""

    def __init__(self, reading: Reading[Event], url: str) -> None:
        self._reading = reading
        self._url = url
        self._waiting: deque[Event] = deque()
        self._response: httpx.Response | None = None
        self._last_reference: weakref.finalize[Any, Any] | None = None
        self._receiving = False
        self._drained = False  # no more bytes are wanted
        self._over = False  # nothing more is told

    def _own(self, response: httpx.Response, take: Callable[..., None], *arguments: Any) -> None:
        self._response = response
        self._last_reference = weakref.finalize(self, take, response, *arguments)
        self._last_reference.atexit = False

    def _disown(self) -> httpx.Response | None:
        """The response that is to be closed now, if there is one."""
        response, self._response = self._response, None
        if self._last_reference is not None:
            self._last_reference.detach()
        return response

    def _begin_receiving(self) -> None:
        if self._receiving:
            raise Misuse("this stream is being read by somebody else at the same time")
        self._receiving = True

    def _take(self, data: bytes | None) -> None:
        if data is not None and not self._over:
            self._waiting.extend(self._reading.receive_data(data))
        self._drained = data is None or self._reading.failed

    def _end(self) -> None:
        """Everything is told; raises unless that was all."""
        self._over = True
        self._reading.end()

    def _leave(self) -> None:
        self._over = True
        self._waiting.clear()

    def _left_meanwhile(self) -> PotluckError:
        left = GatewayUnreachable("the stream was closed while it was being read", self._url)
        return self._reading.broken(left) or left


class Flow(_FlowState[Event]):
    """`open_response` sends the request and returns when the answer's headers are there."""

    def __init__(
        self, open_response: Callable[[], httpx.Response], reading: Reading[Event], url: str, leftovers: Leftovers
    ) -> None:
        super().__init__(reading, url)
        self._open_response = open_response
        self._leftovers = leftovers
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        while not self._waiting:
            if self._over:
                raise StopIteration
            if self._drained:
                self._end()
            else:
                self._receive()
        return self._waiting.popleft()

    def close(self) -> None:
        """Harmless when done twice."""
        self._leave()
        self._release()

    def _receive(self) -> None:
        self._begin_receiving()
        try:
            self._take(self._next_chunk(self._chunks or self._open()))
            if self._drained:
                self._release()
        except BaseException:
            self.close()
            raise
        finally:
            self._receiving = False

    def _open(self) -> Iterator[bytes]:
        with translated(self._url):
            response = self._open_response()
            self._chunks = response.iter_bytes()
            self._own(response, self._leftovers.take, self._chunks)
            if response.status_code != 200:
                raise read_refusal(response.status_code, response.headers, response.read())
        return self._chunks

    def _next_chunk(self, chunks: Iterator[bytes]) -> bytes | None:
        try:
            with translated(self._url):
                return next(chunks, None)
        except (GatewayUnreachable, AnswerTimeout) as error:
            if (failure := self._reading.broken(error)) is not None:
                raise failure from error
            return None  # after the last record nothing can be missing

    def _release(self) -> None:
        if (response := self._disown()) is not None:
            with translated(self._url):
                response.close()
        self._chunks = None


class AsyncFlow(_FlowState[Event]):
    """The same for asyncio."""

    def __init__(
        self,
        open_response: Callable[[], Awaitable[httpx.Response]],
        reading: Reading[Event],
        url: str,
        leftovers: AsyncLeftovers,
    ) -> None:
        super().__init__(reading, url)
        self._open_response = open_response
        self._leftovers = leftovers
        self._chunks: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._over:
                raise StopAsyncIteration
            if self._drained:
                self._end()
            else:
                await self._receive()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Harmless when done twice, and also while another task waits for the next event."""
        self._leave()
        await self._release()

    async def _receive(self) -> None:
        self._begin_receiving()
        try:
            self._take(await self._arrived())
            if self._over:
                raise self._left_meanwhile()
            if self._drained:
                await self._release()
        except BaseException:
            await self.aclose()
            raise

    async def _arrived(self) -> bytes | None:
        try:
            return await self._next_chunk(self._chunks or await self._open())
        finally:
            self._receiving = False

    async def _open(self) -> AsyncIterator[bytes]:
        with translated(self._url):
            response = await self._open_response()
            self._chunks = response.aiter_bytes()
            self._own(response, self._leftovers.take, self._chunks, asyncio.get_running_loop())
            if self._over:
                raise self._left_meanwhile()
            if response.status_code != 200:
                raise read_refusal(response.status_code, response.headers, await response.aread())
        return self._chunks

    async def _next_chunk(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        try:
            with translated(self._url):
                return await anext(chunks, None)
        except (GatewayUnreachable, AnswerTimeout) as error:
            if self._over:
                raise self._left_meanwhile() from error
            if (failure := self._reading.broken(error)) is not None:
                raise failure from error
            return None  # after the last record nothing can be missing

    async def _release(self) -> None:
        chunks, self._chunks = self._chunks, None
        if (response := self._disown()) is None or chunks is None:
            return
        with translated(self._url):
            if self._receiving:  # the task that reads is told by an error, and ends the generators by it
                await response.aclose()
            else:
                await close_response(response, chunks)
