"""Ollama's HTTP API over one model: generate, chat, embed, tags, ps, show, version.

Statuses, fields and framing follow Ollama 0.24, but that a last assistant message is always continued and that wrong
options are the client's mistake (400). Nothing is sent before the first token; the slot is free before the last record.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, nullcontext

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node import __version__
from gpu_node.api import records
from gpu_node.api.body import read_body
from gpu_node.api.reading import read_bounds, read_chat, read_generate
from gpu_node.api.records import ChatDialect, Dialect, GenerateDialect, Timing
from gpu_node.api.replies import WatchedAnswer, end_stream, json_reply, send_line, send_whole, start_stream
from gpu_node.api.schemas import (
    AnswerBody,
    ChatBody,
    EmbedBody,
    GenerateBody,
    ModelBody,
    RunBody,
    check_options,
    parse,
)
from gpu_node.engine.sequence import Done, EmbeddingRequest, Embeddings, GenerationRequest, Token
from gpu_node.errors import NodeError, RequestError
from gpu_node.host import ModelHost
from gpu_node.model_folder import ModelDescription
from gpu_node.names import is_valid

# Read again once the model is there: its own parameters and context may be unknown until then.
Reading = Callable[[], GenerationRequest]


class OllamaApi:
    def __init__(self, host: ModelHost, max_body_bytes: int) -> None:
        self._host = host
        self._limit = max_body_bytes

    async def generate(self, request: Request) -> Response:
        body = parse(GenerateBody, await read_body(request, self._limit))
        name = self._check_name(body)

        def reading() -> GenerationRequest:
            return read_generate(body, name, self._parameters, self._host.context_tokens)

        dialect = GenerateDialect(with_context=not body.raw)
        return self._answer(body, name, dialect, reading, nothing_asked=not body.prompt)

    async def chat(self, request: Request) -> Response:
        body = parse(ChatBody, await read_body(request, self._limit))
        name = self._check_name(body)

        def reading() -> GenerationRequest:
            return read_chat(body, name, self._parameters, self._host.context_tokens)

        return self._answer(body, name, ChatDialect(), reading, nothing_asked=not body.messages)

    async def embed(self, request: Request) -> Response:
        body = parse(EmbedBody, await read_body(request, self._limit))
        name = self._check_name(body, 'model "{}" not found, try pulling it first')
        texts = [body.input] if isinstance(body.input, str) and body.input else body.input or []
        if not texts:
            return json_reply({"model": name, "embeddings": []})

        async def answer(send: Send) -> None:
            begun = time.perf_counter_ns()
            found, load_ns = await self._embed(body, tuple(texts), normalise=True)
            timing = Timing(time.perf_counter_ns() - begun, load_ns)
            await send_whole(send, json_reply(records.embedded(name, found.vectors, timing, found.prompt_tokens)))

        return WatchedAnswer(answer)

    async def embed_one(self, request: Request) -> Response:
        """The older form: one prompt, and the vector as long as it comes."""
        body = parse(EmbedBody, await read_body(request, self._limit))
        self._check_name(body)
        prompt = body.prompt
        if not prompt:
            return json_reply({"embedding": []})

        async def answer(send: Send) -> None:
            found, _ = await self._embed(body, (prompt,), normalise=False)
            await send_whole(send, json_reply({"embedding": found.vectors[0]}))

        return WatchedAnswer(answer)

    async def tags(self, request: Request) -> Response:
        model = self._host.description
        return json_reply({"models": [records.listed(self._host.name, model)] if model else []})

    async def ps(self, request: Request) -> Response:
        model, runner = self._host.description, self._host.engine.runner
        if model is None or runner is None:
            return json_reply({"models": []})
        where = records.Residence(
            memory_bytes=runner.memory_bytes,
            on_gpu=runner.device.startswith("cuda"),
            context_length=self._host.context_tokens,
            seconds_left=self._host.seconds_left,
        )
        return json_reply({"models": [records.resident(self._host.name, model, where)]})

    async def show(self, request: Request) -> Response:
        self._check_name(parse(ModelBody, await read_body(request, self._limit)))
        runner = self._host.engine.runner
        begins_with_bos = runner.vocabulary.begins_with_bos if runner else None
        return json_reply(records.shown(self._host.name, self._described(), begins_with_bos))

    async def version(self, request: Request) -> Response:
        # The gateway asks here whether it may let this node go on with a half-told answer.
        return json_reply({"version": __version__, "potluck": {"continues_assistant": True, "slots": 1}})

    def _answer(self, body: AnswerBody, name: str, dialect: Dialect, reading: Reading, nothing_asked: bool) -> Response:
        reading()  # a wrong request is told before it waits
        keep_alive = body.keep_alive_seconds
        call = _Call(self._host, name, dialect, reading, keep_alive)
        if nothing_asked:
            return WatchedAnswer(call.unload if keep_alive == 0 else call.load)
        if body.render_only:
            return WatchedAnswer(call.render)
        return WatchedAnswer(call.whole if body.stream is False else call.stream)

    async def _embed(self, body: EmbedBody, texts: tuple[str, ...], normalise: bool) -> tuple[Embeddings, int]:
        options = check_options(body.options)
        async with self._host.turn(body.keep_alive_seconds) as load_ns:
            bounds = read_bounds(options, self._host.context_tokens, body.truncate)
            request = EmbeddingRequest(
                texts, bounds.context_tokens, bounds.truncate, normalise, dimensions=body.dimensions or 0
            )
            return await self._host.engine.embed(request), load_ns

    @property
    def _parameters(self) -> dict[str, object]:
        return self._host.description.parameters if self._host.description else {}

    def _described(self) -> ModelDescription:
        if self._host.description is None:
            raise NodeError(self._host.engine.error or "the model's files are still being fetched")
        return self._host.description

    def _check_name(self, body: ModelBody | RunBody, unknown: str = "model '{}' not found") -> str:
        name = body.model_name
        if not name:
            raise RequestError("model is required")
        if not is_valid(name):
            raise RequestError("invalid model name")
        if not self._host.serves(name):
            raise RequestError(unknown.format(name), status=404)
        return name


class _Call:
    """One request for text: the ways in which it can be answered."""

    def __init__(
        self, host: ModelHost, name: str, dialect: Dialect, reading: Reading, keep_alive: float | None
    ) -> None:
        self._host, self._name, self._dialect = host, name, dialect
        self._reading, self._keep_alive = reading, keep_alive
        self._begun = time.perf_counter_ns()
        self._load_ns = 0

    async def whole(self, send: Send) -> None:
        text: list[str] = []

        async def keep(piece: str) -> None:
            text.append(piece)

        done = await self._run(keep)
        await send_whole(send, json_reply(self._ending("".join(text), done)))

    async def stream(self, send: Send) -> None:
        started = False

        async def tell(piece: str) -> None:
            nonlocal started
            if not started:
                started = True
                await start_stream(send)
            await send_line(send, records.piece(self._name, self._dialect, piece))

        try:
            last = self._ending("", await self._run(tell))
        except NodeError as error:
            if not started:
                raise
            last = {"error": str(error)}
        if not started:
            await start_stream(send)
        await send_line(send, last)
        await end_stream(send)

    async def render(self, send: Send) -> None:
        async with self._host.turn(self._keep_alive) if self._host.engine.runner is None else nullcontext():
            request = self._reading()
            text = await self._host.engine.render(request.prompt, request.bounds)
        await send_whole(send, json_reply(records.rendered(self._name, self._dialect, text)))

    async def load(self, send: Send) -> None:
        async with self._host.turn(self._keep_alive):
            pass
        await send_whole(send, json_reply(records.finished(self._name, self._dialect, "load")))

    async def unload(self, send: Send) -> None:
        await self._host.unload()
        await send_whole(send, json_reply(records.finished(self._name, self._dialect, "unload")))

    async def _run(self, tell: Callable[[str], Awaitable[None]]) -> Done:
        async with self._host.turn(self._keep_alive) as load_ns:
            self._load_ns = load_ns
            events = self._host.engine.generate(self._reading())
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Token):
                        await tell(event.text)
                    else:
                        return event
        raise AssertionError("a generation ends with Done or an error")

    def _ending(self, text: str, done: Done) -> records.Record:
        timing = Timing(time.perf_counter_ns() - self._begun, self._load_ns)
        return records.ending(self._name, self._dialect, text, done, timing)
