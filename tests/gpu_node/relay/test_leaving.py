"""Clients that are killed in every state, and come and go a thousand times: nothing of them stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable

import pytest

from gpu_node.relay.connection import ClientConnection
from gpu_node.relay.sessions import ClientSession
from tests.gpu_node.relay.raw_client import RawClient
from tests.gpu_node.relay.relayed import TOKEN, Alarm, answer, generate, scripted, until_true
from tests.gpu_node.serving import NAME
from transport.codec import crc32
from wire.frames import FrameType
from wire.messages import encode_message
from wire.messages_memory import Alloc
from wire.messages_session import Goodbye, GoodbyeReason
from wire.tensors import DType, TensorHeader, pack_tensor_header

JOB = b"one answer"


async def dies_before_a_byte(client: RawClient) -> None:
    pass


async def dies_within_a_header(client: RawClient) -> None:
    await client.send(client.hello()[:9])


async def dies_within_a_payload(client: RawClient) -> None:
    await client.send(client.hello()[:-3])


async def dies_when_it_has_greeted(client: RawClient) -> None:
    await client.send(client.hello())


async def dies_when_challenged(client: RawClient) -> None:
    await client.send(client.hello())
    await client.next()


async def dies_when_ready(client: RawClient) -> None:
    await client.greet()


async def dies_within_a_request(client: RawClient) -> None:
    await client.greet()
    await client.send(client.request(generate())[:-2])


async def dies_while_it_is_answered(client: RawClient) -> None:
    await client.greet()
    await client.send(client.request(generate(job=JOB)))
    await client.next()


async def dies_while_it_writes(client: RawClient) -> None:
    await client.greet()
    await client.send(client.request(Alloc(1, DType.UINT8, (1000,))))
    await client.message()
    header = pack_tensor_header(TensorHeader(DType.UINT8, (1000,), 1000, batch=1), crc32)
    number = client.wire.open_stream(FrameType.WRITE, header)
    client.wire.send(FrameType.DATA, number, bytes(400))
    await client.flush()


async def dies_after_a_cancel(client: RawClient) -> None:
    await client.greet()
    await client.send(client.request(generate()))
    client.wire.cancel(client.wire.open_streams[0])
    await client.flush()


async def dies_after_its_goodbye(client: RawClient) -> None:
    await client.greet()
    client.wire.goodbye(*encode_message(Goodbye(GoodbyeReason.FINISHED)))
    await client.flush()


DEATHS = [
    dies_before_a_byte, dies_within_a_header, dies_within_a_payload, dies_when_it_has_greeted, dies_when_challenged,
    dies_when_ready, dies_within_a_request, dies_while_it_is_answered, dies_while_it_writes, dies_after_a_cancel,
    dies_after_its_goodbye,
]  # fmt: skip


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("die", DEATHS)
async def test_a_client_that_is_killed_leaves_nothing(die: Callable[[RawClient], Awaitable[None]], reset: bool) -> None:
    alarm = Alarm()
    async with scripted(token=TOKEN, times=alarm.times) as (here, fleet):
        client = await RawClient.open(here.port, TOKEN)
        await die(client)
        client.kill(reset)
        await until_true(lambda: here.server.figures.accepted == 1 and not here.server.figures.connections)
        await alarm.advance(31)
        await until_true(lambda: not here.sessions.all and not fleet.script(NAME).running)
        assert not here.residents.accounts[0].buffers
        assert (await answer(await here.connect(), generate())).text() == "one two three"


async def test_a_thousand_connects_and_disconnects_leave_nothing() -> None:
    alarm = Alarm()
    async with scripted(times=alarm.times) as (here, _):
        await (await here.connect()).close()  # what is made once is made
        here.links.clear()
        await until_true(lambda: len(asyncio.all_tasks()) == 2)  # the test, and the listener
        before = footprint()

        async def come_and_go(number: int) -> None:
            client = await RawClient.open(here.port)
            if number % 5:
                await client.greet()
            if number % 5 == 2:
                await client.send(client.request(Alloc(1, DType.UINT8, (64,))))
                await client.message()
            if number % 5 == 3:
                await client.send(client.request(generate(job=JOB)))
            if number % 5 == 4:
                client.wire.goodbye(*encode_message(Goodbye(GoodbyeReason.FINISHED)))
                await client.flush()
                await client.closed_by_node()
            client.kill(reset=number % 2 == 0)

        for start in range(0, 1000, 20):
            await asyncio.gather(*(come_and_go(number) for number in range(start, start + 20)))
        await until_true(lambda: not here.server.figures.connections)
        await alarm.advance(31)
        await until_true(lambda: not here.sessions.all)
        await until_true(lambda: footprint() == before)
        assert not here.residents.accounts[0].buffers and here.server.figures.accepted == 1001
        await until_true(nothing_left)


def nothing_left() -> bool:
    gc.collect()
    return not any(type(one) in (ClientSession, ClientConnection) for one in gc.get_objects())


def footprint() -> tuple[int, int, int]:
    return len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd"))
