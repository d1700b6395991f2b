"""Which models are in memory: brings them in when they are asked for, and lets them go when they are not or must.

Invariants: one model at a time comes or goes, in the order of asking, so that two that cannot be there together take
turns; a model leaves only while no request has it; a loading that somebody waits for goes on when that one leaves.
Must not know HTTP, nor where models come from.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

from gpu_node.departures import Holder, Need, Yielding
from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeError, NodeStopping, NoRoom, RequestError
from gpu_node.host import ModelHost
from gpu_node.load_wish import LoadWish
from gpu_node.model_source import ModelSource
from gpu_node.names import canonical
from gpu_node.room import Room
from gpu_node.vram import Account, Claim, Holding

log = logging.getLogger("gpu_node")

# Event loops fire timers up to their clock's resolution too early.
TIMER_SLACK_SECONDS = 0.01
# Loaded, being loaded or waited for. Each has a thread, so names from outside must not make them without end.
MOST_HOSTS = 64


class ModelCatalog(Protocol):
    def find(self, name: str) -> ModelSource | None: ...

    def find_fetchable(self, name: str) -> ModelSource | None: ...

    def sources(self) -> list[ModelSource]: ...


@dataclass(frozen=True, slots=True)
class Start:
    """What the node was started for, and how models are loaded where nothing else is said."""

    source: ModelSource
    wish: LoadWish


Build = Callable[[ModelSource, LoadWish], ModelHost]


class Residents:
    def __init__(
        self,
        start: Start,
        catalog: ModelCatalog,
        build: Build,
        accounts: Sequence[Account],
        sized: Callable[[Account], Account] = lambda account: account,
    ) -> None:
        """The first account is that of the device that is used where nothing else is said; `sized` as for `Room`."""
        self._start, self._catalog, self._build = start, catalog, build
        self._room = Room(accounts, lambda: self.loaded, self._leave, self._is_handing_over, sized)
        self._hosts = {canonical(start.source.name): build(start.source, start.wish)}
        self._arrivals: dict[tuple[ModelHost, bool], asyncio.Task[None]] = {}
        self._waiting: Counter[asyncio.Task[None]] = Counter()  # how many wait for this arrival
        self._departures: set[asyncio.Task[None]] = set()
        self._timers: dict[ModelHost, asyncio.TimerHandle] = {}
        self._stopped = False

    @property
    def main(self) -> ModelHost:
        """The model that the node was started for."""
        return self._hosts[canonical(self._start.source.name)]

    @property
    def accounts(self) -> tuple[Account, ...]:
        """As things are now."""
        return self._room.accounts

    @property
    def holdings(self) -> list[Holding]:
        """Who holds what: models, and sessions with buffers."""
        return self._room.holdings()

    def share_with(self, sessions: Yielding) -> None:
        """From now on these hold models and buffers too, and make room when they must."""
        self._room.sessions = sessions

    async def reserve(self, owner: str, device: str, size_bytes: int) -> str:
        """Memory for buffers of a session, on the device that is answered; `device` empty: where there is room.

        Others leave for it by the rule of `departures`. Raises `NoRoom`, `RequestError` for a device that is not
        here, `NodeStopping`. Whoever gets it gives it back by `release`."""
        if self._stopped:
            raise NodeStopping()
        return await self._room.reserve(owner, device, size_bytes)

    def release(self, owner: str, device: str, size_bytes: int) -> None:
        """What `reserve` gave, or a part of it."""
        self._room.take_back(owner, device, size_bytes)

    @property
    def hosts(self) -> tuple[ModelHost, ...]:
        return tuple(self._hosts.values())

    @property
    def loaded(self) -> tuple[ModelHost, ...]:
        return tuple(host for host in self.hosts if host.engine.runner is not None)

    def find(self, name: str, unknown: str = "model '{}' not found") -> ModelHost:
        """The host of a model by any of its names, made where the catalogue knows it. Raises `RequestError`, 404."""
        host = self._known(name)
        if host is not None:
            return host
        source = self._catalog.find(name)
        if source is None:
            near = get_close_matches(canonical(name), self.names(), n=1, cutoff=0.8)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise RequestError(unknown.format(name) + hint, status=404, field="model")
        return self._host_of(source, self._start.wish)

    def names(self) -> list[str]:
        return list(dict.fromkeys([host.name for host in self.hosts] + [one.name for one in self._catalog.sources()]))

    @asynccontextmanager
    async def hold(self, name: str, keep_alive_seconds: float | None = None) -> AsyncIterator[ModelHost]:
        """Wait until the model is there; it stays as long as this is held.

        Raises `RequestError` for an unknown name, `NodeBusy`, `NoRoom`, `ModelError`, `NodeStopping`.
        """
        host = self.find(name)  # at this moment, since hosts come and go
        try:
            with host.slots.enter():
                self._stop_timer(host)
                try:
                    await self._present(host, patient=True)
                    with host.use(keep_alive_seconds):
                        yield host
                finally:
                    self._now_idle(host)
        except NodeError:
            self._as_before(host)
            raise

    async def load(self, host: ModelHost, keep_alive_seconds: float | None = None) -> None:
        """Bring it in without a request. Raises `NoRoom` at once where only busy models could make room."""
        try:
            await self._present(host, patient=False)
        except NodeError:
            self._as_before(host)
            raise
        host.fresh = False
        if keep_alive_seconds is None:
            host.rest()
        else:
            host.keep(keep_alive_seconds)
        self._now_idle(host)

    @property
    def usual_wish(self) -> LoadWish:
        """How models are loaded where nothing is said."""
        return self._start.wish

    async def wanted(self, name: str, wish: LoadWish | None) -> ModelHost:
        """The host for a loading; one that says how is refused for a model that is in use as it is loaded otherwise."""
        host = self._known(name)
        if host is None:
            source = self._catalog.find_fetchable(name)
            if source is None:
                return self.find(name)
            host = self._host_of(source, wish or self._start.wish)
            host.before = self._start.wish
            return host
        if wish is None or host.wish == wish:
            return host
        await self._leave_alone(host)
        replaced = self._replaced(host, wish)
        if replaced is None:
            raise RequestError(f"the files of {host.name} are gone", status=404, field="model")
        replaced.before = host.wish
        await host.engine.close()
        return replaced

    def _replaced(self, host: ModelHost, wish: LoadWish) -> ModelHost | None:
        """Another host in its place; the caller closes the old one. None when its files are gone."""
        source = self._start.source if host is self.main else self._catalog.find_fetchable(host.name)
        if source is None:
            return None
        replaced = self._hosts[canonical(host.name)] = self._build(source, wish)
        replaced.loaded_once = host.loaded_once
        return replaced

    def _as_before(self, host: ModelHost) -> None:
        """A way of loading that failed harms nobody else: the next request gets the model as it was loaded before."""
        wanted = host.engine.runner or host.slots.busy or self._arriving(host)
        if host.before in (None, host.wish) or wanted or self._stopped:
            return
        if self._hosts.get(canonical(host.name)) is host and self._replaced(host, host.before):
            self._begin(self._closed(host), f"close {host.name}")

    async def _closed(self, host: ModelHost) -> None:
        await host.engine.close()

    async def _leave_alone(self, host: ModelHost) -> None:
        async with self._room.moving:
            self._check_unused(host)
            await self._leave(host)
        self._check_unused(host)  # meanwhile somebody may have come who wants it as it was

    def _check_unused(self, host: ModelHost) -> None:
        if host.slots.busy or host.owners or self._arriving(host):
            raise RequestError(f"{host.name} is in use as it is loaded now; unload it first", status=409)

    async def unload(self, host: ModelHost) -> bool:
        """At once when nobody has the model (True), else as soon as everybody who has it is served."""
        self._stop_timer(host)
        host.dismiss()
        await self.expire(host)
        return host.engine.runner is None

    async def expire(self, host: ModelHost) -> None:
        """Unload if the time is really over; a request that came meanwhile has moved it."""
        if not host.idle:
            return
        async with self._room.moving:
            if host.idle and host.engine.runner is not None and host.seconds_left <= TIMER_SLACK_SECONDS:
                await self._leave(host)

    async def start(self) -> None:
        await self.load(self.main)

    def stop(self) -> None:
        """End every generation and every loading with `NodeStopping`."""
        self._stopped = True
        for host in self.hosts:
            self._stop_timer(host)
            host.engine.stop()
        for task in (*self._arrivals.values(), *self._departures):
            task.cancel()

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        self.stop()
        await asyncio.gather(*self._arrivals.values(), *self._departures, return_exceptions=True)
        ended = [await host.engine.close(timeout_seconds) for host in self.hosts]
        return all(ended)

    async def _present(self, host: ModelHost, patient: bool) -> None:
        """Returns with the model there and nobody about to unload it; no await between that and using it."""
        waited = False  # whoever it was brought in for has it before it leaves again
        while not host.ready or (host.leaving and not waited):
            if self._stopped:
                raise NodeStopping()
            task = self._arrivals.get((host, patient)) or self._begin_arrival(host, patient)
            waited = True
            self._waiting[task] += 1
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():  # by `stop`, not by whoever waits here
                    raise NodeStopping() from None
                raise
            finally:
                self._waiting[task] -= 1
                self._waiting += Counter()  # only those that somebody waits for are kept
                self._room.idle.set()

    def _is_handing_over(self) -> bool:
        """A model has just come whose askers have not had a turn of the loop since: it must not leave before that, or
        two that cannot be there together take each other's place for ever."""
        return any(task.done() for task in self._waiting)

    def _begin_arrival(self, host: ModelHost, patient: bool) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._arrive(host, patient), name=f"load {host.name}")
        self._arrivals[host, patient] = task
        task.add_done_callback(lambda done: self._arrived(host, patient, done))
        return task

    def _arrived(self, host: ModelHost, patient: bool, task: asyncio.Task[None]) -> None:
        self._arrivals.pop((host, patient), None)
        host.activity = ""
        if not task.cancelled():
            task.exception()  # everyone who waited may have left; the failure is kept in the host
        self._now_idle(host)

    def _arriving(self, host: ModelHost) -> bool:
        return (host, True) in self._arrivals or (host, False) in self._arrivals

    async def _arrive(self, host: ModelHost, patient: bool) -> None:
        try:
            host.activity = "fetching" if host.description is None else "waiting for room"
            if host.description is None:
                await host.prepare()
            async with self._room.moving:
                if not host.ready:
                    await self._bring_in(host, patient)
        except DeviceOutOfMemory as error:
            host.error = f"{host.name} does not fit into memory: {error}"
            raise ModelError(host.error) from error
        except NoRoom:
            raise  # a passing state of the node, no fault of the model
        except NodeError as error:
            host.error = str(error)
            raise
        except Exception as error:  # top of the task
            log.exception("the model cannot be loaded")
            host.error = f"the model cannot be loaded: {error}"
            raise ModelError(host.error) from error

    async def _bring_in(self, host: ModelHost, patient: bool) -> None:
        host.activity = "waiting for room"
        device = self._device_of(host)
        claim = await host.claim(self._room.account(device))
        await self._room.make(Need(host.name, claim.total_bytes), device, patient)
        log.info("loading %s", host.name)
        host.activity, host.error = "loading", ""
        self._room.claim(host.name, device, claim)
        self._room.loading = host.name
        try:
            await self._load_with_room(host, claim, device)
        except BaseException:
            self._room.release(host.name)
            raise
        finally:
            self._room.loading = ""
        self._room.claim(host.name, self._device_of(host), host.held)  # as it really is
        host.fresh, host.before = True, None
        host.rest()

    async def _load_with_room(self, host: ModelHost, claim: Claim, device: str) -> None:
        try:
            await host.load(claim)
        except DeviceOutOfMemory:
            if not await self._room.empty(device, but=host.name):
                raise
            await host.load(claim)  # the guess was too small: with the device to itself it may fit

    def _device_of(self, host: ModelHost) -> str:
        """Whose account: told by the loaded model, else by how it is to be loaded."""
        runner = host.engine.runner
        return self._room.device_of(runner.device if runner is not None else host.wish.device)

    def holders(self) -> list[Holder]:
        return self._room.holders()

    async def _leave(self, host: ModelHost) -> None:
        host.leaving = True
        self._stop_timer(host)
        try:
            await host.engine.unload()
        finally:
            host.leaving = False
            host.fresh = False
            self._room.release(host.name)
        await self._forget()

    async def _forget(self, but: ModelHost | None = None) -> None:
        """Close what is neither loaded nor wanted: each has a thread."""
        for host in self.hosts:
            if host in (self.main, but) or host.engine.runner or host.slots.busy or self._arriving(host):
                continue
            if self._hosts.get(canonical(host.name)) is host:
                del self._hosts[canonical(host.name)]
                await host.engine.close()

    def _known(self, name: str) -> ModelHost | None:
        return next((host for host in self.hosts if host.serves(name)), None)

    def _host_of(self, source: ModelSource, wish: LoadWish) -> ModelHost:
        host = self._hosts.get(canonical(source.name))
        if host is None:
            if len(self._hosts) >= MOST_HOSTS:
                raise NoRoom(f"{len(self._hosts)} models are already loaded or being loaded")
            host = self._hosts[canonical(source.name)] = self._build(source, wish)
            self._begin(self._forget(but=host), "close what nobody wants")
        return host

    def _now_idle(self, host: ModelHost) -> None:
        self._room.idle.set()
        self._stop_timer(host)
        if host.idle and host.ready and math.isfinite(host.seconds_left) and not self._stopped:
            loop = asyncio.get_running_loop()
            self._timers[host] = loop.call_later(host.seconds_left, self._begin_departure, host)

    def _begin_departure(self, host: ModelHost) -> None:
        self._begin(self.expire(host), f"unload {host.name}")

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._departures.add(task)
        task.add_done_callback(self._departures.discard)

    def _stop_timer(self, host: ModelHost) -> None:
        timer = self._timers.pop(host, None)
        if timer is not None:
            timer.cancel()
