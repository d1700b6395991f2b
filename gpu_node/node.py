"""The composition root: builds store, engines, residents, API and relay from the settings, serves them, ends them in
order.

Listening begins at once; the model loads meanwhile. The first load failing for good ends the node with exit code 1.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_node.api.access import is_loopback, rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.catalog import Catalog
from gpu_node.device_fleet import DeviceFleet
from gpu_node.device_profiles import Findings
from gpu_node.devices import Device, Kind
from gpu_node.durations import FOREVER
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.guide import guides_of
from gpu_node.engine.step import ModelRunner
from gpu_node.errors import NodeError, NodeStopping, NoRoom, UsageError
from gpu_node.host import ModelHost, Stay
from gpu_node.hot_plug import HotPlug
from gpu_node.inventory import Gpu, gpus, machine, within
from gpu_node.listening import Server
from gpu_node.load_wish import LoadWish
from gpu_node.memory.lending_policy import LendingPolicy
from gpu_node.model_source import HubSource, KnownSource, ModelSource, names_of
from gpu_node.model_store import ModelStore
from gpu_node.parent import leave_now, watch_parent
from gpu_node.pipeline.split_model import SplitOptions
from gpu_node.probing import FILE_NAME, ProbeRun, Probing
from gpu_node.provision import Provision
from gpu_node.relay_side import Models, RelaySide
from gpu_node.residents import Residents, Start
from gpu_node.settings import NodeSettings
from gpu_node.splitting import SplitRules, Splitting, stage_threads
from gpu_node.vram import USABLE_SHARE, Account

log = logging.getLogger("gpu_node")

# A load or a forward cannot be interrupted; after this the process ends around it.
WORKER_SECONDS = 1.0
# Who hears that its workers are gone tidies up within this.
ENDING_SECONDS = 3.0
# A driver that has not answered by then at the start is broken.
DRIVER_SECONDS = 10.0
NO_GPUS: tuple[Gpu, ...] = ()
# Of torch's builds those whose cards the quick look does not see.
PROBED_KINDS: tuple[Kind, ...] = ("rocm", "xpu")


class Node:
    def __init__(self, settings: NodeSettings, store: ModelStore, models: Path) -> None:
        """`models` is the folder of side-loaded files. Raises `UsageError` for a model that cannot exist."""
        self._settings, self._store = settings, store
        source = store.resolve(settings.model)
        self._main = source
        catalog = Catalog(store, models, source)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        found: tuple[Gpu, ...] = within(DRIVER_SECONDS, lambda: gpus(visible), NO_GPUS)
        available = machine().available_bytes
        threads = stage_threads(settings.listed_devices, settings.threads)
        probing = Probing(settings.cache / FILE_NAME, ProbeRun(threads=threads))
        devices = devices_of(settings, found, _torch_version(), probing.findings)
        self._splitting = splitting_of(settings, devices, probing) if devices else None
        accounts = accounts_of(settings, found, available, _torch_version())
        start = Start(source, settings.wish)
        if self._splitting is None:
            self.residents = Residents(start, catalog, self._build, accounts)
        else:
            self._hot_plug = HotPlug(self._splitting.fleet, lambda: gpus(visible), machine, found)
            self._splitting.identify = self._hot_plug.identity
            self._splitting.fleet.tick(self._hot_plug.cards.free_bytes)
            accounts = [self._splitting.account, beside(devices, available)]
            self.residents = Residents(start, catalog, self._build, accounts, self._splitting.sized)
        rules = rules_of(settings.api_keys, settings.allowed_hosts, settings.allowed_origins)
        store.pushed.recover()
        fleet = self._splitting.fleet if self._splitting is not None else None
        self._relay = RelaySide(settings, Models(self.residents, catalog, store, fleet))
        service = Service(
            self.residents,
            catalog,
            settings.max_body_bytes,
            gpus=lambda: gpus(visible),
            relay=lambda: self._relay.server,
            probing=probing,
            fleet=fleet,
        )
        self.app = build_app(service, rules)
        self._stopping: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket, relay: socket.socket | None = None) -> int:
        """Serve HTTP on `listener` and relay clients on `relay` until told to stop; returns the exit code."""
        server = Server(self.app, on_listening=self._announce, on_stop=self.residents.stop)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, server)
        if self._settings.exit_with_parent:
            watch_parent(loop, lambda: self._stop(server))
        if relay is not None:
            await self._relay.start(relay)
        if self._splitting is not None:
            await asyncio.to_thread(self._hot_plug.start)
        first_load = loop.create_task(self._first_load(server), name="first load")
        await server.serve([listener])
        first_load.cancel()
        (code,) = await asyncio.gather(first_load, return_exceptions=True)
        if self._stopping is not None:
            await asyncio.gather(self._stopping, return_exceptions=True)
        await self._relay.close()
        if self._splitting is not None:
            await asyncio.to_thread(self._hot_plug.stop)
        ended = await self._close_models()
        exit_code = code if isinstance(code, int) else 0
        if not ended:
            leave_now(exit_code)
        return exit_code

    async def _close_models(self) -> bool:
        """False where a thread still computes. Of split models nothing is left behind, whatever they were at: they wait
        for their workers, and go on to their end when these are gone."""
        if self._splitting is None:
            return await self.residents.close(WORKER_SECONDS)
        self._splitting.stop()
        ended = await self.residents.close(WORKER_SECONDS)
        had_workers = await asyncio.to_thread(self._splitting.close)
        return ended or (had_workers and await self.residents.close(ENDING_SECONDS))

    def _stop(self, server: Server) -> None:
        """Relay clients are told first, and have a while for answers under way; the second time nobody has."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._drain(server), name="stop")
        elif not self._stopping.done():
            self._stopping.cancel()
        else:
            server.stop()

    async def _drain(self, server: Server) -> None:
        try:
            await self._relay.drain()
        finally:
            server.stop()

    async def _first_load(self, server: Server) -> int:
        try:
            await self.residents.start()
        except NodeStopping:
            return 0
        except NodeError as error:
            log.error("%s", error)
            if isinstance(error, NoRoom) and len(self.residents.hosts) > 1:
                return 0  # a request was quicker with another model; this one comes when it is asked for
            server.stop()
            return 1
        host = self.residents.main
        description = host.description
        log.info(
            "%s is loaded (%s parameters, %s, context %d, %d at once)",
            host.name,
            description.parameter_size if description else "?",
            host.engine.runner.device if host.engine.runner else "?",
            host.context_tokens,
            host.slots.running,
        )
        return 0

    def _build(self, source: ModelSource, wish: LoadWish) -> ModelHost:
        settings = self._settings
        asked = settings.model if source is self._main else asked_of(source)
        names = names_of(source)
        if source is not self._main:
            names = tuple(name for name in names if name != "default")

        def engine(load: Callable[[], ModelRunner], wish: LoadWish) -> Engine:
            return Engine(load, options=engine_options(wish, settings.max_queue), guides=guides_of)

        provision = Provision(self._store, source, asked, settings.cache, self._splitting)
        claim = None if self._splitting is None else partial(provision.claim, wish=wish)
        return ModelHost(names, provision, engine, wish, stay_of(settings, source is self._main), claim)

    def _announce(self, host: str, port: int) -> None:
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if self._relay.port is not None:
            log.info("relay clients are served on port %d", self._relay.port)
        if self._settings.announce_port:
            event = {
                "event": "listening",
                "host": host,
                "port": port,
                "relay_port": self._relay.port,
                "model": self.residents.main.name,
            }
            print(json.dumps(event), flush=True)


def stay_of(settings: NodeSettings, is_main: bool) -> Stay:
    kept = is_main and settings.keep_main
    return Stay(FOREVER if kept else settings.keep_alive, settings.max_queue)


def engine_options(wish: LoadWish, max_waiting: int) -> EngineOptions:
    return EngineOptions(
        max_running=wish.max_running,
        max_waiting=max_waiting,
        step_tokens=wish.step_tokens,
        mixed_step_tokens=wish.mixed_step_tokens,
        max_drafts=EngineOptions().max_drafts if wish.speculation == "auto" else 0,
    )


def asked_of(source: ModelSource) -> str:
    """What names this source to the fetching process."""
    match source:
        case KnownSource():
            return source.name
        case HubSource():
            return source.repository
        case _:
            return str(source.path)


def accounts_of(settings: NodeSettings, found: tuple[Gpu, ...], available_bytes: int, torch: str) -> list[Account]:
    """The usual device's first. The budget that is set belongs to it; others give what is free.

    `torch` is its version: one that was built for CPUs sees no GPU.
    """
    own = Account("cpu", int(available_bytes * USABLE_SHARE))
    if not found or settings.device == "cpu" or not torch or torch.endswith("+cpu"):
        return [Account("cpu", settings.memory or own.budget_bytes)]
    gpu = Account("cuda", settings.memory or int(found[0].free_bytes * USABLE_SHARE))
    return [gpu, own]


def devices_of(
    settings: NodeSettings, found: Sequence[Gpu], torch: str, probed: Callable[[], Findings]
) -> tuple[Device, ...]:
    """What models are split over: what is listed, else all GPUs where there are several; none: one device holds all.

    `torch` is its version: builds for AMD and Intel name their makers, and only `probed` knows those cards. Raises
    `UsageError` for a listed device that this machine cannot have."""
    on_cpu = not torch or torch.endswith("+cpu")
    for device in settings.listed_devices:
        if device.kind != "cpu" and on_cpu:
            raise UsageError(f"{device.name} cannot be used: torch {torch} was built for CPUs only")
        if device.kind == "cuda" and found and device.number >= len(found):
            here = ", ".join(f"cuda:{number}" for number in range(len(found)))
            raise UsageError(f"there is no {device.name} in this machine; there is {here}")
    chosen_by_hand = settings.device != "auto" or settings.memory
    if settings.listed_devices or on_cpu or chosen_by_hand:
        return settings.listed_devices
    kind = next((kind for kind in PROBED_KINDS if f"+{kind}" in torch), None)
    if kind is None:
        cards = tuple(Device(f"cuda:{number}", "cuda", number) for number in range(len(found)))
    else:
        cards = tuple(Device(one.card, one.kind, one.number) for one in probed().devices if one.kind == kind)
    return cards if len(cards) > 1 else ()


def splitting_of(settings: NodeSettings, devices: Sequence[Device], probing: Probing) -> Splitting:
    fleet = DeviceFleet(devices, joins=not settings.listed_devices)
    return Splitting(fleet, rules_of_splits(settings), probing.findings)


def rules_of_splits(settings: NodeSettings) -> SplitRules:
    lending = LendingPolicy(ratio=settings.lend_ratio, threshold=settings.reclaim_threshold)
    return SplitRules(settings.split_wish, SplitOptions(lending=lending if settings.lend_ratio else None))


def beside(devices: Sequence[Device], available_bytes: int) -> Account:
    """Main memory that no budget has, for what is not split: buffers of clients."""
    budgets = sum(device.budget_bytes or 0 for device in devices if device.kind == "cpu")
    return Account("cpu", max(int(available_bytes * USABLE_SHARE) - budgets, 0))


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def warn_when_exposed(settings: NodeSettings) -> None:
    if not is_loopback(settings.host) and settings.host != "localhost" and not settings.api_keys:
        log.warning(
            "listening on %s without an API key: everybody in this network can use this model; set POTLUCK_API_KEYS",
            settings.host,
        )
