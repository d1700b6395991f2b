"""The composition root: builds the gateway's parts, starts and stops its loops, and drains it before it ends.

`create_app` reads the settings and gives the ASGI application; its parts live from lifespan startup to shutdown, on one
event loop. A wrong setting ends the program with one sentence. Nothing else in the gateway knows all parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TextIO

from server.adb.tracker import AdbOptions, AdbTracker
from server.answers import Answers
from server.api.access import AccessRules, Exposure, access_rules
from server.api.app import App, build_app
from server.api.incoming import Receive, Scope
from server.api.reply import Send
from server.api.services import OpenRequests, Services
from server.backends import Backends
from server.breaker import BreakerLimits
from server.care import CareLimits
from server.clock import Clock
from server.discovery import Discovery, DiscoveryOptions
from server.dispatch import Dispatcher
from server.draining import Draining
from server.embedded import EmbeddedNode, EmbeddedOptions
from server.failover import Failover, FailoverLimits
from server.health import Health, ProbePace
from server.logs import RequestLog, standard_logging
from server.metrics import Metrics
from server.nodes import NodeId, NodeSpec, ProbeReport
from server.observer import Observer, RequestRecord
from server.patience import PatienceLimits
from server.phones import Joining
from server.phones_file import FleetFileState
from server.phones_watch import FleetFile
from server.registry import Registry
from server.rests import log_rests
from server.retry import RetryBudget
from server.routing import STRATEGIES, Policy
from server.seating import Seating, SeatingLimits
from server.settings import Settings, SettingsError, read_settings
from server.warming import Warming, WarmingOptions
from server.warmth import WarmthRules
from transport.beacons import Reach
from transport.tokens import shared_token

Loop = Callable[[], Coroutine[Any, Any, None]]

MAX_DESCRIPTORS = 65_536  # more than a gateway can serve; a bound, since some systems count in their table's memory

log = logging.getLogger(__name__)


class Observers:
    """Tells several observers the same."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def request_finished(self, record: RequestRecord) -> None:
        for observer in self._observers:
            observer.request_finished(record)

    def attempt_started(self, node: NodeId, model: str) -> None:
        for observer in self._observers:
            observer.attempt_started(node, model)

    def attempt_failed(self, node: NodeId, model: str, reason: str) -> None:
        for observer in self._observers:
            observer.attempt_failed(node, model, reason)

    def answer_resumed(self, node: NodeId, way: str) -> None:
        for observer in self._observers:
            observer.answer_resumed(node, way)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    app: App
    services: Services
    dispatcher: Dispatcher
    draining: Draining


def raise_file_limit() -> None:
    """A connection per phone and client: the usual soft limit of 1,024 descriptors ends a large fleet at a third."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS may grant less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a gateway is made of, before anything runs."""

    log: RequestLog
    registry: Registry
    backends: Backends
    embedded: EmbeddedNode
    metrics: Metrics
    dispatcher: Dispatcher
    fleet_file: FleetFile
    adb: AdbTracker
    started_at: float  # wall clock


@asynccontextmanager
async def running(
    settings: Settings, environ: Mapping[str, str], log_stream: TextIO | None = None
) -> AsyncIterator[Gateway]:
    """The gateway's parts, built and started; stopped on leaving. Raises SettingsError."""
    access = _access(settings)
    stream = log_stream or sys.stderr
    async with AsyncExitStack() as stack:
        stack.enter_context(standard_logging(stream, settings.log_format))
        parts = _parts(settings, environ, RequestLog(stream, settings.log_format, settings.log_prompts))
        stack.push_async_callback(parts.backends.aclose)
        stack.push_async_callback(parts.dispatcher.aclose)
        parts.fleet_file.reload()
        if _is_file_named(settings) and not settings.phones_file.exists():
            log.warning("the fleet file %s does not exist; it is read as soon as it does", settings.phones_file)
        await stack.enter_async_context(_loops(_work(settings, environ, parts)))
        services = _services(settings, access, parts)
        draining = Draining(services.open_requests, parts.dispatcher, settings.drain_s)
        stack.callback(draining.stop)
        yield Gateway(build_app(services), services, parts.dispatcher, draining)


def _parts(settings: Settings, environ: Mapping[str, str], request_log: RequestLog) -> _Parts:
    registry = Registry(_care(settings))
    registry.listen(log_rests)
    keys = dict(environ)  # of nodes, by the names in `api_key_env`; the embedded node's is added later
    backends = Backends(keys)
    embedded = _embedded(settings, environ, registry, backends, keys)
    metrics, started_at = Metrics(registry), time.time()
    dispatcher = _dispatcher(settings, registry, backends, embedded, Observers((metrics, request_log)))
    metrics.watch(dispatcher, started_at)
    return _Parts(
        log=request_log,
        registry=registry,
        backends=backends,
        embedded=embedded,
        metrics=metrics,
        dispatcher=dispatcher,
        fleet_file=FleetFile(settings.phones_file, registry.emit, time.time),
        adb=AdbTracker(registry, _adb_options(settings)),
        started_at=started_at,
    )


def _work(settings: Settings, environ: Mapping[str, str], parts: _Parts) -> Mapping[str, Loop]:
    """What goes on beside the requests, by name."""
    registry, backends = parts.registry, parts.backends
    clock = Clock(monotonic=asyncio.get_running_loop().time)
    return {
        "health": Health(registry, backends, _pace(settings)).run,
        "fleet file": parts.fleet_file.watch,
        "embedded node": parts.embedded.run,
        "warming": Warming(registry, backends, _warming(settings), clock).run,
        "discovery": Discovery(registry, _discovery_options(settings, environ)).run,
        "adb": parts.adb.run,
    }


def _services(settings: Settings, access: AccessRules, parts: _Parts) -> Services:
    registry, backends = parts.registry, parts.backends
    return Services(
        settings=settings,
        access=access,
        exposure=Exposure(access.needs_key, parts.log.exposed),
        registry=registry,
        dispatch=parts.dispatcher,
        backends=backends,
        operations=backends.operations,
        joining=Joining(registry, parts.fleet_file, look_at_phones(backends, settings), time.time),
        metrics=parts.metrics,
        log=parts.log,
        open_requests=OpenRequests(),
        fleet_file=lambda: _file_state(settings, parts.fleet_file),
        started_at=parts.started_at,
        loop_time=asyncio.get_running_loop().time,
        embedded_status=lambda: {
            "mode": settings.embedded_mode,
            "starting": parts.embedded.starting,
            "reason": parts.embedded.reason,
        },
        adb_status=parts.adb.status,
    )


def look_at_phones(backends: Backends, settings: Settings) -> Callable[[str, int], Awaitable[ProbeReport]]:
    """A look at a phone that wants to join: by address, never by name, with the patience of connecting."""

    async def look(host: str, port: int) -> ProbeReport:
        spec = NodeSpec(NodeId("joining"), "a phone that joins", "ollama", host, port)
        return await backends["ollama"].probe(spec, settings.connect_timeout_s)

    return look


def _is_file_named(settings: Settings) -> bool:
    return "phones_file" in settings.model_fields_set


def _file_state(settings: Settings, fleet_file: FleetFile) -> FleetFileState:
    """A file that the owner named and that is not there: no fleet without phones, but a mistake."""
    state = fleet_file.state
    missing = _is_file_named(settings) and state.error is None and not state.specs and not state.path.exists()
    return replace(state, error="does not exist") if missing else state


def _discovery_options(settings: Settings, environ: Mapping[str, str]) -> DiscoveryOptions:
    return DiscoveryOptions(settings.discovery, shared_token(environ), Reach(port=settings.discovery_port))


def _adb_options(settings: Settings) -> AdbOptions:
    host, _, port = settings.adb_server.rpartition(":")
    return AdbOptions(settings.adb, host, int(port), settings.adb_read_s)


def _access(settings: Settings) -> AccessRules:
    try:
        return access_rules(settings.api_keys, settings.allowed_origins, settings.allowed_hosts)
    except ValueError as error:
        raise SettingsError(str(error)) from None  # the chained text would show the keys


def _embedded(
    settings: Settings,
    environ: Mapping[str, str],
    registry: Registry,
    backends: Backends,
    keys: dict[str, str],
) -> EmbeddedNode:
    async def probe(spec: NodeSpec, timeout_seconds: float) -> ProbeReport:
        return await backends[spec.kind].probe(spec, timeout_seconds)

    options = EmbeddedOptions(
        settings.embedded_mode, settings.embedded_model, environ, devices=settings.embedded_devices
    )
    return EmbeddedNode(registry, keys, options, probe)


def _dispatcher(
    settings: Settings,
    registry: Registry,
    backends: Backends,
    embedded: EmbeddedNode,
    observer: Observer,
) -> Dispatcher:
    now = asyncio.get_running_loop().time
    seating = Seating(
        registry,
        Policy(STRATEGIES[settings.strategy], affinity=settings.affinity),
        SeatingLimits(settings.queue_limit, settings.queue_timeout_s, settings.no_node_wait_s),
        now,
        absence=lambda: embedded.reason,
        starting=lambda: embedded.starting,
    )
    budget = RetryBudget(settings.retry_budget_ratio, settings.retry_budget_floor)
    failover = Failover(seating, backends, budget, observer, _failover_limits(settings), now)
    answers = Answers(
        settings.cache_entries,
        settings.cache_bytes,
        settings.cache_ttl_s,
        now,
        settings.enable_lru_cache,
        settings.cache_dialects,
    )
    return Dispatcher(registry, seating, failover, answers, observer, settings.model_aliases, now)


def _failover_limits(settings: Settings) -> FailoverLimits:
    breaker = BreakerLimits(settings.breaker_failures, settings.breaker_rest_s, settings.breaker_longest_rest_s)
    patience = PatienceLimits(
        factor=settings.patience_factor,
        connect_seconds=settings.connect_timeout_s,
        first_token_floor_seconds=settings.first_token_floor_s,
        between_tokens_floor_seconds=settings.between_tokens_floor_s,
        load_allowance_seconds=settings.load_allowance_s,
        ceiling_seconds=settings.silence_ceiling_s,
        total_seconds=settings.request_timeout_s,
    )
    return FailoverLimits(settings.attempts_per_outage, breaker, patience)


def _care(settings: Settings) -> CareLimits:
    return CareLimits(
        settings.care,
        settings.care_warm_c,
        settings.care_hot_c,
        settings.care_cooled_c,
        settings.care_low_battery,
        settings.care_charged,
        settings.care_stale_s,
    )


def _warming(settings: Settings) -> WarmingOptions:
    rules = WarmthRules(auto=settings.warm_up == "auto")
    load_seconds = settings.load_allowance_s + settings.first_token_floor_s
    return WarmingOptions(rules, settings.connect_timeout_s, load_seconds, settings.probe_timeout_s)


def _pace(settings: Settings) -> ProbePace:
    return ProbePace(settings.probe_interval_s, settings.probe_timeout_s, settings.probe_retry_s)


@asynccontextmanager
async def _loops(loops: Mapping[str, Loop]) -> AsyncIterator[None]:
    """Run the loops as tasks; one that breaks is a line in the log, and the others go on."""

    async def guarded(name: str, run: Loop) -> None:
        try:
            await run()
        except Exception:
            log.exception("the loop %r has ended by a fault of ours", name)

    tasks = [asyncio.create_task(guarded(name, run), name=name) for name, run in loops.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Application:
    """The ASGI application: lifespan here, requests by the gateway that lifespan started."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self._environ = environ
        self._gateway: Gateway | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                if self._gateway is None:
                    raise RuntimeError("the gateway has not been started: its server must send lifespan events")
                await self._gateway.app(scope, receive, send)
            case "lifespan":
                await self._live(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with running(self.settings, self._environ) as self._gateway:
                with self._gateway.draining.on_signals() as address:
                    self._gateway.services.exposure.listens(address)
                    await send({"type": "lifespan.startup.complete"})
                    await receive()
        except SettingsError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        finally:
            self._gateway = None
        await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings | None = None, environ: Mapping[str, str] | None = None) -> Application:
    """The application for `uvicorn server:app`. A wrong setting ends the program with one sentence."""
    variables = dict(os.environ if environ is None else environ)
    raise_file_limit()
    try:
        used = settings or read_settings(variables)
        _access(used)
    except SettingsError as error:
        raise SystemExit(f"potluck: {error}") from None
    return Application(used, variables)
