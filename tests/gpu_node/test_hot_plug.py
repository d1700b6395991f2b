"""Cards that come and go while the node runs, as the driver tells of them."""

from __future__ import annotations

import logging
import threading

import pytest

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import parse_devices
from gpu_node.hot_plug import Cards, HotPlug, looked
from gpu_node.inventory import Gpu, Machine

HERE = Machine("here", "a processor", 2, 2, 16_000, 8_000, (0.0, 0.0, 0.0))


def gpu(identity: str, free: int = 1000) -> Gpu:
    return Gpu(0, identity, "a GPU", 24_000, free)


class Driver:
    def __init__(self, *identities: str) -> None:
        self.now = 0.0
        self.cards = list(identities)
        self.error: Exception | None = None
        self.looked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def gpus(self) -> list[Gpu]:
        self.looked.set()
        self.answers.wait()
        if self.error is not None:
            raise self.error
        return [gpu(identity) for identity in self.cards]


def plugged(driver: Driver, text: str = "cuda:0,cuda:1,cpu:64MiB", joins: bool = False) -> tuple[DeviceFleet, HotPlug]:
    fleet = DeviceFleet(parse_devices(text), lambda: driver.now, joins=joins)
    return fleet, HotPlug(fleet, driver.gpus, lambda: HERE)


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


def test_cards_that_were_seen_before_the_first_look_have_their_names() -> None:
    driver = Driver("a", "b")
    hot = HotPlug(DeviceFleet(parse_devices("cuda:0,cuda:1"), lambda: 0.0), driver.gpus, lambda: HERE, driver.gpus())
    assert (hot.identity("cuda:0"), hot.identity("cuda:1"), hot.identity("cpu")) == ("a", "b", None)
    driver.cards = ["b"]
    hot.look()
    assert hot.identity("cuda:1") == "b", "though it is the driver's first one now"


def test_a_card_is_pulled_out_and_put_back() -> None:
    driver = Driver("a", "b")
    fleet, hot = plugged(driver)
    hot.look()
    driver.cards = ["b"]
    hot.look()
    assert names(fleet) == ["cuda:0", "cuda:1", "cpu:0"]
    hot.look()
    assert names(fleet) == ["cuda:1", "cpu:0"]
    assert hot.cards.identity("cuda:1") == "b"
    driver.cards = ["a", "b"]
    hot.look()
    assert names(fleet) == ["cuda:0", "cuda:1", "cpu:0"]


def test_a_new_card_joins_where_nobody_listed_devices() -> None:
    driver = Driver("a")
    closed, hot_closed = plugged(driver, "cuda:0")
    opened, hot_opened = plugged(driver, "cuda:0", joins=True)
    for cards in (["a"], ["a", "b"]):
        driver.cards = cards
        hot_closed.look()
        hot_opened.look()
    assert (names(closed), names(opened)) == (["cuda:0"], ["cuda:0", "cuda:1"])


def test_a_look_that_fails_loses_no_device(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver("a", "b")
    fleet, hot = plugged(driver)
    hot.look()
    driver.error = OSError("the driver is being updated")
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            hot.look()
    assert names(fleet) == ["cuda:0", "cuda:1", "cpu:0"]
    assert caplog.text.count("cannot be looked at") == 1
    driver.error, driver.cards = None, ["a"]
    for _ in range(2):
        hot.look()
    assert names(fleet) == ["cuda:0", "cpu:0"]


def test_a_driver_that_hangs_holds_up_no_pause() -> None:
    driver, back = Driver("a"), threading.Event()
    fleet, hot = plugged(driver)
    driver.answers.clear()
    fleet.lost("cpu:0", "killed")
    driver.now = 1000.0
    fleet.watch(back.set)
    hot.start()
    try:
        assert back.wait(60)
        assert "cpu:0" in names(fleet)
        assert driver.looked.wait(60)
    finally:
        driver.answers.set()
        hot.stop()
    assert fleet.free_bytes()["cuda:0"] == 1000
