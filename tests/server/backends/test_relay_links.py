"""One session a node: shared, told apart by what its entry says, closed when nobody uses it any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.backends.relay_links import IDLE_SECONDS, RelayLinks
from server.errors import NodeUnreachable
from server.nodes import NodeId, NodeSpec
from tests.fakes.clock_loop import on_clock_loop
from tests.fakes.relay_node import fake_relay_node
from tests.server.backends.relay_asking import REPORT, read, relay_backend, spec_of
from tests.transport.certificates import NODE_PEM, server_context
from transport.places import Access, Place
from transport.session import SessionSettings


class Sessions:
    """Makes sessions that only know whether they were closed."""

    def __init__(self) -> None:
        self.made: list[tuple[Place, Access]] = []
        self.closed: list[int] = []

    def __call__(self, place: Place, access: Access, settings: SessionSettings) -> Any:
        self.made.append((place, access))
        return _Session(self, len(self.made) - 1)


class _Session:
    def __init__(self, sessions: Sessions, number: int) -> None:
        self._sessions, self._number = sessions, number

    async def close(self) -> None:
        self._sessions.closed.append(self._number)


def spec(**fields: Any) -> NodeSpec:
    values: dict[str, Any] = {"kind": "relay", "host": "10.0.0.1", "port": 8765, **fields}
    return NodeSpec(NodeId("a"), "a", **values)


async def test_a_changed_entry_is_another_session():
    sessions = Sessions()
    links = RelayLinks({"A": "secret a", "VRM_API_TOKEN": "shared"}, sessions)
    for one in (spec(), spec(weight=5.0), spec(port=1), spec(api_key_env="A"), spec(tls=True), spec(host="10.0.0.2")):
        with links.line(one) as line, links.line(one) as same:
            assert line is same
    assert [access.token for _, access in sessions.made] == ["shared", "shared", "secret a", "shared", "shared"]
    assert sessions.made[3][1].tls is not None and sessions.made[0][1].tls is None
    assert "secret" not in repr(sessions.made)
    await links.aclose()
    assert sorted(sessions.closed) == list(range(5))


async def test_certificates_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "empty.pem").write_text("")
    links = RelayLinks({}, Sessions())
    for path in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        with pytest.raises(NodeUnreachable, match=path.name), links.line(spec(tls=True, tls_file=str(path))):
            raise AssertionError("there is no line")


@on_clock_loop
async def test_a_line_that_nobody_uses_is_closed():
    sessions = Sessions()
    links = RelayLinks({}, sessions)
    with links.line(spec(host="10.0.0.1")):
        pass
    with links.line(spec(host="10.0.0.2")):  # in use all the time
        for _ in range(3):
            await asyncio.sleep(IDLE_SECONDS)
            with links.line(spec(host="10.0.0.3")):
                pass
        await asyncio.sleep(0)
        assert sessions.closed == [0]
        with links.line(spec(host="10.0.0.1")):
            assert len(sessions.made) == 4, "it has come back"
    await links.aclose()
    assert sorted(sessions.closed) == [0, 1, 2, 3]


async def test_parameters_are_asked_once_and_kept_by_probes():
    async with fake_relay_node(report=REPORT) as node:
        links = RelayLinks({})
        with links.line(spec_of(node)) as line:
            assert await line.parameters("TINY:latest", 5) == {"temperature": 0.25, "stop": ("<end>",)}
            assert await line.parameters("nobody", 5) == {}
            node.script.report = None
            await line.stats(5, "probe")
            assert await line.parameters("tiny", 5) == {}
        await links.aclose()


async def test_a_node_that_speaks_tls():
    async with (
        fake_relay_node(tls=server_context(), token="secret") as node,
        relay_backend(VRM_API_TOKEN="secret") as backend,
    ):
        _, error = await read(backend, spec_of(node, tls=True, tls_file=str(NODE_PEM)))
        assert error is None
        assert type((await read(backend, spec_of(node, tls=True)))[1]) is NodeUnreachable, "nobody vouches for it"
        assert (await read(backend, spec_of(node)))[1] is not None
