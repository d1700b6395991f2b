"""What GPU nodes are asked besides answers, over real sockets: whole objects, lines, and every way to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from server.backends.node_http import NodeHttp
from server.backends.operations import MAX_LINE_BYTES, Lines, NodeOperations
from server.errors import NodeBroken, NodeBusy, NodeError, NodeRefused, NodeStalled, NodeUnreachable
from server.nodes import NodeSpec
from server.patience import Patience
from tests.server.backends.played_node import Play, played, streamed, whole

PATIENCE = Patience(60.0, 60.0, 60.0, 60.0)
HASTY = Patience(60.0, 60.0, 0.05, 60.0)
LOAD = "/api/models/load"


@pytest.fixture
async def operations() -> AsyncIterator[NodeOperations]:
    http = NodeHttp()
    yield NodeOperations(http, {"KEY": "secret"})
    await http.aclose()


async def lines(operations: NodeOperations, spec: NodeSpec, patience: Patience = PATIENCE) -> list[object]:
    async with aclosing(operations.lines(spec, LOAD, {"model": "m"}, patience)) as found:
        return [record async for record in found]


async def test_an_object_is_asked_for_with_the_nodes_key(operations: NodeOperations):
    async with played(Play([whole(200, b'{"gpus":[]}')])) as node:
        assert await operations.ask(node.spec(api_key_env="KEY"), "/api/gpu", 60.0) == {"gpus": []}
        assert node.head().startswith("GET /api/gpu HTTP/1.1")
        assert "Authorization: Bearer secret" in node.head()


async def test_an_order_brings_its_body(operations: NodeOperations):
    async with played(Play([whole(200, b'{"status":"unloaded"}')])) as node:
        told = await operations.order(node.spec(), "/api/models/unload", {"model": "m"}, 60.0)
        assert (told, node.body()) == ({"status": "unloaded"}, {"model": "m"})


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (whole(503, b'{"error":"no room"}'), NodeBusy, "no room"),
        (whole(409, b'{"error":"in use"}'), NodeRefused, "in use"),
        (whole(500, b'{"error":"x"}'), NodeBroken, "answered 500: x"),
        (whole(401, b'{"error":"a key is needed"}'), NodeBroken, "refuses the gateway"),
        (whole(200, b"[]"), NodeBroken, "no object"),
        (whole(200, b"hello"), NodeBroken, "no JSON"),
        (whole(200, b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"), NodeBroken, "nested too deeply"),
    ],
)
async def test_other_answers_are_errors_for_objects_and_lines(
    operations: NodeOperations, answer: bytes, kind: type[NodeError], word: str
):
    async with played(Play([answer])) as node:
        with pytest.raises(kind, match=word):
            await operations.ask(node.spec(), "/api/gpu", 60.0)
        with pytest.raises(kind, match=word):
            await lines(operations, node.spec())


async def test_nobody_there_and_nobody_answering(operations: NodeOperations):
    async with played(Play([], then="hang")) as node:
        with pytest.raises(NodeStalled, match=r"did not answer /api/gpu within 0\.05 s"):
            await operations.ask(node.spec(), "/api/gpu", 0.05)
        await node.until_closed()
    with pytest.raises(NodeUnreachable):
        await operations.ask(node.spec(), "/api/gpu", 60.0)


async def test_lines_come_one_by_one_and_the_connection_is_kept(operations: NodeOperations):
    pieces = streamed(b'{"status":"load', b'ing"}\n\n{"status":"loading"', b'}\n{"status":"success"}')
    async with played(Play(pieces, then="stay")) as node:
        for _ in range(2):
            told = await lines(operations, node.spec())
            assert told == [{"status": "loading"}, {"status": "loading"}, {"status": "success"}]
        assert node.connections == 1


async def test_lines_that_stop_coming(operations: NodeOperations):
    async with played(Play(streamed(b'{"status":"loading"}\n', ended=False), then="hang")) as node:
        with pytest.raises(NodeStalled) as stalled:
            await lines(operations, node.spec(), HASTY)
        assert stalled.value.phase == "load"
        await node.until_closed()


async def test_lines_that_are_cut(operations: NodeOperations):
    async with played(Play(streamed(b'{"status":"loading"}\n', ended=False))) as node:
        with pytest.raises(NodeBroken, match="cut its answer short"):
            await lines(operations, node.spec())


async def test_who_stops_listening_hangs_up(operations: NodeOperations):
    async with played(Play(streamed(b'{"status":"loading"}\n', ended=False), then="hang")) as node:
        async with aclosing(operations.lines(node.spec(), LOAD, {}, PATIENCE)) as found:
            assert await anext(found) == {"status": "loading"}
        await node.until_closed()


def test_lines_however_they_are_cut():
    body = b'{"a":1}\r\n\n{"b":"\xc3\xa4"}\n{"c":[]}'
    for size in (1, 2, 5, len(body)):
        reader = Lines("n")
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        told = [record for piece in pieces for record in reader.feed(piece)]
        assert [*told, *reader.finish()] == [{"a": 1}, {"b": "ä"}, {"c": []}]


def test_a_line_without_end_is_not_kept():
    reader = Lines("n")
    with pytest.raises(NodeBroken, match="a line of more than"):
        for _ in range(10):
            list(reader.feed(b"x" * (MAX_LINE_BYTES // 4)))
