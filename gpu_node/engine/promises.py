"""Prefixes that running sequences are computing now, and who waits to reuse them instead of computing them again.

Invariants: every promise has one owner, who keeps or breaks it; whoever is held is given back when it is kept or
broken, exactly once. Must not know blocks or the order of the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_node.engine.block_chain import BlockKey
from gpu_node.engine.sequence_state import SequenceState


@dataclass(slots=True)
class _Promise:
    owner: SequenceState
    held: list[SequenceState] = field(default_factory=list)


@dataclass(slots=True)
class Promises:
    _open: dict[bytes, _Promise] = field(default_factory=dict)
    holding: int = 0

    def make(self, owner: SequenceState, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            self._open.setdefault(key.digest, _Promise(owner))

    def last_promised(self, state: SequenceState, keys: Sequence[BlockKey]) -> BlockKey | None:
        """The end of the run at the front of `keys` that is being computed; None when it is not worth waiting.

        A less senior owner may have to wait itself for all that is more urgent, so its promise counts for nothing.
        """
        last = None
        for key in keys:
            promise = self._open.get(key.digest)
            if promise is None or promise.owner.submission.priority < state.submission.priority:
                break
            last = key
        return last

    def hold(self, state: SequenceState, key: BlockKey) -> None:
        self._open[key.digest].held.append(state)
        state.awaits = key.digest
        self.holding += 1

    def settle(self, owner: SequenceState, keys: Sequence[BlockKey]) -> list[SequenceState]:
        """Kept or broken: who was held for these promises of `owner` may try again."""
        free: list[SequenceState] = []
        for key in keys:
            promise = self._open.get(key.digest)
            if promise is not None and promise.owner is owner:
                del self._open[key.digest]
                free += promise.held
        for state in free:
            state.awaits = None
        self.holding -= len(free)
        return free

    def leave(self, state: SequenceState) -> bool:
        """It gave up. False when it was not held."""
        if state.awaits is None:
            return False
        self._open[state.awaits].held.remove(state)
        state.awaits = None
        self.holding -= 1
        return True

    def everybody(self) -> list[SequenceState]:
        return [state for promise in self._open.values() for state in promise.held]
