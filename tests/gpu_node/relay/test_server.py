"""The server and its connections: who is let in, who is turned away, and that nothing of anybody stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from gpu_node.relay.call import RelayCall
from gpu_node.relay.connection import ClientConnection
from gpu_node.relay.presence import SessionTerms
from gpu_node.relay.server import ServerLimits, told, watch
from gpu_node.relay.sessions import ClientSession
from tests.gpu_node.relay.raw_client import RawClient
from tests.gpu_node.relay.relayed import (
    TOKEN,
    Alarm,
    Relayed,
    answer,
    failure,
    generate,
    hear,
    scripted,
    until_true,
)
from tests.gpu_node.serving import NAME
from tests.transport.certificates import server_context, trusting_context
from transport.codec import crc32
from transport.errors import ConnectFailed, ConnectionLost, Refused, WrongToken
from wire.frames import FrameType
from wire.messages import encode_message
from wire.messages_memory import Alloc
from wire.messages_session import Error, ErrorCode, Goodbye, GoodbyeReason
from wire.messages_stats import Stats
from wire.messages_work import Push, PushFile
from wire.tensors import DType, TensorHeader, pack_tensor_header

JOB = b"one answer"


@asynccontextmanager
async def raw(here: Relayed, key: bytes = b"") -> AsyncIterator[RawClient]:
    client = await RawClient.open(here.port, here.token, key)
    try:
        yield client
    finally:
        client.socket.close()


async def test_a_client_is_told_who_the_node_is_and_how_long_it_waits() -> None:
    terms = SessionTerms(idle_seconds=120, grace_seconds=15)
    async with scripted(token=TOKEN, terms=terms) as (here, _):
        link = await here.connect()
        welcome = link.welcome
        assert (welcome.name, welcome.node_id, welcome.incarnation) == ("node", bytes(16), 7)
        assert (welcome.idle_seconds, welcome.grace_seconds, welcome.capabilities) == (120, 15, ("lz4",))
        assert len(welcome.session_key) == 32 and not welcome.resumed
        assert await link.ping() >= 0
        assert here.server.figures.sessions == 1


@pytest.mark.parametrize("token", [None, "another one"])
async def test_without_the_token_nobody_gets_in(token: str | None) -> None:
    async with scripted(token=TOKEN) as (here, _):
        with pytest.raises(WrongToken):
            await here.connect(token=token)
        await until_true(lambda: not here.server.figures.connections)
        assert not here.sessions.all
        if token:
            assert here.server.figures.faults == {"WRONG_PROOF": 1}


async def test_nothing_may_be_asked_before_the_handshake() -> None:
    async with scripted() as (here, _), raw(here) as client:
        other = RawClient(client.socket)
        other.wire.send(FrameType.HELLO, 0, other.handshake.begin())
        data = bytearray(other.pending())
        data[0] = FrameType.STATS
        await client.send(bytes(data))
        assert isinstance(error := await client.message(), Error) and error.code < ErrorCode.INTERNAL
        await client.closed_by_node()
        assert not here.sessions.all


async def test_who_greets_too_slowly_is_shown_the_door() -> None:
    async with scripted(greeting_seconds=0.05) as (here, _), raw(here) as silent, raw(here) as slow:
        hello = slow.hello()
        for at in range(len(hello) - 1):
            await slow.send(hello[at : at + 1])
        await silent.closed_by_node()
        await slow.closed_by_node()
        await until_true(lambda: here.server.figures.connections == 0)
        assert here.server.figures.turned_away == 2


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
        third = await here.connect()
        await until_true(lambda: third.goodbye is not None)
        assert third.goodbye is not None and third.goodbye.reason is GoodbyeReason.UNWELCOME
        await here.cut(second)
        await here.connect()
        assert len(here.sessions.all) == 2 and here.session(first)
        assert not (await here.connect(second.welcome.session_key)).welcome.resumed


async def test_goodbye_frees_at_once_and_other_goodbyes_keep_the_session() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (1000,)))
        session = here.session(link)
        assert session.buffers.bytes_held == 1000
        await link.close()
        await until_true(lambda: session.over and session.buffers.bytes_held == 0)
        assert not here.sessions.all and not here.residents.accounts[0].buffers
        link = await here.connect()
        await link.close(GoodbyeReason.STOPPING)
        await until_true(lambda: [one.state for one in here.sessions.all] == ["cut"])
        assert (await here.connect(link.welcome.session_key)).welcome.resumed


async def test_goodbye_ends_what_is_under_way() -> None:
    async with scripted() as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        await hear(await link.open(generate(job=JOB)), most=1)
        await link.close()
        await until_true(lambda: not here.sessions.all and not fleet.script(NAME).running)


async def test_a_session_that_comes_back_finds_its_buffers_and_the_old_connection_ends() -> None:
    async with scripted() as (here, _):
        old = await here.connect()
        await old.ask(Alloc(3, DType.FLOAT32, (8,)))
        new = await here.connect(old.welcome.session_key)
        await old.wait_closed()
        assert old.goodbye is not None and old.goodbye.reason is GoodbyeReason.REPLACED
        session = here.session(new)
        assert new.welcome.resumed and session.state == "idle" and session.buffers.get(3).size_bytes == 32
        assert here.server.figures.resumed == 1


async def test_a_key_that_nobody_knows_opens_nothing() -> None:
    async with scripted() as (here, _):
        first = await here.connect()
        await first.ask(Alloc(1, DType.UINT8, (10,)))
        for key in (bytes(32), first.welcome.session_key[:-1] + b"\0", first.welcome.session_key[:31]):
            link = await here.connect(key)
            assert not link.welcome.resumed and link.welcome.session_key not in (key, first.welcome.session_key)
            assert here.session(link).buffers.bytes_held == 0


async def test_of_other_sessions_nothing_is_seen_but_numbers_and_sizes() -> None:
    async with scripted() as (here, _):
        first = await here.connect(name="secret name")
        await first.ask(Alloc(1, DType.UINT8, (777,)))
        await answer(first, generate("secret prompt", job=JOB))
        second = await here.connect()
        stats = await second.ask(Stats())
        assert isinstance(stats, Stats)
        told_of = repr(stats)
        assert "secret" not in told_of and repr(first.welcome.session_key)[2:-1] not in told_of
        assert [(one.owner, one.bytes) for one in stats.holders if one.what == "buffers"] == [("session 1", 777)]
        from wire.messages_memory import Free, Read

        error = await failure(second, Read(1))
        assert isinstance(error, Refused) and error.code is ErrorCode.UNKNOWN_HANDLE
        await second.ask(Free((1,)))
        assert here.session(first).buffers.bytes_held == 777


async def test_an_idle_session_gives_everything_back_and_is_told() -> None:
    alarm = Alarm()
    async with scripted(times=alarm.times, terms=SessionTerms(idle_seconds=300)) as (here, _):
        link = await here.connect()
        await link.ask(Alloc(1, DType.UINT8, (10,)))
        session = here.session(link)
        await alarm.advance(299)
        assert not session.over
        await answer(link, generate())
        await alarm.advance(299)
        assert not session.over
        await alarm.advance(2)
        await until_true(lambda: session.over and session.buffers.bytes_held == 0)
        await link.wait_closed()
        assert link.goodbye is not None and link.goodbye.reason is GoodbyeReason.IDLE


async def test_an_answer_under_way_is_not_idle() -> None:
    alarm = Alarm()
    async with scripted(times=alarm.times) as (here, fleet):
        fleet.script(NAME).hold_at = 1
        link = await here.connect()
        stream = await link.open(generate())
        heard = await hear(stream, most=1)
        await alarm.advance(1000)
        await alarm.advance(1000)
        assert not here.session(link).over
        fleet.script(NAME).go_on.set()
        assert (await hear(stream, heard)).text() == "one two three"
        await until_true(lambda: here.sessions.all[0].state == "idle")
        await alarm.advance(299)
        assert here.sessions.all
        await alarm.advance(2)
        await until_true(lambda: not here.sessions.all)


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


async def test_a_request_that_crossed_the_goodbye_is_refused() -> None:
    async with scripted() as (here, _), raw(here) as client:
        await client.greet()
        await here.server.drain()
        await client.send(client.request(Stats()))
        messages = [await client.message(), await client.message()]
        assert isinstance(messages[0], Goodbye) and messages[0].reason is GoodbyeReason.STOPPING
        assert isinstance(messages[1], Error) and messages[1].code is ErrorCode.STOPPING


# Faults


async def test_a_fault_of_ours_is_one_streams_and_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(call: RelayCall) -> None:
        call.stream.release(call.request)
        raise ZeroDivisionError("ours")

    async def forgets(call: RelayCall) -> None:
        call.stream.release(call.request)

    async with scripted(more={FrameType.UNLOAD: breaks, FrameType.EMBED: forgets}) as (here, _):
        from wire.messages_work import Embed, Unload

        link = await here.connect()
        for message in (Unload("x"), Embed("x", ("y",))):
            error = await failure(link, message)
            assert isinstance(error, Refused) and error.code is ErrorCode.INTERNAL
            assert "ours" not in error.text
        assert "ZeroDivisionError" in caplog.text and "left without an end" in caplog.text
        assert (await answer(link, generate())).done is not None
        assert here.server.figures.failures == {"INTERNAL": 2}


async def test_what_nobody_answers_is_unsupported() -> None:
    async with scripted() as (here, _):
        link = await here.connect()
        error = await failure(link, Push("model", (PushFile("a.gguf", 1, bytes(32)),)))
        assert isinstance(error, Refused) and error.code is ErrorCode.UNSUPPORTED


async def test_a_payload_that_is_none_ends_the_connection_with_its_code() -> None:
    async with scripted() as (here, _), raw(here) as client:
        await client.greet()
        client.wire.open_stream(FrameType.GENERATE, b"\xff\xff", ends=True)
        await client.flush()
        error = await client.message()
        assert isinstance(error, Error) and error.code is ErrorCode.BAD_PAYLOAD
        await client.closed_by_node()
        await until_true(lambda: here.server.figures.faults == {"BAD_PAYLOAD": 1})


async def test_half_closed_sockets_are_cuts() -> None:
    async with scripted() as (here, fleet), raw(here) as client:
        fleet.script(NAME).hold_at = 0
        await client.greet()
        await client.send(client.request(generate()))
        await until_true(fleet.script(NAME).held.is_set)
        client.socket.shutdown(socket.SHUT_WR)
        await client.closed_by_node()
        await until_true(lambda: [one.state for one in here.sessions.all] == ["cut"])
        await until_true(lambda: not fleet.script(NAME).running)


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
        gc.collect()
        kinds = (ClientSession, ClientConnection)
        assert not [one for one in gc.get_objects() if type(one) in kinds]


def footprint() -> tuple[int, int, int]:
    return len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd"))


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


async def test_a_ping_is_a_sign_of_life_and_not_of_work() -> None:
    alarm = Alarm()
    async with scripted(times=alarm.times) as (here, _):
        link = await here.connect()
        await alarm.advance(299)
        await link.ping(signal_dbm=-50)
        await alarm.advance(2)
        await until_true(lambda: not here.sessions.all)


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
