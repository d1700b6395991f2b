"""A model split over devices, as the engine sees it: steps go round a ring of workers, samples are drawn here.

A plan of one device at the start runs in this process, like a model that nobody splits; later plans run in workers,
however many. Every call comes from the engine's thread but `pipeline`, `restless` and `can_do_without`. Invariants: the
draws are the sampler's alone, so that where layers lie changes no token; after a device was lost every call raises
`StageLost` until `tend` has gone over to another ring. Must not know layers or how a worker computes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch

from gpu_node.device_fleet import DeviceFleet
from gpu_node.engine.chain import Holding
from gpu_node.engine.loader import load_vocabulary
from gpu_node.engine.runner import Runner
from gpu_node.engine.sampler import Sampler
from gpu_node.engine.step import CacheChange, CacheShape, Choice, Pick, Step, StepResult
from gpu_node.engine.step_shares import unpicked
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import BlocksLost, NodeError, StageLost
from gpu_node.pipeline.course import Switch
from gpu_node.pipeline.depth import HASTY_SECONDS, Trial, choose, measure, measure_seconds
from gpu_node.pipeline.head_lending import HeadLending, status_with
from gpu_node.pipeline.head_status import Measures, status_of
from gpu_node.pipeline.lineup import LineUp
from gpu_node.pipeline.one_device import load_inside
from gpu_node.pipeline.planning import Planning
from gpu_node.pipeline.process import StartWorker, start_process
from gpu_node.pipeline.replan import spans
from gpu_node.pipeline.ring import Answered, Ring
from gpu_node.pipeline.slow_down import Pace
from gpu_node.pipeline.split_model import USUAL_SPLIT, PlanDevices, SplitModel, SplitOptions
from gpu_node.pipeline.steering import Steering
from gpu_node.pipeline_status import PipelineStatus
from gpu_node.split_plan import DoesNotFit

# Steps of so many tokens at most count as decodes, whose time a plan predicts.
DECODE_TOKENS = 64
STEPS_REMEMBERED = 64
log = logging.getLogger("gpu_node.pipeline")


class SplitRunner:
    def __init__(
        self,
        model: SplitModel,
        fleet: DeviceFleet,
        plan: PlanDevices,
        options: SplitOptions = USUAL_SPLIT,
        start: StartWorker = start_process,
    ) -> None:
        """Returns when the model runs. Raises `DoesNotFit`, `ModelError` and `DeviceOutOfMemory`; nothing is left
        behind then."""
        self._begun = time.perf_counter()
        self._model, self._fleet, self._options = model, fleet, options
        self._planning = Planning(model.shape.name, fleet, plan)
        self._sampler = Sampler()
        self._inside: Runner | None = None
        self._switch: Switch | None = None
        self._lending: HeadLending | None = None
        self._seconds: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._begins: deque[tuple[float, bool]] = deque()  # when, and whether it decodes
        self._pace = Pace(1.0, time.sleep)
        self._depths: dict[tuple[tuple[str, int, int], ...], tuple[int, Mapping[int, float]]] = {}
        self._steps = self._answered = 0
        self._recovery_seconds: float | None = None
        self._closed = False
        self._load_seconds: float | None = None
        self.vocabulary: Vocabulary = load_vocabulary(model.folder, model.options.template)
        self._steering = Steering(model, fleet, plan, options, start, self._depth_of)
        self._steering.idle = self._look_around
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._load_seconds = time.perf_counter() - self._begun

    def _start(self) -> None:
        devices = self._fleet.present()
        picture = self._planning.made(devices)
        if len(picture.plan.stages) > 1:
            self._steering.start()
            switch = self._steering.meet()
            assert switch is not None, "the first meeting ends with a ring, or raises"
            self._install(switch)
            return
        device = next(one for one in devices if one.name == picture.plan.stages[0].device)
        self._inside = load_inside(self._model, device)
        self._pace = Pace(device.speed or 1.0, time.sleep)
        shape = self._inside.cache
        held = self._inside.memory_bytes + shape.block_count * shape.block_bytes
        self._fleet.hold(self._model.shape.name, {device.name: held})
        self._steering.start(picture, devices)

    # What it is

    @property
    def device(self) -> str:
        return self._inside.device if self._inside is not None else ", ".join(self._now.lineup.names)

    @property
    def dtype(self) -> str:
        return self._inside.dtype if self._inside is not None else self._now.lineup.seats[0].part.dtype

    @property
    def memory_bytes(self) -> int:
        return self._inside.memory_bytes if self._inside is not None else self._now.lineup.weights_bytes

    @property
    def cache(self) -> CacheShape:
        return self._inside.cache if self._inside is not None else self._now.shape

    @property
    def embedding_length(self) -> int:
        return self._model.shape.hidden_size

    @property
    def depth(self) -> int:
        return 1 if self._inside is not None else self._now.depth

    @property
    def summary(self) -> dict[str, Any]:
        if self._inside is not None:
            return self._inside.summary
        now = self._now
        parts = [seat.part for seat in now.lineup.seats]
        holding = Holding.of_all(Holding(dict(part.forms), part.errors) for part in parts)
        shape = now.shape
        return {
            "model": self._model.shape.name,
            "device": self.device,
            "weights": self._model.options.weights,
            "dtype": self.dtype,
            "compute": parts[0].compute,
            "layers": f"own, over {len(parts)} devices",
            "forms": holding.forms,
            "weight_bytes": holding.bytes,
            "weight_error": holding.error,
            "load_seconds": round(self._load_seconds or 0.0, 3),
            "cache_dtype": self.dtype,
            "cache_blocks": shape.block_count,
            "cache_tokens": shape.block_count * shape.block_tokens,
            "cache_bytes": shape.block_count * shape.block_bytes,
        }

    @property
    def pipeline(self) -> PipelineStatus:
        """From any thread."""
        inside, shape = self._inside, None
        held = (0, 0)
        if inside is not None:
            shape = inside.cache
            held = inside.memory_bytes, shape.block_count * shape.block_bytes
        measures = Measures(self._steps, self._hops(), tuple(self._seconds), self._recovery_seconds, held)
        status = status_of(self._model, self._steering.course, self._switch, measures, time.monotonic)
        return status_with(status, self._lending)

    def ask_back(self, device: str, size: int) -> None:
        """From any thread: that device needs so many bytes for something else; what it has lent makes room for them."""
        lending = self._lending
        if lending is not None:
            lending.ask_back(device, size)
            self._steering.wake()

    @property
    def _over(self) -> bool:
        return self._switch is not None and bool(self._switch.ring.over)

    @property
    def restless(self) -> bool:
        return self._over or self._steering.restless or (self._lending is not None and self._lending.restless)

    @property
    def lends(self) -> bool:
        return self._lending is not None and self._lending.wants_more

    @property
    def steps(self) -> int:
        return self._steps

    def can_do_without(self, name: str) -> str | None:
        """From any thread: why that device cannot be missed, in one sentence; None where it can."""
        found = self._planning.found([device for device in self._fleet.present() if device.name != name])
        return str(found) if isinstance(found, DoesNotFit) else None

    # Steps

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        self.begin(step)
        return self.finish(picks)

    def begin(self, step: Step) -> None:
        if self._inside is not None:
            self._inside.begin(step)
        else:
            self._ring.begin(step)
            if self._lending is not None:
                self._lending.used(step)
        self._begins.append((time.perf_counter(), step.token_count <= DECODE_TOKENS))

    def finish(self, picks: Sequence[Pick]) -> StepResult:
        begun, decodes = self._begins.popleft()
        if self._inside is not None:
            self._pace.begin()
            result = self._inside.finish(picks)
            self._pace.end()
        else:
            result = self._answered_by(self._ring, picks)
        self._steps += 1
        if decodes:
            self._seconds.append(time.perf_counter() - begun)
        return result

    def _answered_by(self, ring: Ring, picks: Sequence[Pick]) -> StepResult:
        try:
            return self._drawn(ring, picks)
        except BlocksLost as error:
            if self._lending is not None:
                self._lending.lost(error.stage)
            raise

    def drop(self) -> None:
        self._begins.clear()
        if self._inside is not None:
            self._inside.drop()
        elif self._switch is not None:
            self._switch.ring.drop()

    def listen(self, wake: Callable[[], None]) -> None:
        self._steering.wake = wake
        if self.restless:
            wake()

    def tend(self, shortage: int, urgent: bool = False) -> CacheChange | None:
        if self._over:  # noticed here first: `meet` waits until it is known who is to blame
            self._steering.restless = True
        if not self._steering.restless:
            return self._lent(shortage, urgent)
        if self._inside is not None:
            self._inside.close()
            self._inside = None
        switch = self._steering.meet()
        if switch is None:
            return None
        self._install(switch)
        return CacheChange(switch.shape, reset=True)

    def _look_around(self) -> None:
        """In the pipeline's thread: an engine that computes nothing does not see that memory is asked back."""
        lending = self._lending
        if lending is not None and lending.restless:
            self._steering.wake()

    def _lent(self, shortage: int, urgent: bool) -> CacheChange | None:
        if self._lending is None:
            return None
        restored, retired = self._lending.tend(shortage, urgent)
        return CacheChange(self.cache, retired=retired, restored=restored) if restored or retired else None

    def shrink_cache(self, block_count: int) -> CacheShape:
        if self._inside is not None:
            return self._inside.shrink_cache(block_count)
        switch = self._steering.shrink(block_count)
        if switch is not None:
            self._install(switch)
        return self.cache

    def close(self) -> None:
        """All workers are ended, all threads joined. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._steering.close()
        if self._inside is not None:
            self._inside.close()
            self._inside = None

    def _hops(self) -> int:
        """Messages on all links of the ring, as who received them counted: workers tell from time to time."""
        crew, switch = self._steering.crew, self._switch
        answered = self._answered + (0 if switch is None else switch.ring.answered)
        return answered + (0 if crew is None else crew.steps)

    @property
    def _now(self) -> Switch:
        if self._switch is None:
            raise StageLost("the model is on its way from one place to another")
        return self._switch

    @property
    def _ring(self) -> Ring:
        return self._now.ring

    def _install(self, switch: Switch) -> None:
        if self._switch is not None:
            self._answered += self._switch.ring.answered
        self._switch, self._lending = switch, None
        crew, lineup, policy = self._steering.crew, switch.lineup, self._options.lending
        if policy is not None and crew is not None and switch.shape.promised:
            self._lending = HeadLending(policy, crew, lineup, switch.shape.block_tokens)
        self._seconds.clear()
        self._begins.clear()
        course = self._steering.course
        if course.broken_at is not None:
            self._recovery_seconds = time.monotonic() - course.broken_at
            course.broken_at = None

    @torch.inference_mode()
    def _drawn(self, ring: Ring, picks: Sequence[Pick]) -> StepResult:
        """As `Runner.run`, from outputs that came over the ring."""
        answered = ring.finish()
        try:
            return self._result(answered, picks)
        finally:
            ring.release(answered)

    def _result(self, answered: Answered, picks: Sequence[Pick]) -> StepResult:
        choices: tuple[Choice, ...] = ()
        arrays: dict[int, Any] = {}
        rows, picked = answered.step.rows, {pick.row for pick in picks}
        for share, output in zip(answered.shares, answered.outputs, strict=True):
            if output is None:
                continue
            found = torch.from_numpy(numpy.frombuffer(output.data, numpy.float32).reshape(output.shape))
            places = share.places(rows)
            arrays.update(unpicked(found, rows, places, picked))
            if share.want == "logits" and picks:
                choices = self._sampler.sample(found, picks, [places[pick.row] for pick in picks])
        return StepResult(choices, arrays)

    def _depth_of(self, ring: Ring, lineup: LineUp, shape: CacheShape) -> tuple[int, Mapping[int, float]]:
        """In the pipeline's thread. A division that was measured before is not measured again."""
        if self._options.depth:
            return self._options.depth, {}
        division = spans(lineup.picture.plan)
        if division not in self._depths:
            stage_seconds = [seat.plan.seconds for seat in lineup.seats]
            self._depths[division] = choose(self._measured(ring, shape, len(lineup.seats)), stage_seconds)
        return self._depths[division]

    def _measured(self, ring: Ring, shape: CacheShape, stages: int) -> Mapping[Trial, float]:
        starts = self._load_seconds is None
        seconds = measure_seconds(time.perf_counter() - self._begun) if starts else HASTY_SECONDS
        try:
            return measure(_Measured(ring, self._drawn, self._ends), shape, stages, time.perf_counter, seconds)
        except StageLost:
            raise
        except NodeError as error:  # what cannot be measured can still be run
            log.warning("how many steps are worth being under way cannot be measured: %s", error)
            ring.drop()
            return {}

    def _ends(self) -> bool:
        return self._closed


class _Measured:
    """A ring that nobody else uses yet, with the sampling that decodes have."""

    def __init__(
        self, ring: Ring, draw: Callable[[Ring, Sequence[Pick]], StepResult], ends: Callable[[], bool]
    ) -> None:
        """`ends`: nobody wants to know any more."""
        self._ring, self._draw, self._ends = ring, draw, ends

    def begin(self, step: Step) -> None:
        if self._ends():
            raise StageLost("the model is closed")
        self._ring.begin(step)

    def finish(self, picks: Sequence[Pick]) -> StepResult:
        return self._draw(self._ring, picks)
