"""A plan with workers in its places: which worker holds which layers, as what, and what that leaves for the cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpu_node.devices import Device
from gpu_node.engine.step import CacheShape
from gpu_node.pipeline.hand import Hand, TakenPart
from gpu_node.pipeline.orders import Loaded
from gpu_node.pipeline.ring import RingShape
from gpu_node.pipeline.stage_room import StageRoom
from gpu_node.plan_picture import Picture
from gpu_node.split_plan import StagePlan


@dataclass(slots=True, eq=False)
class Seat:
    """One stage. `load` is the number of the order that made its part; `short`: it waits for the current part to go."""

    hand: Hand
    device: Device  # with the budget and the speed of this plan
    plan: StagePlan
    load: int = 0
    loaded: Loaded | None = None
    short: bool = False

    def reuse(self) -> None:
        """The part that its worker computes with is this seat's: nothing is to be loaded."""
        part = self.hand.part
        if part is not None and part == replace(
            part, first=self.plan.first, behind=self.plan.behind, device=self.device
        ):
            self.load, self.loaded, self.short = part.loaded.number, part.loaded, False

    @property
    def is_taken(self) -> bool:
        return self.hand.part is not None and self.hand.part.loaded is self.loaded

    def as_taken(self) -> TakenPart:
        return TakenPart(self.plan.first, self.plan.behind, self.device, self.part)

    @property
    def part(self) -> Loaded:
        assert self.loaded is not None, "a line-up is taken when all of it is loaded"
        return self.loaded


@dataclass(slots=True, eq=False)
class LineUp:
    picture: Picture
    seats: tuple[Seat, ...]
    epoch: int = 0
    block_count: int = 0
    near_counts: tuple[int, ...] = ()  # blocks of its own, by stage
    cache_bytes: dict[str, int] = field(default_factory=dict)  # by device

    def again(self) -> LineUp:
        """The same, to take another epoch."""
        return LineUp(self.picture, self.seats)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(seat.device.name for seat in self.seats)

    def sharers(self, device: Device) -> int:
        """Stages on this machine's processors, where that device is one of them."""
        return sum(seat.device.kind == "cpu" for seat in self.seats) if device.kind == "cpu" else 1

    @property
    def is_short(self) -> bool:
        return any(seat.short for seat in self.seats)

    @property
    def is_whole(self) -> bool:
        """Every part of it is loaded."""
        return all(seat.loaded is not None for seat in self.seats)

    @property
    def rooms(self) -> tuple[StageRoom, ...]:
        planned = {one.name: one for one in self.picture.devices}
        found = []
        for seat in self.seats:
            device, part = planned[seat.device.name], seat.part
            step = self.picture.sizes.activations(seat.plan.behind)
            usable = device.usable_bytes
            found.append(StageRoom(device.name, usable, part.weights_bytes, step, part.token_bytes, device.stated))
        return tuple(found)

    @property
    def token_bytes(self) -> int:
        return sum(seat.part.token_bytes for seat in self.seats)

    @property
    def weights_bytes(self) -> int:
        return sum(seat.part.weights_bytes for seat in self.seats)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Of each device's budget."""
        return {
            room.device: room.weights_bytes + room.step_bytes + self.cache_bytes.get(room.device, 0)
            for room in self.rooms
        }

    def cache(self, block_tokens: int) -> CacheShape:
        windows = [layer.window for seat in self.seats for layer in seat.part.layers]
        bounded = [window for window in windows if window is not None]
        window = max(bounded) if bounded and len(bounded) == len(windows) else None
        promised = min(self.near_counts)
        promised = 0 if promised == self.block_count else promised
        return CacheShape(block_tokens, self.block_count, self.token_bytes * block_tokens, window, promised)

    def ring(self) -> RingShape:
        last = self.seats[-1].part
        return RingShape(len(self.seats), last.vocabulary, last.hidden_size)
