"""OpenAI's HTTP API over the models of this node: models, chat completions, completions, embeddings, and batches.

Completions go to the model as they are, without its chat template; a last assistant message of a chat is continued.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node.api import openai_records
from gpu_node.api.body import read_body
from gpu_node.api.openai_call import OpenAiAsked, OpenAiCall
from gpu_node.api.openai_fields import ChatCompletionBody, CompletionBody, EmbeddingsBody, OpenAiBody
from gpu_node.api.openai_reading import ModelFacts, read_chat, read_completions, split_prompts
from gpu_node.api.openai_records import ChatShape, CompletionShape, Shape
from gpu_node.api.replies import WatchedAnswer, json_reply, send_whole
from gpu_node.api.schemas import mistake, parse
from gpu_node.api.service import Service
from gpu_node.api.terms import Asker, asker_of, read_terms
from gpu_node.api.vectors import embed
from gpu_node.engine.sequence import GenerationRequest
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import RequestError
from gpu_node.host import ModelHost

# When a model whose files are not here yet was made is not known.
UNKNOWN_TIME = 0.0


class OpenAiApi:
    def __init__(self, service: Service) -> None:
        self._service, self._residents = service, service.residents

    async def chat(self, request: Request) -> Response:
        body = parse(ChatCompletionBody, await read_body(request, self._service.max_body_bytes))
        call = self.call(body, asker_of(request))
        return WatchedAnswer(call.stream if body.stream else call.whole)

    async def completions(self, request: Request) -> Response:
        body = parse(CompletionBody, await read_body(request, self._service.max_body_bytes))
        call = self.call(body, asker_of(request))
        return WatchedAnswer(call.stream if body.stream else call.whole)

    async def embeddings(self, request: Request) -> Response:
        body = parse(EmbeddingsBody, await read_body(request, self._service.max_body_bytes))
        self._residents.find(body.model)
        inputs = split_prompts(body.input, "input")

        async def answer(send: Send) -> None:
            async with self._residents.hold(body.model, body.keep_alive_seconds) as host:
                found = await embed(host, inputs, body.dimensions or 0, asker_of(request))
            as_base64 = body.encoding_format == "base64"
            record = openai_records.embeddings(body.model, found.vectors, found.prompt_tokens, as_base64)
            await send_whole(send, json_reply(record))

        return WatchedAnswer(answer)

    async def models(self, request: Request) -> Response:
        return json_reply({"object": "list", "data": [*(await self._models()).values()]})

    async def model(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/v1/models/")
        host = self._residents.find(name)
        known = await self._models()
        return json_reply(known.get(host.name) or openai_records.model_record(host.name, UNKNOWN_TIME))

    def call(self, body: ChatCompletionBody | CompletionBody, asker: Asker) -> OpenAiCall:
        """Raises `RequestError` for everything that can be known without the model."""
        wants_logprobs = bool(body.logprobs) if isinstance(body, ChatCompletionBody) else body.logprobs is not None

        def reading(host: ModelHost) -> list[GenerationRequest]:
            if isinstance(body, ChatCompletionBody):
                return [read_chat(body, facts_of(host))]
            return read_completions(body, facts_of(host))

        def shape(vocabulary: Vocabulary) -> Shape:
            made = ChatShape if isinstance(body, ChatCompletionBody) else CompletionShape
            return made(body.model, vocabulary, wants_logprobs)

        asked = OpenAiAsked(
            name=body.model,
            reading=reading,
            shape=shape,
            keep_alive=body.keep_alive_seconds,
            samples=body.samples,
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
            echo=isinstance(body, CompletionBody) and bool(body.echo),
        )
        reading(self._residents.find(body.model))  # a wrong request is told before it waits
        terms = read_terms(asker, body.priority, body.deadline_s, self._service.clock)
        return OpenAiCall(self._residents, asked, terms)

    def read(self, value: dict[str, Any]) -> ChatCompletionBody | CompletionBody:
        """One request of a batch: a chat where it has messages, else a completion."""
        shape: type[OpenAiBody] = ChatCompletionBody if "messages" in value else CompletionBody
        try:
            body = shape.model_validate(value)
        except ValidationError as error:
            raise mistake(error, shape) from error
        assert isinstance(body, ChatCompletionBody | CompletionBody)
        if body.stream:
            raise RequestError("stream belongs beside the requests of a batch, not into them", field="stream")
        return body

    async def _models(self) -> dict[str, openai_records.Record]:
        times = {host.name: host.description.modified_at for host in self._residents.hosts if host.description}
        for entry in await asyncio.to_thread(self._service.catalog.entries):
            if entry.description is not None:
                times.setdefault(entry.name, entry.description.modified_at)
        return {name: openai_records.model_record(name, time) for name, time in times.items()}


def facts_of(host: ModelHost) -> ModelFacts:
    runner = host.engine.runner
    parameters = host.description.parameters if host.description else {}
    return ModelFacts(host.name, parameters, host.context_tokens, runner.vocabulary.size if runner else 0)
