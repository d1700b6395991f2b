"""Answers over a line that is cut at any byte of either direction: each is heard whole, once, and by nobody else.

Also at its end, which nobody acknowledges: whether DONE was lost, or heard and asked for in vain, is the same to who
listens.
"""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.cutting_line import Cut, cutting_line
from tests.fakes.scripted_runner import ScriptedRunner, mixed
from tests.gpu_node.engine.desk import greedy
from tests.gpu_node.relay.relayed import NAME, real, until_true
from transport.errors import TransportError
from transport.pauses import PausePolicy
from transport.places import Access, Place
from transport.session import RelaySession, SessionSettings
from wire.messages_work import Bounds, Done, Generate, Sampling, TextPrompt, Tokens

AT_ONCE = SessionSettings(pauses=PausePolicy(first_seconds=0.0))
GREEDY = Sampling(temperature=0.0)
# Bytes of a handshake; what lies beyond is an answer's, a few hundred bytes of requests and some thousand of TOKENS.
HANDSHAKE = 200
CUTS = st.lists(
    st.builds(Cut, st.integers(1, HANDSHAKE + 400), st.integers(1, HANDSHAKE + 1500)), min_size=1, max_size=6
)


async def listen(session: RelaySession, number: int, tokens: int) -> None:
    """One answer, which must be as if nothing had happened."""
    prompt = f"client {number}"
    ids: list[int] = []
    done: list[Done] = []
    async for message in session.generate(Generate(NAME, TextPrompt(prompt), GREEDY, Bounds(max_tokens=tokens))):
        assert not done, "nothing comes behind an end"
        if isinstance(message, Tokens):
            assert message.position == len(ids)
            ids.extend(message.ids)
        elif isinstance(message, Done):
            done.append(message)
    assert len(done) == 1 and done[0].output_tokens == tokens
    assert ids == greedy(mixed, prompt.encode(), tokens)


async def reach(session: RelaySession) -> None:
    """The first connection is not made anew by itself."""
    while True:
        try:
            await session.link()
            return
        except TransportError:
            continue


@given(CUTS, st.lists(st.integers(1, 40), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_every_answer_is_heard_whole_and_once(cuts: list[Cut], lengths: list[int]) -> None:
    async def story() -> None:
        async with real(lambda: ScriptedRunner(mixed)) as here, cutting_line(here.port, cuts) as line:
            session = RelaySession(Place("127.0.0.1", line.port), Access(None), AT_ONCE)
            async with asyncio.timeout(60):
                await reach(session)
                await asyncio.gather(*(listen(session, number, most) for number, most in enumerate(lengths)))
            await session.close()
            await until_true(lambda: not here.host.slots.busy)
            assert sum(one.jobs.running for one in here.sessions.all) == 0

    asyncio.run(story())
