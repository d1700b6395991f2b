"""What nodes say when they fail, as the `NodeError` that tells who is to blame. Pure.

Ollama reports some mistakes of the client as 500, or under status 200 as the first line; those must neither count
against the node nor be tried elsewhere. A key that the node does not take is the owner's mistake, not the client's: it
counts as a broken node, so that others serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from server.errors import NodeBroken, NodeBusy, NodeError, NodeIncapable, NodeRefused

MAX_ERROR_BYTES = 64 * 1024
MAX_ERROR_CHARS = 2000
MAX_RETRY_AFTER_SECONDS = 3600.0  # a node that wishes to be left alone for longer is asked again all the same
# How Ollama begins and ends the texts of its 500s that are about the request.
CLIENT_MISTAKES = (
    ('option "', "must be of type"),
    ("invalid format:", ""),
    ("invalid JSON schema in format", ""),
    ("invalid options:", ""),
)
# By these words a server says that it cannot hold an answer to a form. GPU nodes say so too, in words of their own.
FORM_WORDS = ("response_format", "schema", "grammar", "guided", "structured output", "cannot be followed")
NODE_FORM_WORDS = ("cannot be followed", "cannot be guided")
BUSY = (429, 503)
WRONG_KEY = (401, 403, 407)
TIMED_OUT = 408  # the node lost patience while reading: nothing is wrong with the request
NOT_THERE = 501  # a server without what is asked (embeddings, for instance): others may have it


def error_of_status(address: str, status: int, headers: Mapping[bytes, bytes], body: bytes) -> NodeError:
    """The error of an answer whose status is not 2xx."""
    text = error_text(body) or f"status {status} without a word"
    if status in BUSY:
        return NodeBusy(text, retry_after_seconds(headers.get(b"retry-after", b"")))
    if status in WRONG_KEY:
        return NodeBroken(f"{address} refuses the gateway ({status}): {text}")
    if 400 <= status < 500 and status != TIMED_OUT:
        return NodeRefused(text, status)
    if status == NOT_THERE:
        return NodeIncapable(text, status)
    if status >= 500 and is_client_mistake(text):
        return NodeRefused(text, 400)
    return NodeBroken(f"{address} answered {status}: {text}")


def error_of_line(address: str, error: Any, *, first: bool) -> NodeError:
    """The error of a record `{"error": …}` in a stream that began with status 200."""
    text = text_of(error)
    if first and is_client_mistake(text):
        return NodeRefused(text, 400)
    return NodeBroken(f"{address} failed: {text}")


def about_form(error: NodeError, words: Sequence[str]) -> NodeError:
    """The refusal of a request for a form: not every node follows every schema, so another one may take it."""
    if isinstance(error, NodeRefused) and any(word in error.message.lower() for word in words):
        return NodeIncapable(error.message, error.status)
    return error


def is_client_mistake(text: str) -> bool:
    return any(text.startswith(start) and part in text for start, part in CLIENT_MISTAKES)


def error_text(body: bytes) -> str:
    """The sentence in an error body: Ollama's, OpenAI's, or plain text."""
    try:
        record = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace").strip()[:MAX_ERROR_CHARS]
    return text_of(record.get("error", record.get("detail", record)) if isinstance(record, dict) else record)


def text_of(error: Any) -> str:
    """The words of an error that is a text, or an object with a message."""
    message = error.get("message") if isinstance(error, dict) else error
    try:
        text = message if isinstance(message, str) else orjson.dumps(error).decode()
    except orjson.JSONEncodeError:  # nested so deeply that it can be read but not written
        return "an error that is no text"
    return text.strip()[:MAX_ERROR_CHARS]


def retry_after_seconds(value: bytes, now: datetime | None = None) -> float | None:
    """A Retry-After header: seconds, or a date."""
    text = value.decode("latin-1").strip()
    try:
        if text.isascii() and text.isdecimal():
            return min(float(text), MAX_RETRY_AFTER_SECONDS)
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        left = (date - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):  # whatever the parser of dates makes of rubbish
        return None
    return min(max(0.0, left), MAX_RETRY_AFTER_SECONDS)
