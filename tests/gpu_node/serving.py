"""The node's application with scripted models: called directly, or behind a real HTTP server on a free port.

Directly is quicker, and an answer comes in one piece; framing, clients that leave and stopping want the real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
from starlette.types import ASGIApp

from gpu_node.api.access import AccessRules, rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.catalog import Entry
from gpu_node.device_fleet import DeviceFleet
from gpu_node.engine.step import ModelRunner
from gpu_node.host import HostedEngine, ModelFiles, ModelHost, Progress, Stay
from gpu_node.inventory import Gpu, Machine
from gpu_node.listening import Server, bind
from gpu_node.load_wish import LoadWish
from gpu_node.model_folder import ModelDescription, Tensor
from gpu_node.model_source import HubSource, ModelSource
from gpu_node.names import same_model
from gpu_node.residents import Residents, Start
from gpu_node.vram import Account
from tests.gpu_node.scripted import Script, ScriptedEngine, ScriptedRunner

NAME = "smollm2:135m"
PATIENCE_SECONDS = 60.0  # of a test on a busy machine
SLOTS = 2
WISH = LoadWish(max_running=SLOTS, kv_bytes=100)
DESCRIPTION = ModelDescription(
    family="llama",
    digest="d" * 64,
    size_bytes=98_363_007,
    quantisation="Q4_1",
    context_length=4096,
    embedding_length=576,
    modified_at=1_700_000_000.0,
    template="{{ messages }}",
    config={"num_attention_heads": 9, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2},
    tokenizer={},
    tensors=(Tensor("w", "BF16", (134_515_008,)),),
    licence="Apache-2.0",
    parameters={"temperature": 0.2, "stop": ["<end>"]},
)
MACHINE = Machine("here", "a processor", 4, 2, 16_000, 8_000, (0.5, 0.25, 0.125))
GPU = Gpu(0, "GPU-1", "a GPU", 24_000, 20_000, 10, 40)


@dataclass
class Files:
    """A model that is there at once, unless `gate` says otherwise."""

    description: ModelDescription
    runner: Callable[[LoadWish], ScriptedRunner]
    error: Exception | None = None
    wishes: list[LoadWish] = field(default_factory=list)

    async def prepare(self) -> ModelDescription:
        if self.error is not None:
            raise self.error
        return self.description

    def load(self, description: ModelDescription, wish: LoadWish, progress: Progress) -> ModelRunner:
        assert description is self.description
        self.wishes.append(wish)
        progress(7, 10)
        return self.runner(wish)


@dataclass(frozen=True)
class Model:
    """One that the scripted node knows: with so many parameters it needs twice as many bytes, and its cache."""

    name: str
    parameters: int = 500
    description: ModelDescription = DESCRIPTION

    @property
    def described(self) -> ModelDescription:
        if self.description is not DESCRIPTION or self.name == NAME:
            return self.description
        tensors = (Tensor("w", "BF16", (self.parameters,)),)
        return replace(self.description, tensors=tensors, parameters={}, size_bytes=self.parameters * 2)


class ScriptedCatalog:
    def __init__(self, models: Sequence[Model]) -> None:
        self._models = models

    def find(self, name: str) -> ModelSource | None:
        return next((HubSource(one.name) for one in self._models if same_model(one.name, name)), None)

    def find_fetchable(self, name: str) -> ModelSource | None:
        return self.find(name) or (HubSource(name) if "/" in name else None)

    def sources(self) -> list[ModelSource]:
        return [HubSource(one.name) for one in self._models]

    def entries(self) -> list[Entry]:
        return [Entry(one.name, HubSource(one.name), one.described) for one in self._models]


@dataclass
class Fleet:
    """Residents over scripted engines: one script for each model by name."""

    models: Sequence[Model] = (Model(NAME),)
    budget: int = 10**12
    keep_alive: float = 300.0
    max_waiting: int = 8
    clock: Callable[[], float] = lambda: 0.0
    wish: LoadWish = WISH
    scripts: dict[str, Script] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)
    accounts: Sequence[Account] = ()

    def script(self, name: str) -> Script:
        return self.scripts.setdefault(name, Script())

    def residents(self) -> Residents:
        first = HubSource(self.models[0].name)
        accounts = self.accounts or (Account("cpu", self.budget),)
        return Residents(Start(first, self.wish), ScriptedCatalog(self.models), self.build, accounts)

    def build(self, source: ModelSource, wish: LoadWish) -> ModelHost:
        named = source.name
        model = next((one for one in self.models if one.name == named), Model(named))

        def runner(wish: LoadWish) -> ScriptedRunner:
            device = "cuda:0" if wish.device == "cuda" else "cpu"
            return ScriptedRunner(model.described.parameter_count * 2, blocks=1024, device=device)

        def engine(load: Callable[[], ModelRunner], wish: LoadWish) -> HostedEngine:
            return ScriptedEngine(load, self.script(named), wish.max_running)

        files: ModelFiles = self.files.setdefault(named, Files(model.described, runner))
        names = (named, "smollm2", "default") if model is self.models[0] else (named,)
        return ModelHost(names, files, engine, wish, Stay(self.keep_alive, self.max_waiting, self.clock))


@dataclass
class Served:
    residents: Residents
    script: Script
    client: httpx.AsyncClient
    fleet: Fleet
    port: int = 0
    server: Server | None = None

    def stop(self) -> None:
        assert self.server is not None, "only a real server can be stopped"
        self.server.stop()

    @property
    def host(self) -> ModelHost:
        return self.residents.main

    async def post(self, path: str, **body: object) -> httpx.Response:
        return await self.client.post(path, json={"model": NAME, **body})

    async def until_free(self) -> None:
        await until_true(lambda: not self.host.slots.busy)


async def until_true(condition: Callable[[], bool]) -> None:
    """Looks again and again; the time only bounds a failure."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never became true"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(
    script: Script | None = None,
    rules: AccessRules | None = None,
    max_body_bytes: int = 1 << 16,
    loaded: bool = True,
    fleet: Fleet | None = None,
    real: bool = False,
    devices: DeviceFleet | None = None,
) -> AsyncIterator[Served]:
    """`devices` are those that models are split over."""
    fleet = fleet or Fleet()
    if script is not None:
        fleet.scripts[NAME] = script
    residents = fleet.residents()
    if loaded:
        await residents.start()
    service = Service(
        residents, ScriptedCatalog(fleet.models), max_body_bytes, lambda: 0.0, lambda: MACHINE, lambda: (GPU,),
        fleet=devices,
    )  # fmt: skip
    app = build_app(service, rules or rules_of((), (), ()))
    async with listening(app, residents.stop) if real else direct(app) as (client, port, server):
        try:
            yield Served(residents, fleet.script(NAME), client, fleet, port, server)
        finally:
            for one in fleet.scripts.values():
                one.go_on.set()
                one.load_gate.set()
    assert await residents.close()


@asynccontextmanager
async def direct(app: ASGIApp) -> AsyncIterator[tuple[httpx.AsyncClient, int, None]]:
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        yield client, 0, None


@asynccontextmanager
async def listening(app: ASGIApp, stop: Callable[[], None]) -> AsyncIterator[tuple[httpx.AsyncClient, int, Server]]:
    ports: list[int] = []
    server = Server(app, on_listening=lambda _, port: ports.append(port), on_stop=stop)
    with bind("127.0.0.1", 0) as listener:
        task = asyncio.create_task(server.serve([listener]))
        await until_true(lambda: bool(ports) or task.done())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}", timeout=60) as client:
            yield client, ports[0], server
        server.stop()
        await task
