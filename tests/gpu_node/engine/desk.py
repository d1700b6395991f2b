"""The core without thread and event loop: a test takes the turns, and hears at once what a client would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpu_node.engine.core import EngineCore, Job
from gpu_node.engine.generation import Generation, PreparedGeneration
from gpu_node.engine.mailbox import Call, Outlet, Told
from gpu_node.engine.planned import Limits
from gpu_node.engine.reading import EmbeddingJob, InferenceJob
from gpu_node.engine.sequence import (
    Bounds,
    Done,
    EmbeddingRequest,
    GenerationRequest,
    InferenceRequest,
    RawPrompt,
    SamplingOptions,
    Token,
)
from gpu_node.engine.stats import Counters, EngineStats
from tests.fakes.scripted_runner import ScriptedRunner

GREEDY = SamplingOptions(temperature=0)
ASK = GenerationRequest(RawPrompt(""), GREEDY, Bounds(context_tokens=1000, max_tokens=10))


class AtOnce:
    """What an outlet needs of an event loop; callbacks run on the spot."""

    closed = False
    wakeups = 0

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.wakeups += 1
        callback()


class Client(Call):
    """Keeps what it hears."""

    def __init__(self, outlet: Outlet) -> None:
        super().__init__(outlet)
        self.heard: list[Told] = []
        self.job: Job | None = None

    def receive(self, event: Told) -> None:
        self.heard.append(event)

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.heard if isinstance(event, Token)]

    @property
    def text(self) -> str:
        return self.text_of(0)

    def text_of(self, sample: int) -> str:
        return "".join(token.text for token in self.tokens if token.sample == sample)

    def ids_of(self, sample: int) -> list[int]:
        return [number for token in self.tokens if token.sample == sample for number in token.ids]

    @property
    def ends(self) -> list[Told]:
        return [event for event in self.heard if not isinstance(event, Token)]

    @property
    def end(self) -> Told:
        assert len(self.ends) == 1, f"{len(self.ends)} ends"
        assert self.heard[-1] is self.ends[0], "something came after the end"
        return self.ends[0]

    @property
    def done(self) -> Done:
        assert isinstance(self.end, Done), self.end
        return self.end


@dataclass
class Desk:
    runner: Any = field(default_factory=ScriptedRunner)
    now: float = 100.0
    max_running: int = 8
    step_tokens: int = 32
    mixed_step_tokens: int = 16
    max_waiting: int = 64
    max_drafts: int = 0
    seconds_a_step: float = 0.0

    def __post_init__(self) -> None:
        self.loop, self.counters = AtOnce(), Counters()
        self.outlet = Outlet(self.loop)
        cache = self.runner.cache
        limits = Limits(
            cache.block_tokens,
            cache.block_count,
            self.max_running,
            self.step_tokens,
            self.mixed_step_tokens,
            self.max_waiting,
            self.max_drafts,
            promised=cache.promised,
        )
        self.core = EngineCore(self.runner, limits, self.clock, self.counters)

    def clock(self) -> float:
        return self.now

    def ask(self, prompt: str | Sequence[int], request: GenerationRequest = ASK, guides: Sequence = ()) -> Client:
        ids = tuple(prompt.encode() if isinstance(prompt, str) else prompt)
        capacity = self.runner.cache.promised_count * self.runner.cache.block_tokens
        context = min(request.bounds.context_tokens, capacity)
        request = replace(request, bounds=replace(request.bounds, context_tokens=context))
        client = Client(self.outlet)
        prepared = PreparedGeneration(request, ids, tuple(guides) or (None,) * request.samples, self.now)
        return self.hand_in(client, Generation(prepared, client, self.runner.vocabulary))

    def embed(self, *texts: str, **options: object) -> Client:
        client = Client(self.outlet)
        request = EmbeddingRequest(texts, 1000, **options)
        return self.hand_in(client, EmbeddingJob(request, [tuple(text.encode()) for text in texts], client))

    def infer(self, text: str, **options: object) -> Client:
        client = Client(self.outlet)
        return self.hand_in(client, InferenceJob(InferenceRequest(tuple(text.encode()), **options), client))

    def hand_in(self, client: Client, job: Job) -> Client:
        client.job = job
        self.core.submit(job)
        return client

    def turn(self) -> float | None:
        """As the worker does it: a thread that dies is replaced."""
        self.now += self.seconds_a_step
        try:
            return self.core.turn()
        except BaseException as death:
            if isinstance(death, AssertionError):
                raise
            self.core.revive()
            return 0.0

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if self.turn() != 0.0:
                return
        raise AssertionError("it never ends")

    @property
    def stats(self) -> EngineStats:
        return self.counters.snapshot(self.core.gauges(), self.now)

    def assert_empty(self) -> None:
        """Nobody is left, and every block is back."""
        stats = self.stats
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
        assert self.core._jobs.empty
        assert not self.core._scheduler.busy


def greedy(next_token: Callable[[Sequence[int], int], int], prompt: Sequence[int], tokens: int) -> list[int]:
    """The reference: one token after the other, nothing else going on."""
    history = list(prompt)
    for _ in range(tokens):
        history.append(next_token(history, 0))
    return history[len(prompt) :]
