"""Follows the phones of an adb server: learns who they are, keeps their forwards, and tells the registry.

What should be is decided in `states` and `plan`; here is the I/O. Invariants: nothing here waits for a phone that does
not answer (each has a task of its own); the server may die at any moment and come back with other phones; whatever we
made is taken away at the end. Must not know HTTP or the fleet file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from server.adb.acquaintances import Acquaintance, Acquaintances, Connection
from server.adb.binary import start_server
from server.adb.care_reader import READ_SECONDS, CareReader
from server.adb.contacts import STEADY_SECONDS, Contacts
from server.adb.listing import Listing
from server.adb.plan import Forward, Memory, Place, Plan, plan_forwards
from server.adb.server_link import ANSWER_SECONDS, ServerLink
from server.adb.states import (
    HELD_OFF,
    IN_USE,
    LOOSE,
    NOT_ANSWERING,
    READY,
    SILENT,
    TWICE,
    AdbPhone,
    Transport,
    phones_of,
    shown,
)
from server.clock import Clock
from server.errors import AdbError, AdbRefused, AdbServerGone
from server.nodes import DEFAULT_OLLAMA_PORT, Node, NodeId, NodeStatus
from server.registry import Registry

AdbMode = Literal["auto", "on", "off"]

SETTLE_SECONDS = 0.1  # a plug that makes contact lists and unlists its phone several times
LOOK_SECONDS = 2.0  # older servers do not tell of every change, and nobody tells of a forward that was removed
RETURN_SECONDS = 1.0  # between looks for a server that is gone
START_SECONDS = 9.0  # more after a start that failed: each makes a process
BLOCKED_SECONDS = 30.0  # until a port that another program had is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdbOptions:
    """`mode` "auto" follows a server that runs and starts none; `read_seconds`: between looks at battery and heat,
    `look_seconds`: at the list; `patience_seconds`: with one question; `steady_seconds`: until a connection that broke
    off again and again is trusted."""

    mode: AdbMode = "auto"
    host: str = "127.0.0.1"
    port: int = 5037
    read_seconds: float = READ_SECONDS
    look_seconds: float = LOOK_SECONDS
    patience_seconds: float = ANSWER_SECONDS
    steady_seconds: float = STEADY_SECONDS


class AdbTracker:
    """Run `run` as a task."""

    def __init__(
        self,
        registry: Registry,
        options: AdbOptions,
        clock: Clock | None = None,
        start: Callable[[int], Awaitable[None]] = start_server,
    ) -> None:
        self._registry, self._options, self._start = registry, options, start
        self._clock = clock or Clock()
        self._link = ServerLink(options.host, options.port, options.patience_seconds)
        self._care = CareReader(self._link, self._watched, registry.emit, self._clock, options.read_seconds)
        self._news = asyncio.Event()
        self._listing = Listing(registry)
        self._acquaintances = Acquaintances(self._link, self._clock, self._news.set)
        self._contacts = Contacts(options.steady_seconds)
        self._transports: tuple[Transport, ...] = ()
        self._current: dict[str, str] = {}  # the way that is used to each phone
        self._in_use: set[Connection] = set()
        self._seen: dict[str, Acquaintance | None] = {}  # with the connection that it was planned for
        self._made: set[Forward] = set()
        self._left: set[Forward] | None = None  # what was there when we came
        self._adopted: dict[str, Forward] = {}
        self._blocked: dict[int, float] = {}
        self._places: Mapping[str, Place] = {}
        self._told: dict[str, str] = {}
        self.server_problem: str | None = "not looked for yet"
        self.phones: tuple[AdbPhone, ...] = ()
        self.problems: dict[str, str] = {}  # by phone, in words

    async def run(self) -> None:
        """Follow until cancelled."""
        if self._options.mode == "off":
            return
        self._registry.listen(self._on_change)
        try:
            while True:
                try:
                    await self._follow_server()
                except* AdbServerGone as gone:
                    await self._lost(str(gone.exceptions[0]))
                await self._clock.sleep(RETURN_SECONDS)
        finally:
            await self._clear()

    def status(self) -> dict[str, Any]:
        """For /health."""
        return {
            "mode": self._options.mode,
            "server": f"{self._options.host}:{self._options.port}",
            "problem": None if self._options.mode == "off" else self.server_problem,
            "phones": [self._record(phone) for phone in self.phones],
        }

    def _record(self, phone: AdbPhone) -> dict[str, Any]:
        place = self._places.get(phone.id)
        return {
            "serial": phone.id,
            "name": phone.name,
            "state": phone.transport.state,
            "node": None if place is None else place.node,
            "local_port": None if place is None else place.port,
            "android": phone.told.android or None,
            "problem": self.problems.get(phone.id),
        }

    async def _follow_server(self) -> None:
        """Until the server goes, which is AdbServerGone."""
        try:
            version = await self._link.version()
        except AdbServerGone:
            if self._options.mode != "on":
                raise
            await self._start_server()
            version = await self._version()
        except AdbError as problem:  # it takes connections and answers nothing
            raise AdbServerGone(problem.message) from problem
        log.info("following the adb server at %s:%s (protocol %s)", self._options.host, self._options.port, version)
        self.server_problem = None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._settle_on())
            tasks.create_task(self._care.run())

    async def _version(self) -> int:
        try:
            return await self._link.version()
        except AdbError as problem:
            raise AdbServerGone(problem.message) from problem

    async def _start_server(self) -> None:
        try:
            await self._start(self._options.port)
        except AdbError as problem:
            if self.server_problem != problem.message:
                log.warning('%s (POTLUCK_ADB is "on"; tried again every few seconds)', problem.message)
            self.server_problem = problem.message
            await self._clock.sleep(START_SECONDS)
            raise AdbServerGone(problem.message) from problem

    async def _listen(self) -> None:
        try:
            async for transports in self._link.follow():
                self._take(transports)
        except AdbRefused as problem:
            log.info("the adb server does not tell of changes (%s): it is asked every few seconds", problem.message)

    async def _settle_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.look_seconds):
                    await self._news.wait()
            await self._clock.sleep(SETTLE_SECONDS)
            self._news.clear()
            try:
                self._take(await self._link.transports())
                self._news.clear()
                await self._settle()
            except AdbError as problem:
                await self._doubt(problem)
            else:
                self.server_problem = None

    async def _doubt(self, problem: AdbError) -> None:
        """One question may fail for its phone's sake; the server is gone when it does not even tell its version."""
        if self.server_problem != problem.message:
            log.warning("the adb server: %s", problem.message)
        self.server_problem = problem.message
        await self._version()

    def _take(self, transports: tuple[Transport, ...]) -> None:
        """The list has changed, or not."""
        if transports == self._transports:
            return
        self._transports = transports
        for serial, _ in self._acquaintances.meet(transports):
            self._contacts.broke(serial, self._clock.monotonic())
        self._news.set()

    async def _settle(self) -> None:
        """Make what is, what should be."""
        forwards = await self._link.forwards()
        phones = phones_of(self._transports, self._acquaintances.facts, self._current, self._dead_ways(), self._in_use)
        self._forget_removed(phones, forwards)
        self._made &= set(forwards)
        for forward in forwards:  # it was another gateway's, made at the same moment: free when it goes
            self._blocked.pop(forward.local_port, None)
        self._left = set(forwards) & (set(forwards) if self._left is None else self._left)
        known = self._acquaintances.serving
        serving = {phone.id for phone in phones if phone.transport.key in known and not self._is_loose(phone)}
        plan = plan_forwards(phones, serving, forwards, self._listing.entries(), self._memory())
        await self._carry_out(plan)
        self._remember(phones, plan)
        self._tell(phones)

    def _is_loose(self, phone: AdbPhone) -> bool:
        return self._contacts.is_loose(phone.transport.serial, self._clock.monotonic())

    def _memory(self) -> Memory:
        now = self._clock.monotonic()
        self._blocked = {port: until for port, until in self._blocked.items() if until > now}
        ports = {phone: place.port for phone, place in self._places.items() if place.port is not None}
        return Memory(
            made=frozenset(self._made),
            adopted=self._adopted,
            blocked=frozenset(self._blocked),
            ports=ports,
            left=frozenset(self._left or ()),
            silent=self._listing.silent(),
        )

    def _dead_ways(self) -> set[str]:
        """Serials that are listed while their node is silent: another way to the same phone may be alive."""
        dead = set()
        for phone, place in self._places.items():
            node = self._registry.node(place.node)
            if place.port is not None and node is not None and node.status is NodeStatus.SILENT:
                dead.add(self._current.get(phone, ""))
        return dead

    def _forget_removed(self, phones: tuple[AdbPhone, ...], forwards: tuple[Forward, ...]) -> None:
        """A person's forward that went while its phone stayed was taken away by a person."""
        for phone in phones:
            kept = self._adopted.get(phone.id)
            stayed = self._seen.get(phone.id) is self._acquaintances.of(phone.transport)
            if phone.usable and kept is not None and stayed and kept not in forwards:
                del self._adopted[phone.id]

    async def _carry_out(self, plan: Plan) -> None:
        """All at once: a lab's forwards must not wait for each other where the server is slow."""
        self._made.update(plan.kept)
        await asyncio.gather(*map(self._remove, plan.remove))
        problems = await asyncio.gather(*map(self._create, plan.create))
        for problem in problems:
            if isinstance(problem, AdbServerGone):
                raise problem

    async def _remove(self, forward: Forward) -> None:
        with suppress(AdbError):
            await self._link.remove(forward, self._number_of(forward))
            if self._left is not None:
                self._left.discard(forward)
        self._made.discard(forward)

    async def _create(self, forward: Forward) -> AdbError | None:
        try:
            await self._link.create(forward, self._number_of(forward))
        except AdbError as problem:  # the phone went meanwhile, or another program has the port
            log.info("no forward from port %s to %s: %s", forward.local_port, shown(forward.serial), problem.message)
            if "bind" in problem.message or "in use" in problem.message:
                self._blocked[forward.local_port] = self._clock.monotonic() + BLOCKED_SECONDS
            self._news.set()
            return problem
        self._made.add(forward)
        return None

    def _number_of(self, forward: Forward) -> int:
        """Of the connection that is meant, where the serial names several; else 0."""
        twins = [transport for transport in self._transports if transport.serial == forward.serial]
        if len(twins) < 2:
            return 0
        used = [way.number for way in twins if way.key in self._in_use] or [
            way.number for way in twins if way.state == READY
        ]
        return used[0] if len(used) == 1 else 0

    def _remember(self, phones: tuple[AdbPhone, ...], plan: Plan) -> None:
        usable = [phone for phone in phones if phone.usable]
        for phone in usable:
            self._current[phone.id] = phone.transport.serial
            self._seen[phone.id] = self._acquaintances.of(phone.transport)
            if phone.id in plan.adopted:
                self._adopted[phone.id] = plan.adopted[phone.id]
        here = {phone.id for phone in usable}
        self._in_use = {phone.transport.key for phone in usable}
        self._seen = {phone: met for phone, met in self._seen.items() if phone in here}
        self._current = {phone: serial for phone, serial in self._current.items() if phone in here}
        failed = {forward.local_port for forward in plan.create if forward not in self._made}
        self._places = {phone: place for phone, place in plan.places.items() if place.port not in failed}
        self.phones = phones
        self.problems = {phone.id: words for phone in phones if (words := self._problem(phone, plan))}

    def _problem(self, phone: AdbPhone, plan: Plan) -> str:
        if phone.advice:
            return phone.advice
        if phone.has_twin:
            return TWICE
        if not phone.known:
            return "it is being asked who it is; if that stays so, plug it in again"
        if phone.id in plan.conflicts:
            return IN_USE.format(port=plan.conflicts[phone.id])
        place = plan.places.get(phone.id)
        if self._is_loose(phone):
            return LOOSE if place is not None else HELD_OFF.format(seconds=self._options.steady_seconds)
        here = place is None or place.port is not None
        if here and phone.transport.key not in self._acquaintances.serving:
            return NOT_ANSWERING.format(port=DEFAULT_OLLAMA_PORT)
        if place is None:
            return ""
        node = self._registry.node(place.node)
        return SILENT if place.port is not None and node is not None and node.status is NodeStatus.SILENT else ""

    def _tell(self, phones: tuple[AdbPhone, ...]) -> None:
        """The registry, what changed for it; the log, each phone's trouble once."""
        known = {phone.id: phone for phone in phones}
        serving = self._acquaintances.serving
        versions = {phone.id: serving.get(phone.transport.key, "") for phone in phones}
        self._listing.tell(known, self._places, versions, self._clock.wall())
        for phone, words in self.problems.items():
            if self._told.get(phone) != words:
                log.info("the phone %s (%s): %s", known[phone].name, phone, words)
        self._told = dict(self.problems)
        self._care.soon()

    def _watched(self) -> dict[NodeId, Transport]:
        ways = {phone.id: phone.transport for phone in self.phones if phone.usable}
        return {place.node: ways[phone] for phone, place in self._places.items() if phone in ways}

    def _on_change(self, before: Node | None, after: Node | None) -> None:
        """Another entry, or a node that fell silent."""
        if before is None or after is None or before.spec != after.spec or before.status is not after.status:
            self._news.set()

    async def _lost(self, why: str) -> None:
        """The server is gone and every forward with it."""
        if self.server_problem != why:
            log.info("%s", why)
        self.server_problem = why
        await self._acquaintances.part()
        self._transports, self.phones, self._places = (), (), {}
        self._in_use.clear()  # another server counts its connections anew
        self._made.clear()
        self.problems = {}
        self._listing.clear(self._clock.wall())

    async def _clear(self) -> None:
        await self._acquaintances.part()
        ours = self._made - set(self._adopted.values())
        # All at once: a server that hangs keeps nobody from ending.
        await asyncio.gather(*(self._link.remove(each, self._number_of(each)) for each in ours), return_exceptions=True)
