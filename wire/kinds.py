"""The kinds of fields: what each is made of in bytes, and its bounds.

Invariants: a kind refuses on both sides the same values; a count is believed only as far as bytes are there for it; a
kind's `describe` is what the protocol page says of it. Must not know which messages use it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from wire.codec import UNSIGNED_MOST, Kind, Reader, Writer, put_record, put_varint, take_record
from wire.errors import BadPayload, OutOfBounds
from wire.frames import Buffer

__all__ = [
    "INT64_MOST",
    "TOKEN_ID_MOST",
    "Blob",
    "Choice",
    "Flag",
    "Listing",
    "Nested",
    "Octets",
    "OneOf",
    "Perhaps",
    "Real",
    "Signed",
    "Text",
    "TokenIds",
    "Unsigned",
    "bound",
    "byte_size",
    "take_sized",
]

_DOUBLE = struct.Struct(">d")
INT64_MOST = (1 << 63) - 1
TOKEN_ID_MOST = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Unsigned:
    """LEB128, shortest form."""

    most: int = UNSIGNED_MOST
    least: int = 0

    def put(self, writer: Writer, value: int) -> None:
        if not self.least <= value <= self.most:
            raise OutOfBounds(f"{value} is not in {self.least} to {self.most}")
        put_varint(writer.small, int(value))

    def take(self, reader: Reader) -> int:
        value = reader.varint()
        if not self.least <= value <= self.most:
            raise BadPayload(f"{value} is not in {self.least} to {self.most}")
        return value

    def describe(self) -> str:
        return f"unsigned, {self.least} to {bound(self.most)}"


@dataclass(frozen=True, slots=True)
class Signed:
    """Zigzag (0, -1, 1, -2 ... become 0, 1, 2, 3 ...), then LEB128."""

    least: int = -INT64_MOST - 1
    most: int = INT64_MOST

    def put(self, writer: Writer, value: int) -> None:
        if not self.least <= value <= self.most:
            raise OutOfBounds(f"{value} is not in {self.least} to {self.most}")
        put_varint(writer.small, 2 * int(value) if value >= 0 else -2 * int(value) - 1)

    def take(self, reader: Reader) -> int:
        raw = reader.varint()
        value = raw >> 1 if raw & 1 == 0 else -(raw >> 1) - 1
        if not self.least <= value <= self.most:
            raise BadPayload(f"{value} is not in {self.least} to {self.most}")
        return value

    def describe(self) -> str:
        least = f"-{bound(-self.least)}" if self.least < 0 else str(self.least)
        return f"signed, {least} to {bound(self.most)}"


@dataclass(frozen=True, slots=True)
class Flag:
    """One byte, 0 or 1."""

    def put(self, writer: Writer, value: bool) -> None:
        if value not in (True, False):
            raise OutOfBounds(f"{value!r} is no flag")
        writer.small.append(1 if value else 0)

    def take(self, reader: Reader) -> bool:
        value = reader.byte()
        if value > 1:
            raise BadPayload(f"{value} is no flag")
        return value == 1

    def describe(self) -> str:
        return "flag"


@dataclass(frozen=True, slots=True)
class Real:
    """IEEE 754 double, big-endian; never a NaN, which equals nothing, and infinite only where that means something."""

    least: float = -math.inf
    most: float = math.inf
    finite: bool = True

    def _allows(self, value: float) -> bool:
        return self.least <= value <= self.most and (math.isfinite(value) or not self.finite)

    def put(self, writer: Writer, value: float) -> None:
        if not self._allows(value):
            raise OutOfBounds(f"{value} is out of range")
        try:
            writer.small += _DOUBLE.pack(value)
        except OverflowError as error:
            raise OutOfBounds(f"{value} is no double") from error

    def take(self, reader: Reader) -> float:
        value: float = _DOUBLE.unpack(reader.take(8))[0]
        if not self._allows(value):
            raise BadPayload(f"{value} is out of range")
        return value

    def describe(self) -> str:
        infinite = "" if self.finite else ", infinite allowed"
        if math.isinf(self.least) and math.isinf(self.most):
            return f"real{infinite or ', finite'}"
        return f"real, {self.least:g} {f'to {self.most:g}' if self.most < math.inf else 'and more'}{infinite}"


@dataclass(frozen=True, slots=True)
class Octets:
    """Varint size, then the bytes; copied out, for small values that outlive the frame."""

    most: int
    least: int = 0

    def put(self, writer: Writer, value: Buffer) -> None:
        size = byte_size(value)
        if not self.least <= size <= self.most:
            raise OutOfBounds(f"{size} bytes are not {self.least} to {self.most}")
        put_varint(writer.small, size)
        writer.small += value

    def take(self, reader: Reader) -> bytes:
        return bytes(take_sized(reader, self.least, self.most))

    def describe(self) -> str:
        return f"bytes, {self.most}" if self.least == self.most else f"bytes, {self.least} to {bound(self.most)}"


@dataclass(frozen=True, slots=True)
class Blob:
    """Varint size, then the bytes; written from the caller's buffer and read as a view of the frame, uncopied."""

    most: int

    def put(self, writer: Writer, value: Buffer) -> None:
        size = byte_size(value)
        if size > self.most:
            raise OutOfBounds(f"{size} bytes are more than {self.most}")
        put_varint(writer.small, size)
        writer.blob(value)

    def take(self, reader: Reader) -> memoryview:
        return take_sized(reader, 0, self.most)

    def describe(self) -> str:
        return f"blob, up to {bound(self.most)}"


@dataclass(frozen=True, slots=True)
class Text:
    """Varint size in bytes, then UTF-8."""

    most: int
    least: int = 0

    def put(self, writer: Writer, value: str) -> None:
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise OutOfBounds("the text has a lone surrogate") from error
        if not self.least <= len(data) <= self.most:
            raise OutOfBounds(f"{len(data)} bytes of text are not {self.least} to {self.most}")
        put_varint(writer.small, len(data))
        writer.small += data

    def take(self, reader: Reader) -> str:
        try:
            return str(take_sized(reader, self.least, self.most), "utf-8")
        except UnicodeDecodeError as error:
            raise BadPayload("the text is not UTF-8") from error

    def describe(self) -> str:
        return f"text, {self.least} to {bound(self.most)} bytes"


@dataclass(frozen=True, slots=True)
class Choice:
    """Unsigned number of an enumeration; an unknown one is read as `otherwise`, where that is given."""

    of: type[IntEnum]
    otherwise: IntEnum | None = None

    def put(self, writer: Writer, value: IntEnum) -> None:
        if not isinstance(value, self.of):
            raise OutOfBounds(f"{value!r} is no {self.of.__name__}")
        put_varint(writer.small, value)

    def take(self, reader: Reader) -> IntEnum:
        number = reader.varint()
        try:
            return self.of(number)
        except ValueError as error:
            if self.otherwise is not None:
                return self.otherwise
            raise BadPayload(f"{number} is no {self.of.__name__}") from error

    def describe(self) -> str:
        unknown = f", unknown is {self.otherwise.name}" if self.otherwise is not None else ""
        return f"{self.of.__name__}{unknown}"


@dataclass(frozen=True, slots=True)
class Perhaps:
    """A flag; behind 1 the value."""

    kind: Kind

    def put(self, writer: Writer, value: Any) -> None:
        writer.small.append(0 if value is None else 1)
        if value is not None:
            self.kind.put(writer, value)

    def take(self, reader: Reader) -> Any:
        return self.kind.take(reader) if Flag().take(reader) else None

    def describe(self) -> str:
        return f"optional {self.kind.describe()}"


@dataclass(frozen=True, slots=True)
class Listing:
    """Varint count, then the values. Each takes a byte or more, so the count is bounded by what is there."""

    kind: Kind
    most: int
    least: int = 0

    def put(self, writer: Writer, value: tuple[Any, ...]) -> None:
        if not self.least <= len(value) <= self.most:
            raise OutOfBounds(f"{len(value)} values are not {self.least} to {self.most}")
        put_varint(writer.small, len(value))
        for each in value:
            self.kind.put(writer, each)

    def take(self, reader: Reader) -> tuple[Any, ...]:
        count = reader.varint()
        if not self.least <= count <= self.most or count > reader.left:
            raise BadPayload(f"a list claims {count} values")
        return tuple([self.kind.take(reader) for _ in range(count)])

    def describe(self) -> str:
        return f"list of {self.least} to {bound(self.most)}: {self.kind.describe()}"


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Varint count, then four bytes each, big-endian: a long prompt is packed and unpacked in one call."""

    most: int
    least: int = 0

    def put(self, writer: Writer, value: tuple[int, ...]) -> None:
        if not self.least <= len(value) <= self.most:
            raise OutOfBounds(f"{len(value)} token ids are not {self.least} to {self.most}")
        put_varint(writer.small, len(value))
        try:
            writer.small += struct.pack(f">{len(value)}I", *value)
        except struct.error as error:
            raise OutOfBounds(f"a token id is not in 0 to {TOKEN_ID_MOST}") from error

    def take(self, reader: Reader) -> tuple[int, ...]:
        count = reader.varint()
        if not self.least <= count <= self.most or 4 * count > reader.left:
            raise BadPayload(f"{count} token ids are claimed")
        return struct.unpack(f">{count}I", reader.take(4 * count))

    def describe(self) -> str:
        return f"token ids, {self.least} to {bound(self.most)}"


@dataclass(frozen=True, slots=True)
class Nested:
    """Varint size, then a record: its own new fields can be skipped wherever it stands."""

    record: type[Any]

    def put(self, writer: Writer, value: Any) -> None:
        if type(value) is not self.record:
            raise OutOfBounds(f"{type(value).__name__} where {self.record.__name__} belongs")
        inner = Writer()
        put_record(inner, value)
        data = inner.joined()
        put_varint(writer.small, len(data))
        writer.small += data

    def take(self, reader: Reader) -> Any:
        return take_record(Reader(take_sized(reader, 0, UNSIGNED_MOST)), self.record)

    def describe(self) -> str:
        return f"{self.record.__name__}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Varint tag (1 for the first of `records`), then that record as in `Nested`."""

    records: tuple[type[Any], ...]

    def put(self, writer: Writer, value: Any) -> None:
        if type(value) not in self.records:
            raise OutOfBounds(f"{type(value).__name__} is none of {self.describe()}")
        put_varint(writer.small, self.records.index(type(value)) + 1)
        Nested(type(value)).put(writer, value)

    def take(self, reader: Reader) -> Any:
        tag = reader.varint()
        if not 1 <= tag <= len(self.records):
            raise BadPayload(f"tag {tag} is none of {self.describe()}")
        return Nested(self.records[tag - 1]).take(reader)

    def describe(self) -> str:
        return " or ".join(f"{tag} {record.__name__}" for tag, record in enumerate(self.records, 1))


def take_sized(reader: Reader, least: int, most: int) -> memoryview:
    size = reader.varint()
    if not least <= size <= most:
        raise BadPayload(f"{size} bytes are not {least} to {most}")
    return reader.take(size)


def byte_size(value: Buffer) -> int:
    return value.nbytes if isinstance(value, memoryview) else len(value)


def bound(number: int) -> str:
    """2^20 and the like stay readable."""
    for less, name in ((0, ""), (1, " - 1")):
        power = number + less
        if power >= 1 << 10 and power & (power - 1) == 0:
            return f"2^{power.bit_length() - 1}{name}"
    return str(number)
