"""What a holder asks of a lender, and the answers: bytes on a channel between two workers.

    holder                                                lender
      SCENE (the step's rows here)        ->                          once a step, nothing comes back
      ATTEND (layer, queries, new keys and values) -> <- PARTIAL      once a layer
      READ (blocks)                       -> <- CONTENT
      PUT (blocks, content), CLEAR (blocks), COPY (pairs) ->          nothing comes back
                                             <- FAILED instead of any answer

A message is a head of 32 bytes and what it is about, in one piece. Invariants: a message has exactly the size that its
head and the scene before it say; numbers are little-endian. Must not know links.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from gpu_node.engine.attention import AttentionTerms
from gpu_node.memory.partial_attention import Partial
from wire.errors import BadPayload

_HEAD = struct.Struct("<BxHIIxxxxdd")
HEAD_SIZE = _HEAD.size
HEADS_MOST = 4096
MESSAGE_BYTES = 1 << 28  # the largest that anybody sends or takes
FAILURE_LETTERS = 2000
NUMBER = 4

Bytes = bytes | bytearray | memoryview


class Channel(Protocol):
    """Whole messages, in order, both ways. One thread says, one hears. What a channel raises ends it."""

    def say(self, *parts: Bytes) -> None:
        """One message of all parts; they may be changed once it returns."""
        ...

    def hear(self) -> memoryview:
        """The next message, valid until the next call. Blocks."""
        ...


class Kind(IntEnum):
    SCENE = 1
    ATTEND = 2
    READ = 3
    PUT = 4
    CLEAR = 5
    COPY = 6
    PARTIAL = 64
    CONTENT = 65
    FAILED = 66


@dataclass(frozen=True, slots=True)
class Head:
    """`layer`: in order of the holder's. `heads`, `scale` and `soft_cap` are of an ATTEND, a soft cap of 0 is none;
    `count`: blocks, or pairs of them."""

    kind: Kind
    layer: int = 0
    heads: int = 0
    count: int = 0
    scale: float = 0.0
    soft_cap: float = 0.0

    def pack(self) -> bytes:
        return _HEAD.pack(self.kind, self.layer, self.heads, self.count, self.scale, self.soft_cap)

    def terms(self, window: int | None) -> AttentionTerms:
        return AttentionTerms(self.scale, window, self.soft_cap or None)


def attend_head(layer: int, heads: int, terms: AttentionTerms) -> Head:
    return Head(Kind.ATTEND, layer, heads, scale=terms.scale, soft_cap=terms.soft_cap or 0.0)


def opened(message: memoryview) -> tuple[Head, memoryview]:
    """The head, and what follows. Raises `BadPayload`."""
    if len(message) < HEAD_SIZE:
        raise BadPayload("a message about lent blocks is cut short")
    kind, layer, heads, count, scale, soft_cap = _HEAD.unpack_from(message)
    if kind not in Kind._value2member_map_ or heads > HEADS_MOST or not abs(scale) < 1e6 or not 0 <= soft_cap < 1e6:
        raise BadPayload("this is no message about lent blocks")
    return Head(Kind(kind), layer, heads, count, scale, soft_cap), message[HEAD_SIZE:]


def bytes_of(tensor: Tensor) -> memoryview:
    """Of a tensor as it lies; it comes to host memory and in order first, where it is not."""
    flat = tensor.cpu().contiguous().view(-1)
    data: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return memoryview(data)


def tensor_of(data: memoryview, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A view of `data`. Raises `BadPayload` where it has another size."""
    count = 1
    for each in shape:
        count *= each
    if len(data) != count * dtype.itemsize:
        raise BadPayload(f"{len(data)} bytes where a tensor of {count * dtype.itemsize} was due")
    if not count:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(tuple(shape))


def pack_numbers(numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def unpack_numbers(data: memoryview, count: int) -> tuple[tuple[int, ...], memoryview]:
    """The first `count`, and what follows. Raises `BadPayload`."""
    if count * NUMBER > len(data):
        raise BadPayload("a list of blocks is cut short")
    return struct.unpack_from(f"<{count}I", data), data[count * NUMBER :]


def partial_parts(part: Partial) -> tuple[Bytes, ...]:
    return (Head(Kind.PARTIAL).pack(), bytes_of(part.output), bytes_of(part.lse))


def partial_of(body: memoryview, tokens: int, heads: int, value_dim: int) -> Partial:
    """Views of the message. Raises `BadPayload`."""
    cut = tokens * heads * value_dim * 4
    return Partial(
        tensor_of(body[:cut], (tokens, heads, value_dim), torch.float32),
        tensor_of(body[cut:], (tokens, heads), torch.float32),
    )


def failure_parts(message: str, out_of_memory: bool) -> tuple[Bytes, ...]:
    return (Head(Kind.FAILED, count=int(out_of_memory)).pack(), message[:FAILURE_LETTERS].encode()[:FAILURE_LETTERS])
