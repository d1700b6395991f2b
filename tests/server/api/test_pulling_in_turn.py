"""Who has a place while a model is pulled onto many phones, and who lets others go first. In virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from server.errors import NodeBroken, NodeUnreachable
from server.nodes import NodeId
from server.pulls import PAUSES_SECONDS, SILENT_SECONDS, STANDSTILL_SECONDS
from server.registry import ProbeFailed
from tests.fakes.clock_loop import on_clock_loop
from tests.server.api.pulling_stand import Several

MANIFEST, DONE = {"status": "pulling manifest"}, {"status": "success"}
TRIES = len(PAUSES_SECONDS) + 1


def part(completed: int) -> dict[str, Any]:
    return {"status": "pulling x", "digest": "d", "total": 50, "completed": completed}


def moment_of(told: list[tuple[float, dict[str, Any]]], node: str, status: str) -> float:
    return next(at for at, record in told if record.get("node") == node and record["status"] == status)


@on_clock_loop
async def test_a_pull_that_stands_still_lets_others_go_first() -> None:
    here = Several(dead=[[MANIFEST, part(5), asyncio.Event()], [DONE]], quick=[[DONE]], other=[[DONE]])
    told = await here.told()
    assert here.operations.turns == ["dead", "quick", "other", "dead"]
    assert moment_of(told, "other", "success") < STANDSTILL_SECONDS + 5
    gave_way = [record for _, record in told if record.get("node") == "dead" and "reason" in record]
    assert gave_way == [{"node": "dead", "status": "waiting", "reason": "it brought nothing more for 60 s"}]
    assert sorted(told[-1][1]["pulled"]) == ["dead", "other", "quick"] and here.operations.open == 0


@on_clock_loop
async def test_alone_it_has_its_time() -> None:
    here = Several(dead=[[MANIFEST, asyncio.Event()], [DONE]])
    told = await here.told()
    again = moment_of(told, "dead", "trying again")
    assert SILENT_SECONDS <= again < SILENT_SECONDS + 5
    assert told[-1][1]["pulled"] == ["dead"]


@on_clock_loop
async def test_the_last_word_comes_after_the_tries_and_holds_nobody_up() -> None:
    """Two phones that stand still for ever, and one place: who is well does not wait for their last tries."""
    here = Several(dead=[[MANIFEST, asyncio.Event()]], dull=[[MANIFEST, asyncio.Event()]], quick=[[DONE]])
    told = await here.told()
    assert here.operations.turns.count("dead") == here.operations.turns.count("dull") == TRIES
    assert moment_of(told, "quick", "success") < 2 * STANDSTILL_SECONDS + 10
    assert told[-1][1]["pulled"] == ["quick"] and set(told[-1][1]["failed"]) == {"dead", "dull"}


@on_clock_loop
async def test_pauses_without_a_byte_are_not_waited_out_in_a_place() -> None:
    """No connection: a second try, then others go first, and the pauses are no turns of anybody."""
    here = Several(gone=[[NodeUnreachable("refused")]], slow=[[MANIFEST, NodeBroken("EOF")], [DONE]], quick=[[DONE]])
    told = await here.told()
    assert here.operations.turns[:5] == ["gone", "gone", "slow", "slow", "quick"]
    assert here.operations.turns.count("gone") == TRIES
    assert moment_of(told, "quick", "success") == sum(PAUSES_SECONDS[:1]) * 2
    assert told[-1][0] == sum(PAUSES_SECONDS) and here.operations.most == 1


@on_clock_loop
async def test_who_has_fallen_silent_meanwhile_is_tried_again_in_its_turn() -> None:
    """A phone that restarts: its turn comes when the others have had theirs, and is not lost for a silence then."""
    here = Several(away=[[MANIFEST, asyncio.Event()], [DONE]], quick=[[DONE]])
    pulling = asyncio.create_task(here.told())
    await asyncio.sleep(1.0)
    for moment in range(3):
        here.registry.emit(ProbeFailed(NodeId("away"), "no answer", float(moment)))
    assert sorted((await pulling)[-1][1]["pulled"]) == ["away", "quick"]


@on_clock_loop
async def test_one_that_checks_what_it_has_is_not_disturbed() -> None:
    """Gigabytes on a slow phone: a further try would have to check them all again."""
    checked = asyncio.Event()
    here = Several(slow=[[MANIFEST, part(50), {"status": "verifying sha256 digest"}, checked, DONE]], quick=[[DONE]])
    pulling = asyncio.create_task(here.told())
    await asyncio.sleep(SILENT_SECONDS - 10)
    checked.set()
    told = await pulling
    assert here.operations.turns == ["slow", "quick"]
    assert told[-1][1]["pulled"] == ["slow", "quick"]


@on_clock_loop
async def test_a_caller_that_leaves_ends_also_those_that_wait_again() -> None:
    here = Several(dead=[[MANIFEST, asyncio.Event()]], dull=[[MANIFEST, asyncio.Event()]])
    pulling = asyncio.create_task(here.told())
    await asyncio.sleep(STANDSTILL_SECONDS + 10)
    assert here.operations.turns == ["dead", "dull"]
    pulling.cancel()
    await asyncio.gather(pulling, return_exceptions=True)
    assert here.operations.open == 0
