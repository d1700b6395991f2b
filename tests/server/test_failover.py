"""Failures of every kind at every moment: the answer is whole and told once, or it ends honestly.

The phones' text is deterministic, so `verify` finds any gap, repeat or splice.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from server.breaker import BreakerState
from server.errors import AnswerBroken, DeadlineExceeded, ModelNotFound, NoNodes, QueueFull, RequestInvalid
from server.exchange import Done, Queued, Token
from server.nodes import NodeId
from server.patience import PatienceLimits
from server.retry import RetryBudget
from server.seating import SeatingLimits
from tests.fakes.phone import FakeModel, FakePhone, Fault, PhoneSettings, expected_answer, fake_fleet, verify_answer
from tests.server.gateway_parts import MODEL, PATIENT, QUICK, Answered, Bench, gateway_over, until

BEFORE_THE_FIRST_TOKEN = {
    "refuse": Fault.refuse(),
    "reset": Fault.reset(),
    "reset in the headers": Fault.reset_in_headers(),
    "500": Fault.error(500),
    "503": Fault.busy(),
    "429": Fault.too_many_requests("0.05"),
    "hang": Fault.hang(),
    "hang after the headers": Fault.hang_after_headers(),
    "cut at once": Fault.cut(0),
    "garbage": Fault.garbage(),
    "error line first": Fault.error_line(0),
    "malformed first line": Fault.malformed_line(0),
    "half a first line": Fault.half_line(0),
    "another model": Fault.wrong_model(),
}
IN_MID_ANSWER = {
    "cut": Fault.cut(5),
    "reset": Fault.reset(5),
    "hang": Fault.hang(5),
    "half a line": Fault.half_line(5),
    "malformed line": Fault.malformed_line(5),
    "error line": Fault.error_line(5),
    "garbage": Fault.garbage(5),
}


WAITING = SeatingLimits(no_node_seconds=60.0)  # for a phone that comes back


def settings(**changes: Any) -> PhoneSettings:
    return PhoneSettings(**{"burst": 1, "answer_tokens": (24, 40), **changes})


def patience_with(fault: Fault) -> PatienceLimits:
    return QUICK if fault.kind.startswith("hang") else PATIENT


def assert_whole(bench: Bench, answered: Answered, request: Any, phone: PhoneSettings | None = None) -> None:
    expected = expected_answer(request.messages, settings=phone or settings(), options=dict(request.options))
    assert answered.text == expected.text
    assert answered.done.reason == expected.done_reason
    assert answered.terminals == 1
    assert all(load.in_flight == 0 for load in bench.registry.loads.values())


@pytest.mark.parametrize("fault", BEFORE_THE_FIRST_TOKEN.values(), ids=BEFORE_THE_FIRST_TOKEN.keys())
async def test_before_the_first_token_another_node_takes_it(fault: Fault) -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones, patience=patience_with(fault)) as bench:
        phones[0].fail(fault, paths="chat")
        request = bench.request()
        answered = await bench.ask(request)
        assert_whole(bench, answered, request)
        assert [share.node for share in answered.done.nodes] == ["phone-1"]
        assert bench.witness.failures[0][0] == "phone-0"


@pytest.mark.parametrize("version", ["0.24.0", "0.33.0-rc2"])
@pytest.mark.parametrize("template", ["open", "closed", "trimming"])
@pytest.mark.parametrize("fault", IN_MID_ANSWER.values(), ids=IN_MID_ANSWER.keys())
async def test_in_mid_answer_another_node_goes_on(fault: Fault, template: Any, version: str) -> None:
    phone = settings(version=version, template=template)
    async with fake_fleet(2, phone) as phones, gateway_over(phones, patience=patience_with(fault)) as bench:
        phones[0].fail(fault, paths="chat")
        request = bench.request(options={"temperature": 0.7, "seed": 3})
        answered = await bench.ask(request)
        assert_whole(bench, answered, request, phone)
        way = bench.witness.resumed[-1][1]
        assert [share.node for share in answered.done.nodes] == ["phone-0", "phone-1"]
        assert answered.done.nodes[1].way == way
        assert way == "chat" if template == "open" else way in ("chat", "raw")


async def test_a_closed_template_goes_on_raw_and_an_open_one_by_chat() -> None:
    for template, way in (("open", "chat"), ("closed", "raw")):
        async with fake_fleet(2, settings(template=template)) as phones, gateway_over(phones) as bench:
            phones[0].fail(Fault.cut(7), paths="chat")
            await bench.ask(bench.request(options={"temperature": 0.5, "seed": 1}))
            assert bench.witness.resumed == [("phone-1", way)]


async def test_an_old_node_replays_at_temperature_0() -> None:
    phone = settings(version="0.6.8")
    async with fake_fleet(2, phone) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(7), paths="chat")
        request = bench.request()
        answered = await bench.ask(request)
        assert_whole(bench, answered, request, phone)
        assert bench.witness.resumed == [("phone-1", "replay")]
        assert (
            answered.done.usage.completion_tokens
            == expected_answer(request.messages, settings=phone, options=dict(request.options)).eval_count
        )


async def test_an_old_node_at_another_temperature_ends_honestly() -> None:
    async with fake_fleet(2, settings(version="0.6.8")) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(7), paths="chat")
        request = bench.request(options={"temperature": 0.7, "seed": 3})
        answered = await bench.ask(request)
        error = answered.failed.error
        assert isinstance(error, AnswerBroken)
        assert (error.node, error.tokens_told) == ("phone-0", 7)
        assert verify_answer(answered.text, messages=request.messages, options=request.options, settings=settings())
        assert phones[1].counters.tokens_sent == 0  # never asked in vain


async def test_a_replay_that_diverges_is_not_told() -> None:
    async with (
        FakePhone(settings(version="0.6.8")) as first,
        FakePhone(settings(version="0.6.8", diverge_after=3)) as second,
        gateway_over([first, second]) as bench,
    ):
        first.fail(Fault.cut(7), paths="chat")
        request = bench.request()
        answered = await bench.ask(request)
        assert isinstance(answered.failed.error, AnswerBroken)
        assert verify_answer(answered.text, messages=request.messages, options=request.options, settings=settings())


async def test_only_the_same_digest_goes_on() -> None:
    other = FakeModel(digest="f" * 64)
    async with (
        FakePhone(settings()) as first,
        FakePhone(settings(models=(other,))) as second,
        FakePhone(settings()) as third,
        gateway_over([first, second, third]) as bench,
    ):
        first.fail(Fault.cut(5), paths="chat")
        request = bench.request()
        answered = await bench.ask(request)
        assert_whole(bench, answered, request)
        assert [share.node for share in answered.done.nodes] == ["phone-0", "phone-2"]


async def test_where_any_model_will_do_it_goes_on_with_the_one_that_began() -> None:
    """The other phone would have begun with another model, and has this one as well."""
    one, other = FakeModel("one:1b"), FakeModel("other:1b")
    async with fake_fleet(2, settings(models=(one, other))) as phones:
        phones[1].settings.models = (other, one)
        async with gateway_over(phones) as bench:
            phones[0].fail(Fault.cut(7), paths="chat")
            request = bench.request(model=None)
            answered = await bench.ask(request)
            assert_whole(bench, answered, request, settings(models=(one,)))
            assert [share.node for share in answered.done.nodes] == ["phone-0", "phone-1"]
            assert answered.done.model == one.name
            assert (await bench.ask(bench.request(model=None, prompt="Who is that?"))).terminals == 1


async def test_a_grammar_is_never_glued() -> None:
    request_fields = {"format": "json"}
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(3), paths="chat")
        request = bench.request(fields=request_fields)
        answered = await bench.ask(request)
        expected = expected_answer(request.messages, settings=settings(), options={"temperature": 0}, format="json")
        assert answered.text == expected.text
        assert bench.witness.resumed == [("phone-1", "replay")]
        phones[1].heal()
        phones[1].fail(Fault.cut(3), paths="chat")
        phones[0].fail(Fault.cut(3), paths="chat")
        broken = await bench.ask(bench.request(fields=request_fields, options={"temperature": 1, "seed": 4}))
        assert isinstance(broken.failed.error, AnswerBroken)


async def test_nothing_left_of_num_predict_ends_with_length() -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(6), paths="chat")
        request = bench.request(options={"temperature": 0, "num_predict": 6})
        answered = await bench.ask(request)
        assert_whole(bench, answered, request)
        assert answered.done.reason == "length"
        assert not bench.witness.resumed


async def test_what_is_left_of_num_predict_is_asked_for() -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(6), paths="chat")
        request = bench.request(options={"temperature": 0, "num_predict": 10})
        answered = await bench.ask(request)
        assert_whole(bench, answered, request)
        assert phones[1].log[-1].json["options"]["num_predict"] == 4
        assert phones[1].log[-1].json["truncate"] is False
        assert answered.done.usage.completion_tokens == 10


async def test_the_clients_own_assistant_message_is_extended() -> None:
    phone = settings(template="open")
    messages = ({"role": "user", "content": "Go on."}, {"role": "assistant", "content": ""})
    whole = expected_answer(messages[:1], settings=phone)
    messages = (messages[0], {"role": "assistant", "content": "".join(whole.pieces[:4])})
    async with fake_fleet(2, phone) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.cut(5), paths="chat")
        answered = await bench.ask(bench.request(messages=messages))
        assert answered.text == "".join(whole.pieces[4:])
        assert [m["role"] for m in phones[1].log[-1].json["messages"]] == ["user", "assistant"]


async def test_delivered_tokens_renew_the_attempts() -> None:
    """Three phones that each die twice after three tokens: more failures than one outage allows, a whole answer."""
    async with fake_fleet(3, settings()) as phones, gateway_over(phones, seating=WAITING) as bench:
        for phone in phones:
            phone.fail(Fault.cut(3), paths=("chat", "generate"), times=2)
        request = bench.request()
        answered = await bench.ask(request)
        assert_whole(bench, answered, request)
        assert len(answered.done.nodes) > 5


async def test_at_most_five_attempts_in_one_outage() -> None:
    async with fake_fleet(8, settings()) as phones, gateway_over(phones) as bench:
        for phone in phones:
            phone.fail(Fault.error(500), paths="chat")
        answered = await bench.ask(bench.request())
        assert isinstance(answered.failed.error, AnswerBroken)
        assert answered.failed.attempts == 5
        assert len({node for node, _ in bench.witness.failures}) == 5


async def test_the_fleets_retry_budget_stops_a_storm() -> None:
    async with fake_fleet(6, settings()) as phones, gateway_over(phones, budget=RetryBudget(0.0, 1)) as bench:
        for phone in phones:
            phone.fail(Fault.error(500), paths="chat")
        for _ in range(4):
            assert isinstance((await bench.ask(bench.request())).failed.error, AnswerBroken)
        assert len(bench.witness.failures) == 4 + 1


async def test_busy_answers_cost_nothing_and_are_waited_out() -> None:
    async with fake_fleet(1, settings()) as phones, gateway_over(phones, seating=WAITING) as bench:
        phones[0].fail(Fault.too_many_requests("0.05"), paths="chat", times=4)
        request = bench.request()
        answered = await bench.ask(request)
        assert_whole(bench, answered, request)
        load = bench.registry.loads[NodeId("phone-0")]
        assert (load.failed, load.breaker.state) == (0, BreakerState.CLOSED)


async def test_a_clients_mistake_is_nobodys_strike_and_not_tried_again() -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        answered = await bench.ask(bench.request(options={"temperature": "hot"}))
        error = answered.failed.error
        assert isinstance(error, RequestInvalid)
        assert "temperature" in error.message
        assert sum(phone.counters.requests.get("chat", 0) for phone in phones) == 1
        assert all(load.failed == 0 for load in bench.registry.loads.values())


async def test_three_failures_open_the_breaker_and_a_restart_closes_it() -> None:
    async with fake_fleet(2, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.error(500), paths="chat")
        for _ in range(8):
            await bench.ask(bench.request())
            bench.registry.loads[NodeId("phone-0")].shunned_until = 0.0
            bench.seating.touch(NodeId("phone-0"))
        load = bench.registry.loads[NodeId("phone-0")]
        assert load.breaker.state is BreakerState.OPEN
        assert load.failed == 3
        await bench.probe(NodeId("phone-0"))
        assert load.breaker.state is BreakerState.OPEN  # a probe's success never clears request failures


async def test_all_nodes_down_is_an_honest_error_soon() -> None:
    async with fake_fleet(3, settings()) as phones, gateway_over(phones) as bench:
        for phone in phones:
            await phone.stop_listening()
        answered = await bench.ask(bench.request())
        assert isinstance(answered.failed.error, AnswerBroken)
        assert answered.terminals == 1


async def test_no_nodes_at_all() -> None:
    async with gateway_over([]) as bench:
        assert isinstance((await bench.ask(bench.request())).failed.error, NoNodes)


async def test_a_model_that_is_gone_from_the_node_is_404_with_its_name() -> None:
    async with fake_fleet(1, settings()) as phones, gateway_over(phones) as bench:
        phones[0].settings.models = (FakeModel(name="other:1b"),)
        answered = await bench.ask(bench.request(model=MODEL))
        assert isinstance(answered.failed.error, ModelNotFound)


async def test_a_late_binding_waits_for_the_free_node() -> None:
    """One slow phone and one quick one: the second and third request both go to the quick one."""
    async with (
        FakePhone(settings(tokens_per_second=30)) as slow,
        FakePhone(settings()) as quick,
        gateway_over([slow, quick]) as bench,
    ):
        answers = await asyncio.gather(*(bench.ask(bench.request(f"Question {n}")) for n in range(3)))
        assert sorted(answer.done.node for answer in answers) == ["phone-0", "phone-1", "phone-1"]
        assert any(isinstance(event, Queued) for answer in answers for event in answer.events)


async def test_a_deadline_ends_waiting_and_telling() -> None:
    async with fake_fleet(1, settings(tokens_per_second=4)) as phones, gateway_over(phones) as bench:
        first = asyncio.create_task(bench.ask(bench.request("one", deadline_seconds=4.0)))
        second = asyncio.create_task(bench.ask(bench.request("two", deadline_seconds=0.2)))
        answered = await asyncio.gather(first, second)
        assert [type(one.failed.error) for one in answered] == [DeadlineExceeded, DeadlineExceeded]
        assert [token for token in answered[0].events if isinstance(token, Token)]
        assert bench.registry.loads[NodeId("phone-0")].failed == 0


async def test_a_full_queue_says_when_to_come_back() -> None:
    limits = SeatingLimits(queue_limit=1, no_node_seconds=0.2)
    async with fake_fleet(1, settings(tokens_per_second=20)) as phones, gateway_over(phones, seating=limits) as bench:
        tasks = [asyncio.create_task(bench.ask(bench.request(f"{n}"))) for n in range(3)]
        answers = await asyncio.gather(*tasks)
        refused = [answer.failed.error for answer in answers if not isinstance(answer.events[-1], Done)]
        assert len(refused) == 1
        assert isinstance(refused[0], QueueFull)
        assert refused[0].retry_after >= 1


@pytest.mark.parametrize("tokens", [0, 1, 5])
async def test_a_client_that_leaves_stops_the_phone(tokens: int) -> None:
    async with fake_fleet(1, settings(tokens_per_second=50)) as phones, gateway_over(phones) as bench:
        async with aclosing(bench.dispatcher.stream(bench.request())) as batches:
            told = 0
            async for batch in batches:
                told += sum(isinstance(event, Token) for event in batch)
                if told >= tokens:
                    break
        await until(lambda: not phones[0].counters.generating)
        assert bench.registry.loads[NodeId("phone-0")].in_flight == 0
        assert bench.witness.records[-1].outcome == "cancelled"


async def test_num_ctx_is_fixed_per_node() -> None:
    """A loaded model keeps its context: more than it has is refused with the limit, less changes nothing."""
    async with fake_fleet(1, settings()) as phones, gateway_over(phones) as bench:
        await bench.ask(bench.request())
        await bench.probe(NodeId("phone-0"))
        assert (await bench.ask(bench.request("small", options={"num_ctx": 512}))).done
        assert "num_ctx" not in phones[0].log[-1].json.get("options", {})
        refused = (await bench.ask(bench.request("large", options={"num_ctx": 8192}))).failed.error
        assert isinstance(refused, RequestInvalid)
        assert "4096" in (refused.hint or "")


async def test_a_trickle_of_single_bytes_is_whole() -> None:
    async with fake_fleet(1, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.trickle(0.0), paths="chat")
        request = bench.request()
        assert_whole(bench, await bench.ask(request), request)


async def test_phones_that_are_up_and_down_in_turn_answer_all_the_same() -> None:
    async with fake_fleet(3, settings()) as phones, gateway_over(phones) as bench:
        for number, phone in enumerate(phones[:2]):
            phone.fail(Fault.flap(up=1 + number, down=1), paths="chat")
        for number in range(6):
            request = bench.request(f"Question {number}")
            assert_whole(bench, await bench.ask(request), request)


async def test_a_phone_that_freezes_for_a_moment_goes_on() -> None:
    """Recorded: stopped for seconds and woken, as Android does in the background, a stream goes on and ends well."""
    async with fake_fleet(1, settings()) as phones, gateway_over(phones) as bench:
        phones[0].fail(Fault.freeze(0.1, after_tokens=4), paths="chat", times=1)
        request = bench.request()
        assert_whole(bench, await bench.ask(request), request)
        assert not bench.witness.failures
