"""An answer of a relay node while it is told: iterate, stop early, reach the whole of it.

A cut line is not seen here: the session goes on behind it. A stream that is left, by `aclose`, by its block, or because
nobody holds it any more, cancels the work on the node. One reader at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Self

from wire.messages_work import Done, Generate, Progress, Tokens

from .errors import AnswerCutShort, Misuse, NodeUnreachable, PotluckError, UnexpectedAnswer
from .relay_answers import Generation, LoadProgress, Piece, Telling
from .relay_seam import translated

__all__ = ["AsyncRelayStream"]

Messages = AsyncGenerator[Tokens | Progress | Done, None]


class AsyncRelayStream:
    """Made by `AsyncRelay.generate`; nothing is sent before the first piece is asked for."""

    def __init__(self, request: Generate, tell: Callable[[Generate], Messages], place: str) -> None:
        self._telling, self._place = Telling(request), place
        self._messages = tell(request)
        self._reading = self._left = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        while True:
            event = await self._next()
            if event is None:
                raise StopAsyncIteration
            if isinstance(event, Piece):
                return event

    async def events(self) -> AsyncIterator[Piece | LoadProgress]:
        """Pieces, and what the node does before the first one."""
        while (event := await self._next()) is not None:
            yield event

    @property
    def text(self) -> str:
        """What has been told so far, of the first sample."""
        return self._telling.text

    @property
    def answer(self) -> Generation:
        """The whole answer; there after the last piece."""
        if self._telling.generation is None:
            raise PotluckError("the stream has not come to its end yet; read it with finish() or to its last piece")
        return self._telling.generation

    async def finish(self) -> Generation:
        """Read what is left and return the whole answer."""
        while await self._next() is not None:
            pass
        return self.answer

    async def aclose(self) -> None:
        """Leave the stream; the node stops what it was doing for it. Harmless when done twice."""
        self._left = True
        if not self._reading:
            await self._messages.aclose()

    async def _next(self) -> Piece | LoadProgress | None:
        if self._reading:
            raise Misuse("somebody else is reading this stream")
        self._reading = True
        try:
            with translated(self._place):
                message = await anext(self._messages, None)
        except (NodeUnreachable, UnexpectedAnswer) as error:
            if not self.text:
                raise
            raise AnswerCutShort(error.message, text=self.text) from error
        finally:
            self._reading = False
            if self._left:
                await self._messages.aclose()
        return self._event(message)

    def _event(self, message: Tokens | Progress | Done | None) -> Piece | LoadProgress | None:
        if isinstance(message, Tokens):
            return self._telling.take(message)
        if isinstance(message, Progress):
            return LoadProgress.of(message)
        if message is not None:
            self._telling.end(message)
        elif self._telling.generation is None and not self._left:
            raise AnswerCutShort("the answer was left before its end", text=self.text)
        return None
