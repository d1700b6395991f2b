"""Checks of single fields of a body: a value in, the value to use out, or `RequestInvalid` with the field's name.

A body's shape is a table from field name to check. `null` counts as "not given". Pure; knows no field by name.
"""

from __future__ import annotations

import math
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from server.durations import duration_seconds
from server.errors import RequestInvalid

Check = Callable[[Any, str], Any]

INTEGER_LOW, INTEGER_HIGH = -(2**63), 2**63 - 1  # beyond this no JSON writer of ours and no node's integer goes
LONGEST_NAME = 256  # of a model: more than any hub gives; names are compared, logged and told in errors
MOST_STOPS, LONGEST_STOP = 64, 256  # every token of an answer is compared with all of them


def checked(body: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """All given fields, checked. A field that the table lacks is refused with the nearest name that it has."""
    values: dict[str, Any] = {}
    for name, value in body.items():
        check = table.get(name)
        if check is None:
            raise unknown_field(name, table)
        if value is not None:
            values[name] = check(value, name)
    return values


def known_only(body: Mapping[str, Any], table: Mapping[str, Check]) -> dict[str, Any]:
    """The fields that the table knows, checked; others are passed over."""
    values: dict[str, Any] = {}
    for name, check in table.items():
        value = body.get(name)
        if value is not None:
            values[name] = check(value, name)
    return values


def unknown_field(name: str, known: Iterable[str], path: str = "") -> RequestInvalid:
    near = get_close_matches(name[:64], list(known), n=1, cutoff=0.6)
    shown = (path + name)[:80]
    hint = f"did you mean {near[0]}?" if near else None
    return RequestInvalid(f"unknown field '{shown}'", field=shown, hint=hint)


def kind_of(value: object) -> str:
    """The JSON type of a value, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object"


def wrong_type(field: str, wanted: str, value: object) -> RequestInvalid:
    return RequestInvalid(f"'{field}' must be {wanted}, not {kind_of(value)}", field=field)


def text(value: Any, field: str) -> str:
    if type(value) is not str:
        raise wrong_type(field, "text", value)
    return value


def short_name(value: Any, field: str) -> str:
    if len(text(value, field)) > LONGEST_NAME:
        raise RequestInvalid(f"'{field}' must not be longer than {LONGEST_NAME} characters", field=field)
    return str(value)


def filled_text(value: Any, field: str) -> str:
    if not text(value, field).strip():
        raise RequestInvalid(f"'{field}' must not be empty", field=field)
    return str(value)


def flag(value: Any, field: str) -> bool:
    if type(value) is not bool:
        raise wrong_type(field, "true or false", value)
    return value


def record(value: Any, field: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise wrong_type(field, "an object", value)
    return value


def sequence(value: Any, field: str) -> list[Any]:
    if type(value) is not list:
        raise wrong_type(field, "a list", value)
    return value


def texts(value: Any, field: str) -> list[str]:
    for index, item in enumerate(sequence(value, field)):
        text(item, f"{field}[{index}]")
    return list(value)


def text_or_texts(value: Any, field: str) -> list[str]:
    """One text or several; always a list afterwards."""
    if type(value) is str:
        return [value]
    if type(value) is not list:
        raise wrong_type(field, "text or a list of texts", value)
    return texts(value, field)


def stop_texts(most: int = MOST_STOPS) -> Check:
    """Texts that end an answer: one or several. Empty ones, which some programs send for "none", are left out."""

    def check(value: Any, field: str) -> list[str]:
        found = [item for item in text_or_texts(value, field) if item]
        if len(found) > most:
            raise RequestInvalid(f"'{field}' must not hold more than {most} texts", field=field)
        if any(len(item) > LONGEST_STOP for item in found):
            raise RequestInvalid(f"a text of '{field}' is longer than {LONGEST_STOP} characters", field=field)
        return found

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    def check(value: Any, field: str) -> float:
        if type(value) not in (int, float):
            raise wrong_type(field, "a number", value)
        if not low <= value <= high:
            raise RequestInvalid(f"'{field}' must be {_range(low, high)}, not {value:g}", field=field)
        return value  # type: ignore[no-any-return]

    return check


def integer(low: int = INTEGER_LOW, high: int = INTEGER_HIGH, *, also: Collection[int] = ()) -> Check:
    """A whole number; 3.0 is one. `also` names values outside the range that have a meaning."""

    def check(value: Any, field: str) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is float:
            raise RequestInvalid(f"'{field}' must be a whole number, not {value:g}", field=field)
        if type(value) is not int:
            raise wrong_type(field, "a whole number", value)
        if not low <= value <= high and value not in also:
            others = "".join(f" or {other}" for other in also)
            raise RequestInvalid(f"'{field}' must be {_range(low, high)}{others}", field=field)
        return value

    return check


def one_of(*allowed: str) -> Check:
    def check(value: Any, field: str) -> str:
        if type(value) is not str or value not in allowed:
            words = ", ".join(f"'{word}'" for word in allowed)
            raise RequestInvalid(f"'{field}' must be one of {words}", field=field)
        return value

    return check


def base64_texts(value: Any, field: str) -> list[str]:
    """Images: a list of base64 texts."""
    for index, item in enumerate(texts(value, field)):
        fault = base64_fault(item)
        if fault is not None:
            name = f"{field}[{index}]"
            raise RequestInvalid(f"'{name}' is not valid base64: {fault}", field=name)
    return list(value)


def base64_fault(data: str) -> str | None:
    """Why the text is no base64; None when it is."""
    try:
        b64decode(data, validate=True)
    except (Base64Error, ValueError) as error:
        return str(error)
    return None


def keep_alive(value: Any, field: str) -> str | float:
    """A duration as Ollama takes it: seconds, or text such as "10m0s"; below zero for ever."""
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    if type(value) is str:
        if duration_seconds(value) is None:
            raise RequestInvalid(f'\'{field}\' is no duration such as "5m" or "1h30m"', field=field)
        return value
    raise wrong_type(field, 'a number of seconds or a duration such as "5m"', value)


def is_unload(value: str | float | None) -> bool:
    """Does this `keep_alive` mean "drop the model now"?"""
    return (duration_seconds(value) if isinstance(value, str) else value) == 0 if value is not None else False


def _range(low: float, high: float) -> str:
    if high in (math.inf, INTEGER_HIGH):
        return f"at least {low:g}"
    if low in (-math.inf, INTEGER_LOW):
        return f"at most {high:g}"
    return f"between {low:g} and {high:g}"
