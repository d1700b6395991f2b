"""Whom the tracker knows: asked once for each connection, again and again until they answer, forgotten when they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.adb.acquaintances import ADDRESS_SECONDS, ASK_SECONDS, ASKS_IN_A_HURRY, PATIENT_ASK_SECONDS, Acquaintances
from server.adb.server_link import ServerLink
from server.adb.states import ADDRESSES, Facts, Transport
from server.errors import AdbError, AdbServerGone
from tests.fakes.manual_clock import ManualClock

ONE, TWO = Transport("S1", "device", number=1), Transport("S2", "device", number=2)
WHOLE = "{}\nPixel\n14\n\nchip\nhw\n"


class PlayedLink(ServerLink):
    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, str | AdbError] = {}
        self.versions: dict[str, str | AdbError] = {}
        self.asked: list[str] = []
        self.addresses: str | AdbError = ""

    async def shell(self, transport: Transport, command: str) -> str:
        if command == ADDRESSES:
            return _told(self.addresses)
        self.asked.append(f"who {transport.serial}")
        return _told(self.said.get(transport.serial, WHOLE.format(transport.serial)))

    async def serves(self, transport: Transport, port: int) -> str | None:
        self.asked.append(f"serves {transport.serial}")
        return _told(self.versions[transport.serial]) if transport.serial in self.versions else None


def _told(answer: str | AdbError) -> str:
    if isinstance(answer, AdbError):
        raise answer
    return answer


class World:
    def __init__(self) -> None:
        self.clock, self.link, self.news = ManualClock(), PlayedLink(), 0
        self.known = Acquaintances(self.link, self.clock.clock, self._heard)

    def _heard(self) -> None:
        self.news += 1


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    try:
        yield made
    finally:
        await made.known.part()


async def test_who_is_met_is_asked_once_and_known_until_it_leaves() -> None:
    async with world() as played:
        played.link.versions["S1"] = "0.31.1"
        played.known.meet((ONE, Transport("S3", "offline", number=3)))
        await played.clock.settle()
        assert played.known.facts == {ONE.key: Facts("S1", "Pixel", "14", "chip")}
        assert played.known.serving == {ONE.key: "0.31.1"} and played.news == 2
        met = played.known.of(ONE)
        played.known.meet((ONE, TWO))
        await played.clock.settle()
        assert played.known.of(ONE) is met and played.link.asked.count("who S1") == 1
        again = Transport("S1", "device", number=9)
        played.known.meet((again,))
        assert played.known.facts == played.known.serving == {} and played.known.of(TWO) is None
        assert played.known.of(again) is not met


async def test_a_phone_that_cannot_be_asked_is_asked_each_second_whatever_the_reason() -> None:
    async with world() as played:
        played.link.said["S1"] = AdbServerGone("one connection broke")
        played.known.meet((ONE,))
        await played.clock.advance(3 * ASK_SECONDS)
        assert len(played.link.asked) >= 3 and not played.known.facts
        played.link.said.clear()
        played.link.versions["S1"] = AdbServerGone("and another")
        await played.clock.advance(2 * ASK_SECONDS)
        assert played.known.facts and not played.known.serving
        played.link.versions["S1"] = ""
        await played.clock.advance(ASK_SECONDS)
        assert played.known.serving == {ONE.key: ""}


async def test_half_an_answer_is_not_taken_and_three_of_them_are_all_there_is() -> None:
    async with world() as played:
        played.link.said["S1"] = "S1"
        played.known.meet((ONE,))
        await played.clock.advance(1.5 * ASK_SECONDS)
        assert not played.known.facts
        await played.clock.advance(ASK_SECONDS)
        assert played.known.facts == {ONE.key: Facts("S1")}


async def test_somebodys_own_phone_is_asked_more_and_more_patiently_whether_it_serves() -> None:
    async with world() as played:
        played.known.meet((ONE,))
        await played.clock.advance(ASKS_IN_A_HURRY * ASK_SECONDS)
        before = played.link.asked.count("serves S1")
        await played.clock.advance(10 * PATIENT_ASK_SECONDS)
        assert played.link.asked.count("serves S1") - before in (9, 10, 11)


async def test_one_phone_that_never_answers_keeps_nobody_waiting() -> None:
    class Hanging(PlayedLink):
        async def shell(self, transport: Transport, command: str) -> str:
            if transport == ONE:
                await asyncio.get_running_loop().create_future()
            return await super().shell(transport, command)

    async with world() as played:
        played.known = Acquaintances(Hanging(), played.clock.clock, lambda: None)
        played.known.meet((ONE, TWO))
        await played.clock.settle()
        assert set(played.known.facts) == {TWO.key}
        await played.known.part()
        assert played.known.of(ONE) is None


async def test_a_phone_that_serves_is_asked_for_its_addresses_now_and_then() -> None:
    async with world() as played:
        played.link.versions["S1"] = "0.31.1"
        played.known.meet((ONE,))
        await played.clock.settle()
        for said, wanted in (
            ("30: wlan0    inet 192.168.1.7/24 scope global\n", ("192.168.1.7",)),
            ("", ("192.168.1.7",)),  # it said nothing, which is no news
            (AdbError("no answer"), ("192.168.1.7",)),
            ("1: lo    inet 127.0.0.1/8 scope host lo\n", ()),
        ):
            played.link.addresses = said
            await played.clock.advance(ADDRESS_SECONDS)
            assert played.known.facts[ONE.key].addresses == wanted
        assert played.news == 4  # who it is, that it serves, that it came into a network and left it
