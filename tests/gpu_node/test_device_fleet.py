"""One fleet for all threads: who is told, what is kept, and that a failing watcher harms nobody."""

from __future__ import annotations

import logging
import threading

import pytest

from gpu_node.device_fleet import EVENTS_KEPT, DeviceFleet
from gpu_node.devices import parse_devices
from gpu_node.errors import RequestError, UsageError

MIB = 1 << 20


class Hands:
    """Of a clock that tests move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fleet_of(text: str, clock: Hands | None = None) -> DeviceFleet:
    clock = clock or Hands()
    return DeviceFleet(parse_devices(text), clock, lambda: 1_800_000_000.0 + clock.now)


def told(fleet: DeviceFleet) -> list[tuple[str, str]]:
    return [(event.device, event.what) for event in fleet.events]


def test_a_device_from_its_beginning_to_its_end() -> None:
    clock = Hands()
    fleet = fleet_of("cpu:64MiB", clock)
    added = fleet.add("cpu:32MiB@0.5")
    assert (added.name, added.budget_bytes, added.speed) == ("cpu:1", 32 * MIB, 0.5)
    fleet.hold("m", {"cpu:0": MIB, "cpu:1": MIB})
    assert fleet.resize("cpu:1", 48 * MIB).device.budget_bytes == 48 * MIB
    clock.now = 7.0
    fleet.lost("cpu:1", "killed")
    assert [one.name for one in fleet.present()] == ["cpu:0"]
    clock.now = 12.0
    fleet.tick()
    assert [one.name for one in fleet.present()] == ["cpu:0", "cpu:1"]
    assert fleet.remove("cpu:1").state == "leaving"
    fleet.left("cpu:1", "m")
    fleet.note("", "switched", "plan 3")
    assert told(fleet) == [
        ("cpu:0", "listed"), ("cpu:1", "joined"), ("cpu:1", "resized"), ("cpu:1", "lost"),
        ("cpu:1", "joined"), ("cpu:1", "leaving"), ("cpu:1", "left"), ("", "switched"),
    ]  # fmt: skip
    assert fleet.events[3].at == 1_800_000_007.0
    assert fleet.event_counts["joined"] == 2


def test_every_model_leaves_by_itself_or_all_at_once() -> None:
    fleet = fleet_of("cpu:64MiB,cpu:64MiB")
    for model in ("a", "b"):
        fleet.hold(model, {"cpu:0": MIB, "cpu:1": 2 * MIB})
    fleet.remove("cpu:1")
    fleet.left("cpu:1", "a")
    assert [(one.name, one.state, dict(one.held)) for one in fleet.devices] == [
        ("cpu:0", "present", {"a": MIB, "b": MIB}),
        ("cpu:1", "leaving", {"b": 2 * MIB}),
    ]
    fleet.left("cpu:1")
    gone = fleet.find("cpu:1")
    assert gone is not None and gone.state == "gone"


def test_bad_words_change_nothing() -> None:
    fleet = fleet_of("cpu:64MiB")
    with pytest.raises(UsageError, match="names no device"):
        fleet.add("tpu:1GiB")
    with pytest.raises(RequestError, match="one device at a time"):
        fleet.add("cpu:1GiB,cpu:1GiB")
    with pytest.raises(RequestError, match="last device"):
        fleet.remove("cpu:0", force=True)
    with pytest.raises(RequestError, match="no device x"):
        fleet.ask("x")
    fleet.lost("x", "never here")
    fleet.refuse("x", "never here")
    assert (fleet.epoch, told(fleet)) == (0, [("cpu:0", "listed")])


def test_watchers_are_told_what_concerns_them() -> None:
    fleet = fleet_of("cuda:0,cpu:64MiB")
    plans: list[int] = []
    everything: list[int] = []
    unwatch = fleet.watch(lambda: plans.append(fleet.epoch))
    fleet.watch(lambda: everything.append(fleet.epoch), every=True)
    fleet.tick({"cuda:0": 5, "cpu": 7})
    assert fleet.free_bytes() == {"cuda:0": 5, "cpu": 7}
    assert (plans, everything) == ([], [])
    fleet.hold("m", {"cuda:0": 5})
    fleet.lost("cuda:0", "killed")
    assert (plans, everything) == ([1], [0, 1])
    unwatch()
    fleet.recovered("cuda:0")
    assert (plans, everything) == ([1], [0, 1, 2])


def test_a_watcher_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    fleet, woken = fleet_of("cpu:64MiB,cpu:64MiB"), threading.Event()
    fleet.watch(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    fleet.watch(woken.set)
    with caplog.at_level(logging.ERROR):
        fleet.lost("cpu:0", "killed")
    assert woken.is_set()
    assert "a watcher of the devices failed" in caplog.text


def test_a_watcher_may_change_the_fleet() -> None:
    """It is called outside the lock."""
    fleet = fleet_of("cpu:64MiB,cpu:64MiB")
    fleet.hold("m", {"cpu:0": MIB, "cpu:1": MIB})
    fleet.watch(lambda: fleet.hold("m", {one.name: MIB for one in fleet.present()}))
    assert fleet.remove("cpu:0").state == "leaving"
    gone = fleet.find("cpu:0")
    assert gone is not None and gone.state == "gone"


def test_events_are_bounded_and_counted() -> None:
    fleet = fleet_of("cpu:64MiB")
    for turn in range(EVENTS_KEPT + 3):
        fleet.note("cpu:0", "planned", str(turn))
    assert len(fleet.events) == EVENTS_KEPT
    assert fleet.events[-1].detail == str(EVENTS_KEPT + 2)
    assert fleet.event_counts == {"listed": 1, "planned": EVENTS_KEPT + 3}


def test_many_threads_at_once_lose_nothing() -> None:
    fleet = fleet_of("cpu:64MiB")
    names: list[str] = []

    def add() -> None:
        for _ in range(10):
            names.append(fleet.add("cpu:1MiB").name)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == sorted(f"cpu:{number}" for number in range(1, 41))
    assert len(fleet.present()) == 41
