"""A session over cuts: nothing lost, nothing twice, nothing endless."""

import asyncio
import random

import pytest

from tests.fakes.manual_clock import ManualClock
from tests.fakes.relay_node import Piece, Refusal, fake_relay_node
from transport.errors import ConnectFailed, ConnectionLost, ProtocolBroken, Refused, WrongToken
from transport.link import Access
from transport.pauses import PausePolicy
from transport.session import RelaySession, SessionSettings
from wire.frames import FrameType
from wire.messages_session import Error, ErrorCode, GoodbyeReason, Hello
from wire.messages_stats import Stats
from wire.messages_work import Done, Generate, Load, Progress, Push, PushFile, TextPrompt, Tokens

OPEN = Access(None)
ASKED = Generate("tiny", TextPrompt("Paris?"))
QUICK = SessionSettings(pauses=PausePolicy(first_seconds=0.001, longest_seconds=0.01))


def session_of(node, settings=QUICK, token=None):
    return RelaySession(node.place, Access(token), settings)


async def told(session, request=ASKED):
    return [message async for message in session.generate(request)]


def text_of(messages):
    return "".join(message.text for message in messages if isinstance(message, Tokens))


def many(count):
    return lambda request: [Piece(f"{number} ", (number,)) for number in range(count)]


async def test_many_callers_share_one_connection():
    async with fake_relay_node() as node:
        session = session_of(node)
        answers = await asyncio.gather(*(told(session) for _ in range(20)))
        assert {text_of(answer) for answer in answers} == {"Paris is nice!"}
        assert node.accepted == 1
        await session.close()
        assert node.goodbyes[0].reason is GoodbyeReason.FINISHED


@pytest.mark.parametrize("frames", range(8))
async def test_a_cut_anywhere_in_an_answer_is_not_seen(frames):
    async with fake_relay_node() as node:
        session = session_of(node)
        node.cut_after(frames)
        messages = await told(session)
        tokens = [message for message in messages if isinstance(message, Tokens)]
        assert text_of(tokens) == "Paris is nice!"
        assert [message.index for message in tokens] == list(range(5))
        assert isinstance(messages[-1], Done) and messages[-1].index == 5
        if frames < 6:
            assert node.accepted == 2
            assert {request.job for request in node.asked(Generate)} == {node.asked(Generate)[0].job}
        await session.close()


async def test_cut_after_cut_nothing_is_lost_or_told_twice():
    chance = random.Random(5)
    async with fake_relay_node(answer=many(200), gate=asyncio.Semaphore(3)) as node:
        session, ids = session_of(node), []
        async for message in session.generate(ASKED):
            if isinstance(message, Tokens):
                ids.extend(message.ids)
                [node.script.gate.release() for _ in range(2)]  # a cut costs one or two
                if chance.random() < 0.2:
                    node.cut_after(chance.randrange(3))
        assert ids == list(range(200))
        assert node.accepted > 5
        await session.close()


async def test_where_the_session_is_gone_the_answer_goes_on_behind_its_ids():
    async with fake_relay_node(answer=many(9), gate=asyncio.Semaphore(4)) as node:
        session, ids, indexes = session_of(node), [], []
        async for message in session.generate(ASKED):
            if isinstance(message, Tokens):
                ids.extend(message.ids)
                indexes.append(message.index)
                if len(ids) == 4:
                    node.forget()
                    node.cut()
                    node.script.gate = None
        first, second = node.asked(Generate)
        assert ids == indexes == list(range(9))
        assert (second.given[0].ids, second.next_index) == ((0, 1, 2, 3), 0)
        assert second.given[0].text_bytes == len("0 1 2 3 ")
        assert second.job != first.job
        assert (message.index, message.output_tokens) == (9, 9)
        await session.close()


async def test_a_job_that_the_node_dropped_goes_on_behind_its_ids():
    async with fake_relay_node(answer=many(6), gate=asyncio.Semaphore(2)) as node:
        session, ids = session_of(node), []
        async for message in session.generate(ASKED):
            if isinstance(message, Tokens):
                ids.extend(message.ids)
                if len(ids) == 2:
                    next(iter(node.sessions.values())).jobs.clear()
                    node.cut()
                    node.script.gate = None
        assert ids == list(range(6))
        assert [bool(request.given) for request in node.asked(Generate)] == [False, False, True]
        await session.close()


async def test_closing_the_generator_cancels_the_work():
    async with fake_relay_node(gate=asyncio.Semaphore(1)) as node:
        session = session_of(node)
        answer = session.generate(ASKED)
        assert isinstance(await anext(answer), Tokens)
        await answer.aclose()
        await node.until(lambda: bool(node.cancelled))
        await session.close()


@pytest.mark.parametrize("wrong", ["gap", "repeat", "short"])
async def test_a_gap_or_a_repeat_is_the_nodes_fault(wrong):
    async with fake_relay_node(answer=many(4)) as node:
        session = session_of(node)
        node.script.lie = wrong
        with pytest.raises(ProtocolBroken):
            await told(session)
        assert node.accepted == 1
        await session.close()


async def test_a_refusal_is_not_asked_again():
    async with fake_relay_node() as node:
        node.script.refusals.append(Refusal(FrameType.GENERATE, Error(ErrorCode.BUSY, "full", 100)))
        session = session_of(node)
        with pytest.raises(Refused):
            await told(session)
        assert len(node.asked(Generate)) == 1
        await session.close()


async def test_what_may_be_asked_twice_is():
    async with fake_relay_node() as node:
        session = session_of(node)
        node.cut_after(1)
        seen = []
        loaded = await session.ask(Load("tiny"), seen.append)
        assert loaded.model == "tiny" and len(node.asked(Load)) == 2
        assert all(isinstance(progress, Progress) for progress in seen)
        await session.close()


async def test_what_may_not_be_asked_twice_is_not():
    async with fake_relay_node() as node:
        session = session_of(node)
        await session.link()
        node.cut_after(0)
        with pytest.raises(ConnectionLost):
            await session.ask(Push("m", (PushFile("a", 1, bytes(32)),)))
        assert len(node.asked(Push)) == 1
        await session.close()


async def test_an_idle_session_comes_back_by_itself_and_keeps_what_it_holds():
    async with fake_relay_node() as node:
        session = session_of(node)
        key = (await session.link()).welcome.session_key
        node.cut()
        await node.heard_of(Hello, 2)
        link = await session.link()
        assert link.welcome.resumed and link.welcome.session_key == key
        await session.close()


async def test_the_first_attempt_is_not_repeated():
    async with fake_relay_node() as node:
        await node.stop()
        session = session_of(node)
        with pytest.raises(ConnectFailed):
            await session.link()
        await node.start()
        await session.link()  # the next who asks begins anew
        await session.close()


async def test_when_the_grace_is_over_the_waiting_are_told():
    clock = ManualClock()
    async with fake_relay_node(grace_seconds=30, gate=asyncio.Semaphore(1)) as node:
        session = session_of(node, SessionSettings(clock=clock.clock, chance=lambda: 0.0))
        answer = session.generate(ASKED)
        await anext(answer)
        await node.stop()
        rest = asyncio.ensure_future(anext(answer))
        while not rest.done():
            await asyncio.sleep(0.001)
            await clock.advance(1.0)
        with pytest.raises(ConnectFailed):
            rest.result()
        assert 30 <= clock.now < 40
        await answer.aclose()
        await session.close()


async def test_a_wrong_token_after_a_cut_ends_the_waiting_at_once():
    async with fake_relay_node(token="old", gate=asyncio.Semaphore(1)) as node:
        session = session_of(node, token="old")
        answer = session.generate(ASKED)
        await anext(answer)
        node.settings.token = "new"
        node.cut()
        with pytest.raises(WrongToken):
            await anext(answer)
        await session.close()


async def test_a_silent_line_is_found_by_pings_and_replaced():
    clock = ManualClock()
    settings = SessionSettings(clock=clock.clock, ping_seconds=10, silent_pings=2, chance=lambda: 0.0)
    async with fake_relay_node() as node:
        session = session_of(node, settings)
        link = await session.link()
        node.links[0].mute = True
        for _ in range(5):
            await clock.settle()
            await clock.advance(10)
        assert "silent" in str(link.lost)
        await session.link()
        assert node.accepted == 2
        await session.close()


async def test_a_line_that_answers_pings_is_kept():
    clock = ManualClock()
    async with fake_relay_node() as node:
        session = session_of(node, SessionSettings(clock=clock.clock, ping_seconds=10, silent_pings=1))
        link = await session.link()
        for _ in range(10):
            before = link.driver.received_bytes
            await clock.advance(10)
            await link.ping()
            assert link.driver.received_bytes > before
        assert link.lost is None
        await session.close()


@pytest.mark.parametrize("reason", ["IDLE", "REPLACED", "STOPPING"])
async def test_after_a_goodbye_the_next_request_connects_anew(reason):
    async with fake_relay_node() as node:
        session = session_of(node)
        link = await session.link()
        node.goodbye(GoodbyeReason[reason])
        await link.wait_closed()
        assert node.accepted == 1
        assert isinstance(await session.ask(Stats()), Stats)
        assert node.accepted == 2
        assert bool(node.asked(Hello)[1].session_key) == (reason == "STOPPING")
        await session.close()


async def test_a_closed_session_says_so_to_all():
    async with fake_relay_node(gate=asyncio.Semaphore(0)) as node:
        session = session_of(node)
        waiting = asyncio.ensure_future(told(session))
        await node.heard_of(Generate)
        await session.close()
        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost):
            await session.link()
        await session.close()


async def test_closing_ends_an_attempt_under_way():
    async with fake_relay_node() as node:
        node.mute = True
        session = session_of(node)
        waiting = asyncio.ensure_future(session.link())
        await node.until(lambda: node.accepted == 1)
        await session.close()
        with pytest.raises(ConnectionLost):
            await waiting


async def test_hundred_cuts_leave_nothing_behind():
    async with fake_relay_node() as node:
        session = session_of(node)
        for _ in range(100):
            link = await session.link()
            node.cut()
            await link.wait_closed()
        await session.link()
        assert node.accepted == 101
        await session.close()
        await node.until(lambda: not node._peers)


async def test_what_is_cut_again_and_again_before_anything_came_ends_with_the_grace():
    clock = ManualClock()
    async with fake_relay_node(grace_seconds=30, gate=asyncio.Semaphore(0)) as node:
        session = session_of(node, SessionSettings(clock=clock.clock, chance=lambda: 0.0))
        telling = asyncio.ensure_future(told(session))
        while not telling.done():
            if len(node.asked(Generate)) == node.accepted and node.links:
                node.cut()
            await asyncio.sleep(0.001)
            await clock.advance(0.5)
        with pytest.raises(ConnectionLost):
            telling.result()
        assert 30 <= clock.now < 50
        assert node.accepted < 20, "without a pause in between"
        await session.close()


async def test_a_node_that_denies_every_job_is_not_asked_for_ever():
    async with fake_relay_node() as node:
        node.script.refusals += [Refusal(FrameType.GENERATE, Error(ErrorCode.SESSION_GONE, "no"))] * 9
        session = session_of(node)
        with pytest.raises(Refused, match="no"):
            await told(session)
        assert len(node.asked(Generate)) == 2
        await session.close()


async def test_a_request_that_crosses_the_end_of_an_idle_session_is_asked_anew():
    async with fake_relay_node() as node:
        session = session_of(node)
        for ask in (lambda: session.ask(Load("tiny")), lambda: told(session)):
            link = await session.link()
            node.goodbye(GoodbyeReason.IDLE)
            await asyncio.sleep(0)
            while link.goodbye is None:  # noqa: ASYNC110 - its goodbye has come, its end not yet
                await asyncio.sleep(0)
            assert await ask()
            assert (await session.link()) is not link
        over = Error(ErrorCode.SESSION_GONE, "over")
        node.script.refusals += [Refusal(FrameType.LOAD, over), Refusal(FrameType.GENERATE, over)]
        assert await session.ask(Load("tiny")) and await told(session)
        await session.close()
