"""A tiny real HTTP server on loopback that does as it is told: whole answers, chunks, cuts, resets and pauses.

It runs in a thread, so that the blocking client and other processes can be tested against real sockets. Every
connection serves one request; what was asked is kept in `requests`.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.fakes.ports import free_port


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Exchange:
    """One request and the socket to answer it on. `left` is set once the client has gone."""

    asked: Asked
    connection: socket.socket
    stop: threading.Event
    left: threading.Event = field(default_factory=threading.Event)

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)

    def begin(self, content_type: str = "application/x-ndjson") -> None:
        self.connection.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n"
            "Connection: close\r\n\r\n".encode()
        )

    def chunk(self, data: bytes) -> None:
        self.connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def record(self, *records: dict[str, Any]) -> None:
        for record in records:
            self.chunk(json.dumps(record).encode() + b"\n")

    def end(self) -> None:
        self.connection.sendall(b"0\r\n\r\n")

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def wait_until_left(self) -> None:
        """Say nothing more until the client closes (or the test is over)."""
        while not self.stop.is_set():
            try:
                if self.connection.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            return
        self.left.set()


Respond = Callable[[Exchange], None]


class Loopback:
    """`Loopback(respond)` in a `with` block; `url` is where it listens, `exchanges` what happened."""

    def __init__(self, respond: Respond, port: int | None = None) -> None:
        self.respond = respond
        self.exchanges: list[Exchange] = []
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port or free_port()))
        self._listener.settimeout(0.05)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As if the server were killed; its port is free then."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._listener.close()

    @property
    def requests(self) -> list[Asked]:
        return [exchange.asked for exchange in self.exchanges]

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(0.05)
            asked = self._read(connection)
            if asked is None:
                return
            connection.settimeout(10)
            exchange = Exchange(asked, connection, self._stop)
            self.exchanges.append(exchange)
            connection.settimeout(0.05)
            try:
                self.respond(exchange)
            except OSError:  # the client went while it was being answered
                exchange.left.set()

    def _read(self, connection: socket.socket) -> Asked | None:
        data = b""
        while b"\r\n\r\n" not in data or len(data) < _whole_length(data):
            if self._stop.is_set():
                return None
            try:
                received = connection.recv(65536)
            except TimeoutError:
                continue
            if not received:
                return None
            data += received
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        return Asked(method, path, _headers(lines), body)


def _whole_length(data: bytes) -> int:
    head, _, _ = data.partition(b"\r\n\r\n")
    headers = _headers(head.decode("latin-1").split("\r\n")[1:])
    return len(head) + 4 + int(headers.get("content-length", "0"))


def _headers(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in lines)
    return {name.strip().lower(): value.strip() for name, value in pairs}


def tell(*tokens: str, done: dict[str, Any] | None = None) -> Respond:
    """A whole stream: these tokens, then the last record."""

    def respond(exchange: Exchange) -> None:
        exchange.begin()
        exchange.record(*({"token": token} for token in tokens), done or DONE)
        exchange.end()

    return respond


DONE: dict[str, Any] = {
    "done": True,
    "model": "qwen2.5:0.5b",
    "node": "pixel-3",
    "cached": False,
    "usage": {"prompt_tokens": 12, "completion_tokens": 3},
    "timings_ms": {"queue": 1.5, "first_token": 240.0, "total": 900.0},
    "tokens_per_second": 9.5,
    "attempts": 1,
    "nodes": [{"node": "pixel-3", "tokens": 3, "way": "first"}],
    "done_reason": "stop",
}
ANSWER: dict[str, Any] = {
    "response": "Paris is nice",
    **{name: value for name, value in DONE.items() if name != "done"},
}


def node(name: str, /, **facts: Any) -> dict[str, Any]:
    """A node as /health shows it."""
    return {
        "id": name,
        "name": name,
        "kind": "ollama",
        "address": "192.168.1.20:11434",
        "status": "ready",
        "breaker": "closed",
        "models": ["qwen2.5:0.5b", "smollm2:135m"],
        "resident": ["qwen2.5:0.5b"],
        "held_conversations": 2,
        "in_flight": 1,
        "slots": 4,
        "tokens_per_second": 9.5,
        "prompt_tokens_per_second": 31.0,
        "last_error": None,
        "since": "2026-01-02T03:04:05Z",
        "weight": 1.0,
        "answered": 20,
        "failed": 1,
        **facts,
    }


def health(*nodes: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {
        "status": "ok",
        "version": "0.1.0",
        "uptime_s": 90061.0,
        "fleet_file": {"path": "phones.json"},
        "queue": {"waiting": 3, "limit": 1024, "callers": {"ann": 2, "127.0.0.1": 1}},
        "cache": {"enabled": True, "entries": 5, "bytes": 900, "hits": 3, "misses": 6, "joined": 1},
        "nodes": list(nodes),
        **facts,
    }
