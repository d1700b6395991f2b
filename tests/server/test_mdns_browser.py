"""mDNS as a source of places to ask: only local ones, only a few, and its trouble is never the gateway's."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from server.mdns_browser import MOST_PLACES, MdnsBrowser, places_of
from transport.interfaces import Interface

LOOP = Interface("lo", "127.0.0.1", 8, 1)
HOME = Interface("wlan0", "192.168.1.20", 24, 3)
LINK = Interface("wlan0", "fe80::20", 64, 3)


@pytest.mark.parametrize(
    ("addresses", "texts", "places"),
    [
        (["192.168.1.9"], {b"udp": b"40001"}, [("192.168.1.9", 40001), ("192.168.1.9", 8766)]),
        (["192.168.1.9"], {}, [("192.168.1.9", 8766)]),
        (["192.168.1.9"], {b"udp": b"8766"}, [("192.168.1.9", 8766)]),
        (["192.168.1.9"], {b"udp": b"0"}, [("192.168.1.9", 8766)]),
        (["192.168.1.9"], {b"udp": b"99999999"}, [("192.168.1.9", 8766)]),
        (["192.168.1.9"], {b"udp": "٤".encode()}, [("192.168.1.9", 8766)]),
        (["192.168.1.9"], {b"udp": None}, [("192.168.1.9", 8766)]),
        (["fd00::9", "fe80::9%3"], {}, [("fd00::9", 8766), ("fe80::9%3", 8766)]),
        (["8.8.8.8", "127.0.0.1", "0.0.0.0", "224.0.0.1", "tower.local", "::1", "::"], {}, []),
    ],
)
def test_where_to_ask(addresses: list[str], texts: dict, places: list) -> None:
    assert places_of(addresses, texts, 8766) == tuple(places)


def test_one_record_is_but_a_few_places() -> None:
    assert len(places_of([f"10.0.0.{number}" for number in range(1, 200)], {b"udp": b"1"}, 8766)) == MOST_PLACES


class Opener:
    def __init__(self, failure: Exception) -> None:
        self.failure, self.asked = failure, []

    def __call__(self, addresses: Sequence[str]) -> object:
        self.asked.append(tuple(addresses))
        raise self.failure


@pytest.mark.parametrize("failure", [OSError("port 5353 is taken"), ImportError("no zeroconf")])
async def test_trouble_is_one_warning_until_the_networks_change(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    opener = Opener(failure)
    browser = MdnsBrowser(lambda _: None, opened=opener)
    with caplog.at_level(logging.WARNING, "server.mdns_browser"):
        for found in ([LOOP], [LOOP, HOME, LINK], [LOOP, HOME, LINK], [LOOP], [LOOP, HOME]):
            await browser.look(found)
    assert opener.asked == [("192.168.1.20",), ("192.168.1.20",)]
    assert [str(failure) in record.getMessage() for record in caplog.records] == [True]
    await browser.close()


async def test_neither_a_beginning_nor_an_end_that_fails_ends_the_gateway(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        zeroconf = object()  # nothing that a browser could work with

        async def async_close(self) -> None:
            raise RuntimeError("odd")

    browser = MdnsBrowser(lambda _: None, opened=lambda _: Odd())  # type: ignore[arg-type,return-value]
    with caplog.at_level(logging.DEBUG, "server.mdns_browser"):
        await browser.look([LOOP, HOME])
    assert "not looked for over mDNS" in caplog.text and "did not end well: RuntimeError('odd')" in caplog.text
    await browser.close()
