"""A lab: a real adb server, fake daemons, a registry with probes, and the tracker between them.

The fixtures at its end are those of every test that has to do with adb: the `conftest.py`s there take them in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.adb.contacts import STEADY_SECONDS
from server.adb.server_link import ANSWER_SECONDS
from server.adb.tracker import AdbMode, AdbOptions, AdbTracker
from server.backends import Backends
from server.health import Health, ProbePace
from server.nodes import Node, NodeId, NodeSpec, NodeStatus
from server.registry import NodeListed, Registry
from tests.fakes.adb_server import RealAdbServer, real_adb_server
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone

LocalPorts = dict[str, list[int]]  # of forwards, by the serial of their transport
PATIENCE = 90.0  # of a test on a busy machine; what is promised in seconds is measured


@dataclass
class Lab:
    server: RealAdbServer
    registry: Registry
    tracker: AdbTracker

    def node(self, node_id: str) -> Node | None:
        return self.registry.node(NodeId(node_id))

    def is_ready(self, node_id: str) -> bool:
        node = self.node(node_id)
        return node is not None and node.status is NodeStatus.READY

    def ready(self) -> set[str]:
        return {node_id for node_id in self.registry.fleet.nodes if self.is_ready(node_id)}

    async def plug(self, *phones: FakeAdbd) -> None:
        for phone in phones:
            await self.server.link.connect(phone.address)

    def enter(self, spec: NodeSpec) -> None:
        self.registry.emit(NodeListed(spec, 0.0))

    async def local_ports(self) -> LocalPorts:
        return await local_ports(self.server)

    async def until_ports(self, fits: LocalPorts | Callable[[LocalPorts], bool], seconds: float = PATIENCE) -> None:
        await until_ports(self.server, fits, seconds)


async def until(true: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait for it; returns how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for happens in other programs
            await asyncio.sleep(0.01)
    return loop.time() - began


async def local_ports(server: RealAdbServer) -> LocalPorts:
    found: LocalPorts = {}
    for forward in await server.link.forwards():
        found.setdefault(forward.serial, []).append(forward.local_port)
    return found


async def until_ports(
    server: RealAdbServer, fits: LocalPorts | Callable[[LocalPorts], bool], seconds: float = PATIENCE
) -> None:
    """Wait until the server has these forwards, or such."""
    found: LocalPorts = {}
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = await local_ports(server)
                if fits(found) if callable(fits) else found == fits:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found} instead of {fits}") from None


@asynccontextmanager
async def following(
    registry: Registry,
    port: int,
    mode: AdbMode = "auto",
    *,
    probes: bool = True,
    pace: ProbePace | None = None,
    steady_seconds: float = STEADY_SECONDS,
    patience_seconds: float = ANSWER_SECONDS,
    **more: object,
) -> AsyncIterator[AdbTracker]:
    """Tracker and probes over the registry."""
    options = AdbOptions(mode, port=port, steady_seconds=steady_seconds, patience_seconds=patience_seconds)
    tracker = AdbTracker(registry, options, **more)
    backends = Backends({})
    health = Health(registry, backends, pace or ProbePace())
    loops = [tracker.run, health.run] if probes else [tracker.run]
    tasks = [asyncio.create_task(loop()) for loop in loops]
    try:
        yield tracker
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await backends.aclose()
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@asynccontextmanager
async def following_server(server: RealAdbServer, pace: ProbePace | None = None, **more: float) -> AsyncIterator[Lab]:
    registry = Registry()
    async with following(registry, server.port, pace=pace, **more) as tracker:
        yield Lab(server, registry, tracker)


@pytest.fixture(name="server")
async def server_fixture(tmp_path: Path) -> AsyncIterator[RealAdbServer]:
    async with real_adb_server(tmp_path) as made:
        yield made


@pytest.fixture(name="the_lab")
async def lab_fixture(server: RealAdbServer) -> AsyncIterator[Lab]:
    async with following_server(server) as made:
        yield made


@pytest.fixture(name="ollama")
async def ollama_fixture() -> AsyncIterator[FakePhone]:
    async with FakePhone() as phone:
        yield phone
