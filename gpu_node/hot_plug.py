"""Looks every few seconds which cards this machine has and how much memory is free, and tells the fleet.

A card is known by its identity (the driver's UUID), not by its place in the list: where one is pulled out, the others
move up, and keep their names here. Invariants: a probe that fails or hangs loses no device and stops nothing but the
probing; CPUs never go. Must not know plans or who uses the devices.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from gpu_node.device_fleet import DeviceFleet
from gpu_node.inventory import Gpu, Machine

# The driver answers in milliseconds; somebody who plugs a device in waits for seconds anyway.
PROBE_SECONDS = 5.0
# How exactly the pauses of lost devices are kept.
TICK_SECONDS = 1.0

log = logging.getLogger("gpu_node.devices")


@dataclass(frozen=True, slots=True)
class Cards:
    """Names by identity, and what the last look found free. A name is never given to another card."""

    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    free_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def identity(self, card: str) -> str | None:
        """What a worker's list of visible devices is to say, whatever place the card has by now."""
        return next((identity for identity, name in self.names.items() if name == card), None)


def looked(cards: Cards, found: Sequence[Gpu], machine: Machine) -> Cards:
    """What is known after another look. The first one names cards by their places, as torch counts them."""
    names = dict(cards.names)
    for place, gpu in enumerate(found):
        if gpu.uuid not in names:
            names[gpu.uuid] = _name(place, set(names.values()))
    free = {names[gpu.uuid]: gpu.free_bytes for gpu in found}
    return replace(cards, names=names, free_bytes={"cpu": machine.available_bytes, **free})


def _name(place: int, taken: set[str]) -> str:
    """Its place, unless a card that was here before has that number."""
    return next(name for name in (f"cuda:{place + more}" for more in range(len(taken) + 1)) if name not in taken)


class HotPlug:
    """`gpus`: those that this node may use, in order. `poll` is one look; `start` and `stop` run it in a thread."""

    def __init__(
        self,
        fleet: DeviceFleet,
        gpus: Callable[[], Sequence[Gpu]],
        machine: Callable[[], Machine],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._gpus, self._machine, self._clock = fleet, gpus, machine, clock
        self._cards = Cards()
        self._next_probe = clock()
        self._failing = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def cards(self) -> Cards:
        return self._cards

    def poll(self) -> None:
        """The pauses of lost devices every time, a probe when it is due."""
        now = self._clock()
        if now < self._next_probe:
            self._fleet.tick()
            return
        self._next_probe = now + PROBE_SECONDS
        try:
            self._cards = looked(self._cards, self._gpus(), self._machine())
        except Exception:  # a driver in the middle of an update: what was known stays known
            if not self._failing:
                log.exception("the devices of this machine cannot be looked at; it is tried again")
            self._failing = True
            self._fleet.tick()
            return
        self._failing = False
        self._fleet.tick(self._cards.free_bytes)

    def start(self) -> None:
        """Looks once before it returns, so that free memory is known."""
        self.poll()
        self._thread = threading.Thread(target=self._run, name="hot plug", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """A probe that hangs in the driver is not waited for long: the thread ends with the process then."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(TICK_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(TICK_SECONDS):
            self.poll()
