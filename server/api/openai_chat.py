"""OpenAI's API: /v1/chat/completions.

`n` choices are `n` requests to the fleet, merged by index. Streams follow OpenAI's framing: the role first, then
deltas, the reason, the usage where asked, `[DONE]`; one that fails tells the error and ends without `[DONE]`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from server.api.openai_fields import CHAT_FIELDS, openai_checked, openai_request
from server.api.openai_messages import ollama_messages
from server.api.services import Services
from server.api.streams import WholeAnswer, relay
from server.errors import RequestInvalid
from server.exchange import AskRequest, CallerId, Done, RequestId, Token


@dataclass(frozen=True, slots=True)
class ChatShape:
    """How the client wants the answers told."""

    model: str
    include_usage: bool
    logprobs: bool
    one_tool_call: bool
    choices: int


def chat_requests(values: Mapping[str, Any], request_id: RequestId, caller: CallerId) -> list[AskRequest]:
    """One request to the fleet for each choice."""
    fields: dict[str, Any] = {}
    if values.get("response_format") is not None:
        fields["format"] = values["response_format"]
    if values.get("tools") and values.get("tool_choice") != "none":
        fields["tools"] = values["tools"]
    if "reasoning_effort" in values:
        fields["think"] = values["reasoning_effort"]
    if values.get("logprobs"):
        fields["logprobs"] = True
        if values.get("top_logprobs"):
            fields["top_logprobs"] = values["top_logprobs"]
    elif values.get("top_logprobs"):
        raise RequestInvalid("'top_logprobs' needs 'logprobs': true", field="top_logprobs")
    request = openai_request(
        values,
        request_id,
        caller,
        operation="chat",
        messages=ollama_messages(values.get("messages", ())),
        fields=fields,
    )
    return seeded(request, values.get("n", 1))


def openai_tool_calls(calls: Any, request_id: RequestId, first: int = 0) -> list[dict[str, Any]]:
    """Ollama's tool calls as OpenAI's: with ids, and arguments as text."""
    told = []
    for index, call in enumerate(calls, first):
        function = call.get("function", {})
        arguments = function.get("arguments", {})
        told.append(
            {
                "index": index,
                "id": call.get("id") or f"call_{request_id}_{index}",
                "type": "function",
                "function": {
                    "name": function.get("name", ""),
                    "arguments": arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode(),
                },
            }
        )
    return told


def finish_reason(done: Done, called: bool) -> str:
    return "tool_calls" if called else "length" if done.reason == "length" else "stop"


class ChatEncoder(ChoiceEncoder):
    """The chunks of one choice."""

    def __init__(self, request_id: RequestId, shape: ChatShape, index: int = 0) -> None:
        head = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": shape.model,
            "system_fingerprint": FINGERPRINT,
        }
        super().__init__(head, shape.include_usage, shape.choices)
        self._shape = shape
        self._request_id = request_id
        self._open = self._head + b',"choices":[{"index":%d,"delta":' % index
        self._close = b',"finish_reason":null}]' + self._usage + b"}\n\n"
        self._before_text = self._open + b'{"content":'
        self._after_text = b"}" + self._close
        self._begun = False
        self._calls = 0

    def token(self, token: Token) -> bytes:
        if self._begun and not (token.thinking or token.tool_calls or token.logprobs):
            return self._before_text + orjson.dumps(token.text) + self._after_text
        return self._first() + self._delta(token)

    def _first(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._open + b'{"role":"assistant","content":""}' + self._close

    def _delta(self, token: Token) -> bytes:
        check_logprobs(self._shape.logprobs, token)
        delta: dict[str, Any] = {}
        if token.text or not (token.thinking or token.tool_calls):
            delta["content"] = token.text
        if token.thinking:
            delta["reasoning"] = token.thinking
        if token.tool_calls:
            calls = self._allowed(openai_tool_calls(token.tool_calls, self._request_id, self._calls))
            self._calls += len(calls)
            if calls:
                delta["tool_calls"] = calls
        logprobs = b""
        if token.logprobs:
            logprobs = b',"logprobs":' + orjson.dumps({"content": token.logprobs, "refusal": None})
        return self._open + orjson.dumps(delta) + logprobs + self._close

    def _allowed(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return calls[: 1 - self._calls] if self._shape.one_tool_call else calls

    def done(self, done: Done) -> bytes:
        reason = finish_reason(done, self._calls > 0).encode()
        told = self._first() + self._open + b'{},"finish_reason":"%b"}]%b}\n\n' % (reason, self._usage)
        # with several choices whoever merges them tells the end
        return told + self.end([done]) if self._shape.choices == 1 else told


class OpenAIChatApi:
    def __init__(self, services: Services) -> None:
        self._dispatch = services.dispatch

    async def chat(self, incoming: Incoming) -> None:
        values = openai_checked(await incoming.json(), CHAT_FIELDS)
        requests = chat_requests(values, incoming.request_id, incoming.caller)
        shape = _shape(values, len(requests))
        incoming.hand_over()
        if values.get("stream"):
            await self._stream(incoming, requests, shape)
        else:
            whole = await self._whole(requests, shape, incoming.request_id, incoming)
            await incoming.reply.answer_json(whole)

    async def answer(self, body: Mapping[str, Any], request_id: RequestId, caller: CallerId) -> dict[str, Any]:
        """The whole answer to a body. Raises the GatewayError that it ends in."""
        values = openai_checked(body, CHAT_FIELDS)
        requests = chat_requests(values, request_id, caller)
        return await self._whole(requests, _shape(values, len(requests)), request_id)

    async def _stream(self, incoming: Incoming, requests: list[AskRequest], shape: ChatShape) -> None:
        if len(requests) == 1:
            encoder = ChatEncoder(incoming.request_id, shape)
            await relay(incoming, self._dispatch.stream(requests[0]), encoder)
            return
        encoders = [ChatEncoder(incoming.request_id, shape, index) for index in range(len(requests))]
        await relay_choices(incoming, self._dispatch, list(zip(requests, encoders, strict=True)))

    async def _whole(
        self, requests: list[AskRequest], shape: ChatShape, request_id: RequestId, incoming: Incoming | None = None
    ) -> dict[str, Any]:
        answers = await gather_choices(incoming, self._dispatch, requests)
        return {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": shape.model if shape.model != "auto" else answers[0].done.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [self._choice(index, whole, shape, request_id) for index, whole in enumerate(answers)],
            "usage": usage_record([whole.done for whole in answers], shape.choices),
        }

    def _choice(self, index: int, whole: WholeAnswer, shape: ChatShape, request_id: RequestId) -> dict[str, Any]:
        check_logprobs(shape.logprobs, whole)
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        calls = openai_tool_calls(whole.tool_calls, request_id)
        if calls:
            message["content"] = whole.text or None
            message["tool_calls"] = [
                {name: value for name, value in call.items() if name != "index"}
                for call in (calls[:1] if shape.one_tool_call else calls)
            ]
        if whole.thinking:
            message["reasoning"] = whole.thinking
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": whole.logprobs, "refusal": None} if shape.logprobs else None,
            "finish_reason": finish_reason(whole.done, bool(calls)),
        }


def _shape(values: Mapping[str, Any], choices: int) -> ChatShape:
    return ChatShape(
        model=values.get("model") or "auto",
        include_usage=values.get("stream_options", False),
        logprobs=values.get("logprobs", False),
        one_tool_call=values.get("parallel_tool_calls") is False,
        choices=choices,
    )
