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
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_node.api.access import is_loopback, rules_of
from gpu_node.api.app import build_app
from gpu_node.api.service import Service
from gpu_node.catalog import Catalog
from gpu_node.durations import FOREVER
from gpu_node.engine.engine import Engine, EngineOptions
from gpu_node.engine.guide import guides_of
from gpu_node.engine.step import ModelRunner
from gpu_node.errors import NodeError, NodeStopping, NoRoom
from gpu_node.host import ModelHost, Stay
from gpu_node.inventory import Gpu, gpus, machine
from gpu_node.listening import Server
from gpu_node.load_wish import LoadWish
from gpu_node.model_source import HubSource, KnownSource, ModelSource, names_of
from gpu_node.model_store import ModelStore
from gpu_node.parent import leave_now, watch_parent
from gpu_node.provision import Provision
from gpu_node.relay_side import Models, RelaySide
from gpu_node.residents import Residents, Start
from gpu_node.settings import NodeSettings
from gpu_node.vram import USABLE_SHARE, Account

log = logging.getLogger("gpu_node")

# A load or a forward cannot be interrupted; after this the process ends around it.
WORKER_SECONDS = 1.0


class Node:
    def __init__(self, settings: NodeSettings, store: ModelStore, models: Path) -> None:
        """`models` is the folder of side-loaded files. Raises `UsageError` for a model that cannot exist."""
        self._settings, self._store = settings, store
        source = store.resolve(settings.model)
        self._main = source
        catalog = Catalog(store, models, source)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        accounts = accounts_of(settings, gpus(visible), machine().available_bytes, _torch_version())
        self.residents = Residents(Start(source, settings.wish), catalog, self._build, accounts)
        rules = rules_of(settings.api_keys, settings.allowed_hosts, settings.allowed_origins)
        store.pushed.recover()
        self._relay = RelaySide(settings, Models(self.residents, catalog, store))
        service = Service(
            self.residents,
            catalog,
            settings.max_body_bytes,
            gpus=lambda: gpus(visible),
            relay=lambda: self._relay.server,
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
        first_load = loop.create_task(self._first_load(server), name="first load")
        await server.serve([listener])
        first_load.cancel()
        (code,) = await asyncio.gather(first_load, return_exceptions=True)
        if self._stopping is not None:
            await asyncio.gather(self._stopping, return_exceptions=True)
        await self._relay.close()
        ended = await self.residents.close(WORKER_SECONDS)
        exit_code = code if isinstance(code, int) else 0
        if not ended:
            leave_now(exit_code)
        return exit_code

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

        provision = Provision(self._store, source, asked, settings.cache)
        return ModelHost(names, provision, engine, wish, stay_of(settings, source is self._main))

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
