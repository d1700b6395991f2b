"""One typed binary form for every value that travels: records of numbered fields, each of one kind.

Invariants: a record is its fields in order, without names; fields at the end that hold their default are left out,
fields behind the last known one are skipped, so either side may be newer. Every length is checked against its bound
and against the bytes that are there before anything is made of it. Bad values of ours raise `OutOfBounds`, bad bytes of
the other side `BadPayload`. Must not know messages, frames, sockets or clocks.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, Protocol, TypeVar, get_type_hints, runtime_checkable

from wire.errors import BadPayload, OutOfBounds
from wire.frames import Buffer

__all__ = [
    "GATHER_FROM",
    "UNSIGNED_MOST",
    "VARINT_BYTES",
    "Field",
    "Kind",
    "Reader",
    "Writer",
    "decode",
    "encode",
    "put_record",
    "put_varint",
    "record_fields",
    "take_record",
]

Record = TypeVar("Record")

VARINT_BYTES = 10  # seven bits a byte: enough for 64 bits, and no loop runs longer
UNSIGNED_MOST = (1 << 64) - 1
# A blob of this size or more is handed on as it is: joining buffers costs more than one more entry in a gather write.
GATHER_FROM = 1024


class Writer:
    """Collects bytes; large blobs stay the caller's buffers, so that a gather write can send them uncopied."""

    __slots__ = ("_parts", "small")

    def __init__(self) -> None:
        self._parts: list[Buffer] = []
        self.small = bytearray()

    def blob(self, data: Buffer) -> None:
        if isinstance(data, memoryview) and not data.c_contiguous:
            raise OutOfBounds("the buffer is not contiguous")
        if (data.nbytes if isinstance(data, memoryview) else len(data)) < GATHER_FROM:
            self.small += data
            return
        self._parts += (self.small, data)
        self.small = bytearray()

    def finish(self) -> list[Buffer]:
        return [*self._parts, self.small] if self.small else self._parts

    def joined(self) -> bytes:
        return b"".join(self.finish()) if self._parts else bytes(self.small)


class Reader:
    """A place in a payload. `take` gives views of it and never more than is there."""

    __slots__ = ("depth", "end", "position", "view")

    def __init__(self, data: Buffer) -> None:
        self.view = memoryview(data)
        if self.view.format != "B" or self.view.ndim != 1:
            self.view = self.view.cast("B")
        self.position, self.end, self.depth = 0, len(self.view), 0

    @property
    def left(self) -> int:
        return self.end - self.position

    def byte(self) -> int:
        if self.position >= self.end:
            raise BadPayload("the payload ends within a field")
        value = self.view[self.position]
        self.position += 1
        return value

    def take(self, size: int) -> memoryview:
        if size > self.end - self.position:
            raise BadPayload(f"a field claims {size} bytes where {self.end - self.position} are left")
        start = self.position
        self.position += size
        return self.view[start : self.position]

    def varint(self) -> int:
        """LEB128 in its shortest form: one number has one spelling."""
        if self.position >= self.end:
            raise BadPayload("the payload ends within a field")
        value = self.view[self.position]
        self.position += 1
        if value < 0x80:
            return value
        value &= 0x7F
        for shift in range(7, 7 * VARINT_BYTES, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 or value > UNSIGNED_MOST:
                    raise BadPayload("a number is not in its shortest form or wider than 64 bits")
                return value
        raise BadPayload("a number is wider than 64 bits")


def put_varint(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


@runtime_checkable
class Kind(Protocol):
    """How one field's value becomes bytes and comes back. Stands in the field's annotation."""

    def put(self, writer: Writer, value: Any) -> None:
        """Raises OutOfBounds for a value that the other side would refuse."""

    def take(self, reader: Reader) -> Any:
        """Raises BadPayload for bytes that no honest sender writes."""

    def describe(self) -> str:
        """The kind with its bounds, as the protocol page has it."""


class Field:
    """One field of a record: its name, its kind and what stands when it is not sent."""

    __slots__ = ("default", "kind", "name")

    def __init__(self, name: str, kind: Kind, default: Any) -> None:
        self.name, self.kind, self.default = name, kind, default

    @property
    def required(self) -> bool:
        return self.default is MISSING


def record_fields(record: type[Any]) -> tuple[Field, ...]:
    """The fields of a frozen dataclass whose annotations are `Annotated[type, kind]`, in the order they travel in."""
    known = _tables.get(record)
    if known is None:
        known = _tables[record] = _read_fields(record)
    return known


def _read_fields(record: type[Any]) -> tuple[Field, ...]:
    hints = get_type_hints(record, include_extras=True)
    found = []
    for field in fields(record):
        kinds = [each for each in getattr(hints[field.name], "__metadata__", ()) if isinstance(each, Kind)]
        assert len(kinds) == 1, f"{record.__name__}.{field.name} has no kind"
        found.append(Field(field.name, kinds[0], field.default))
    return tuple(found)


# Made when a record is first used: reading annotations is slow, and the classes never change.
_tables: dict[type[Any], tuple[Field, ...]] = {}


def put_record(writer: Writer, value: Any) -> None:
    """Writes what differs from the defaults, and everything before it."""
    table = record_fields(type(value))
    values = [getattr(value, field.name) for field in table]
    count = len(table)
    while count and values[count - 1] == table[count - 1].default:  # one that is required equals nothing
        count -= 1
    each = None
    field = None
    try:
        for field, each in zip(table[:count], values, strict=False):
            field.kind.put(writer, each)
    except OutOfBounds as error:
        raise OutOfBounds(f"{type(value).__name__}.{field.name if field else ''}: {error}") from None
    except (TypeError, AttributeError) as error:
        told = f"{type(value).__name__}.{field.name if field else ''}"
        raise OutOfBounds(f"{told}: wrong type, {type(each).__name__}") from error


def take_record(reader: Reader, record: type[Record]) -> Record:
    """Reads a record that reaches to the reader's end. What `__post_init__` refuses is the sender's mistake here."""
    values: list[Any] = []
    add, end, field = values.append, reader.end, None
    try:
        for field in record_fields(record):
            if reader.position == end:
                if field.default is MISSING:
                    raise BadPayload("is lacking")
                break
            add(field.kind.take(reader))
    except BadPayload as error:
        raise BadPayload(f"{record.__name__}.{field.name if field else ''}: {error}") from None
    reader.position = reader.end  # fields of a newer sender
    try:
        return record(*values)
    except OutOfBounds as error:
        raise BadPayload(f"{record.__name__}: {error}") from None


def encode(value: Any) -> list[Buffer]:
    """A record as buffers in order; blobs of `GATHER_FROM` bytes and more are the caller's own, uncopied."""
    writer = Writer()
    put_record(writer, value)
    return writer.finish()


def decode(data: Buffer, record: type[Record]) -> Record:
    """The record in `data`. Blobs in it are views of `data`, which must live and stay as it is as long as they do."""
    return take_record(Reader(data), record)
