"""What a node says of itself: the addresses that fit who hears it, and as many models as a datagram holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.announcement import (
    MOST_MODELS,
    Occasion,
    RelayPlace,
    Speaker,
    Standing,
    addresses_for,
    addresses_on,
    fitting_models,
    may_answer,
)
from gpu_node.identity import Identity
from transport.interfaces import Interface
from wire.beacon import DATAGRAM_MOST, Address, Announcement, unpack_beacon

LOOP = Interface("lo", "127.0.0.1", 8, 1)
HOME = Interface("wlan0", "192.168.1.20", 24, 3)
HOME_V6 = Interface("wlan0", "fd00::20", 64, 3)
HOME_LINK = Interface("wlan0", "fe80::20", 64, 3)
DOCKER = Interface("docker0", "172.17.0.1", 16, 4)
ALL = (LOOP, HOME, HOME_V6, HOME_LINK, DOCKER)
EVERYWHERE, BOTH = RelayPlace("0.0.0.0", 8765), RelayPlace("::", 8765)
HERE, ONE = RelayPlace("127.0.0.1", 8765), RelayPlace("192.168.1.20", 8765)
TOWER = Identity("tower", bytes(16), 7)
OCCASION = Occasion(3, 1_900_000_000_000, (Address("192.168.1.20", 8765),), bytes(range(16)))


def _said(datagram: bytes, token: str | None) -> tuple[Announcement, bool]:
    beacon, signed = unpack_beacon(datagram, token)
    assert isinstance(beacon, Announcement)
    return beacon, signed


@pytest.mark.parametrize(
    ("place", "host", "addresses"),
    [
        (EVERYWHERE, "192.168.1.9", ["192.168.1.20"]),  # never the bridge's, never loopback
        (EVERYWHERE, "127.0.0.1", ["127.0.0.1"]),
        (EVERYWHERE, "172.17.0.5", ["172.17.0.1"]),
        (BOTH, "192.168.1.9", ["192.168.1.20", "fd00::20"]),
        (BOTH, "fe80::9%wlan0", ["fe80::20", "192.168.1.20", "fd00::20"]),
        (ONE, "192.168.1.9", ["192.168.1.20"]),
        (ONE, "10.9.9.9", ["192.168.1.20"]),
        (HERE, "127.0.0.1", ["127.0.0.1"]),
    ],
)
def test_who_asks_is_told_the_address_that_fits(place: RelayPlace, host: str, addresses: list[str]) -> None:
    assert addresses_for(place, host, ALL) == tuple(Address(each, 8765) for each in addresses)


def test_behind_a_router_the_routes_decide() -> None:
    assert addresses_for(EVERYWHERE, "127.0.0.1", ()) == (Address("127.0.0.1", 8765),)


def test_where_nothing_is_known_of_the_interfaces_no_wildcard_is_announced() -> None:
    any_v4 = Interface("any", "0.0.0.0", 0)
    assert addresses_on(EVERYWHERE, any_v4, [LOOP, any_v4], lambda _: "10.0.0.7") == (Address("10.0.0.7", 8765),)
    assert addresses_on(EVERYWHERE, any_v4, [LOOP, any_v4], lambda _: None) == ()
    assert ONE.hears_on(any_v4)
    assert not HERE.hears_on(any_v4)


@pytest.mark.parametrize(
    ("place", "heard"),
    [
        (EVERYWHERE, [LOOP, HOME, DOCKER]),
        (BOTH, [LOOP, HOME, HOME_V6, HOME_LINK, DOCKER]),
        (HERE, [LOOP]),
        (ONE, [HOME]),
    ],
)
def test_it_is_announced_only_where_it_listens(place: RelayPlace, heard: list[Interface]) -> None:
    assert [one for one in ALL if place.hears_on(one)] == heard


@pytest.mark.parametrize(
    ("place", "host", "signed", "answered"),
    [
        (EVERYWHERE, "192.168.1.9", False, True),
        (EVERYWHERE, "203.0.113.9", False, False),  # else a liar could make us send to anybody
        (EVERYWHERE, "203.0.113.9", True, True),
        (EVERYWHERE, "127.0.0.1", False, True),
        (HERE, "127.0.0.1", False, True),
        (HERE, "192.168.1.9", True, False),
    ],
)
def test_who_is_answered(place: RelayPlace, host: str, signed: bool, answered: bool) -> None:
    assert may_answer(place, host, signed, ALL) is answered


@pytest.mark.parametrize("token", [None, "correct horse"])
def test_what_is_said_is_heard(token: str | None) -> None:
    standing = Standing(("smollm2:135m", "qwen2.5:7b"), 5, 9, 0.5)
    said, signed = _said(Speaker(TOWER, token).compose(standing, OCCASION), token)
    assert signed is (token is not None)
    assert said == Announcement(
        bytes(16), 7, 3, OCCASION.sent_ms, "tower", OCCASION.addresses, standing.models, False, 5, 9, 0.5,
        OCCASION.answers, False, token is not None,
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=120), max_size=40), st.text(max_size=80), st.integers(0, 2000))
def test_whatever_the_names_it_fits(models: list[str], name: str, most: int) -> None:
    speaker = Speaker(Identity(name, bytes(16), 7), "token")
    datagram = speaker.compose(Standing(tuple(models)), OCCASION, most)
    said, _ = _said(datagram, "token")
    bare = len(speaker.compose(Standing(), OCCASION))
    assert len(datagram) <= max(bare, min(most, DATAGRAM_MOST))
    assert said.more_models == (len(said.models) < len(models))
    rest = iter(models)
    assert all(each in rest for each in said.models)  # in their order


def test_models_are_left_out_whole_and_only_where_they_do_not_fit() -> None:
    names = ["a" * 97, "b" * 96, "c\udce9", "d"]
    assert fitting_models(names, 1000) == ("b" * 96, "d")
    assert fitting_models(names, 20) == ("d",)
    assert fitting_models((str(number) for number in range(50)), 1000) == tuple(map(str, range(MOST_MODELS)))


def test_an_open_answer_is_short() -> None:
    standing = Standing(tuple(f"a-model-with-a-long-name-{number}" for number in range(16)))
    speaker = Speaker(TOWER)
    assert len(speaker.compose(standing, OCCASION)) > 400
    assert len(speaker.compose(standing, OCCASION, 4 * 36)) < 180


def test_the_token_does_not_show() -> None:
    assert "horse" not in repr(Speaker(TOWER, "correct horse"))
