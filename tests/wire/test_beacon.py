"""Datagrams of discovery: what is signed is believed, what was heard before is not, and nothing else gets in."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.strategies import of_record
from wire.beacon import DATAGRAM_MOST, SKEW_MS, Address, Announcement, Probe, Replays, pack_beacon, unpack_beacon
from wire.errors import BadPayload, OutOfBounds, RemoteError, TooLarge, UnknownVersion, WrongProof

TOKEN = "correct horse"
NOW_MS = 1_900_000_000_000
PROBE = Probe(bytes(range(16)), NOW_MS, "laptop")
NODE = Announcement(
    bytes(16), 5, 9, NOW_MS, "tower", (Address("192.0.2.7", 8765), Address("2001:db8::7", 8765)), ("smollm2:135m",),
    False, 8 << 30, 24 << 30, 0.25, PROBE.nonce,
)  # fmt: skip
TOKENS = st.sampled_from([None, TOKEN])


@settings(max_examples=50, deadline=None)
@given(of_record(Probe) | of_record(Announcement), TOKENS)
def test_beacons_come_back_as_they_were(beacon: Probe | Announcement, token: str | None) -> None:
    assert unpack_beacon(pack_beacon(beacon, token), token) == (beacon, token is not None)


@pytest.mark.parametrize("beacon", [PROBE, NODE])
def test_with_a_token_nothing_else_is_believed(beacon: Probe | Announcement) -> None:
    for datagram in (pack_beacon(beacon, None), pack_beacon(beacon, "another")):
        with pytest.raises(WrongProof):
            unpack_beacon(datagram, TOKEN)


def test_without_a_token_a_signed_datagram_is_read_and_not_believed() -> None:
    assert unpack_beacon(pack_beacon(NODE, TOKEN), None) == (NODE, False)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_bit_of_a_signed_datagram_can_be_changed(data: st.DataObject) -> None:
    datagram = bytearray(pack_beacon(NODE, TOKEN))
    bit = data.draw(st.integers(0, 8 * len(datagram) - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteError):
        unpack_beacon(datagram, TOKEN)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"PL\x01\x01", b"PL\x01\x02", b"PL\x01\x81"]), TOKENS)
def test_random_bytes_give_only_the_remote_error(data: bytes, start: bytes, token: str | None) -> None:
    try:
        beacon, signed = unpack_beacon(start + data, token)
    except RemoteError:
        return
    assert not signed and token is None
    assert unpack_beacon(pack_beacon(beacon, None), None) == (beacon, False)


@pytest.mark.parametrize(
    ("datagram", "error"),
    [
        (b"", BadPayload),
        (b"XX\x01\x01", BadPayload),
        (b"PL\x02\x01", UnknownVersion),
        (b"PL\x01\x03", BadPayload),
        (b"PL\x01\x81" + bytes(31), BadPayload),
        (bytes(DATAGRAM_MOST + 1), TooLarge),
    ],
)
def test_what_is_not_ours_is_named(datagram: bytes, error: type[RemoteError]) -> None:
    with pytest.raises(error):
        unpack_beacon(datagram, None)


def test_a_datagram_is_never_cut_into_fragments() -> None:
    with pytest.raises(OutOfBounds, match="models"):
        pack_beacon(dataclasses.replace(NODE, models=tuple(f"{number:096}" for number in range(16))), TOKEN)
    models = tuple(f"{number:090}" for number in range(8))
    assert len(pack_beacon(dataclasses.replace(NODE, models=models), TOKEN)) <= DATAGRAM_MOST


def test_what_was_heard_is_no_news() -> None:
    replays = Replays()
    later = dataclasses.replace(NODE, serial=10)
    restarted = dataclasses.replace(NODE, incarnation=6, serial=0)
    heard = [replays.is_news(each, NOW_MS) for each in (NODE, NODE, later, NODE, restarted, later)]
    assert heard == [True, False, True, False, True, False]
    assert [replays.is_news(PROBE, NOW_MS) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("skew", [SKEW_MS + 1, -SKEW_MS - 1])
def test_what_is_too_old_or_from_the_future_is_no_news(skew: int) -> None:
    replays = Replays()
    assert not replays.is_news(PROBE, NOW_MS + skew)
    assert not replays.is_news(NODE, NOW_MS + skew)
    assert replays.is_news(NODE, NOW_MS + skew // 2)


def test_an_answer_to_our_own_probe_is_fresh_whatever_the_nodes_clock_says() -> None:
    replays = Replays()
    assert replays.is_news(NODE, NOW_MS)
    set_back = dataclasses.replace(NODE, incarnation=1, serial=1, sent_ms=0)
    assert not replays.is_news(set_back, NOW_MS)
    assert not replays.is_news(set_back, NOW_MS, asked={b"x" * 16})
    assert replays.is_news(set_back, NOW_MS, asked={PROBE.nonce})
    assert not replays.is_news(set_back, NOW_MS, asked={PROBE.nonce})


def test_memory_of_what_was_heard_is_bounded() -> None:
    replays = Replays(nodes=8)
    for number in range(100):
        identity = number.to_bytes(16, "big")
        assert replays.is_news(dataclasses.replace(NODE, node_id=identity), NOW_MS)
        assert replays.is_news(dataclasses.replace(PROBE, nonce=identity), NOW_MS)
    assert len(replays) == 16
