"""Values to bytes and back, by the annotations of their dataclasses: one JSON object, told apart by "order".

Invariants: what was packed is unpacked the same; whatever does not have exactly the fields and types that are declared
is refused, and every length and number is bounded before it is used. Pure. Must not know what orders mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wire.errors import BadPayload, OutOfBounds

MESSAGE_BYTES = 1 << 18
TEXT_MOST = 8192  # letters; a path has at most 4,096
LIST_MOST = 8192
NUMBER_MOST = (1 << 63) - 1


class OrderCodec:
    """Of the types that may come; whoever adds orders makes a codec of more types."""

    def __init__(self, kinds: Iterable[type]) -> None:
        """Raises `ValueError` where two have one name."""
        self.kinds = tuple(kinds)
        self._by_name = {kind.__name__: kind for kind in self.kinds}
        if len(self._by_name) != len(self.kinds):
            raise ValueError("every order has a name of its own")

    def pack(self, order: Any) -> bytes:
        """Raises `OutOfBounds` for an order that the other side would refuse."""
        name = type(order).__name__
        assert self._by_name.get(name) is type(order), f"{name} is none of this codec's orders"
        data = json.dumps({"order": name} | _plain(order), separators=(",", ":")).encode()
        try:
            self.unpack(data)
        except BadPayload as error:
            raise OutOfBounds(f"{name} cannot be sent: {error}") from error
        return data

    def unpack(self, data: bytes | bytearray | memoryview) -> Any:
        """One of the codec's types. Raises `BadPayload`."""
        _must(len(data) <= MESSAGE_BYTES, f"an order has at most {MESSAGE_BYTES} bytes")
        try:
            value = json.loads(bytes(data))
        except (ValueError, RecursionError) as error:
            raise BadPayload(f"an order is one JSON object: {type(error).__name__}") from error
        _must(isinstance(value, dict), "an order is one JSON object")
        name = value.pop("order", None)
        kind = self._by_name.get(name) if isinstance(name, str) else None
        if kind is None:
            raise BadPayload(f"{str(name)[:40]!r} is no order that is known here")
        return _made(kind, value, kind.__name__)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@cache
def _declared(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _made(kind: type, value: Any, where: str) -> Any:
    declared = _declared(kind)
    _must(isinstance(value, dict) and value.keys() == declared.keys(), f"{where} has other fields")
    found = {name: _read(hint, value[name], f"{where}.{name}") for name, hint in declared.items()}
    try:
        return kind(**found)
    except ValueError as error:  # what the type itself rules out
        raise BadPayload(f"{where}: {error}") from error


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return _first(inner, value, where)
    if origin is Literal:
        _must(value in inner and isinstance(value, str), f"{where} is none of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        return _row(inner, value, where)
    if is_dataclass(hint):
        return _made(hint, value, where)  # type: ignore[arg-type]
    _must(_fits(hint, value), f"{where} is not of its type, or out of bounds")
    return float(value) if hint is float else value


def _first(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return _read(kind, value, where)
        except BadPayload:
            continue
    raise BadPayload(f"{where} is of none of its types")


def _row(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _must(isinstance(value, list) and len(value) <= LIST_MOST, f"{where} is no list, or too long")
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_read(inner[0], one, where) for one in value)
    _must(len(value) == len(inner), f"{where} has another length")
    return tuple(_read(kind, one, where) for kind, one in zip(inner, value, strict=True))


def _fits(hint: Any, value: Any) -> bool:
    if hint is bool or hint is NoneType:
        return type(value) is hint
    if hint is int:
        return type(value) is int and 0 <= value <= NUMBER_MOST
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= NUMBER_MOST
    assert hint is str, f"orders hold no {hint}"
    return isinstance(value, str) and len(value) <= TEXT_MOST and "\0" not in value


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadPayload(otherwise)
