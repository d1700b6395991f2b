"""The meanings that are worked out once are those of the rules, for every header there can be."""

from __future__ import annotations

import pytest

from wire.errors import IllegalReceive, IllegalSend, MalformedFrame
from wire.frames import Flags, FrameType, Header
from wire.limits import HANDSHAKE_PAYLOAD, LARGEST_PAYLOAD
from wire.rules import (
    FREE_OF_CREDIT,
    Meanings,
    check_place,
    connection_move,
    flags_of,
    largest_payload,
    stream_move,
)
from wire.state import ANSWERS, Role, Way

FLAGS = [Flags(bits) for bits in range(4)]


@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("way", Way)
def test_a_meaning_is_what_the_rules_say(kind: FrameType, sender: Role, way: Way) -> None:
    meanings = Meanings(sender, way)
    for header in (Header(kind, flags, stream_id, 0, 0) for flags in FLAGS for stream_id in (0, 1, 0xFFFF)):
        for _ in range(2):  # worked out, and then known
            try:
                check_place(header, way)
                move = stream_move(header, sender, way) if header.stream_id else None
            except (IllegalSend, IllegalReceive, MalformedFrame) as error:
                with pytest.raises(type(error)):
                    meanings.of(kind, header.flags, header.stream_id)
                continue
            meaning = meanings.of(kind, header.flags, header.stream_id)
            assert (meaning.move, meaning.stream_move) == (connection_move(header, sender), move)
            told = (meaning.flags, meaning.ends, meaning.is_compressed)
            assert told == (header.flags, header.ends, header.compressed)
            assert (meaning.most, meaning.is_free) == (largest_payload(kind), kind in FREE_OF_CREDIT)
            assert meaning.is_request == (kind in ANSWERS)
            assert meaning.is_placed == (kind is FrameType.DATA and not header.compressed)


@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("stream_id", [0, 7])
def test_what_is_to_be_sent_has_the_flags_of_its_type(kind: FrameType, ends: bool, stream_id: int) -> None:
    for sender in Role:
        meanings = Meanings(sender, Way.SEND)
        for _ in range(2):
            try:
                known = meanings.of(kind, flags_of(kind, ends), stream_id)
            except IllegalSend:
                with pytest.raises(IllegalSend):
                    meanings.to_send(kind, stream_id, ends)
                continue
            assert meanings.to_send(kind, stream_id, ends) is known


def test_what_needs_no_credit_is_small() -> None:
    small = {FrameType.CREDIT: 4, FrameType.PING: 64, FrameType.PONG: 64}
    for kind in FrameType:
        most = small.get(kind, HANDSHAKE_PAYLOAD) if kind in FREE_OF_CREDIT else LARGEST_PAYLOAD
        assert largest_payload(kind) == most
