"""A scripted runner with several steps under way on two stages, that can lose a stage and lend blocks.

The first stage reads and writes its own cache when a step begins, the last one when it ends; what they see must be the
same. After a failure the later steps run out all the same, as they would on devices that know nothing of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from gpu_node.engine.step import CacheChange, CacheShape, Pick, Step, StepResult
from gpu_node.errors import NodeError, StageLost
from tests.fakes.scripted_runner import ScriptedRunner


class PipelinedRunner(ScriptedRunner):
    def __init__(self, *arguments: Any, depth: int = 2, promised: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.depth, self.lends = depth, False
        shape = self.cache
        self.cache = CacheShape(shape.block_tokens, shape.block_count, shape.block_bytes, promised=promised)
        self.flying: deque[tuple[Step, list[list[int]]]] = deque()
        self.most = self.begun = self.drops = 0
        self.flights: list[int] = []  # how many were under way when a step had begun
        self.tended: list[int] = []  # with which shortage
        self.urgent: list[bool] = []  # and whether somebody would give way
        self.wake: Callable[[], None] = lambda: None
        self.change: CacheChange | None = None  # what the next `tend` has to tell
        # Faults, by the number of the step.
        self.lost_at: set[int] = set()  # at its beginning
        self.lost_later: set[int] = set()  # at its end
        self.broken: NodeError | None = None  # no plan is possible any more
        self._lost = False
        self._first = ScriptedRunner(*arguments, **options)
        self._first.cache = self.cache

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        assert not self.flying, "something is under way"
        self._begin(step)
        return self.finish(picks)

    def begin(self, step: Step) -> None:
        assert len(self.flying) < self.depth, "too many steps are under way"
        self._begin(step)

    def _begin(self, step: Step) -> None:
        self.begun += 1
        if self._lost or self.begun in self.lost_at:
            self._lose()
        self.flying.append((step, self._compute(self._first, step)))
        self.flights.append(len(self.flying))

    def finish(self, picks: Sequence[Pick]) -> StepResult:
        step, seen = self.flying.popleft()
        number = self.begun - len(self.flying)
        if self._lost or number in self.lost_later:
            self.lost_later.discard(number)
            self._lose()
        result = super().run(step, picks)
        assert seen == [self._past(row) for row in step.rows], "the stages have different contents"
        return result

    def drop(self) -> None:
        self.drops += 1
        while self.flying:
            step, _ = self.flying.popleft()
            self._write_all(self, step)

    @property
    def restless(self) -> bool:  # type: ignore[override]
        return self._lost or self.change is not None or self.broken is not None

    def listen(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def tend(self, shortage: int, urgent: bool = False) -> CacheChange | None:
        assert not self.flying, "something is under way"
        self.tended.append(shortage)
        self.urgent.append(urgent)
        if self.broken is not None:
            raise self.broken
        change, self.change = self.change, None
        if self._lost:
            change = change or CacheChange(self.cache, reset=True)
            assert change.reset
        self._lost = False
        if change is not None:
            self._apply(change)
        return change

    def shrink_cache(self, block_count: int) -> CacheShape:
        assert not self.flying
        self._first.shrink_cache(block_count)
        return super().shrink_cache(block_count)

    def _apply(self, change: CacheChange) -> None:
        self.cache = self._first.cache = change.shape
        for runner in (self, self._first):
            if change.reset:
                runner._slots.clear()
            for slot in [slot for slot in runner._slots if slot[0] in change.restored]:
                del runner._slots[slot]

    def _lose(self) -> None:
        self._lost = True
        raise StageLost

    def _compute(self, runner: ScriptedRunner, step: Step) -> list[list[int]]:
        """Without faults and choices: what each row sees."""
        self._write_all(runner, step)
        return [runner._past(row) for row in step.rows]

    def _write_all(self, runner: ScriptedRunner, step: Step) -> None:
        size = self.cache.block_tokens
        for copy in step.copies:
            for offset in range(size):
                if (copy.source, offset) in runner._slots:
                    runner._slots[copy.target, offset] = runner._slots[copy.source, offset]
        for row in step.rows:
            runner._write(row)
