"""The pipeline's own thread: watches devices and workers, makes new plans, loads them, and has them take over.

Only this thread hires, loads, takes and dismisses, so nothing of it needs a lock beyond the crew's condition. The
engine's thread meets it in `Steering.meet`, between steps, where it waits for a verdict: a switch to another ring, or
the error that says why there is none. A plan is loaded beside what runs; what does not fit beside it waits for that
meeting. A lost worker breaks what runs at once; recovery begins then, and the meeting waits for its end. Every wait is
bounded. Must not know requests, schedules or how a worker computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gpu_node.device_fleet import DeviceFleet
from gpu_node.devices import Device
from gpu_node.errors import ModelError, NodeError, StageLost
from gpu_node.pipeline.builder import Builder, HandLost, LinksFailed, MindChanged
from gpu_node.pipeline.course import Course, Switch
from gpu_node.pipeline.crew import Crew
from gpu_node.pipeline.lineup import LineUp
from gpu_node.pipeline.planning import Planning
from gpu_node.pipeline.process import StartWorker
from gpu_node.pipeline.replan import Build, Keep, Refuse, Stop
from gpu_node.pipeline.ring import Ring
from gpu_node.pipeline.split_model import PlanDevices, SplitModel, SplitOptions
from gpu_node.pipeline.switching import MeasureDepth, Switching
from gpu_node.plan_picture import Picture

# A ring that breaks may have done so before its frozen worker is judged; so much longer than that it is waited for.
GRACE_SECONDS = 0.3
# Devices that were lost come back by the fleet's own clock, which is asked so often.
TICK_SECONDS = 1.0
# So many rings in a row that cannot be closed, or break soon with all workers there, are no accident; after the first
# few, new workers are tried.
MOST_BAD_RINGS, TRUSTED_BAD_RINGS = 4, 2
SOON_SECONDS = 60.0
LEFT = "it has left this process"
log = logging.getLogger("gpu_node.pipeline")


class Steering:
    def __init__(
        self,
        model: SplitModel,
        fleet: DeviceFleet,
        plan: PlanDevices,
        options: SplitOptions,
        start: StartWorker,
        measure: MeasureDepth,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`measure` is called in the pipeline's thread."""
        self._model, self._fleet, self._options, self._start, self._clock = model, fleet, options, start, clock
        self._planning = Planning(model.shape.name, fleet, plan)
        self._switching = Switching(model, measure, self.poke, options.lending)
        self.changed, self.course = threading.Condition(), Course()
        self.crew: Crew | None = None
        self.verdict: Switch | NodeError | None = None
        self.restless = False
        self.wake: Callable[[], None] = lambda: None
        self.idle: Callable[[], None] = lambda: None  # called now and then in the pipeline's thread
        self._met = self._closing = self._shrinking = False
        self._unwatch: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    # The engine's side

    def start(self, running: Picture | None = None, devices: Sequence[Device] = ()) -> None:
        """`running`: a plan of one stage that runs in the engine's own process already. Without it the first meeting
        waits until one is loaded."""
        course = self.course
        if running is None:
            course.broken, self.restless = "nothing runs yet", True
        else:
            course.plan, course.picture, course.inside, course.seen = running.plan, running, True, self._fleet.epoch
            course.budgets = {device.name: device.budget_bytes for device in devices}
        self._unwatch = self._fleet.watch(self.poke)
        self._thread.start()

    def meet(self) -> Switch | None:
        """In the engine's thread, nothing under way: wait for what is to be done. Raises why nothing runs any more.

        A model in the engine's own process is closed before."""
        with self.changed:
            course = self.course
            if course.inside:
                course.inside, course.plan = False, None
                course.broken = course.broken or ("" if course.next is not None else LEFT)
            self._met = True
            self.changed.notify_all()
            self.changed.wait_for(self._has_verdict)
            self._met = False
            verdict = self.verdict
            if isinstance(verdict, Switch):
                self.verdict = None
                self._settle()
                return verdict
        if verdict is not None:
            raise verdict.with_traceback(None)  # the same one may be raised again
        return None

    def _has_verdict(self) -> bool:
        if isinstance(self.verdict, NodeError):
            return self._closing or self.course.seen == self._fleet.epoch  # or there may be a better one soon
        return self.verdict is not None or not self.restless or self._closing

    def shrink(self, block_count: int) -> Switch | None:
        """The same with fewer blocks, in the engine's thread; None where something else has to be done first, which
        will have no more than these."""
        with self.changed:
            self.course.most_blocks = block_count
            if self.restless:
                return None
            self._shrinking = self.restless = True
        return self.meet()

    def poke(self) -> None:
        """From any thread: look whether there is something to do."""
        with self.changed:
            self._settle()

    def close(self) -> None:
        """Everything is ended, and nothing left behind."""
        self._unwatch()
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._end(self._rings())
        if self.crew is not None:
            self.crew.close()
        self._planning.tell_nothing_runs()

    # The thread

    def _run(self) -> None:
        while not self._closing:
            try:
                if self._wait():
                    self._try()
            except Exception as error:  # the thread must live: the engine waits for it
                log.exception("the pipeline's thread failed")
                self._break(str(error))
                self._stop(ModelError(f"the split failed: {error}"))

    def _try(self) -> None:
        try:
            self._turn()
        except MindChanged:
            self.course.seen = -1  # what was given up is thought over again
        except HandLost as error:
            self._lose(error)
        except (LinksFailed, StageLost) as error:
            self.course.bad_rings += 1
            self._break(str(error))
        except NodeError as error:
            self._give_up(error)

    def _wait(self) -> bool:
        """For something to do; False: it is over."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._closing or self._has_work(), TICK_SECONDS)
                if self._closing or self._has_work():
                    return not self._closing
            if any(device.state == "lost" for device in self._fleet.devices):
                self._fleet.tick()
            self.idle()

    def _has_work(self) -> bool:
        course = self.course
        return (
            course.seen != self._fleet.epoch
            or (self.crew is not None and bool(self.crew.lost()))
            or bool(course.broken and self.verdict is None)
            or bool(self._met and (course.next is not None or self._shrinking))
            or bool(not course.broken and course.over)
        )

    def _turn(self) -> None:
        course = self.course
        if course.over and not course.broken:
            self._mourn(course.over)
        self._bury()
        if course.plan is None and not course.broken and course.seen != self._fleet.epoch:
            self._break(LEFT)  # and what was to follow is not what the devices want any more
        if course.broken:
            self._recover()
        elif self._met and self._shrinking and course.lineup is not None:
            self._take_over(course.lineup.again())  # before anything that would be given up for it
        elif course.seen != self._fleet.epoch:
            self._reconsider()
        elif self._met and course.next is not None:
            course.most_blocks = None  # that was another division's
            self._take_over(course.next)

    # Losses

    def _mourn(self, reason: str) -> None:
        """A ring is over. Whoever is to blame is known by now, or soon."""
        crew, course = self.crew, self.course
        assert crew is not None, "a ring has a crew"
        with self.changed:
            seconds = GRACE_SECONDS + self._options.silence_seconds
            self.changed.wait_for(lambda: self._closing or bool(crew.lost()), seconds)
        if not crew.lost():
            course.bad_rings = course.bad_rings + 1 if self._clock() - course.taken_at < SOON_SECONDS else 1
            self._break(reason)

    def _bury(self) -> None:
        """Workers that are gone: the fleet hears of it, and what they were needed for is broken."""
        lost = [] if self.crew is None else self.crew.lost()
        for hand in lost:
            self.course.loss = f"{hand.name} is lost: {hand.gone}"
            log.warning("%s", self.course.loss)
            self._fleet.lost(hand.name, hand.gone)
            if not self.course.broken and self.course.uses(hand.name):
                self._break(self.course.loss)
        if self.crew is not None:
            self.crew.dismiss(lost)

    def _break(self, reason: str) -> None:
        """What runs, or was to run, does not any more. The engine hears of it at its next step, or is woken up."""
        with self.changed:
            course, rings = self.course, self._rings()
            if not course.broken:
                course.broken_at = self._clock()
            course.broken, course.error, course.plan = reason, None, None
            self.verdict, self._shrinking, self.restless = None, False, True
            self.changed.notify_all()
        self._end(rings)
        self._drop_next()
        self.wake()

    def _lose(self, error: HandLost) -> None:
        """One that lives and cannot do what is asked of it counts as lost, unless it is needed as it is."""
        course, crew = self.course, self.crew
        if error.hand.gone or crew is None:
            return  # its burial is the next turn
        if not course.epoch:
            self._stop(error.told)
        elif not course.broken and course.uses(error.hand.name):
            self._fleet.refuse(error.hand.name, str(error))
            self._dismiss_spares()
        else:
            course.loss = str(error)
            self._fleet.lost(error.hand.name, error.reason)
            crew.dismiss([error.hand])

    def _give_up(self, error: NodeError) -> None:
        """A plan that cannot be: what runs goes on, if something does."""
        log.warning("A plan is given up: %s", error)
        if self.course.broken:
            self._stop(error)
        else:
            self._dismiss_spares()

    def _stop(self, error: NodeError) -> None:
        """Nothing runs until the devices change."""
        with self.changed:
            course = self.course
            course.broken, course.error, course.plan, self.verdict = course.broken or str(error), error, None, error
            course.changing, self.restless, self._shrinking = False, True, False
            self.changed.notify_all()
        self._dismiss_spares()
        self._planning.tell_nothing_runs()
        self.wake()

    # New plans

    def _recover(self) -> None:
        """Plan on what is left, load what is missing, take a new epoch; or say why there is none."""
        course = self.course
        with self.changed:
            self.verdict = course.error = None
            course.changing = True
        decision, devices = self._planning.decide(course)
        match decision:
            case Stop(error):
                self._stop(error)
            case Build(picture, _):
                if course.bad_rings >= MOST_BAD_RINGS:
                    course.bad_rings = 0
                    raise ModelError(f"the stages cannot be kept together: {course.broken}")
                self._dismiss_spares(picture, all_of_them=course.bad_rings >= TRUSTED_BAD_RINGS)
                self._planning.tell_planned(picture, course.broken if course.epoch else "", self._builder().held)
                self._establish(self._builder().prepare(picture, devices, drop_current=True))

    def _reconsider(self) -> None:
        """The devices have changed: something better, something that was asked for, or nothing to do."""
        course = self.course
        self._drop_next()
        decision, devices = self._planning.decide(course)
        match decision:
            case Keep():
                self._dismiss_spares()
            case Refuse(names, sentence):
                self._dismiss_spares()
                for name in names:
                    self._fleet.refuse(name, sentence)
            case Stop(error):
                self._break(str(error))
                self._stop(error)
            case Build(picture, why):
                self._dismiss_spares(picture)
                self._planning.tell_planned(picture, why, self._builder().held)
                seen, inside = course.seen, course.inside_devices
                lineup = self._builder().prepare(picture, devices, lambda: self._minds(seen), occupied=inside)
                with self.changed:
                    course.next, self.restless = lineup, True
                self.wake()

    def _minds(self, seen: int) -> bool:
        """What is loaded in the background is not wanted any more."""
        lost = self.crew is not None and bool(self.crew.lost())
        return self._fleet.epoch != seen or bool(self.course.over) or self._shrinking or lost

    def _take_over(self, lineup: LineUp) -> None:
        """Nothing is under way: what runs ends, what did not fit beside it is loaded, the new plan begins."""
        course = self.course
        old = course.lineup.names if course.lineup is not None else ()
        with self.changed:
            rings = self._rings()
            course.ring, course.next, course.changing = None, None, True
        self._end(rings)
        try:
            short = [seat for seat in lineup.seats if seat.loaded is None]
            if short:
                self._builder().load(lineup, short, drop_current=True)
            self._establish(lineup)
        except NodeError as error:
            if not isinstance(error, HandLost | LinksFailed | StageLost):
                for name in set(lineup.names) - set(old):  # without those who joined it went well
                    self._fleet.lost(name, str(error))
            self._break(str(error))
            if isinstance(error, HandLost):
                raise

    def _establish(self, lineup: LineUp) -> None:
        """A line-up whose parts are all loaded takes an epoch; the engine finds it at the meeting."""
        course, crew = self.course, self.crew
        assert crew is not None, "a line-up has workers"
        switch = self._switching.switch(lineup, self._builder(), course)
        with self.changed:
            course.plan, course.picture = replace(lineup.picture.plan, epoch=lineup.epoch), lineup.picture
            course.lineup, course.ring, course.taken_at = lineup, switch.ring, self._clock()
            course.budgets = {seat.device.name: seat.device.budget_bytes for seat in lineup.seats}
            course.broken, course.changing, self._shrinking = "", False, False
            self.verdict, self.restless = switch, True
            self.changed.notify_all()
        self._dismiss_spares()
        self._planning.tell_switched(lineup)
        self.wake()

    # Tidying

    def _dismiss_spares(self, picture: Picture | None = None, all_of_them: bool = False) -> None:
        """Workers that neither what runs nor the plan has a place for."""
        if self.crew is None:
            return
        kept = set() if picture is None else {stage.device for stage in picture.plan.stages}
        if not self.course.broken and self.course.lineup is not None:
            kept |= set(self.course.lineup.names)
        hands = list(self.crew.hands.values())
        self.crew.dismiss([hand for hand in hands if all_of_them or hand.name not in kept])

    def _drop_next(self) -> None:
        with self.changed:
            lineup, self.course.next = self.course.next, None
            self._settle()
        if lineup is not None:
            self._builder().release(lineup)

    def _settle(self) -> None:
        """Under the condition: whether there is anything left for a meeting."""
        course = self.course
        waits = course.next is not None or self.verdict is not None or self._shrinking
        self.restless = waits or bool(course.broken or course.over)
        self.changed.notify_all()

    def _rings(self) -> set[Ring]:
        pending = self.verdict.ring if isinstance(self.verdict, Switch) else None
        return {ring for ring in (self.course.ring, pending) if ring is not None}

    def _end(self, rings: Collection[Ring]) -> None:
        """Never under the condition: their threads may wait for it to tell of their end."""
        for ring in rings:
            if self.crew is not None:
                self.crew.unwatch(ring.links)
            ring.close()

    def _builder(self) -> Builder:
        if self.crew is None:
            self.crew = Crew(self._start, self._options, self.changed, self._clock)
        return Builder(self.crew, self._model, self._options, lambda: self._closing, self._clock)
