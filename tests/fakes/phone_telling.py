"""How an answer leaves a phone: paced, counted, and struck by the fault that was chosen for it.

`Telling` is the only way to the wire for every handler, so each fault works on each endpoint. A handler formats
lines and bodies; it learns of a runner's death (`RunnerDied`) to say it in its own dialect, and of any other end by
`Ended`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

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

    async def line(self, data: bytes, tokens: int = 0) -> None:
        """One chunk of a stream, worth that many tokens."""
        state = self.state
        if not state.thawed.is_set():
            await state.thawed.wait()
        fault = self._fault
        if fault is not None and fault.after_tokens is not None and self.tokens >= fault.after_tokens:
            await self._strike_stream(fault, data)
        self.exchange.chunk(data)
        self.tokens += tokens
        state.counters.tokens_sent += tokens
        if self.exchange.must_flush:
            await self.exchange.flush()

    async def end(self) -> None:
        self.exchange.end()
        if self.exchange.must_flush:
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
        self._count = 0

    async def wait(self, tokens: int) -> None:
        seconds = self._state.settings.token_seconds(tokens)
        if seconds <= 0.0:
            self._count += 1
            if self._count % 16 == 0:  # a phone without a speed must still let others speak
                await asyncio.sleep(0)
            return
        now = self._state.clock()
        self._due = max(self._due + seconds, now - 4 * seconds)  # after standing still it does not race to catch up
        if self._due > now:
            await asyncio.sleep(self._due - now)
