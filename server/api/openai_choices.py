"""Several choices of one OpenAI call: a request to the fleet each, gathered or streamed together.

The first that fails ends the call, since OpenAI has no place for half of its choices; the others are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from server.api.incoming import Incoming
from server.api.reply import SSE
from server.api.services import Dispatch
from server.api.streams import NO_END, Events, WholeAnswer, gather, mark_cache, tell
from server.errors import GatewayError, RequestInvalid
from server.exchange import AskRequest, CacheOutcome, Done, Event, Failed, RequestId, Started, Token
from server.http_errors import error_bytes

FINGERPRINT = "fp_potluck"
# Batches that wait for a slow client; beyond it the choices wait too, and with them their nodes.
BATCHES_AHEAD = 64

Batch = tuple[int, Sequence[Event]]


class ChoiceEncoder:
    """What the streams of chats and completions have in common: how they end and how they fail."""

    content_type = SSE

    def __init__(self, head: Mapping[str, Any], include_usage: bool, per_prompt: int) -> None:
        self._head = b"data: " + orjson.dumps(head)[:-1]
        self._include_usage = include_usage
        self._per_prompt = per_prompt
        self._usage = b',"usage":null' if include_usage else b""

    def token(self, token: Token) -> bytes:
        raise NotImplementedError

    def done(self, done: Done) -> bytes:
        raise NotImplementedError

    def end(self, dones: Sequence[Done]) -> bytes:
        """What follows the last choice."""
        usage = b""
        if self._include_usage:
            told = orjson.dumps(usage_record(dones, self._per_prompt))
            usage = self._head + b',"choices":[],"usage":' + told + b"}\n\n"
        return usage + b"data: [DONE]\n\n"

    def failed(self, error: GatewayError) -> bytes:
        return b"data: " + error_bytes(error, "openai") + b"\n\n"


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


def usage_record(dones: Sequence[Done], per_prompt: int) -> dict[str, Any]:
    """Tokens over all choices, prompts first; a prompt counts once for all its choices, as OpenAI counts it."""
    prompt = sum(done.usage.prompt_tokens for done in dones[::per_prompt])
    completion = sum(done.usage.completion_tokens for done in dones)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def check_logprobs(wanted: bool, told: Token | WholeAnswer) -> None:
    """A node that gives no logprobs must not be taken for one that gave them."""
    if wanted and told.text and not told.logprobs:
        raise RequestInvalid("the node that has this model gives no logprobs", field="logprobs", status=400)


async def gather_choices(
    incoming: Incoming | None, dispatch: Dispatch, requests: Sequence[AskRequest]
) -> list[WholeAnswer]:
    """The answers, in order; `incoming` learns what the cache said of the first."""
    first, *others = requests
    if not others:
        return [await gather(dispatch.stream(first), incoming)]
    tasks = [asyncio.ensure_future(gather(dispatch.stream(first), incoming))]
    tasks += [asyncio.ensure_future(gather(dispatch.stream(request))) for request in others]
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
    batches = _merged([dispatch.stream(request) for request, _ in choices])
    await tell(incoming, batches, _Choices(incoming, [encoder for _, encoder in choices]))


async def _merged(streams: Sequence[Events]) -> AsyncGenerator[Batch, None]:
    """The batches of all streams as they come, each with the number of its stream."""
    queue: asyncio.Queue[Batch | Exception] = asyncio.Queue(BATCHES_AHEAD)
    tasks = [asyncio.ensure_future(_read(events, index, queue)) for index, events in enumerate(streams)]
    left = len(tasks)
    try:
        while left:
            batch = await queue.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch
            left -= isinstance(batch[1][-1], Done | Failed)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(events: Events, index: int, queue: asyncio.Queue[Batch | Exception]) -> None:
    """Pass one choice's batches on. Whatever ends it goes the same way, or the reader would wait for ever."""
    last: Event = Started("off")
    try:
        async for batch in events:
            last = batch[-1]
            await queue.put((index, batch))
        assert isinstance(last, Done | Failed), NO_END
    except Exception as error:
        await queue.put(error)
    finally:
        await events.aclose()


class _Choices:
    """The stream that several choices make."""

    content_type = SSE

    def __init__(self, incoming: Incoming, encoders: Sequence[ChoiceEncoder]) -> None:
        self._incoming = incoming
        self._encoders = encoders
        self._dones: dict[int, Done] = {}
        self._marked = False
        self.ended = False

    def encode(self, batch: Batch) -> bytes:
        index, events = batch
        pieces = []
        for event in events:
            match event:
                case Token():
                    pieces.append(self._encoders[index].token(event))
                case Started(cache):
                    self._mark(cache)
                case Done():
                    pieces.append(self._encoders[index].done(event))
                    self._dones[index] = event
                case Failed(error):
                    raise error
        if len(self._dones) == len(self._encoders):
            self.ended = True
            pieces.append(self._encoders[index].end([self._dones[number] for number in sorted(self._dones)]))
        return b"".join(pieces)

    def _mark(self, cache: CacheOutcome) -> None:
        if not self._marked:  # one header for all: what the first said
            mark_cache(self._incoming, cache)
        self._marked = True

    def fail(self, error: GatewayError) -> bytes:
        self.ended = True
        return self._encoders[0].failed(error)
