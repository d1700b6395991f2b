"""Which phones are read when, and that one which does not answer is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.adb.care_reader import READ_SECONDS, CareReader
from server.adb.server_link import ServerLink
from server.adb.states import Transport
from server.clock import Clock
from server.errors import AdbError
from server.nodes import NodeId
from server.registry import NodeCondition, RegistryEvent
from tests.server.api.gateway import until

SAID = {"dumpsys battery": "  level: 42\n  scale: 100\n", "dumpsys thermalservice": "Thermal Status: 2\n"}


class PlayedLink(ServerLink):
    """Phones that answer, but those in `dead`."""

    def __init__(self) -> None:
        super().__init__()
        self.dead: set[str] = set()
        self.asked: list[str] = []
        self.hanging: set[str] = set()

    async def shell(self, transport: Transport, command: str) -> str:
        self.asked.append(transport.serial)
        if transport.serial in self.hanging:
            await asyncio.Event().wait()
        if transport.serial in self.dead:
            raise AdbError("no answer")
        return SAID[command]


class Ward:
    def __init__(self, **more: float) -> None:
        self.link, self.told = PlayedLink(), list[RegistryEvent]()
        self.watched = {NodeId("a"): Transport("A", "device", number=1)}
        self.now = 1000.0
        clock = Clock(lambda: self.now, lambda: 7.0)
        self.reader = CareReader(self.link, lambda: dict(self.watched), self.told.append, clock, **more)

    async def look(self) -> None:
        """Once more, and to its end."""
        self.reader.soon()
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def ward(**more: float) -> AsyncIterator[Ward]:
    made = Ward(**more)
    task = asyncio.create_task(made.reader.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_new_phone_is_read_at_once_and_then_every_half_minute() -> None:
    async with ward() as played:
        await until(lambda: len(played.told) == 2)
        battery, heat = played.told
        assert isinstance(battery, NodeCondition) and isinstance(heat, NodeCondition)
        assert (battery.id, battery.condition.level, battery.now) == ("a", 42.0, 7.0)
        assert heat.condition.thermal_status == 2
        await played.look()
        assert len(played.told) == 2
        played.now += READ_SECONDS
        await played.look()
        assert len(played.told) == 4


async def test_the_owner_may_have_phones_read_more_often() -> None:
    async with ward(seconds=2.0) as played:
        await until(lambda: len(played.told) == 2)
        played.now += 2.0
        await played.look()
        assert len(played.told) == 4


async def test_a_phone_that_came_back_is_read_again() -> None:
    async with ward() as played:
        await until(lambda: len(played.told) == 2)
        played.watched[NodeId("a")] = Transport("A", "device", number=2)
        await played.look()
        assert len(played.told) == 4


async def test_one_that_does_not_answer_is_passed_over() -> None:
    async with ward() as played:
        played.link.dead = {"A"}
        played.watched[NodeId("b")] = Transport("B", "device", number=3)
        await played.look()
        assert {event.id for event in played.told if isinstance(event, NodeCondition)} == {"b"}
        assert "A" in played.link.asked
        assert played.link.asked.count("A") == 1, "who does not tell its battery is not asked for its heat"


async def test_a_phone_that_hangs_holds_up_nobody_else() -> None:
    async with ward() as played:
        played.link.hanging = {"A"}
        await played.look()
        played.watched[NodeId("b")] = Transport("B", "device", number=3)
        await played.look()
        assert [event.id for event in played.told if isinstance(event, NodeCondition)] == ["b", "b"]
        played.now += READ_SECONDS
        await played.look()
        assert len(played.told) == 4
        assert played.link.asked.count("A") == 1, "its first reading has not ended"
