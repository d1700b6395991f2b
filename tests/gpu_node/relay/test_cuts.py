"""Many clients whose connections break again and again: every one of them gets its whole answer, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading

import pytest

from tests.fakes.scripted_runner import ScriptedRunner, mixed
from tests.gpu_node.engine.desk import greedy
from tests.gpu_node.relay.relayed import Heard, Relayed, generate, hear, real
from transport.errors import TransportError
from transport.link import Link
from wire.messages_work import Bounds, Sampling

TOKENS = 150
MOST_STEPS = 50  # of the engine between two cuts, so that no machine is too quick to be cut
GREEDY = Sampling(temperature=0.0)


async def persistent(here: Relayed, number: int, chance: random.Random, steps: threading.Semaphore) -> Heard:
    """A client with three answers at once, whose connection is cut at random moments."""
    link = await here.connect()
    answers = {job: Heard() for job in (b"a", b"b", b"c")}
    while any(heard.done is None for heard in answers.values()):
        link = await here.connect(link.welcome.session_key)
        assert link.welcome.resumed
        steps.release(chance.randrange(1, MOST_STEPS))
        followers = [asyncio.create_task(follow(link, number, job, heard)) for job, heard in answers.items()]
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
        link.cut("by chance")
        await asyncio.gather(*followers)
    whole = answers[b"a"]
    assert all(heard.ids() == whole.ids() and heard.text() == whole.text() for heard in answers.values())
    return whole


async def follow(link: Link, number: int, job: bytes, heard: Heard) -> None:
    if heard.done is not None:
        return
    request = generate(
        f"client {number}", sampling=GREEDY, bounds=Bounds(max_tokens=TOKENS), job=job, next_index=heard.next_index
    )
    with contextlib.suppress(TransportError):
        await hear(await link.open(request), heard)


def take(steps: threading.Semaphore) -> None:
    assert steps.acquire(timeout=60), "a client cuts and comes again as long as it lacks something"


@pytest.mark.parametrize("seed", range(3))
async def test_cuts_at_any_moment_lose_and_repeat_nothing(seed: int) -> None:
    chance = random.Random(seed)
    steps = threading.Semaphore(0)
    runner = ScriptedRunner(mixed)
    runner.before_run = lambda step: take(steps)
    async with real(lambda: runner) as here:
        answers = await asyncio.gather(*(persistent(here, number, chance, steps) for number in range(6)))
        for number, heard in enumerate(answers):
            assert heard.ids() == greedy(mixed, f"client {number}".encode(), TOKENS)
            assert [one.index for one in heard.tokens] == list(range(len(heard.tokens)))
        here.links.clear()
        assert here.server.figures.resumed > 12, "hardly anything was cut"
