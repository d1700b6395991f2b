"""A phone overheats in mid-answer, rests, and returns: over fake phones, by the readings alone."""

from __future__ import annotations

from server.care import Condition
from server.exchange import Done, Event, Token
from server.nodes import NodeId
from server.registry import NodeCondition
from tests.fakes.phone import FakePhone, PhoneSettings, fake_fleet
from tests.server.gateway_parts import Bench, gateway_over

KITCHEN = NodeId("phone-0")


def tell(bench: Bench, celsius: float, node_id: NodeId = KITCHEN) -> None:
    bench.registry.emit(NodeCondition(node_id, Condition(temperature_c=celsius, at=1.0), 1.0))


async def nodes_of(bench: Bench, questions: int) -> set[str]:
    """Which nodes answer so many new questions."""
    answers = [await bench.ask(bench.request(f"question {number}")) for number in range(questions)]
    return {answer.done.nodes[-1].node for answer in answers}


async def test_a_phone_overheats_in_mid_answer_rests_and_returns() -> None:
    async with fake_fleet(2, PhoneSettings(tokens_per_second=200)) as phones, gateway_over(phones) as bench:
        whole = (await bench.ask(bench.request())).text
        events: list[Event] = []
        busy = KITCHEN
        async for batch in bench.dispatcher.stream(bench.request()):
            events.extend(batch)
            for node_id, load in bench.registry.loads.items():
                if load.in_flight and any(isinstance(event, Token) for event in batch):
                    busy = node_id
                    tell(bench, 45.0, busy)
        assert bench.registry.fleet.nodes[busy].resting is not None
        done = events[-1]
        assert isinstance(done, Done) and [share.node for share in done.nodes] == [busy]
        assert "".join(event.text for event in events if isinstance(event, Token)) == whole
        assert await nodes_of(bench, 4) == {"phone-0", "phone-1"} - {busy}
        tell(bench, 38.0, busy)
        assert await nodes_of(bench, 4) == {"phone-0", "phone-1"}


async def test_a_single_phone_that_is_hot_answers_rather_than_nobody() -> None:
    async with FakePhone() as phone, gateway_over([phone]) as bench:
        tell(bench, 45.0)
        assert await nodes_of(bench, 2) == {KITCHEN}
        tell(bench, 50.0)
        assert "too hot" in (await bench.ask(bench.request("one more"))).failed.error.message
