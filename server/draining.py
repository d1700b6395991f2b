"""How the gateway ends: new requests are refused, running answers get time, then an honest last event.

The server's own signal handlers stay in charge: ours notes the signal and passes it on. A second signal ends at once.
Knows uvicorn only by the shape of its handler, which also tells where it listens.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from server.errors import GatewayDraining

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A client that reads nothing keeps its connection, and the server waits for connections: then it is told to leave.
FORCE_AFTER_CUT_SECONDS = 5.0

log = logging.getLogger(__name__)
Handler = Callable[[int, FrameType | None], Any]


class Requests(Protocol):
    draining: bool

    def cut_resumable(self, error: GatewayDraining) -> None: ...

    def cut(self, error: GatewayDraining) -> None: ...


class Cuttable(Protocol):
    def cut_off(self) -> None: ...


class Draining:
    def __init__(
        self,
        requests: Requests,
        dispatcher: Cuttable,
        drain_seconds: float,
        force_seconds: float = FORCE_AFTER_CUT_SECONDS,
    ) -> None:
        self._requests = requests
        self._dispatcher = dispatcher
        self._drain_seconds = drain_seconds
        self._force_seconds = force_seconds
        self._timers: list[asyncio.TimerHandle] = []
        self._force: Callable[[], None] = lambda: None
        self._signalled = False
        self.is_cut = False

    def start(self) -> None:
        """Refuse what is new; what runs has `drain_seconds`. Called again: no more time."""
        if self._requests.draining:
            self.cut()
            return
        self._requests.draining = True
        self._requests.cut_resumable(GatewayDraining("the gateway was stopped; ask again, and it goes on from there"))
        log.info("stopping: no new requests, running answers have %g s", self._drain_seconds)
        self._timers.append(asyncio.get_running_loop().call_later(self._drain_seconds, self.cut))

    def cut(self) -> None:
        """End what still runs, each with an error that its client can read."""
        if self.is_cut:
            return
        self.is_cut = True
        self._requests.cut(GatewayDraining("the gateway was stopped before the answer was whole"))
        self._dispatcher.cut_off()
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(self._force_seconds, lambda: self._force()))

    def stop(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _passing_on(self, loop: asyncio.AbstractEventLoop, before: Handler) -> Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.start)
            if not self._signalled:  # uvicorn takes a later Ctrl-C for "leave everything as it is"; ours ends in order
                self._signalled = True
                before(number, frame)

        return handle

    @contextmanager
    def on_signals(self) -> Iterator[str | None]:
        """Drain on SIGTERM and Ctrl-C for as long as the context lives. Gives the server's address, where known."""
        if threading.current_thread() is not threading.main_thread():
            yield None
            return
        loop = asyncio.get_running_loop()
        chained: dict[signal.Signals, Handler] = {}
        for number in SIGNALS:
            before = signal.getsignal(number)
            if callable(before) and before is not signal.default_int_handler:
                chained[number] = before
                signal.signal(number, self._passing_on(loop, before))
        if signal.SIGINT in chained:
            interrupt = chained[signal.SIGINT]
            self._force = lambda: interrupt(signal.SIGINT, None)
        try:
            yield server_address(chained.get(signal.SIGTERM))
        finally:
            for number, handler in chained.items():
                signal.signal(number, handler)


def server_address(handler: Handler | None) -> str | None:
    """The address that the server behind this signal handler was told to listen at."""
    config = getattr(getattr(handler, "__self__", None), "config", None)
    if getattr(config, "uds", None) or getattr(config, "fd", None) is not None:
        return None
    host = getattr(config, "host", None)
    return host if isinstance(host, str) else None
