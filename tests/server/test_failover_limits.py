"""What one request may cost the others: contexts, strikes, attempts, deadlines and seats stay within their bounds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.breaker import BreakerState
from server.errors import AnswerBroken, DeadlineExceeded, RequestInvalid
from server.nodes import NodeId
from tests.fakes.phone import FakeModel, Fault, PhoneSettings, fake_fleet
from tests.server.gateway_parts import Witness, gateway_over


def settings(**changes: Any) -> PhoneSettings:
    return PhoneSettings(**{"burst": 1, "answer_tokens": (24, 40), **changes})


async def test_a_context_that_cannot_be_loaded_breaks_no_node_for_others() -> None:
    """The next plain request is asked as if the wrong one had never been."""
    async with fake_fleet(1, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.error(500), paths="chat", times=1)
        await bench.ask(bench.request("large", options={"num_ctx": 6000}))
        assert phones[0].log[-1].json["options"]["num_ctx"] == 6000
        assert (await bench.ask(bench.request("plain"))).done
        assert "num_ctx" not in phones[0].log[-1].json["options"]


async def test_more_context_than_the_model_was_trained_for_is_refused_with_the_limit() -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        refused = (await bench.ask(bench.request(options={"num_ctx": 2_000_000}))).failed.error
        assert isinstance(refused, RequestInvalid)
        assert "8192" in (refused.hint or "")
        assert not any(phone.counters.requests.get("chat") for phone in phones)


async def test_replays_that_diverge_are_attempts_too() -> None:
    """At most five in one outage, though none of them is the node's fault."""
    async with fake_fleet(9, settings(version="0.6.8", diverge_after=3)) as phones, gateway_over(phones) as bench:
        for phone in phones[:1]:
            phone.settings.diverge_after = None
            phone.fail(Fault.cut(7), paths="chat")
        answered = await bench.ask(bench.request())
        assert isinstance(answered.failed.error, AnswerBroken)
        assert sum(phone.counters.requests.get("chat", 0) for phone in phones) <= 1 + 5
        assert sum(load.failed for load in bench.registry.loads.values()) == 1


async def test_one_poisonous_request_rests_no_fleet() -> None:
    async with fake_fleet(3, settings()) as phones, gateway_over(phones) as bench:
        for phone in phones:
            phone.fail(Fault.error_line(0), paths="chat", times=3)
        for _ in range(3):
            await bench.ask(bench.request("kills every runner"))
        states = [load.breaker.state for load in bench.registry.loads.values()]
        assert states.count(BreakerState.OPEN) <= 1


async def test_what_a_node_cannot_do_another_may() -> None:
    """An option that one kind of server lacks is not the client's mistake while another node has it."""
    async with fake_fleet(2, settings()) as phones, gateway_over([]) as bench:
        await bench.list_phone(phones[0], kind="openai", name="vllm")
        await bench.list_phone(phones[1], name="phone")
        for turn in range(3):
            options = {"temperature": 0, "mirostat": 1}
            assert (await bench.ask(bench.request(f"question {turn}", options=options))).done.node == "phone"


async def test_who_is_in_a_hurry_shares_with_nobody() -> None:
    """A deadline is one request's own: it neither ends an equal one, nor waits for it."""
    async with fake_fleet(2, settings(tokens_per_second=25)) as phones, gateway_over(phones) as bench:
        hurried = asyncio.create_task(bench.ask(bench.request(cacheable=True, deadline_seconds=0.3)))
        patient = asyncio.create_task(bench.ask(bench.request(cacheable=True)))
        assert isinstance((await hurried).failed.error, DeadlineExceeded)
        assert (await patient).done.cache == "miss"
        again = await bench.ask(bench.request(cacheable=True, deadline_seconds=60.0))
        assert again.done.cache == "hit"


async def test_a_hanging_render_does_not_outlast_the_deadline() -> None:
    async with fake_fleet(2, settings(template="open")) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(5), paths="chat")
        phones[1].fail(Fault.hang(), paths="render")
        request = bench.request(options={"temperature": 1, "seed": 2}, deadline_seconds=0.5)
        answered = await asyncio.wait_for(bench.ask(request), 60)
        assert isinstance(answered.failed.error, DeadlineExceeded)


async def test_when_the_last_node_leaves_in_mid_answer_the_end_says_how_far_it_came() -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(5), paths="chat")
        await phones[1].stop_listening()
        error = (await bench.ask(bench.request())).failed.error
        assert isinstance(error, AnswerBroken)
        assert error.tokens_told == 5


async def test_a_fault_of_ours_gives_the_seat_back() -> None:
    """Whatever breaks after the answer: the slot must not be lost for ever."""

    class Faulty(Witness):
        faults = 1

        def attempt_started(self, node: NodeId, model: str) -> None:
            self.faults -= 1
            if self.faults == 0:
                raise OverflowError("a fault of ours")

    async with fake_fleet(1, settings()) as phones, gateway_over(phones, witness=Faulty()) as bench:
        with pytest.raises(OverflowError):
            await bench.ask(bench.request())
        assert bench.registry.loads[NodeId("phone-0")].in_flight == 0
        [record] = bench.witness.records
        assert (record.outcome, record.error_code) == ("failed", "internal")  # not "cancelled": nobody left
        assert (await bench.ask(bench.request())).done


async def test_a_model_that_was_pulled_anew_answers_anew() -> None:
    async with fake_fleet(1, settings()) as phones, gateway_over(phones) as bench:
        assert (await bench.ask(bench.request(cacheable=True))).done.cache == "miss"
        assert (await bench.ask(bench.request(cacheable=True))).done.cache == "hit"
        phones[0].settings.models = (FakeModel(digest="e" * 64),)
        await bench.probe(NodeId("phone-0"))
        assert (await bench.ask(bench.request(cacheable=True))).done.cache == "miss"
