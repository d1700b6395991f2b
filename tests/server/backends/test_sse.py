from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.sse import MAX_EVENT_BYTES, EventReader
from server.errors import NodeBroken

STREAM = (
    b": a comment\n\ndata: one\n\nevent: message\r\ndata: two\r\ndata: lines\r\n\r\nid: 7\nretry: 10\n\n"
    b"data:three\n\nerror: {}\n\ndata:  four\ndata\n\n\n\ndata: last"
)
EVENTS = [
    (b"data", b"one"),
    (b"data", b"two\nlines"),
    (b"data", b"three"),
    (b"error", b"{}"),
    (b"data", b" four\n"),
    (b"data", b"last"),
]


def read(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    reader = EventReader("a")
    return [event for piece in pieces for event in reader.feed(piece)] + reader.finish()


def test_comments_line_endings_and_data_of_several_lines():
    assert read(STREAM) == EVENTS


def test_byte_by_byte_it_is_the_same():
    assert read(*(STREAM[at : at + 1] for at in range(len(STREAM)))) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_wherever_it_is_cut_it_is_the_same(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[start:end] for start, end in itertools.pairwise(edges))) == EVENTS


def test_an_event_is_given_as_soon_as_it_is_whole():
    reader = EventReader("a")
    assert reader.feed(b"data: x\n") == []
    assert reader.feed(b"\n") == [(b"data", b"x")]


@pytest.mark.parametrize("piece", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"])
def test_an_event_beyond_all_bounds_is_broken(piece: bytes):
    reader = EventReader("a")
    with pytest.raises(NodeBroken):
        for _ in range(MAX_EVENT_BYTES // 65536 + 1):
            reader.feed(piece)
