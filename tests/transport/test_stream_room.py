"""Room on streams: who waits for it, what gives it back, and who is not stalled by it."""

from __future__ import annotations

import asyncio

from tests.transport.pair import fill, frames, pair, until
from wire.frames import FrameType
from wire.limits import Limits
from wire.messages_session import ErrorCode

T = FrameType


async def test_a_slow_reader_gets_everything_though_credit_has_to_travel() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()

        async def tell() -> None:
            for number in range(2000):
                await theirs.send(T.TOKENS, number.to_bytes(4, "big"), ends=number == 1999)

        telling = asyncio.ensure_future(tell())
        assert await frames(ours) == [number.to_bytes(4, "big") for number in range(2000)]
        await telling


async def test_what_nobody_reads_after_a_cancel_is_given_back() -> None:
    async with pair() as both:
        given = both.client.driver.connection._books.given
        for _ in range(20):
            ours, theirs = await both.ask()
            for _ in range(50):
                await theirs.send(T.TOKENS, bytes(900))
            await both.server.driver.drain()
            await until(lambda stream=ours: len(stream._frames) == 50)
            ours.cancel()
            await until(lambda stream=theirs: stream.cancelled)
            theirs.fail(ErrorCode.CANCELLED)
            await ours.wait_over()
        assert given.held == 0


async def test_what_the_server_leaves_unread_is_given_back() -> None:
    async with pair() as both:
        ours, theirs = await both.ask(T.WRITE, ends=False)
        for _ in range(10):
            await ours.send(T.DATA, b"x")
        await until(lambda: len(theirs._frames) == 10)
        await theirs.send(T.ACK, b"", ends=True)
        assert both.server.driver.connection._books.given.held == 0


async def test_small_releases_are_not_forgotten_at_the_end() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        await theirs.send(T.TOKENS, b"x")
        await theirs.send(T.TOKENS, b"y", ends=False)
        await both.server.driver.drain()
        first = await ours.receive()
        ours.release(first)
        ours.release(await ours.receive())
        given = first.stream.given
        assert given.held == 514
        await theirs.send(T.DONE, b"", ends=True)
        last = await ours.receive()
        ours.release(last)
        assert given.held == both.client.driver.connection._books.given.held == 0


async def test_send_waits_for_room_and_the_first_comes_first() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        chunk = bytes(1 << 20)
        sent = []

        async def tell(name: str) -> None:
            await theirs.send(T.TOKENS, chunk)
            sent.append(name)

        await fill(theirs)
        telling = [asyncio.ensure_future(tell(name)) for name in "abc"]
        await until(lambda: sum(map(len, both.server.driver.waiting.rooms.values())) == 3)
        assert sent == []
        while len(sent) < 3:
            ours.release(await ours.receive())
        assert sent == ["a", "b", "c"]
        await asyncio.gather(*telling)


async def test_a_slow_reader_of_one_stream_stalls_no_other() -> None:
    async with pair() as both:
        slow, theirs_slow = await both.ask()
        quick, theirs_quick = await both.ask()

        async def tell(stream, count: int) -> None:
            for number in range(count):
                await stream.send(T.TOKENS, bytes(100_000), ends=number == count - 1)

        stuck = asyncio.ensure_future(tell(theirs_slow, 100))
        going = asyncio.ensure_future(tell(theirs_quick, 200))
        assert len(await frames(quick)) == 200
        await going
        assert not stuck.done()
        assert len(await frames(slow)) == 100
        await stuck


async def test_senders_that_are_cancelled_leave_nothing_behind() -> None:
    async with pair() as both:
        _, theirs = await both.ask()
        await fill(theirs)
        waiting = [asyncio.ensure_future(theirs.send(T.TOKENS, bytes(1 << 20))) for _ in range(2)]
        waiting.append(asyncio.ensure_future(theirs.drain()))
        await until(lambda: both.server.driver.waiting.drains)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert not both.server.driver.waiting.rooms
        assert not both.server.driver.waiting.drains


async def test_drain_tells_when_a_buffer_may_be_used_anew() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        buffer = bytearray(b"a" * (1 << 20))
        for letter in b"abcdefgh":
            buffer[:] = bytes([letter]) * len(buffer)
            await theirs.send(T.TOKENS, buffer)
            draining = asyncio.ensure_future(theirs.drain())
            frame = await ours.receive()
            await draining
            buffer[:] = bytes(len(buffer))
            assert frame.payload == bytes([letter]) * len(buffer)
            ours.release(frame)


async def test_drain_of_a_stream_does_not_wait_for_another() -> None:
    async with pair() as both:
        _, stuck = await both.ask()
        _, free = await both.ask()
        await fill(stuck)
        await free.send(T.TOKENS, b"x")
        await free.drain()
        waiting = asyncio.ensure_future(both.server.driver.drain())
        await free.send(T.TOKENS, b"x")
        await free.drain()
        assert not waiting.done()
        waiting.cancel()


async def test_rooms_are_filled_in_order() -> None:
    async with pair() as both:
        ours, theirs = await both.ask(T.READ)
        rooms = [bytearray(3 << 20), bytearray(1 << 20)]
        for room in rooms:
            ours.receive_into(memoryview(room))
        data = bytes(range(256)) * (4 << 12)
        for start in range(0, len(data), 1 << 20):
            await theirs.send(T.DATA, memoryview(data)[start : start + (1 << 20)], ends=start + (1 << 20) == len(data))
        while not (frame := await ours.receive()).ends:
            assert frame.placed
            ours.release(frame)
        assert b"".join(rooms) == data


async def test_open_waits_until_a_stream_is_free() -> None:
    async with pair(client_limits=Limits(streams=1)) as both:
        _, theirs = await both.ask()
        opening = asyncio.ensure_future(both.client.driver.open(T.STATS, ends=True))
        await until(lambda: both.client.driver.waiting.openers)
        await theirs.send(T.DONE, b"", ends=True)
        assert (await opening).request is T.STATS


async def test_widen_lets_more_be_under_way() -> None:
    async with pair() as both:
        ours, theirs = await both.ask()
        ours.widen()
        for _ in range(3):
            await theirs.send(T.TOKENS, bytes(1 << 20))
        await theirs.drain()  # far beyond the 64 KiB that a stream begins with, and nobody has released any
        assert len(ours._frames) <= 3
