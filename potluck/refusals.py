"""A refusal of the gateway, read into the exception for it.

The gateway's own `code` decides; the HTTP status only where the code is missing or newer than this client. Bodies that
are no refusal of ours (a proxy's page, another server) keep their status and the beginning of their text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .errors import (
    DeadlinePassed,
    GatewayFailed,
    InvalidRequest,
    KeyRefused,
    ModelUnknown,
    NoNodes,
    QueueFull,
    RequestRefused,
)

_BY_CODE: dict[str, type[RequestRefused]] = {
    "invalid_request": InvalidRequest,
    "body_too_large": InvalidRequest,
    "unsupported": InvalidRequest,
    "unauthorized": KeyRefused,
    "forbidden": KeyRefused,
    "model_not_found": ModelUnknown,
    "queue_full": QueueFull,
    "no_nodes": NoNodes,
    "deadline_exceeded": DeadlinePassed,
    "draining": GatewayFailed,
    "nodes_failed": GatewayFailed,
    "internal": GatewayFailed,
}
_BY_STATUS: dict[int, type[RequestRefused]] = {
    400: InvalidRequest,
    401: KeyRefused,
    403: KeyRefused,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: QueueFull,
    501: InvalidRequest,
    503: NoNodes,
    504: DeadlinePassed,
}
# Enough to recognise whose page it is, short enough for one line of a terminal.
_LONGEST_FOREIGN_TEXT = 200
_LONGEST_PAGE = 8192
_MARKUP = re.compile(r"<(style|script|title)\b.*?</\1\s*>|<[^<>]*>", re.DOTALL | re.IGNORECASE)
_FOREIGN = "that is no gateway's answer: is another program, or a proxy, at this address?"


def read_refusal(status: int, headers: Mapping[str, str], content: bytes) -> RequestRefused:
    """A whole response that is not a success."""
    retry_after = _seconds(headers.get("retry-after"))
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, Mapping):
        return refusal(error, status=status, retry_after_seconds=retry_after)
    if isinstance(error, str):  # the dialect of Ollama
        return refusal({"message": error}, status=status, retry_after_seconds=retry_after)
    said = " ".join(_MARKUP.sub(" ", content[:_LONGEST_PAGE].decode("utf-8", "replace")).split())[
        :_LONGEST_FOREIGN_TEXT
    ]
    message = f"the server answered {status}" + (f": {said}" if said else "")
    return refusal({"message": message, "hint": _FOREIGN}, status=status, retry_after_seconds=retry_after)


def refusal(
    error: Mapping[str, Any], *, status: int | None = None, retry_after_seconds: float | None = None
) -> RequestRefused:
    """An `error` record: {"code", "message", "field"?, "hint"?}; inside a stream or a batch it has no status."""
    code = _text(error.get("code"))
    kind = _BY_CODE.get(code or "") or _BY_STATUS.get(status or 0) or GatewayFailed
    if kind is GatewayFailed and status is not None and 400 <= status < 500:
        kind = RequestRefused
    waiting = error.get("retry_after_seconds", retry_after_seconds)
    return kind(
        _text(error.get("message")) or f"the gateway refused the request ({code or status or 'no reason given'})",
        status=status,
        code=code,
        field=_text(error.get("field")),
        hint=_text(error.get("hint")),
        retry_after_seconds=waiting if isinstance(waiting, int | float) else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds. A date is left alone: the clocks of the two machines may differ."""
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
