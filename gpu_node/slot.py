"""How many requests one model may have at a time: those that run and a bounded number that wait.

Which of them runs is the engine's business; here a client beyond the bound is refused at once, and one that leaves
gives its place up at once. Must not know models or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpu_node.errors import NodeBusy


class Slots:
    def __init__(self, running: int, max_waiting: int) -> None:
        self.running, self.max_waiting = running, max_waiting
        self._inside = 0

    @property
    def inside(self) -> int:
        return self._inside

    @property
    def busy(self) -> bool:
        return self._inside > 0

    @property
    def waiting(self) -> int:
        """At least so many of those inside cannot be running."""
        return max(self._inside - self.running, 0)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Raises `NodeBusy` when as many wait as may."""
        if self._inside >= self.running + self.max_waiting:
            raise NodeBusy()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
