"""Ollama's HTTP API over the models of this node: generate, chat, embed, tags, ps, show, version.

Statuses, fields and framing follow Ollama 0.24, but that a last assistant message is always continued and that wrong
options are the client's mistake (400). A model that is not in memory is loaded by the request that names it.
"""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node import __version__
from gpu_node.api import records
from gpu_node.api.body import read_body
from gpu_node.api.ollama_call import Asked, OllamaCall
from gpu_node.api.reading import read_bounds, read_chat, read_generate
from gpu_node.api.records import ChatDialect, GenerateDialect, Timing
from gpu_node.api.replies import WatchedAnswer, json_reply, send_whole
from gpu_node.api.schemas import AnswerBody, ChatBody, EmbedBody, GenerateBody, ModelBody, check_options, parse
from gpu_node.api.service import Service
from gpu_node.api.terms import Asker, asker_of, read_terms
from gpu_node.engine.sequence import EmbeddingRequest, Embeddings, GenerationRequest
from gpu_node.errors import NodeError, RequestError
from gpu_node.host import ModelHost
from gpu_node.model_folder import ModelDescription
from gpu_node.names import is_valid


class OllamaApi:
    def __init__(self, service: Service) -> None:
        self._service, self._residents = service, service.residents

    async def generate(self, request: Request) -> Response:
        body = parse(GenerateBody, await read_body(request, self._service.max_body_bytes))
        name = self._check_name(body)

        def reading(host: ModelHost) -> GenerationRequest:
            return read_generate(body, name, parameters_of(host), host.context_tokens)

        dialect = GenerateDialect(with_context=not body.raw)
        return self._answer(request, body, Asked(name, dialect, reading), nothing_asked=not body.prompt)

    async def chat(self, request: Request) -> Response:
        body = parse(ChatBody, await read_body(request, self._service.max_body_bytes))
        name = self._check_name(body)

        def reading(host: ModelHost) -> GenerationRequest:
            return read_chat(body, name, parameters_of(host), host.context_tokens)

        return self._answer(request, body, Asked(name, ChatDialect(), reading), nothing_asked=not body.messages)

    async def embed(self, request: Request) -> Response:
        body = parse(EmbedBody, await read_body(request, self._service.max_body_bytes))
        name = self._check_name(body, 'model "{}" not found, try pulling it first')
        texts = [body.input] if isinstance(body.input, str) and body.input else body.input or []
        if not texts:
            return json_reply({"model": name, "embeddings": []})

        async def answer(send: Send) -> None:
            begun = time.perf_counter_ns()
            found, load_ns = await self._embed(name, body, tuple(texts), asker_of(request), normalise=True)
            timing = Timing(time.perf_counter_ns() - begun, load_ns)
            await send_whole(send, json_reply(records.embedded(name, found.vectors, timing, found.prompt_tokens)))

        return WatchedAnswer(answer)

    async def embed_one(self, request: Request) -> Response:
        """The older form: one prompt, and the vector as long as it comes."""
        body = parse(EmbedBody, await read_body(request, self._service.max_body_bytes))
        name, prompt = self._check_name(body), body.prompt
        if not prompt:
            return json_reply({"embedding": []})

        async def answer(send: Send) -> None:
            found, _ = await self._embed(name, body, (prompt,), asker_of(request), normalise=False)
            await send_whole(send, json_reply({"embedding": found.vectors[0]}))

        return WatchedAnswer(answer)

    async def tags(self, request: Request) -> Response:
        """Every model whose files are here, the node's own first."""
        catalogued = await asyncio.to_thread(self._service.catalog.entries)
        found = {self._residents.main.name: self._residents.main.description}
        found |= {entry.name: entry.description for entry in catalogued if not found.get(entry.name)}
        found |= {host.name: host.description for host in self._residents.hosts if host.description}
        return json_reply({"models": [records.listed(name, what) for name, what in found.items() if what]})

    async def ps(self, request: Request) -> Response:
        resident = [_resident(host) for host in self._residents.loaded if host.description]
        return json_reply({"models": resident})

    async def show(self, request: Request) -> Response:
        name = self._check_name(parse(ModelBody, await read_body(request, self._service.max_body_bytes)))
        host = self._residents.find(name)
        runner = host.engine.runner
        begins_with_bos = runner.vocabulary.begins_with_bos if runner else None
        return json_reply(records.shown(host.name, await self._described(host), begins_with_bos))

    async def version(self, request: Request) -> Response:
        # The gateway asks here whether it may let this node go on with a half-told answer, and how much it can do.
        slots = self._residents.main.slots.running
        return json_reply({"version": __version__, "potluck": {"continues_assistant": True, "slots": slots}})

    def _answer(self, request: Request, body: AnswerBody, asked: Asked, nothing_asked: bool) -> Response:
        asked.reading(self._residents.find(asked.name))  # a wrong request is told before it waits
        terms = read_terms(asker_of(request), body.priority, body.deadline_s, self._service.clock)
        keep_alive = body.keep_alive_seconds
        call = OllamaCall(self._residents, asked, terms, keep_alive)
        if nothing_asked:
            return WatchedAnswer(call.unload if keep_alive == 0 else call.load)
        if body.render_only:
            return WatchedAnswer(call.render)
        return WatchedAnswer(call.whole if body.stream is False else call.stream)

    async def _embed(
        self, name: str, body: EmbedBody, texts: tuple[str, ...], asker: Asker, normalise: bool
    ) -> tuple[Embeddings, int]:
        options = check_options(body.options)
        begun = time.perf_counter_ns()
        async with self._residents.hold(name, body.keep_alive_seconds) as host:
            load_ns = time.perf_counter_ns() - begun
            bounds = read_bounds(options, host.context_tokens, body.truncate)
            dimensions, limit = body.dimensions or 0, bounds.context_tokens
            wanted = EmbeddingRequest(texts, limit, bounds.truncate, normalise, dimensions, asker.caller, asker.salt)
            return await host.engine.embed(wanted), load_ns

    async def _described(self, host: ModelHost) -> ModelDescription:
        if host.description is not None:
            return host.description
        for entry in await asyncio.to_thread(self._service.catalog.entries):
            if entry.name == host.name and entry.description is not None:
                return entry.description
        raise NodeError(host.failure or "the model's files are still being fetched")

    def _check_name(self, body: ModelBody, unknown: str = "model '{}' not found") -> str:
        name = body.model_name
        if not name:
            raise RequestError("model is required", field="model")
        if not is_valid(name):
            raise RequestError("invalid model name", field="model")
        self._residents.find(name, unknown)
        return name


def parameters_of(host: ModelHost) -> dict[str, object]:
    """What the model's maker or the manifest wants where a request says nothing."""
    return host.description.parameters if host.description else {}


def _resident(host: ModelHost) -> records.Record:
    runner, model = host.engine.runner, host.description
    assert runner is not None and model is not None, "it is loaded"
    where = records.Residence(
        memory_bytes=runner.memory_bytes + runner.cache.block_count * runner.cache.block_bytes,
        on_gpu=runner.device.startswith("cuda"),
        context_length=host.context_tokens,
        seconds_left=host.seconds_left,
    )
    return records.resident(host.name, model, where)
