"""The /v1 dialects of Ollama: chat and text completions, models, embeddings, messages, responses.

Each is a translation around the same session as /api/chat. On /v1 a runner that dies is not told at all: an empty
piece without a model, then a well-ended body without `[DONE]`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable
from typing import Any

from tests.fakes.phone_answering import Session, gather, session_for
from tests.fakes.phone_call import Call, Piece, tokens_of
from tests.fakes.phone_catalog import embedded_texts, embedding_of
from tests.fakes.phone_ollama import go_json
from tests.fakes.phone_requests import Contexts, Refused, Unreadable, find_model, parse_json, read_chat, read_generate
from tests.fakes.phone_settings import PhoneSettings
from tests.fakes.phone_telling import RunnerDied, Telling

JSON_LINE = "application/json"
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "max_output_tokens": "num_predict",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}


def error_body(status: int, message: str, settings: PhoneSettings) -> bytes:
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    if status == 404 and not settings.profile.lists_details:  # the oldest version knows no such kind
        kind = "api_error"
    return go_json({"error": {"message": message, "type": kind, "param": None, "code": None}})


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""


def _images_of(content: Any) -> list[str]:
    parts = content if isinstance(content, list) else []
    urls = [part.get("image_url") for part in parts if isinstance(part, dict) and part.get("type") == "image_url"]
    texts = [url.get("url", "") if isinstance(url, dict) else str(url) for url in urls]
    return [text.partition("base64,")[2] for text in texts]


def _to_ollama(fields: dict[str, Any]) -> dict[str, Any]:
    """The same request in Ollama's own words. Temperature is 1 where none is given, as OpenAI's default is."""
    options = {ours: fields[theirs] for theirs, ours in _OPTIONS.items() if fields.get(theirs) is not None}
    options.setdefault("temperature", 1.0)
    stop = fields.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    result: dict[str, Any] = {"model": fields.get("model"), "stream": bool(fields.get("stream")), "options": options}
    form = fields.get("response_format") or {}
    if form.get("type") == "json_object":
        result["format"] = "json"
    elif form.get("type") == "json_schema":
        result["format"] = form.get("json_schema", {}).get("schema", {})
    if fields.get("tools"):
        result["tools"] = fields["tools"]
    return result


def chat_call(fields: dict[str, Any], settings: PhoneSettings, messages: Any) -> Call:
    translated = [
        {
            "role": message.get("role", ""),
            "content": _text_of(message.get("content")),
            "images": _images_of(message.get("content")),
        }
        for message in messages
        if isinstance(message, dict)
    ]
    return read_chat({**_to_ollama(fields), "messages": translated}, settings)


def usage_of(session: Session) -> dict[str, int]:
    prompt, said = session.spoken.prompt_count, session.spoken.ending.eval_count
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _wants_usage(fields: dict[str, Any]) -> bool:
    return bool((fields.get("stream_options") or {}).get("include_usage"))


async def chat_completions(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "ChatCompletionRequest")
    if not fields.get("messages"):
        raise Unreadable(400, "[] is too short - 'messages'")
    call = chat_call(fields, telling.state.settings, fields["messages"])
    base = {
        "id": f"chatcmpl-{random.randrange(1000)}",
        "object": "chat.completion.chunk" if call.stream else "chat.completion",
        "created": int(time.time()),
        "model": telling.name(call.asked_name),
        "system_fingerprint": "fp_ollama",
    }
    async with session_for(telling.state, call) as session:
        if call.stream:
            await _stream(telling, session, _ChatEvents(base, telling), _wants_usage(fields))
        else:
            text = await gather(session, telling)
            message: dict[str, Any] = {"role": "assistant", "content": text}
            calls = _tool_calls([*session.spoken.pieces])
            if calls:
                message["tool_calls"] = calls
            reason = "tool_calls" if calls else session.spoken.ending.reason
            choice = {"index": 0, "message": message, "finish_reason": reason}
            answer = {**base, "choices": [choice], "usage": usage_of(session)}
            await telling.whole(200, go_json(answer) + b"\n", JSON_LINE)
        telling.state.counters.answers += 1


async def completions(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "CompletionRequest")
    prompt = fields.get("prompt")
    translated = {**_to_ollama(fields), "prompt": prompt[0] if isinstance(prompt, list) and prompt else prompt}
    if fields.get("suffix"):
        translated["suffix"] = fields["suffix"]
    call = read_generate(translated, telling.state.settings, Contexts(find=telling.state.find_context))
    base = {"id": f"cmpl-{random.randrange(1000)}", "object": "text_completion", "created": int(time.time())}
    tail = {"model": telling.name(call.asked_name), "system_fingerprint": "fp_ollama"}
    async with session_for(telling.state, call) as session:
        if call.stream:
            await _stream(telling, session, _TextEvents(base, tail), _wants_usage(fields))
        else:
            text = await gather(session, telling)
            choice = {"text": text, "index": 0, "finish_reason": session.spoken.ending.reason}
            answer = {**base, **tail, "choices": [choice], "usage": usage_of(session)}
            await telling.whole(200, go_json(answer) + b"\n", JSON_LINE)
        telling.state.counters.answers += 1


class _ChatEvents:
    """Records of a streamed chat completion."""

    def __init__(self, base: dict[str, Any], telling: Telling) -> None:
        self._base = base
        self._lean = telling.state.settings.profile.lean_deltas
        self._first = True

    def piece(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant"} if self._first or not self._lean else {}
        self._first = False
        if piece.thinking:
            delta["reasoning"] = piece.text
        elif piece.tool_calls:
            delta["tool_calls"] = _tool_calls([piece])
        delta.setdefault("content", "" if piece.thinking or piece.tool_calls else piece.text)
        return self._record([{"index": 0, "delta": delta, "finish_reason": None}])

    def last(self, reason: str) -> dict[str, Any]:
        delta = {} if self._lean else {"role": "assistant", "content": ""}
        return self._record([{"index": 0, "delta": delta, "finish_reason": reason}])

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._record([]), "usage": usage}

    def dead(self) -> dict[str, Any]:
        delta = {"content": ""} if self._lean else {"role": "assistant", "content": ""}
        return {**self._record([{"index": 0, "delta": delta, "finish_reason": None}]), "model": ""}

    def _record(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._base, "choices": choices}


class _TextEvents:
    """Records of a streamed text completion."""

    def __init__(self, base: dict[str, Any], tail: dict[str, Any]) -> None:
        self._base = base
        self._tail = tail

    def piece(self, piece: Piece) -> dict[str, Any]:
        return self._record([{"text": piece.text, "index": 0, "finish_reason": None}])

    def last(self, reason: str) -> dict[str, Any]:
        return self._record([{"text": "", "index": 0, "finish_reason": reason}])

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        return {**self._record([]), "usage": usage}

    def dead(self) -> dict[str, Any]:
        return {**self._record([{"text": "", "index": 0, "finish_reason": None}]), "model": ""}

    def _record(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._base, "choices": choices, **self._tail}


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + go_json(record) + b"\n\n"


async def _stream(telling: Telling, session: Session, events: _ChatEvents | _TextEvents, wants_usage: bool) -> None:
    await session.read()
    telling.begin("text/event-stream")

    def say(piece: Piece) -> Awaitable[None] | None:
        return telling.put(_event(events.piece(piece)), len(piece.tokens))

    try:
        await session.speak(say, telling.exchange)
        calls = any(piece.tool_calls for piece in session.spoken.pieces)
        closing = _event(events.last("tool_calls" if calls else session.spoken.ending.reason))
        if wants_usage:
            closing += _event(events.usage(usage_of(session)))
        closing += b"data: [DONE]\n\n"
    except RunnerDied:
        telling.state.runner.kill(session.loaded)
        closing = _event(events.dead())
    await telling.end(closing)


def _tool_calls(pieces: list[Piece]) -> list[dict[str, Any]]:
    calls = [call for piece in pieces for call in piece.tool_calls]
    return [
        {
            "id": f"call_{index}",
            "index": index,
            "type": "function",
            "function": {**call["function"], "arguments": go_json(call["function"]["arguments"]).decode()},
        }
        for index, call in enumerate(calls)
    ]


async def models(telling: Telling, _: bytes) -> None:
    listed = [_model_record(model.full_name) for model in telling.state.settings.models]
    await telling.whole(200, go_json({"object": "list", "data": listed}) + b"\n", JSON_LINE)


async def one_model(telling: Telling, name: str) -> None:
    model = find_model({"model": name}, telling.state.settings)
    await telling.whole(200, go_json(_model_record(model.full_name)) + b"\n", JSON_LINE)


def _model_record(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "library"}


async def embeddings(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "EmbedRequest")
    texts, model, _ = await embedded_texts(telling, fields, fields.get("input"))
    data = [
        {"object": "embedding", "embedding": embedding_of(text, model.embedding_length), "index": index}
        for index, text in enumerate(texts)
    ]
    count = sum(len(tokens_of(text)) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    answer = {"object": "list", "data": data, "model": telling.name(fields["model"]), "usage": usage}
    await telling.whole(200, go_json(answer) + b"\n", JSON_LINE)


async def messages(telling: Telling, body: bytes) -> None:
    """/v1/messages, whole answers only."""
    fields = parse_json(body, "MessagesRequest")
    refuse_stream(fields)
    listed = fields.get("messages") or []
    if fields.get("system"):
        listed = [{"role": "system", "content": fields["system"]}, *listed]
    call = chat_call(fields, telling.state.settings, listed)
    async with session_for(telling.state, call) as session:
        text = await gather(session, telling)
        usage = usage_of(session)
        answer = {
            "id": f"msg_{random.randbytes(12).hex()}",
            "type": "message",
            "role": "assistant",
            "model": telling.name(call.asked_name),
            "content": [{"type": "text", "text": text}],
            "stop_reason": "max_tokens" if session.spoken.ending.reason == "length" else "end_turn",
            "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
        }
        await telling.whole(200, go_json(answer) + b"\n", JSON_LINE)
        telling.state.counters.answers += 1


def refuse_stream(fields: dict[str, Any]) -> None:
    if fields.get("stream"):
        raise Refused(501, "this simulator streams /api/chat, /api/generate and the /v1 completions only")
