"""The relay as a part of the node: made from the settings, started on its socket, drained and closed with the node.

Invariants: the node is announced while its relay takes clients, and no longer; what ends, ends in bounded time. Must
not know what requests mean.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass

from gpu_node.announce import Announcer
from gpu_node.announcement import RelayPlace, standing_of
from gpu_node.catalog import Catalog
from gpu_node.certificates import server_context
from gpu_node.device_fleet import DeviceFleet
from gpu_node.errors import ModelError
from gpu_node.identity import identity_of
from gpu_node.model_store import ModelStore
from gpu_node.relay.assembly import RelayParts, relay_of
from gpu_node.relay.presence import SessionTerms
from gpu_node.relay.pushes import Pushes
from gpu_node.relay.server import RelayServer, ServerLimits
from gpu_node.relay_descriptions import description_of
from gpu_node.residents import Residents
from gpu_node.settings import NodeSettings
from gpu_node.staging import STALE_SECONDS, Staging, StagingRules
from wire.frames import FrameType
from wire.handshake import ServerTerms

log = logging.getLogger("gpu_node")

# Whoever stops services gives them about ten seconds; the HTTP side wants some of them.
DRAIN_SECONDS = 5.0
# As good as never, and every timer can bear it.
LONGEST_IDLE_SECONDS = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Models:
    """What the node serves."""

    residents: Residents
    catalog: Catalog
    store: ModelStore
    fleet: DeviceFleet | None = None  # the devices that models are split over


class RelaySide:
    def __init__(self, settings: NodeSettings, models: Models) -> None:
        """Raises `UsageError` for certificates that cannot be used."""
        self._settings, self._models = settings, models
        certificate = settings.tls_certificate
        self._tls = server_context(certificate, settings.tls_key) if certificate is not None else None
        rules = StagingRules(limit_bytes=settings.push_limit)
        self._staging = None if settings.no_push else Staging(models.store.pushed, rules)
        self._tidying: asyncio.Future[None] | None = None
        self._announcer: Announcer | None = None
        self.server: RelayServer | None = None
        self.port: int | None = None

    async def start(self, listener: socket.socket) -> None:
        """The socket is the relay's from now on."""
        settings, models = self._settings, self._models
        host, self.port = listener.getsockname()[:2]
        # One that was moved to another port shares its machine, and maybe its cache, with one that was not.
        kept = settings.relay_port if self.port == settings.relay_port else 0
        identity = identity_of(settings.cache, (settings.host, kept), settings.name)
        terms = ServerTerms(
            identity.name, settings.token or None, node_id=identity.node_id, incarnation=identity.incarnation
        )
        idle = min(settings.session_idle, LONGEST_IDLE_SECONDS)
        pushes = Pushes(self._staging, models.catalog.is_taken, self._arrived)
        self.server = relay_of(
            RelayParts(
                models.residents,
                models.catalog,
                terms,
                description_of,
                sessions=SessionTerms(idle_seconds=idle, grace_seconds=settings.session_grace),
                limits=ServerLimits(drain_seconds=DRAIN_SECONDS),
                tls=self._tls,
                more={FrameType.PUSH: pushes.handle},
                fleet=models.fleet,
            )
        )
        self.server.start([listener])
        if self._staging is not None:
            self._tidying = asyncio.ensure_future(asyncio.to_thread(self._staging.sweep, STALE_SECONDS))
        if settings.announces:
            place = RelayPlace(host.partition("%")[0], self.port, tls=self._tls is not None)
            self._announcer = Announcer(identity, place, lambda: standing_of(models.residents), settings.token or None)
            await self._announcer.start()

    async def drain(self) -> None:
        """Nobody finds or enters it any more; answers under way have a while to end."""
        await self._leave()
        if self.server is not None:
            await self.server.drain()

    async def close(self) -> None:
        await self._leave()
        if self.server is not None:
            await self.server.close()
        if self._tidying is not None:
            await asyncio.wait([self._tidying])

    async def _leave(self) -> None:
        announcer, self._announcer = self._announcer, None
        if announcer is not None:
            await announcer.stop()

    async def _arrived(self, model: str) -> None:
        """A model has new files: it is listed from now on, and whoever asks next gets them."""
        residents, store = self._models.residents, self._models.store
        source = store.pushed.find(model)
        if source is not None:
            try:
                await asyncio.to_thread(store.provide, source)
            except ModelError as error:
                log.warning("%s was pushed, and cannot be used: %s", model, error)
        host = next((host for host in residents.hosts if host.serves(model)), None)
        if host is None:
            return
        await residents.unload(host)
        if host.state in ("empty", "failed"):
            host.description = None  # it is read anew with the files
