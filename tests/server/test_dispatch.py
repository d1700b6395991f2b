"""The door: every request ends in one terminal event; cache, joining, draining, cut-off, and what is told of it."""

from __future__ import annotations

import asyncio

from server.errors import GatewayDraining, ModelNotFound
from server.exchange import Done, Event, Failed, Started, Token
from server.nodes import NodeId
from tests.fakes.phone import FakePhone, Fault, PhoneSettings, fake_fleet, verify_answer
from tests.server.gateway_parts import MODEL, Answered, Bench, gateway_over, until


async def test_an_answer_is_whole_and_counted() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone]) as bench:
        request = bench.request()
        answered = await bench.ask(request)
        assert verify_answer(answered.text, messages=request.messages, options=request.options).complete
        done = answered.done
        assert (done.node, done.model, done.attempts, done.cache) == ("phone-0", MODEL, 1, "off")
        assert done.usage.completion_tokens >= done.nodes[0].tokens > 0
        assert answered.terminals == 1
        assert isinstance(answered.events[0], Started)
        [record] = bench.witness.records
        assert (record.outcome, record.node, record.usage) == ("done", "phone-0", done.usage)


async def test_the_seat_is_free_and_the_conversation_kept_before_the_end_is_seen() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone]) as bench:
        ends = 0
        async for batch in bench.dispatcher.stream(bench.request()):
            if isinstance(batch[-1], Done):
                ends += 1
                assert bench.registry.loads[NodeId("phone-0")].in_flight == 0
                assert bench.dispatcher.held_conversations("phone-0") == 1
        assert ends == 1


async def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone]) as bench:
        error = (await bench.ask(bench.request(model="smolm2:135m"))).failed.error
        assert isinstance(error, ModelNotFound)
        assert error.nearest == (MODEL,)


async def test_an_alias_names_a_model() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone], aliases={"GPT-4o-mini": MODEL}) as bench:
        assert (await bench.ask(bench.request(model="gpt-4o-mini"))).done.model == MODEL


async def test_a_complete_answer_is_told_again_from_the_cache() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone]) as bench:
        first = await bench.ask(bench.request(cacheable=True))
        second = await bench.ask(bench.request(cacheable=True))
        assert (first.done.cache, second.done.cache) == ("miss", "hit")
        assert first.text == second.text
        assert phone.counters.requests["chat"] == 1
        other = await bench.ask(bench.request(cacheable=True, options={"temperature": 0, "num_predict": 3}))
        assert other.done.cache == "miss"
        assert bench.dispatcher.cache_status()["hits"] == 1


async def test_failures_are_not_kept() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone]) as bench:
        phone.fail(Fault.error(500), paths="chat", times=1)
        assert isinstance((await bench.ask(bench.request(cacheable=True))).events[-1], Failed)
        assert (await bench.ask(bench.request(cacheable=True))).done.cache == "miss"


async def test_equal_requests_in_flight_share_one_generation() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=200)) as phone, gateway_over([phone]) as bench:
        answers = await asyncio.gather(*(bench.ask(bench.request(cacheable=True)) for _ in range(5)))
        assert sorted(answer.done.cache for answer in answers) == ["joined"] * 4 + ["miss"]
        assert len({answer.text for answer in answers}) == 1
        assert phone.counters.requests["chat"] == 1


async def test_one_that_leaves_a_shared_answer_does_not_end_it_and_the_last_one_does() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=100)) as phone, gateway_over([phone]) as bench:
        leader = bench.dispatcher.stream(bench.request(cacheable=True))
        await anext(leader)
        await anext(leader)
        joined = asyncio.create_task(bench.ask(bench.request(cacheable=True)))
        await asyncio.sleep(0)
        await leader.aclose()
        assert (await joined).done.cache == "joined"
        alone = bench.dispatcher.stream(bench.request("another", cacheable=True))
        await anext(alone)
        await anext(alone)
        await alone.aclose()
        await until(lambda: not phone.counters.generating)
        assert not bench.answers.in_flight
        assert bench.registry.loads[NodeId("phone-0")].in_flight == 0


async def test_after_the_cut_off_nothing_begins() -> None:
    async with FakePhone() as phone, gateway_over([phone]) as bench:
        bench.dispatcher.cut_off()
        assert isinstance((await bench.ask(bench.request())).failed.error, GatewayDraining)
        assert not phone.counters.generating


async def test_cut_off_ends_running_answers_with_an_honest_error() -> None:
    async with fake_fleet(2, PhoneSettings(tokens_per_second=10)) as phones, gateway_over(phones) as bench:
        plain = asyncio.create_task(bench.ask(bench.request("one")))
        shared = asyncio.create_task(bench.ask(bench.request("two", cacheable=True)))
        for phone in phones:
            await until_telling(phone)
        bench.dispatcher.cut_off()
        for answered in await asyncio.gather(plain, shared):
            assert isinstance(answered.failed.error, GatewayDraining)
            assert answered.terminals == 1
        assert [record.outcome for record in bench.witness.records] == ["failed", "failed"]


async def test_a_task_cancelled_from_outside_stays_cancelled() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=10)) as phone, gateway_over([phone]) as bench:
        task = asyncio.create_task(bench.ask(bench.request()))
        await until_telling(phone)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert [record.outcome for record in bench.witness.records] == ["cancelled"]


async def test_a_second_turn_comes_home() -> None:
    async with fake_fleet(3, PhoneSettings()) as phones, gateway_over(phones) as bench:
        for number in range(3):  # whoever is next in turn would not be the one that holds the conversation
            first = await bench.ask(bench.request(f"Question {number}"))
            second = await bench.ask(_next_turn(bench, f"Question {number}", first))
            assert second.done.node == first.done.node
            assert (first.done.homecoming, second.done.homecoming) == ("new", "home")


async def test_without_affinity_the_second_turn_goes_in_turn() -> None:
    async with fake_fleet(2, PhoneSettings()) as phones, gateway_over(phones, affinity=False) as bench:
        first = await bench.ask(bench.request("Question"))
        second = await bench.ask(_next_turn(bench, "Question", first))
        assert second.done.node != first.done.node


async def test_queue_and_memory_can_be_asked_about() -> None:
    async with FakePhone(PhoneSettings(tokens_per_second=100)) as phone, gateway_over([phone]) as bench:
        tasks = [asyncio.create_task(bench.ask(bench.request(f"{n}"))) for n in range(3)]
        await until_telling(phone)
        status = bench.dispatcher.queue_status()
        assert (status["waiting"], status["callers"]) == (2, {"ip:127.0.0.1": 2})
        await asyncio.gather(*tasks)
        assert bench.dispatcher.queue_status()["waiting"] == 0


def _next_turn(bench: Bench, question: str, first: Answered) -> object:
    messages = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": first.text.strip()},
        {"role": "user", "content": "And then?"},
    )
    return bench.request(messages=messages)


async def until_telling(phone: FakePhone) -> None:
    await until(lambda: phone.counters.tokens_sent)


async def test_every_stream_begins_with_the_caches_word() -> None:
    async with FakePhone(PhoneSettings()) as phone, gateway_over([phone]) as bench:
        for request in (bench.request(), bench.request(cacheable=True), bench.request(model="nobody:1b")):
            events: list[Event] = list((await bench.ask(request)).events)
            assert isinstance(events[0], Started)
            assert not any(isinstance(event, Started) for event in events[1:])
            assert isinstance(events[-1], Done | Failed)
            assert not any(isinstance(event, Token) and event.tokens == 0 for event in events)
