"""Nodes that speak Ollama's API: phones, computers, our own GPU node.

Only `/api/*` is used, since on `/v1` the end of a dead runner's stream is well-formed and unmarked. Answers are always
streamed from the node, so that silence can be judged. See `faults` for who is blamed for what, `node_http` for what
happens to a kept connection of a node that restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import orjson

from server.backends.base import Call, Patience, encoded
from server.backends.faults import MAX_ERROR_BYTES, NODE_FORM_WORDS, about_form, error_of_status
from server.backends.figures import vectors
from server.backends.node_http import Answer, NodeHttp, Request
from server.backends.node_keys import key_of
from server.backends.ollama_answer import AnswerReader, done_of
from server.backends.ollama_probe import report_of
from server.errors import NodeBroken
from server.exchange import Embedding, NodeEvent
from server.nesting import is_too_deep, might_be_too_deep
from server.nodes import NodeSpec, ProbeReport, model_key

MAX_BODY_BYTES = 8 * 1024 * 1024  # of a whole answer: listings, descriptions, a rendered prompt
MAX_EMBEDDINGS_BYTES = 64 * 1024 * 1024
PATHS = {"chat": "/api/chat", "generate": "/api/generate", "embed": "/api/embed"}


class OllamaBackend:
    """`secrets` maps the names that entries give in `api_key_env` to keys."""

    def __init__(self, http: NodeHttp, secrets: Mapping[str, str]) -> None:
        self._http = http
        self._secrets = secrets

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        """One request after the other, so that a fleet of a thousand needs one kept connection per node, not three."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        bodies: list[Any] = []
        for path in ("/api/version", "/api/tags", "/api/ps"):
            left = max(0.001, deadline - asyncio.get_running_loop().time())
            answer = await self._fetch(Request(spec, "GET", path, key=key_of(spec, self._secrets)), left, "probe")
            missing = answer.status == 404 and path != "/api/tags"  # very old versions
            bodies.append(None if missing else writable(spec, answer))
        try:
            return report_of(*bodies)
        except ValueError as problem:
            raise NodeBroken(f"{spec.address} is no Ollama: {problem}") from problem

    async def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> AsyncGenerator[Sequence[NodeEvent], None]:
        if call.operation == "embed":
            yield await self._embed(spec, call, patience)
            return
        request = self._post(spec, PATHS[call.operation], {**body_of(call), "stream": True})
        end = asyncio.get_running_loop().time() + patience.total
        connection = await self._http.open(request, patience, end)
        reader = AnswerReader(spec.address, call.model, chat=call.operation == "chat")
        try:
            if connection.status != 200:
                said = await connection.read_all(MAX_ERROR_BYTES)
                error = error_of_status(spec.address, connection.status, connection.headers, said)
                raise about_form(error, NODE_FORM_WORDS) if "format" in call.fields else error
            while not reader.done:
                data = await connection.read()
                events = reader.feed(data) if data else reader.finish()
                if events:
                    yield events
                    connection.expect("between_tokens", patience.between_tokens, end)
                if reader.error is not None:
                    raise reader.error
        finally:
            self._http.close(connection, answered=reader.done)

    async def render(self, spec: NodeSpec, call: Call, timeout_seconds: float) -> str:
        body = {**body_of(call), "stream": False, "_debug_render_only": True}
        answer = await self._fetch(self._post(spec, PATHS[call.operation], body), timeout_seconds, "render")
        record = parsed(spec, answer)
        info = record.get("_debug_info") if isinstance(record, dict) else None
        text = info.get("rendered_template") if isinstance(info, dict) else None
        if not isinstance(text, str):
            raise NodeBroken(f"{spec.address} does not render prompts")
        return text

    async def show(self, spec: NodeSpec, model: str, timeout_seconds: float, verbose: bool = False) -> dict[str, Any]:
        answer = await self._fetch(
            self._post(spec, "/api/show", {"model": model, "verbose": True} if verbose else {"model": model}),
            timeout_seconds,
            "show",
        )
        record = writable(spec, answer)
        if not isinstance(record, dict):
            raise NodeBroken(f"{spec.address} described {model!r} with something that is no object")
        return record

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _embed(self, spec: NodeSpec, call: Call, patience: Patience) -> Sequence[NodeEvent]:
        request = self._post(spec, PATHS["embed"], body_of(call))
        answer = await self._http.fetch(request, patience, MAX_EMBEDDINGS_BYTES)
        record = parsed(spec, answer)
        try:
            found, done = vectors(record["embeddings"]), done_of(record, call.model)
        except (KeyError, TypeError, ValueError) as problem:
            raise NodeBroken(f"{spec.address} answered with embeddings that are none: {problem}") from problem
        if model_key(done.model) != model_key(call.model):
            raise NodeBroken(f"{spec.address} answered with model {done.model!r} instead of {call.model!r}")
        return [Embedding(found), done]

    def _post(self, spec: NodeSpec, path: str, body: Mapping[str, Any]) -> Request:
        return Request(spec, "POST", path, encoded(body), key_of(spec, self._secrets))

    async def _fetch(self, request: Request, timeout_seconds: float, phase: str) -> Answer:
        return await self._http.fetch_soon(request, timeout_seconds, MAX_BODY_BYTES, phase)


def body_of(call: Call) -> dict[str, Any]:
    """The request body, but for how it is to be streamed."""
    body: dict[str, Any] = {"model": call.model}
    if call.operation == "chat":
        body["messages"] = call.messages
    elif call.operation == "generate":
        body["prompt"] = call.prompt
    if call.options:
        body["options"] = call.options
    body.update(call.fields)
    return body


def parsed(spec: NodeSpec, answer: Answer) -> Any:
    """The JSON of a whole answer. Raises the `NodeError` that any other answer means."""
    if answer.status != 200:
        raise error_of_status(spec.address, answer.status, answer.headers, answer.body)
    try:
        return orjson.loads(answer.body)
    except orjson.JSONDecodeError as problem:
        raise NodeBroken(f"{spec.address} answered with something that is no JSON: {problem}") from problem


def writable(spec: NodeSpec, answer: Answer) -> Any:
    """The same of what is passed on: not all that can be read can be written again."""
    found = parsed(spec, answer)
    if might_be_too_deep(answer.body) and is_too_deep(found):
        raise NodeBroken(f"{spec.address} answered with something nested too deeply")
    return found
