"""An Ollama of canned answers, several ports in one process: so cheap that it is never what limits a gateway.

The fake phones of the tests do all that a phone does and manage 3,000 requests/s; in front of nginx that would measure
the phones. This one knows `/api/chat`, `/v1/chat/completions` and what probes ask, and says the same tokens each time.
`--burst N` tokens leave in one write; `GET /_burst/N` changes it between two measurements.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass, field
from functools import lru_cache

import orjson

MODEL = "smollm2:135m"
_DIGEST = "1" * 64
_DEFAULT_TOKENS = 16


def answer_tokens(count: int) -> list[str]:
    """What it says; plain letters, so that a check needs no JSON parser."""
    return [f"{' ' if index else ''}w{index}" for index in range(count)]


@dataclass(frozen=True, slots=True)
class Canned:
    """One kind of answer, ready to be sent: whole, or as a head and lines already framed as chunks."""

    whole: bytes
    head: bytes
    lines: tuple[bytes, ...]


@lru_cache(maxsize=64)
def canned(path: str, count: int) -> Canned:
    texts = answer_tokens(count)
    openai = path.startswith("/v1")
    records = _openai_lines(texts) if openai else _ollama_lines(texts)
    kind = "text/event-stream" if openai else "application/x-ndjson"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    lines = [b"%x\r\n%b\r\n" % (len(record), record) for record in records]
    lines[-1] += b"0\r\n\r\n"
    return Canned(framed(_openai_whole(texts) if openai else _ollama_record("".join(texts), count)), head, tuple(lines))


def framed(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _ollama_record(text: str, done: int | None) -> bytes:
    record: dict[str, object] = {
        "model": MODEL,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "message": {"role": "assistant", "content": text},
        "done": done is not None,
    }
    if done is not None:
        record |= {"done_reason": "length", "total_duration": 9, "load_duration": 1, "prompt_eval_count": 20}
        record |= {"prompt_eval_duration": 3, "eval_count": done, "eval_duration": 5}
    return orjson.dumps(record)


def _ollama_lines(texts: list[str]) -> list[bytes]:
    return [_ollama_record(text, None) + b"\n" for text in texts] + [_ollama_record("", len(texts)) + b"\n"]


def _openai_whole(texts: list[str]) -> bytes:
    message = {"index": 0, "message": {"role": "assistant", "content": "".join(texts)}, "finish_reason": "length"}
    usage = {"prompt_tokens": 20, "completion_tokens": len(texts), "total_tokens": 20 + len(texts)}
    return orjson.dumps({**_openai_head("chat.completion"), "choices": [message], "usage": usage})


def _openai_lines(texts: list[str]) -> list[bytes]:
    head = _openai_head("chat.completion.chunk")
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": text}, None) for text in texts]
    deltas.append(({}, "length"))
    choices = [[{"index": 0, "delta": delta, "finish_reason": reason}] for delta, reason in deltas]
    events = [b"data: " + orjson.dumps({**head, "choices": choice}) + b"\n\n" for choice in choices]
    return [*events, b"data: [DONE]\n\n"]


def _openai_head(kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_767_225_600, "model": MODEL}


def _listing(path: str) -> bytes:
    model = {"name": MODEL, "model": MODEL, "digest": _DIGEST, "size": 98_000_000}
    answers: dict[str, object] = {
        "/api/version": {"version": "0.24.0"},
        "/api/tags": {"models": [model]},
        "/api/ps": {"models": [{**model, "context_length": 4096}]},
        "/api/show": {"model_info": {}, "capabilities": ["completion"]},
        "/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
    }
    return framed(orjson.dumps(answers.get(path, {})))


@dataclass(slots=True)
class Habits:
    """What may change while it runs."""

    burst: int = 16
    asked: int = 0


@dataclass(slots=True, eq=False)
class Conversation(asyncio.Protocol):
    """One connection. Requests come one after the other; nothing is pipelined."""

    habits: Habits
    transport: asyncio.Transport | None = None
    received: bytes = b""
    rest: tuple[bytes, ...] = field(default=())
    at: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.received = self.received + data if self.received else data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.received[:end]
        length = _content_length(head)
        if len(self.received) < end + 4 + length:
            return
        body, self.received = self.received[end + 4 : end + 4 + length], b""
        self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, path: str, body: bytes) -> None:
        assert self.transport is not None
        self.habits.asked += 1
        if path.startswith("/_burst/"):
            self.habits.burst = int(path.removeprefix("/_burst/"))
        if path not in ("/api/chat", "/v1/chat/completions"):
            self.transport.write(_listing(path))
            return
        request = orjson.loads(body)
        asked = request.get("options", {}).get("num_predict") or request.get("max_tokens") or _DEFAULT_TOKENS
        answer = canned(path, int(asked))
        if not request.get("stream", path == "/api/chat"):
            self.transport.write(answer.whole)
            return
        self.rest, self.at = answer.lines, 0
        self._say(answer.head)

    def _say(self, before: bytes = b"") -> None:
        """The next burst; the others get their turn between two of them."""
        if self.transport is None:
            return
        burst = self.rest[self.at : self.at + self.habits.burst]
        self.at += len(burst)
        self.transport.write(before + b"".join(burst))
        if self.at < len(self.rest):
            asyncio.get_running_loop().call_soon(self._say)


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def serve(first_port: int, count: int, burst: int) -> None:
    loop = asyncio.get_running_loop()
    habits = Habits(burst)
    servers = [
        await loop.create_server(lambda: Conversation(habits), "127.0.0.1", first_port + index, backlog=4096)
        for index in range(count)
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rig.mock", description=__doc__)
    parser.add_argument("--port", type=int, default=21700, help="the first port; the others follow")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--burst", type=int, default=16, help="tokens in one write")
    arguments = parser.parse_args()
    import uvloop

    uvloop.run(serve(arguments.port, arguments.count, arguments.burst))


if __name__ == "__main__":
    main()
