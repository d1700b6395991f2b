"""The gateway's application over a scripted dispatch: called as ASGI, or served on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvicorn

from server.api.access import Exposure, access_rules
from server.api.app import App, build_app
from server.api.incoming import Incoming
from server.api.services import Dispatch, OpenRequests, Services
from server.backends.base import Backend
from server.backends.operations import Operations
from server.errors import GatewayError, NodeUnreachable
from server.nodes import ModelCopy, NodeId, NodeKind, NodeSpec, ProbeReport, ResidentModel
from server.phones import Joining
from server.phones_file import FleetFileState
from server.phones_watch import FleetFile
from server.registry import NodeListed, NodeProbed, Registry
from server.settings import Settings
from tests.server.api.scripted_dispatch import ScriptedDispatch
from tests.server.api.scripted_operations import ScriptedOperations

MODEL = "qwen2.5:1.5b"


@dataclass
class Noted:
    """Takes the place of metrics and log, and keeps what they were told."""

    finished: list[tuple[str, int]] = field(default_factory=list)
    refusals: list[GatewayError] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)
    exposures: list[str] = field(default_factory=list)
    seen: list[Incoming] = field(default_factory=list)  # of what was refused

    def http_finished(self, route: str, status: int) -> None:
        self.finished.append((route, status))

    def exposition(self) -> tuple[bytes, bytes]:
        return b"text/plain; version=0.0.4; charset=utf-8", b"# no metrics\n"

    def refused(self, incoming: Incoming, error: GatewayError) -> None:
        self.refusals.append(error)
        self.seen.append(incoming)

    def failed(self, incoming: Incoming, error: BaseException) -> None:
        self.faults.append(error)


def spec(node_id: str = "kitchen", /, **changes: Any) -> NodeSpec:
    return replace(NodeSpec(NodeId(node_id), node_id, "ollama", "10.0.0.7", 11434), **changes)


def report(*models: str, **changes: Any) -> ProbeReport:
    copies = tuple(
        ModelCopy(name, digest=f"digest-{name}", size_bytes=1000, listing={"name": name, "model": name})
        for name in models or (MODEL,)
    )
    return replace(ProbeReport("0.24.0", copies, slots=1, renders=True), **changes)


def fleet(*nodes: tuple[NodeSpec, ProbeReport | None]) -> Registry:
    registry = Registry()
    for node, found in nodes or ((spec(), report(resident=(ResidentModel(MODEL, 4096),))),):
        registry.emit(NodeListed(node, 1_000.0))
        if found is not None:
            registry.emit(NodeProbed(node.id, found, 1_001.0))
    return registry


def wall() -> float:
    return 1_000.0


async def nobody_there(host: str, port: int) -> ProbeReport:
    raise NodeUnreachable(f"cannot connect to {host}:{port}")


@dataclass
class Gateway:
    """All parts of one application under test."""

    dispatch: Any
    noted: Noted
    services: Services
    app: App

    def answer(self, **changes: Any) -> ScriptedDispatch:
        assert isinstance(self.dispatch, ScriptedDispatch)
        return self.dispatch


def gateway(
    dispatch: Dispatch | None = None,
    registry: Registry | None = None,
    backends: Mapping[NodeKind, Backend] | None = None,
    fleet_file: FleetFileState | None = None,
    operations: Operations | None = None,
    joining: Joining | None = None,
    **settings: Any,
) -> Gateway:
    noted = Noted()
    values = Settings(**settings)
    used = dispatch or ScriptedDispatch()
    state = fleet_file or FleetFileState(Path("phones.json"), loaded_at=1_000.0)
    registry = registry or fleet()
    access = access_rules(values.api_keys, values.allowed_origins, values.allowed_hosts)
    services = Services(
        settings=values,
        access=access,
        exposure=Exposure(access.needs_key, noted.exposures.append),
        registry=registry,
        dispatch=used,
        backends=backends or {},
        operations=operations or ScriptedOperations(),
        joining=joining or Joining(registry, FleetFile(state.path, registry.emit, wall), nobody_there, wall),
        metrics=noted,
        log=noted,
        open_requests=OpenRequests(),
        fleet_file=lambda: state,
        started_at=1_000.0,
        loop_time=lambda: 50.0,
    )
    return Gateway(used, noted, services, build_app(services))


@dataclass
class Answer:
    """What one ASGI call sent."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def json(self) -> Any:
        return orjson.loads(self.body)

    def lines(self) -> list[Any]:
        return [orjson.loads(line) for line in self.body.splitlines()]

    def events(self) -> list[Any]:
        """Data of server-sent events; `[DONE]` as text."""
        found = []
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data: "):
                data = block.removeprefix("data: ")
                found.append(data if data == "[DONE]" else orjson.loads(data))
        return found


class Call:
    """One request as raw ASGI, so that a test decides when the client leaves."""

    def __init__(
        self,
        method: str,
        path: str,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        client: tuple[str, int] | None = ("127.0.0.1", 5000),
        server: tuple[str, int | None] | None = ("127.0.0.1", 8000),
        pieces: list[bytes] | None = None,
    ) -> None:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        given = {"host": "127.0.0.1:8000", **(headers or {})}
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": client,
            "server": server,
        }
        self._pieces = pieces if pieces is not None else [raw]
        self.gone = asyncio.Event()
        self.told = asyncio.Event()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.complete = False

    async def receive(self) -> dict[str, Any]:
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "two responses"
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            assert self.status, "a body before its status"
            assert not self.complete, "a body after its end"
            if message.get("body"):
                self.pieces.append(message["body"])
                self.told.set()
            self.complete = not message.get("more_body", False)

    async def run(self, app: App) -> Answer:
        await app(self.scope, self.receive, self.send)
        headers = {name.decode(): value.decode("latin-1") for name, value in self.headers}
        return Answer(self.status, headers, self.pieces)


async def ask(app: App, method: str, path: str, body: Any = b"", **more: Any) -> Answer:
    return await Call(method, path, body, **more).run(app)


async def post(app: App, path: str, body: Any, **more: Any) -> Answer:
    return await ask(app, "POST", path, body, **more)


async def get(app: App, path: str, **more: Any) -> Answer:
    return await ask(app, "GET", path, **more)


@contextlib.asynccontextmanager
async def served(app: Any, **config: Any) -> AsyncIterator[str]:
    """The application behind a real uvicorn; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _QuietServer(
        uvicorn.Config(app, lifespan="off", log_config=None, log_level="error", http="httptools", **config)
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield address
    finally:
        server.should_exit = True
        await task
        listener.close()


async def until(predicate: Callable[[], Any]) -> None:
    """Let others run until it is so; what another process or socket has to do takes real time."""
    for turn in range(12_000):
        if predicate():
            return
        await asyncio.sleep(0 if turn < 200 else 0.005)
    raise AssertionError("it did not come about")


class _QuietServer(uvicorn.Server):
    """Leaves the test process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def client(app: Any, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with served(app) as address, httpx.AsyncClient(base_url=address, **more) as http:
        yield http
