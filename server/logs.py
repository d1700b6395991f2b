"""The log: one structured line per request, and what is worth a line besides.

JSON lines where nobody watches, readable ones on a terminal. Prompts and answers stay out unless the owner asks for
them; keys never come here. Setting up the standard loggers is part of starting the program, and is undone at its end.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import unquote

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from server.errors import GatewayError
from server.http_errors import error_code, http_status
from server.moments import utc_text
from server.nodes import NodeId
from server.observer import RequestRecord

if TYPE_CHECKING:
    from server.api.incoming import Incoming

LogFormat = Literal["console", "json", "auto"]
# Beyond it a prompt in the log helps nobody to find anything.
LONGEST_LOGGED_PROMPT = 2000
_OWN_LOGGERS = ("server",)
_ACCESS_LOGGER = "uvicorn.access"  # a second line for each request, with less in it
_TRACE_LOGGER = "uvicorn.asgi"  # with --log-level trace: each request's path, which may be an invitation


class RequestLog:
    """Writes the lines. An `Observer` of dispatch and the log of the HTTP layer."""

    def __init__(self, stream: TextIO, log_format: LogFormat = "auto", log_prompts: bool = False) -> None:
        self._write = stream.write
        self._flush = stream.flush
        self._processors: list[Processor] = [_add_time, renderer(stream, log_format)]
        self._log_prompts = log_prompts

    def line(self, level: str, event: str, **fields: Any) -> None:
        entry: Any = {"level": level, "event": event, **fields}
        for processor in self._processors:
            entry = processor(None, level, entry)
        self._write(entry + "\n")
        self._flush()

    # Observer

    def request_finished(self, record: RequestRecord) -> None:
        request, timings = record.request, record.timings
        fields: dict[str, Any] = {
            "id": request.id,
            "caller": request.caller,
            "dialect": request.dialect,
            "outcome": record.outcome,
            "model": record.model,
            "node": record.node,
            "attempts": record.attempts,
            "nodes": [f"{share.node}:{share.tokens}:{share.way}" for share in record.nodes],
            "cache": record.cache,
            "homecoming": record.homecoming,
            "queue_ms": round(timings.queue, 1),
            "first_token_ms": round(timings.first_token, 1),
            "total_ms": round(timings.total, 1),
            "prompt_tokens": record.usage.prompt_tokens,
            "completion_tokens": record.usage.completion_tokens,
        }
        if record.tokens_per_second is not None:
            fields["tokens_per_second"] = round(record.tokens_per_second, 1)
        if record.error_code is not None:
            fields["error_code"], fields["error"] = record.error_code, record.error
        if self._log_prompts:
            fields["prompt"] = _prompt_of(record)
        self.line("warning" if record.outcome == "failed" else "info", "request", **fields)

    def attempt_started(self, node: NodeId, model: str) -> None:
        """Told with the request's own line."""

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None:
        self.line("warning", "attempt failed", node=node, model=model, reason=reason)

    def answer_resumed(self, node: NodeId, way: str) -> None:
        self.line("info", "answer resumed", node=node, way=way)

    # the HTTP layer

    def refused(self, incoming: Incoming, error: GatewayError) -> None:
        """A request that never reached the fleet. One that did has its line from dispatch."""
        if incoming.handed_over:
            return
        self.line(
            "info",
            "refused",
            id=incoming.request_id,
            caller=incoming.caller,
            method=incoming.method,
            path=incoming.shown_path[:200],
            status=http_status(error, incoming.dialect),
            error_code=error_code(error),
            error=error.message,
        )

    def failed(self, incoming: Incoming, error: BaseException) -> None:
        """A fault of ours, with its traceback."""
        self.line(
            "error",
            "fault",
            id=incoming.request_id,
            method=incoming.method,
            path=incoming.shown_path[:200],
            exception="".join(traceback.format_exception(error)),
        )

    def exposed(self, address: str) -> None:
        """Others can reach the gateway, and no key is set."""
        self.line(
            "warning",
            f"anybody in the private network can use this gateway at {address}: no key is set."
            " Set POTLUCK_API_KEYS=name:key to ask for one",
        )


def renderer(stream: TextIO, log_format: LogFormat) -> Processor:
    """Entry to text: JSON, or columns for people."""
    if log_format == "json" or (log_format == "auto" and not stream.isatty()):
        return _as_json
    colors = stream.isatty()
    return structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event_to=24)


@contextmanager
def standard_logging(stream: TextIO, log_format: LogFormat) -> Iterator[None]:
    """Send our modules' `logging` lines the same way, and silence uvicorn's own line per request, until the end."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _add_time],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer(stream, log_format),
            ],
        )
    )
    loggers = [logging.getLogger(name) for name in _OWN_LOGGERS]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    access = logging.getLogger(_ACCESS_LOGGER)
    access_handlers, access_propagate = access.handlers[:], access.propagate
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    access.handlers, access.propagate = [], False
    trace = logging.getLogger(_TRACE_LOGGER)
    trace.addFilter(_without_invitation)
    try:
        yield
    finally:
        trace.removeFilter(_without_invitation)
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        access.handlers, access.propagate = access_handlers, access_propagate


def _without_invitation(record: logging.LogRecord) -> bool:
    """Takes the path out of a server's line that has an invitation in it, however it is written."""
    text = record.getMessage()
    if "join" in unquote(text).lower():
        record.msg, record.args = f"{text.partition(' scope=')[0]} of an invitation", ()
    return True


def _add_time(logger: WrappedLogger, name: str, entry: EventDict) -> EventDict:
    entry["time"] = utc_text(time.time_ns(), 3)
    return entry


def _as_json(logger: WrappedLogger, name: str, entry: EventDict) -> str:
    return orjson.dumps(entry, default=str).decode()


def _prompt_of(record: RequestRecord) -> Any:
    request = record.request
    told = request.prompt or [
        {"role": message.get("role"), "content": str(message.get("content", ""))[:LONGEST_LOGGED_PROMPT]}
        for message in request.messages
    ]
    return told[:LONGEST_LOGGED_PROMPT] if isinstance(told, str) else told
