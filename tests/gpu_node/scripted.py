"""An engine that needs no model: it answers from a script, word by word, and can be held at any word.

It keeps to the contract of the real one: several requests at once, `Done` at the end, nothing after it was left.
Everything happens in the event loop, so what a test sees does not hang on threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from gpu_node.engine.prompt import prepare, render
from gpu_node.engine.sequence import (
    Bounds,
    Done,
    EmbeddingRequest,
    Embeddings,
    Event,
    FinishReason,
    GenerationRequest,
    Inference,
    InferenceRequest,
    Logprob,
    Message,
    Prompt,
    Token,
    TokenLogprob,
)
from gpu_node.engine.stats import Counters, EngineStats, Gauges
from gpu_node.engine.step import CacheShape, ModelRunner, Pick, Step, StepByStep, StepResult
from gpu_node.errors import (
    ContextExceeded,
    DeadlineExceeded,
    GenerationFailed,
    ModelError,
    NodeError,
    NodeStopping,
)


class CharVocabulary:
    """One token a character; the template of the tiny model."""

    size = 0x110000
    end_ids = frozenset({0})
    begins_with_bos = False

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def render(self, messages: Sequence[Message]) -> str:
        turns = "".join(f"<{message.role}>{message.content}\n" for message in messages)
        return f"{turns}<assistant>"


class ScriptedRunner(StepByStep):
    """A loaded model that is only there; the engine answers in its place."""

    dtype = "float32"
    embedding_length = 2

    def __init__(self, weights: int = 1000, blocks: int = 1024, device: str = "cpu") -> None:
        super().__init__()
        self.vocabulary = CharVocabulary()
        self.memory_bytes, self.device = weights, device
        self.cache = CacheShape(block_tokens=16, block_count=blocks, block_bytes=2)
        self.summary: dict[str, Any] = {"weights": "full"}

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        raise AssertionError("a scripted engine computes nothing")

    def shrink_cache(self, block_count: int) -> CacheShape:
        raise AssertionError("a scripted engine has no cache")

    def close(self) -> None:
        pass


class Script:
    """What a scripted engine says, and what it was asked. Survives loading and unloading."""

    def __init__(self, words: Sequence[str] = ("one ", "two ", "three"), hold_at: int | None = None) -> None:
        self.words = list(words)
        self.hold_at = hold_at
        self.held = asyncio.Event()  # set while some answer waits
        self.go_on = asyncio.Event()
        self.load_gate = asyncio.Event()
        self.load_gate.set()
        self.unload_gate = asyncio.Event()
        self.unload_gate.set()
        self.fail_at: int | None = None
        self.load_errors: list[Exception] = []  # one a loading, first come first served
        self.told = 0
        self.running = self.waiting = self.most = 0
        self.requests: list[GenerationRequest] = []
        self.inferences: list[InferenceRequest] = []
        self.embeddings: list[EmbeddingRequest] = []
        self.loads = self.unloads = 0
        self.counters = Counters()


class ScriptedEngine:
    def __init__(self, load: Callable[[], ModelRunner], script: Script, max_running: int = 4) -> None:
        self._load, self.script, self._max_running = load, script, max_running
        self._slots = asyncio.Semaphore(max_running)
        self._stopping = asyncio.Event()
        self._runner: ModelRunner | None = None
        self.state = "empty"
        self.error = ""
        self.closed = False

    @property
    def runner(self) -> ModelRunner | None:
        return self._runner

    @property
    def busy(self) -> bool:
        return bool(self.script.running or self.script.waiting)

    def stats(self) -> EngineStats:
        gauges = Gauges(self.script.running, self.script.waiting, self._max_running, block_tokens=16)
        return self.script.counters.snapshot(gauges, 0.0)

    async def load(self) -> None:
        self._refuse_when_stopping()
        self.state, self.error = "loading", ""
        try:
            await self._or_stop(self.script.load_gate)
            if self.script.load_errors:
                raise self.script.load_errors.pop(0)
            self._runner = self._load()
        except NodeError as error:
            self.state, self.error = "closed" if self._stopping.is_set() else "failed", str(error)
            raise
        except Exception as error:
            self.state, self.error = "failed", f"the model cannot be loaded: {error}"
            raise ModelError(self.error) from error
        self.script.loads += 1
        self.state = "ready"

    async def unload(self) -> None:
        assert not self.script.running, "nobody is using it"
        self._runner = None
        self.state = "empty"
        self.script.unloads += 1
        await self.script.unload_gate.wait()

    async def render(self, prompt: Prompt, bounds: Bounds) -> str:
        return render(prompt, self._ready().vocabulary, bounds)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        runner = self._ready()
        self.script.requests.append(request)
        if request.deadline is not None and request.deadline <= 0:
            raise DeadlineExceeded()
        ids = prepare(request.prompt, runner.vocabulary, request.bounds).token_ids
        async with _Counted(self, "waiting"):
            await self._or_stop(self._slots)
        try:
            async with _Counted(self, "running"):
                async for event in self._answer(request, ids):
                    yield event
        finally:
            self._slots.release()

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self._ready()
        self.script.embeddings.append(request)
        if not request.truncate and any(len(text) > request.context_tokens for text in request.texts):
            raise ContextExceeded()
        vectors = tuple((float(len(text)), 1.0 if request.normalise else 2.0) for text in request.texts)
        return Embeddings(tuple(vector[: request.dimensions or 2] for vector in vectors), sum(map(len, request.texts)))

    async def infer(self, request: InferenceRequest) -> Inference:
        import numpy as np

        self._ready()
        self.script.inferences.append(request)
        ids = request.ids[-1:] if request.last_only else request.ids
        rows = np.array([[one, one * 2] for one in ids], dtype="<f4")
        return Inference(rows.tobytes(), (len(ids), 2))

    def stop(self) -> None:
        self.state = "closed"
        self._stopping.set()

    async def close(self, timeout_seconds: float = 5.0) -> bool:
        self.stop()
        self._runner, self.closed = None, True
        return True

    async def _answer(self, request: GenerationRequest, ids: Sequence[int]) -> AsyncGenerator[Event, None]:
        script = self.script
        words = script.words[: request.bounds.token_limit]
        for at, word in enumerate(words):
            if at == script.hold_at:
                script.held.set()
                await self._or_stop(script.go_on)
            if at == script.fail_at:
                raise GenerationFailed("the script says so")
            for sample in range(request.samples):
                script.told += 1
                yield self._token(request, word, sample)
            await asyncio.sleep(0)
        reason: FinishReason = "length" if len(words) < len(script.words) else "stop"
        output = len(words) * request.samples
        context = (*ids, *map(ord, "".join(words)))
        yield Done(reason, len(ids), output, 5_000, 7_000, context, 1, (reason,) * request.samples)

    def _token(self, request: GenerationRequest, word: str, sample: int) -> Token:
        ids, asked = tuple(map(ord, word)), request.sampling.logprobs
        if asked is None:
            return Token(word, sample, ids)
        others = tuple(Logprob(ord("a") + n, -1.0 - n) for n in range(asked))
        return Token(word, sample, ids, tuple(TokenLogprob(Logprob(one, -0.5), others) for one in ids))

    async def _or_stop(self, gate: asyncio.Event | asyncio.Semaphore) -> None:
        wait = gate.wait() if isinstance(gate, asyncio.Event) else gate.acquire()
        opened, stopped = asyncio.ensure_future(wait), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self._refuse_when_stopping()
        except BaseException:
            if not opened.cancel() and isinstance(gate, asyncio.Semaphore):
                gate.release()
            raise
        finally:
            stopped.cancel()
            await asyncio.gather(opened, stopped, return_exceptions=True)

    def _ready(self) -> ModelRunner:
        self._refuse_when_stopping()
        if self._runner is None:
            raise ModelError(self.error or "the model is not loaded")
        return self._runner

    def _refuse_when_stopping(self) -> None:
        if self._stopping.is_set():
            raise NodeStopping()


class _Counted:
    def __init__(self, engine: ScriptedEngine, what: str) -> None:
        self._script, self._what = engine.script, what

    async def __aenter__(self) -> None:
        setattr(self._script, self._what, getattr(self._script, self._what) + 1)
        self._script.most = max(self._script.most, self._script.running)

    async def __aexit__(self, *_: object) -> None:
        setattr(self._script, self._what, getattr(self._script, self._what) - 1)
