"""Cards that come and go while the node runs, as the driver tells of them."""

from __future__ import annotations

import logging
import threading

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import parse_devices
from gpu_node.hot_plug import PROBE_SECONDS, Cards, HotPlug, looked
from gpu_node.inventory import Gpu, Machine

HERE = Machine("here", "a processor", 2, 2, 16_000, 8_000, (0.0, 0.0, 0.0))


def gpu(identity: str, free: int = 1000) -> Gpu:
    return Gpu(0, identity, "a GPU", 24_000, free)


class Driver:
    def __init__(self, *identities: str) -> None:
        self.now = 0.0
        self.cards = list(identities)
        self.error: Exception | None = None
        self.asked = 0

    def gpus(self) -> list[Gpu]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return [gpu(identity) for identity in self.cards]


def plugged(driver: Driver, text: str = "cuda:0,cuda:1,cpu:64MiB", joins: bool = False) -> tuple[DeviceFleet, HotPlug]:
    fleet = DeviceFleet(parse_devices(text), lambda: driver.now, joins=joins)
    return fleet, HotPlug(fleet, driver.gpus, lambda: HERE, lambda: driver.now)


def look(driver: Driver, hot: HotPlug, times: int = 1) -> None:
    for _ in range(times):
        driver.now += PROBE_SECONDS
        hot.poll()


def names(fleet: DeviceFleet) -> list[str]:
    return [one.name for one in fleet.present()]


def test_cards_keep_their_names_when_one_is_pulled_out() -> None:
    first = looked(Cards(), [gpu("a"), gpu("b")], HERE)
    assert first.free_bytes == {"cpu": 8000, "cuda:0": 1000, "cuda:1": 1000}
    without = looked(first, [gpu("b", 5)], HERE)
    assert without.free_bytes == {"cpu": 8000, "cuda:1": 5}
    with_new = looked(without, [gpu("c", 7), gpu("b", 5)], HERE)
    assert with_new.free_bytes == {"cpu": 8000, "cuda:1": 5, "cuda:2": 7}
    assert (with_new.identity("cuda:2"), with_new.identity("cuda:9")) == ("c", None)
    assert looked(with_new, [gpu("a")], HERE).free_bytes == {"cpu": 8000, "cuda:0": 1000}


def test_a_card_is_pulled_out_and_put_back() -> None:
    driver = Driver("a", "b")
    fleet, hot = plugged(driver)
    hot.poll()
    driver.cards = ["b"]
    look(driver, hot)
    assert names(fleet) == ["cuda:0", "cuda:1", "cpu:0"]
    look(driver, hot)
    assert names(fleet) == ["cuda:1", "cpu:0"]
    driver.cards = ["a", "b"]
    look(driver, hot)
    assert names(fleet) == ["cuda:0", "cuda:1", "cpu:0"]


def test_a_new_card_joins_where_nobody_listed_devices() -> None:
    driver = Driver("a")
    closed, hot_closed = plugged(driver, "cuda:0")
    opened, hot_opened = plugged(driver, "cuda:0", joins=True)
    hot_closed.poll()
    hot_opened.poll()
    driver.cards.append("b")
    look(driver, hot_closed)
    look(driver, hot_opened)
    assert (names(closed), names(opened)) == (["cuda:0"], ["cuda:0", "cuda:1"])


def test_pauses_are_kept_between_probes() -> None:
    driver = Driver("a")
    fleet, hot = plugged(driver, "cpu:64MiB,cpu:64MiB")
    hot.poll()
    fleet.lost("cpu:0", "killed")
    driver.now = PROBE_SECONDS - 0.1
    hot.poll()
    assert (names(fleet), driver.asked) == (["cpu:1"], 1)
    driver.now = 5.0
    hot.poll()
    assert names(fleet) == ["cpu:0", "cpu:1"]


def test_a_probe_that_fails_loses_no_device(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver("a", "b")
    fleet, hot = plugged(driver)
    hot.poll()
    fleet.lost("cpu:0", "killed")
    driver.error = OSError("the driver is being updated")
    with caplog.at_level(logging.ERROR):
        look(driver, hot, times=5)
    assert names(fleet) == ["cuda:0", "cuda:1", "cpu:0"]  # and the pause of the lost one went on
    assert caplog.text.count("cannot be looked at") == 1
    driver.error, driver.cards = None, ["a"]
    look(driver, hot, times=2)
    assert names(fleet) == ["cuda:0", "cpu:0"]


def test_the_thread_polls_until_it_is_stopped() -> None:
    driver, polled = Driver("a"), threading.Event()
    fleet, hot = plugged(driver)
    hot.start()
    assert fleet.free_bytes()["cuda:0"] == 1000  # known before it goes on by itself
    fleet.watch(polled.set)
    fleet.lost("cpu:0", "killed")
    polled.clear()
    driver.now += PROBE_SECONDS
    assert polled.wait(10.0)
    hot.stop()
    assert "cpu:0" in names(fleet)
