"""One client's connection: its greeting, its session, and its end by either side."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gpu_node.relay.presence import SessionTerms
from tests.gpu_node.relay.raw_client import RawClient
from tests.gpu_node.relay.relayed import TOKEN, Alarm, Relayed, answer, failure, generate, hear, scripted, until_true
from tests.gpu_node.serving import NAME
from transport.errors import Refused, WrongToken
from wire.frames import FrameType
from wire.messages_memory import Alloc, Free, Read
from wire.messages_session import Error, ErrorCode, Goodbye, GoodbyeReason
from wire.messages_stats import Stats
from wire.tensors import DType

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
        with contextlib.suppress(ConnectionError):  # on a busy machine it is shown the door before it has said so much
            for at in range(len(hello) - 1):
                await slow.send(hello[at : at + 1])
        await silent.closed_by_node()
        await slow.closed_by_node()
        await until_true(lambda: here.server.figures.connections == 0)
        assert here.server.figures.turned_away == 2


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


async def test_a_request_that_crossed_the_goodbye_is_refused() -> None:
    async with scripted() as (here, _), raw(here) as client:
        await client.greet()
        await here.server.drain()
        await client.send(client.request(Stats()))
        messages = [await client.message(), await client.message()]
        assert isinstance(messages[0], Goodbye) and messages[0].reason is GoodbyeReason.STOPPING
        assert isinstance(messages[1], Error) and messages[1].code is ErrorCode.STOPPING


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


async def test_a_ping_is_a_sign_of_life_and_not_of_work() -> None:
    alarm = Alarm()
    async with scripted(times=alarm.times) as (here, _):
        link = await here.connect()
        await alarm.advance(299)
        await link.ping(signal_dbm=-50)
        await alarm.advance(2)
        await until_true(lambda: not here.sessions.all)
