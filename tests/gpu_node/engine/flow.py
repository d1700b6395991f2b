"""A play with several steps under way on two stages: the first computes a step when it begins, the last when it ends.

Each stage has a cache of its own, and does what it is told in the order in which it was told; so a block that is handed
on too early, written by a row that was thought gone, or copied twice shows as a wrong token on one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpu_node.engine.scheduler import Planned, Submission
from tests.gpu_node.engine.paged_model import PagedModel, Play, Story


@dataclass
class Flow(Play):
    depth: int = 2
    flying: deque[tuple[Planned, list[list[int]]]] = field(default_factory=deque)
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)  # that are only read
    read: dict[int, list[int]] = field(default_factory=dict)  # what was told of them
    most: int = 0  # steps under way at once

    def __post_init__(self) -> None:
        super().__post_init__()
        self.last = PagedModel(self.limits.block_tokens)

    def submit_text(self, prompt: Sequence[int], **options: object) -> int:
        submission = Submission(tuple(prompt), len(prompt), output="hidden", **options)
        (identity,) = self.scheduler.submit(submission, self.now)
        self.texts[identity], self.read[identity] = tuple(prompt), []
        return identity

    def launch(self) -> Planned | None:
        """One step more, if there is room and something to do."""
        self.now += 1.0
        if len(self.flying) >= self.depth:
            return None
        states = self.scheduler._people.states
        busy = [(state, state.life) for state in states.values() if state.planned]
        planned = self.scheduler.schedule(self.now, self.depth)
        assert all(state.life == life for state, life in busy), "who has rows under way has to give way"
        self.check()
        if planned is None:
            return None
        self._check_plan(planned)
        self.steps.append(planned)
        self.flying.append((planned, self.model.run(planned.step)))
        self.most = max(self.most, len(self.flying))
        self._check_apart()
        return planned

    def land(self, keep: Callable[[list[int]], list[int]] = lambda chosen: chosen) -> Planned:
        """The oldest step ends, as in an engine's loop."""
        planned, seen = self.flying.popleft()
        assert self.last.run(planned.step) == seen, "the stages have different contents"
        chosen = {pick.sequence: keep(self._choose(pick, seen[pick.row])) for pick in self.scheduler.live(planned)}
        accepted = {identity: tokens for identity, tokens in chosen.items() if tokens}
        over = [identity for identity, tokens in accepted.items() if self._write(identity, tokens)]
        for read in planned.reads:
            if self.lives(read.sequence):
                row = planned.step.rows[read.row]
                self.read[read.sequence] += seen[read.row][len(seen[read.row]) - row.output_tokens :]
        left = self.scheduler.commit(planned, accepted, self.now + 0.5)
        assert set(left) <= set(over), "a context overflowed before the answer's end"
        for identity in over:
            self.scheduler.finish(identity)
            self.done.append(identity)
        for read in planned.reads:
            if read.last and not self.lives(read.sequence) and len(self.read[read.sequence]) >= 1:
                assert tuple(self.read[read.sequence]) == self.texts[read.sequence], "rows came twice or never"
        self.check()
        return planned

    def step(self) -> Planned:
        while self.launch() is not None:
            pass
        assert self.flying, "somebody waits, and nothing can be computed"
        return self.land()

    def land_all(self) -> None:
        while self.flying:
            self.land()

    def drop(self) -> None:
        """Something failed: all that is under way runs out, and counts for nothing."""
        for planned, _ in self.flying:
            self.last.run(planned.step)
        if self.flying:
            self.scheduler.abandon(self.flying[0][0])
        self.flying.clear()
        self.check()

    def lose_cache(self) -> None:
        self.flying.clear()
        self.model.slots.clear()
        self.last.slots.clear()

    def run(self, most: int = 10_000) -> None:
        while self.scheduler.busy or self.flying:
            most -= 1
            assert most, "it never ends"
            self.step()

    def _write(self, identity: int, tokens: list[int]) -> bool:
        assert identity in self.stories and isinstance(self.stories[identity], Story)
        return super()._write(identity, tokens)

    def _check_apart(self) -> None:
        """An answer is in one step at a time, and pieces of a prompt follow each other."""
        ends: dict[tuple[int, int], int] = {}
        picked: set[tuple[int, int]] = set()
        for planned, _ in self.flying:
            for row, life in zip(planned.step.rows, planned.lives, strict=True):
                whose = (row.sequence, life)
                assert whose not in picked, "its next token is not known yet"
                assert ends.get(whose, row.start) == row.start, "pieces do not follow each other"
                ends[whose] = row.start + len(row.tokens)
            picked |= {
                (row.sequence, life)
                for index, (row, life) in enumerate(zip(planned.step.rows, planned.lives, strict=True))
                if any(pick.row == index for pick in planned.picks)
            }
