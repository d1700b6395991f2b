"""How an answer leaves a phone: paced, counted, and struck by the fault that was chosen for it.

`Telling` is the only way to the wire for every handler, so each fault works on each endpoint. A handler formats
lines and bodies; it learns of a runner's death (`RunnerDied`) to say it in its own dialect, and of any other end by
`Ended`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from tests.fakes.phone_faults import Fault
from tests.fakes.phone_http import Exchange
from tests.fakes.phone_state import PhoneState

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
PLAIN = "text/plain"
_GARBAGE = b"\x00\xff\xfe\x15\x03\x01 this is no HTTP \x80\x81\r\n\r\n"


class Ended(Exception):
    """The exchange is over; nothing more may be said."""


class RunnerDied(Exception):
    """The process behind the model died in the middle of an answer."""


class Telling:
    """One answer on its way out."""

    def __init__(self, state: PhoneState, exchange: Exchange, fault: Fault | None) -> None:
        self.state = state
        self.exchange = exchange
        self.tokens = 0
        self._fault = fault
        if fault is not None and fault.kind == "trickle":
            exchange.trickle = fault.seconds

    def name(self, asked: str) -> str:
        """The model's name as the answer gives it."""
        return self._fault.model if self._fault is not None and self._fault.kind == "wrong_model" else asked

    async def before(self) -> None:
        """Faults that strike before the handler does anything."""
        fault = self._fault
        if fault is None:
            return
        if fault.kind == "refuse" or (fault.kind == "reset" and fault.after_tokens is None):
            await self._reset()
        elif fault.kind == "reset_in_headers":
            self.exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-nd")
            await asyncio.sleep(0.01)
            await self._reset()
        elif fault.kind == "hang" and fault.after_tokens is None:
            await asyncio.Event().wait()
        elif fault.kind == "garbage" and fault.after_tokens is None:
            self.exchange.raw(_GARBAGE)
            self._cut()

    def begin(self, content_type: str) -> None:
        self.exchange.begin(200, content_type)

    def put(self, data: bytes, tokens: int = 0) -> Awaitable[None] | None:
        """One chunk of a stream, worth that many tokens. What comes back must be awaited; mostly nothing does."""
        if self._fault is not None or not self.state.thawed.is_set() or self.exchange.must_flush:
            return self._put_slowly(data, tokens)
        self.exchange.chunk(data)
        self.tokens += tokens
        self.state.counters.tokens_sent += tokens
        return None

    async def line(self, data: bytes) -> None:
        """One chunk that is worth no token."""
        waiting = self.put(data)
        if waiting is not None:
            await waiting

    async def end(self, data: bytes = b"") -> None:
        """The last chunk, if there is one, and the end of the body."""
        self.exchange.cork()
        if data:
            await self.line(data)
        self.exchange.end()
        if self.exchange.must_flush:
            await self.exchange.flush()

    async def _put_slowly(self, data: bytes, tokens: int) -> None:
        state, fault = self.state, self._fault
        if not state.thawed.is_set():
            self.exchange.uncork()
            await state.thawed.wait()
        if fault is not None and fault.after_tokens is not None and self.tokens >= fault.after_tokens:
            await self._strike_stream(fault, data)
        self.exchange.chunk(data)
        self.tokens += tokens
        state.counters.tokens_sent += tokens
        if self.exchange.must_flush:
            self.exchange.uncork()
            await self.exchange.flush()

    async def whole(
        self,
        status: int,
        body: bytes,
        content_type: str = JSON,
        extra: Mapping[str, str] | None = None,
        *,
        chunked: bool = False,
    ) -> None:
        """A complete answer in one piece."""
        if not self.state.thawed.is_set():
            await self.state.thawed.wait()
        fault = self._fault
        if fault is not None and fault.after_tokens is not None:
            body = await self._strike_whole(fault, status, body, content_type)
        self.exchange.whole(status, body, content_type, extra, chunked=chunked)
        if self.exchange.must_flush:
            await self.exchange.flush()

    def disarm(self) -> None:
        """A fault that has struck does so once an answer; what colours the whole answer stays."""
        if self._fault is not None and self._fault.after_tokens is not None:
            self._fault = None

    async def _strike_stream(self, fault: Fault, data: bytes) -> None:
        self.disarm()
        if fault.kind not in ("hang",) or fault.after_tokens:
            self.exchange.uncork()
        match fault.kind:
            case "hang":
                if fault.after_tokens:
                    self.exchange.send_head()
                await asyncio.Event().wait()
            case "hang_after_headers":
                self.exchange.send_head()
                await asyncio.Event().wait()
            case "half_line":
                self.exchange.chunk(data[: len(data) // 2])
                self._cut()
            case "malformed_line":
                self.exchange.chunk(b'{"model": not json at all\n')
            case _:
                await self._strike(fault)

    async def _strike_whole(self, fault: Fault, status: int, body: bytes, content_type: str) -> bytes:
        self.disarm()
        if fault.kind == "malformed_line":
            return body[: len(body) // 2]
        if fault.kind not in ("error_line", "freeze") and not (fault.kind == "hang" and not fault.after_tokens):
            head = self.exchange.head(status, content_type, f"Content-Length: {len(body)}", {})
            self.exchange.begun = True
            self.exchange.raw(head if fault.kind == "hang_after_headers" else head + body[: len(body) // 2])
        if fault.kind in ("hang", "hang_after_headers"):
            await asyncio.Event().wait()
        if fault.kind == "half_line":
            self._cut()
        await self._strike(fault)
        return body

    async def _strike(self, fault: Fault) -> None:
        """The kinds that are the same for streams and whole answers."""
        match fault.kind:
            case "cut":
                self._cut()
            case "reset":
                self.exchange.send_head()
                await self._reset()
            case "garbage":
                self.exchange.send_head()
                self.exchange.raw(_GARBAGE)
                self._cut()
            case "error_line":
                raise RunnerDied(fault.message)
            case "freeze":
                self.state.freeze(fault.seconds)
                await self.state.thawed.wait()

    def _cut(self) -> None:
        self.exchange.cut()
        raise Ended

    async def _reset(self) -> None:
        await self.exchange.reset()
        raise Ended


class Pace:
    """Tokens at the phone's speed, against due times so that delays do not add up."""

    def __init__(self, state: PhoneState) -> None:
        self._state = state
        self._due = state.clock()

    def delay(self, tokens: int) -> float:
        """How long to wait before these tokens; 0 for a phone without a speed."""
        seconds = self._state.settings.token_seconds(tokens)
        if seconds <= 0.0:
            return 0.0
        now = self._state.clock()
        self._due = max(self._due + seconds, now - 4 * seconds)  # after standing still it does not race to catch up
        return max(self._due - now, 1e-9)
