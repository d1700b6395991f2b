"""A programmable phone that speaks real HTTP exactly like Ollama 0.6, 0.24 or 0.33, fast enough to be 1,000 phones
in one process.

    async with FakePhone(PhoneSettings(template="open", tokens_per_second=20, time_scale=0.01)) as phone:
        ... phone.url, phone.host, phone.port ...
        phone.settings.prompt_cache = 3                          # every setting may change while it runs
        phone.fail(Fault.cut(after_tokens=5), times=1, paths="chat")
        phone.fail(Fault.hang(), paths="probes", probability=0.2)  # seeded by settings.seed
        phone.heal()                                             # no more faults
        phone.counters.cancelled; phone.log[-1].json             # what was counted, what reached it
        phone.freeze(3.0); phone.thaw()                          # SIGSTOP, SIGCONT
        await phone.until(lambda counters: counters.tokens_sent >= 5); await phone.idle()
        await phone.stop_listening()                             # refused in the kernel ...
        await phone.start_listening()                            # ... and back on the same port
        await phone.restart()                                    # streams cut, models and conversations forgotten
    async with fake_fleet(50, PhoneSettings()) as phones: ...

`expected_answer` says what a phone will answer, `verify_answer` finds gaps, repeats and splices in what came out of
a gateway: see phone_checker.py. Without `temperature: 0` or a `seed` an answer carries a salt and differs each
time; it can still be verified. Times are those of a phone that is `1 / time_scale` times faster, reported durations
too. Paths are named as in phone_faults.PATHS.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from copy import copy

from tests.fakes.phone_checker import Expected, Verdict, expected_answer, verify_answer
from tests.fakes.phone_faults import Fault, FaultRule, paths_named
from tests.fakes.phone_http import Connection, Exchange
from tests.fakes.phone_routes import serve
from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.fakes.phone_state import PhoneCounters, PhoneState, SeenRequest

__all__ = [
    "Expected",
    "FakeModel",
    "FakePhone",
    "Fault",
    "FaultRule",
    "PhoneCounters",
    "PhoneSettings",
    "SeenRequest",
    "Verdict",
    "expected_answer",
    "fake_fleet",
    "verify_answer",
]

# Room for the connections of a load test that come at once.
_BACKLOG = 1024


class FakePhone:
    """One phone on one port. Use it as an async context manager, or `start` and `stop` it."""

    def __init__(self, settings: PhoneSettings | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.settings = settings if settings is not None else PhoneSettings()
        self.host = host
        self.port = port
        self._state: PhoneState | None = None
        self._server: asyncio.Server | None = None
        self._placeholder: socket.socket | None = None
        self._connections: set[Connection] = set()

    async def __aenter__(self) -> FakePhone:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def state(self) -> PhoneState:
        assert self._state is not None, "the phone has not been started"
        return self._state

    @property
    def counters(self) -> PhoneCounters:
        counters = self.state.counters
        counters.open_connections = len(self._connections)
        return counters

    @property
    def log(self) -> deque[SeenRequest]:
        """The latest requests, the newest one last."""
        return self.state.log

    async def start(self) -> None:
        self._state = PhoneState(self.settings, time.monotonic)
        await self.start_listening()

    async def stop(self) -> None:
        """Close everything; no task and no socket is left."""
        self.state.thaw()
        await self.stop_listening()
        await self.state.runner.stop()
        if self._placeholder is not None:
            self._placeholder.close()
            self._placeholder = None

    async def start_listening(self) -> None:
        """Take connections, on the same port as before."""
        if self._server is not None:
            return
        bound = self._placeholder or self._bound_socket()
        self._placeholder = None
        self.port = bound.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(self._connection, sock=bound, backlog=_BACKLOG)

    async def stop_listening(self, *, drop: bool = True) -> None:
        """Refuse connections, as a phone without Ollama does; with `drop` the open ones are reset too.

        The port stays ours meanwhile: it is bound again, without listening.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if drop:
            await self._drop_connections()
        while self._placeholder is None:
            await asyncio.sleep(0)  # the loop closes the listening socket in its own time
            with contextlib.suppress(OSError):
                self._placeholder = self._bound_socket()

    async def restart(self) -> None:
        """Ollama is started anew: streams end without their last chunk, nothing is loaded, nothing is remembered."""
        for connection in list(self._connections):
            connection.close()
        await self.stop_listening()
        await self.state.runner.stop()
        self.state.forget()
        await self.start_listening()

    def fail(
        self,
        fault: Fault,
        *,
        times: int | None = None,
        paths: Iterable[str] | str | None = None,
        probability: float = 1.0,
        skip: int = 0,
    ) -> FaultRule:
        """Let a fault strike the next `times` fitting requests (always, if None), sparing the first `skip`."""
        rule = FaultRule(fault, times, paths_named(paths), probability, skip, began=self.state.clock())
        return self.state.faults.add(rule)

    def heal(self, rule: FaultRule | None = None) -> None:
        """End one fault, or all of them."""
        if rule is None:
            self.state.faults.clear()
        else:
            self.state.faults.remove(rule)

    def freeze(self, seconds: float | None = None) -> None:
        self.state.freeze(seconds)

    def thaw(self) -> None:
        self.state.thaw()

    async def until(self, condition: Callable[[PhoneCounters], bool], seconds: float = 60.0) -> None:
        """Wait until the counters fulfil it; raises TimeoutError. Watching costs a look each millisecond."""
        async with asyncio.timeout(seconds):
            for _ in itertools.takewhile(lambda _: not condition(self.counters), itertools.count()):
                await asyncio.sleep(0.001)

    async def idle(self, seconds: float = 60.0) -> None:
        """Wait until no request is in flight: whoever left has been noticed."""
        await self.until(lambda counters: counters.in_flight == 0, seconds)

    def resident(self) -> list[str]:
        """Names of the models in memory."""
        return [loaded.model.full_name for loaded in self.state.runner.resident()]

    def _bound_socket(self) -> socket.socket:
        bound = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
        except OSError:
            bound.close()
            raise
        return bound

    def _connection(self) -> Connection:
        self.state.counters.connections += 1
        return Connection(self._serve, self._connections, self._refuses)

    async def _serve(self, exchange: Exchange) -> None:
        await serve(self.state, exchange)

    def _refuses(self) -> bool:
        if self._server is None:  # accepted while the listener was closing
            return True
        if not self.state.faults.rules or not self.state.faults.at_accept(self.state.clock()):
            return False
        self.state.counters.faults["refuse"] += 1
        return True

    async def _drop_connections(self) -> None:
        while self._connections:
            for connection in list(self._connections):
                await connection.stop()


@asynccontextmanager
async def fake_fleet(
    count: int, settings: PhoneSettings | None = None, *, host: str = "127.0.0.1", first_port: int = 0
) -> AsyncIterator[list[FakePhone]]:
    """Many phones in this process, each with its own copy of the settings; on consecutive ports if `first_port` is
    given.
    """
    phones = [
        FakePhone(copy(settings or PhoneSettings()), host=host, port=first_port + index if first_port else 0)
        for index in range(count)
    ]
    started: list[FakePhone] = []
    try:
        for index, phone in enumerate(phones):
            phone.settings.seed += index
            await phone.start()
            started.append(phone)
        yield phones
    finally:
        for phone in started:
            await phone.stop()


if __name__ == "__main__":
    from tests.fakes.phone_cli import main

    main()
