"""The workers of one split model: started, let in, listened to, judged, and ended. One for each device that is used.

Whoever waits for workers waits on `changed`, the one condition under which everything here changes. Three threads stand
behind it: one at the gate while somebody is awaited, one for each worker's words, and the pulse, which beats on every
link and judges who has fallen silent. A socket's end tells of death at once; who is frozen is killed by the head, so
that all links of it end too. Invariant: `close` leaves no process, thread, socket or file. Must not know plans.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu_node.devices import Device
from gpu_node.pipeline.control import CONTROL_SETTINGS
from gpu_node.pipeline.ends import LinkEnds
from gpu_node.pipeline.errors import LinkError
from gpu_node.pipeline.gate import Gate
from gpu_node.pipeline.hand import Hand
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.orders import WORKER_MOST, Stop, control_ends
from gpu_node.pipeline.process import StartWorker, WorkerProcess, WorkerWords
from gpu_node.pipeline.split_model import SplitOptions
from gpu_node.pipeline.step_frames import RING_SETTINGS

# Often enough that beats, sent every second time, and the judging keep within half a second.
PULSE_SECONDS = 0.05
# The gate's thread looks so often whether somebody else is awaited by now.
ADMIT_SECONDS = 0.2
# The head judges silence itself, by what it knows of who loads; sockets only end what nobody looks after any more.
PATIENT_SECONDS = 60.0
log = logging.getLogger("gpu_node.pipeline")


class Crew:
    def __init__(
        self,
        start: StartWorker,
        options: SplitOptions,
        changed: threading.Condition,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start, self._options, self.changed, self._clock = start, options, changed, clock
        self._folder = TemporaryDirectory(prefix="potluck-")  # readable by its owner alone
        self.token = secrets.token_hex(16)
        control = replace(CONTROL_SETTINGS, silence_seconds=PATIENT_SECONDS)
        self._gate = Gate(str(Path(self._folder.name) / "head"), self.token, control)
        self.ring_gate = Gate(str(Path(self._folder.name) / "ring"), self.token, RING_SETTINGS)
        self.hands: dict[str, Hand] = {}
        self._past_steps = 0
        self._worker_numbers, self._order_numbers = count(), count(1)
        self._ending = threading.Event()
        self._heart = Heart(clock=clock)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._admit, "gate of the pipeline"), (self._beat, "pulse of the pipeline"))
        ]
        for thread in self._threads:
            thread.start()

    def hire(self, device: Device) -> Hand:
        """The worker of that device, started where there is none. One that the system does not start is `lost` like any
        other; nobody takes a lost one's place before it was dismissed."""
        with self.changed:
            found = self.hands.get(device.name)
        if found is not None:
            return found
        number = next(self._worker_numbers) % (WORKER_MOST + 1)
        with self.changed:  # it may knock at the gate before this is over
            try:
                process: WorkerProcess = self._start(WorkerWords(self._gate.place, number, device, self.token))
            except OSError as error:
                process = _NotStarted(f"its worker cannot be started: {error.strerror or error}")
            hand = self.hands[device.name] = Hand(device, number, process, self.changed, self._clock)
            if process.ending:
                hand.lose(process.ending)
            self.changed.notify_all()
        return hand

    def order(self, hand: Hand, make: Callable[[int], Any]) -> int:
        """Send what `make` makes of the order's own number; the answer will be in `hand.answers`."""
        number = next(self._order_numbers)
        with self.changed:
            hand.awaited.add(number)
        hand.send(make(number))
        return number

    def watch(self, links: Iterable[Link]) -> None:
        """Beats on them too, and nobody's silence there is judged but by the sockets."""
        for link in links:
            self._heart.add(link)

    def unwatch(self, links: Iterable[Link]) -> None:
        for link in links:
            self._heart.remove(link)

    @property
    def steps(self) -> int:
        """Messages that all workers have received on the ring, as far as they have told; also of those that ended."""
        return self._past_steps + sum(hand.steps for hand in list(self.hands.values()))

    def lost(self) -> list[Hand]:
        """Those that are gone and were not told to go."""
        with self.changed:
            return [hand for hand in self.hands.values() if hand.gone and not hand.dismissed]

    def dismiss(self, hands: Iterable[Hand]) -> None:
        """They end; their memory is free when this returns. Also those that are gone already."""
        leaving = [hand for hand in hands if self.hands.get(hand.name) is hand]
        for hand in leaving:
            hand.dismissed = not hand.gone
            if not hand.gone and hand.hello is not None:
                self.order(hand, Stop)
        self._end(leaving)

    def close(self) -> None:
        self.dismiss(list(self.hands.values()))
        with self.changed:
            self._ending.set()
            self.changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._gate.close()
        self.ring_gate.close()
        self._folder.cleanup()

    def _end(self, hands: list[Hand]) -> None:
        deadline = self._clock() + self._options.stop_seconds
        for hand in hands:
            told = hand.dismissed and hand.hello is not None
            hand.end(max(deadline - self._clock(), 0.0) if told else 0.0)
            if hand.link is not None:
                self._heart.remove(hand.link)
            with self.changed:
                if self.hands.get(hand.name) is hand:
                    del self.hands[hand.name]
                    self._past_steps += hand.steps

    def _admit(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._ending.is_set() or self._awaited())
                if self._ending.is_set():
                    return
            try:
                link = self._gate.admit(_Expected(self._awaited), ADMIT_SECONDS)
            except LinkError:  # nobody came yet
                continue
            hand = self._awaited().get(link.ends)
            if hand is None:  # given up meanwhile
                link.close()
                continue
            if hand.admit(link):
                self._heart.add(link)

    def _awaited(self) -> dict[LinkEnds, Hand]:
        with self.changed:
            hands = list(self.hands.values())
        return {control_ends(hand.number): hand for hand in hands if hand.link is None and not hand.gone}

    def _beat(self) -> None:
        last, even = self._clock(), False
        while not self._ending.wait(PULSE_SECONDS):
            now = self._clock()
            asleep, last, even = now - last - PULSE_SECONDS, now, not even
            if even and self._heart.tick():  # some link is over
                with self.changed:
                    self.changed.notify_all()
            for hand in list(self.hands.values()):
                if asleep > PULSE_SECONDS:
                    hand.forgive(asleep)
                self._judge(hand, now)

    def _judge(self, hand: Hand, now: float) -> None:
        """Whoever does not even start, or has fallen silent, is lost; no link of it stays open."""
        if hand.gone:
            return
        if hand.hello is None and now - hand.since > self._options.start_seconds:
            hand.lose(f"its worker has not started within {self._options.start_seconds:.0f} s")
        elif hand.link is None and hand.process.ending:
            hand.lose(hand.process.ending)
        else:
            hand.look(now, self._options.silence_seconds, self._options.loading_silence_seconds)
        if hand.gone and not hand.process.ending:
            log.warning("The worker of %s is ended: %s", hand.name, hand.gone)
            hand.process.kill()


class _NotStarted:
    """A process that there never was."""

    pid = None

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def kill(self) -> None:
        pass

    def wait(self, within_seconds: float) -> bool:
        return True


class _Expected(Collection[LinkEnds]):
    """Who is awaited at the moment of asking: workers are hired while the gate is waited at."""

    def __init__(self, look: Callable[[], dict[LinkEnds, Hand]]) -> None:
        self._look = look

    def __contains__(self, ends: object) -> bool:
        return ends in self._look()

    def __iter__(self) -> Iterator[LinkEnds]:
        return iter(self._look())

    def __len__(self) -> int:
        return len(self._look())
