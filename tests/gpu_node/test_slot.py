"""First come, first served; bounded; a place is given up at once."""

from __future__ import annotations

import asyncio

import pytest

from gpu_node.errors import NodeBusy
from gpu_node.slot import Slot


async def hold(slot: Slot, name: str, order: list[str], gate: asyncio.Event) -> None:
    async with slot.hold():
        order.append(name)
        await gate.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_wait_come_in_order_and_one_at_a_time() -> None:
    slot, order, gate = Slot(10), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(slot, name, order, gate)) for name in "abcd"]
    await settle()
    assert (order, slot.waiting, slot.busy) == (["a"], 3, True)
    gate.set()
    await asyncio.gather(*tasks)
    assert order == list("abcd")
    assert (slot.waiting, slot.busy) == (0, False)


async def test_one_too_many_is_refused_at_once_and_only_while_it_is() -> None:
    slot, order, gate = Slot(1), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(slot, name, order, gate)) for name in "ab"]
    await settle()
    with pytest.raises(NodeBusy, match=r"server busy, please try again\.  maximum pending requests exceeded"):
        await hold(slot, "c", order, gate)
    gate.set()
    await asyncio.gather(*tasks)
    await hold(slot, "d", order, gate)
    assert order == ["a", "b", "d"]


async def test_a_queue_of_none_still_serves_one() -> None:
    slot, order, gate = Slot(0), list[str](), asyncio.Event()
    first = asyncio.create_task(hold(slot, "a", order, gate))
    await settle()
    with pytest.raises(NodeBusy):
        await hold(slot, "b", order, gate)
    gate.set()
    await first


async def test_who_leaves_while_waiting_gives_the_place_up() -> None:
    slot, order, gate = Slot(2), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(slot, name, order, gate)) for name in "abc"]
    await settle()
    tasks[1].cancel()
    await settle()
    assert slot.waiting == 1
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "c"]


async def test_a_failure_inside_frees_the_slot() -> None:
    slot = Slot(1)
    with pytest.raises(ZeroDivisionError):
        async with slot.hold():
            raise ZeroDivisionError
    assert not slot.busy
