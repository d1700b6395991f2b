"""Models that sessions want in memory until they give them back.

Invariants: while one session wants a model its time does not run out; when the last one has given it back it leaves,
unless the node keeps it anyway or the session wished otherwise. Must not know connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpu_node.host import ModelHost
from gpu_node.residents import Residents


@dataclass(frozen=True, slots=True)
class Hold:
    host: ModelHost
    keep_alive_seconds: float | None = None  # how long it stays when the session has ended


class Holds:
    """Those of one session."""

    def __init__(self, residents: Residents, owner: str) -> None:
        self._residents, self._owner = residents, owner
        self._held: dict[str, Hold] = {}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._held)

    def find(self, name: str) -> Hold | None:
        return next((hold for hold in self._held.values() if hold.host.serves(name)), None)

    def take(self, host: ModelHost, keep_alive_seconds: float | None = None) -> None:
        """No await between this and the moment at which the model was seen to be there."""
        host.owners.add(self._owner)
        self._held[host.name] = Hold(host, keep_alive_seconds)

    def drop(self, hold: Hold) -> None:
        """Only the hold; the model stays or goes as others wish."""
        hold.host.owners.discard(self._owner)
        if self._held.get(hold.host.name) is hold:
            del self._held[hold.host.name]

    async def give_back(self, hold: Hold) -> int:
        """As soon as nobody uses it, it leaves, unless others want it. Bytes that are free now."""
        host = hold.host
        self.drop(hold)
        if host.owners or host.kept or host.engine.runner is None:
            return 0
        size = host.held.total_bytes
        return size if await self._residents.unload(host) else 0

    def drop_all(self) -> tuple[Hold, ...]:
        """The session is over; `leave_behind` says what happens to each of them."""
        holds = tuple(self._held.values())
        for hold in holds:
            self.drop(hold)
        return holds

    async def leave_behind(self, holds: tuple[Hold, ...]) -> None:
        for hold in _wanted_by_nobody(holds):
            host, seconds = hold.host, hold.keep_alive_seconds
            if seconds is None:
                await self._residents.unload(host)
            elif host.ready and not host.leaving:
                await self._residents.load(host, seconds)  # it is there: only its time begins


def _wanted_by_nobody(holds: tuple[Hold, ...]) -> Iterator[Hold]:
    for hold in holds:
        if not hold.host.owners and not hold.host.kept and hold.host.engine.runner is not None:
            yield hold
