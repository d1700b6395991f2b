"""Ollama's API: /api/generate, /api/chat, /api/embed and the older /api/embeddings.

Records carry Ollama's fields in Ollama's order, one JSON object a line; an error in a stream is a line of its own. An
empty prompt loads or unloads the model on every node that has it. Knows nothing of how nodes are chosen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from server.api.fields import is_unload, known_only
from server.api.incoming import Incoming
from server.api.nodes_direct import NodesDirect
from server.api.ollama_bodies import (
    CHAT_FIELDS,
    EMBED_FIELDS,
    EMBEDDINGS_FIELDS,
    GENERATE_FIELDS,
    ollama_request,
    required_model,
)
from server.api.reply import NDJSON
from server.api.services import Services
from server.api.streams import WholeAnswer, gather, relay
from server.errors import GatewayError, ModelNotFound
from server.exchange import AskRequest, Done, Operation, Token
from server.http_errors import error_bytes
from server.moments import utc_text

OLLAMA_JSON = b"application/json; charset=utf-8"


def timestamp() -> str:
    """Now, as Ollama writes it."""
    return utc_text(time.time_ns(), 9)


def final_fields(done: Done) -> dict[str, Any]:
    """The numbers of the last record. Ollama leaves out what is zero."""
    durations = done.durations
    fields = {
        "total_duration": durations.total or int(done.timings.total * 1e6),
        "load_duration": durations.load,
        "prompt_eval_count": done.usage.prompt_tokens,
        "prompt_eval_duration": durations.prompt,
        "eval_count": done.usage.completion_tokens,
        "eval_duration": durations.generation,
    }
    return {name: value for name, value in fields.items() if value}


class OllamaEncoder:
    """The stream of /api/chat or /api/generate."""

    content_type = NDJSON

    def __init__(self, model: str, chat: bool) -> None:
        self._before = b'{"model":' + orjson.dumps(model) + b',"created_at":"'
        self._chat = chat
        if chat:
            self._open, self._close = b'","message":{"role":"assistant","content":', b'},"done":false'
        else:
            self._open, self._close = b'","response":', b',"done":false'

    def token(self, token: Token) -> bytes:
        inside, outside = b"", b""
        if token.thinking:
            inside += b',"thinking":' + orjson.dumps(token.thinking)
        if token.tool_calls:
            inside += b',"tool_calls":' + orjson.dumps(token.tool_calls)
        if token.logprobs:
            outside = b',"logprobs":' + orjson.dumps(token.logprobs)
        return b"".join(
            (
                self._before,
                timestamp().encode(),
                self._open,
                orjson.dumps(token.text),
                inside,
                self._close,
                outside,
                b"}\n",
            )
        )

    def done(self, done: Done) -> bytes:
        last: dict[str, Any] = {"done": True, "done_reason": done.reason}
        if done.context:
            last["context"] = done.context
        last.update(final_fields(done))
        told = b'""}' if self._chat else b'""'
        return self._before + timestamp().encode() + self._open + told + b"," + orjson.dumps(last)[1:] + b"\n"

    def failed(self, error: GatewayError) -> bytes:
        return error_bytes(error, "ollama") + b"\n"


def whole_record(model: str, whole: WholeAnswer, chat: bool) -> dict[str, Any]:
    """A whole answer of /api/chat or /api/generate."""
    done = whole.done
    answer: dict[str, Any] = {"model": model, "created_at": timestamp()}
    told: dict[str, Any] = {"role": "assistant", "content": whole.text} if chat else {"response": whole.text}
    if whole.thinking:
        told["thinking"] = whole.thinking
    if whole.tool_calls:
        told["tool_calls"] = whole.tool_calls
    answer.update({"message": told} if chat else told)
    answer.update(done=True, done_reason=done.reason)
    if done.context:
        answer["context"] = done.context
    answer.update(final_fields(done))
    if whole.logprobs:
        answer["logprobs"] = whole.logprobs
    return answer


class OllamaApi:
    def __init__(self, services: Services) -> None:
        self._dispatch = services.dispatch
        self._nodes = NodesDirect(services)

    async def generate(self, incoming: Incoming) -> None:
        values = known_only(await incoming.json(), GENERATE_FIELDS)
        request = self._request(incoming, "generate", values)
        await self._answer(incoming, request, values, empty=not request.prompt)

    async def chat(self, incoming: Incoming) -> None:
        values = known_only(await incoming.json(), CHAT_FIELDS)
        request = self._request(incoming, "chat", values)
        await self._answer(incoming, request, values, empty=not request.messages)

    def _request(self, incoming: Incoming, operation: Operation, values: Mapping[str, Any]) -> AskRequest:
        return ollama_request(operation, values, incoming.request_id, incoming.caller)

    async def _answer(self, incoming: Incoming, request: AskRequest, values: Mapping[str, Any], empty: bool) -> None:
        chat = request.operation == "chat"
        if empty:
            incoming.watch()
            await self._load_or_unload(incoming, request, chat)
            return
        if values.get("_debug_render_only"):
            incoming.watch()
            await self._render(incoming, request, chat)
            return
        incoming.hand_over()
        if values.get("stream", True):
            encoder = OllamaEncoder(request.model or "auto", chat)
            await relay(incoming, self._dispatch.stream(request), encoder)
        else:
            whole = await gather(self._dispatch.stream(request), incoming)
            record = whole_record(request.model or whole.done.model, whole, chat)
            await incoming.reply.answer(orjson.dumps(record), OLLAMA_JSON)

    async def _load_or_unload(self, incoming: Incoming, request: AskRequest, chat: bool) -> None:
        required_model(request.model)
        reason = "unload" if is_unload(request.fields.get("keep_alive")) else "load"
        await self._nodes.load(request, unload=reason == "unload")
        record = _empty_record(request, chat, {"role": "assistant", "content": ""})
        record.update(done=True, done_reason=reason)
        await incoming.reply.answer(orjson.dumps(record), OLLAMA_JSON)

    async def _render(self, incoming: Incoming, request: AskRequest, chat: bool) -> None:
        rendered = await self._nodes.render(request)
        record = _empty_record(request, chat, {"role": "", "content": ""})
        record.update(done=False, _debug_info={"rendered_template": rendered})
        await incoming.reply.answer(orjson.dumps(record), OLLAMA_JSON)

    async def embed(self, incoming: Incoming) -> None:
        values = known_only(await incoming.json(), EMBED_FIELDS)
        request = self._request(incoming, "embed", values)
        model = request.model or "auto"
        if not values.get("input"):
            self._check_known(request)
            await incoming.reply.answer(orjson.dumps({"model": model, "embeddings": []}), OLLAMA_JSON)
            return
        whole = await self._embedding(incoming, request)
        done = whole.done
        answer = {
            "model": request.model or done.model,
            "embeddings": whole.vectors,
            "total_duration": done.durations.total or int(done.timings.total * 1e6),
            "load_duration": done.durations.load,
            "prompt_eval_count": done.usage.prompt_tokens,
        }
        await incoming.reply.answer(orjson.dumps(answer), OLLAMA_JSON)

    async def embeddings(self, incoming: Incoming) -> None:
        """The older form: one text, one vector."""
        values = known_only(await incoming.json(), EMBEDDINGS_FIELDS)
        prompt = values.pop("prompt", "")
        request = self._request(incoming, "embed", {**values, "input": prompt})
        if not prompt:
            self._check_known(request)
            await incoming.reply.answer(orjson.dumps({"embedding": []}), OLLAMA_JSON)
            return
        whole = await self._embedding(incoming, request)
        answer = {"embedding": whole.vectors[0] if whole.vectors else []}
        await incoming.reply.answer(orjson.dumps(answer), OLLAMA_JSON)

    async def _embedding(self, incoming: Incoming, request: AskRequest) -> WholeAnswer:
        incoming.hand_over()
        with _words_of_embeddings():
            return await gather(self._dispatch.stream(request), incoming)

    def _check_known(self, request: AskRequest) -> None:
        """Nothing to embed asks no node, but a wrong name is a mistake all the same."""
        with _words_of_embeddings():
            self._nodes.check_known(request.model)


@contextmanager
def _words_of_embeddings() -> Iterator[None]:
    """Ollama has another sentence for an unknown model here."""
    try:
        yield
    except ModelNotFound as error:
        error.message = f'model "{error.model}" not found, try pulling it first'
        raise


def _empty_record(request: AskRequest, chat: bool, message: Mapping[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = {"model": request.model or "auto", "created_at": timestamp()}
    record.update({"message": message} if chat else {"response": ""})
    return record
