"""The composition root: builds store, engine, host and API from the settings, serves them, and ends them in order.

Listening begins at once; the model loads meanwhile. The first load failing for good ends the node with exit code 1.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from pathlib import Path

from gpu_node.api.access import is_loopback, rules_of
from gpu_node.api.app import build_app
from gpu_node.engine.engine import Engine, ModelRunner
from gpu_node.errors import ModelError, NodeError, NodeStopping
from gpu_node.fetching import fetch_in_child
from gpu_node.host import ModelHost
from gpu_node.listening import Server
from gpu_node.model_source import names_of
from gpu_node.model_store import ModelStore
from gpu_node.parent import leave_now, watch_parent
from gpu_node.settings import NodeSettings

log = logging.getLogger("gpu_node")

# A load or a forward cannot be interrupted; after this the process ends around it.
WORKER_SECONDS = 1.0


class Node:
    def __init__(self, settings: NodeSettings, store: ModelStore) -> None:
        """Raises `UsageError` for a model that cannot exist."""
        self._settings, self._store = settings, store
        self._source = store.resolve(settings.model)
        self._folder: Path | None = None
        self.host = ModelHost(
            Engine(self._load, self._prepare),
            names_of(self._source),
            settings.keep_alive,
            settings.max_queue,
            context_wanted=settings.context,
        )
        rules = rules_of(settings.api_keys, settings.allowed_hosts, settings.allowed_origins)
        self.app = build_app(self.host, rules, settings.max_body_bytes)

    async def run(self, listener: socket.socket) -> int:
        """Serve until told to stop; returns the exit code."""
        server = Server(self.app, on_listening=self._announce, on_stop=self.host.engine.stop)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        if self._settings.exit_with_parent:
            watch_parent(loop, server.stop)
        first_load = loop.create_task(self._first_load(server), name="first load")
        await server.serve([listener])
        first_load.cancel()
        (code,) = await asyncio.gather(first_load, return_exceptions=True)
        ended = await self.host.close(WORKER_SECONDS)
        exit_code = code if isinstance(code, int) else 0
        if not ended:
            leave_now(exit_code)
        return exit_code

    async def _first_load(self, server: Server) -> int:
        try:
            await self.host.start()
        except NodeStopping:
            return 0
        except NodeError as error:
            log.error("%s", error)
            server.stop()
            return 1
        description = self.host.description
        log.info(
            "%s is loaded (%s parameters, %s, context %d)",
            self.host.name,
            description.parameter_size if description else "?",
            self.host.engine.runner.device if self.host.engine.runner else "?",
            self.host.context_tokens,
        )
        return 0

    async def _prepare(self) -> None:
        folder = await asyncio.to_thread(self._store.find, self._source)
        if folder is None:
            await fetch_in_child(self._settings.model, self._settings.cache)
            folder = await asyncio.to_thread(self._store.find, self._source)
        if folder is None:
            raise ModelError(f"{self.host.name} was fetched but is not there")
        self._folder = folder
        self.host.description = await asyncio.to_thread(self._store.describe, self._source, folder)
        log.info("loading %s", self.host.name)

    def _load(self) -> ModelRunner:
        """In the worker thread: importing torch takes seconds."""
        from gpu_node.engine.loader import LoadOptions, load_runner

        description, settings = self.host.description, self._settings
        assert self._folder is not None and description is not None, "prepared before"
        options = LoadOptions(settings.device, settings.dtype, settings.threads, description.template)
        return load_runner(self._folder, options)

    def _announce(self, host: str, port: int) -> None:
        log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if self._settings.announce_port:
            event = {"event": "listening", "host": host, "port": port, "model": self.host.name}
            print(json.dumps(event), flush=True)


def warn_when_exposed(settings: NodeSettings) -> None:
    if not is_loopback(settings.host) and settings.host != "localhost" and not settings.api_keys:
        log.warning(
            "listening on %s without an API key: everybody in this network can use this model; set POTLUCK_API_KEYS",
            settings.host,
        )
