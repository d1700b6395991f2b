"""The node in mDNS: what is published, when it is published anew, and that its trouble is never the node's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from gpu_node.mdns import MOST_TEXT_BYTES, MdnsRecord, MdnsRegistration, joined_models, service_label

RECORD = MdnsRecord("tower 00010203", 8765, ("192.168.1.20", "fd00::20"), (("id", "00"), ("models", "a,b")))


class FakeZeroconf:
    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses, self.told = tuple(addresses), []

    async def async_register_service(self, service: object, allow_name_change: bool = False) -> object:
        return self._soon("registered", service)

    async def async_update_service(self, service: object) -> object:
        return self._soon("updated", service)

    async def _soon(self, what: str, service: object) -> None:
        await asyncio.sleep(0)
        self.told.append((what, service))

    async def async_close(self) -> None:
        self.told.append(("closed", None))


class Opener:
    """Opens fakes, or fails as often as it was told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.opened = list(failures), []

    def __call__(self, addresses: Sequence[str]) -> FakeZeroconf:
        if self.failures:
            raise self.failures.pop(0)
        self.opened.append(FakeZeroconf(addresses))
        return self.opened[-1]

    @property
    def told(self) -> list[list[str]]:
        return [[what for what, _ in each.told] for each in self.opened]


async def test_what_is_published() -> None:
    opener = Opener()
    registration = MdnsRegistration(opener)
    await registration.update(RECORD)
    (_, service), *_ = opener.opened[0].told
    assert service.name == "tower 00010203._potluck._tcp.local."
    assert (service.port, service.parsed_addresses()) == (8765, ["192.168.1.20", "fd00::20"])
    assert service.properties == {b"id": b"00", b"models": b"a,b"}
    assert service.server == "potluck-00010203.local."
    assert (service.host_ttl, service.other_ttl) == (120, 120)
    assert opener.opened[0].addresses == RECORD.addresses
    await registration.close()
    assert opener.told == [["registered", "closed"]]


async def test_only_what_changed_is_said_anew() -> None:
    opener = Opener()
    registration = MdnsRegistration(opener)
    for record in (RECORD, RECORD, MdnsRecord("tower 00010203", 8765, RECORD.addresses, (("models", "c"),))):
        await registration.update(record)
    assert opener.told == [["registered", "updated"]]
    await registration.update(MdnsRecord("tower 00010203", 8765, ("10.0.0.1",), ()))
    assert opener.told == [["registered", "updated", "closed"], ["registered"]]
    assert opener.opened[1].addresses == ("10.0.0.1",)
    await registration.update(MdnsRecord("tower 00010203", 8765, (), ()))
    assert opener.told[1] == ["registered", "closed"]
    await registration.close()
    assert len(opener.opened) == 2


@pytest.mark.parametrize("failure", [OSError("port 5353 is taken"), ImportError("no zeroconf"), ValueError("odd")])
async def test_trouble_is_one_warning_and_tried_again(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    opener = Opener(failure, failure)
    registration = MdnsRegistration(opener)
    with caplog.at_level(logging.WARNING, "gpu_node"):
        for _ in range(3):
            await registration.update(RECORD)
    assert [str(failure) in record.getMessage() for record in caplog.records] == [True]
    assert opener.told == [["registered"]]
    await registration.close()


async def test_an_end_that_fails_is_none_of_the_nodes_trouble() -> None:
    class Odd(FakeZeroconf):
        async def async_close(self) -> None:
            raise RuntimeError("odd")

    opened: list[Any] = []
    registration = MdnsRegistration(lambda addresses: opened.append(Odd(addresses)) or opened[-1])
    await registration.update(RECORD)
    await registration.update(MdnsRecord("tower 00010203", 8765, ("10.0.0.1",), ()))
    assert [what for what, _ in opened[1].told] == ["registered"]
    await registration.close()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("tower", "tower 00000000"),
        ("a.b\\c\x1b", "a-b-c- 00000000"),
        ("ż" * 60, "ż" * 24 + " 00000000"),
        ("", " 00000000"),
    ],
)
def test_labels_are_one_label(name: str, label: str) -> None:
    assert service_label(name, bytes(16)) == label
    assert len(label.encode()) <= 63


def test_models_are_cut_to_what_an_entry_holds() -> None:
    assert joined_models(("a", "b")) == "a,b"
    many = joined_models([f"model-{number}" for number in range(100)])
    assert len("models=") + len(many) <= MOST_TEXT_BYTES
    assert many.startswith("model-0,model-1,")
    assert joined_models(["x" * 300, "small"]) == "small"
    assert joined_models(["no text \udcff", "small"]) == "small"
