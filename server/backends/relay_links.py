"""One session with each relay node, shared by all that is asked of it: made at first use, kept while it is used.

The session connects, keeps the connection alive and mends it by itself. Here it only gets its place, its token and its
TLS, which come from the node's entry; a changed entry is a new session. One that nobody has used for a while is
closed: probes use every listed node's, so its node has left the fleet.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from server.backends.node_keys import token_of
from server.backends.relay_answer import translated
from server.backends.relay_report import parameters_of
from server.errors import NodeBroken, NodeStalled, NodeUnreachable
from server.nodes import ModelKey, NodeSpec, model_key
from transport.pauses import PausePolicy
from transport.places import Access, Place
from transport.session import RelaySession, SessionSettings
from wire.messages_stats import Stats

CLIENT_NAME = "potluck gateway"
IDLE_SECONDS = 60.0  # probes come every few seconds
SWEEP_SECONDS = 30.0
# A node that nobody listens at any more has lost its sessions: whoever waits goes on elsewhere at once.
PAUSES = PausePolicy(when_refused=False)

LineKey = tuple[str, int, str | None, bool, str | None]
Make = Callable[[Place, Access, SessionSettings], RelaySession]


@dataclass(slots=True)
class Line:
    """The session with one node, and what the node told last of its models: parameters, digests."""

    address: str
    session: RelaySession
    users: int = 0
    used_at: float = 0.0
    _parameters: Mapping[ModelKey, Mapping[str, Any]] | None = field(default=None, init=False)
    _digests: Mapping[ModelKey, str] = field(default_factory=dict, init=False)

    @property
    def node_id(self) -> str:
        """As the node has it now; empty while there is no connection."""
        link = self.session.connected
        return link.welcome.node_id.hex() if link is not None else ""

    @property
    def incarnation(self) -> int | None:
        """Tells one run of the node from the next; None while there is no connection."""
        link = self.session.connected
        return link.welcome.incarnation if link is not None else None

    def digest(self, model: str) -> str:
        """As it was told last; empty where it was not."""
        return self._digests.get(model_key(model), "")

    async def stats(self, timeout_seconds: float, phase: str, model: str = "") -> Stats:
        """What the node tells of itself, and of the model that is named. Raises NodeError."""
        with translated(self.address):
            try:
                async with asyncio.timeout(timeout_seconds):
                    answer = await self.session.ask(Stats((("model", model),) if model else ()))
            except TimeoutError as problem:
                message = f"{self.address} did not tell its state within {timeout_seconds:g} s"
                raise NodeStalled(message, phase) from problem
        if not isinstance(answer, Stats):
            raise NodeBroken(f"{self.address} answered STATS with {type(answer).__name__}")
        self._parameters = parameters_of(answer)
        self._digests = {model_key(model.name): model.digest for model in answer.models}
        return answer

    async def parameters(self, model: str, timeout_seconds: float) -> Mapping[str, Any]:
        """What the model's maker wants where a request says nothing; known from the last probe, else asked."""
        if self._parameters is None:
            await self.stats(timeout_seconds, "connect")
        return (self._parameters or {}).get(model_key(model), {})


class RelayLinks:
    """Lives on one event loop. `secrets` maps names of variables to tokens; close with `aclose`."""

    def __init__(self, secrets: Mapping[str, str], make: Make = RelaySession) -> None:
        self._secrets, self._make = secrets, make
        self._lines: dict[LineKey, Line] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._swept_at = 0.0

    @contextmanager
    def line(self, spec: NodeSpec) -> Iterator[Line]:
        """The node's line, which is not closed meanwhile. Raises NodeUnreachable where its entry cannot be used."""
        token = token_of(spec, self._secrets)
        key = (spec.host, spec.port, token, spec.tls, spec.tls_file)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(spec.address, self._new(spec, token))
        line.users += 1
        try:
            yield line
        finally:
            line.users -= 1
            line.used_at = now = asyncio.get_running_loop().time()
            if now > self._swept_at + SWEEP_SECONDS:
                self._sweep(now)

    async def aclose(self) -> None:
        """Close every session and see it closed."""
        lines, self._lines = list(self._lines.values()), {}
        await asyncio.gather(*(line.session.close() for line in lines), *self._closing)

    def _new(self, spec: NodeSpec, token: str | None) -> RelaySession:
        access = Access(token, _trust_of(spec))
        return self._make(Place(spec.host, spec.port), access, SessionSettings(name=CLIENT_NAME, pauses=PAUSES))

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        for key, line in list(self._lines.items()):
            if not line.users and now > line.used_at + IDLE_SECONDS:
                del self._lines[key]
                closing = asyncio.create_task(line.session.close(), name=f"leave {key[0]}")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)


def _trust_of(spec: NodeSpec) -> ssl.SSLContext | None:
    """What is trusted to be the node: a certificate for its host, by the system's authorities or the entry's file."""
    if not spec.tls:
        return None
    try:
        return ssl.create_default_context(cafile=spec.tls_file)
    except (OSError, ValueError) as problem:  # ssl.SSLError is an OSError
        raise NodeUnreachable(
            f"{spec.name}: the certificates in {spec.tls_file} cannot be used: {problem}"
        ) from problem
