"""Events cross from the engine's thread to an event loop in order, in bunches, and with one end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gpu_node.engine.mailbox import Call, Outlet
from gpu_node.engine.sequence import Done, Token
from gpu_node.errors import GenerationFailed

DONE = Done("stop", 1, 1, 0, 0, ())


async def told(call: Call) -> str:
    event = await call.next()
    assert isinstance(event, Token)
    return event.text


class CountingLoop:
    """The running loop, but for the number of wake-ups."""

    def __init__(self) -> None:
        self.loop, self.wakeups = asyncio.get_running_loop(), 0
        self.create_future = self.loop.create_future

    def call_soon_threadsafe(self, callback) -> None:
        self.wakeups += 1
        self.loop.call_soon_threadsafe(callback)


async def test_one_wake_up_carries_everything_for_everybody() -> None:
    loop = CountingLoop()
    outlet = Outlet(loop)
    calls = [Call(outlet) for _ in range(8)]
    for step in range(3):
        for call in calls:
            call.tell(Token(str(step)))
    for _ in range(4):
        outlet.flush()
    for call in calls:
        assert [await told(call) for _ in range(3)] == ["0", "1", "2"]
    assert loop.wakeups == 1
    outlet.flush()
    assert loop.wakeups == 1  # nothing is there to be told
    calls[0].tell(DONE)
    outlet.flush()
    assert await calls[0].next() == DONE and loop.wakeups == 2


async def test_events_of_another_thread_come_in_order_while_somebody_waits() -> None:
    outlet = Outlet(asyncio.get_running_loop())
    call = Call(outlet)

    def work() -> None:
        for number in range(2000):
            call.tell(Token(str(number)))
            outlet.flush()
        call.tell(DONE)
        outlet.flush()

    thread = threading.Thread(target=work)
    thread.start()
    heard = [await told(call) for _ in range(2000)]
    assert heard == [str(number) for number in range(2000)]
    assert await call.next() == DONE
    thread.join()


async def test_after_the_end_nothing_comes() -> None:
    outlet = Outlet(asyncio.get_running_loop())
    call = Call(outlet)
    for event in (Token("a"), GenerationFailed("the end"), Token("b"), DONE):
        call.tell(event)
    outlet.flush()
    assert await told(call) == "a"
    assert call.ended
    with pytest.raises(GenerationFailed, match="the end"):
        await call.next()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call.next(), 0.01)


async def test_who_stops_waiting_loses_nothing() -> None:
    outlet = Outlet(asyncio.get_running_loop())
    call = Call(outlet)
    waiting = asyncio.create_task(call.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    call.tell(Token("a"))
    outlet.flush()
    assert await told(call) == "a"


def test_a_closed_loop_is_noticed() -> None:
    loop = asyncio.new_event_loop()
    outlet = Outlet(loop)
    loop.close()
    outlet.flush()
    assert not outlet.dead
    Call(outlet).tell(DONE)
    outlet.flush()
    assert outlet.dead
    outlet.flush()
