"""Values that name their own type: what options and statistics are made of.

Invariants: flags, whole numbers, reals, texts, bytes and lists of these; lists are nested no deeper than
`DEPTH_MOST`, names stand once in a table. Must not know which options or statistics there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wire.codec import Kind, Reader, Writer, put_varint
from wire.errors import BadPayload, OutOfBounds
from wire.kinds import Flag, Octets, Real, Signed, Text, bound

__all__ = [
    "DEPTH_MOST",
    "NAME_BYTES",
    "NamedValues",
    "Table",
    "Tagged",
    "Value",
]

Value = bool | int | float | str | bytes | tuple[Any, ...]  # of values again
Table = tuple[tuple[str, Value], ...]

DEPTH_MOST = 3  # a table of tables as lists of pairs; bytes of an attacker must not choose how deep we recurse
NAME_BYTES = 128

_FLAG, _WHOLE, _REAL, _TEXT, _OCTETS, _LIST = range(1, 7)
_NAME = Text(NAME_BYTES, least=1)
_FIXED: dict[int, Kind] = {_FLAG: Flag(), _WHOLE: Signed(), _REAL: Real(finite=False)}


@dataclass(frozen=True, slots=True)
class Tagged:
    """Varint tag (1 flag, 2 signed, 3 real, 4 text, 5 bytes, 6 list), then the value; a list: count, then values."""

    most_bytes: int = 1 << 16
    most_values: int = 1 << 10

    def _kind(self, tag: int) -> Kind | None:
        if tag in _FIXED:
            return _FIXED[tag]
        sized: dict[int, Kind] = {_TEXT: Text(self.most_bytes), _OCTETS: Octets(self.most_bytes)}
        return sized.get(tag)

    def put(self, writer: Writer, value: Value, depth: int = 0) -> None:
        tag = _tag(value)
        put_varint(writer.small, tag)
        if not isinstance(value, tuple):
            kind = self._kind(tag)
            assert kind is not None
            kind.put(writer, value)
            return
        if depth == DEPTH_MOST or len(value) > self.most_values:
            raise OutOfBounds(f"a list is too deep or has more than {self.most_values} values")
        put_varint(writer.small, len(value))
        for each in value:
            self.put(writer, each, depth + 1)

    def take(self, reader: Reader, depth: int = 0) -> Value:
        tag = reader.varint()
        if tag != _LIST:
            return self._take_single(reader, tag)
        count = reader.varint()
        if depth == DEPTH_MOST or count > self.most_values or count > reader.left:
            raise BadPayload(f"a list is too deep or claims {count} values")
        return tuple([self.take(reader, depth + 1) for _ in range(count)])

    def _take_single(self, reader: Reader, tag: int) -> Value:
        kind = self._kind(tag)
        if kind is None:
            raise BadPayload(f"{tag} is no type of a value")
        value: Value = kind.take(reader)
        return value

    def describe(self) -> str:
        return f"value (texts and bytes up to {bound(self.most_bytes)}, lists up to {bound(self.most_values)})"


@dataclass(frozen=True, slots=True)
class NamedValues:
    """Varint count, then a name and a tagged value each; a name stands once."""

    most: int
    value: Tagged = Tagged()

    def put(self, writer: Writer, value: Table) -> None:
        if len(value) > self.most or len({name for name, _ in value}) < len(value):
            raise OutOfBounds(f"more than {self.most} names, or one of them twice")
        put_varint(writer.small, len(value))
        for name, each in value:
            _NAME.put(writer, name)
            self.value.put(writer, each)

    def take(self, reader: Reader) -> Table:
        count = reader.varint()
        if count > self.most or count > reader.left:
            raise BadPayload(f"a table claims {count} names")
        found: dict[str, Value] = {}
        for _ in range(count):
            name = _NAME.take(reader)
            if name in found:
                raise BadPayload(f"{name!r} stands twice")
            found[name] = self.value.take(reader)
        return tuple(found.items())

    def describe(self) -> str:
        return f"table of up to {bound(self.most)}: name of 1 to {NAME_BYTES} bytes, {self.value.describe()}"


def _tag(value: Value) -> int:
    match value:
        case bool():
            return _FLAG
        case int():
            return _WHOLE
        case float():
            return _REAL
        case str():
            return _TEXT
        case bytes():
            return _OCTETS
        case tuple():
            return _LIST
    raise OutOfBounds(f"{type(value).__name__} cannot travel")
