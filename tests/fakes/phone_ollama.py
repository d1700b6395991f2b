"""/api/chat and /api/generate: Ollama's own dialect, streamed as NDJSON or whole, with the fields of each version."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any
from zlib import crc32

import orjson

from tests.fakes.phone_answering import Session, gather, keep_alive_of, load, session_for
from tests.fakes.phone_call import Call, Piece, plan_call, tokens_of
from tests.fakes.phone_requests import Contexts, Refused, parse_json, read_chat, read_generate
from tests.fakes.phone_telling import NDJSON, RunnerDied, Telling


def go_json(value: Any) -> bytes:
    """JSON as Go writes it: `<`, `>` and `&` are escaped."""
    text = orjson.dumps(value)
    if b"<" in text or b">" in text or b"&" in text:
        text = text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
    return text


class _Stamp:
    second = 0
    text = ""


def timestamp(seconds_ahead: float = 0.0) -> str:
    """Now in RFC 3339 with nanoseconds; the whole seconds are formatted once."""
    now = time.time_ns() + int(seconds_ahead * 1e9)
    second, nanos = divmod(now, 1_000_000_000)
    if second != _Stamp.second:
        _Stamp.second, _Stamp.text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_Stamp.text}.{nanos:09d}".rstrip("0").rstrip(".") + "Z"  # Go leaves trailing zeros out


async def answer_chat(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "ChatRequest")
    call = _checked(fields, telling, lambda: read_chat(fields, telling.state.settings))
    if not call.messages:
        await _load_or_unload(telling, call)
    else:
        await _answer(telling, call)


async def answer_generate(telling: Telling, body: bytes) -> None:
    fields = parse_json(body, "GenerateRequest")
    state = telling.state
    contexts = Contexts(find=state.find_context)
    call = _checked(fields, telling, lambda: read_generate(fields, state.settings, contexts))
    if not call.prompt and not call.render_only:
        await _load_or_unload(telling, call)
    else:
        await _answer(telling, call)


def _checked(fields: dict[str, Any], telling: Telling, read: Any) -> Call:
    """Errors that Ollama finds only when it streams have a stream's framing, unless no stream was asked for."""
    try:
        call: Call = read()
        return call
    except Refused as refused:
        if refused.streamed and fields.get("stream") is False:
            status = 500 if refused.status == 200 else refused.status
            raise Refused(status, refused.message) from refused
        raise


def _head(telling: Telling, call: Call, content: str) -> dict[str, Any]:
    head: dict[str, Any] = {"model": telling.name(call.asked_name), "created_at": timestamp()}
    if call.kind == "chat":
        head["message"] = {"role": "assistant", "content": content}
    else:
        head["response"] = content
    return head


async def _load_or_unload(telling: Telling, call: Call) -> None:
    if keep_alive_of(telling.state, call) == 0:
        telling.state.runner.unload(call.model)
        reason = "unload"
    else:
        loaded, _ = await load(telling.state, call)
        telling.state.runner.touch(loaded, keep_alive_of(telling.state, call))
        reason = "load"
    await telling.whole(200, go_json({**_head(telling, call, ""), **_done(telling, call, reason)}))


async def _answer(telling: Telling, call: Call) -> None:
    if call.render_only:
        await _render(telling, call)
        return
    async with session_for(telling.state, call) as session:
        try:
            if call.stream:
                await _stream(telling, call, session)
            else:
                await _whole(telling, call, session)
        except RunnerDied:
            telling.state.runner.kill(session.loaded)
            raise
        telling.state.counters.answers += 1


async def _render(telling: Telling, call: Call) -> None:
    """`_debug_render_only`: the model is loaded, the prompt shown, nothing generated."""
    loaded, _ = await load(telling.state, call)
    plan = plan_call(call, telling.state.settings, "0000", loaded.num_ctx)
    telling.state.runner.touch(loaded, keep_alive_of(telling.state, call))
    head = _head(telling, call, "")
    if call.kind == "chat":
        head["message"]["role"] = ""
    debug = {"rendered_template": plan.rendered}
    await telling.whole(200, go_json({**head, "done": False, "_debug_info": debug}))


async def _stream(telling: Telling, call: Call, session: Session) -> None:
    await session.read()
    telling.begin(NDJSON)
    name = orjson.dumps(telling.name(call.asked_name))
    opening = b'{"model":' + name + b',"created_at":"'
    plain = call.logprobs is None
    middle = b'","message":{"role":"assistant","content":' if call.kind == "chat" else b'","response":'
    closing = b'},"done":false}\n' if call.kind == "chat" else b',"done":false}\n'

    def say(piece: Piece) -> Awaitable[None] | None:
        if plain and not piece.thinking and not piece.tool_calls:
            line = opening + timestamp().encode() + middle + go_json(piece.text) + closing
        else:
            line = go_json(_rich_line(telling, call, piece)) + b"\n"
        return telling.put(line, len(piece.tokens))

    await session.speak(say, telling.exchange)
    await telling.end(go_json(_final(telling, call, session, "")) + b"\n")


def _rich_line(telling: Telling, call: Call, piece: Piece) -> dict[str, Any]:
    """A chunk with more in it than text."""
    head = _head(telling, call, "" if piece.thinking else piece.text)
    holder = head["message"] if call.kind == "chat" else head
    if piece.thinking:
        holder["thinking"] = piece.text
    if piece.tool_calls:
        holder["tool_calls"] = list(piece.tool_calls)
    head["done"] = False
    if call.logprobs is not None:
        head["logprobs"] = logprobs_of([piece], call.logprobs)
    return head


async def _whole(telling: Telling, call: Call, session: Session) -> None:
    text = await gather(session, telling)
    final = _final(telling, call, session, text)
    pieces = session.spoken.pieces
    holder = final["message"] if call.kind == "chat" else final
    thoughts = "".join(piece.text for piece in pieces if piece.thinking)
    calls = [tool_call for piece in pieces for tool_call in piece.tool_calls]
    if thoughts:
        holder["thinking"] = thoughts
    if calls:
        holder["tool_calls"] = calls
    if call.logprobs is not None:
        final["logprobs"] = logprobs_of(pieces, call.logprobs)
    await telling.whole(200, go_json(final))


def _final(telling: Telling, call: Call, session: Session, content: str) -> dict[str, Any]:
    spoken = session.spoken
    final = {**_head(telling, call, content), **_done(telling, call, spoken.ending.reason)}
    if call.kind == "generate" and not call.raw:
        text = spoken.plan.rendered + "".join(piece.text for piece in spoken.pieces)
        final["context"] = [crc32(piece.encode("utf-8", "surrogatepass")) % 49_152 for piece in tokens_of(text)]
        telling.state.remember_context(final["context"], text)
    times = {
        "total_duration": _nanos(spoken.finished - spoken.started),
        "load_duration": _nanos(spoken.loaded_after),
        "prompt_eval_count": spoken.prompt_count,
        "prompt_eval_duration": _nanos(spoken.read_after),
        "eval_count": spoken.ending.eval_count,
        "eval_duration": _nanos(spoken.spoke_for),
    }
    return {**final, **times}


def _done(telling: Telling, call: Call, reason: str) -> dict[str, Any]:
    if call.kind == "chat" and telling.state.settings.profile.reason_before_done:
        return {"done_reason": reason, "done": True}
    return {"done": True, "done_reason": reason}


def _nanos(seconds: float) -> int:
    """Never 0: Go would leave the field out."""
    return max(1, int(seconds * 1e9))


def logprobs_of(pieces: list[Piece], alternatives: int) -> list[dict[str, Any]]:
    """Made-up but stable probabilities of every token, the chosen one first among its alternatives."""
    result = []
    for piece in pieces:
        for text in piece.tokens:
            chosen = _logprob(text, 0)
            others = [_logprob(f"{text}~{step}", step + 1) for step in range(max(0, alternatives - 1))]
            entry = dict(chosen)
            if alternatives:
                entry["top_logprobs"] = [chosen, *others]
            result.append(entry)
    return result


def _logprob(text: str, rank: int) -> dict[str, Any]:
    encoded = text.encode()
    return {"token": text, "logprob": -0.01 - rank - crc32(encoded) % 1000 / 1100, "bytes": list(encoded)}
