"""Pushing a model, by the asyncio client against a node that is played."""

import asyncio

import pytest

from potluck import AsyncRelay, Misuse, NodeUnreachable
from tests.fakes.relay_node import fake_relay_node
from tests.potluck.played import relay_of
from transport.pauses import PausePolicy
from transport.session import SessionSettings


@pytest.mark.parametrize("frames", [None, 0, 2, 5])
async def test_a_model_is_pushed_once_whatever_is_cut(tmp_path, frames):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"not this")
    contents = {"config.json": b"{}", "sub/weights": bytes(range(256)) * (10 << 10), "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    async with fake_relay_node() as node, relay_of(node) as relay:
        told = []
        await relay.open()
        if frames is not None:
            node.cut_after(frames)
        total = await relay.push("mine", tmp_path, on_progress=told.append)
        [session] = node.sessions.values()
        assert {name: bytes(data) for name, data in session.pushed["mine"].items()} == contents
        assert total == sum(map(len, contents.values()))
        assert (told[-1].phase, told[-1].done) == ("sending", total)
        assert node.accepted == (1 if frames is None else 2)


async def test_a_line_that_is_cut_before_every_answer_is_given_up(tmp_path):
    (tmp_path / "config.json").write_bytes(b"{}")
    settings = SessionSettings(pauses=PausePolicy(first_seconds=0.001, longest_seconds=0.01, patience_seconds=0.05))
    async with fake_relay_node() as node, AsyncRelay((node.place.host, node.place.port), settings=settings) as relay:
        await relay.open()
        node.cut_after(0, every_time=True)
        with pytest.raises(NodeUnreachable):
            async with asyncio.timeout(60):
                await relay.push("mine", tmp_path)
        assert node.accepted > 2


async def test_what_is_no_model_is_not_pushed(tmp_path):
    async with fake_relay_node() as node, relay_of(node) as relay:
        with pytest.raises(Misuse, match="no files"):
            await relay.push("mine", tmp_path)
        (tmp_path / "con").write_bytes(b"x")
        with pytest.raises(Misuse, match="cannot be pushed"):
            await relay.push("mine", tmp_path)
