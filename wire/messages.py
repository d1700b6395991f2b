"""Which message a frame carries: one table from frame types to records, and the way to bytes and back.

Invariants: every frame type but CREDIT (the connection's own) is in `MESSAGES` or in `TENSOR_FRAMES`; the type stands
in the frame's header and not in the payload. Must not know connections.
"""

from __future__ import annotations

from typing import Any

from wire.codec import Reader, decode, encode, record_fields
from wire.errors import BadPayload, OutOfBounds
from wire.frames import Buffer, FrameType
from wire.kinds import byte_size
from wire.limits import LARGEST_PAYLOAD
from wire.messages_memory import Alloc, Allocated, Free, Read, Run
from wire.messages_session import Ack, Cancel, Error, Goodbye, Hello, Ping, Pong, Welcome
from wire.messages_stats import Stats
from wire.messages_work import (
    Chunk,
    Done,
    Embed,
    Generate,
    Load,
    Loaded,
    Progress,
    Push,
    Tokens,
    Unload,
    Vectors,
)
from wire.rules import largest_payload
from wire.token_frames import pack_tokens, unpack_tokens

__all__ = [
    "MESSAGES",
    "TENSOR_FRAMES",
    "Message",
    "decode_chunk",
    "decode_message",
    "encode_chunk",
    "encode_message",
    "encode_tokens",
    "frame_type",
    "without_proof",
]

Message = (
    Hello | Welcome | Ping | Pong | Cancel | Error | Goodbye | Load | Progress | Loaded | Unload | Push
    | Generate | Tokens | Done | Embed | Vectors | Alloc | Allocated | Free | Read | Ack | Run | Stats
)  # fmt: skip

MESSAGES: dict[FrameType, type[Any]] = {
    FrameType.HELLO: Hello,
    FrameType.WELCOME: Welcome,
    FrameType.PING: Ping,
    FrameType.PONG: Pong,
    FrameType.CANCEL: Cancel,
    FrameType.ERROR: Error,
    FrameType.GOODBYE: Goodbye,
    FrameType.LOAD: Load,
    FrameType.PROGRESS: Progress,
    FrameType.LOADED: Loaded,
    FrameType.UNLOAD: Unload,
    FrameType.PUSH: Push,
    FrameType.GENERATE: Generate,
    FrameType.TOKENS: Tokens,
    FrameType.DONE: Done,
    FrameType.EMBED: Embed,
    FrameType.VECTORS: Vectors,
    FrameType.ALLOC: Alloc,
    FrameType.ALLOCATED: Allocated,
    FrameType.FREE: Free,
    FrameType.READ: Read,
    FrameType.ACK: Ack,
    FrameType.RUN: Run,
    FrameType.STATS: Stats,
}
# No record: WRITE carries a tensor header, DATA raw bytes, so that a driver can receive them where they belong. Before
# the bytes of an answer comes a DATA frame with their tensor header. DATA of a PUSH carries a `Chunk`.
TENSOR_FRAMES = frozenset({FrameType.WRITE, FrameType.DATA})
_TYPES = {record: kind for kind, record in MESSAGES.items()}


def frame_type(message: Message) -> FrameType:
    """The type of the frame that carries `message`."""
    try:
        return _TYPES[type(message)]
    except KeyError:
        raise OutOfBounds(f"{type(message).__name__} is no message") from None


def encode_message(message: Message) -> list[Buffer]:
    """The payload in pieces for a gather write; large blobs are the message's own buffers, not copied.

    Raises OutOfBounds for what the other side would refuse.
    """
    if type(message) is Tokens and message.sample == 0 and message.logprobs == ():
        usual = pack_tokens(message.index, message.position, message.text, message.ids)
        if usual is not None:
            return [usual]
    kind = frame_type(message)
    parts = encode(message)
    size = sum(map(byte_size, parts))
    if size > largest_payload(kind):
        raise OutOfBounds(f"{kind.name} of {size} bytes; {largest_payload(kind)} is the most")
    return parts


def decode_message(kind: FrameType, payload: Buffer) -> Message:
    """The message in `payload`. Its blobs are views of it. Raises RemoteErrors only."""
    if kind is FrameType.TOKENS and (usual := unpack_tokens(payload)) is not None:
        return usual
    record = MESSAGES.get(kind)
    if record is None:
        raise BadPayload(f"{kind.name} carries no message")
    size = byte_size(payload)
    if size > largest_payload(kind):
        raise BadPayload(f"{kind.name} of {size} bytes; {largest_payload(kind)} is the most")
    message: Message = decode(payload, record)
    return message


def encode_tokens(index: int, position: int, text: str, ids: tuple[int, ...] = ()) -> bytes:
    """As `encode_message` of TOKENS of sample 0, in one piece, without making the message first."""
    usual = pack_tokens(index, position, text, ids)
    return b"".join(encode_message(Tokens(index, position, text, ids))) if usual is None else usual


def encode_chunk(chunk: Chunk) -> list[Buffer]:
    """The payload of a DATA frame of a PUSH; the data is not copied. Raises OutOfBounds."""
    parts = encode(chunk)
    if sum(map(byte_size, parts)) > LARGEST_PAYLOAD:
        raise OutOfBounds(f"a chunk of more than a frame's {LARGEST_PAYLOAD} bytes")
    return parts


def decode_chunk(payload: Buffer) -> Chunk:
    """The chunk in a DATA frame of a PUSH; its data is a view of `payload`. Raises RemoteErrors only."""
    return decode(payload, Chunk)


def without_proof(kind: FrameType, payload: Buffer) -> bytes:
    """The payload of a HELLO or WELCOME with its proof emptied and all else, also what a newer sender added, as it was.

    Both sides make the transcript of this, so a sender puts 32 bytes of anything in place before it knows the proof.
    """
    if kind not in (FrameType.HELLO, FrameType.WELCOME):
        raise OutOfBounds(f"{kind.name} has no proof")
    reader = Reader(payload)
    for field in record_fields(MESSAGES[kind]):
        start = reader.position
        if start == reader.end:
            break
        field.kind.take(reader)
        if field.name == "proof":
            return bytes(reader.view[:start]) + b"\0" + bytes(reader.view[reader.position :])
    return bytes(payload)
