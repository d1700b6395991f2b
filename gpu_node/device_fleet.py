"""The devices of this node for everybody at once: one table, changed by any thread, and who is told of it.

Whoever splits a model reads `present()` (what a plan is to be made over), tells with `hold` what the model holds of
each device after every switch, with `lost` that a worker died, and with `refuse` that no plan can do what was asked of
a device. From this the fleet knows when one that leaves has drained. Invariants: watchers are called outside the lock,
and one that raises harms nobody; what happened is kept, bounded.
Must not know torch, plans, HTTP or how memory is measured.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpu_node.device_changes import Add, Ask, Event, Hold, Lose, Recover, Refuse, Remove, Resize, See, Wait, after
from gpu_node.device_table import DeviceState, DeviceTable, FleetDevice, Happening, Outcome, listed
from gpu_node.devices import Device, parse_devices
from gpu_node.errors import RequestError
from gpu_node.pipeline_status import DeviceEvent, EventKind

__all__ = ["DeviceFleet", "DeviceState", "DeviceTable", "FleetDevice", "one_device"]

# A day of plugging fits, and a device that fails again and again does not fill the memory.
EVENTS_KEPT = 256

log = logging.getLogger("gpu_node.devices")


@dataclass(slots=True, eq=False)
class _Watcher:
    callback: Callable[[], None]
    every: bool


class DeviceFleet:
    def __init__(
        self,
        devices: Sequence[Device],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        joins: bool = False,
    ) -> None:
        """`joins`: cards that the probe has not seen before are taken in. `wall`: seconds since 1970."""
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._watchers: tuple[_Watcher, ...] = ()
        self._events: deque[DeviceEvent] = deque(maxlen=EVENTS_KEPT)
        self._event_counts: Counter[str] = Counter()
        self._table, happened = listed(tuple(devices), clock(), joins)
        self._keep(happened)

    @property
    def table(self) -> DeviceTable:
        return self._table

    @property
    def now(self) -> float:
        """On the clock of its devices' times."""
        return self._clock()

    @property
    def epoch(self) -> int:
        """Grows whenever a new plan could come out differently."""
        return self._table.epoch

    @property
    def events(self) -> tuple[DeviceEvent, ...]:
        """The latest last."""
        with self._lock:
            return tuple(self._events)

    @property
    def event_counts(self) -> Mapping[str, int]:
        """How often each has happened, also those that are not kept any more."""
        with self._lock:
            return dict(self._event_counts)

    def present(self) -> tuple[Device, ...]:
        """What plans are made over: as large as they are to be, without those that leave."""
        return self._table.present

    @property
    def devices(self) -> tuple[FleetDevice, ...]:
        """All, also those that went."""
        return self._table.devices

    def find(self, name: str) -> FleetDevice | None:
        return self._table.find(name)

    def free_bytes(self) -> Mapping[str, int]:
        """By card, as the last probe saw it."""
        return {one.device.card: one.free_bytes for one in self._table.devices if one.free_bytes is not None}

    # What people ask for. Raises `UsageError` (bad text) and `RequestError` (with its status).

    def add(self, text: str, available_bytes: int | None = None, free_bytes: int | None = None) -> Device:
        """One device as `parse_devices` reads it. `available_bytes` of main memory bound budgets of CPUs; `free_bytes`
        of the card are what plans count with until the next look."""
        table, (joined,) = self._change(Add(one_device(text), available_bytes, free_bytes))
        return table.named(joined.device).device

    def ask(self, name: str, available_bytes: int | None = None) -> Device:
        """One that was lost, is leaving, or went comes back."""
        return self._change(Ask(name, available_bytes))[0].named(name).device

    def remove(self, name: str, force: bool = False) -> FleetDevice:
        """It leaves, once nothing is held there any more. `force`: also if the models end with an error by it."""
        return self._change(Remove(name, force))[0].named(name)

    def resize(self, name: str, budget_bytes: int, available_bytes: int | None = None) -> FleetDevice:
        """At once, or (`wanted_bytes`) when a new plan has made room."""
        return self._change(Resize(name, budget_bytes, available_bytes))[0].named(name)

    # What those tell who use the devices. Of devices that are not here any more, nothing comes of it.

    def lost(self, name: str, reason: str) -> None:
        """A worker died, froze or could not be started. The device comes back by itself after a growing pause."""
        self._change(Lose(name, reason))

    def recovered(self, name: str) -> None:
        """It was seen at work again, before its pause was over."""
        self._change(Recover(name))

    def refuse(self, name: str, reason: str) -> None:
        """No plan can do without it (it stays), make do with less of it, or has a use for it: the sentence says why."""
        self._change(Refuse(name, reason))

    def hold(self, model: str, held_bytes: Mapping[str, int]) -> None:
        """All that a model holds from now on, by device: what counts against the budget. Empty: it is unloaded."""
        self._change(Hold(model, tuple(held_bytes.items())))

    def left(self, name: str, model: str | None = None) -> None:
        """The model, or every one, holds nothing of this device any more."""
        found = self._table.find(name)
        for other in {one for one, _ in found.held} if found else ():
            if model in (None, other):
                holds = {one.name: dict(one.held)[other] for one in self._table.devices if other in dict(one.held)}
                self.hold(other, {kept: size for kept, size in holds.items() if kept != name})

    def note(self, device: str, what: EventKind, detail: str = "") -> None:
        """Something worth telling that changes no device, as a plan that has taken over."""
        with self._lock:
            self._keep((Happening(device, what, detail),))

    def tick(self, free_bytes: Mapping[str, int] | None = None) -> None:
        """From time to time, with what a probe saw (free bytes by card), if one was made."""
        self._change(Wait() if free_bytes is None else See(tuple(free_bytes.items())))

    def watch(self, callback: Callable[[], None], every: bool = False) -> Callable[[], None]:
        """Called, in the thread of whoever changed it, whenever a new plan could come out differently; with `every`
        also when anything else than free memory has changed. What comes back ends it."""
        watcher = _Watcher(callback, every)
        with self._lock:
            self._watchers += (watcher,)

        def unwatch() -> None:
            with self._lock:
                self._watchers = tuple(one for one in self._watchers if one is not watcher)

        return unwatch

    def _change(self, event: Event) -> Outcome:
        with self._lock:
            before = self._table
            table, happened = after(before, event, self._clock())
            self._table = table
            self._keep(happened)
            watchers = self._watchers
        planned = table.epoch != before.epoch
        if planned or happened or isinstance(event, Hold):
            for watcher in watchers:
                if planned or watcher.every:
                    _tell(watcher)
        return table, happened

    def _keep(self, happened: Sequence[Happening]) -> None:
        for one in happened:
            self._event_counts[one.what] += 1
            self._events.append(DeviceEvent(self._wall(), one.device, one.what, one.detail))
            log.info("device %s: %s%s", one.device, one.what, f" ({one.detail})" if one.detail else "")


def one_device(text: str) -> Device:
    """Raises `UsageError` with the sentence of `parse_devices`, `RequestError` where there are several."""
    devices = parse_devices(text)
    if len(devices) > 1:
        raise RequestError("one device at a time", field="device")
    return devices[0]


def _tell(watcher: _Watcher) -> None:
    try:
        watcher.callback()
    except Exception:  # the others are to know of it all the same
        log.exception("a watcher of the devices failed")
