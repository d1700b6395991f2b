"""From the events of one request to what a client reads: whole, or piece by piece in some framing.

`gather` collects a whole answer, `relay` sends each batch of events as one piece of the body. No header goes out before
there is something to tell, so that a refusal is still a status. The stream is always closed, which frees the node.
Knows nothing of JSON shapes: an `Encoder` has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from server.api.incoming import Incoming
from server.errors import GatewayError, InternalError
from server.exchange import CacheOutcome, Done, Embedding, Event, Failed, Queued, Started, Token

Events = AsyncGenerator[Sequence[Event], None]
Told = TypeVar("Told", contravariant=True)
NO_END = "the stream ended without Done or Failed"

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

    def done(self, done: Done) -> bytes: ...

    def failed(self, error: GatewayError) -> bytes: ...


class Telling(Protocol[Told]):
    """What is told of a stream, batch by batch; `ended` after the batch that ends it."""

    content_type: bytes
    ended: bool

    def encode(self, batch: Told) -> bytes:
        """Raises the GatewayError of a stream that failed, where it cannot be told as one of the pieces."""
        ...

    def fail(self, error: GatewayError) -> bytes: ...


async def gather(events: Events, incoming: Incoming | None = None) -> WholeAnswer:
    """The whole answer; `incoming` learns what the cache said. Raises the GatewayError with which the stream ended."""
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
                elif isinstance(event, Started) and incoming is not None:
                    mark_cache(incoming, event.cache)
    finally:
        await events.aclose()
    assert done is not None, NO_END
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
    incoming.reply.headers.append(_CACHE_HEADER[cache])


async def relay(
    incoming: Incoming, events: Events, encoder: Encoder, queued: Callable[[int], bytes] | None = None
) -> None:
    """Send the events as they come, one piece of the body per batch; places in the queue where `queued` writes them."""
    await tell(incoming, events, _OneAnswer(incoming, encoder, queued))


async def tell(incoming: Incoming, batches: AsyncGenerator[Told, None], telling: Telling[Told]) -> None:
    """Send what `telling` makes of the batches.

    Raises the GatewayError of a stream that failed before anything was sent; later ones go into the stream.
    """
    try:
        async for batch in batches:
            await _send(incoming, telling, telling.encode(batch))
        assert telling.ended, NO_END
    except asyncio.CancelledError:
        if incoming.cut_error is None or not incoming.reply.status or telling.ended:
            raise
        await _send(incoming, telling, telling.fail(incoming.cut_error))
    except Exception as error:  # told to the client where it still can be, and to the log above us
        if incoming.reply.status and not telling.ended:
            fault = error if isinstance(error, GatewayError) else InternalError()
            await _send(incoming, telling, telling.fail(fault))
        raise
    finally:
        await batches.aclose()


async def _send(incoming: Incoming, telling: Telling[Any], piece: bytes) -> None:
    if not piece:
        return
    if not incoming.reply.status:
        await incoming.reply.begin(telling.content_type)
    await incoming.reply.tell(piece, last=telling.ended)


class _OneAnswer:
    """One request's stream."""

    __slots__ = ("_encoder", "_incoming", "_queued", "content_type", "ended")

    def __init__(self, incoming: Incoming, encoder: Encoder, queued: Callable[[int], bytes] | None) -> None:
        self._incoming = incoming
        self._encoder = encoder
        self._queued = queued
        self.content_type = encoder.content_type
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
                    if self._queued is not None:
                        pieces.append(self._queued(position))
                case Started(cache):
                    mark_cache(self._incoming, cache)
                case Done():
                    pieces.append(encoder.done(event))
                    self.ended = True
                case Failed(error):
                    if not self._incoming.reply.status and not pieces:
                        raise error
                    pieces.append(self.fail(error))
        return b"".join(pieces)

    def fail(self, error: GatewayError) -> bytes:
        self.ended = True
        return self._encoder.failed(error)
