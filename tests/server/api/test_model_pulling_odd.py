"""Pulls on a phone that says odd things, stands still, leaves, or whose gateway ends."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from server.api.node_pull import MOST_WAITING
from server.draining import Draining
from server.errors import NodeBroken, NodeStalled
from server.nodes import NodeId
from server.pulls import PAUSES_SECONDS
from server.registry import NodeListed, NodeProbed, NodeUnlisted
from tests.server.api.gateway import Call, gateway, report, spec, until
from tests.server.api.pulling_stand import PATH, Scripted, of
from tests.server.api.scripted_backend import ScriptedBackend
from tests.server.api.scripted_operations import ScriptedOperations

PAUSES = list(PAUSES_SECONDS)


async def test_a_phone_that_is_silent_to_everybody_is_not_waited_for_again_and_again() -> None:
    here = Scripted({"status": "pulling manifest"}, NodeStalled("silent for 300 s", "load"))
    here.silence()
    assert (await here.told())[-1]["failed"] == {"kitchen": "it does not answer: no answer"}  # before anything
    waited = asyncio.Event()
    here = Scripted({"status": "pulling manifest"}, waited, NodeStalled("silent for 300 s", "load"))
    steps = here.steps()
    told = [(await anext(steps))[0]["status"] for _ in range(2)]
    assert told == ["waiting", "pulling manifest"]
    here.silence()
    waited.set()
    rest = [record async for record, _ in steps]
    assert rest[-1]["failed"] == {"kitchen": "it does not answer: no answer"}
    assert here.pauses == PAUSES[:1] and len(here.operations.bodies) == 1


async def test_one_that_takes_no_connection_for_a_while_is_tried_on() -> None:
    here = Scripted(NodeStalled("did not take the connection", "connect"))
    here.operations.said[("kitchen", "/api/pull")] = [NodeStalled("did not take the connection", "connect")]
    assert "did not take" in (await here.told())[-1]["failed"]["kitchen"]
    assert here.pauses == PAUSES


async def test_what_only_says_how_far_it_is_comes_a_few_times_a_second() -> None:
    lines = [{"status": "pulling x", "digest": "d", "total": 5000, "completed": count} for count in range(5001)]
    here = Scripted(*lines, {"status": "success"})
    told = [record for record in await here.told() if "digest" in record]
    assert [record.get("completed") for record in told] == [0, 5000]  # the clock of this gateway stands still


async def test_a_caller_who_does_not_read_is_told_the_end_and_costs_little() -> None:
    total = 3 * MOST_WAITING
    lines = [{"status": "pulling x", "digest": "d", "total": total, "completed": count} for count in range(total)]
    here, moments = Scripted(*lines, {"status": "success"}), itertools.count(1.0)
    here.made.services = replace(here.made.services, loop_time=lambda: next(moments))
    steps = here.steps()
    await anext(steps)
    reading = asyncio.ensure_future(anext(steps))
    for _ in range(4 * MOST_WAITING):
        await asyncio.sleep(0)
    await reading
    rest = [record async for record, _ in steps]
    assert len(rest) <= MOST_WAITING + 3
    assert [record["status"] for record in rest[-2:]] == ["success", "done"]


async def test_a_node_that_ends_without_a_word_and_one_that_we_break_on() -> None:
    here = Scripted({"status": "pulling manifest"})
    assert "ended before it had the model" in (await here.told())[-1]["failed"]["kitchen"]
    assert here.pauses == PAUSES

    class Broken(ScriptedOperations):
        def lines(self, *call: Any) -> Any:
            raise RuntimeError("a fault of ours")

    here.made = gateway(registry=here.registry, operations=Broken())
    assert (await here.told())[-1]["failed"] == {"kitchen": "the gateway failed; its log says why"}


async def test_a_phone_that_says_error_as_a_step_ends_nobodys_pull() -> None:
    held = asyncio.Event()
    here = Scripted({"status": "error"}, {"status": "success?"}, {"status": "error"}, {"status": "success"})
    here.registry.emit(NodeListed(spec("attic"), 0.0))
    here.registry.emit(NodeProbed(NodeId("attic"), report("m:1b"), 0.0))
    here.operations.said[("attic", "/api/pull")] = [{"status": "pulling manifest"}, held, {"status": "success"}]
    steps = here.steps()
    told: list[dict[str, Any]] = []
    while [one["status"] for one in of(told, "kitchen")][-1:] != ["success"]:
        told.append((await anext(steps))[0])
    held.set()
    told += [record async for record, _ in steps]
    assert {"status": "it says: error"} in of(told, "kitchen")
    assert told[-1]["pulled"] == ["kitchen", "attic"] and told[-1]["failed"] == {}


async def test_a_download_that_stands_still_while_its_phone_talks_on_is_broken_off() -> None:
    line = {"status": "pulling x", "digest": "d", "total": 50, "completed": 10}
    here = Scripted(*[line] * 1000, {"status": "success"})
    moments = itertools.count(1.0)
    here.made.services = replace(here.made.services, loop_time=lambda: next(moments))
    last = (await here.told())[-1]
    assert last["failed"] == {"kitchen": "it brought nothing more for 300 s"}
    assert here.pauses == PAUSES


async def test_who_brings_a_byte_at_a_time_has_a_day_and_no_more() -> None:
    here, moments = Scripted(), itertools.count(1.0, 100.0)
    here.made.services = replace(here.made.services, loop_time=lambda: next(moments))

    class OneByteMore(ScriptedOperations):
        async def lines(self, *call: Any) -> Any:
            self.bodies.append(call[:3])
            yield {"status": "pulling x", "digest": "d", "total": 1_000_000, "completed": len(self.bodies)}
            raise NodeBroken("unexpected EOF")

    here.made = replace(here.made, services=replace(here.made.services, operations=OneByteMore()))
    last = (await here.told())[-1]
    assert last["failed"] == {"kitchen": "unexpected EOF"}
    assert 100 < len(here.pauses) < 864


async def test_no_error_is_no_error_and_one_without_words_has_some() -> None:
    here = Scripted({"status": "pulling manifest", "error": None}, {"status": "success", "error": None})
    assert (await here.told())[-1]["pulled"] == ["kitchen"]
    here = Scripted({"error": ""})
    assert (await here.told())[-1]["failed"] == {"kitchen": "it failed without a word"}


async def test_what_is_whole_is_told_once() -> None:
    whole = {"status": "pulling x", "digest": "d", "total": 5, "completed": 5}
    here = Scripted(*[whole, {"status": "x"}] * 500, {"status": "success"})
    assert [one["status"] for one in await here.told()] == ["waiting", "pulling x", "x", "success", "done"]


async def test_a_phone_that_is_removed_in_the_middle_is_let_go() -> None:
    held = asyncio.Event()
    here = Scripted({"status": "pulling manifest"}, held, {"status": "pulling x"}, {"status": "success"})
    steps = here.steps()
    assert [(await anext(steps))[0]["status"] for _ in range(2)] == ["waiting", "pulling manifest"]
    here.registry.emit(NodeUnlisted(NodeId("kitchen"), 1.0))
    held.set()
    rest = [record async for record, _ in steps]
    assert rest[-1]["failed"] == {"kitchen": "it left the fleet"} and here.operations.open == 0
    assert [record["status"] for record in rest] == ["error", "done"]


class NoAnswers:
    def cut_off(self) -> None:
        raise AssertionError("answers have their time")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_gateway_that_ends_waits_for_no_pull(stream: bool) -> None:
    here = Scripted({"status": "pulling manifest"}, asyncio.Event())
    call = Call("POST", PATH, {"model": "qwen:1b", "all": True, "stream": stream})
    task = asyncio.create_task(call.run(here.made.app))
    await until(lambda: here.operations.open)
    draining = Draining(here.made.services.open_requests, NoAnswers(), 3600.0)
    draining.start()
    answer = await task
    draining.stop()
    told = answer.lines()[-1]
    assert "the gateway was stopped" in told["error"] and here.operations.open == 0
    assert answer.status == (200 if stream else 503) and not here.made.services.open_requests.resumable


async def test_the_full_name_of_a_model_is_known_again() -> None:
    here = Scripted({"status": "success"})
    steps = here.steps("registry.ollama.ai/library/M:1b")
    assert [record async for record, _ in steps][-1]["had"] == ["kitchen"]
    assert here.operations.bodies[0][2]["model"] == "registry.ollama.ai/library/M:1b"


async def test_an_alias_stands_for_its_model() -> None:
    here = Scripted({"status": "success"})
    backends: Any = {"ollama": ScriptedBackend()}
    aliases = {"small": "qwen:1b"}
    here.made = gateway(None, here.registry, backends, operations=here.operations, model_aliases=aliases)
    lines = [record async for record, _ in here.steps("small")]
    assert lines[-1]["model"] == "qwen:1b" and here.operations.bodies[0][2]["model"] == "qwen:1b"
