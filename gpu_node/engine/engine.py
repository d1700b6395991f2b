"""The engine as the rest of the node sees it: load, generate, embed, infer, render, unload, close; all asynchronous.

The model lives in one thread, where `EngineCore` answers all requests together; this class prepares requests, passes
them there and hands events back. Invariants: a generation ends with one `Done` or one raised error; leaving the
iterator early stops the work before the next step; nothing runs after `close`. Must not import torch: what loads the
model is given.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from gpu_node.engine.core import EngineCore, Job
from gpu_node.engine.generation import Generation
from gpu_node.engine.guide import guides_of
from gpu_node.engine.mailbox import Call, Outlet
from gpu_node.engine.planned import Limits
from gpu_node.engine.preparation import (
    Bound,
    GuideShelf,
    StartGuide,
    prepare_generation,
    prepare_inference,
    prepare_texts,
)
from gpu_node.engine.prompt import render
from gpu_node.engine.reading import EmbeddingJob, InferenceJob
from gpu_node.engine.sequence import (
    Bounds,
    Done,
    EmbeddingRequest,
    Embeddings,
    Event,
    GenerationRequest,
    Inference,
    InferenceRequest,
    Prompt,
    Token,
)
from gpu_node.engine.stats import Counters, EngineStats, Gauges
from gpu_node.engine.step import ModelRunner
from gpu_node.engine.worker import Worker
from gpu_node.errors import DeadlineExceeded, GenerationFailed, ModelError, NodeBusy, NodeError, NodeStopping
from gpu_node.load_wish import CPU_STEP_TOKENS, GPU_STEP_TOKENS

__all__ = ["Engine", "EngineOptions", "EngineState", "ModelRunner"]

EngineState = Literal["empty", "loading", "ready", "failed", "closed"]

log = logging.getLogger("gpu_node.engine")


# So many pairs of tokens keep one core busy for about a second in the default model.
CPU_STEP_PAIRS = 512 * 2048


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How much is done at once. 0 tokens a step: what suits the device."""

    max_running: int = 32
    max_waiting: int = 512
    step_tokens: int = 0  # of a step that only reads prompts
    mixed_step_tokens: int = 0  # of a step that also decodes
    max_drafts: int = 8  # of one sequence in one step; 0: no speculation
    max_prompt_characters: int = 8 << 20  # more is refused before it is tokenised
    max_inference_bytes: int = 256 << 20  # of one `infer` answer

    def limits(self, runner: ModelRunner) -> Limits:
        on_gpu = runner.device.startswith("cuda")
        pure, mixed = (GPU_STEP_TOKENS, 1024) if on_gpu else (CPU_STEP_TOKENS, 64)
        return Limits(
            block_tokens=runner.cache.block_tokens,
            block_count=runner.cache.block_count,
            promised=runner.cache.promised,
            max_running=self.max_running,
            step_tokens=self.step_tokens or pure,
            mixed_step_tokens=self.mixed_step_tokens or mixed,
            step_pairs=0 if on_gpu else CPU_STEP_PAIRS,
            max_waiting=self.max_waiting,
            max_drafts=self.max_drafts,
        )


class Engine:
    def __init__(
        self,
        load: Callable[[], ModelRunner],
        prepare: Callable[[], Awaitable[None]] | None = None,
        options: EngineOptions = EngineOptions(),
        clock: Callable[[], float] = time.monotonic,
        guides: Callable[[ModelRunner], StartGuide] = guides_of,
    ) -> None:
        """`prepare` is awaited before `load` runs in the engine's thread (fetching, converting).

        `guides` is asked once a load, when the first guided request comes, in a thread of its own.
        """
        self._load, self._prepare, self._options, self._clock = load, prepare, options, clock
        self._guides = GuideShelf(guides)
        self._counters = Counters()
        self._core: EngineCore | None = None  # in the thread
        self._counting = threading.Lock()  # what is counted moves when a model leaves
        self._runner: ModelRunner | None = None
        self._loading: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._outlets: dict[asyncio.AbstractEventLoop, Outlet] = {}
        self._calls: set[Call] = set()
        self._leaving: ModelRunner | None = None  # to be unloaded when the last call has left
        self._left = asyncio.Event()
        self._state: EngineState = "empty"
        self.error = ""  # why the last load failed, or what ended the engine
        self._worker = Worker("engine", self, clock)

    # What others may know

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def runner(self) -> ModelRunner | None:
        return self._runner

    @property
    def options(self) -> EngineOptions:
        return self._options

    @property
    def busy(self) -> bool:
        """Some request is not over yet, wherever it is."""
        return bool(self._calls)

    @property
    def alive(self) -> bool:
        """The engine's thread runs."""
        return self._worker.alive

    @property
    def clock(self) -> Callable[[], float]:
        """Deadlines are times of this clock."""
        return self._clock

    def stats(self) -> EngineStats:
        with self._counting:
            core = self._core
            gauges = Gauges(max_running=self._options.max_running) if core is None else core.gauges()
            return self._counters.snapshot(gauges, self._clock())

    # Loading and unloading

    async def load(self) -> None:
        """Returns when the model is ready; any number of callers share one loading."""
        self._refuse_when_closed()
        self._take_back()
        if self._runner is not None:
            return
        if self._loading is None:
            self._state, self.error = "loading", ""
            self._loading = asyncio.create_task(self._load_once(), name="load the model")
            self._loading.add_done_callback(_look_at)
        loading = self._loading
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled():  # by `stop`, not by whoever waits here
                raise NodeStopping() from None
            raise

    async def _load_once(self) -> None:
        try:
            if self._unloading is not None:
                await asyncio.wait([self._unloading])
            if self._prepare is not None:
                await self._prepare()
            self._runner = await asyncio.wrap_future(self._worker.submit(self._attach))
            self._state = "ready"
        except NodeError as error:
            self._state, self.error = "failed", str(error)
            raise
        except Exception as error:  # top of the task
            log.exception("the model cannot be loaded")
            self._state, self.error = "failed", f"the model cannot be loaded: {error}"
            raise ModelError(self.error) from error
        finally:
            self._loading = None

    async def unload(self) -> None:
        """Give the memory back once the requests under way have ended; new ones are refused from now on.

        A load that comes before they have ended takes the model back, and then this returns too.
        """
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._runner is not None:
            self._leaving, self._runner = self._runner, None
            self._state = "empty" if self._state != "closed" else "closed"
            self._unloading = asyncio.create_task(self._unload_once(), name="unload the model")
            self._unloading.add_done_callback(_look_at)
        if self._unloading is not None:
            await asyncio.wait([self._unloading])

    async def _unload_once(self) -> None:
        try:
            while self._calls and self._state != "closed":
                self._left.clear()
                await self._left.wait()
            self._leaving = None
            await asyncio.wrap_future(self._worker.submit(self._detach))
        finally:
            self._unloading = None

    def _take_back(self) -> None:
        """The model that waits to be unloaded is wanted again."""
        if self._unloading is not None and self._leaving is not None:
            self._unloading.cancel()
            self._runner, self._leaving, self._state = self._leaving, None, "ready"

    def stop(self) -> None:
        """End every request with `NodeStopping` and refuse new ones."""
        self._state = "closed"
        for call in self._calls:
            call.tell(NodeStopping())
            call.outlet.flush()
        self._left.set()
        self._worker.post(self._stop_all)
        if self._loading is not None:
            self._loading.cancel()

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        """False when the engine's thread is still busy after that time."""
        self.stop()
        self._runner = None
        self._worker.post(self._detach)
        return await asyncio.to_thread(self._worker.close, timeout_seconds)

    # Requests

    async def render(self, prompt: Prompt, bounds: Bounds) -> str:
        """The text that the model would read; does not wait for the requests under way."""
        vocabulary = self._ready().vocabulary
        return await asyncio.to_thread(render, prompt, vocabulary, bounds)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Close the iterator (`aclosing`) when leaving early."""
        runner, arrived = self._ready(), self._clock()
        if request.deadline is not None and request.deadline <= arrived:
            raise DeadlineExceeded()
        async with self._calling() as (call, submit):
            prepared = await asyncio.to_thread(
                prepare_generation, request, runner, self._bound(runner), self._guides.of(runner), arrived
            )
            submit(Generation(prepared, call, runner.vocabulary))
            while True:
                event = await call.next()
                assert isinstance(event, Token | Done)
                yield event
                if isinstance(event, Done):
                    return

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Mean of the last hidden states over the tokens, one vector a text."""
        runner = self._ready()
        async with self._calling() as (call, submit):
            texts = await asyncio.to_thread(prepare_texts, request, runner, self._bound(runner))
            if not texts:
                return Embeddings((), 0)
            submit(EmbeddingJob(request, texts, call))
            result = await call.next()
            assert isinstance(result, Embeddings)
            return result

    async def infer(self, request: InferenceRequest) -> Inference:
        runner = self._ready()
        async with self._calling() as (call, submit):
            vectors = await asyncio.to_thread(prepare_inference, request, runner, self._bound(runner))
            submit(InferenceJob(request, call, vectors))
            result = await call.next()
            assert isinstance(result, Inference)
            return result

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[tuple[Call, Callable[[Job], None]]]:
        """A call and the function that sends its job off; whatever ends the block ends the job."""
        if len(self._calls) >= self._options.max_running + self._options.max_waiting:
            raise NodeBusy()
        call, jobs = Call(self._outlet()), list[Job]()

        def submit(job: Job) -> None:
            jobs.append(job)
            self._worker.post(lambda: self._submit(job))

        self._calls.add(call)
        try:
            yield call, submit
        finally:
            self._calls.discard(call)
            if jobs and (not call.ended or self._state == "closed"):
                self._worker.post(lambda: self._cancel(jobs[0]))
            if not self._calls:
                self._left.set()

    def _outlet(self) -> Outlet:
        loop = asyncio.get_running_loop()
        outlet = self._outlets.get(loop)
        if outlet is None:
            self._outlets = {known: other for known, other in self._outlets.items() if not known.is_closed()}
            outlet = self._outlets[loop] = Outlet(loop)
        return outlet

    def _bound(self, runner: ModelRunner) -> Bound:
        options, cache = self._options, runner.cache
        return Bound(
            cache.block_tokens * cache.promised_count,
            options.max_running,
            options.max_prompt_characters,
            options.max_inference_bytes,
        )

    def _ready(self) -> ModelRunner:
        self._refuse_when_closed()
        if self._runner is None:
            raise ModelError(self.error or "the model is not loaded")
        return self._runner

    def _refuse_when_closed(self) -> None:
        if self._state == "closed":
            raise NodeStopping()

    # In the engine's thread

    def turn(self) -> float | None:
        return None if self._core is None else self._core.turn()

    def revive(self, death: BaseException) -> None:
        if self._core is not None:
            self._core.revive()

    def give_up(self, death: BaseException) -> None:
        self._runner, self.error = None, f"the engine's thread died too often, the last time of: {death!r}"
        if self._state != "closed":
            self._state = "failed"
        if self._core is not None:
            self._core.fail_all(GenerationFailed(self.error))
            self._detach()

    def _attach(self) -> ModelRunner:
        runner = self._load()
        self._core = EngineCore(runner, self._options.limits(runner), self._clock, self._counters)
        runner.listen(self._wake)
        return runner

    def _wake(self) -> None:
        """From any thread: after a command, whatever it is, there is a turn."""
        self._worker.post(lambda: None)

    def _detach(self) -> None:
        core = self._core
        if core is not None:
            core.fail_all(NodeStopping())
            with self._counting:
                self._core = None
                self._counters.keep(core.gauges())
            self._guides.clear()  # it knows the runner
            core.runner.close()

    def _stop_all(self) -> None:
        if self._core is not None:
            self._core.fail_all(NodeStopping())

    def _submit(self, job: Job) -> None:
        if self._core is None:
            job.call.tell(ModelError(self.error or "the model is not loaded"))
            job.call.outlet.flush()
        else:
            self._core.submit(job)

    def _cancel(self, job: Job) -> None:
        if self._core is not None:
            self._core.cancel(job)


def _look_at(task: asyncio.Task[None]) -> None:
    """Everyone who waited may have left; the failure is kept in `Engine.error`."""
    if not task.cancelled():
        task.exception()
