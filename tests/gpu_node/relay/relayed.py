"""A relay over loopback for tests: scripted models, or a real engine over a scripted or a tiny one; and clients."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gpu_node.device_fleet import DeviceFleet
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.guide import guides_of
from gpu_node.engine.step import ModelRunner
from gpu_node.host import HostedEngine, ModelHost, Stay
from gpu_node.listening import bind
from gpu_node.load_wish import LoadWish
from gpu_node.model_source import HubSource, ModelSource
from gpu_node.relay.assembly import RelayParts, relay_of
from gpu_node.relay.call import Handlers
from gpu_node.relay.presence import SessionTerms
from gpu_node.relay.server import RelayServer, ServerLimits
from gpu_node.relay.sessions import ClientSession, Sessions, Times
from gpu_node.relay_descriptions import description_of
from gpu_node.residents import Residents, Start
from gpu_node.vram import Account
from tests.gpu_node.serving import DESCRIPTION, NAME, Files, Fleet, Model, ScriptedCatalog, until_true
from transport.errors import TransportError
from transport.link import Caller, Link, connect
from transport.places import Access, Place
from transport.streams import Stream
from wire.frames import FrameType
from wire.handshake import ServerTerms
from wire.messages import Message
from wire.messages_work import Done, Generate, Progress, TextPrompt, Tokens

TOKEN = "a long random token"


class Alarm:
    """A clock that stands still until it is moved, and the callbacks that wait for it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._waiting: list[tuple[float, list[Callable[[], None]]]] = []

    @property
    def times(self) -> Times:
        return Times(lambda: self.now, self._after)

    @property
    def waiting(self) -> int:
        return sum(bool(callbacks) for _, callbacks in self._waiting)

    def _after(self, seconds: float, callback: Callable[[], None]) -> Any:
        entry = (self.now + seconds, [callback])
        self._waiting.append(entry)
        return type("Entry", (), {"cancel": lambda _: entry[1].clear()})()

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [callbacks for at, callbacks in self._waiting if at <= self.now]
        self._waiting = [(at, callbacks) for at, callbacks in self._waiting if at > self.now and callbacks]
        for callbacks in due:
            for callback in list(callbacks):
                callback()
        for _ in range(20):
            await asyncio.sleep(0)


@dataclass
class Relayed:
    server: RelayServer
    residents: Residents
    sessions: Sessions
    port: int
    token: str | None = None
    links: list[Link] = field(default_factory=list)

    async def connect(self, key: bytes = b"", name: str = "tester", **access: Any) -> Link:
        terms = Access(**{"token": self.token, **access})
        link = await connect(Place("127.0.0.1", self.port), terms, Caller(name, key))
        self.links.append(link)
        return link

    def session(self, link: Link) -> ClientSession:
        return next(one for one in self.sessions.all if one.key == link.welcome.session_key)

    @property
    def host(self) -> ModelHost:
        return self.residents.main

    async def cut(self, link: Link) -> None:
        """The connection breaks; returns when the node knows."""
        session = self.session(link)
        link.cut("a test has cut it")
        await link.wait_closed()
        await until_true(lambda: session.connection is None)


@asynccontextmanager
async def relayed(
    residents: Residents,
    catalog: ScriptedCatalog,
    *,
    token: str | None = None,
    terms: SessionTerms | None = None,
    limits: ServerLimits | None = None,
    tls: ssl.SSLContext | None = None,
    more: Handlers | None = None,
    times: Times | None = None,
    greeting_seconds: float = 10.0,
    devices: DeviceFleet | None = None,
) -> AsyncIterator[Relayed]:
    parts = RelayParts(
        residents, catalog, ServerTerms("node", token, node_id=bytes(16), incarnation=7), description_of,
        sessions=terms or SessionTerms(), limits=limits or ServerLimits(), tls=tls, more=more or {},
        times=times or Times(), greeting_seconds=greeting_seconds, fleet=devices,
    )  # fmt: skip
    server = relay_of(parts)
    listener = bind("127.0.0.1", 0)
    server.start([listener])
    here = Relayed(server, residents, server.sessions, listener.getsockname()[1], token)
    try:
        yield here
    finally:
        for link in here.links:
            link.cut("the test is over")
            await link.wait_closed()
        await server.close()
        assert await residents.close()
        assert server.figures.sessions == server.figures.connections == server.figures.streams == 0


@asynccontextmanager
async def scripted(fleet: Fleet | None = None, **options: Any) -> AsyncIterator[tuple[Relayed, Fleet]]:
    """Models that answer from a script."""
    fleet = fleet or Fleet()
    residents = fleet.residents()
    await residents.start()
    async with relayed(residents, ScriptedCatalog(fleet.models), **options) as here:
        try:
            yield here, fleet
        finally:
            for script in fleet.scripts.values():
                script.go_on.set()
                script.load_gate.set()


@asynccontextmanager
async def real(make: Callable[[], ModelRunner], **options: Any) -> AsyncIterator[Relayed]:
    """The real engine over the runner that `make` gives."""
    wish = LoadWish(max_running=8, kv_blocks=64)

    def build(source: ModelSource, wish: LoadWish) -> ModelHost:
        def engine(load: Callable[[], ModelRunner], wish: LoadWish) -> HostedEngine:
            return Engine(load, options=EngineOptions(max_running=8), guides=guides_of)

        files: Any = Files(DESCRIPTION, lambda _: make())  # type: ignore[arg-type, return-value]
        return ModelHost((NAME,), files, engine, wish, Stay())

    catalog = ScriptedCatalog((Model(NAME),))
    residents = Residents(Start(HubSource(NAME), wish), catalog, build, (Account("cpu", 10**12),))
    await residents.start()
    async with relayed(residents, catalog, **options) as here:
        yield here


# What a client does


def generate(prompt: str = "hi", **fields: Any) -> Generate:
    return Generate(NAME, TextPrompt(prompt), **fields)


@dataclass
class Heard:
    """An answer, as far as it has come."""

    tokens: list[Tokens] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    done: Done | None = None

    def text(self, sample: int = 0) -> str:
        return "".join(one.text for one in self.tokens if one.sample == sample)

    def ids(self, sample: int = 0) -> list[int]:
        return [number for one in self.tokens if one.sample == sample for number in one.ids]

    @property
    def next_index(self) -> int:
        return self.tokens[-1].index + 1 if self.tokens else 0

    def add(self, message: Message) -> None:
        match message:
            case Tokens():
                assert message.index == self.next_index or not self.tokens, "a frame is missing or came twice"
                self.tokens.append(message)
            case Progress():
                self.progress.append(message)
            case Done():
                self.done = message
            case _:
                raise AssertionError(f"{message} is no answer")


async def hear(stream: Stream, heard: Heard | None = None, most: int | None = None) -> Heard:
    """Until the end, or so many TOKENS. Raises what the stream raises."""
    heard = heard if heard is not None else Heard()
    left = most
    while heard.done is None and left != 0:
        message = await stream.message()
        heard.add(message)
        if left is not None and isinstance(message, Tokens):
            left -= 1
    return heard


async def answer(link: Link, request: Generate) -> Heard:
    return await hear(await link.open(request))


async def failure(link: Link, message: Message) -> TransportError:
    """What the request ends with, which is no answer."""
    stream = await link.open(message)
    try:
        while True:
            await stream.message()
    except TransportError as error:
        return error


__all__ = [
    "NAME", "TOKEN", "Alarm", "FrameType", "Heard", "Relayed", "answer", "failure", "generate", "hear", "real",
    "relayed", "scripted", "until_true",
]  # fmt: skip
