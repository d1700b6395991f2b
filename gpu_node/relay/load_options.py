"""The options of LOAD: how a model is to be held, each honoured or refused by its name. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args

from gpu_node.errors import RequestError
from gpu_node.load_wish import (
    BLOCK_TOKENS,
    DeviceName,
    DtypeName,
    KernelsMode,
    LoadWish,
    SpeculationMode,
    WeightsMode,
    parse_bytes,
)
from wire.scalars import Table, Value

# No model has more; a larger number is a mistake, not a wish.
MOST = 1 << 40


@dataclass(frozen=True, slots=True)
class LoadOptions:
    changes: tuple[tuple[str, Any], ...] = ()  # of the usual wish
    keep_alive_seconds: float | None = None  # how long the model stays when nobody holds it any more
    hold: bool = True  # until the session gives it back; else it is loaded as by a request, and may leave as after one

    def wish(self, usual: LoadWish) -> LoadWish | None:
        """None: as it is, or as usual."""
        return replace(usual, **dict(self.changes)) if self.changes else None


def read_options(options: Table, has_gpu: bool) -> LoadOptions:
    """Raises `RequestError` with the option's name for what is unknown or cannot be had."""
    given = dict(options)
    for name in given:
        if name not in OPTIONS:
            near = get_close_matches(name, OPTIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(f'option "{name}" is unknown{hint}', field=name)
    if "kv_bytes" in given and "kv_blocks" in given:
        raise RequestError("give kv_bytes or kv_blocks, not both", field="kv_blocks")
    changes = {
        _FIELDS.get(name, name): _READERS[name](name, value) for name, value in given.items() if name in _READERS
    }
    if changes.get("device") == "cuda" and not has_gpu:
        raise RequestError("this node has no GPU that it may use", field="device")
    if "kv_bytes" in changes or "kv_blocks" in changes:
        changes = {"kv_bytes": 0, "kv_blocks": 0} | changes
    return LoadOptions(
        tuple(changes.items()), _keep_alive(given.get("keep_alive_seconds")), _flag("hold", given.get("hold", True))
    )


def _flag(name: str, value: Value) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", field=name)
    return value


def _keep_alive(value: Value | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise RequestError("keep_alive_seconds must be a number, 0 or more", field="keep_alive_seconds")
    return float(value)


def _word(kind: Any) -> Callable[[str, Value], Any]:
    words = get_args(kind)

    def read(name: str, value: Value) -> Any:
        if value not in words:
            raise RequestError(f"{name} must be one of {', '.join(words)}", field=name)
        return value

    return read


def _number(least: int, most: int) -> Callable[[str, Value], int]:
    def read(name: str, value: Value) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value, whole = int(value), True
        if not whole or not isinstance(value, int) or not least <= value <= most:
            raise RequestError(f"{name} must be a whole number from {least} to {most}", field=name)
        return value

    return read


def _block_tokens(name: str, value: Value) -> int:
    if isinstance(value, bool) or value not in BLOCK_TOKENS:
        raise RequestError(f"{name} must be one of {', '.join(map(str, BLOCK_TOKENS))}", field=name)
    return int(value)


def _size(name: str, value: Value) -> int:
    """Bytes, or a text like "2GB"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RequestError(f"{name} must be a number of bytes or a text like 2GB", field=name)
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise RequestError(f"{name}: {error}", field=name) from error


_FIELDS = {"context_tokens": "context"}
_READERS: dict[str, Callable[[str, Value], Any]] = {
    "context_tokens": _number(0, (1 << 31) - 1),
    "device": _word(DeviceName),
    "dtype": _word(DtypeName),
    "weights": _word(WeightsMode),
    "kernels": _word(KernelsMode),
    "threads": _number(0, 1024),
    "block_tokens": _block_tokens,
    "kv_bytes": _size,
    "kv_blocks": _number(0, MOST),
    "max_running": _number(1, 1024),
    "step_tokens": _number(0, MOST),
    "mixed_step_tokens": _number(0, MOST),
    "speculation": _word(SpeculationMode),
}
OPTIONS = (*_READERS, "keep_alive_seconds", "hold")
