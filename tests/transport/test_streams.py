"""Streams over two drivers: order, ends, refusals, cancelling, room, credit."""

from __future__ import annotations

import asyncio

import pytest

from tests.transport.pair import frames, pair, until
from transport.errors import Cancelled, ConnectionLost, ProtocolBroken, Refused, StreamEnded
from wire.errors import IllegalSend, OutOfBounds
from wire.frames import FrameType
from wire.limits import Limits
from wire.messages import encode_message
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Tokens

T = FrameType


async def test_frames_come_in_order_and_the_end_is_told_again() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        for number in range(300):  # more than the credit that a stream begins with
            await theirs.send(T.TOKENS, b"%d" % number, b"!", ends=number == 299)
            if number % 100 == 0:
                assert await ours.receive() is not None
        assert (await frames(ours))[-1] == b"299!"
        assert ours.over and theirs.over
        for _ in range(2):
            with pytest.raises(StreamEnded):
                await ours.receive()
            with pytest.raises(StreamEnded):
                ours.receive_nowait()
        assert not both.client.driver.streams and not both.server.driver.streams


async def test_nothing_here_is_none_and_not_the_end() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        assert ours.receive_nowait() is None
        await theirs.send(T.DONE, b"x", ends=True)
        await until(lambda: ours.over)
        assert ours.receive_nowait().ends


async def test_messages() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        await theirs.send_message(Tokens(0, 7, "hi", (1, 2)))
        await theirs.send(T.DONE, b"\xff" * 30, ends=True)
        assert await ours.message() == Tokens(0, 7, "hi", (1, 2))
        with pytest.raises(ProtocolBroken):
            await ours.message()
        await both.server.driver.wait_closed()
        assert both.server.losses[0].code is ErrorCode.BAD_PAYLOAD
        assert isinstance(both.client.driver.lost, ProtocolBroken)


async def test_a_refusal_comes_after_what_was_sent_before_and_is_told_again() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        await theirs.send(T.TOKENS, b"one")
        await both.server.driver.drain()
        theirs.fail(ErrorCode.BUSY, "full" * 1000, retry_after_ms=5, details=(("free", 3),))
        theirs.fail(ErrorCode.BUSY)  # it is over: nothing happens
        assert theirs.over
        assert (await ours.receive()).payload == b"one"
        for _ in range(2):
            with pytest.raises(Refused) as told:
                await ours.receive()
            assert (told.value.code, told.value.retry_after_ms, told.value.details) == (ErrorCode.BUSY, 5, {"free": 3})
            assert 0 < len(told.value.text) <= 1024
        assert ours.over


async def test_who_sends_is_told_of_the_refusal() -> None:
    async with pair() as both:
        ours, theirs = await both.ask(T.WRITE, ends=False)
        chunk = bytes(1 << 20)

        async def write() -> None:
            while True:
                await ours.send(T.DATA, chunk)

        writing = asyncio.ensure_future(write())
        await until(lambda: len(both.client.driver.waiting.rooms) == 1)
        theirs.fail(ErrorCode.NO_ROOM, "no")
        with pytest.raises(Refused):
            await writing
        await until(lambda: not both.server.driver.connection.open_streams)
        assert not both.client.driver.connection.open_streams


async def test_an_answer_before_the_request_is_whole_ends_the_sending() -> None:
    async with pair() as both:
        ours, theirs = await both.ask(T.WRITE, ends=False)
        await theirs.send(T.ACK, b"".join(encode_message(Ack(3))), ends=True)
        assert await ours.message() == Ack(3)
        with pytest.raises(StreamEnded):
            await ours.send(T.DATA, b"more")


async def test_a_server_that_has_said_all_cannot_say_more() -> None:
    async with pair() as both:
        _, theirs = await both.ask()
        await theirs.send(T.DONE, b"", ends=True)
        with pytest.raises(IllegalSend):
            await theirs.send(T.TOKENS, b"more")


async def test_a_payload_beyond_a_frame_is_misuse() -> None:
    async with pair() as both:
        _, theirs = await both.ask()
        with pytest.raises(OutOfBounds):
            await theirs.send(T.TOKENS, bytes((1 << 20) + 1))


async def test_cancel_reaches_the_server_at_once_and_its_last_word_comes_back() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        called = []
        theirs.on_cancel = lambda: called.append(1)
        await theirs.send(T.TOKENS, b"one")
        await both.server.driver.drain()
        ours.cancel()
        ours.cancel()
        await until(lambda: theirs.cancelled)
        with pytest.raises(Cancelled):
            await theirs.receive()
        assert called == [1]
        with pytest.raises(Cancelled):
            await theirs.send(T.TOKENS, b"two")
        assert not ours.over
        theirs.fail(ErrorCode.CANCELLED)
        await ours.wait_over()
        with pytest.raises(Refused):
            await ours.receive()
        assert called == [1]


async def test_a_cancelled_stream_may_end_with_an_answer() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        ours.cancel()
        await until(lambda: theirs.cancelled)
        with pytest.raises(Cancelled):
            await theirs.receive()
        await theirs.send(T.DONE, b"so far", ends=True)
        assert await frames(ours) == [b"so far"]
        assert theirs.over and ours.over


async def test_cancel_of_what_was_never_sent_is_over_at_once() -> None:
    async with pair() as both:
        stream = both.client.driver.open_nowait(T.GENERATE, b"ask", ends=True)
        stream.cancel()
        assert stream.over
        with pytest.raises(StreamEnded):
            await stream.receive()
        await both.ask()  # and the server never hears of it
        assert both.server.requests.empty()


async def test_the_client_sends_nothing_more_after_its_cancel() -> None:
    async with pair() as both:
        ours, theirs = await both.ask(T.WRITE, ends=False)
        ours.cancel()
        with pytest.raises(Cancelled):
            await ours.send(T.DATA, b"more")
        with pytest.raises(Cancelled):
            await theirs.receive()


async def test_cancel_wakes_who_waits_for_room() -> None:
    async with pair() as both:
        ours, _ = await both.ask(T.WRITE, ends=False)

        async def write() -> None:
            while True:
                await ours.send(T.DATA, bytes(1 << 20))

        writing = asyncio.ensure_future(write())
        await until(lambda: both.client.driver.waiting.rooms)
        ours.cancel()
        with pytest.raises(Cancelled):
            await writing


async def test_cancel_wakes_a_server_that_waits_for_room() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()

        async def tell() -> None:
            while True:
                await theirs.send(T.TOKENS, bytes(1 << 20))

        telling = asyncio.ensure_future(tell())
        await until(lambda: both.server.driver.waiting.rooms)
        ours.cancel()
        with pytest.raises(Cancelled):
            await telling
        theirs.fail(ErrorCode.CANCELLED)
        await ours.wait_over()


async def test_the_connection_wakes_receivers_senders_and_openers_when_it_is_lost() -> None:
    async with pair(client_limits=Limits(streams=2)) as both:
        ours, theirs = await both.ask()
        other, _ = await both.ask(T.WRITE, ends=False)
        driver = both.client.driver
        called = []
        theirs.on_cancel = lambda: called.append("called off")

        async def write() -> None:
            while True:
                await other.send(T.DATA, bytes(1 << 20))

        waiting = [
            asyncio.ensure_future(each)
            for each in (ours.receive(), write(), driver.open(T.STATS, ends=True), driver.drain(), other.drain())
        ]
        over = asyncio.ensure_future(ours.wait_over())
        await until(lambda: driver.waiting.rooms and driver.waiting.openers and len(driver.waiting.drains) == 2)
        both.server.driver.close()
        for task in waiting:
            with pytest.raises(ConnectionLost):
                await task
        await over
        assert called == ["called off"]
        for stream in (ours, other, theirs):
            assert stream.over
            with pytest.raises(ConnectionLost):
                await stream.receive()
            with pytest.raises(ConnectionLost):
                await stream.send(T.DATA, b"x")
            stream.cancel()
        with pytest.raises(ConnectionLost):
            await driver.open(T.STATS)
        with pytest.raises(ConnectionLost):
            await driver.drain()
        with pytest.raises(ConnectionLost):
            await driver.send_control(T.PING, b"")


async def test_what_came_before_the_loss_is_still_received() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        done, theirs_done = await both.ask()
        await theirs.send(T.TOKENS, b"one")
        await theirs_done.send(T.DONE, b"all", ends=True)
        await both.server.driver.drain()
        await until(lambda: done.over)
        both.server.driver.close()
        await both.client.driver.wait_closed()
        assert (await ours.receive()).payload == b"one"
        with pytest.raises(ConnectionLost):
            await ours.receive()
        assert await frames(done) == [b"all"]  # its end had come: nothing of it is lost


async def test_a_receiver_that_is_cancelled_loses_no_frame() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        waiting = asyncio.ensure_future(ours.receive())
        await asyncio.sleep(0)
        waiting.cancel()
        await theirs.send(T.TOKENS, b"one")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await ours.receive()).payload == b"one"


async def test_a_number_that_is_used_again_is_another_stream() -> None:
    async with pair() as both:
        both.client.driver.connection._last_number = 0xFFFF - 1
        old, theirs_old = await both.ask()
        await theirs_old.send(T.DONE, b"", ends=True)
        await old.wait_over()
        both.client.driver.connection._last_number = 0xFFFF - 1
        new, theirs_new = await both.ask()
        assert new.number == old.number == theirs_new.number
        theirs_old.fail(ErrorCode.INTERNAL)
        old.cancel()
        await theirs_new.send(T.DONE, b"new", ends=True)
        assert await frames(new) == [b"new"]
