"""Values of every message, drawn from the bounds of their fields."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from wire import kinds, names, scalars
from wire.codec import Kind, record_fields
from wire.errors import OutOfBounds

FEW = 3
PART = st.from_regex(r"[A-Za-z0-9_]{1,8}(-[A-Za-z0-9_+=]{1,8})?(\.[a-z]{1,4})?", fullmatch=True)
NAMES = st.lists(PART, min_size=1, max_size=3).map("/".join).filter(lambda name: names.fault_of_name(name) is None)
SINGLE = (
    st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8)
)
VALUES = st.recursive(SINGLE, lambda inner: st.lists(inner, max_size=FEW).map(tuple), max_leaves=4)


def texts(least: int, most: int) -> st.SearchStrategy[str]:
    wanted = st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=min(most, 12))
    return wanted.filter(lambda text: least <= len(text.encode()) <= most)


@functools.singledispatch
def of_kind(kind: Kind) -> st.SearchStrategy[Any]:
    raise NotImplementedError(type(kind).__name__)


@of_kind.register(kinds.Unsigned)
@of_kind.register(kinds.Signed)
def _(kind: kinds.Unsigned | kinds.Signed) -> st.SearchStrategy[Any]:
    return st.integers(kind.least, kind.most)


@of_kind.register
def _(kind: kinds.Flag) -> st.SearchStrategy[Any]:
    return st.booleans()


@of_kind.register
def _(kind: kinds.Real) -> st.SearchStrategy[Any]:
    least = None if math.isinf(kind.least) else kind.least
    most = None if math.isinf(kind.most) else kind.most
    return st.floats(least, most, allow_nan=False, allow_infinity=not kind.finite and least is None and most is None)


@of_kind.register
def _(kind: kinds.Octets) -> st.SearchStrategy[Any]:
    return st.binary(min_size=kind.least, max_size=kind.most if kind.least == kind.most else min(kind.most, 32))


@of_kind.register
def _(kind: kinds.Blob) -> st.SearchStrategy[Any]:
    return st.binary(max_size=16) | st.just(b"\x5a" * min(kind.most, 2048))


@of_kind.register
def _(kind: kinds.Text) -> st.SearchStrategy[Any]:
    return texts(kind.least, kind.most)


@of_kind.register
def _(kind: names.StoreName) -> st.SearchStrategy[Any]:
    return NAMES


@of_kind.register
def _(kind: kinds.Choice) -> st.SearchStrategy[Any]:
    return st.sampled_from(list(kind.of))


@of_kind.register
def _(kind: kinds.Perhaps) -> st.SearchStrategy[Any]:
    return st.none() | of_kind(kind.kind)


@of_kind.register
def _(kind: kinds.Listing) -> st.SearchStrategy[Any]:
    most = min(kind.most, kind.least + FEW)
    return st.lists(of_kind(kind.kind), min_size=kind.least, max_size=most).map(tuple)


@of_kind.register
def _(kind: kinds.TokenIds) -> st.SearchStrategy[Any]:
    return st.lists(st.integers(0, kinds.TOKEN_ID_MOST), min_size=kind.least, max_size=kind.least + FEW).map(tuple)


@of_kind.register
def _(kind: kinds.Nested) -> st.SearchStrategy[Any]:
    return of_record(kind.record)


@of_kind.register
def _(kind: kinds.OneOf) -> st.SearchStrategy[Any]:
    return st.one_of([of_record(record) for record in kind.records])


@of_kind.register
def _(kind: scalars.NamedValues) -> st.SearchStrategy[Any]:
    return st.dictionaries(texts(1, 12), VALUES, max_size=FEW).map(lambda table: tuple(table.items()))


@st.composite
def of_record(draw: st.DrawFn, record: type[Any]) -> Any:
    """A record; drawn again where its fields contradict each other."""
    values = {field.name: draw(of_kind(field.kind)) for field in record_fields(record)}
    for name, fix in FIXES.get(record.__name__, {}).items():
        values[name] = fix(values)
    try:
        return record(**values)
    except OutOfBounds:
        assume(False)


def _given(values: dict[str, Any]) -> tuple[Any, ...]:
    return values["given"][:1] * values["samples"]


def _logprobs(values: dict[str, Any]) -> tuple[Any, ...]:
    return values["logprobs"][:1] * len(values["ids"])


# Where fields depend on each other, one is made from the others: chance would seldom meet it.
FIXES: dict[str, dict[str, Any]] = {
    "Generate": {"given": _given},
    "Tokens": {"logprobs": _logprobs},
    "Vectors": {
        "dimensions": lambda values: values["dimensions"] % 4 + 1,
        "data": lambda values: bytes(4 * values["dimensions"] * (values["total"] % 3)),
        "first": lambda values: values["total"] - values["total"] % 3,
    },
    "Alloc": {"shape": lambda values: tuple(each % 1000 for each in values["shape"])},
    "Push": {
        "files": lambda values: tuple(
            dataclasses.replace(file, name=f"{number}-{file.name}") for number, file in enumerate(values["files"])
        )
    },
}
