"""Reads battery and heat of the phones that are reached through adb and tells the registry `NodeCondition`.

Parses nothing itself (`server.care` does) and decides nothing. A phone that does not answer is passed over: its last
reading grows old, and probes find out whether it is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.adb.server_link import ServerLink
from server.adb.states import Transport
from server.care import Condition, parse_dumpsys_battery, parse_dumpsys_thermal
from server.clock import Clock
from server.errors import AdbError
from server.nodes import NodeId
from server.registry import NodeCondition, RegistryEvent

READ_SECONDS = 30.0
AT_ONCE = 8  # phones; a hub's bandwidth is for answers

Watched = Callable[[], dict[NodeId, Transport]]  # the phones to read now, by the node that they are


class CareReader:
    """Run `run` as a task; `soon` reads at once those that were not read yet."""

    def __init__(
        self,
        link: ServerLink,
        watched: Watched,
        emit: Callable[[RegistryEvent], None],
        clock: Clock,
        seconds: float = READ_SECONDS,
    ) -> None:
        self._seconds = seconds
        self._link, self._watched, self._emit, self._clock = link, watched, emit, clock
        self._places = asyncio.Semaphore(AT_ONCE)
        self._read_at: dict[NodeId, tuple[Transport, float]] = {}
        self._reading: set[NodeId] = set()
        self._news = asyncio.Event()

    def soon(self) -> None:
        self._news.set()

    async def run(self) -> None:
        """Read until cancelled. Nobody waits for the readings of others: a dead phone takes its time to be so."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._news.clear()
                for node, transport in self._due().items():
                    self._reading.add(node)
                    task = tasks.create_task(self._read(node, transport))
                    task.add_done_callback(lambda _, node=node: self._reading.discard(node))  # type: ignore[misc]
                try:
                    async with asyncio.timeout(self._seconds / 4):
                        await self._news.wait()
                except TimeoutError:
                    continue

    def _due(self) -> dict[NodeId, Transport]:
        now, watched = self._clock.monotonic(), self._watched()
        read = {node: at for node, at in self._read_at.items() if node in watched and at[0] == watched[node]}
        due = {
            node: way
            for node, way in watched.items()
            if node not in self._reading and (node not in read or now - read[node][1] >= self._seconds)
        }
        self._read_at = {**read, **{node: (way, now) for node, way in due.items()}}
        return due

    async def _read(self, node: NodeId, transport: Transport) -> None:
        async with self._places:
            if await self._tell(node, transport, "dumpsys battery", parse_dumpsys_battery):
                await self._tell(node, transport, "dumpsys thermalservice", parse_dumpsys_thermal)

    async def _tell(
        self, node: NodeId, transport: Transport, command: str, parse: Callable[[str, float], Condition]
    ) -> bool:
        """Did the phone answer at all?"""
        try:
            said = await self._link.shell(transport, command)
        except AdbError:
            return False
        now = self._clock.wall()
        self._emit(NodeCondition(node, parse(said, now), now))
        return True
