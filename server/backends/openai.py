"""Nodes with OpenAI's API: vLLM, llama-server, LM Studio and their like.

Translated at this edge: `openai_request` makes the body, `openai_answer` reads the stream. Such a node tells neither
digests nor templates, so it renders no prompt, and it continues a message only where its entry says that it can.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from server.backends.base import Call, Patience, encoded
from server.backends.faults import FORM_WORDS, MAX_ERROR_BYTES, about_form, error_of_status
from server.backends.figures import tokens, vectors
from server.backends.node_http import Answer, NodeHttp, Request
from server.backends.node_keys import key_of
from server.backends.ollama import MAX_BODY_BYTES, MAX_EMBEDDINGS_BYTES, parsed
from server.backends.openai_answer import AnswerReader
from server.backends.openai_request import request_of
from server.errors import NodeBroken, NodeIncapable, NodeRefused
from server.exchange import Embedding, NodeDone, NodeEvent, Usage
from server.nodes import ModelCopy, NodeSpec, ProbeReport, ResidentModel, model_key

MAX_TIME = 1 << 35  # seconds; beyond it a date has no four-digit year


class OpenAIBackend:
    """`secrets` maps the names that entries give in `api_key_env` to keys."""

    def __init__(self, http: NodeHttp, secrets: Mapping[str, str]) -> None:
        self._http = http
        self._secrets = secrets

    async def probe(self, spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        records = await self._models(spec, timeout_seconds)
        return ProbeReport(
            version="",
            models=tuple(ModelCopy(record["id"], listing=listing_of(record)) for record in records),
            resident=tuple(ResidentModel(record["id"], context_of(record)) for record in records),
            continues_assistant=spec.continues_final_message,
        )

    async def stream(self, spec: NodeSpec, call: Call, patience: Patience) -> AsyncGenerator[Sequence[NodeEvent], None]:
        path, body = request_of(call, continues_final_message=spec.continues_final_message)
        request = Request(spec, "POST", path, encoded(body), key_of(spec, self._secrets))
        if call.operation == "embed":
            yield await self._embed(request, call, patience)
            return
        started, first = time.perf_counter_ns(), 0
        end = asyncio.get_running_loop().time() + patience.total
        connection = await self._http.open(request, patience, end)
        reader = AnswerReader(spec.address)
        try:
            if connection.status != 200:
                said = await connection.read_all(MAX_ERROR_BYTES)
                error = error_of_status(spec.address, connection.status, connection.headers, said)
                raise about_form(error, FORM_WORDS) if "format" in call.fields else error
            while not reader.ended:
                data = await connection.read()
                events = reader.feed(data) if data else reader.finish()
                if events:
                    first = first or time.perf_counter_ns()
                    yield events
                    connection.expect("between_tokens", patience.between_tokens, end)
                if reader.error is not None:
                    raise reader.error
                if not data:
                    break
            now = time.perf_counter_ns()
            yield [reader.done(call.model, now - (first or now), now - started)]
        finally:
            self._http.close(connection, answered=reader.ended)

    async def render(self, spec: NodeSpec, call: Call, timeout_seconds: float) -> str:
        raise NodeIncapable("a node with OpenAI's API does not tell how it renders a prompt", 501)

    async def show(self, spec: NodeSpec, model: str, timeout_seconds: float, verbose: bool = False) -> dict[str, Any]:
        """What little such a node says, in the shape of Ollama's description."""
        for record in await self._models(spec, timeout_seconds):
            if model_key(record["id"]) == model_key(model):
                context = context_of(record)
                return {
                    "details": listing_of(record)["details"],
                    "model_info": {"general.context_length": context} if context else {},
                    "capabilities": ["completion"],
                    "modified_at": listing_of(record)["modified_at"],
                }
        raise NodeRefused(f"model '{model}' not found", 404)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _models(self, spec: NodeSpec, timeout_seconds: float) -> list[dict[str, Any]]:
        request = Request(spec, "GET", "/v1/models", key=key_of(spec, self._secrets))
        answer = await self._http.fetch_soon(request, timeout_seconds, MAX_BODY_BYTES, "probe")
        body = parsed(spec, answer)
        records = body.get("data") if isinstance(body, dict) else None
        if not isinstance(records, list) or not all(_is_model(record) for record in records):
            raise NodeBroken(f"{spec.address} lists its models in a way that is none of OpenAI's")
        return records

    async def _embed(self, request: Request, call: Call, patience: Patience) -> Sequence[NodeEvent]:
        started = time.perf_counter_ns()
        answer = await self._http.fetch(request, patience, MAX_EMBEDDINGS_BYTES)
        found, usage = embeddings_of(request.spec, answer)
        done = AnswerReader(request.spec.address)
        done.usage = usage
        last: NodeDone = done.done(call.model, 0, time.perf_counter_ns() - started)
        return [Embedding(found), last]


def embeddings_of(spec: NodeSpec, answer: Answer) -> tuple[list[list[float]], Usage]:
    """The vectors in the order of the inputs."""
    body = parsed(spec, answer)
    try:
        records = sorted(body["data"], key=lambda record: record["index"])
        found = vectors([record["embedding"] for record in records])
        return found, Usage(tokens(body.get("usage") or {}, "prompt_tokens"), 0)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise NodeBroken(f"{spec.address} answered without embeddings: {problem}") from problem


def listing_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a model as Ollama's /api/tags would have it."""
    created = record.get("created")
    moment = datetime.fromtimestamp(created if type(created) is int and 0 < created < MAX_TIME else 0, UTC)
    return {
        "name": record["id"],
        "model": record["id"],
        "modified_at": moment.isoformat().replace("+00:00", "Z"),
        "size": 0,
        "digest": "",
        "details": {"format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": ""},
    }


def context_of(record: Mapping[str, Any]) -> int | None:
    """vLLM and llama-server say how long a context they have, each in its own place."""
    meta = record.get("meta")
    found = record.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return found if type(found) is int and found > 0 else None


def _is_model(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("id"), str) and bool(record["id"])
