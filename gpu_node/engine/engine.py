"""The engine as the rest of the node sees it: load, generate, embed, render, unload, close; all asynchronous.

The model lives in one worker thread; this class passes jobs to it and events back. Invariants: a generation ends with
one `Done` or one raised error; leaving the iterator early stops the work within one token; nothing runs after `close`.
Must not import torch: what loads the model is given.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal, Protocol

from gpu_node.engine.prompt import render
from gpu_node.engine.sequence import (
    Bounds,
    Done,
    EmbeddingRequest,
    Embeddings,
    Event,
    GenerationRequest,
    Prompt,
    Token,
)
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.engine.worker import Worker
from gpu_node.errors import GenerationFailed, ModelError, NodeError, NodeStopping

EngineState = Literal["empty", "loading", "ready", "failed", "closed"]

log = logging.getLogger("gpu_node.engine")


class ModelRunner(Protocol):
    """What runs in the worker thread."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def memory_bytes(self) -> int: ...

    def generate(
        self, request: GenerationRequest, emit: Callable[[Token], None], cancelled: threading.Event
    ) -> Done: ...

    def embed(self, request: EmbeddingRequest, cancelled: threading.Event) -> Embeddings: ...

    def close(self) -> None: ...


class Engine:
    def __init__(self, load: Callable[[], ModelRunner], prepare: Callable[[], Awaitable[None]] | None = None) -> None:
        """`prepare` is awaited before `load` runs in the worker thread (fetching, converting)."""
        self._load, self._prepare = load, prepare
        self._worker = Worker("engine")
        self._runner: ModelRunner | None = None
        self._loading: asyncio.Task[None] | None = None
        self._running: set[_Call] = set()
        self._state: EngineState = "empty"
        self.error = ""  # why the last load failed

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def runner(self) -> ModelRunner | None:
        return self._runner

    async def load(self) -> None:
        """Returns when the model is ready; any number of callers share one loading."""
        self._refuse_when_closed()
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
            if self._prepare is not None:
                await self._prepare()
            self._runner = await asyncio.wrap_future(self._worker.submit(self._load))
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
        """Give the memory back once the job under way has ended."""
        if self._loading is not None:
            await asyncio.wait([self._loading])
        runner, self._runner = self._runner, None
        if runner is not None:
            self._state = "empty"
            await asyncio.wrap_future(self._worker.submit(runner.close))

    async def render(self, prompt: Prompt, bounds: Bounds) -> str:
        """The text that the model would read; does not wait for the job under way."""
        vocabulary = self._ready().vocabulary
        return await asyncio.to_thread(render, prompt, vocabulary, bounds)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Close the iterator (`aclosing`) when leaving early."""
        runner = self._ready()
        call = _Call(asyncio.get_running_loop())
        self._running.add(call)
        try:
            self._worker.submit(lambda: call.run(lambda: runner.generate(request, call.tell, call.cancelled)))
            while True:
                event = await call.next()
                yield event
                if isinstance(event, Done):
                    return
        finally:
            call.cancelled.set()
            self._running.discard(call)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        runner = self._ready()
        call = _Call(asyncio.get_running_loop())
        self._running.add(call)
        try:
            job = self._worker.submit(lambda: runner.embed(request, call.cancelled))
            return await asyncio.wrap_future(job)
        except NodeError:
            raise
        except Exception as error:
            self._refuse_when_closed()
            log.exception("an embedding failed")
            raise GenerationFailed(f"an error was encountered while running the model: {error}") from error
        finally:
            call.cancelled.set()
            self._running.discard(call)

    def stop(self) -> None:
        """End every generation with `NodeStopping` and refuse new ones."""
        self._state = "closed"
        for call in self._running:
            call.cancelled.set()
            call.tell(NodeStopping())
        if self._loading is not None:
            self._loading.cancel()

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        """False when the worker thread is still busy after that time."""
        self.stop()
        self._runner = None
        return await asyncio.to_thread(self._worker.close, timeout_seconds)

    def _ready(self) -> ModelRunner:
        self._refuse_when_closed()
        if self._runner is None:
            raise ModelError(self.error or "the model is not loaded")
        return self._runner

    def _refuse_when_closed(self) -> None:
        if self._state == "closed":
            raise NodeStopping()


class _Call:
    """The bridge of one generation from the worker thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.cancelled = threading.Event()

    def run(self, job: Callable[[], Done]) -> None:
        """In the worker thread."""
        if self.cancelled.is_set():
            return
        try:
            self.tell(job())
        except NodeError as error:
            self.tell(error)
        except Exception as error:  # top of the job: a broken request must not end the thread
            if self.cancelled.is_set():
                return
            log.exception("a generation failed")
            self.tell(GenerationFailed(f"an error was encountered while running the model: {error}"))

    def tell(self, event: Event | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


def _look_at(task: asyncio.Task[None]) -> None:
    """Everyone who waited may have left; the failure is kept in `Engine.error`."""
    if not task.cancelled():
        task.exception()
