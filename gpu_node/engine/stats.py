"""What the engine counts, and the snapshot of it that metrics and status pages read.

`Counters` is written by the engine's thread alone; a snapshot may be taken from any thread at any time, since it only
reads numbers. Histograms are cumulative over fixed bounds, as Prometheus has them. Must not know torch or HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

# Seconds. From a small model on a GPU to a long prompt on a busy CPU.
FIRST_TOKEN_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
# "Recent" in tokens per second: long enough to be steady, short enough to show that work has ended.
RECENT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Histogram:
    bounds: tuple[float, ...]
    counts: tuple[int, ...]  # cumulative: observations up to each bound, and last of all of them
    total: float  # sum of the observed values

    @property
    def count(self) -> int:
        return self.counts[-1]

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The smallest bound below which that share of the observations lies; infinite beyond the last bound."""
        wanted = share * self.count
        within = (bound for bound, count in zip(self.bounds, self.counts, strict=False) if count >= wanted)
        return next(within, float("inf")) if self.count else 0.0


class Tally:
    """A histogram under way."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def snapshot(self) -> Histogram:
        return Histogram(self._bounds, tuple(accumulate(self._counts)), self._total)


class RecentRate:
    """Events per second over the last few seconds, in one slot a second."""

    def __init__(self, seconds: int = RECENT_SECONDS) -> None:
        self._counts = [0] * (seconds + 1)
        self._stamps = [-1] * (seconds + 1)
        self._began: float | None = None

    def add(self, now: float, count: int) -> None:
        second = int(now)
        slot = second % len(self._counts)
        if self._stamps[slot] != second:
            self._counts[slot], self._stamps[slot] = 0, second
        self._counts[slot] += count
        if self._began is None:
            self._began = now

    def per_second(self, now: float) -> float:
        if self._began is None:
            return 0.0
        window = len(self._counts) - 1
        recent = sum(
            count for count, stamp in zip(self._counts, self._stamps, strict=True) if int(now) - stamp <= window
        )
        return recent / max(min(now - self._began, window + now % 1.0), 1.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What stands where right now, as the scheduler has it."""

    running: int = 0
    waiting: int = 0
    max_running: int = 0
    blocks_used: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    block_tokens: int = 0
    step_token_limit: int = 0  # smaller than configured after the device ran out of memory
    prompt_tokens: int = 0  # this and the following: since the model was loaded
    cached_prompt_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    accepted_drafts: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine was built, over every load of the model; gauges of this moment."""

    running: int
    waiting: int
    max_running: int
    blocks_used: int
    blocks_free: int
    blocks_cached: int  # free to be taken, but still holding a prefix that may be wanted again
    block_tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int  # of these: not computed, since they were in the cache
    output_tokens: int
    steps: int
    step_tokens: int  # tokens computed, prompts, drafts and recomputation included
    preemptions: int
    drafts: int
    accepted_drafts: int
    failed: int
    cancelled: int
    restarts: int
    out_of_memory: int
    first_token: Histogram  # seconds from arrival
    between_tokens: Histogram  # seconds
    batch_size: Histogram  # sequences in a step
    tokens_per_second: float  # output, recent
    last_batch: int
    step_token_limit: int = 0
    done: int = 0


@dataclass(slots=True)
class Counters:
    """Of the fields that `Gauges` has too, what came before the model was loaded last."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    step_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    accepted_drafts: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    restarts: int = 0
    out_of_memory: int = 0
    last_batch: int = 0
    first_token: Tally = field(default_factory=lambda: Tally(FIRST_TOKEN_BOUNDS))
    between_tokens: Tally = field(default_factory=lambda: Tally(BETWEEN_TOKENS_BOUNDS))
    batch_size: Tally = field(default_factory=lambda: Tally(BATCH_BOUNDS))
    output_rate: RecentRate = field(default_factory=RecentRate)

    def count_step(self, rows: int, tokens: int) -> None:
        self.steps += 1
        self.step_tokens += tokens
        self.last_batch = rows
        self.batch_size.observe(rows)

    def keep(self, gauges: Gauges) -> None:
        """The model is about to leave: what was counted with it stays."""
        self.prompt_tokens += gauges.prompt_tokens
        self.cached_prompt_tokens += gauges.cached_prompt_tokens
        self.preemptions += gauges.preemptions
        self.drafts += gauges.drafts
        self.accepted_drafts += gauges.accepted_drafts

    def snapshot(self, gauges: Gauges, now: float) -> EngineStats:
        return EngineStats(
            running=gauges.running,
            waiting=gauges.waiting,
            max_running=gauges.max_running,
            blocks_used=gauges.blocks_used,
            blocks_free=gauges.blocks_free,
            blocks_cached=gauges.blocks_cached,
            block_tokens=gauges.block_tokens,
            prompt_tokens=self.prompt_tokens + gauges.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens + gauges.cached_prompt_tokens,
            output_tokens=self.output_tokens,
            steps=self.steps,
            step_tokens=self.step_tokens,
            preemptions=self.preemptions + gauges.preemptions,
            drafts=self.drafts + gauges.drafts,
            accepted_drafts=self.accepted_drafts + gauges.accepted_drafts,
            failed=self.failed,
            cancelled=self.cancelled,
            restarts=self.restarts,
            out_of_memory=self.out_of_memory,
            first_token=self.first_token.snapshot(),
            between_tokens=self.between_tokens.snapshot(),
            batch_size=self.batch_size.snapshot(),
            tokens_per_second=self.output_rate.per_second(now),
            last_batch=self.last_batch,
            step_token_limit=gauges.step_token_limit,
            done=self.done,
        )
