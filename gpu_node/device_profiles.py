"""What a probe found of this machine's devices: what they are, and how quick. Values, and their JSON; strictly read.

A device that could not be asked is left out, with a word why. Measurements are kept between starts under a key that
says for which devices, driver and torch they were made. Pure. Must not know torch, processes or files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from gpu_node.devices import KINDS, DeviceProfile, Kind
from gpu_node.errors import ModelError

FORMAT = 1
# What a layer asks of a device one after the other in a decode step: norms, products, rotation, attention, sums.
OPERATIONS_OF_LAYER = 12
# More lines or longer ones are not from our probe.
LONGEST_LINE = 1 << 16


class BadRecord(ModelError):
    """Not what a probe writes."""


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """`bytes_per_second`: reading weights, as a decode step does; `operations_per_second`: products of many rows;
    `call_seconds`: the fixed part of one operation. `threads`: that a CPU was measured with."""

    kind: Kind
    number: int
    name: str
    vendor: str
    driver: str
    uuid: str
    total_bytes: int
    free_bytes: int
    bytes_per_second: float | None = None
    operations_per_second: float | None = None
    call_seconds: float | None = None
    threads: int | None = None

    @property
    def card(self) -> str:
        """As `Device.card` says it, by which free memory and paces are found."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.number}"

    @property
    def profile(self) -> DeviceProfile | None:
        """What plans are made from; none where the measuring failed."""
        if not self.bytes_per_second:
            return None
        return DeviceProfile(self.bytes_per_second, (self.call_seconds or 0.0) * OPERATIONS_OF_LAYER)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A device, or all of a kind, that could not be asked."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    devices: tuple[FoundDevice, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def profiles(self) -> dict[str, DeviceProfile]:
        """By card."""
        return {one.card: one.profile for one in self.devices if one.profile is not None}

    def of_card(self, card: str) -> FoundDevice | None:
        return next((one for one in self.devices if one.card == card), None)


def line_of(told: FoundDevice | LeftOut) -> str:
    """One line of the probe's output."""
    return json.dumps({"device" if isinstance(told, FoundDevice) else "left_out": asdict(told)}, ensure_ascii=False)


def read_line(line: str) -> FoundDevice | LeftOut | None:
    """None: a line that is not the probe's, since libraries print what they like. Raises `BadRecord` for one that
    looks like the probe's and is broken."""
    if not line.startswith("{") or len(line) > LONGEST_LINE:
        return None
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadRecord(f"a line of the probe is no JSON: {error}") from error
    if isinstance(record, dict) and set(record) == {"device"}:
        return _device(record["device"])
    if isinstance(record, dict) and set(record) == {"left_out"}:
        return LeftOut(**_of_type(record["left_out"], {"what": str, "why": str}))
    return None


def kept_text(findings: Findings, key: Mapping[str, Any], wall_seconds: float) -> str:
    """For a file."""
    devices, left_out = ([asdict(one) for one in many] for many in (findings.devices, findings.left_out))
    record = {"format": FORMAT, "key": dict(key), "at": wall_seconds, "devices": devices, "left_out": left_out}
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def kept_findings(text: str, key: Mapping[str, Any], now: float, longest_seconds: float) -> Findings | None:
    """None where they are of other devices, another torch or too old. Raises `BadRecord` for a broken file."""
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BadRecord(f"no JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord("no object")
    at = record.get("at")
    if record.get("format") != FORMAT or record.get("key") != dict(key) or not isinstance(at, int | float):
        return None
    if not 0 <= now - at <= longest_seconds:
        return None
    devices, left_out = record.get("devices"), record.get("left_out")
    if not isinstance(devices, list) or not isinstance(left_out, list):
        raise BadRecord("no list of devices")
    words = {"what": str, "why": str}
    return Findings(tuple(map(_device, devices)), tuple(LeftOut(**_of_type(one, words)) for one in left_out))


_NUMBERS = {"bytes_per_second", "operations_per_second", "call_seconds"}
_COUNTS = {"number", "total_bytes", "free_bytes"}


def _device(record: object) -> FoundDevice:
    kinds: dict[str, Any] = {one.name: str for one in fields(FoundDevice)}
    kinds |= dict.fromkeys(_COUNTS, int) | dict.fromkeys(_NUMBERS, float | int | None) | {"threads": int | None}
    found = _of_type(record, kinds)
    if found["kind"] not in KINDS:
        raise BadRecord(f"no kind of device: {found['kind']!r}")
    numbers = [found[name] for name in _COUNTS | _NUMBERS if found[name] is not None]
    if any(not 0 <= value < float("inf") for value in numbers):
        raise BadRecord("a size or a speed is negative or no number")
    return FoundDevice(**{**found, "kind": cast(Kind, found["kind"])})


def _of_type(record: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(record, dict) or set(record) != set(kinds):
        raise BadRecord("other fields than a device has")
    for name, value in record.items():
        if isinstance(value, bool) or not isinstance(value, kinds[name]):
            raise BadRecord(f"{name} is a {type(value).__name__}")
    return record
