"""OpenAI's API: /v1/completions and /v1/embeddings.

Completions go through the model's template, as Ollama's own /v1 does. Several prompts times `n` are that many requests,
merged by index. Knows nothing of nodes.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any

import orjson

from server.api.incoming import Incoming
from server.api.openai_choices import (
    FINGERPRINT,
    ChoiceEncoder,
    check_logprobs,
    gather_choices,
    relay_choices,
    seeded,
    usage_record,
)
from server.api.openai_fields import (
    COMPLETION_FIELDS,
    EMBEDDING_FIELDS,
    MOST_CHOICES,
    openai_checked,
    openai_request,
)
from server.api.services import Services
from server.api.streams import WholeAnswer, gather
from server.errors import RequestInvalid
from server.exchange import AskRequest, CallerId, Done, RequestId, Token


def completion_requests(values: Mapping[str, Any], request_id: RequestId, caller: CallerId) -> list[AskRequest]:
    """One request for each choice of each prompt, prompts first."""
    count = values.get("n", 1)
    if values.get("best_of", count) != count:
        raise RequestInvalid("'best_of' is not supported beyond 'n'", field="best_of")
    if values.get("echo") and values.get("logprobs") is not None:
        raise RequestInvalid("'echo' is not supported with 'logprobs'", field="echo")
    prompts: Sequence[str] = values.get("prompt", ())
    if not prompts or not all(prompts):
        raise RequestInvalid("'prompt' is required and must not be empty", field="prompt")
    if len(prompts) * count > MOST_CHOICES:
        raise RequestInvalid(f"more than {MOST_CHOICES} choices in one call", field="prompt")
    fields: dict[str, Any] = {}
    if values.get("suffix"):
        fields["suffix"] = values["suffix"]
    if values.get("response_format") is not None:
        fields["format"] = values["response_format"]
    if values.get("logprobs") is not None:
        fields.update(logprobs=True, top_logprobs=values["logprobs"])
    requests = []
    for number, prompt in enumerate(prompts):
        request = openai_request(
            values,
            RequestId(f"{request_id}.{number}") if len(prompts) > 1 else request_id,
            caller,
            operation="generate",
            prompt=prompt,
            fields=dict(fields),
        )
        requests += seeded(request, count)
    return requests


def completion_logprobs(entries: Sequence[Mapping[str, Any]], offset: int = 0) -> dict[str, Any]:
    """Ollama's logprobs in the older shape of completions."""
    tokens, own, tops, offsets = [], [], [], []
    for entry in entries:
        tokens.append(entry.get("token", ""))
        own.append(entry.get("logprob"))
        tops.append({top.get("token", ""): top.get("logprob") for top in entry.get("top_logprobs") or ()})
        offsets.append(offset)
        offset += len(tokens[-1])
    told = tops if any(tops) else None  # none were wanted
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": told, "text_offset": offsets}


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """How the client wants the answers told."""

    include_usage: bool
    logprobs: bool
    echo: bool
    per_prompt: int

    def echoed(self, request: AskRequest) -> str:
        return request.prompt if self.echo else ""


class CompletionEncoder(ChoiceEncoder):
    """The chunks of one choice of a completion."""

    def __init__(self, head: Mapping[str, Any], index: int, shape: CompletionShape, request: AskRequest) -> None:
        super().__init__(head, shape.include_usage, shape.per_prompt)
        self._open = self._head + b',"choices":[{"index":%d,"text":' % index
        self._logprobs = shape.logprobs
        self._echoed = shape.echoed(request)
        self._told = 0

    def token(self, token: Token) -> bytes:
        check_logprobs(self._logprobs, token)
        logprobs = b"null"
        if token.logprobs:
            logprobs = orjson.dumps(completion_logprobs(token.logprobs, self._told))
        self._told += len(token.text)
        return self._echo() + self._chunk(token.text, logprobs, b"null")

    def _echo(self) -> bytes:
        echoed, self._echoed = self._echoed, ""
        return self._chunk(echoed, b"null", b"null") if echoed else b""

    def _chunk(self, told: str, logprobs: bytes, reason: bytes) -> bytes:
        return b'%b%b,"logprobs":%b,"finish_reason":%b}]%b}\n\n' % (
            self._open,
            orjson.dumps(told),
            logprobs,
            reason,
            self._usage,
        )

    def done(self, done: Done) -> bytes:
        return self._echo() + self._chunk("", b"null", b'"%b"' % _reason(done).encode())


class OpenAICompletionsApi:
    def __init__(self, services: Services) -> None:
        self._dispatch = services.dispatch

    async def completions(self, incoming: Incoming) -> None:
        values = openai_checked(await incoming.json(), COMPLETION_FIELDS)
        requests = completion_requests(values, incoming.request_id, incoming.caller)
        incoming.hand_over()
        if values.get("stream"):
            shape, head = _shape(values), _head(values, incoming.request_id)
            choices = [
                (request, CompletionEncoder(head, index, shape, request)) for index, request in enumerate(requests)
            ]
            await relay_choices(incoming, self._dispatch, choices)
        else:
            whole = await self._whole(values, requests, incoming.request_id, incoming)
            await incoming.reply.answer_json(whole)

    async def answer(self, body: Mapping[str, Any], request_id: RequestId, caller: CallerId) -> dict[str, Any]:
        """The whole answer to a body. Raises the GatewayError that it ends in."""
        values = openai_checked(body, COMPLETION_FIELDS)
        return await self._whole(values, completion_requests(values, request_id, caller), request_id)

    async def _whole(
        self,
        values: Mapping[str, Any],
        requests: Sequence[AskRequest],
        request_id: RequestId,
        incoming: Incoming | None = None,
    ) -> dict[str, Any]:
        shape, head = _shape(values), _head(values, request_id)
        answers = await gather_choices(incoming, self._dispatch, requests)
        choices = [
            _choice(index, shape.echoed(request), whole, shape)
            for index, (request, whole) in enumerate(zip(requests, answers, strict=True))
        ]
        if not values.get("model"):
            head["model"] = answers[0].done.model
        usage = usage_record([whole.done for whole in answers], shape.per_prompt)
        return {**head, "choices": choices, "usage": usage}

    async def embeddings(self, incoming: Incoming) -> None:
        values = openai_checked(await incoming.json(), EMBEDDING_FIELDS)
        texts = values.get("input", [])
        if not texts or not all(texts):
            raise RequestInvalid("'input' is required and must not be empty", field="input")
        fields: dict[str, Any] = {"input": texts}
        if "dimensions" in values:
            fields["dimensions"] = values["dimensions"]
        request = openai_request(values, incoming.request_id, incoming.caller, operation="embed", fields=fields)
        incoming.hand_over()
        whole = await gather(self._dispatch.stream(request), incoming)
        encode = as_base64 if values.get("encoding_format") == "base64" else list
        read = whole.done.usage.prompt_tokens
        await incoming.reply.answer_json(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": encode(vector)}
                    for index, vector in enumerate(whole.vectors)
                ],
                "model": values.get("model") or whole.done.model,
                "usage": {"prompt_tokens": read, "total_tokens": read},
            }
        )


def as_base64(vector: Sequence[float]) -> str:
    """A vector as OpenAI packs it: 32-bit floats, little-endian."""
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _head(values: Mapping[str, Any], request_id: RequestId) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": values.get("model") or "auto",
        "system_fingerprint": FINGERPRINT,
    }


def _shape(values: Mapping[str, Any]) -> CompletionShape:
    return CompletionShape(
        include_usage=values.get("stream_options", False),
        logprobs=values.get("logprobs") is not None,
        echo=values.get("echo", False),
        per_prompt=values.get("n", 1),
    )


def _choice(index: int, echoed: str, whole: WholeAnswer, shape: CompletionShape) -> dict[str, Any]:
    check_logprobs(shape.logprobs, whole)
    return {
        "index": index,
        "text": echoed + whole.text,
        "logprobs": completion_logprobs(whole.logprobs) if shape.logprobs else None,
        "finish_reason": _reason(whole.done),
    }


def _reason(done: Done) -> str:
    return "length" if done.reason == "length" else "stop"
