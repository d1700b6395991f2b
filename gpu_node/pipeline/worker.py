"""A worker: one device's part of a split model, in a process of its own (or in a thread), told what to do by the head.

    python -m gpu_node.pipeline.worker PLACE NUMBER [DEVICE]        first line of input: the token

The calling thread computes; one thread hears orders, one loads the next part, one tells how things stand, one beats.
Invariants: it ends with its control link, and leaves no thread, socket or file; a ring that breaks is no failure, the
next Take makes another; every order is answered once. Orders are handled by a table, so that others can add theirs.
Must not know plans.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

from gpu_node.errors import ModelError, NodeError, UsageError
from gpu_node.pipeline.control import WORKER_SETTINGS, ControlLink
from gpu_node.pipeline.epoch import Epoch
from gpu_node.pipeline.errors import LinkClosed, LinkError, LinkFault
from gpu_node.pipeline.gate import Gate, connect_link
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.lending_worker import WorkerLending
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.order_codec import OrderCodec
from gpu_node.pipeline.orders import (
    Busy,
    Done,
    Failed,
    FailureKind,
    Hello,
    Load,
    Release,
    Report,
    Stop,
    Take,
    Taken,
    control_ends,
    place_of,
)
from gpu_node.pipeline.orders_lending import CODEC, Borrow, Lend, MoveToHost, Repay, TakeBack
from gpu_node.pipeline.part_loading import LoadedPart, set_threads
from gpu_node.pipeline.parts import NoRoomBeside, Parts
from gpu_node.pipeline.preparing import Preparing
from gpu_node.pipeline.shortage import give_back, is_shortage
from gpu_node.pipeline.slow_down import Pace
from gpu_node.pipeline.stage_loop import Seat, StageLoop, StagePart, Tally, warm
from gpu_node.pipeline.step_frames import RING_SETTINGS
from gpu_node.pipeline.step_message import StepBounds
from gpu_node.pipeline.surroundings import WorkerPlace, device_bytes, process_seconds, resident_bytes

REPORT_SECONDS = 0.5
# The head listens before it starts a worker.
CONNECT_SECONDS = 10.0
# Kernels of a GPU are compiled at their first call: by the head it is forgiven for so long.
WARM_SECONDS = 60.0
LONGEST_MESSAGE = 2000  # letters, for people
FREE_STEPS = 50  # of a device's memory
log = logging.getLogger("gpu_node.pipeline")

Handler = Callable[[Any], None]
# What computes an epoch's steps, once the part has its near cache. Raises any `NodeError`.
Seating = Callable[[Take, LoadedPart], StagePart]


class Worker:
    """`handlers` and `seating` may be added to, or replaced, before `run`: where blocks lie elsewhere too."""

    def __init__(self, place: WorkerPlace, codec: OrderCodec = CODEC) -> None:
        self._place, self._codec = place, codec
        self.device_bytes: Callable[[], tuple[int, int]] = partial(device_bytes, place.name)  # total and free
        self.parts = Parts()
        self.heart = Heart()
        self.handlers: dict[type, Handler] = {
            Load: self._load,
            Take: self._take,
            Release: self._release,
            Stop: self._stop,
        }
        self.lending = WorkerLending(self)
        self.handlers |= {
            Lend: self.lending.lend,
            Borrow: self.lending.borrow,
            MoveToHost: self.lending.move,
            Repay: self.lending.repay,
            TakeBack: self.lending.take_back,
        }
        self.parts.beside = lambda: self.lending.lent_bytes
        self.seating: Seating = self.lending.seat
        self._gate: Gate | None = None
        self._preparing = Preparing(self, self.parts)
        self._control: ControlLink | None = None
        self._stopped, self._news, self._idle = threading.Event(), threading.Event(), threading.Event()
        self._idle.set()
        self._turning = threading.Lock()
        self._epoch: Epoch | None = None
        self._turns: SimpleQueue[tuple[Epoch, LoadedPart] | None] = SimpleQueue()
        self._tally, self._broken, self._running = Tally(), "", 0

    @property
    def place(self) -> WorkerPlace:
        return self._place

    @property
    def token(self) -> str:
        return self._place.token

    @property
    def gate(self) -> Gate:
        assert self._gate is not None, "nobody is admitted before the worker runs"
        return self._gate

    def spare_bytes(self) -> int | None:
        """What the budget of the current part leaves; None: nothing was stated."""
        return self.parts.spare_bytes

    def run(self) -> None:
        """Until it is told to stop, or the head is gone. Raises `LinkError` where the head is not to be had."""
        place = self._place
        link = connect_link(place.control, control_ends(place.number), place.token, WORKER_SETTINGS, CONNECT_SECONDS)
        works = {"orders": self._hear, "loading": self._preparing.run, "reports": self._tell}
        threads = [
            threading.Thread(target=work, name=f"{name} of worker {place.number}") for name, work in works.items()
        ]
        with link, Gate(place.own_gate(), place.token, RING_SETTINGS) as gate:
            self._control, self._gate = ControlLink(link, self._codec), gate
            self.heart.add(link)
            self.heart.start(self._lose)
            try:
                self.say(Hello(os.getpid(), gate.place, place.name, *self.device_bytes(), round(process_seconds(), 3)))
                for thread in threads:
                    thread.start()
                while (turn := self._turns.get()) is not None:
                    self._serve(*turn, gate)
            finally:
                self._end(threads)

    def stop(self) -> None:
        """From any thread; `run` returns soon."""
        self._stopped.set()
        self._news.set()
        self.end_epoch("the worker stops")
        self._preparing.end()
        self._turns.put(None)
        if self._control is not None:
            self._control.link.fail(LinkClosed("the worker stops"))

    def say(self, answer: object) -> None:
        """To the head. Nothing is raised where it is gone: the thread that hears orders notices."""
        if self._control is not None:
            with suppress(LinkError):
                self._control.send(answer)

    def fail(self, number: int, error: BaseException) -> None:
        """The last answer to an order."""
        kind = _kind_of(error)
        if not isinstance(error, NodeError):
            log.error("An order has failed", exc_info=error)
        else:
            log.info("Order %d has failed: %s", number, error)
        text = str(error) if isinstance(error, NodeError) else f"{type(error).__name__}: {error}"
        self.say(Failed(number, kind, text[:LONGEST_MESSAGE].replace("\0", " ")))

    def end_epoch(self, reason: str) -> None:
        """Its links end, and whatever computes comes to its end soon."""
        epoch = self._epoch
        if epoch is not None:
            epoch.end(reason)

    def stand_still(self, reason: str) -> None:
        """Returns once nobody computes."""
        self.end_epoch(reason)
        self._idle.wait()

    def _lose(self, link: Link) -> None:
        """The epoch is over with either of its links: who waits at one does not see the other."""
        epoch = self._epoch
        if epoch is not None and link in epoch.links:
            epoch.end(str(link.end))

    def _hear(self) -> None:
        assert self._control is not None, "the link is made before this thread begins"
        try:
            while True:
                order = self._control.receive()
                handler = self.handlers.get(type(order))
                if handler is None:
                    raise self._control.link.fail(LinkFault(f"{type(order).__name__} is no order for a worker"))
                self._handle(handler, order)
        except LinkError as error:
            if not self._stopped.is_set():
                log.info("The head is gone: %s", error)
        finally:
            self.stop()

    def _handle(self, handler: Handler, order: Any) -> None:
        try:
            handler(order)
        except Exception as error:  # whatever it is, the head is told
            self.fail(order.number, error)

    def _load(self, order: Load) -> None:
        self._preparing.begin(order)

    def _release(self, order: Release) -> None:
        self._preparing.call_off()
        self.parts.forget_next()
        self.say(Done(order.number))

    def _stop(self, order: Stop) -> None:
        self.say(Done(order.number))
        self.stop()

    def _take(self, order: Take) -> None:
        """The steps of an epoch begin once those of the one before have come to their end."""
        self.end_epoch("another epoch was asked for")
        loaded = self.parts.choose(order.part)
        if loaded is None:
            raise ModelError(f"order {order.part} has left no part here")
        with self._turning:
            self._epoch = Epoch(order, self._tally.steps)
            self._idle.clear()
            self._turns.put((self._epoch, loaded))
            if self._stopped.is_set():
                self._epoch.end("the worker stops")

    def _serve(self, epoch: Epoch, loaded: LoadedPart, gate: Gate) -> None:
        """One epoch, from its cache to the end of its links."""
        try:
            self.parts.drop_leaving()
            part = self._seated(epoch.take, loaded)
            try:
                loop = self._joined(epoch, loaded, part, gate)
                self._say_taken(epoch.take, loaded)
                error = loop.run()
                self._broken = epoch.reason or str(error)
                log.info("Epoch %d is over: %s", epoch.take.epoch, self._broken)
            finally:
                part.close()
        except Exception as error:  # whatever it is, the head is told
            self.fail(epoch.take.number, error)
        finally:
            self._leave(epoch)

    def _seated(self, take: Take, loaded: LoadedPart) -> StagePart:
        part = loaded.part
        set_threads(take.threads)
        part.drop_cache()
        give_back(part.device)
        self.parts.check_cache(loaded, take.near_count * take.block_tokens * part.token_bytes)
        part.take_cache(take.block_tokens, take.near_count)
        if (
            part.device.type == "cuda" and take.near_count
        ):  # kernels that are compiled here and now keep the interpreter's lock
            self.say(Busy(WARM_SECONDS))
            warm(part)
            self.say(Busy(0.0))
        return self.seating(take, loaded)

    def _joined(self, epoch: Epoch, loaded: LoadedPart, part: StagePart, gate: Gate) -> StageLoop:
        before, behind = epoch.join(gate, self._place.token)
        for link in (before, behind):
            self.heart.add(link)
        take = epoch.take
        seat = Seat(before, behind, take.stage, take.stage == take.stages - 1, self._place.name)
        return StageLoop(part, seat, bounds_of(take, loaded), Pace(loaded.order.speed, epoch.over.wait), self._tally)

    def _say_taken(self, take: Take, loaded: LoadedPart) -> None:
        self._broken, self._running = "", take.epoch
        part = loaded.part
        self.say(Taken(take.number, take.epoch, part.cache_bytes, part.holding.bytes))
        self._news.set()

    def _leave(self, epoch: Epoch) -> None:
        for link in epoch.links:
            self.heart.remove(link)
        epoch.close()
        with self._turning:
            if self._epoch is epoch:
                self._idle.set()
        self._news.set()

    def _tell(self) -> None:
        """How things stand, when they stand otherwise than before."""
        told: tuple[object, ...] = ()
        while not self._stopped.is_set():
            self._news.wait(REPORT_SECONDS)
            self._news.clear()
            tally, weights, cache = self._tally, self.parts.weights_bytes, self.parts.cache_bytes
            standing = (self._running, tally.steps, tally.tokens, round(tally.busy_seconds, 6), weights, cache)
            total, free = self.device_bytes()
            # What somebody else takes or leaves is of interest to whoever has lent, in steps that are worth a word.
            beside = free * FREE_STEPS // max(total, 1) if self.lending.lent_bytes else 0
            if (*standing, self._broken, beside) != told:
                told = (*standing, self._broken, beside)
                broken = self._broken[:LONGEST_MESSAGE].replace("\0", " ")
                self.say(Report(*standing, resident_bytes(), free, broken, self._hop_microseconds()))

    def _hop_microseconds(self) -> float:
        epoch = self._epoch
        steps = 0 if epoch is None else self._tally.steps - epoch.steps_before
        return epoch.link_microseconds / steps if epoch is not None and steps > 0 else 0.0

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        self.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        self.heart.stop()
        self.parts.close()
        self._preparing.close()


def bounds_of(take: Take, loaded: LoadedPart) -> StepBounds:
    part, limits = loaded.part, take.limits
    return StepBounds(
        take.block_tokens, take.block_count, part.vocabulary_size, part.hidden_size,
        rows=limits.rows, tokens=limits.tokens, copies=limits.copies,
    )  # fmt: skip


def _kind_of(error: BaseException) -> FailureKind:
    if isinstance(error, NoRoomBeside):
        return "no_room_beside"
    if is_shortage(error):
        return "out_of_memory"
    if isinstance(error, LinkError):
        return "links"
    return "model" if isinstance(error, ModelError | UsageError) else "error"


def main(arguments: Sequence[str], lines: Callable[[], str] = sys.stdin.readline) -> int:
    """A whole process. Raises nothing: its last words go to the log, and the code says that something was wrong."""
    try:
        if len(arguments) not in (2, 3) or not arguments[1].isdecimal():
            raise UsageError("a worker is told PLACE NUMBER [DEVICE]")
        token = lines().strip()
        worker = Worker(WorkerPlace(place_of(arguments[0]), int(arguments[1]), token, *arguments[2:]))
        # Not in the handler itself, which may have stopped the very code that holds a lock.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=worker.stop, name="stops").start())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the head's to hear
        worker.run()
    except (NodeError, ValueError) as error:
        log.error("%s", error)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # What was imported lives as long as the process: no collection, half a second long, looks through it again.
    gc.collect()
    gc.freeze()
    sys.exit(main(sys.argv[1:]))
