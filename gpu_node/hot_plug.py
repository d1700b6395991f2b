"""Looks every few seconds which cards this machine has and how much memory is free, and tells the fleet.

A card is known by its identity (the driver's UUID), not by its place in the list: where one is pulled out, the others
move up, and keep their names here. Invariants: a look that fails or hangs loses no device, and holds up nothing but
the next look; CPUs never go. Must not know plans or who uses the devices.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from gpu_node.device_fleet import DeviceFleet
from gpu_node.inventory import Gpu, Machine

# The driver answers in milliseconds; somebody who plugs a device in waits for seconds anyway.
PROBE_SECONDS = 5.0
# How exactly the pauses of lost devices are kept.
TICK_SECONDS = 1.0
# The driver answers in milliseconds, or is broken.
STOP_SECONDS = 2.0

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
    """`gpus`: those that this node may use, in order. `look` is one look; `start` and `stop` run it in a thread, and
    beside it, in another one that no driver can hold up, what waits for time to pass."""

    def __init__(
        self,
        fleet: DeviceFleet,
        gpus: Callable[[], Sequence[Gpu]],
        machine: Callable[[], Machine],
        found: Sequence[Gpu] = (),
    ) -> None:
        """`found`: cards that were seen already, and have their names by that."""
        self._fleet, self._gpus, self._machine = fleet, gpus, machine
        self._cards = looked(Cards(), found, machine())
        self._failing = False
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def cards(self) -> Cards:
        return self._cards

    def identity(self, card: str) -> str | None:
        """From any thread: what the driver calls that card; None: it was never seen."""
        return self._cards.identity(card)

    def look(self) -> None:
        try:
            self._cards = looked(self._cards, self._gpus(), self._machine())
        except Exception:  # a driver in the middle of an update: what was known stays known
            if not self._failing:
                log.exception("the devices of this machine cannot be looked at; it is tried again")
            self._failing = True
            return
        self._failing = False
        self._fleet.tick(self._cards.free_bytes)

    def start(self) -> None:
        """The first look is made at once."""
        for name, work, seconds in (
            ("hot plug", self.look, PROBE_SECONDS),
            ("device pauses", self._tick, TICK_SECONDS),
        ):
            thread = threading.Thread(target=self._run, args=(work, seconds), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """A look that hangs in the driver is not waited for long: its thread ends with the process then."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _tick(self) -> None:
        self._fleet.tick()

    def _run(self, work: Callable[[], None], seconds: float) -> None:
        work()
        while not self._stopping.wait(seconds):
            work()
