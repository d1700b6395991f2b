"""From a plan to a ring that computes it: workers hired, layers loaded beside what runs, the epoch taken by all.

All workers start and load at the same time. Invariants: every wait is bounded, and ends at once when a worker that is
needed is gone or the caller has changed its mind; what was loaded and is not taken is released; nothing here ends what
runs, but `take` and a load that is told to drop it. Called from one thread. Must not know why there is a new plan.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpu_node.devices import Device
from gpu_node.errors import DeviceOutOfMemory, ModelError, NodeError
from gpu_node.pipeline.cache_layout import CacheLayout
from gpu_node.pipeline.crew import Crew
from gpu_node.pipeline.ends import HEAD, LinkEnds
from gpu_node.pipeline.errors import LinkError, LinkSilent
from gpu_node.pipeline.gate import connect_link
from gpu_node.pipeline.hand import Answer, Hand
from gpu_node.pipeline.lineup import LineUp, Seat
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.orders import AnyPlace, Failed, Load, Loaded, LoadWords, Release, Take, Taken
from gpu_node.pipeline.process import torch_device
from gpu_node.pipeline.ring import Ring
from gpu_node.pipeline.split_model import SplitModel, SplitOptions
from gpu_node.pipeline.step_frames import RING_SETTINGS
from gpu_node.plan_picture import Picture
from gpu_node.processors import threads_each

if TYPE_CHECKING:
    from gpu_node.engine.loader import LoadOptions

# A wait on something that wakes nobody up looks so often whether it is still worth it.
LOOK_SECONDS = 0.2
AGAIN_SECONDS = 0.02
log = logging.getLogger("gpu_node.pipeline")

ChangedMind = Callable[[], bool]


def _never() -> bool:
    return False


class MindChanged(Exception):
    """The caller does not want it any more."""


class HandLost(NodeError):
    """A worker that was needed is gone, or cannot do its part. `told`: what a person is told of it."""

    def __init__(self, hand: Hand, reason: str, told: NodeError | None = None) -> None:
        super().__init__(f"{hand.name}: {reason}")
        self.hand, self.reason = hand, reason
        self.told = told or ModelError(f"the worker of {hand.name} cannot do its part: {reason}")


class LinksFailed(NodeError):
    """All workers are there, and the ring could not be closed."""


@dataclass(slots=True)
class _Pace:
    """Whether loading still gets on."""

    done: int = -1
    since: float = 0.0


class Builder:
    def __init__(
        self,
        crew: Crew,
        model: SplitModel,
        options: SplitOptions,
        closing: ChangedMind = _never,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`closing`: everything is given up, whatever it is."""
        self._crew, self._model, self._options, self._closing, self._clock = crew, model, options, closing, clock
        self._changed: threading.Condition = crew.changed

    def prepare(
        self,
        picture: Picture,
        devices: Sequence[Device],
        changed_mind: ChangedMind = _never,
        drop_current: bool = False,
        occupied: Collection[str] = (),
    ) -> LineUp:
        """All parts loaded; without `drop_current` those seats are `short` whose part does not fit beside what runs,
        and those on `occupied` devices.

        Raises `MindChanged`, `HandLost` and `ModelError`."""
        named = {device.name: device for device in devices}
        seats = []
        for stage in picture.plan.stages:
            device = named[stage.device]
            seats.append(Seat(self._crew.hire(device), device, stage, short=device.name in occupied))
        lineup = LineUp(picture, tuple(seats))
        hands = [seat.hand for seat in seats]
        self._wait(lambda: all(hand.hello is not None for hand in hands), hands, changed_mind, None)
        for seat in seats:
            seat.reuse()
        wanted = [seat for seat in seats if seat.loaded is None and not seat.short]
        self.load(lineup, wanted, changed_mind, drop_current)
        return lineup

    @property
    def held(self) -> dict[str, tuple[int, int]]:
        """First layer, and the first that is not its any more, of each worker that computes some."""
        parts = {hand.name: hand.part for hand in self._crew.hands.values()}
        return {name: (part.first, part.behind) for name, part in parts.items() if part is not None}

    def load(
        self, lineup: LineUp, seats: Sequence[Seat], changed_mind: ChangedMind = _never, drop_current: bool = False
    ) -> None:
        """The parts of these seats, of the line-up's. Raises as `prepare`."""
        for seat in seats:
            if drop_current:
                seat.hand.part = None
            self._order_load(lineup, seat, drop_current)
        hands = [seat.hand for seat in seats]
        try:
            self._wait(lambda: all(seat.load in seat.hand.answers for seat in seats), hands, changed_mind, lineup)
        except BaseException:
            self.release(lineup)
            raise
        for seat in seats:
            self._note(seat, seat.hand.answers.pop(seat.load), drop_current)

    def release(self, lineup: LineUp) -> None:
        """Its parts are not taken; without effect on those that are."""
        for seat in lineup.seats:
            if seat.load and not seat.hand.gone and not seat.is_taken:
                seat.hand.forget(seat.load)
                seat.hand.forget(self._crew.order(seat.hand, Release))

    def take(self, lineup: LineUp, epoch: int, layout: CacheLayout, on_end: Callable[[], None]) -> Ring:
        """All its workers begin the epoch, with fresh caches; whatever ran before is over.

        Raises `HandLost`, `DeviceOutOfMemory` where the cache is too large, and `LinksFailed`."""
        lineup.epoch, lineup.block_count, lineup.near_counts = epoch, layout.block_count, layout.near_counts
        orders = [self._order_take(lineup, number) for number in range(len(lineup.seats))]
        links: list[Link] = []
        try:
            links.append(self._connect(lineup, orders))
            links.append(self._admit(lineup, orders))
            hands = [seat.hand for seat in lineup.seats]
            self._wait(lambda: self._all_taken(lineup, orders), hands, _never, None, self._options.take_seconds)
            self._check_taken(lineup, orders)
        except BaseException:
            for link in links:
                link.close()
            raise
        for seat, number in zip(lineup.seats, orders, strict=True):
            taken = seat.hand.answers.pop(number)
            assert isinstance(taken, Taken), "looked at before"
            lineup.cache_bytes[seat.device.name] = taken.cache_bytes
        self._crew.watch(links)
        return Ring(links[0], links[1], lineup.ring(), lambda _: on_end())

    def _order_load(self, lineup: LineUp, seat: Seat, drop_current: bool) -> None:
        device, stage = seat.device, seat.plan
        words = load_words(self._model.options, device, lineup.sharers(device))
        path = str(self._model.folder)
        budget, speed = device.budget_bytes, device.speed or 1.0

        def make(number: int) -> Load:
            return Load(number, path, stage.first, stage.behind, words, budget, speed, drop_current)

        with self._changed:  # no answer comes between the order and its number
            seat.load, seat.loaded, seat.short = self._crew.order(seat.hand, make), None, False
            seat.hand.loading.add(seat.load)

    def _note(self, seat: Seat, answer: Answer, drop_current: bool) -> None:
        match answer:
            case Loaded():
                seat.loaded = answer
            case Failed(_, "no_room_beside", _) if not drop_current:
                seat.short = True
            case Failed(_, "model", message):
                raise ModelError(message)
            case Failed(_, "out_of_memory" | "no_room_beside", message):
                raise HandLost(seat.hand, message, DeviceOutOfMemory(f"{seat.device.name}: {message}"))
            case Failed(_, _, message):
                raise HandLost(seat.hand, f"it cannot load its layers: {message}")
            case _:
                raise HandLost(seat.hand, "it has answered something else than was asked")

    def _order_take(self, lineup: LineUp, stage: int) -> int:
        seat, seats = lineup.seats[stage], lineup.seats
        behind: AnyPlace = self._crew.ring_gate.place
        if stage + 1 < len(seats):
            hello = seats[stage + 1].hand.hello
            assert hello is not None, "it has loaded something"
            behind = hello.place
        tokens = self._model.options.cache.block_tokens
        blocks, near = lineup.block_count, lineup.near_counts[stage]
        threads = threads_each(self._model.options.threads, lineup.sharers(seat.device))

        def make(number: int) -> Take:
            return Take(
                number, seat.load, lineup.epoch, stage, len(seats), tokens, blocks, near, behind,
                links_seconds=self._options.take_seconds, threads=threads,
            )  # fmt: skip

        order = self._crew.order(seat.hand, make)
        seat.hand.part = seat.as_taken()  # whatever else becomes of the epoch
        return order

    def _connect(self, lineup: LineUp, orders: Sequence[int]) -> Link:
        """To the first stage, which listens since its start and admits once its cache is made."""
        hello = lineup.seats[0].hand.hello
        assert hello is not None, "it has loaded something"
        ends, deadline = LinkEnds(HEAD, 0, lineup.epoch), self._clock() + self._options.take_seconds
        while True:
            try:
                return connect_link(hello.place, ends, self._crew.token, RING_SETTINGS, LOOK_SECONDS * 5)
            except LinkError as error:
                self._go_on(lineup, orders, deadline, error)

    def _admit(self, lineup: LineUp, orders: Sequence[int]) -> Link:
        ends = LinkEnds(len(lineup.seats) - 1, HEAD, lineup.epoch)
        deadline = self._clock() + self._options.take_seconds
        while True:
            try:
                return self._crew.ring_gate.admit([ends], LOOK_SECONDS)
            except LinkSilent as error:
                self._go_on(lineup, orders, deadline, error)

    def _go_on(self, lineup: LineUp, orders: Sequence[int], deadline: float, error: LinkError) -> None:
        """Raises where waiting for a link is of no use any more."""
        with self._changed:
            self._refuse_gone([seat.hand for seat in lineup.seats])
            self._check_taken(lineup, orders)
            if self._clock() > deadline:
                raise LinksFailed(f"the stages cannot be linked: {error}") from error
            if not isinstance(error, LinkSilent):  # it hung up, or is still in another epoch: more is told soon
                self._changed.wait(AGAIN_SECONDS)

    def _all_taken(self, lineup: LineUp, orders: Sequence[int]) -> bool:
        self._check_taken(lineup, orders)
        return all(number in seat.hand.answers for seat, number in zip(lineup.seats, orders, strict=True))

    def _check_taken(self, lineup: LineUp, orders: Sequence[int]) -> None:
        for seat, number in zip(lineup.seats, orders, strict=True):
            answer = seat.hand.answers.get(number)
            if not isinstance(answer, Failed):
                continue
            if answer.kind == "out_of_memory":
                raise DeviceOutOfMemory(f"{seat.device.name}: {answer.message}")
            raise LinksFailed(f"{seat.device.name}: {answer.message}")

    def _wait(
        self,
        done: Callable[[], bool],
        hands: Sequence[Hand],
        changed_mind: ChangedMind,
        lineup: LineUp | None,
        within_seconds: float | None = None,
    ) -> None:
        """Until `done`. With a line-up: as long as its loading gets on, which is told to whoever loads the model."""
        pace, deadline = _Pace(since=self._clock()), within_seconds and self._clock() + within_seconds
        while True:
            with self._changed:
                if not done():
                    self._changed.wait(LOOK_SECONDS)
                if done():
                    break
                self._refuse_gone(hands)
                if changed_mind():
                    raise MindChanged
            if lineup is not None:
                self._follow(lineup, pace)
            if deadline is not None and self._clock() > deadline:
                raise LinksFailed(f"the stages have not begun within {within_seconds:.0f} s")

    def _follow(self, lineup: LineUp, pace: _Pace) -> None:
        done, total = loading(lineup)
        if done != pace.done:
            pace.done, pace.since = done, self._clock()
            if self._model.options.progress is not None and total:
                self._model.options.progress(done, total)
        elif self._clock() - pace.since > self._options.stall_seconds:
            late = next(seat.hand for seat in lineup.seats if seat.load in seat.hand.loading)
            raise HandLost(late, f"it has loaded nothing more for {self._options.stall_seconds:.0f} s")

    def _refuse_gone(self, hands: Sequence[Hand]) -> None:
        if self._closing():
            raise MindChanged
        for hand in hands:
            if hand.gone:
                raise HandLost(hand, hand.gone)


def loading(lineup: LineUp) -> tuple[int, int]:
    """Bytes that are read, and all of them, as far as they are known."""
    done = total = 0
    for seat in lineup.seats:
        if seat.loaded is not None or seat.load not in seat.hand.loading:
            done, total = done + seat.plan.weights_bytes, total + seat.plan.weights_bytes
        else:
            one, all_of_them = seat.hand.progress.get(seat.load, (0, seat.plan.weights_bytes))
            done, total = done + one, total + all_of_them
    return done, total


def load_words(options: LoadOptions, device: Device, sharers: int = 1) -> LoadWords:
    """`sharers`: stages that compute on the same processors, this one included."""
    folder = None if options.kernel_folder is None else str(options.kernel_folder)
    threads = threads_each(options.threads, sharers)
    words = LoadWords(options.dtype, options.weights, options.kernels, folder, threads)
    return replace(words, device=torch_device(device))
