"""Messages about memory lent to the client: buffers by number, and a model run on them.

Invariants: the client chooses a buffer's number, so that asking twice makes one buffer; WRITE and DATA carry
tensor headers (`wire.tensors`) and bytes and are not here. Must not know devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from wire.errors import OutOfBounds
from wire.kinds import Choice, Flag, Listing, OneOf, Text, TokenIds, Unsigned
from wire.messages_work import TOKENS, Caller, Model, Size
from wire.tensors import DIMENSION_MOST, HANDLE_MOST, RANK_MOST, DType, tensor_bytes

__all__ = [
    "HANDLES",
    "TENSOR_BYTES_MOST",
    "Alloc",
    "Allocated",
    "Free",
    "FromBuffer",
    "Handle",
    "InlineIds",
    "Output",
    "Read",
    "Run",
]

HANDLES = 4096
TENSOR_BYTES_MOST = (1 << 63) - 1

Handle = Annotated[int, Unsigned(HANDLE_MOST, least=1)]


class Output(IntEnum):
    """What a RUN gives back."""

    LOGITS = 1
    HIDDEN = 2


@dataclass(frozen=True, slots=True)
class Alloc:
    """A buffer for one tensor; the same number with the same shape again is the same buffer. Answer: ALLOCATED."""

    handle: Handle
    dtype: Annotated[DType, Choice(DType)]
    shape: Annotated[tuple[int, ...], Listing(Unsigned(DIMENSION_MOST), RANK_MOST)] = ()
    device: Annotated[str, Text(64)] = ""

    def __post_init__(self) -> None:
        if tensor_bytes(self.dtype, self.shape) > TENSOR_BYTES_MOST:
            raise OutOfBounds("no memory has room for such a tensor")

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Allocated:
    handle: Handle
    dtype: Annotated[DType, Choice(DType)]
    shape: Annotated[tuple[int, ...], Listing(Unsigned(DIMENSION_MOST), RANK_MOST)] = ()
    device: Annotated[str, Text(64)] = ""
    free_bytes: Size = 0


@dataclass(frozen=True, slots=True)
class Free:
    """Gives buffers back; answered by ACK with their bytes."""

    handles: Annotated[tuple[int, ...], Listing(Unsigned(HANDLE_MOST, least=1), HANDLES, least=1)]


@dataclass(frozen=True, slots=True)
class Read:
    """Asks for bytes of a buffer; answered by DATA: header, bytes. `size` 0: to the end."""

    handle: Handle
    offset: Size = 0
    size: Size = 0
    checksum: Annotated[bool, Flag()] = False


@dataclass(frozen=True, slots=True)
class InlineIds:
    ids: Annotated[tuple[int, ...], TokenIds(TOKENS, least=1)]


@dataclass(frozen=True, slots=True)
class FromBuffer:
    """The tensor of a buffer: whole numbers are token ids, reals are embeddings of shape (tokens, hidden size)."""

    handle: Handle


@dataclass(frozen=True, slots=True)
class Run:
    """A loaded model on given input, nothing is sampled. Answer: DATA frames, or ALLOCATED for `keep_as`."""

    model: Model
    inputs: Annotated[InlineIds | FromBuffer, OneOf((InlineIds, FromBuffer))]
    output: Annotated[Output, Choice(Output)] = Output.LOGITS
    last_only: Annotated[bool, Flag()] = False
    keep_as: Annotated[int, Unsigned(HANDLE_MOST)] = 0
    caller: Caller = ""
    cache_salt: Caller = ""
