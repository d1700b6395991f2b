"""The server: who is taken in, how many, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from gpu_node.relay.presence import SessionTerms
from gpu_node.relay.server import ServerLimits, told, watch
from tests.gpu_node.relay.raw_client import RawClient
from tests.gpu_node.relay.relayed import TOKEN, answer, generate, hear, scripted, until_true
from tests.gpu_node.serving import NAME
from tests.transport.certificates import server_context, trusting_context
from transport.errors import ConnectFailed, ConnectionLost, Refused
from wire.frames import FrameType
from wire.messages_session import ErrorCode, GoodbyeReason

JOB = b"one answer"


async def test_who_has_not_greeted_makes_place_and_who_has_does_not() -> None:
    async with scripted(limits=ServerLimits(greeting=3)) as (here, _):
        link = await here.connect()
        crowd = [await RawClient.open(here.port) for _ in range(5)]
        await crowd[0].closed_by_node()
        await crowd[1].closed_by_node()
        assert (await answer(await here.connect(), generate())).done is not None
        assert (await answer(link, generate())).done is not None
        for client in crowd:
            client.kill()
        await until_true(lambda: here.server.figures.connections == 2)


async def test_all_of_a_fleet_may_come_at_once() -> None:
    async with scripted() as (here, _):
        crowd = [await RawClient.open(here.port) for _ in range(300)]
        await crowd[0].greet()
        assert here.server.figures.turned_away == 0
        for client in crowd:
            client.kill()
        await until_true(lambda: not here.server.figures.connections)


async def test_connections_are_bounded() -> None:
    async with scripted(limits=ServerLimits(connections=2)) as (here, _):
        links = [await here.connect() for _ in range(2)]
        with pytest.raises((ConnectFailed, ConnectionLost)):
            await here.connect()
        assert here.server.figures.turned_away == 1
        await links[0].close()
        await until_true(lambda: here.server.figures.connections == 1)
        await here.connect()


async def test_sessions_are_bounded_and_cut_ones_make_place() -> None:
    async with scripted(terms=SessionTerms(most=2)) as (here, _):
        first, second = await here.connect(), await here.connect()
        with pytest.raises(Refused) as refused:
            await here.connect()
        assert refused.value.code is ErrorCode.BUSY
        await here.cut(second)
        await here.connect()
        assert len(here.sessions.all) == 2 and here.session(first)
        with pytest.raises(Refused):
            await here.connect(second.welcome.session_key)  # its session has made place


async def test_the_node_stops_in_order() -> None:
    async with scripted() as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        stream = await link.open(generate())
        heard = await hear(stream, most=1)
        draining = asyncio.create_task(here.server.drain())
        await until_true(lambda: link.draining)
        assert link.goodbye is not None and link.goodbye.reason is GoodbyeReason.STOPPING
        with pytest.raises((ConnectFailed, ConnectionLost)):
            await here.connect()
        assert not draining.done()
        fleet.script(NAME).go_on.set()
        assert (await hear(stream, heard)).text() == "one two three"
        await draining


async def test_stopping_waits_only_so_long() -> None:
    async with scripted(limits=ServerLimits(drain_seconds=0.02)) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        stream = await link.open(generate())
        await hear(stream, most=1)
        await here.server.drain()
        await here.server.close()
        with pytest.raises((ConnectionLost, Refused)):
            await hear(stream)


async def test_stopping_has_its_end_in_a_task_that_was_cancelled() -> None:
    async with scripted(limits=ServerLimits(drain_seconds=0.02)) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        stream = await link.open(generate())
        heard = await hear(stream, most=1)
        drained = asyncio.Event()

        async def serve() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await here.server.drain()
                drained.set()

        serving = asyncio.create_task(serve())
        await asyncio.sleep(0)
        serving.cancel()
        await asyncio.wait({serving})
        assert drained.is_set() and serving.cancelled()
        fleet.script(NAME).go_on.set()
        assert (await hear(stream, heard)).text() == "one two three"


async def test_stopping_that_is_given_up_ends_at_once() -> None:
    async with scripted() as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        await hear(await link.open(generate()), most=1)
        draining = asyncio.create_task(here.server.drain())
        await until_true(lambda: link.draining)
        before = asyncio.all_tasks()
        draining.cancel()
        await asyncio.wait({draining})
        gone = before - asyncio.all_tasks()
        assert draining.cancelled() and draining in gone and len(gone) == 2  # itself, and what it waited for


async def test_over_tls_all_is_the_same() -> None:
    async with scripted(token=TOKEN, tls=server_context()) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect(tls=trusting_context())
        heard = await hear(await link.open(generate(job=JOB)), most=1)
        await here.cut(link)
        fleet.script(NAME).go_on.set()
        link = await here.connect(link.welcome.session_key, tls=trusting_context())
        await hear(await link.open(generate(job=JOB, next_index=1)), heard)
        assert heard.text() == "one two three"
        with pytest.raises((ConnectFailed, ConnectionLost)):
            await here.connect()
        await until_true(lambda: here.server.figures.connections == 1)


async def test_who_is_slow_to_agree_on_tls_makes_place_and_is_shown_the_door() -> None:
    limits = ServerLimits(greeting=2)
    async with scripted(tls=server_context(), limits=limits, greeting_seconds=0.1) as (here, _):
        crowd = [await RawClient.open(here.port) for _ in range(4)]
        for client in crowd:
            with contextlib.suppress(ConnectionError):
                assert not await asyncio.get_running_loop().sock_recv(client.socket, 1)
            client.kill()
        await until_true(lambda: here.server.figures.connections == 0)
        assert here.server.figures.turned_away == 4
        still = await RawClient.open(here.port)  # closing does not wait for it
        await until_true(lambda: here.server.figures.connections == 1)
        await here.server.close()
        still.kill()


async def test_any_connected_socket_will_do() -> None:
    async with scripted() as (here, _):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        here.server.take_in(theirs, "a pair")
        client = RawClient(ours)
        await client.greet()
        await client.send(client.request(generate()))
        frames = [await client.next() for _ in range(4)]
        assert [frame.type for frame in frames if frame] == [FrameType.TOKENS] * 3 + [FrameType.DONE]
        client.kill()
        await until_true(lambda: not here.server.figures.connections)


async def test_the_system_is_asked_to_watch_the_line() -> None:
    with socket.socket() as one:
        watch(one)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    left, right = socket.socketpair()
    with left, right:
        watch(left)  # no TCP, no harm


def test_addresses_are_told_as_people_write_them() -> None:
    assert told(("127.0.0.1", 5)) == "127.0.0.1:5" and told(("::1", 5, 0, 0)) == "[::1]:5"
    assert told("") == "a local socket"
