"""The short way for TOKENS does exactly what the codec does, byte for byte and fault for fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.strategies import of_record
from wire.codec import decode, encode
from wire.errors import OutOfBounds, RemoteError, WireError
from wire.frames import FrameType
from wire.messages import decode_message, encode_message, encode_tokens
from wire.messages_work import Logprob, TokenLogprob, Tokens
from wire.token_frames import TEXT_MOST, USUAL_IDS, USUAL_MOST, pack_tokens, unpack_tokens

EDGES = [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, (1 << 31) - 1, 1 << 31, (1 << 64) - 1, 1 << 64, -1]
NUMBERS: st.SearchStrategy[Any] = st.sampled_from(EDGES) | st.integers(0, 20_000)
TEXTS: st.SearchStrategy[Any] = st.text(max_size=150) | st.sampled_from(["\ud800", "a" * TEXT_MOST, "a" * 128])
IDS: st.SearchStrategy[Any] = st.lists(st.sampled_from([0, 7, 128_000, (1 << 32) - 1, 1 << 32, -1]), max_size=10).map(
    tuple
)
ODD: st.SearchStrategy[Any] = st.sampled_from([True, False, 1.0, 1.5, None, "1", b"a", [], [1], (None,)])
LOGPROBS = (TokenLogprob(Logprob(7, -0.5)),)


def outcome(run: Callable[[], Any]) -> tuple[type[Any], str]:
    """The result with the types of all in it, or the error with its words."""
    try:
        return str, repr(run())
    except WireError as error:
        return type(error), str(error)


def whole(parts: list[Any]) -> bytes:
    return b"".join(parts)


@settings(max_examples=250, deadline=None)
@given(NUMBERS | ODD, NUMBERS | ODD, TEXTS | ODD, IDS | ODD)
def test_what_is_written(index: Any, position: Any, text: Any, ids: Any) -> None:
    tokens = Tokens(index, position, text, ids)
    slowly = outcome(lambda: whole(encode(tokens)))
    assert outcome(lambda: whole(encode_message(tokens))) == slowly
    assert outcome(lambda: encode_tokens(index, position, text, ids)) == slowly


@settings(max_examples=100, deadline=None)
@given(NUMBERS, NUMBERS, TEXTS, IDS, st.sampled_from([0, False, 1, 127, 128, None]), st.booleans())
def test_what_is_written_of_other_samples_and_with_log_probabilities(
    index: int, position: int, text: str, ids: tuple[int, ...], sample: Any, told: bool
) -> None:
    tokens = Tokens(index, position, text, ids[: 1 if told else None], sample, LOGPROBS[: len(ids)] if told else ())
    assert outcome(lambda: whole(encode_message(tokens))) == outcome(lambda: whole(encode(tokens)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24) | st.binary(max_size=USUAL_MOST + 20))
def test_what_is_read_of_any_bytes(payload: bytes) -> None:
    slowly = outcome(lambda: decode(payload, Tokens))
    assert outcome(lambda: decode_message(FrameType.TOKENS, payload)) == slowly
    assert outcome(lambda: decode_message(FrameType.TOKENS, memoryview(payload))) == slowly


@settings(max_examples=50, deadline=None)
@given(of_record(Tokens), st.data())
def test_what_is_read_of_mutated_tokens(tokens: Tokens, data: st.DataObject) -> None:
    payload = bytearray(whole(encode(tokens)))
    place = data.draw(st.integers(0, len(payload)))
    payload[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    slowly = outcome(lambda: decode(payload, Tokens))
    assert outcome(lambda: decode_message(FrameType.TOKENS, payload)) == slowly


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 0x3FFF),
    st.integers(0, 0x3FFF),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=TEXT_MOST // 4),
    st.lists(st.integers(0, (1 << 32) - 1), max_size=USUAL_IDS).map(tuple),
)
def test_usual_tokens_go_the_short_way_in_both_directions(
    index: int, position: int, text: str, ids: tuple[int, ...]
) -> None:
    payload = pack_tokens(index, position, text, ids)
    if not text and not ids:
        assert payload is None
        return
    assert payload is not None and len(payload) <= USUAL_MOST
    tokens = Tokens(index, position, text, ids)
    assert payload == whole(encode(tokens))
    made = unpack_tokens(memoryview(payload))
    assert made == tokens and hash(made) == hash(tokens) and repr(made) == repr(tokens)


@pytest.mark.parametrize("payload", [b"\x80\x00\x04\x01a", b"\x05\x80\x00\x01a", b"\x05\x04\x01\xff", b"\x05", b""])
def test_faults_are_told_by_the_codec(payload: bytes) -> None:
    assert unpack_tokens(payload) is None
    with pytest.raises(RemoteError):
        decode_message(FrameType.TOKENS, payload)


def test_what_takes_more_than_a_glance_goes_the_long_way() -> None:
    assert pack_tokens(1 << 14, 0, "a", ()) is None
    assert pack_tokens(0, 0, "a" * 128, ()) is None
    assert pack_tokens(0, 0, "", tuple(range(USUAL_IDS + 1))) is None
    assert encode_tokens(1 << 14, 1 << 20, "a" * 128) == whole(encode(Tokens(1 << 14, 1 << 20, "a" * 128)))
    with pytest.raises(OutOfBounds):
        encode_tokens(0, 0, "\ud800")
