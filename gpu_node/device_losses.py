"""What becomes of devices by what machines tell of them: losses, returns, refusals, what models hold, probes, time.

Pure. Invariants: what is told of a device that is in another state by then changes nothing; one loss counts once,
however many models notice; a probe that fails to see a card once loses nothing, and cards that no probe has ever seen
are not missed. Must not know people's wishes, torch or how a probe is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from re import compile as compiled
from typing import get_args

from gpu_node.device_table import (
    NEXT,
    PROBES_WITHOUT,
    DeviceTable,
    FleetDevice,
    Happening,
    Outcome,
    budget_text,
    moved,
    put,
)
from gpu_node.devices import MOST_DEVICES, Device, Kind
from gpu_node.plan_picture import size_text

# How long a device that was lost is left alone: once is an accident, and who fails again and again is not worth a new
# plan each time. Longer than the last is not waited.
PAUSES_SECONDS = (5.0, 15.0, 60.0)
# So many losses within so long, and it comes back only when a person asks for it.
MOST_LOSSES = 5
LOSS_WINDOW_SECONDS = 900.0

_CARD = compiled(r"([a-z]+):([0-9]{1,3})")


def lost(table: DeviceTable, found: FleetDevice, reason: str, now: float) -> Outcome:
    """It is tried again after a pause; one that vanished or fails too often is not."""
    if (found.state, "lose") not in NEXT:
        return table, ()
    happened = [Happening(found.name, "lost", reason)]
    lost_at = tuple(at for at in (*found.lost_at, now) if now - at < LOSS_WINDOW_SECONDS)[-MOST_LOSSES:]
    gone = replace(moved(found, "lose", now, reason), lost_at=lost_at, losses=found.losses + 1)
    gone = replace(gone, device=found.planned, wanted_bytes=None)  # nothing is held there any more
    if gone.state == "gone":
        happened.append(Happening(found.name, "left", "it was to go anyway"))
    elif not gone.vanished and len(lost_at) < MOST_LOSSES:
        gone = replace(gone, until=now + PAUSES_SECONDS[min(len(lost_at), len(PAUSES_SECONDS)) - 1])
    return put(table, gone), tuple(happened)


def returned(table: DeviceTable, found: FleetDevice, detail: str, now: float) -> Outcome:
    if (found.state, "return") not in NEXT:
        return table, ()
    return put(table, moved(found, "return", now)), (Happening(found.name, "joined", detail),)


def refused(table: DeviceTable, name: str, reason: str, now: float) -> Outcome:
    """One that leaves stays, unless it goes by force; one that is present has no use, or stays as large as it is."""
    found = table.find(name)
    if found is None or found.state not in ("present", "leaving"):
        return table, ()
    happened = Happening(name, "refused", reason)
    if found.state == "present":
        return put(table, replace(found, wanted_bytes=None, reason=reason)), (happened,)
    if found.forced:
        return put(table, moved(found, "free", now, reason)), (happened, Happening(name, "left", "by force"))
    return put(table, moved(found, "refuse", now, reason)), (happened,)


def held(table: DeviceTable, model: str, holds: Mapping[str, int], now: float) -> Outcome:
    """`holds`: bytes by device, all that the model holds from now on."""
    happened: list[Happening] = []
    for one in table.devices:
        kept = tuple(entry for entry in one.held if entry[0] != model)
        changed = replace(one, held=(*kept, (model, holds[one.name])) if one.name in holds else kept)
        if changed.held and not one.held:
            changed = replace(changed, reason="")  # why it was of no use
        if changed.state == "leaving" and not changed.held:
            changed = moved(changed, "free", now)
            happened.append(Happening(one.name, "left", "nothing is held there any more"))
        elif one.wanted_bytes is not None and changed.held_bytes <= one.wanted_bytes:
            changed = replace(changed, device=one.planned, wanted_bytes=None)
            happened.append(Happening(one.name, "resized", f"to {budget_text(changed.device)}"))
        table = put(table, changed)
    return table, tuple(happened)


def seen(table: DeviceTable, free_bytes: Mapping[str, int], now: float) -> Outcome:
    """`free_bytes`: by card, all that a probe saw. Cards go and come back by it, and new ones may join."""
    happened: tuple[Happening, ...] = ()
    for one in table.devices:
        if one.device.card in free_bytes:
            table, more = _shown(table, one, free_bytes[one.device.card], now)
        else:
            table, more = _missed(table, one, now)
        happened += more
    if table.joins:
        for card in sorted(free_bytes.keys() - {one.device.card for one in table.devices}):
            table, more = _appeared(table, card, free_bytes[card], now)
            happened += more
    table, more = waited(table, now)
    return table, (*happened, *more)


def waited(table: DeviceTable, now: float) -> Outcome:
    happened: tuple[Happening, ...] = ()
    for one in table.devices:
        if one.state == "lost" and one.until is not None and now >= one.until:
            table, more = returned(table, one, f"it is tried again; lost so far: {one.losses}", now)
            happened += more
    return table, happened


def _shown(table: DeviceTable, one: FleetDevice, free_bytes: int, now: float) -> Outcome:
    found = replace(one, free_bytes=free_bytes, unseen=0)
    table = put(table, found)
    if one.vanished and len(one.lost_at) < MOST_LOSSES:
        return returned(table, found, "the machine shows it again", now)
    return table, ()


def _missed(table: DeviceTable, one: FleetDevice, now: float) -> Outcome:
    if one.free_bytes is None or one.device.kind == "cpu" or one.unseen >= PROBES_WITHOUT:
        return table, ()
    found = replace(one, unseen=one.unseen + 1)
    if found.unseen < PROBES_WITHOUT:
        return put(table, found), ()
    reason = "this machine does not show it any more"
    if found.state == "lost":  # its worker was the first to notice
        return put(table, replace(found, until=None, reason=reason)), ()
    return lost(put(table, found), found, reason, now)


def _appeared(table: DeviceTable, card: str, free_bytes: int, now: float) -> Outcome:
    match = _CARD.fullmatch(card)
    kind: Kind | None = next((one for one in get_args(Kind) if match is not None and one == match[1]), None)
    if match is None or kind is None or kind == "cpu" or len(table.around) >= MOST_DEVICES:
        return table, ()
    joined = FleetDevice(Device(card, kind, int(match[2])), since=now, free_bytes=free_bytes)
    detail = f"this machine shows it, with {size_text(free_bytes)} free"
    return replace(table, devices=(*table.devices, joined)), (Happening(card, "joined", detail),)
