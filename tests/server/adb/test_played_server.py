"""An adb server that refuses, babbles, breaks off and hangs: phones stay listed, and all is well when it is again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.adb.contacts import MOST_BREAKS, STEADY_SECONDS
from server.adb.ports import preferred_port
from server.adb.states import LOOSE, QUESTION, TWICE
from server.adb.tracker import SETTLE_SECONDS, START_SECONDS, AdbOptions, AdbTracker
from server.clock import Clock
from server.errors import AdbError
from server.nodes import NodeId, NodeSpec, NodeStatus
from server.registry import NodeListed, Registry
from tests.server.adb.lab import until
from tests.server.adb.played_server import CUT, HANG, LIST, PlayedServer, framed, playing

HALF = b"OKAY00ff29"
REFUSED = b"FAIL0009not today"
BABBLE = b"HTTP/1.1 400 Bad Request\r\n\r\n"


# Who answers at once is given the time of a busy machine; where nobody answers, the wait is the test's own.
PATIENT, HASTY = 60.0, 0.3


async def hurry(seconds: float) -> None:
    await asyncio.sleep(min(seconds, 0.01))


@asynccontextmanager
async def tracking(
    server: PlayedServer,
    sleep: Callable[[float], Awaitable[None]] = hurry,
    monotonic: Callable[[], float] = time.monotonic,
    patience: float = PATIENT,
) -> AsyncIterator[tuple[AdbTracker, Registry]]:
    registry = Registry()
    options = AdbOptions(port=server.port, look_seconds=0.05, patience_seconds=patience)
    tracker = AdbTracker(registry, options, Clock(monotonic, sleep=sleep))
    task = asyncio.create_task(tracker.run())
    try:
        yield tracker, registry
    finally:
        ended = task.done()
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
    assert not ended, end


def listed(registry: Registry) -> list[str]:
    return [node.id for node in registry.fleet.nodes.values() if node.status is not NodeStatus.DRAINING]


@pytest.mark.parametrize("said", [REFUSED, BABBLE, HALF, CUT, HANG, b"", b"OKAYzzzz", b"OKAY-001"])
@pytest.mark.parametrize("question", ["host:devices-l", "host:list-forward"])
async def test_a_question_that_goes_wrong_unlists_nobody_and_its_trouble_is_told(question: str, said: bytes) -> None:
    patience = 2.0 if said == HANG else PATIENT  # the version is asked for meanwhile, and told
    async with playing() as server, tracking(server, patience=patience) as (tracker, registry):
        await until(lambda: listed(registry) == ["S1"])
        changes: list[object] = []
        registry.listen(lambda before, after: changes.append((before, after)))
        server.said[question] = said
        before = server.count(question)
        await until(lambda: tracker.server_problem is not None and server.count(question) > before)
        server.said.clear()
        await until(lambda: tracker.server_problem is None)
        assert listed(registry) == ["S1"] and not changes
        assert [*server.forwards] == [f"tcp:{preferred_port('S1')}"]


async def test_a_plug_that_loses_contact_for_a_moment_unlists_nobody() -> None:
    pausing, over = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds == SETTLE_SECONDS and listed(registry):
            pausing.set()
            await over.wait()
        await hurry(seconds)

    async with playing() as server, tracking(server, sleep) as (_, registry):
        changes: list[object] = []
        async with asyncio.timeout(PATIENT):
            await pausing.wait()
        registry.listen(lambda before, after: changes.append((before, after)))
        before = server.count("host:devices-l")
        server.said["host:devices-l"] = framed("")
        await asyncio.sleep(0.2)  # four looks, were there no pause
        server.said.clear()
        over.set()
        await until(lambda: server.count("host:devices-l") > before + 1)
        assert listed(registry) == ["S1"] and not changes


@pytest.mark.parametrize("said", [REFUSED, BABBLE, HALF, CUT, b""])
async def test_a_server_that_does_not_tell_its_version_is_none(said: bytes) -> None:
    async with playing() as server:
        server.said["host:version"] = said
        async with tracking(server) as (tracker, registry):
            await until(lambda: server.count("host:version") > 2)
            assert tracker.server_problem is not None and not listed(registry)
            server.said.clear()
            await until(lambda: listed(registry) == ["S1"])


async def test_a_server_that_hangs_is_said_to_and_followed_when_it_wakes_up() -> None:
    async with playing() as server:
        server.said["host:"] = HANG
        async with tracking(server, patience=HASTY) as (tracker, registry):
            await until(lambda: "no answer within" in (tracker.server_problem or ""))
            server.said.clear()
            await until(lambda: listed(registry) == ["S1"])
            server.said["host:"] = HANG  # and again, in mid-life: nothing can be asked, so that it counts as gone
            await until(lambda: listed(registry) == [])
            server.said.clear()
            await until(lambda: listed(registry) == ["S1"] and tracker.server_problem is None)


async def test_a_server_too_old_to_tell_changes_is_asked_for_the_list() -> None:
    async with playing() as server:
        server.said["host:track-devices-l"] = b"FAIL0014unknown host service"
        async with tracking(server) as (_, registry):
            await until(lambda: listed(registry) == ["S1"])


@pytest.mark.parametrize("said", [REFUSED, BABBLE, CUT, HANG])
@pytest.mark.parametrize("question", [f"shell:{QUESTION}", "tcp:11434", "host:transport-id"])
async def test_a_phone_that_answers_wrongly_is_asked_again_until_it_answers(question: str, said: bytes) -> None:
    async with playing() as server:
        server.said[question] = said
        async with tracking(server, patience=HASTY if said == HANG else PATIENT) as (tracker, registry):
            await until(lambda: server.count(question) > 2 and "S1" in tracker.problems)
            assert listed(registry) == []
            server.said.clear()
            await until(lambda: listed(registry) == ["S1"] and tracker.problems == {})


async def test_an_answer_that_was_cut_short_names_nobody() -> None:
    async with playing() as server:
        server.said[f"shell:{QUESTION}"] = [b"OKAYS", b"OKAYS"]
        async with tracking(server) as (_, registry):
            await until(lambda: listed(registry) == ["S1"])
            node = registry.node(NodeId("S1"))
            assert node is not None
            told = {"chip": "gs201", "ram_bytes": 8_192_000_000, "android": "14", "ollama": "0.31.1", "mode": "usb"}
            assert node.spec.details == told


async def test_a_forward_that_cannot_be_made_is_tried_at_the_next_port() -> None:
    async with playing() as server:
        first = f"host-serial:S1:forward:norebind:tcp:{preferred_port('S1')};"
        server.said[first] = b"OKAYFAIL002acannot bind listener: Address already in use"
        async with tracking(server) as (_, registry):
            await until(lambda: listed(registry) == ["S1"])
            assert [*server.forwards] == [f"tcp:{preferred_port('S1', 1)}"]


async def test_a_phone_whose_connection_breaks_off_again_and_again_gets_work_when_it_has_held() -> None:
    now = 0.0
    async with playing() as server, tracking(server, monotonic=lambda: now) as (tracker, registry):
        for _ in range(MOST_BREAKS):
            await until(lambda: listed(registry) == ["S1"])
            now += 2.0
            server.forwards.clear()
            server.said["host:devices-l"] = framed("")
            await until(lambda: listed(registry) == [])
            server.said.clear()
        await until(lambda: tracker.problems.get("S1", "").startswith(LOOSE))
        looks = server.count("host:devices-l")
        await until(lambda: server.count("host:devices-l") > looks + 3)
        assert listed(registry) == [] and server.forwards == {}
        now += STEADY_SECONDS
        await until(lambda: listed(registry) == ["S1"])
        assert tracker.problems == {}


async def test_a_phone_whose_twin_is_plugged_in_stays_and_is_spoken_to_by_its_connections_number() -> None:
    both = framed(LIST + LIST.replace("transport_id:7", "transport_id:8"))
    async with playing() as server:
        async with tracking(server) as (tracker, registry):
            await until(lambda: listed(registry) == ["S1"])
            server.said = {"host:devices-l": both, "host:transport-id:8": CUT}
            await until(lambda: tracker.problems == {"S1": TWICE})
            server.forwards.clear()  # somebody removed them all
            await until(lambda: len(server.forwards) == 1)
            assert listed(registry) == ["S1"] and server.count("host-transport-id:7:forward:norebind:") == 1
        assert server.count("host-transport-id:7:killforward:") == 1 and server.forwards == {}


async def test_an_entry_whose_connection_is_loose_is_told_so_and_stays() -> None:
    now = 0.0
    async with playing() as server, tracking(server, monotonic=lambda: now) as (tracker, registry):
        registry.emit(NodeListed(NodeSpec(NodeId("shelf"), "shelf", "ollama", "127.0.0.1", 21000, serial="S1"), 0.0))
        for _ in range(MOST_BREAKS):
            await until(lambda: [*server.forwards] == ["tcp:21000"])
            now += 2.0
            server.said["host:devices-l"] = framed("")
            await until(lambda: tracker.phones == ())
            server.forwards.clear()
            server.said.clear()
        await until(lambda: tracker.problems.get("S1") == LOOSE and [*server.forwards] == ["tcp:21000"])
        assert listed(registry) == ["shelf"]


async def test_a_server_that_hangs_at_the_end_keeps_nobody_from_ending() -> None:
    async with playing() as server, tracking(server, patience=2.0) as (_, registry):
        await until(lambda: listed(registry) == ["S1"])
        server.said["host-serial:S1:killforward"] = HANG
    assert server.count("host-serial:S1:killforward") == 1


async def test_a_server_that_cannot_be_started_is_told_once_and_tried_again_with_pauses(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0.001)

    async def start(_: int) -> None:
        raise AdbError("there is no adb program here")

    tracker = AdbTracker(Registry(), AdbOptions("on", port=unused_tcp_port), Clock(sleep=sleep), start)
    task = asyncio.create_task(tracker.run())
    await until(lambda: slept.count(START_SECONDS) >= 2)
    assert tracker.status()["problem"] == "there is no adb program here"
    assert caplog.messages == ['there is no adb program here (POTLUCK_ADB is "on"; tried again every few seconds)']
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_server_that_another_program_restarted_with_another_number_is_followed_and_not_restarted() -> None:
    started: list[int] = []

    async def start(port: int) -> None:
        started.append(port)

    async with playing() as first:
        registry = Registry()
        options = AdbOptions("on", port=first.port, look_seconds=0.05, patience_seconds=PATIENT)
        tracker = AdbTracker(registry, options, Clock(sleep=hurry), start)
        task = asyncio.create_task(tracker.run())
        await until(lambda: listed(registry) == ["S1"])
        first.said["host:"] = CUT  # it goes
        await until(lambda: listed(registry) == [])
        first.forwards.clear()
        first.said = {"host:version": b"OKAY00040020"}  # and another is there, nine releases older
        await until(lambda: listed(registry) == ["S1"])
        looks, starts = first.count("host:devices-l"), len(started)
        await until(lambda: first.count("host:devices-l") > looks + 3)
        assert len(started) == starts and first.count("host:kill") == 0 and tracker.server_problem is None
        assert [*first.forwards] == [f"tcp:{preferred_port('S1')}"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
