"""Fifty phones that come and go at random, and an adb server that dies among them: nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest

from server.adb.ports import CHOICES, preferred_port
from server.health import ProbePace
from tests.fakes.adb_server import RealAdbServer
from tests.fakes.adbd import FakeAdbd
from tests.fakes.phone import FakePhone
from tests.fakes.ports import lab_serials
from tests.server.adb.lab import Lab, following_server, until

PHONES, ROUNDS, AT_ONCE = 50, 4, 20
# All of them, the tracker and the probes share one loop here: on a busy machine fifty answers at once take longer than
# one phone may, and who is asked again meanwhile adds to it.
PATIENCE_SECONDS = 60.0
PACE = ProbePace(timeout_seconds=PATIENCE_SECONDS)
ALL_SECONDS = 240.0  # until each of them is ready, and until nothing is left


async def flap(phone: FakeAdbd, draw: random.Random) -> None:
    """One of the things that happen to phones."""
    match draw.choice(["contact lost", "daemon restarted", "silent for a moment", "twice in a row"]):
        case "contact lost":
            await phone.unplug()
        case "daemon restarted":
            await phone.die()
            await asyncio.sleep(draw.random() * 0.05)
            await phone.start()
        case "silent for a moment":
            phone.silence()
            await asyncio.sleep(draw.random() * 0.05)
            phone.heal()
        case "twice in a row":
            await asyncio.gather(phone.unplug(), phone.unplug())
            await phone.unplug()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [7])
async def test_fifty_phones_that_come_and_go_leave_nothing_behind(
    server: RealAdbServer, ollama: FakePhone, seed: int
) -> None:
    draw = random.Random(seed)
    async with following_server(server, PACE, steady_seconds=0.5, patience_seconds=PATIENCE_SECONDS) as the_lab:
        await until(lambda: the_lab.tracker.server_problem is None)
        tasks, opened = len(asyncio.all_tasks()), descriptors()
        phones = [FakeAdbd(serial, ports={11434: ollama.port}) for serial in lab_serials(PHONES)]
        async with contextlib.AsyncExitStack() as plugged:
            for phone in phones:
                await plugged.enter_async_context(phone)
            await the_lab.plug(*phones)
            await until(lambda: len(the_lab.ready()) == PHONES, ALL_SECONDS)
            await come_and_go(the_lab, phones, draw)
            await the_lab.plug(*phones)  # those that the new server does not know, those that it has given up
            await until(lambda: len(the_lab.ready()) == PHONES, ALL_SECONDS)
            await until_one_forward_each(the_lab, phones)
        await until(lambda: not the_lab.registry.fleet.nodes, ALL_SECONDS)
        await the_lab.until_ports({})
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: descriptors() <= opened)


async def test_a_gateway_that_ends_before_its_phones_takes_its_forwards_away(
    server: RealAdbServer, ollama: FakePhone
) -> None:
    async with contextlib.AsyncExitStack() as plugged:
        ports = {11434: ollama.port}
        phones = [await plugged.enter_async_context(FakeAdbd(serial, ports=ports)) for serial in lab_serials(10)]
        async with following_server(server, PACE, patience_seconds=PATIENCE_SECONDS) as the_lab:
            await the_lab.plug(*phones)
            await until(lambda: len(the_lab.ready()) == len(phones))
            await until_one_forward_each(the_lab, phones)
        assert await server.link.forwards() == ()


async def come_and_go(the_lab: Lab, phones: list[FakeAdbd], draw: random.Random) -> None:
    for number in range(ROUNDS):
        await asyncio.gather(*(flap(phone, draw) for phone in draw.sample(phones, AT_ONCE)))
        await asyncio.sleep(draw.random() * 0.3)
        if number == ROUNDS // 2:
            await the_lab.server.kill()
            await the_lab.server.start()


async def until_one_forward_each(the_lab: Lab, phones: list[FakeAdbd]) -> None:
    """And one of its own: a phone's port does not wander off while it comes and goes."""
    own = {phone.address: {preferred_port(phone.serialno, n) for n in range(CHOICES)} for phone in phones}
    await the_lab.until_ports(
        lambda now: now.keys() == own.keys() and all(len(ports) == 1 for ports in now.values()), ALL_SECONDS
    )
    assert all(set(ports) <= own[way] for way, ports in (await the_lab.local_ports()).items())
