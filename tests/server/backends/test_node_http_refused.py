"""Connections that never came about leave nothing behind, on asyncio's loop and on uvloop's.

uvloop makes a connection's protocol before it connects: what was written down about it must go again, or every refused
connection would be kept for ever and closing would wait for its end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from server.backends.base import Patience
from server.backends.node_http import NodeHttp, Request
from server.errors import NodeError
from server.nodes import NodeId, NodeSpec


@pytest.fixture
def deaf_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_refused_connection_is_forgotten(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], deaf_port: int
) -> None:
    async def knock() -> int:
        http = NodeHttp()
        spec = NodeSpec(NodeId("deaf"), "deaf", "ollama", "127.0.0.1", deaf_port)
        for _ in range(3):
            with pytest.raises(NodeError, match="cannot connect"):
                await http.fetch(Request(spec, "GET", "/api/version"), Patience(), 1000)
        remembered = len(http._all)
        async with asyncio.timeout(60):
            await http.aclose()
        return remembered

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(knock()) == 0
