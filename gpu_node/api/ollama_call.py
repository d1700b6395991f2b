"""One request for text in Ollama's dialect: the ways in which it can be answered.

Nothing is sent before the first token; the model is free before the last record; a failure after the first token is the
last record of a whole body.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.types import Send

from gpu_node.api import records
from gpu_node.api.likelihoods import ollama_records
from gpu_node.api.records import Dialect, Timing
from gpu_node.api.replies import Stream, json_reply, send_whole
from gpu_node.api.terms import Terms
from gpu_node.engine.sequence import Done, GenerationRequest, Token
from gpu_node.errors import NodeError
from gpu_node.host import ModelHost
from gpu_node.residents import Residents

# Read again once the model is there: its own parameters and context may be unknown until then.
Reading = Callable[[ModelHost], GenerationRequest]
Tell = Callable[[str, Sequence[records.Record]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    name: str  # as the client wrote it
    dialect: Dialect
    reading: Reading


class OllamaCall:
    def __init__(self, residents: Residents, asked: Asked, terms: Terms, keep_alive: float | None) -> None:
        self._residents, self._asked, self._terms, self._keep_alive = residents, asked, terms, keep_alive
        self._begun = time.perf_counter_ns()
        self._load_ns = 0

    async def whole(self, send: Send) -> None:
        text: list[str] = []
        likelihoods: list[records.Record] = []

        async def keep(piece: str, logprobs: Sequence[records.Record]) -> None:
            text.append(piece)
            likelihoods.extend(logprobs)

        done = await self._run(keep)
        last = records.with_logprobs(self._ending("".join(text), done), likelihoods)
        await send_whole(send, json_reply(last))

    async def stream(self, send: Send) -> None:
        stream = Stream(send)

        async def tell(piece: str, logprobs: Sequence[records.Record]) -> None:
            if piece or logprobs:
                record = records.piece(self._asked.name, self._asked.dialect, piece)
                await stream.line(records.with_logprobs(record, logprobs))

        try:
            last = self._ending("", await self._run(tell))
        except NodeError as error:
            if not stream.started:
                raise
            last = {"error": str(error)}
        await stream.line(last)
        await stream.end()

    async def render(self, send: Send) -> None:
        """Of a loaded model at once, without a place among its requests."""
        host = self._residents.find(self._asked.name)
        if host.ready and not host.leaving:
            text = await self._rendered(host)
        else:
            async with self._residents.hold(self._asked.name, self._keep_alive) as host:
                text = await self._rendered(host)
        await send_whole(send, json_reply(records.rendered(self._asked.name, self._asked.dialect, text)))

    async def load(self, send: Send) -> None:
        async with self._residents.hold(self._asked.name, self._keep_alive):
            pass
        await send_whole(send, json_reply(records.finished(self._asked.name, self._asked.dialect, "load")))

    async def unload(self, send: Send) -> None:
        await self._residents.unload(self._residents.find(self._asked.name))
        await send_whole(send, json_reply(records.finished(self._asked.name, self._asked.dialect, "unload")))

    async def _rendered(self, host: ModelHost) -> str:
        request = self._asked.reading(host)
        return await host.engine.render(request.prompt, request.bounds)

    async def _run(self, tell: Tell) -> Done:
        async with self._residents.hold(self._asked.name, self._keep_alive) as host:
            self._load_ns = time.perf_counter_ns() - self._begun
            runner = host.engine.runner
            assert runner is not None, "it is held"
            events = host.engine.generate(self._terms.put_on(self._asked.reading(host)))
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Token):
                        await tell(event.text, ollama_records(event.logprobs, runner.vocabulary))
                    elif isinstance(event, Done):
                        return event
        raise AssertionError("a generation ends with Done or an error")

    def _ending(self, text: str, done: Done) -> records.Record:
        timing = Timing(time.perf_counter_ns() - self._begun, self._load_ns)
        return records.ending(self._asked.name, self._asked.dialect, text, done, timing)
