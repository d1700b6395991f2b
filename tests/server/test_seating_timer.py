"""The moment to look again, on the loop that the gateway really runs on: uvloop's shortest timers tell no time."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from server.registry import Registry
from server.routing import STRATEGIES, Policy
from server.seating import Seating, SeatingLimits


@pytest.mark.parametrize("delay", [0.0, 0.0004, 0.001, 30.0])
def test_a_moment_that_is_almost_now_can_be_asked_for_again(delay: float) -> None:
    """On a busy machine a millisecond passes between looking at the clock and setting the timer."""

    async def look_twice() -> None:
        loop = asyncio.get_running_loop()

        def now() -> float:
            told = loop.time()
            time.sleep(0.001)  # the machine is busy elsewhere
            return told

        seating = Seating(Registry(), Policy(STRATEGIES["weighted_round_robin"]), SeatingLimits(), now)
        seating.look_at(loop.time() + delay)
        seating.look_at(loop.time() + delay)
        seating.look_at(loop.time() + delay / 2)
        await asyncio.sleep(0.005)
        seating.close()

    uvloop.run(look_twice())
