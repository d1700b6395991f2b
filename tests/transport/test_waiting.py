"""Who waits is woken by what it waits for, in order, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.wire.pipe import ready
from transport.waiting import Waiting
from wire.frames import FrameType

T = FrameType
MIB = 1 << 20


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def waiting_on_a_full_stream() -> tuple[Waiting, Any, Any, int]:
    client, server = ready()
    number = client.open_stream(T.PUSH, b"head")
    for _ in range(3):
        client.send(T.DATA, number, bytes(MIB))
    return Waiting(client), client, server, number


async def test_room_wakes_as_many_as_fit_and_the_first_first() -> None:
    waiting, client, server, number = await waiting_on_a_full_stream()
    client.send(T.DATA, number, bytes(MIB - 300))
    order: list[int] = []

    async def wait(name: int, size: int) -> None:
        await waiting.room(number, size)
        order.append(name)

    tasks = [asyncio.ensure_future(wait(name, MIB)) for name in range(3)]
    await turn()
    waiting.at_room()
    await turn()
    assert order == []
    server.receive_data(b"".join(client.data_to_send()))
    waiting.at_room()
    await turn()
    assert order == [0]
    waiting.wake_sender(number)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2] and not waiting.rooms


async def test_who_is_called_off_makes_way_for_the_next() -> None:
    waiting, _, _, number = await waiting_on_a_full_stream()
    tasks = [asyncio.ensure_future(waiting.room(number, 10 * MIB)) for _ in range(2)]
    await turn()
    tasks[0].cancel()
    await turn()
    assert len(waiting.rooms[number]) == 1
    tasks[1].cancel()
    await turn()
    assert not waiting.rooms


async def test_drains_and_openings_that_are_called_off_are_forgotten() -> None:
    waiting, _, _, number = await waiting_on_a_full_stream()
    tasks = [asyncio.ensure_future(each) for each in (waiting.drained(number), waiting.opening())]
    await turn()
    for task in tasks:
        task.cancel()
    await turn()
    waiting.wake_all()
    assert not waiting.drains and not waiting.openers


async def test_a_stream_is_drained_when_its_last_frame_has_left() -> None:
    waiting, client, _, number = await waiting_on_a_full_stream()
    one, everything = asyncio.ensure_future(waiting.drained(number)), asyncio.ensure_future(waiting.drained(None))
    other = client.open_stream(T.STATS, b"", ends=True)
    third = asyncio.ensure_future(waiting.drained(other))
    await turn()
    client.data_to_send()  # the request, and as much DATA as the credit allows; the other stream in its turn
    waiting.at_written()
    await turn()
    assert third.done() and not one.done() and not everything.done()
    waiting.wake_all()
    await asyncio.gather(one, everything, third)


async def test_a_drain_of_nothing_is_done_at_once() -> None:
    client, _ = ready()
    waiting = Waiting(client)
    task = asyncio.ensure_future(waiting.drained(None))
    await turn()
    waiting.at_written()
    await asyncio.wait_for(task, 1)


@pytest.mark.parametrize("twice", [False, True])
async def test_waking_is_harmless_when_nobody_waits(twice: bool) -> None:
    waiting, _, _, number = await waiting_on_a_full_stream()
    for _ in range(1 + twice):
        waiting.wake_sender(number)
        waiting.wake_openers()
        waiting.at_room()
        waiting.at_written()
    waiting.wake_all()
