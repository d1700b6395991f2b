"""Kept connections, new ones, and what goes over them. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from server.backends.base import Patience
from server.backends.node_http import MAX_IDLE_PER_NODE, Answer, NodeHttp, Request
from server.backends.resolver import Resolver
from server.errors import NodeBroken, NodeStalled, NodeUnreachable
from server.nodes import NodeId, NodeSpec
from tests.server.backends.played_node import Play, PlayedNode, played, streamed, whole

PATIENCE = Patience(connect=60, first_token=60, between_tokens=60, total=60)
KEPT = Play([whole(200, b"{}")], then="stay")


async def fetch(http: NodeHttp, node: PlayedNode, patience: Patience = PATIENCE, limit: int = 1000) -> Answer:
    return await http.fetch(Request(node.spec(), "GET", "/x"), patience, limit)


async def test_a_connection_is_kept_for_the_next_request():
    async with played(KEPT) as node:
        http = NodeHttp()
        assert await fetch(http, node) == Answer(200, {b"content-length": b"2"}, b"{}")
        await fetch(http, node)
        assert (node.connections, len(node.requests)) == (1, 2)
        await http.aclose()
        await node.until_closed()


async def test_requests_at_once_have_connections_of_their_own():
    async with played(Play([whole(200, b"{}")], then="stay", pause=0.01)) as node:
        http = NodeHttp()
        await asyncio.gather(*(fetch(http, node) for _ in range(5)))
        assert node.connections == 5
        await fetch(http, node)
        assert node.connections == 5
        await http.aclose()


async def test_no_more_connections_are_kept_than_is_useful():
    async with played(Play([whole(200, b"{}")], then="stay", pause=0.01)) as node:
        http = NodeHttp()
        await asyncio.gather(*(fetch(http, node) for _ in range(MAX_IDLE_PER_NODE + 5)))
        async with asyncio.timeout(60):
            while node.open > MAX_IDLE_PER_NODE:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await http.aclose()


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_restarted_node_costs_no_request(then: str):
    """The kept connection dies when it is used: the request goes out once more, on a new one."""
    async with played(KEPT, Play([], then=then), KEPT) as node:
        http = NodeHttp()
        await fetch(http, node)
        assert (await fetch(http, node)).status == 200
        assert (node.connections, len(node.requests)) == (2, 3)
        await http.aclose()


async def test_a_new_connection_that_dies_is_not_tried_again():
    async with played(Play([], then="close")) as node:
        http = NodeHttp()
        with pytest.raises(NodeUnreachable):
            await fetch(http, node)
        assert len(node.requests) == 1
        await http.aclose()


async def test_a_kept_connection_that_dies_within_an_answer_is_not_tried_again():
    async with played(KEPT, Play([b"HTTP/1.1 200"], then="close"), KEPT) as node:
        http = NodeHttp()
        await fetch(http, node)
        with pytest.raises(NodeUnreachable):
            await fetch(http, node)
        assert len(node.requests) == 2
        await http.aclose()


async def test_a_refused_connection_names_its_cause():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = NodeHttp()
        spec = NodeSpec(NodeId("n"), "n", "ollama", "127.0.0.1", free.getsockname()[1])
        with pytest.raises(NodeUnreachable, match="cannot connect") as caught:
            await http.fetch(Request(spec, "GET", "/"), PATIENCE, 100)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_the_next_address_of_a_name_is_tried():
    async with played(KEPT) as node:
        http = NodeHttp(Resolver(lambda host: ["127.0.0.2", "127.0.0.1"]))
        spec = NodeSpec(NodeId("n"), "n", "ollama", "phone.test", node.port)
        assert (await http.fetch(Request(spec, "GET", "/"), PATIENCE, 100)).status == 200
        assert f"Host: phone.test:{node.port}\r\n" in node.head() + "\r\n"
        await http.aclose()


@contextmanager
def black_hole(host: str, port: int = 0) -> Iterator[int]:
    """A port where connecting hangs, as with a phone that left the network: nobody accepts, the queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("addresses", [["127.0.0.2", "127.0.0.1"], ["127.0.0.2", "127.0.0.3", "127.0.0.1"]])
async def test_an_address_that_swallows_everything_does_not_hide_the_next(addresses: list[str]):
    async with played(KEPT) as node:
        http = NodeHttp(Resolver(lambda host: addresses), head_start_seconds=0.01)
        spec = NodeSpec(NodeId("n"), "n", "ollama", "phone.test", node.port)
        with black_hole("127.0.0.2", node.port):
            assert (await http.fetch(Request(spec, "GET", "/"), PATIENCE, 100)).status == 200
        await http.aclose()


async def test_the_first_address_has_a_head_start_and_the_losers_are_closed():
    async with played(KEPT) as node:
        http = NodeHttp(Resolver(lambda host: ["127.0.0.1", "127.0.0.2"]))
        spec = NodeSpec(NodeId("n"), "n", "ollama", "phone.test", node.port)
        with black_hole("127.0.0.2", node.port):
            await http.fetch(Request(spec, "GET", "/"), PATIENCE, 100)
        assert node.connections == 1
        await http.aclose()
    async with played(KEPT) as node:
        http = NodeHttp(Resolver(lambda host: ["127.0.0.1"] * 5), head_start_seconds=0.0)
        spec = NodeSpec(NodeId("n"), "n", "ollama", "phone.test", node.port)
        await http.fetch(Request(spec, "GET", "/"), PATIENCE, 100)
        async with asyncio.timeout(60):
            while node.open > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await http.aclose()


async def test_connecting_takes_no_longer_than_the_whole_exchange_may():
    http = NodeHttp()
    with black_hole("127.0.0.4") as port:
        spec = NodeSpec(NodeId("n"), "n", "ollama", "127.0.0.4", port)
        async with asyncio.timeout(60):
            with pytest.raises(NodeStalled) as caught:
                await http.fetch(Request(spec, "GET", "/"), Patience(connect=60, total=0.02), 100)
    assert caught.value.phase == "connect"
    await http.aclose()


async def test_a_name_without_an_address_is_unreachable():
    def nothing(host: str) -> list[str]:
        raise OSError("no such name")

    http = NodeHttp(Resolver(nothing))
    spec = NodeSpec(NodeId("n"), "n", "ollama", "phone.test", 1)
    with pytest.raises(NodeUnreachable, match=r"phone\.test"):
        await http.fetch(Request(spec, "GET", "/"), PATIENCE, 100)


async def test_a_name_server_that_hangs_is_a_stall_of_connecting():
    import threading

    release = threading.Event()

    def hang(host: str) -> list[str]:
        release.wait(60)
        return []

    http = NodeHttp(Resolver(hang))
    spec = NodeSpec(NodeId("n"), "n", "ollama", "phone.test", 1)
    try:
        with pytest.raises(NodeStalled) as caught:
            await http.fetch(Request(spec, "GET", "/"), Patience(connect=0.02), 100)
        assert caught.value.phase == "connect"
    finally:
        release.set()


async def test_an_answer_over_the_limit_is_broken_and_its_connection_closed():
    async with played(Play([whole(200, b"x" * 100)], then="stay")) as node:
        http = NodeHttp()
        with pytest.raises(NodeBroken):
            await fetch(http, node, limit=10)
        await http.aclose()


async def test_a_request_that_is_dropped_hangs_up():
    async with played(Play(streamed(b"a", ended=False), then="hang")) as node:
        http = NodeHttp()
        end = asyncio.get_running_loop().time() + 10
        connection = await http.open(Request(node.spec(), "GET", "/"), PATIENCE, end)
        http.close(connection)
        await node.until_closed()
        await http.aclose()


async def test_a_cancelled_request_hangs_up():
    async with played(Play([], then="hang")) as node:
        http = NodeHttp()
        task = asyncio.create_task(fetch(http, node))
        while not node.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.until_closed()
        await http.aclose()


async def test_the_end_of_a_body_may_come_after_its_last_record():
    """Whoever closes early because the answer is known gets the connection kept once the body has really ended."""
    pieces = streamed(b"a")
    async with played(Play(pieces, then="stay", pause=0.005)) as node:
        http = NodeHttp()
        end = asyncio.get_running_loop().time() + 10
        connection = await http.open(Request(node.spec(), "GET", "/"), PATIENCE, end)
        assert await connection.read() == b"a"
        http.close(connection, answered=True)
        async with asyncio.timeout(60):
            while not connection.complete:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await fetch(http, node)
        assert node.connections == 1
        await http.aclose()


async def test_an_end_of_body_that_never_comes_is_not_waited_for_for_ever():
    async with played(Play(streamed(b"a", ended=False), then="hang")) as node:
        http = NodeHttp()
        end = asyncio.get_running_loop().time() + 10
        connection = await http.open(Request(node.spec(), "GET", "/"), PATIENCE, end)
        await connection.read()
        http.close(connection, answered=True)
        assert connection.usable
        await node.until_closed()
        await http.aclose()


async def test_closing_closes_idle_and_busy_connections():
    async with played(KEPT, Play(streamed(b"a", ended=False), then="hang")) as node:
        http = NodeHttp()
        await fetch(http, node)
        end = asyncio.get_running_loop().time() + 10
        await http.open(Request(node.spec(), "GET", "/"), PATIENCE, end)
        await http.aclose()
        await node.until_closed()


def test_the_head_of_a_request_is_made_of_the_nodes_entry_alone():
    spec = NodeSpec(NodeId("n"), "n", "ollama", "10.0.0.7", 11434)
    assert Request(spec, "POST", "/api/chat", b"{}").encoded() == (
        b"POST /api/chat HTTP/1.1\r\nHost: 10.0.0.7:11434\r\nUser-Agent: potluck\r\nContent-Length: 2\r\n"
        b"Content-Type: application/json\r\n\r\n{}"
    )


def test_the_key_goes_out_as_a_bearer_token_and_is_not_shown():
    spec = NodeSpec(NodeId("n"), "n", "openai", "10.0.0.7", 8000)
    request = Request(spec, "GET", "/v1/models", key="secret")
    assert b"\r\nAuthorization: Bearer secret\r\n" in request.encoded()
    assert "secret" not in repr(request)


@pytest.mark.parametrize(("host", "sent"), [("::1", b"[::1]:11434"), ("fe80::1%wlan0", b"[fe80::1]:11434")])
def test_the_host_header_of_an_ipv6_address(host: str, sent: bytes):
    spec = NodeSpec(NodeId("n"), "n", "ollama", host, 11434)
    assert b"\r\nHost: " + sent + b"\r\n" in Request(spec, "GET", "/").encoded()
