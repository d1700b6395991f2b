"""What every part of the API is given: the models, the catalogue, the limits and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gpu_node.catalog import Entry
from gpu_node.device_fleet import DeviceFleet
from gpu_node.inventory import Gpu, Machine, gpus, machine
from gpu_node.probing import Probing
from gpu_node.relay_metrics import RelayView
from gpu_node.residents import Residents


class Listing(Protocol):
    def entries(self) -> list[Entry]:
        """Reads the disk: call it in a thread."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    residents: Residents
    catalog: Listing
    max_body_bytes: int = 4 << 20
    clock: Callable[[], float] = time.monotonic  # the engine's, on which deadlines are told
    machine: Callable[[], Machine] = machine
    gpus: Callable[[], tuple[Gpu, ...]] = gpus
    relay: Callable[[], RelayView | None] = lambda: None  # none while there is none
    probing: Probing | None = None  # none: devices are not measured
    fleet: DeviceFleet | None = None  # the devices that models are split over; none: nothing is split here
