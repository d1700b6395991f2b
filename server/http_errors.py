"""Errors as the clients of each API expect them: status, headers and body.

Our own API gives {"error": {"code", "message", "field"?, "hint"?}}, OpenAI's {"error": {"message", "type", "param",
"code"}}, Ollama's {"error": "…"}. Pure; knows nothing of requests, sockets or logs.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import orjson

from server.errors import AnswerBroken, GatewayError, RequestInvalid

Dialect = Literal["ask", "openai", "ollama"]
Header = tuple[bytes, bytes]

UNAUTHORIZED = 401


def http_status(error: GatewayError, dialect: Dialect) -> int:
    """The status of a whole answer. 422 is our own API's word; the other two know only 400."""
    status = error.http_status
    return 400 if status == 422 and dialect != "ask" else status


def error_code(error: GatewayError) -> str:
    return "unauthorized" if error.http_status == UNAUTHORIZED else error.code


def error_record(error: GatewayError, dialect: Dialect) -> dict[str, Any]:
    """The body of an error, also as it stands inside a stream or a batch."""
    match dialect:
        case "openai":
            return {"error": _openai_error(error)}
        case "ollama":
            return {"error": _sentence(error)}
        case _:
            return {"error": _own_error(error)}


def error_bytes(error: GatewayError, dialect: Dialect) -> bytes:
    return orjson.dumps(error_record(error, dialect))


def error_headers(error: GatewayError) -> list[Header]:
    """Headers that an error brings besides its content type: when to come back, how to say who one is."""
    headers: list[Header] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
    if error.http_status == UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="potluck"'))
    return headers


def _own_error(error: GatewayError) -> dict[str, Any]:
    record: dict[str, Any] = {"code": error_code(error), "message": error.message}
    if error.field is not None:
        record["field"] = error.field
    if error.hint is not None:
        record["hint"] = error.hint
    if error.retry_after is not None:
        record["retry_after_seconds"] = error.retry_after
    if isinstance(error, AnswerBroken):
        record["node"] = error.node
        record["tokens_told"] = error.tokens_told
    return record


def _openai_error(error: GatewayError) -> dict[str, Any]:
    status = error.http_status
    code: str | None = error_code(error)
    if status == UNAUTHORIZED:
        code = "invalid_api_key"
    elif isinstance(error, RequestInvalid):
        code = None
    return {"message": _sentence(error), "type": _openai_type(status), "param": error.field, "code": code}


def _openai_type(status: int) -> str:
    match status:
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"


def _sentence(error: GatewayError) -> str:
    """Where a dialect has room for one sentence only, the hint becomes its second half."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
