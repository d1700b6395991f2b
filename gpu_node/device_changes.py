"""Every event that changes the devices of a node, and `after`: the one way from a table to the next.

Pure: `now` is an argument, and what happened comes back as values. Invariants: people's wishes raise what is wrong with
them, and the table is as before then; the last device that could compute is not taken away by a person; no budget is
promised twice. Must not know torch, processes, HTTP or how memory is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpu_node.device_losses import held, lost, refused, returned, seen, waited
from gpu_node.device_table import (
    NEXT,
    DeviceState,
    DeviceTable,
    FleetDevice,
    Happening,
    Outcome,
    budget_text,
    moved,
    put,
)
from gpu_node.devices import LEAST_BUDGET_BYTES, MOST_DEVICES, Device
from gpu_node.errors import RequestError, UsageError
from gpu_node.plan_picture import size_text


@dataclass(frozen=True, slots=True)
class Add:
    """A person adds a device; its name is made here. `available_bytes` of main memory, `free_bytes` of its card; none:
    not looked at."""

    device: Device
    available_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A person wants it back: it was lost, is leaving, or went."""

    name: str
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """A person takes it away: it drains first. `force`: also where the rest cannot hold the models."""

    name: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Resize:
    """A person gives it another budget. Below what is held there, a new plan makes room first."""

    name: str
    budget_bytes: int
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Lose:
    """Its worker died, froze or could not be started."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Recover:
    """It was seen at work again."""

    name: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """No plan does what was asked of this device, or none has a use for it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """All that a model holds from now on: (device, bytes)."""

    model: str
    held: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class See:
    """What a probe saw: (card, free bytes)."""

    free_bytes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Time has passed."""


Event = Add | Ask | Remove | Resize | Lose | Recover | Refuse | Hold | See | Wait


def after(table: DeviceTable, event: Event, now: float) -> Outcome:
    """Raises `RequestError` or `UsageError` for what a person may not do; the table is as before then."""
    changed, happened = _after(table, event, now)
    if _planned_over(changed) != _planned_over(table):
        changed = replace(changed, epoch=table.epoch + 1)
    return changed, happened


def _after(table: DeviceTable, event: Event, now: float) -> Outcome:
    match event:
        case Add():
            return _added(table, event, now)
        case Ask():
            return _asked(table, event, now)
        case Remove():
            return _removed(table, event, now)
        case Resize():
            return _resized(table, event)
        case Lose(name, reason):
            found = table.find(name)
            return lost(table, found, reason, now) if found else (table, ())
        case Recover(name):
            found = table.find(name)
            return returned(table, found, "it works again", now) if found else (table, ())
        case Refuse(name, reason):
            return refused(table, name, reason, now)
        case Hold(model, holds):
            return held(table, model, dict(holds), now)
        case See(free_bytes):
            return seen(table, dict(free_bytes), now)
        case Wait():
            return waited(table, now)


def _added(table: DeviceTable, event: Add, now: float) -> Outcome:
    device = _named(table, event.device)
    _check_count(table)
    _check_clash(table, device)
    if device.kind == "cpu":
        _check_room(table, device.budget_bytes or 0, event.available_bytes)
    joined = FleetDevice(device, since=now, free_bytes=event.free_bytes)
    happened = (Happening(device.name, "joined", budget_text(device)),)
    before = table.find(device.name)
    if before is None:
        return replace(table, devices=(*table.devices, joined)), happened
    # A card that went comes back: what is known of it stays known.
    free = before.free_bytes if event.free_bytes is None else event.free_bytes
    back = replace(before, device=device, state="present", since=now, reason="", free_bytes=free, forced=False)
    return put(table, back), happened


def _named(table: DeviceTable, device: Device) -> Device:
    """A CPU's budget gets the next number; a card has its own name, and so has the first of its parts."""
    if device.kind == "cpu":
        if device.budget_bytes is None:
            raise RequestError('a CPU device needs its budget, as in "cpu:1GiB"', field="device")
        number = max((one.device.number for one in table.devices if one.device.kind == "cpu"), default=-1) + 1
        return replace(device, number=number, name=f"cpu:{number}")
    if not any(one.device.card == device.card for one in table.around):
        return replace(device, name=device.card)
    names = {one.name for one in table.devices}
    parts = (f"{device.card}.{part}" for part in range(1, len(names) + 2))
    return replace(device, name=next(name for name in parts if name not in names))


def _asked(table: DeviceTable, event: Ask, now: float) -> Outcome:
    found = table.named(event.name)
    if (found.state, "ask") not in NEXT:
        raise RequestError(f"{found.name} is {found.state} already", status=409, field="name")
    if found.vanished:
        raise RequestError(f"{found.name} cannot come back: {found.reason}", status=409, field="name")
    if found.state == "gone":
        _check_count(table)
        _check_clash(table, found.device)
        if found.device.kind == "cpu":
            _check_room(table, found.device.budget_bytes or 0, event.available_bytes)
    back = replace(moved(found, "ask", now), lost_at=(), forced=False)
    return put(table, back), (Happening(found.name, "joined", "somebody asked for it"),)


def _removed(table: DeviceTable, event: Remove, now: float) -> Outcome:
    found = table.named(event.name)
    if found.state == "gone":
        raise RequestError(f"{found.name} has left already", status=409, field="name")
    # What could take over from a device that computes must compute itself; what is lost may come back.
    able = ("present", "lost") if found.state == "lost" else ("present",)
    if not any(one.state in able for one in table.devices if one is not found):
        raise RequestError(f"{found.name} is the last device, and models need one", status=409, field="name")
    if found.state == "leaving":
        return put(table, replace(found, forced=found.forced or event.force)), ()
    leaving = replace(moved(found, "remove", now), forced=event.force, wanted_bytes=None)
    if leaving.state == "leaving" and leaving.held:
        models = " and ".join(model for model, _ in leaving.held)
        return put(table, leaving), (Happening(found.name, "leaving", f"it drains first: {models}"),)
    gone = leaving if leaving.state == "gone" else moved(leaving, "free", now)
    return put(table, gone), (Happening(found.name, "left", "nothing was at work there"),)


def _resized(table: DeviceTable, event: Resize) -> Outcome:
    found, size = table.named(event.name), event.budget_bytes
    if found.state != "present":
        raise RequestError(f"{found.name} is {found.state}: the size of a present device can be changed", status=409)
    if size < LEAST_BUDGET_BYTES:
        raise UsageError(f"{size} bytes hold nothing: write a size with its unit, as in 2GiB")
    before = max(found.device.budget_bytes or 0, found.held_bytes)
    if found.device.kind == "cpu" and size > before:
        _check_room(table, size - before, event.available_bytes)
    if size < found.held_bytes:
        detail = f"to {size_text(size)}, as soon as a plan needs less than the {size_text(found.held_bytes)} held now"
        return put(table, replace(found, wanted_bytes=size, reason="")), (Happening(found.name, "resized", detail),)
    device = replace(found.device, budget_bytes=size)
    changed = replace(found, device=device, wanted_bytes=None, reason="")
    return put(table, changed), (Happening(found.name, "resized", f"to {budget_text(device)}"),)


def _check_count(table: DeviceTable) -> None:
    if len(table.around) >= MOST_DEVICES:
        raise RequestError(f"there are {MOST_DEVICES} devices already, which are the most", status=409)


def _check_clash(table: DeviceTable, device: Device) -> None:
    """Memory belongs to one device, unless it was divided by hand."""
    others = [one for one in table.around if one.device.card == device.card]
    if others and None in (device.budget_bytes, *(one.device.budget_bytes for one in others)):
        names = " and ".join(one.name for one in others)
        raise RequestError(
            f"{names} ({others[0].state}) has the memory of {device.card}: state how much each part has", status=409
        )


def _check_room(table: DeviceTable, wanted_bytes: int, available_bytes: int | None) -> None:
    if available_bytes is None:
        return
    room = max(table.cpu_room(available_bytes), 0)
    if wanted_bytes > room:
        raise RequestError(
            f"{size_text(wanted_bytes)} of main memory are not free: {size_text(available_bytes)} are available, and "
            f"budgets of other devices may still fill {size_text(available_bytes - room)} of them",
            status=409,
        )


def _planned_over(table: DeviceTable) -> tuple[tuple[DeviceState, bool, Device], ...]:
    return tuple((one.state, one.forced, one.planned) for one in table.devices if one.state in ("present", "leaving"))
