"""One worker as the head knows it: its process, its control link, and what it has said on it.

Invariants: everything is noted under the crew's one condition, whoever waits there wakes up; an order has one last
answer, by its number; who is gone stays gone, with the first reason, and is never talked to again. Must not know plans.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_node.devices import Device
from gpu_node.pipeline.control import ControlLink
from gpu_node.pipeline.errors import LinkClosed, LinkError
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.orders import Busy, Done, Failed, Hello, Loaded, Progress, Report, Taken
from gpu_node.pipeline.process import WorkerProcess
from gpu_node.pipeline.vital_signs import is_at_work

# A process that dies hangs up first; on a busy machine its end is some way behind that.
EXIT_SECONDS = 0.5
Answer = Loaded | Taken | Done | Failed


@dataclass(frozen=True, slots=True)
class TakenPart:
    """What a worker computes with. `device`: with the budget and the speed that it was loaded for."""

    first: int
    behind: int
    device: Device
    loaded: Loaded


class Hand:
    def __init__(
        self,
        device: Device,
        number: int,
        process: WorkerProcess,
        changed: threading.Condition,
        clock: Callable[[], float],
        at_work: Callable[[int | None], bool] = is_at_work,
    ) -> None:
        self.device, self.number, self.process = device, number, process
        self._changed, self._clock, self._at_work = changed, clock, at_work
        self._control: ControlLink | None = None
        self._reader: threading.Thread | None = None
        self.hello: Hello | None = None
        self.gone = ""  # why
        self.dismissed = False  # its end is no loss
        self.answers: dict[int, Answer] = {}
        self.progress: dict[int, tuple[int, int]] = {}
        self.report: Report | None = None
        self.awaited: set[int] = set()  # numbers of orders whose answers somebody waits for
        self.loading: set[int] = set()  # those of them that load
        self.part: TakenPart | None = None
        self.since = self.heard = clock()
        self._busy_until = 0.0
        self._ended = False
        self._counted = -1

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def link(self) -> Link | None:
        return None if self._control is None else self._control.link

    @property
    def steps(self) -> int:
        """That it has computed, as it told last."""
        return 0 if self.report is None else self.report.steps

    def admit(self, link: Link) -> bool:
        """Its control link is made; False: too late, and the link is closed."""
        with self._changed:
            if self.gone or self._ended:
                link.close()
                return False
            self._control = ControlLink(link)
            self.heard = self._clock()
            self._reader = threading.Thread(
                target=self._read, args=(self._control,), name=f"hears {self.name}", daemon=True
            )
            self._reader.start()
            return True

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        with self._changed:
            self.awaited.discard(number)
            self.loading.discard(number)
            self.answers.pop(number, None)

    def send(self, order: Any) -> None:
        """Nothing is raised where it is gone: that is noticed, and told, in one place."""
        assert self._control is not None, "orders follow its hello"
        try:
            self._control.send(order)
        except LinkError as error:
            self.lose(str(error))

    def lose(self, reason: str) -> None:
        """It does not come back; its links end with its process."""
        with self._changed:
            if self.gone:
                return
            self.gone = self.process.ending or reason
            self._changed.notify_all()

    def look(self, now: float, silence_seconds: float, loading_seconds: float) -> None:
        """Whether it still says anything. A frozen one is lost; one that computes has as long as one that loads."""
        link = self.link
        if self.gone or link is None or self.hello is None:
            return
        counted = link.counters.beats_received + link.counters.frames_received
        if counted != self._counted:
            self._counted, self.heard = counted, now
        silent = now - self.heard
        if silent <= (loading_seconds if self.loading else silence_seconds) or now <= self._busy_until:
            return
        if silent > loading_seconds or not self._at_work(self.process.pid):
            self.lose(f"it has said nothing for {silent:.1f} s")

    def forgive(self, seconds: float) -> None:
        """The head itself was asleep for so long."""
        self.heard += seconds

    def end(self, within_seconds: float) -> None:
        """Wait for the process and close what is left of it. After it was told to stop, or is gone."""
        if (self.gone and not self.dismissed) or not self.process.wait(within_seconds):
            self.process.kill()
        with self._changed:
            self._ended = True  # who is let in at this moment is not kept
        if self._control is not None:
            self._control.link.close()
        if self._reader is not None:
            self._reader.join()
        self.lose("it was dismissed")

    def _read(self, control: ControlLink) -> None:
        while True:
            try:
                said = control.receive()
            except LinkError as error:
                if isinstance(error, LinkClosed):
                    self.process.wait(EXIT_SECONDS)  # its exit tells more than the link's end
                self.lose(str(error))
                return
            with self._changed:
                self._note(said)
                self._changed.notify_all()

    def _note(self, said: Any) -> None:
        match said:
            case Hello():
                self.hello = said
            case Progress(number, done, total):
                self.progress[number] = done, total
            case Busy(seconds):
                self._busy_until = self._clock() + seconds
            case Report():
                self.report = said
            case Loaded() | Taken() | Done() | Failed():
                if said.number in self.awaited:
                    self.answers[said.number] = said
                self.awaited.discard(said.number)
                self.loading.discard(said.number)
                self.progress.pop(said.number, None)
