"""Streams that are left before their end, in every way a program can leave one: the server sees the client go.

No test here collects garbage or gives the loop a pause of its own: dropping the last reference must be enough.
"""

import asyncio
import gc
import json
import threading
from typing import Any

import httpx
import pytest
import uvloop

from potluck import AnswerCutShort, AsyncGateway, Gateway, Misuse
from tests.potluck.loopback import ANSWER, DONE, Exchange, Loopback, tell

PATIENCE_SECONDS = 60


def endless(exchange: Exchange):
    exchange.begin()
    if exchange.asked.path == "/ask_batch":
        exchange.record({"index": 0, **ANSWER})
    else:
        exchange.record({"queued": 1}, {"token": "Par"}, {"token": "is"})
    exchange.wait_until_left()


@pytest.fixture
def server():
    with Loopback(endless) as loopback:
        yield loopback


@pytest.fixture(autouse=True)
def _no_collector():
    """What only the garbage collector would find stays open, and fails the test."""
    gc.disable()
    yield
    gc.enable()


def open_connections(server):
    return [exchange for exchange in server.exchanges if not exchange.left.is_set()]


def all_left(server, count=1):
    assert len(server.exchanges) == count
    return all(exchange.left.wait(PATIENCE_SECONDS) for exchange in server.exchanges)


async def all_left_async(server, count=1):
    return await asyncio.to_thread(all_left, server, count)


def pool_of(gateway) -> Any:
    """httpx's own account of its connections."""
    transport: Any = gateway._client._transport
    return transport._pool


def finished(main, loop_factory=None):
    """Run it as `asyncio.run` does, to the closed loop; what the loop had to report."""
    reported = []

    async def watched():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        await main()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(watched())
    return reported


streams = pytest.mark.parametrize(
    "stream",
    [
        lambda gateway: gateway.stream("hi"),
        lambda gateway: gateway.stream("hi").events(),
        lambda gateway: gateway.batch(["a", "b"], stream=True),
        lambda gateway: iter_of(gateway.batch(["a", "b"], stream=True)),
    ],
    ids=["stream", "events", "batch", "batch_iterator"],
)
loops = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])


def iter_of(stream):
    return aiter(stream) if hasattr(stream, "__aiter__") else iter(stream)


@streams
def test_a_break_is_enough(server, stream):
    with Gateway(server.url) as gateway:
        for _ in stream(gateway):
            assert len(open_connections(server)) == 1
            break
        assert all_left(server)


@streams
@loops
def test_a_break_is_enough_async(server, stream, loop_factory):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            async for _ in stream(gateway):
                assert len(open_connections(server)) == 1
                break
            assert await all_left_async(server)

    assert finished(main, loop_factory) == []


@loops
def test_a_program_that_ends_right_after_a_break(server, loop_factory):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            async for _ in gateway.stream("hi"):
                break

    assert finished(main, loop_factory) == []
    assert all_left(server)


def test_a_program_that_ends_after_a_break_and_never_closes_its_client(server):
    async def main():
        gateway = AsyncGateway(server.url)
        async for _ in gateway.stream("hi"):
            break

    assert finished(main) == []
    assert all_left(server)


@loops
def test_a_client_that_closes_while_its_stream_is_held(server, loop_factory):
    held = []

    async def main():
        async with AsyncGateway(server.url) as gateway:
            held.append(gateway.stream("hi"))
            assert await anext(held[0]) == "Par"
        assert await all_left_async(server)
        with pytest.raises(AnswerCutShort):
            await held[0].finish()

    assert finished(main, loop_factory) == []


@loops
def test_a_stream_that_outlives_the_loop(server, loop_factory):
    held = []

    async def main():
        async with AsyncGateway(server.url) as gateway:
            held.append(gateway.stream("hi"))
            await anext(held[0])

    assert finished(main, loop_factory) == []
    held.clear()
    assert all_left(server)


@loops
def test_a_cancelled_reader(server, loop_factory):
    async def main():
        told = asyncio.Event()

        async def read():
            async for token in gateway.stream("hi"):
                if token == "is":
                    told.set()

        async with AsyncGateway(server.url) as gateway:
            task = asyncio.create_task(read())
            await told.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert await all_left_async(server)

    assert finished(main, loop_factory) == []


def test_a_reader_that_runs_out_of_time(server):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            stream = gateway.stream("hi")
            await anext(stream)  # else a slow machine might not have asked yet
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.finish(), 0.1)
            assert await all_left_async(server)

    assert finished(main) == []


@loops
def test_an_error_in_the_body_of_the_loop(server, loop_factory):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            try:
                async for _ in gateway.stream("hi"):
                    raise ValueError
            except ValueError:
                pass
            assert await all_left_async(server)

    assert finished(main, loop_factory) == []


def test_an_error_in_the_body_of_the_loop_that_ends_the_program(server):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            async for _ in gateway.stream("hi"):
                raise ValueError

    with pytest.raises(ValueError):
        finished(main)
    assert all_left(server)


def test_an_error_in_the_body_of_a_blocking_loop(server):
    with Gateway(server.url) as gateway:
        try:
            for _ in gateway.stream("hi"):
                raise ValueError
        except ValueError:
            pass
        assert all_left(server)


def test_the_last_reference_is_dropped_in_another_thread(server):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            held = [gateway.stream("hi")]
            await anext(held[0])
            await asyncio.to_thread(held.clear)
            assert await all_left_async(server)

    assert finished(main) == []


def test_a_held_stream_stays_open(server):
    with Gateway(server.url) as gateway:
        stream = gateway.stream("hi")
        for _ in stream:
            break
        assert not server.exchanges[0].left.wait(0.2)
        assert next(stream) == "is"
        stream.close()
        assert all_left(server)
        assert list(stream) == []


async def test_a_held_stream_stays_open_async(server):
    async with AsyncGateway(server.url) as gateway:
        async with gateway.stream("hi") as stream:
            async for _ in stream:
                break
            assert not await asyncio.to_thread(server.exchanges[0].left.wait, 0.2)
            assert await anext(stream) == "is"
        assert await all_left_async(server)
        assert [token async for token in stream] == []


async def test_closing_while_another_task_reads(server):
    async with AsyncGateway(server.url) as gateway:
        stream = gateway.stream("hi")
        assert await anext(stream) == "Par"
        reader = asyncio.create_task(stream.finish())
        await asyncio.sleep(0.1)  # all tokens have come, and it waits for more
        with pytest.raises(Misuse):
            await anext(stream)
        await stream.aclose()
        with pytest.raises(AnswerCutShort, match="was closed"):
            await reader
        assert await all_left_async(server)


def test_the_client_works_on_and_keeps_no_connection_of_a_left_stream(server):
    with Gateway(server.url) as gateway:
        for turn in range(3):
            for _ in gateway.stream("hi"):
                break
            assert all_left(server, turn + 1)
        pool = pool_of(gateway)
        server.respond = tell("x")
        assert gateway.stream("hi").finish().text == "x"
        assert not [connection for connection in pool.connections if not connection.is_closed()]


def test_the_async_client_keeps_no_connection_of_a_left_stream(server):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            for turn in range(3):
                async for _ in gateway.stream("hi"):
                    break
                assert await all_left_async(server, turn + 1)
            pool = pool_of(gateway)
            assert pool.connections == []
            assert pool._requests == []

    assert finished(main) == []


def test_everything_is_cancelled_right_after_a_break(server):
    async def main():
        async with AsyncGateway(server.url) as gateway:
            async for _ in gateway.stream("hi"):
                break
            await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            assert await all_left_async(server)

    assert finished(main) == []


def test_a_stream_collected_while_the_pool_is_locked(server):
    """The collector may run anywhere; what it finds must not wait for the lock that its thread holds."""
    with Gateway(server.url) as gateway:
        held = [gateway.stream("hi")]
        next(held[0])

        def drop():
            with pool_of(gateway)._optional_thread_lock:
                held.clear()

        thread = threading.Thread(target=drop, daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        assert all_left(server)


def test_only_an_unfinished_stream_closes_its_connection():
    def answer(request):
        body = json.dumps({"token": "x"}) + "\n" + json.dumps(DONE) + "\n"
        return httpx.Response(200, stream=Body(body.encode()), extensions={"network_stream": network})

    network = Network()
    with Gateway("http://gateway.test", transport=httpx.MockTransport(answer)) as gateway:
        gateway.stream("hi").finish()
        assert network.closed == 0
        next(gateway.stream("hi"))
        assert network.closed == 1


class Body(httpx.SyncByteStream):
    def __init__(self, body):
        self._body = body

    def __iter__(self):
        yield self._body


class Network:
    """What httpx calls the connection beneath a response."""

    closed = 0

    def close(self):
        self.closed += 1
