"""One request for text in OpenAI's dialect, answered whole or as server-sent events.

Nothing is sent before the first token; a stream that fails ends with an error and without `[DONE]`, so that nobody
takes a torso for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Send

from gpu_node.api.generations import generate_all
from gpu_node.api.openai_records import ChoiceText, Record, Shape, usage_of
from gpu_node.api.replies import EVENTS_TYPE, Stream, json_reply, openai_error_of, send_whole
from gpu_node.api.terms import Terms
from gpu_node.engine.sequence import Done, GenerationRequest, RawPrompt, Token, TokenPrompt
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import NodeError
from gpu_node.host import ModelHost
from gpu_node.residents import Residents

# Read again once the model is there: its own parameters, context and vocabulary may be unknown until then.
Reading = Callable[[ModelHost], list[GenerationRequest]]


@dataclass(frozen=True, slots=True)
class OpenAiAsked:
    name: str  # as the client wrote it
    reading: Reading
    shape: Callable[[Vocabulary], Shape]
    keep_alive: float | None = None
    samples: int = 1
    include_usage: bool = False
    echo: bool = False


class OpenAiCall:
    def __init__(self, residents: Residents, asked: OpenAiAsked, terms: Terms) -> None:
        self._residents, self._asked, self._terms = residents, asked, terms

    async def whole(self, send: Send) -> None:
        await send_whole(send, json_reply(await self.answer()))

    async def answer(self) -> Record:
        """The whole answer as an object."""
        async with self._residents.hold(self._asked.name, self._asked.keep_alive) as host:
            requests, vocabulary = self._requests(host), _vocabulary(host)
            choices = [ChoiceText(text) for text in self._openings(requests, vocabulary)]

            async def keep(number: int, token: Token) -> None:
                choice = choices[number * self._asked.samples + token.sample]
                choice.text += token.text
                choice.logprobs.extend(token.logprobs)

            dones = await generate_all(host.engine, requests, host.slots.running, keep)
        for choice, reason in zip(choices, reasons_of(dones, self._asked.samples), strict=True):
            choice.reason = reason
        return self._asked.shape(vocabulary).whole(choices, usage_of(dones))

    async def stream(self, send: Send) -> None:
        stream = Stream(send, EVENTS_TYPE)
        try:
            await self._tell_all(stream)
        except NodeError as error:
            if not stream.started:
                raise
            await stream.event(openai_error_of(error))
        else:
            await stream.event_text("[DONE]")
        await stream.end()

    async def _tell_all(self, stream: Stream) -> None:
        async with self._residents.hold(self._asked.name, self._asked.keep_alive) as host:
            requests, vocabulary = self._requests(host), _vocabulary(host)
            voice = _Voice(stream, self._asked, vocabulary, self._openings(requests, vocabulary))

            async def tell(number: int, token: Token) -> None:
                await voice.tell(number * self._asked.samples + token.sample, token)

            dones = await generate_all(host.engine, requests, host.slots.running, tell)
        await voice.finish(reasons_of(dones, self._asked.samples))
        if self._asked.include_usage:
            await stream.event(voice.shape.usage(usage_of(dones)))

    def _requests(self, host: ModelHost) -> list[GenerationRequest]:
        return [self._terms.put_on(request) for request in self._asked.reading(host)]

    def _openings(self, requests: Sequence[GenerationRequest], vocabulary: Vocabulary) -> list[str]:
        """What each choice begins with: nothing, or its prompt."""
        texts = [_prompt_text(request, vocabulary) if self._asked.echo else "" for request in requests]
        return [text for text in texts for _ in range(self._asked.samples)]


class _Voice:
    """Says what belongs to each choice of a stream: how it opens, its pieces, how it ends."""

    def __init__(self, stream: Stream, asked: OpenAiAsked, vocabulary: Vocabulary, openings: Sequence[str]) -> None:
        self.shape = asked.shape(vocabulary)
        self._stream, self._openings = stream, openings
        self._rest: Record = {"usage": None} if asked.include_usage else {}  # told in a record of its own
        self._offsets: dict[int, int] = {}

    async def tell(self, index: int, token: Token) -> None:
        if not token.text and not token.logprobs:
            return
        await self._open(index)
        offset = self._offsets[index]
        self._offsets[index] = offset + len(token.text)
        await self._say(self.shape.piece(index, token.text, token.logprobs, offset))

    async def finish(self, reasons: Sequence[str]) -> None:
        for index, reason in enumerate(reasons):
            await self._open(index)
            await self._say(self.shape.ending(index, reason))

    async def _open(self, index: int) -> None:
        if index in self._offsets:
            return
        self._offsets[index] = len(self._openings[index])
        opening = self.shape.opening(index)
        if opening is not None:
            await self._say(opening)
        if self._openings[index]:
            await self._say(self.shape.piece(index, self._openings[index], (), 0))

    async def _say(self, record: Record) -> None:
        await self._stream.event({**record, **self._rest})


def reasons_of(dones: Sequence[Done], samples: int) -> list[str]:
    """One a choice."""
    return [reason for done in dones for reason in (done.reasons or (done.reason,) * samples)]


def _vocabulary(host: ModelHost) -> Vocabulary:
    runner = host.engine.runner
    assert runner is not None, "it is held"
    return runner.vocabulary


def _prompt_text(request: GenerationRequest, vocabulary: Vocabulary) -> str:
    if isinstance(request.prompt, RawPrompt):
        return request.prompt.text
    return vocabulary.decode(request.prompt.ids) if isinstance(request.prompt, TokenPrompt) else ""
