"""From the events of one request to what a client reads: whole, or piece by piece in some framing.

`gather` collects a whole answer, `relay` sends each batch of events as one piece of the body. No header goes out before
there is something to tell, so that a refusal is still a status. The stream is always closed, which frees the node.
Knows nothing of JSON shapes: an `Encoder` has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.api.incoming import Incoming
from server.errors import GatewayError
from server.exchange import CacheOutcome, Done, Embedding, Event, Failed, Queued, Started, Token
from server.http_errors import InternalError

Events = AsyncGenerator[Sequence[Event], None]

_CACHE_HEADER = {
    outcome: (b"x-cache", outcome.encode()) for outcome in ("hit", "miss", "joined", "off")
}  # one tuple each, made once


@dataclass(slots=True)
class WholeAnswer:
    """All that a request's events told."""

    done: Done
    text: str
    thinking: str = ""
    tool_calls: list[Any] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    vectors: Sequence[Sequence[float]] = ()


class Encoder(Protocol):
    """Events to the bytes of one dialect's stream. One encoder serves one request."""

    content_type: bytes

    def token(self, token: Token) -> bytes: ...

    def queued(self, position: int) -> bytes: ...

    def done(self, done: Done) -> bytes: ...

    def failed(self, error: GatewayError) -> bytes: ...


async def gather(events: Events) -> WholeAnswer:
    """The whole answer. Raises the GatewayError with which the stream ended."""
    tokens: list[Token] = []
    vectors: Sequence[Sequence[float]] = ()
    done: Done | None = None
    try:
        async for batch in events:
            for event in batch:
                kind = type(event)
                if kind is Token:
                    tokens.append(event)  # type: ignore[arg-type]
                elif isinstance(event, Done):
                    done = event
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, Embedding):
                    vectors = event.vectors
    finally:
        await events.aclose()
    if done is None:
        raise InternalError from AssertionError("the stream ended without Done or Failed")
    return _whole(tokens, vectors, done)


def _whole(tokens: list[Token], vectors: Sequence[Sequence[float]], done: Done) -> WholeAnswer:
    return WholeAnswer(
        done,
        "".join([token.text for token in tokens]),
        "".join([token.thinking for token in tokens if token.thinking]),
        [call for token in tokens if token.tool_calls for call in token.tool_calls],
        [entry for token in tokens if token.logprobs for entry in token.logprobs],
        vectors,
    )


def mark_cache(incoming: Incoming, cache: CacheOutcome) -> None:
    incoming.response_headers.append(_CACHE_HEADER[cache])


async def relay(incoming: Incoming, events: Events, encoder: Encoder, announce_queue: bool = False) -> None:
    """Send the events as they come, one piece of the body per batch.

    Raises the GatewayError of a stream that failed before anything was sent; later ones go into the stream.
    """
    relaying = _Relaying(incoming, encoder, announce_queue)
    try:
        async for batch in events:
            piece = relaying.encode(batch)
            if piece:
                await relaying.send(piece)
        if not relaying.ended:
            raise InternalError from AssertionError("the stream ended without Done or Failed")
    except asyncio.CancelledError:
        if incoming.cut_error is None or not incoming.status or relaying.ended:
            raise
        await relaying.fail(incoming.cut_error)
    except Exception as error:  # told to the client where it still can be, and to the log above us
        if incoming.status and not relaying.ended:
            await relaying.fail(error if isinstance(error, GatewayError) else InternalError())
        raise
    finally:
        await events.aclose()


class _Relaying:
    """What one `relay` has to remember between batches."""

    __slots__ = ("_announce_queue", "_encoder", "_incoming", "ended")

    def __init__(self, incoming: Incoming, encoder: Encoder, announce_queue: bool) -> None:
        self._incoming = incoming
        self._encoder = encoder
        self._announce_queue = announce_queue
        self.ended = False

    def encode(self, batch: Sequence[Event]) -> bytes:
        encoder = self._encoder
        if len(batch) == 1 and type(batch[0]) is Token:  # by far the most frequent case
            return encoder.token(batch[0])
        pieces: list[bytes] = []
        for event in batch:
            match event:
                case Token():
                    pieces.append(encoder.token(event))
                case Queued(position):
                    if self._announce_queue:
                        pieces.append(encoder.queued(position))
                case Started(cache):
                    mark_cache(self._incoming, cache)
                case Done():
                    pieces.append(encoder.done(event))
                    self.ended = True
                case Failed(error):
                    if not self._incoming.status and not pieces:
                        raise error
                    pieces.append(encoder.failed(error))
                    self.ended = True
        return b"".join(pieces)

    async def send(self, piece: bytes) -> None:
        if not self._incoming.status:
            await self._incoming.begin(self._encoder.content_type)
        await self._incoming.tell(piece, last=self.ended)

    async def fail(self, error: GatewayError) -> None:
        self.ended = True
        await self._incoming.tell(self._encoder.failed(error), last=True)
