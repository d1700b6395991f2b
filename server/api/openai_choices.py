"""Several choices of one OpenAI call: a request to the fleet each, gathered or streamed together.

The first that fails ends the call, since OpenAI has no place for half of its choices; the others are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from server.api.incoming import SSE, Incoming
from server.api.services import Dispatch
from server.api.streams import Encoder, Events, WholeAnswer, gather, mark_cache
from server.errors import GatewayError, RequestInvalid
from server.exchange import AskRequest, CacheOutcome, Done, Event, Failed, RequestId, Started, Token
from server.http_errors import InternalError

FINGERPRINT = "fp_potluck"
# Batches that wait for a slow client; beyond it the choices wait too, and with them their nodes.
BATCHES_AHEAD = 64

Batch = tuple[int, Sequence[Event] | Exception]


class ChoiceEncoder(Encoder, Protocol):
    """The encoder of one choice among several."""

    def end(self, dones: list[Done]) -> bytes: ...


def seeded(request: AskRequest, count: int) -> list[AskRequest]:
    """`count` requests that differ in id and, where a seed is given, in the seed: choices are meant to differ.

    For the same reason they share no answer, unless asking again would give the same one anyway.
    """
    if count == 1:
        return [request]
    seed = request.options.get("seed")
    return [
        replace(
            request,
            cacheable=request.cacheable and request.deterministic,
            id=RequestId(f"{request.id}.{index}"),
            options=request.options if seed is None else {**request.options, "seed": seed + index},
        )
        for index in range(count)
    ]


def usage_record(dones: Sequence[Done]) -> dict[str, Any]:
    """Tokens over all choices; the prompt counts once, as OpenAI counts it."""
    prompt = dones[0].usage.prompt_tokens if dones else 0
    completion = sum(done.usage.completion_tokens for done in dones)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def check_logprobs(wanted: bool, told: Token | WholeAnswer) -> None:
    """A node that gives no logprobs must not be taken for one that gave them."""
    if wanted and told.text and not told.logprobs:
        raise RequestInvalid("the node that has this model gives no logprobs", field="logprobs", status=400)


async def gather_choices(dispatch: Dispatch, requests: Sequence[AskRequest]) -> list[WholeAnswer]:
    if len(requests) == 1:
        return [await gather(dispatch.stream(requests[0]))]
    tasks = [asyncio.ensure_future(gather(dispatch.stream(request))) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def relay_choices(
    incoming: Incoming, dispatch: Dispatch, choices: Sequence[tuple[AskRequest, ChoiceEncoder]]
) -> None:
    """Stream all choices at once, each chunk under its index.

    Raises the GatewayError of a choice that failed before anything was sent; later ones go into the stream.
    """
    merging = _Merging([encoder for _, encoder in choices])
    queue: asyncio.Queue[Batch] = asyncio.Queue(BATCHES_AHEAD)
    tasks = [
        asyncio.ensure_future(_read(dispatch.stream(request), index, queue))
        for index, (request, _) in enumerate(choices)
    ]
    try:
        while not merging.ended:
            piece = merging.encode(*await queue.get())
            await _send(incoming, merging, piece)
    except asyncio.CancelledError:
        if incoming.cut_error is None or not incoming.status or merging.ended:
            raise
        await _send(incoming, merging, merging.fail(incoming.cut_error))
    except Exception as error:  # told to the client where it still can be, and to the log above us
        if incoming.status and not merging.ended:
            fault = error if isinstance(error, GatewayError) else InternalError()
            await _send(incoming, merging, merging.fail(fault))
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(incoming: Incoming, merging: _Merging, piece: bytes) -> None:
    if not piece:
        return
    if not incoming.status:
        if merging.cache is not None:
            mark_cache(incoming, merging.cache)
        await incoming.begin(SSE)
    await incoming.tell(piece, last=merging.ended)


async def _read(events: Events, index: int, queue: asyncio.Queue[Batch]) -> None:
    """Pass one choice's batches on. Whatever ends it goes the same way, or the reader would wait for ever."""
    last: Event = Started("off")
    try:
        async for batch in events:
            last = batch[-1]
            await queue.put((index, batch))
        if not isinstance(last, Done | Failed):
            raise InternalError from AssertionError("the stream ended without Done or Failed")
    except Exception as error:
        await queue.put((index, error))
    finally:
        await events.aclose()


class _Merging:
    """What the merging of several choices has to remember."""

    def __init__(self, encoders: Sequence[ChoiceEncoder]) -> None:
        self._encoders = encoders
        self._dones: list[Done] = []
        self.cache: CacheOutcome | None = None
        self.ended = False

    def encode(self, index: int, batch: Sequence[Event] | Exception) -> bytes:
        if isinstance(batch, Exception):
            raise batch
        pieces = []
        for event in batch:
            match event:
                case Token():
                    pieces.append(self._encoders[index].token(event))
                case Started(cache):
                    self.cache = self.cache or cache
                case Done():
                    pieces.append(self._encoders[index].done(event))
                    self._dones.append(event)
                case Failed(error):
                    raise error
        if len(self._dones) == len(self._encoders):
            self.ended = True
            pieces.append(self._encoders[index].end(self._dones))
        return b"".join(pieces)

    def fail(self, error: GatewayError) -> bytes:
        self.ended = True
        return self._encoders[0].failed(error)
