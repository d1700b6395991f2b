"""The devices that a node's models may be split over, as a value: who is in which state, and what comes after it.

Invariants: a device is in exactly one state; names are unique, and one that went keeps its name until it is forgotten;
what a model holds of a device is told by who holds it, never guessed. `device_changes.after` is the way from one table
to the next. Must not know torch, processes, HTTP or how memory is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from gpu_node.devices import Device
from gpu_node.errors import RequestError
from gpu_node.pipeline_status import EventKind
from gpu_node.plan_picture import size_text

DeviceState = Literal["present", "lost", "leaving", "gone"]
STATES: tuple[DeviceState, ...] = get_args(DeviceState)

# Devices that went stay in the list for people to see, so many of them.
MOST_GONE = 32
# A driver that answers once without a card has not lost it.
PROBES_WITHOUT = 2


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """Times are of the table's clock."""

    device: Device
    state: DeviceState = "present"
    since: float = 0.0
    losses: int = 0  # all of them
    lost_at: tuple[float, ...] = ()  # those that still count
    until: float | None = None  # lost: when it is tried again; none: not by itself
    reason: str = ""  # why it is lost, or why the last thing asked of it was refused
    free_bytes: int | None = None  # what the last probe saw; none: no probe has seen it
    wanted_bytes: int | None = None  # a smaller budget that a new plan has to make room for first
    forced: bool = False  # leaving: whatever becomes of the models
    unseen: int = 0  # probes in a row that did not see it
    held: tuple[tuple[str, int], ...] = ()  # (model, bytes of the budget)

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def held_bytes(self) -> int:
        return sum(size for _, size in self.held)

    @property
    def vanished(self) -> bool:
        """Lost because the machine does not show it any more."""
        return self.state == "lost" and self.unseen >= PROBES_WITHOUT

    @property
    def planned(self) -> Device:
        """As plans are to take it: a smaller budget that was asked for counts already."""
        return self.device if self.wanted_bytes is None else replace(self.device, budget_bytes=self.wanted_bytes)


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """`joins`: cards that the probe sees for the first time are taken in."""

    devices: tuple[FleetDevice, ...] = ()
    joins: bool = False
    epoch: int = 0  # of what plans are made over: those present, and those that leave

    @property
    def present(self) -> tuple[Device, ...]:
        return tuple(one.planned for one in self.devices if one.state == "present")

    @property
    def around(self) -> tuple[FleetDevice, ...]:
        return tuple(one for one in self.devices if one.state != "gone")

    def find(self, name: str) -> FleetDevice | None:
        return next((one for one in self.devices if one.name == name), None)

    def named(self, name: str) -> FleetDevice:
        """Raises `RequestError` (404)."""
        found = self.find(name)
        if found is None:
            names = ", ".join(one.name for one in self.around) or "none"
            raise RequestError(f"there is no device {name} here; there are {names}", status=404, field="name")
        return found

    def cpu_room(self, available_bytes: int) -> int:
        """Of main memory that is available, what no budget may still fill."""
        cpus = [one for one in self.around if one.device.kind == "cpu" and one.device.budget_bytes is not None]
        return available_bytes - sum(max((one.device.budget_bytes or 0) - one.held_bytes, 0) for one in cpus)


@dataclass(frozen=True, slots=True)
class Happening:
    device: str
    what: EventKind
    detail: str = ""


Outcome = tuple[DeviceTable, tuple[Happening, ...]]

# What a word makes of a device. Words that a state lacks change nothing, or are refused where a person said them.
NEXT: dict[tuple[DeviceState, str], DeviceState] = {
    ("present", "remove"): "leaving",
    ("present", "lose"): "lost",
    ("lost", "return"): "present",
    ("lost", "ask"): "present",
    ("lost", "remove"): "gone",
    ("leaving", "ask"): "present",
    ("leaving", "refuse"): "present",
    ("leaving", "free"): "gone",
    ("leaving", "lose"): "gone",
    ("gone", "ask"): "present",
}


def listed(devices: tuple[Device, ...], now: float, joins: bool = False) -> Outcome:
    """The table as a node starts with it."""
    table = DeviceTable(tuple(FleetDevice(one, since=now) for one in devices), joins)
    return table, tuple(Happening(one.name, "listed", budget_text(one)) for one in devices)


def budget_text(device: Device) -> str:
    budget = "whatever is free" if device.budget_bytes is None else size_text(device.budget_bytes)
    return budget + ("" if device.speed is None else f" at {device.speed:g} of its speed")


def moved(found: FleetDevice, word: str, now: float, reason: str = "") -> FleetDevice:
    """Into the state that the word makes of its own."""
    return replace(found, state=NEXT[found.state, word], since=now, until=None, reason=reason)


def put(table: DeviceTable, changed: FleetDevice) -> DeviceTable:
    devices = tuple(changed if one.name == changed.name else one for one in table.devices)
    return _bounded(replace(table, devices=devices))


def _bounded(table: DeviceTable) -> DeviceTable:
    """Of those that went, the longest gone are forgotten. Cards are not: one that a person removed would join again;
    the last number of a CPU, behind which the next one is counted, is so last of all."""
    last = max((one.device.number for one in table.devices if one.device.kind == "cpu"), default=0)
    gone = [one for one in table.devices if one.state == "gone" and one.name != one.device.card]
    gone.sort(key=lambda one: (one.name == f"cpu:{last}", one.since))
    forgotten = {one.name for one in gone[: max(len(gone) - MOST_GONE, 0)]}
    return replace(table, devices=tuple(one for one in table.devices if one.name not in forgotten))
