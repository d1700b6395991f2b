"""Streams over real sockets: whole, cut in every way, left early. Sync and async must behave alike."""

import asyncio
from contextlib import aclosing

import pytest

from potluck import (
    AnswerCutShort,
    AnswerTimeout,
    AsyncGateway,
    Gateway,
    GatewayUnreachable,
    ModelUnknown,
    NoNodes,
    PotluckError,
    Queued,
    Timeouts,
    Token,
    UnexpectedAnswer,
)
from tests.potluck.loopback import ANSWER, DONE, Exchange, Loopback, tell

# Short where a test provokes a timeout, long where silence would be a failure of the test.
HASTY = Timeouts(connect_seconds=60, silence_seconds=0.2)


def read_sync(url, timeouts=None):
    told = []
    with Gateway(url, timeouts=timeouts) as gateway, gateway.stream("hi") as stream:
        try:
            told.extend(stream)
        except PotluckError as error:
            return told, error
    return told, stream.answer


def read_async(url, timeouts=None):
    async def read():
        told = []
        async with AsyncGateway(url, timeouts=timeouts) as gateway, gateway.stream("hi") as stream:
            try:
                async for token in stream:
                    told.append(token)
            except PotluckError as error:
                return told, error
        return told, stream.answer

    return asyncio.run(read())


both = pytest.mark.parametrize("read", [read_sync, read_async])


@both
def test_tokens_then_the_whole_answer(read):
    with Loopback(tell("Par", "is ", "jest ładne")) as server:
        told, answer = read(server.url)
    assert told == ["Par", "is ", "jest ładne"]
    assert all(isinstance(token, Token) for token in told)
    assert answer.text == "Paris jest ładne"
    assert answer.node == "pixel-3"
    assert server.requests[0].json == {"prompt": "hi"}


@both
def test_a_stream_that_ends_without_its_last_record_raises(read):
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"token": "Par"})
        exchange.end()

    with Loopback(respond) as server:
        told, error = read(server.url)
    assert told == ["Par"]
    assert isinstance(error, AnswerCutShort)
    assert error.text == "Par"


@both
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_breaks_keeps_the_text(read, reset):
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"token": "Par"}, {"token": "is"})
        if reset:
            exchange.reset()

    with Loopback(respond) as server:
        told, error = read(server.url)
    assert isinstance(error, AnswerCutShort)
    assert error.text == "".join(told)
    assert reset or error.text == "Paris"  # a reset may overtake what was sent before it


@both
def test_a_connection_that_breaks_after_the_last_record_is_no_failure(read):
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"token": "Paris"}, DONE)

    with Loopback(respond) as server:
        assert read(server.url)[1].text == "Paris"


@both
def test_an_error_in_the_stream(read):
    error = {"code": "nodes_failed", "message": "pixel-3 broke", "node": "pixel-3"}

    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"token": "Par"}, {"error": error})
        exchange.wait_until_left()

    with Loopback(respond) as server:
        told, caught = read(server.url)
    assert told == ["Par"]
    assert isinstance(caught, AnswerCutShort)
    assert caught.nodes == ("pixel-3",)


@both
def test_a_refusal_instead_of_a_stream(read):
    error = {"code": "no_nodes", "message": "no node", "hint": "Add a phone."}
    with Loopback(lambda exchange: exchange.send(503, {"error": error})) as server:
        _, caught = read(server.url)
    assert isinstance(caught, NoNodes)
    assert (caught.status, caught.hint) == (503, "Add a phone.")


@both
def test_silence_before_the_first_token_and_within(read):
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"token": "Par"})
        exchange.wait_until_left()

    with Loopback(lambda exchange: exchange.wait_until_left()) as server:
        assert isinstance(read(server.url, HASTY)[1], AnswerTimeout)
    with Loopback(respond) as server:
        told, error = read(server.url, Timeouts(connect_seconds=60, silence_seconds=4))  # the token is no slower
        assert told == ["Par"]
        assert isinstance(error, AnswerTimeout)
        assert all(exchange.left.wait(60) for exchange in server.exchanges)


@both
def test_nobody_there(read):
    with Loopback(tell()) as server:
        url = server.url
    _, error = read(url)
    assert isinstance(error, GatewayUnreachable)
    assert error.url == url


@both
def test_something_else_there(read):
    with Loopback(lambda exchange: exchange.send(200, b"<html>hello</html>\n")) as server:
        assert isinstance(read(server.url)[1], UnexpectedAnswer)


def endless(exchange: Exchange):
    exchange.begin()
    exchange.record({"queued": 2}, {"token": "Par"}, {"token": "is"})
    exchange.wait_until_left()


def test_leaving_early_closes_the_connection():
    with Loopback(endless) as server, Gateway(server.url) as gateway:
        with gateway.stream("hi") as stream:
            assert next(stream) == "Par"
            assert stream.text in ("Par", "Paris")
            with pytest.raises(PotluckError, match="not come to its end"):
                stream.answer  # noqa: B018
        assert server.exchanges[0].left.wait(60)
        stream.close()
        assert list(stream) == []


async def test_leaving_early_closes_the_connection_async():
    with Loopback(endless) as server:
        async with AsyncGateway(server.url) as gateway:
            async with gateway.stream("hi") as stream:
                assert await anext(stream) == "Par"
                with pytest.raises(PotluckError, match="not come to its end"):
                    stream.answer  # noqa: B018
            assert await asyncio.to_thread(server.exchanges[0].left.wait, 60)


async def test_cancelling_a_task_closes_the_connection():
    with Loopback(endless) as server:
        async with AsyncGateway(server.url) as gateway:
            told = asyncio.Event()

            async def read():
                async for _ in gateway.stream("hi"):
                    told.set()

            task = asyncio.create_task(read())
            await told.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.exchanges[0].left.wait, 60)


def test_places_in_the_queue_can_be_seen():
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"queued": 2}, {"queued": 1}, {"token": "x"}, DONE)
        exchange.end()

    with Loopback(respond) as server, Gateway(server.url) as gateway:
        assert list(gateway.stream("hi").events()) == [Queued(2), Queued(1), Token("x")]
        stream = gateway.stream("hi")
        assert stream.finish().text == stream.text == "x"
        assert stream.finish().text == "x"


async def test_places_in_the_queue_can_be_seen_async():
    def respond(exchange: Exchange):
        exchange.begin()
        exchange.record({"queued": 1}, {"token": "x"}, DONE)
        exchange.end()

    with Loopback(respond) as server:
        async with AsyncGateway(server.url) as gateway, aclosing(gateway.stream("hi")) as stream:
            assert [event async for event in stream.events()] == [Queued(1), Token("x")]
            assert (await stream.finish()).text == "x"


def test_nothing_is_sent_before_the_first_step():
    with Loopback(tell("x")) as server, Gateway(server.url) as gateway:
        gateway.stream("hi").close()
        with gateway.stream("hi"):
            pass
        assert server.requests == []


def two_results(exchange: Exchange):
    exchange.begin()
    exchange.record({"index": 1, **ANSWER}, {"index": 0, "error": {"code": "model_not_found", "message": "no"}})
    if exchange.asked.json["prompts"] == ["whole", "one"]:
        exchange.record({"done": True})
    exchange.end()


def test_a_batch_as_its_results_finish():
    with Loopback(two_results) as server, Gateway(server.url) as gateway:
        items = list(gateway.batch(["whole", "one"], stream=True, seed=1))
        assert [(item.index, item.error is None) for item in items] == [(1, True), (0, False)]
        assert isinstance(items[1].error, ModelUnknown)
        assert server.requests[0].json == {"prompts": ["whole", "one"], "seed": 1, "stream": True}
        with gateway.batch(["cut", "one"], stream=True) as batch, pytest.raises(AnswerCutShort):
            list(batch)


async def test_a_batch_as_its_results_finish_async():
    with Loopback(two_results) as server:
        async with AsyncGateway(server.url) as gateway:
            assert [item.index async for item in gateway.batch(["whole", "one"], stream=True)] == [1, 0]
            with pytest.raises(AnswerCutShort):
                async for _ in gateway.batch(["cut", "one"], stream=True):
                    pass
