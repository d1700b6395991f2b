"""What the page of messages has to say of every record, enumeration and vector, made from the code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from wire import beacon, kinds
from wire.codec import Field, Kind, record_fields
from wire.messages import MESSAGES
from wire.messages_work import Chunk
from wire.tensors import DType


def inner_kinds(kind: Kind) -> Iterator[Kind]:
    """The kind and those it is made of, without going into records."""
    yield kind
    if isinstance(kind, kinds.Perhaps | kinds.Listing):
        yield from inner_kinds(kind.kind)


def records_in(kind: Kind) -> Iterator[type[Any]]:
    for each in inner_kinds(kind):
        if isinstance(each, kinds.Nested):
            yield each.record
        if isinstance(each, kinds.OneOf):
            yield from each.records


def all_records() -> list[type[Any]]:
    """Messages, chunks, datagrams and every record within them, each once."""
    found: dict[type[Any], None] = {}
    waiting = [*MESSAGES.values(), Chunk, beacon.Probe, beacon.Announcement]
    while waiting:
        record = waiting.pop(0)
        if record not in found:
            found[record] = None
            waiting += [inner for field in record_fields(record) for inner in records_in(field.kind)]
    return list(found)


def all_enumerations() -> list[type[IntEnum]]:
    found = {
        each.of: None
        for record in all_records()
        for field in record_fields(record)
        for each in inner_kinds(field.kind)
        if isinstance(each, kinds.Choice)
    }
    return [*found, *({DType} - set(found))]


def headline(record: type[Any]) -> str:
    """`### Name`, for messages with the number of their frame."""
    for kind, message in MESSAGES.items():
        if message is record:
            return f"### {kind.name} ({int(kind):#04x})"
    return f"### {record.__name__}"


def default_text(field: Field) -> str:
    if field.required:
        return "always sent"
    if dataclasses.is_dataclass(field.default):
        return "all defaults"
    if field.default is None:
        return "absent"
    if field.default in ((), b"", ""):
        return "empty"
    return f"`{field.default}`"


def row_start(number: int, field: Field) -> str:
    """A field's row as far as the code knows it; its meaning follows."""
    return f"| {number} | `{field.name}` | {field.kind.describe()} | {default_text(field)} | "
