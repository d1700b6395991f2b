"""Relay nodes in a fleet: conversations come home to them, and what one began another goes on with."""

from __future__ import annotations

from typing import Any, cast

import pytest

from server.errors import AnswerBroken
from tests.fakes.phone import FakePhone
from tests.fakes.relay_node import FakeRelayNode, Piece, Refusal, fake_relay_node
from tests.server.gateway_parts import Bench, gateway_over
from wire.frames import FrameType
from wire.messages_session import Error, ErrorCode
from wire.messages_stats import ModelRecord, ResidentRecord, Stats
from wire.messages_work import Generate, Given

ANSWER = "Paris is nice!"


def report(digest: str = "d1") -> Stats:
    return Stats(
        (("version", "0.1.0"), ("slots", 4)),
        (ModelRecord("tiny", digest, 1000, context_tokens=4096),),
        (ResidentRecord("tiny", "ready", 4096, slots=4),),
    )


class Door:
    """Where a node listens, as the bench wants it."""

    host = "127.0.0.1"

    def __init__(self, node: FakeRelayNode) -> None:
        self.port = node.port


async def fleet(bench: Bench, *nodes: FakeRelayNode) -> None:
    for index, node in enumerate(nodes):
        await bench.list_phone(cast(FakePhone, Door(node)), kind="relay", name=f"node-{index}")


def turn(*contents: str) -> tuple[dict[str, str], ...]:
    roles = ("user", "assistant")
    return tuple({"role": roles[index % 2], "content": content} for index, content in enumerate(contents))


async def test_conversations_come_home():
    async with (
        fake_relay_node(report=report()) as one,
        fake_relay_node(report=report()) as two,
        gateway_over() as bench,
    ):
        await fleet(bench, one, two)
        firsts = [await bench.ask(bench.request(messages=turn(f"talk {number}"))) for number in range(4)]
        homes = [answered.done.node for answered in firsts]
        assert set(homes) == {"node-0", "node-1"}
        for number in (2, 0, 3, 1):
            request = bench.request(messages=turn(f"talk {number}", ANSWER, "and then?"))
            answered = await bench.ask(request)
            assert (answered.done.node, answered.done.homecoming) == (homes[number], "home")


async def test_what_one_node_began_another_goes_on_with():
    async with (
        fake_relay_node(report=report()) as one,
        fake_relay_node(report=report()) as two,
        gateway_over() as bench,
    ):
        await fleet(bench, one, two)
        one.cut_after(2)
        one.refuse_handshakes = [Error(ErrorCode.WRONG_PROOF, "who are you?")]
        answered = await bench.ask(bench.request(options={"temperature": 0.7}))
        assert answered.text == ANSWER and answered.done.usage.completion_tokens == 7
        assert [share.way for share in answered.done.nodes] == ["first", "exact"]
        (asked,), (rest,) = one.asked(Generate), two.asked(Generate)
        assert rest.given == (Given((5, 6, 7), len("Paris")),)
        assert asked.sampling.seed is not None and rest.sampling == asked.sampling, "with the same draws"
        assert rest.bounds == asked.bounds and rest.prompt == asked.prompt


async def test_other_weights_do_not_go_on():
    async with (
        fake_relay_node(report=report()) as one,
        fake_relay_node(report=report("d2")) as two,
        gateway_over() as bench,
    ):
        await fleet(bench, one, two)
        one.cut_after(2)
        one.refuse_handshakes = [Error(ErrorCode.WRONG_PROOF, "who are you?")]
        answered = await bench.ask(bench.request(options={"temperature": 0.7}))
        assert isinstance(answered.failed.error, AnswerBroken) and not two.asked(Generate)


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.STOPPING, ErrorCode.NO_ROOM])
async def test_a_node_that_is_busy_gets_no_strike_and_another_answers(code: ErrorCode):
    refusal: Any = Refusal(FrameType.GENERATE, Error(code, "not now", 100))
    async with (
        fake_relay_node(report=report(), refusals=[refusal]) as one,
        fake_relay_node(report=report(), answer=lambda _: [Piece("from the other", (1,))]) as two,
        gateway_over() as bench,
    ):
        await fleet(bench, one, two)
        answered = await bench.ask(bench.request())
        assert (answered.text, answered.done.node) == ("from the other", "node-1")
        assert all(load.failed == 0 for load in bench.registry.loads.values())
