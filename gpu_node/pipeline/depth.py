"""How many steps are worth being under way at once: tried at the start, on an empty cache, with rows that decode.

More groups of rows keep more stages busy and make every step smaller; what wins depends on the machine, and one is an
allowed answer (unslothai/llama.cpp #187). Where steps are too slow to be repeated, each depth is tried with one burst;
where there is no time for that either, the times of the stages decide. The choice is pure; the measuring is bounded in
time, and everything that it writes lies in blocks that are cleared before anybody's first slot is written there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.step import CacheShape, Pick, Row, Step, StepResult

# A larger depth must win by so much: it costs latency, and measurements of milliseconds differ by themselves.
MARGIN = 1.05
BATCHES = (8, 32)
# All together: so large a share of what loading took, since larger models have slower steps, within these bounds.
MEASURE_SHARE = 0.1
MEASURE_SECONDS, LONGEST_MEASURE_SECONDS = 1.0, 10.0
# The same while requests wait for it.
HASTY_SECONDS = 0.25
# Of each group: a pipeline has to fill before it shows what it can do, and enough is enough.
LEAST_STEPS, MOST_STEPS = 2, 12
GREEDY = SamplingOptions(temperature=0, repeat_penalty=1.0)


class Steps(Protocol):
    """What the measuring needs of a runner."""

    def begin(self, step: Step) -> None: ...

    def finish(self, picks: Sequence[Pick]) -> StepResult: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """So many rows in all, in groups of which `depth` are under way."""

    rows: int
    depth: int


def measure_seconds(load_seconds: float) -> float:
    """That measuring may take at the start of a model that was loaded in so many."""
    return min(max(load_seconds * MEASURE_SHARE, MEASURE_SECONDS), LONGEST_MEASURE_SECONDS)


def choose(measured: Mapping[Trial, float], stage_seconds: Sequence[float | None] = ()) -> tuple[int, dict[int, float]]:
    """The depth, and tokens/s by depth at the smallest batch that was tried at all of them.

    Depths are compared by how much they gain over one step at a time, as a geometric mean over the batches. Where
    nothing was measured `stage_seconds` of the plan decide."""
    batches = sorted({trial.rows for trial in measured})
    depths = sorted({trial.depth for trial in measured})
    whole = [rows for rows in batches if all(Trial(rows, depth) in measured for depth in depths)]
    if not whole:
        return supposed(stage_seconds), {}
    gains = {
        depth: math.prod(measured[Trial(rows, depth)] / measured[Trial(rows, depths[0])] for rows in whole)
        ** (1 / len(whole))
        for depth in depths
    }
    best = depths[0]
    for depth in depths:
        if gains[depth] > gains[best] * MARGIN:
            best = depth
    return best, {depth: measured[Trial(whole[0], depth)] for depth in depths}


def supposed(stage_seconds: Sequence[float | None]) -> int:
    """So many that nothing is lost even where a part of the rows takes a stage as long as all of them, as it does while
    weights are what is read: the slowest stage then has its turn with every group in the time of one step from end to
    end. Whatever smaller groups gain comes on top. Equal stages: as many as there are."""
    known = [seconds for seconds in stage_seconds if seconds is not None]
    if len(known) < len(stage_seconds) or not known or max(known) <= 0:
        return 1
    return max(int(sum(known) / max(known) * MARGIN), 1)


def trials(stages: int, cache: CacheShape) -> tuple[Trial, ...]:
    """Up to one group more than there are stages: while one is with the head, every stage has one."""
    batches = [rows for rows in BATCHES if rows <= cache.promised_count] or [min(BATCHES[0], cache.promised_count)]
    return tuple(Trial(rows, depth) for rows in batches for depth in range(1, stages + 2) if depth <= rows)


def measure(
    steps: Steps, cache: CacheShape, stages: int, clock: Callable[[], float], seconds: float = MEASURE_SECONDS
) -> dict[Trial, float]:
    """Tokens/s of each trial, the smaller batches first; those that there is no time for are left out. Of a first batch
    that there is little time for they are foreseen from one burst each.

    Raises what steps raise."""
    found: dict[Trial, float] = {}
    end, once = clock() + seconds, 0.0
    wanted = trials(stages, cache)
    batches = sorted({trial.rows for trial in wanted})
    for rows in batches:
        own = [trial for trial in wanted if trial.rows == rows]
        if found and end - clock() < 2 * once * rows / batches[0]:  # at worst
            break
        together = _groups(rows, 1)
        _go(steps, together, 1, 1)  # whatever is made at the first step of its kind
        begun = clock()
        _go(steps, together, 1, 1)
        once = max(clock() - begun, 1e-6)
        left = end - clock()
        for share in (left if rows == batches[-1] else left / 2, 0 if found else left):
            count = min(int(share / (once * len(own))) - 1, MOST_STEPS)
            if count >= LEAST_STEPS:
                break
        else:
            return found or _foreseen(steps, rows, stages, clock, once, left)
        for trial in own:
            groups = _groups(rows, trial.depth)
            _go(steps, groups, trial.depth, 1)
            begun = clock()
            _go(steps, groups, trial.depth, count)
            found[trial] = count * rows / max(clock() - begun, 1e-9)
    return found


def _foreseen(
    steps: Steps, rows: int, stages: int, clock: Callable[[], float], once: float, left: float
) -> dict[Trial, float]:
    """One step at a time takes `once`. No burst takes longer than as many single steps."""
    found = {Trial(rows, 1): rows / once}
    for depth in sorted(range(2, min(stages + 1, rows) + 1), key=lambda depth: depth != stages):  # the likeliest first
        if (left := left - depth * once) < 0:
            break
        found[Trial(rows, depth)] = rows / _burst(steps, _groups(rows, depth), clock)
    return found if len(found) > 1 else {}


def _burst(steps: Steps, groups: Sequence[tuple[Step, Sequence[Pick]]], clock: Callable[[], float]) -> float:
    """Seconds until all groups have had their turn, once the pipeline is full: the first one comes back after the time
    of a whole step, the others after that of the slowest stage. A group goes on when it is back and that stage is
    free."""
    groups = sorted(groups, key=lambda group: -len(group[1]))  # or the second one would be waited for
    begun = clock()
    for step, _ in groups:
        steps.begin(step)
    ends = []
    for _, picks in groups:
        steps.finish(picks)
        ends.append(clock())
    gaps = [behind - before for before, behind in pairwise(ends)]
    return max(ends[0] - begun, gaps[0] + sum(gaps), 1e-9)


def _go(steps: Steps, groups: Sequence[tuple[Step, Sequence[Pick]]], depth: int, count: int) -> None:
    """Every group takes so many steps, each after its own last one came back, as decoding does."""
    order = [group for _ in range(count) for group in groups]
    for at, (step, _) in enumerate(order):
        if at >= depth:
            steps.finish(order[at - depth][1])
        steps.begin(step)
    for _, picks in order[-depth:]:
        steps.finish(picks)


def _groups(rows: int, depth: int) -> list[tuple[Step, Sequence[Pick]]]:
    """Each row has a block of its own."""
    spans = [range(number * rows // depth, (number + 1) * rows // depth) for number in range(depth)]
    return [
        (
            Step(tuple(Row(block, (1,), 0, (block,), "logits", 1) for block in span)),
            [Pick(at, GREEDY, key=1, written=0, history=()) for at in range(len(span))],
        )
        for span in spans
    ]
