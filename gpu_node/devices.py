"""What `--devices` means: "cpu:2GiB@1.0,cpu:1GiB@0.5,cuda:0" as values, and as devices that a split is planned over.

Each part is KIND, or KIND:NUMBER for an accelerator, then :MEMORY and @SPEED where they are stated. Invariants: names
are unique; no memory belongs to two devices, unless it was divided by hand. Pure: what is free is told by the caller.
Must not know torch or how memory is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, cast, get_args

from gpu_node.errors import UsageError
from gpu_node.load_wish import parse_bytes
from gpu_node.split_plan import LinkPace, Links, ModelShape, Pace, PlannedDevice

Kind = Literal["cpu", "cuda", "rocm", "xpu", "mps"]
KINDS: tuple[str, ...] = get_args(Kind)
# Less than this holds no layer of any model; "cpu:2" is a slip for "cpu:2GiB".
LEAST_BUDGET_BYTES = 1 << 20
# Slower than this it would only look like a device that hangs.
LEAST_SPEED = 0.001
# Nobody has more, and trying all orders of more would take for ever.
MOST_DEVICES = 64
# What full speed is taken for where nothing was measured: one core of a usual computer reads so much. Only the ratio of
# speeds is stated; this one decides how much a link weighs beside them.
REFERENCE_BYTES_PER_SECOND = 10e9
# Between two processes of one machine, from `bench/links.py`: a round trip of 64 KB, and what a megabyte adds.
LOCAL_LINK = LinkPace(latency_seconds=60e-6, bytes_per_second=3e9)

EXAMPLE = '"cpu:2GiB@1.0,cpu:1GiB@0.5" or "cuda:0,cuda:1:10GiB"'
_NUMBER = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Device:
    """`number` counts the kind's own cards; budgets of a CPU are counted in the order of the list."""

    name: str
    kind: Kind
    number: int
    budget_bytes: int | None = None  # None: whatever is free
    speed: float | None = None  # of 1, the full one

    @property
    def card(self) -> str:
        """What physical memory it is part of; all CPU budgets are part of one."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.number}"


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Measured. A decode step reads each weight once, so that its time is that of the reading, and a fixed part."""

    bytes_per_second: float
    layer_overhead_seconds: float = 0.0

    def pace(self, shape: ModelShape, speed: float = 1.0) -> Pace:
        """`speed` slows it down."""
        layer = sum(one.weights_bytes for one in shape.layers) / len(shape.layers)
        rate = self.bytes_per_second
        return Pace((layer / rate + self.layer_overhead_seconds) / speed, shape.head_bytes / rate / speed)


REFERENCE = DeviceProfile(REFERENCE_BYTES_PER_SECOND)


def parse_devices(text: str) -> tuple[Device, ...]:
    """Raises `UsageError` with one sentence that says what to write instead."""
    entries = [entry.strip() for entry in text.split(",")]
    if not text.strip() or not all(entries):
        raise UsageError(f"a list of devices is written like {EXAMPLE}, with something before and after each comma")
    if len(entries) > MOST_DEVICES:
        raise UsageError(f"{len(entries)} devices are too many: {MOST_DEVICES} are the most")
    found = tuple(_named([_entry(entry) for entry in entries]))
    _refuse_overlap(found)
    return found


def device_text(devices: Sequence[Device]) -> str:
    """As `parse_devices` reads it."""
    return ",".join(_text(device) for device in devices)


def planned_devices(
    devices: Sequence[Device],
    free_bytes: Mapping[str, int],
    shape: ModelShape,
    profiles: Mapping[str, DeviceProfile] | None = None,
) -> tuple[PlannedDevice, ...]:
    """`free_bytes` by card, where no budget is stated; `profiles` by card, where one was measured.

    A budget is the user's word and is used whole; of what merely is free a reserve stays. Where neither speed nor
    profile is known of a device, its pace is not. Raises `UsageError` for a device that is not here.
    """
    profiles = profiles or {}
    return tuple(_planned(device, free_bytes, shape, profiles.get(device.card)) for device in devices)


def local_links(devices: Sequence[Device]) -> Links:
    """Devices of one machine: all as far from each other."""
    return {(one.name, other.name): LOCAL_LINK for one, other in permutations(devices, 2)}


def _planned(
    device: Device, free_bytes: Mapping[str, int], shape: ModelShape, profile: DeviceProfile | None
) -> PlannedDevice:
    room = device.budget_bytes
    if room is None:
        if device.card not in free_bytes:
            raise UsageError(
                f"there is no {device.name} here; to plan for one, state its memory, as in {_place(device)}:16GiB"
            )
        room = free_bytes[device.card]
    pace = None
    if profile is not None or device.speed is not None:
        pace = (profile or REFERENCE).pace(shape, device.speed or 1.0)
    kind = "cuda" if device.kind == "rocm" else device.kind  # graphs take as much
    return PlannedDevice(device.name, room, kind, pace, stated=device.budget_bytes is not None)


def _entry(entry: str) -> Device:
    """Its name is not made yet: that takes all of them."""
    place, at, speed = entry.partition("@")
    kind, *others = (part.strip() for part in place.split(":"))
    kind = kind.lower()
    if kind not in KINDS:
        raise UsageError(f'"{entry}" names no device: the kinds are {", ".join(KINDS)}, as in {EXAMPLE}')
    number = 0
    if kind not in ("cpu", "mps"):
        number, others = _card_number(entry, others), others[1:]
    if len(others) > 1:
        raise UsageError(f'"{entry}" has too many parts: write {kind}{"" if kind in ("cpu", "mps") else ":0"}:2GiB@1.0')
    budget = _budget(entry, others[0]) if others else None
    return Device("", cast(Kind, kind), number, budget, _speed(entry, speed) if at else None)


def _card_number(entry: str, parts: Sequence[str]) -> int:
    if not parts or not _NUMBER.fullmatch(parts[0]):
        kind = entry.partition(":")[0].partition("@")[0].strip().lower()
        raise UsageError(f'"{entry}" does not say which one: write {kind}:0, or {kind}:0:16GiB')
    return int(parts[0])


def _budget(entry: str, text: str) -> int:
    try:
        budget = parse_bytes(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f'"{entry}": {error}') from error
    if budget < LEAST_BUDGET_BYTES:
        raise UsageError(f'"{entry}" has {budget} bytes, which hold nothing: write a size with its unit, as in 2GiB')
    return budget


def _speed(entry: str, text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not LEAST_SPEED <= speed <= 1:
        raise UsageError(
            f'"{entry}" has no speed behind its @: it is {LEAST_SPEED} to 1, where 0.5 takes twice as long as 1'
        )
    return speed


def _named(entries: Sequence[Device]) -> Iterator[Device]:
    """cpu:0, cpu:1 ... in their order; cards by their own number, and their parts as cuda:0.0, cuda:0.1 ..."""
    cards = [entry.card for entry in entries]
    for at, entry in enumerate(entries):
        before = cards[:at].count(entry.card)
        if entry.kind == "cpu":
            yield Device(f"cpu:{before}", "cpu", before, entry.budget_bytes, entry.speed)
        else:
            part = f".{before}" if cards.count(entry.card) > 1 else ""
            yield Device(entry.card + part, entry.kind, entry.number, entry.budget_bytes, entry.speed)


def _refuse_overlap(devices: Sequence[Device]) -> None:
    cards = [device.card for device in devices]
    for device in devices:
        if device.budget_bytes is None and cards.count(device.card) > 1:
            raise UsageError(
                f"{device.card} is listed {cards.count(device.card)} times: "
                f"state how much memory each part has, as in {_place(device)}:2GiB"
            )


def _place(device: Device) -> str:
    return "mps" if device.kind == "mps" else device.card  # there is only one of them


def _text(device: Device) -> str:
    budget = "" if device.budget_bytes is None else f":{device.budget_bytes}"
    return _place(device) + budget + ("" if device.speed is None else f"@{device.speed!r}")
