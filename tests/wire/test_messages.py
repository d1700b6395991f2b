"""Every message comes back as it was, and nothing that arrives does worse than raise a RemoteError."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.strategies import of_record
from wire.codec import GATHER_FROM, Writer, decode, encode, record_fields
from wire.errors import BadPayload, FaultCode, OutOfBounds, RemoteError
from wire.frames import FrameType
from wire.limits import HANDSHAKE_PAYLOAD, LARGEST_PAYLOAD
from wire.messages import (
    MESSAGES,
    TENSOR_FRAMES,
    decode_chunk,
    decode_message,
    encode_chunk,
    encode_message,
    frame_type,
    without_proof,
)
from wire.messages_memory import Alloc, Run
from wire.messages_session import Ack, Error, ErrorCode, Hello, Ping, Pong, Welcome
from wire.messages_stats import Stats
from wire.messages_work import (
    Bounds,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Generate,
    Given,
    Push,
    PushFile,
    Sampling,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    Vectors,
)
from wire.rules import FREE_OF_CREDIT, largest_payload
from wire.tensors import DType

ANY_MESSAGE = st.sampled_from(sorted(MESSAGES)).flatmap(lambda kind: of_record(MESSAGES[kind]))


def payload_of(message: Any) -> bytes:
    return b"".join(encode_message(message))


def test_every_frame_type_has_its_message() -> None:
    assert set(MESSAGES) | TENSOR_FRAMES | {FrameType.CREDIT} == set(FrameType)
    assert not set(MESSAGES) & TENSOR_FRAMES
    assert len(set(MESSAGES.values())) == len(MESSAGES)


@pytest.mark.parametrize("kind", sorted(MESSAGES), ids=lambda kind: kind.name)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(kind: FrameType, data: st.DataObject) -> None:
    message = data.draw(of_record(MESSAGES[kind]))
    assert frame_type(message) is kind
    assert decode_message(kind, payload_of(message)) == message


@settings(max_examples=25, deadline=None)
@given(of_record(Chunk))
def test_chunks_come_back_as_they_were(chunk: Chunk) -> None:
    assert decode_chunk(b"".join(encode_chunk(chunk))) == chunk


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FrameType)), st.binary(max_size=64))
def test_random_bytes_give_only_the_remote_error(kind: FrameType, data: bytes) -> None:
    try:
        message = decode_message(kind, data)
    except RemoteError:
        return
    assert decode_message(kind, payload_of(message)) == message


@settings(max_examples=100, deadline=None)
@given(ANY_MESSAGE, st.data())
def test_mutated_bytes_give_only_the_remote_error(message: Any, data: st.DataObject) -> None:
    payload = bytearray(payload_of(message))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(len(payload) - 1, 0)))
        match data.draw(st.integers(0, 2)):
            case 0:
                payload[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case 1:
                del payload[place : place + data.draw(st.integers(1, 8))]
            case _:
                payload[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        changed = decode_message(frame_type(message), payload)
    except RemoteError:
        return
    assert decode_message(frame_type(message), payload_of(changed)) == changed


@settings(max_examples=50, deadline=None)
@given(ANY_MESSAGE)
def test_every_beginning_of_a_message_is_another_message_or_a_remote_error(message: Any) -> None:
    payload = payload_of(message)
    for end in range(min(len(payload), 200)):
        try:
            decode_message(frame_type(message), payload[:end])
        except RemoteError:
            continue


@settings(max_examples=50, deadline=None)
@given(ANY_MESSAGE, st.binary(max_size=8))
def test_fields_of_a_newer_sender_are_skipped(message: Any, more: bytes) -> None:
    every_field = encode_every_field(message)
    assert decode_message(frame_type(message), every_field + more) == message


def encode_every_field(message: Any) -> bytes:
    """As a sender that leaves nothing out."""
    writer = Writer()
    for field in record_fields(type(message)):
        field.kind.put(writer, getattr(message, field.name))
    return writer.joined()


def test_fields_of_a_newer_sender_are_skipped_within_records_too() -> None:
    newer = b"\x01m" + b"\x02" + b"\x07" + b"\x02hi" + b"newp"
    assert decode_message(FrameType.GENERATE, newer) == Generate("m", TextPrompt("hi"))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (FrameType.FREE, b"\xff\xff\xff\xff\x0f"),
        (FrameType.GENERATE, b"\x01m\x03\x08\xff\xff\xff\x7f"),
        (FrameType.STATS, b"\x80\x08\x01a\x06\x80\x08"),
        (FrameType.LOAD, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        (FrameType.ACK, b"\x00\x80\x20"),
        (FrameType.HELLO, b"\x10"),
    ],
)
def test_a_claimed_size_takes_no_memory(kind: FrameType, payload: bytes) -> None:
    with pytest.raises(RemoteError):  # the tables of fields are made here
        decode_message(kind, payload)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError):
            decode_message(kind, payload)
        assert tracemalloc.get_traced_memory()[1] < 32 << 10
    finally:
        tracemalloc.stop()


def test_lists_within_lists_end_before_the_stack_does() -> None:
    with pytest.raises(BadPayload, match="deep"):
        decode_message(FrameType.STATS, b"\x01\x01a" + b"\x06\x01" * 10_000 + b"\x01\x01")


def test_a_large_blob_is_neither_copied_out_nor_in() -> None:
    data = bytes(1 << 19)
    chunk = Chunk(3, 1 << 33, bytes(32), data)
    parts = encode_chunk(chunk)
    assert any(part is data for part in parts)
    payload = b"".join(parts)
    decode_chunk(payload)
    tracemalloc.start()
    try:
        received = decode_chunk(payload)
        assert isinstance(received.data, memoryview) and received.data.obj is payload
        encode_chunk(chunk)
        assert tracemalloc.get_traced_memory()[1] < 16 << 10
    finally:
        tracemalloc.stop()


def test_small_blobs_are_joined() -> None:
    assert len(encode(Ping(bytes(32)))) == 1
    assert len(encode(Chunk(0, 0, bytes(32), bytes(GATHER_FROM)))) == 2


def test_defaults_at_the_end_are_left_out() -> None:
    assert payload_of(Tokens(5, 4, "a", (7,))) == b"\x05\x04\x01a\x01\x00\x00\x00\x07"
    assert payload_of(Generate("m", TextPrompt("hi"))) == b"\x01m\x02\x03\x02hi"
    assert payload_of(Stats()) == b""


def test_a_message_that_lacks_a_field_without_a_default_is_refused() -> None:
    with pytest.raises(BadPayload, match=r"Generate\.prompt: is lacking"):
        decode_message(FrameType.GENERATE, b"\x01m")


def test_error_codes_hold_the_protocol_faults_and_read_unknown_ones() -> None:
    assert {code.name: int(code) for code in FaultCode}.items() <= {code.name: int(code) for code in ErrorCode}.items()
    assert decode(b"\xe7\x07", Error) == Error(ErrorCode.INTERNAL)


def test_the_answer_to_a_ping_has_its_payload() -> None:
    ping = Ping(b"now", -61)
    assert decode_message(FrameType.PONG, payload_of(ping)) == Pong(b"now", -61)


@pytest.mark.parametrize("kind", sorted(FREE_OF_CREDIT & set(MESSAGES)), ids=lambda kind: kind.name)
def test_what_needs_no_credit_is_small(kind: FrameType) -> None:
    assert largest_payload(kind) <= HANDSHAKE_PAYLOAD
    with pytest.raises(BadPayload, match="is the most"):
        decode_message(kind, bytes(largest_payload(kind) + 1))


def test_what_fits_no_frame_is_refused_before_it_is_sent() -> None:
    content = "x" * (LARGEST_PAYLOAD // 2)
    messages = (ChatMessage("user", content), ChatMessage("user", content))
    with pytest.raises(OutOfBounds, match="is the most"):
        encode_message(Generate("m", ChatPrompt(messages)))
    with pytest.raises(OutOfBounds, match="frame"):
        encode_chunk(Chunk(0, 0, bytes(32), bytes(LARGEST_PAYLOAD)))
    with pytest.raises(OutOfBounds):
        encode_message(Error(ErrorCode.NO_ROOM, "no", None, (("why", "x" * HANDSHAKE_PAYLOAD),)))


@pytest.mark.parametrize(
    "message",
    [
        Generate("", TextPrompt("x")),
        Generate("m", TextPrompt("\ud800")),
        Generate("m", TokenPrompt((-1,))),
        Generate("m", TextPrompt("x"), Sampling(temperature=float("nan"))),
        Generate("m", TextPrompt("x"), Sampling(temperature=-1.0)),
        Generate("m", TextPrompt("x"), Sampling(seed=1 << 63)),
        Generate("m", TextPrompt("x"), bounds=Bounds(max_tokens=-3)),
        Generate("m", TextPrompt("x"), stop=("",)),
        Generate("m", "x"),
        Generate(5, TextPrompt("x")),
        Generate("m", TextPrompt("x"), samples=0),
        Run("m", Ack()),
        Hello((), "me", bytes(32)),
        Hello((1,), "me", bytes(31)),
        Stats((("a", 1), ("a", 2))),
        Stats((("a", object()),)),
        Stats((("a", ((((1,),),),)),)),
        Error(64),
        Push("../m", (PushFile("a", 1, bytes(32)),)),
        Alloc(0, DType.INT8),
    ],
    ids=lambda message: type(message).__name__,
)
def test_values_that_nobody_may_send_are_our_own_mistake(message: Any) -> None:
    with pytest.raises(OutOfBounds):
        encode_message(message)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tokens(0, 0, "a", (1, 2), logprobs=(TokenLogprob(None),)),
        lambda: Generate("m", TextPrompt("x"), given=(Given(), Given())),
        lambda: Vectors(0, 1, 3, bytes(13)),
        lambda: Vectors(1, 1, 3, bytes(12)),
        lambda: Alloc(1, DType.INT64, (0xFFFF_FFFF, 0xFFFF_FFFF)),
        lambda: Push("m", (PushFile("a", 1, bytes(32)), PushFile("A", 1, bytes(32)))),
        lambda: Push("m", (PushFile("a", 1, bytes(32)), PushFile("a/b", 1, bytes(32)))),
    ],
)
def test_fields_that_contradict_each_other_are_refused(make: Any) -> None:
    with pytest.raises(OutOfBounds):
        make()


def test_a_contradiction_that_arrives_is_the_senders_mistake() -> None:
    with pytest.raises(BadPayload, match="Vectors"):
        decode_message(FrameType.VECTORS, b"\x00\x01\x03\x0d" + bytes(13))


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(OutOfBounds):
        encode_message("HELLO")
    with pytest.raises(BadPayload):
        decode_message(FrameType.DATA, b"")


@pytest.mark.parametrize("payload", [b"\x80\x00", b"\xff" * 9 + b"\x02", b"\xff" * 11, b"\x80"])
def test_numbers_have_one_spelling_and_64_bits(payload: bytes) -> None:
    with pytest.raises(BadPayload):
        decode(payload, Ack)


@pytest.mark.parametrize(
    "message",
    [Hello((1,), "me", bytes(32), ("lz4",), b"p" * 32, b"k" * 32), Welcome(1, "node", bytes(32), (), b"p" * 32)],
    ids=lambda message: type(message).__name__,
)
def test_the_transcript_has_all_but_the_proof_whatever_a_newer_sender_adds(message: Any) -> None:
    kind = frame_type(message)
    every_field = encode_every_field(message) + b"newer"
    blank = without_proof(kind, every_field)
    assert blank == every_field.replace(b"\x20" + b"p" * 32, b"\x00")
    assert without_proof(kind, blank) == blank
    assert decode_message(kind, blank) == dataclasses.replace(message, proof=b"")


def test_a_transcript_of_what_has_no_proof() -> None:
    first = payload_of(Hello((1,), "me", bytes(32)))
    assert without_proof(FrameType.HELLO, first) == first
    with pytest.raises(BadPayload):
        without_proof(FrameType.HELLO, first[:-1])
    with pytest.raises(OutOfBounds):
        without_proof(FrameType.PING, b"")
