"""The parts that a worker holds: the one that computes, the next one, and what is on its way out.

Invariants: what two parts share is counted once, and a budget counts every tensor of weights and cache that is alive;
a part is closed once nobody computes with it. From any thread. Must not know links.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpu_node.errors import DeviceOutOfMemory
from gpu_node.pipeline.orders import Load
from gpu_node.pipeline.part_loading import Earlier, LoadedPart


class NoRoomBeside(DeviceOutOfMemory):
    """It does not fit beside the part that computes; without that it may."""


class Parts:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: LoadedPart | None = None
        self._next: LoadedPart | None = None
        self._leaving: list[LoadedPart] = []
        self._rest: Earlier | None = None
        self.beside: Callable[[], int] = lambda: 0  # bytes that are lent to others, of the same budget

    @property
    def spare_bytes(self) -> int | None:
        """What the budget of the current part leaves; None: nothing was stated."""
        current = self._current
        if current is None or current.order.budget_bytes is None:
            return None
        return max(current.order.budget_bytes - self.weights_bytes - self.cache_bytes - self.beside(), 0)

    @property
    def current(self) -> LoadedPart | None:
        return self._current

    @property
    def weights_bytes(self) -> int:
        with self._lock:
            return sum(self._tables().values())

    @property
    def cache_bytes(self) -> int:
        with self._lock:
            return sum(each.part.cache_bytes for each in self._alive())

    @property
    def earlier(self) -> Earlier | None:
        """What the next part may be made of."""
        with self._lock:
            current = self._current
            model = None if current is None else current.part.assembled
            if current is None or model is None:
                return self._rest
            return Earlier(current.order, current.marks, model)

    def ready(self, loaded: LoadedPart) -> None:
        """It is the next one. What was left of the one before is in it, or of no use any more."""
        with self._lock:
            self._next, self._rest = loaded, None

    def choose(self, number: int) -> LoadedPart | None:
        """The part of that Load is the current one from now on; None where there is none."""
        with self._lock:
            if self._current is not None and self._current.order.number == number:
                return self._current
            if self._next is None or self._next.order.number != number:
                return None
            if self._current is not None:
                self._leaving.append(self._current)
            self._current, self._next = self._next, None
            return self._current

    def forget_next(self) -> None:
        with self._lock:
            if self._next is not None:
                self._next.part.close()
            self._next = None

    def shrink(self, order: Load) -> None:
        """Let the current part and its cache go, but for weights that `order` needs. Nobody computes with it."""
        with self._lock:
            current, self._current = self._current, None
            model = None if current is None else current.part.assembled
            if current is not None and model is not None:
                self._rest = Earlier(current.order, current.marks, model.within((order.first, order.behind)))
                self._leaving.append(current)
        self.drop_leaving()

    def drop_leaving(self) -> None:
        """Nobody computes with what was current before."""
        with self._lock:
            for each in self._leaving:
                each.part.close()
            self._leaving.clear()

    def close(self) -> None:
        self.forget_next()
        with self._lock:
            self._leaving += [] if self._current is None else [self._current]
            self._current = self._rest = None
        self.drop_leaving()

    def check_load(self, order: Load, more_bytes: int) -> None:
        """Raises `NoRoomBeside` or `DeviceOutOfMemory` where so much more is beyond the budget."""
        with self._lock:
            held = sum(self._tables().values()) + self.beside()
            cache = sum(each.part.cache_bytes for each in self._alive())
            beside = self._current is not None
        total = held + cache + more_bytes
        if order.budget_bytes is None or total <= order.budget_bytes:
            return
        kind = NoRoomBeside if beside else DeviceOutOfMemory
        raise kind(
            f"layers {order.first} to {order.behind - 1} take {more_bytes:,} bytes beside {held:,} of weights and "
            f"{cache:,} of cache, and all may take {order.budget_bytes:,}"
        )

    def check_cache(self, chosen: LoadedPart, cache_bytes: int) -> None:
        """Raises as `check_load` where a cache of this size is beyond the budget of the part that gets it."""
        with self._lock:
            held = sum(self._tables().values()) + self.beside()
            beside = self._next is not None
        budget = chosen.order.budget_bytes
        if budget is None or held + cache_bytes <= budget:
            return
        kind = NoRoomBeside if beside else DeviceOutOfMemory
        raise kind(f"{held:,} bytes of weights and {cache_bytes:,} of cache are more than {budget:,}")

    def _alive(self) -> list[LoadedPart]:
        return [each for each in (self._current, self._next, *self._leaving) if each is not None]

    def _tables(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for each in self._alive():
            model = each.part.assembled
            found |= {} if model is None else model.tables
        return found if self._rest is None else found | self._rest.model.tables
