"""Puts the relay together: which request is answered by whom, over which models and sessions."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gpu_node.device_fleet import DeviceFleet
from gpu_node.relay import memory
from gpu_node.relay.buffers import BufferSpace, Places
from gpu_node.relay.call import Handler, Handlers
from gpu_node.relay.connection import Reception
from gpu_node.relay.counters import RelayCounters
from gpu_node.relay.embeddings import EmbeddingRequests
from gpu_node.relay.generations import Generations
from gpu_node.relay.loads import Loads
from gpu_node.relay.models import Models
from gpu_node.relay.presence import SessionTerms
from gpu_node.relay.requests import Requests
from gpu_node.relay.runs import Runs
from gpu_node.relay.server import RelayServer, ServerLimits
from gpu_node.relay.sessions import Sessions, Times
from gpu_node.relay.stats import Describe, Listing, StatsRequests
from gpu_node.residents import Residents
from transport.codec import LZ4
from wire.frames import FrameType
from wire.handshake import ServerTerms


@dataclass(frozen=True, slots=True)
class RelayParts:
    """What the relay of a node is made of. `terms` need no capabilities and no times: they are added here."""

    residents: Residents
    catalog: Listing
    terms: ServerTerms
    describe: Describe = lambda name, model, begins_with_bos: ()  # what STATS says besides of one that it is asked for
    sessions: SessionTerms = field(default_factory=SessionTerms)
    limits: ServerLimits = field(default_factory=ServerLimits)
    tls: ssl.SSLContext | None = None
    more: Handlers = field(default_factory=dict)  # besides those that are made here
    clock: Callable[[], float] = time.monotonic  # the engines'
    greeting_seconds: float = 10.0  # for a handshake
    times: Times = field(default_factory=Times)
    fleet: DeviceFleet | None = None  # the devices that models are split over


def relay_of(parts: RelayParts) -> RelayServer:
    """`start` it with listening sockets; from now on sessions hold memory beside the models of `residents`."""
    residents, counters = parts.residents, RelayCounters()
    places = Places()
    sessions = Sessions(
        residents, lambda owner: BufferSpace(owner, residents, places=places), parts.sessions, parts.times
    )
    residents.share_with(sessions)
    handlers = dict(handlers_of(parts))
    server = RelayServer(
        Reception(_terms(parts), sessions, Requests(handlers, sessions, counters), counters, parts.greeting_seconds),
        parts.limits,
        parts.tls,
    )
    stats = StatsRequests(residents, parts.catalog, lambda: server.figures, parts.describe, parts.fleet)
    handlers[FrameType.STATS] = stats.handle
    return server


def handlers_of(parts: RelayParts) -> Mapping[FrameType, Handler]:
    models = Models(parts.residents)
    loads = Loads(models)
    return {
        FrameType.LOAD: loads.load,
        FrameType.UNLOAD: loads.unload,
        FrameType.GENERATE: Generations(models, parts.clock).handle,
        FrameType.EMBED: EmbeddingRequests(models).handle,
        FrameType.ALLOC: memory.alloc,
        FrameType.FREE: memory.free,
        FrameType.WRITE: memory.write,
        FrameType.READ: memory.read,
        FrameType.RUN: Runs(models).handle,
        **parts.more,
    }


def _terms(parts: RelayParts) -> ServerTerms:
    return replace(
        parts.terms,
        capabilities=(LZ4,),
        idle_seconds=round(parts.sessions.idle_seconds),
        grace_seconds=round(parts.sessions.grace_seconds),
    )
