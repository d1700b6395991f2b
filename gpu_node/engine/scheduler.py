"""Decides, step by step, which tokens of which sequences are computed next.

Iteration-level scheduling (Orca, Yu et al. 2022) with one token budget for decodes, prompts in pieces (Sarathi-Serve,
Agrawal et al. 2024) and drafts. Several steps may be under way: they are computed and committed in the order in which
they were planned, an answer is in one of them at a time, and pieces of a prompt follow each other. Invariants: a step
never exceeds its budget; preemption loses blocks, never tokens. Must not know torch, text, sampling or clocks: `now` is
an argument. All calls come from one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from gpu_node.engine.planned import Counts, Limits, Planned, PlannedPick, PlannedRead, Submission
from gpu_node.engine.population import Population
from gpu_node.engine.sequence_state import SequenceState
from gpu_node.engine.speculation import NOTHING
from gpu_node.engine.step import Row
from gpu_node.engine.step_planner import StepPlanner
from gpu_node.errors import DeadlineExceeded

__all__ = ["Counts", "Limits", "Planned", "PlannedPick", "PlannedRead", "Scheduler", "Submission"]


class Scheduler:
    def __init__(self, limits: Limits) -> None:
        self._people = Population(limits)
        self._planner = StepPlanner(self._people)
        self._flying: deque[Planned] = deque()  # steps under way, the oldest first
        self._committed_at = float("-inf")
        self._drafts = self._accepted_drafts = 0

    @property
    def limits(self) -> Limits:
        return self._people.limits

    @property
    def busy(self) -> bool:
        """Somebody runs or waits."""
        return bool(self._people.states)

    def submit(self, submission: Submission, now: float) -> tuple[int, ...]:
        """One sequence a sample, in order.

        Raises NodeBusy when the line is full, ContextExceeded when the cache could never hold `max_context` tokens, and
        DeadlineExceeded when it is too late already.
        """
        if submission.deadline is not None and submission.deadline <= now:
            raise DeadlineExceeded
        return self._people.enter(submission)

    def cancel(self, sequence: int) -> None:
        """It leaves at once; one that has left already is welcome."""
        state = self._people.states.get(sequence)
        if state is not None:
            self._people.leave(state)

    def finish(self, sequence: int) -> None:
        """Its answer is complete. What has been committed of it stays in the cache."""
        self.cancel(sequence)

    def expired(self, now: float) -> tuple[int, ...]:
        """Sequences whose deadline has passed; they have left."""
        return self._people.expired(now)

    def next_deadline(self) -> float | None:
        return self._people.next_deadline()

    def schedule(self, now: float, depth: int = 1) -> Planned | None:
        """The next step; None when nothing can be computed before another one is committed or somebody comes.

        `depth`: so many may be under way together, this one included."""
        assert len(self._flying) < depth, "the last step has been neither committed nor abandoned"
        forking = sum([_forking(planned) for planned in self._flying]) if self._flying else 0
        step = self._planner.plan(depth, forking)
        if not step.shares:
            return None
        planned = step.build(now)
        self._flying.append(planned)
        return planned

    def live(self, planned: Planned) -> tuple[PlannedPick, ...]:
        """The picks of a step under way whose tokens are still wanted: their sequences have not left, nor lost their
        place and been picked anew in a later step."""
        states, turn = self._people.states, planned.turn
        return tuple(
            pick for pick in planned.picks if (state := states.get(pick.sequence)) is not None and state.picked == turn
        )

    def commit(self, planned: Planned, accepted: Mapping[int, Sequence[int]], now: float) -> tuple[int, ...]:
        """The oldest step under way has run. `accepted` has the tokens that each picked sequence goes on with: what the
        model chose, cut or lengthened by the caller, for those of `live` only; a sequence without any stays as it is
        and is picked again. Whoever failed must have left before, so that nothing of its row is published. Returns who
        has more tokens than `max_context` now: they must be rebased or finished before the next step.
        """
        if not self._under_way(planned):
            return ()  # the cache was reset meanwhile
        oldest = self._flying.popleft()
        assert planned is oldest, "steps end in their order"
        self._learn(planned, now)
        states = self._people.states
        samples = [pick for pick in planned.picks if planned.step.rows[pick.row].sequence != pick.sequence]
        forking = [pick.sequence for pick in samples if pick.sequence in accepted] if samples else []
        for row, life in zip(planned.step.rows, planned.lives, strict=True):
            state = states.get(row.sequence)
            if state is None:
                continue
            taken = accepted.get(state.id, ())
            if state.life != life:  # it lost its blocks while the step ran
                self._go_on(state, taken)
            else:
                self._settle(state, row, taken, forking)
        for pick in samples:
            sample = states.get(pick.sequence)
            if sample is not None and sample.picked == planned.turn:
                self._go_on(sample, accepted.get(pick.sequence, ()))
        for read in planned.reads:
            if read.last:
                self.finish(read.sequence)
        return tuple(
            pick.sequence for pick in planned.picks if pick.sequence in states and states[pick.sequence].overflows
        )

    def abandon(self, planned: Planned) -> None:
        """The step has not run, nor have those after it; nothing has changed but that some blocks may be taken."""
        if not self._under_way(planned):
            return
        last = None
        while last is not planned:
            last = self._flying.pop()
            for row, life in zip(last.step.rows, last.lives, strict=True):
                state = self._people.states.get(row.sequence)
                if state is not None and state.life == life:
                    state.planned -= len(row.tokens) - len(state.drafted.drafts)
                    state.drafted = NOTHING

    def rebase(self, sequence: int, ids: Sequence[int]) -> None:
        """Its tokens are these from now on, and are computed anew where the cache does not have them."""
        state = self._people.states[sequence]
        assert 0 < len(ids) <= state.max_context and state.sampled
        self._people.start_over(state, ids)

    def preempt_youngest(self) -> int | None:
        """Whoever would give way first does. None when at most one is running."""
        running = self._people.running.members
        if len(running) < 2:
            return None
        youngest = running[-1]
        self._people.preempt(youngest)
        return youngest.id

    def limit_step(self, tokens: int | None) -> None:
        """No step has more tokens than this. None: only the limits count."""
        assert tokens is None or tokens > 0
        self._planner.cap = tokens

    def reset_cache(self, limits: Limits | None = None) -> tuple[int, ...]:
        """The cache is lost: all wait again with the tokens they have; steps under way are void. Returns those that
        do not fit any more and have left; `max_context` of the others is cut to what fits."""
        self._flying.clear()
        return self._people.reset(limits or self.limits)

    @property
    def shortage(self) -> int:
        """Blocks that are needed now and are not there; 0: all is well."""
        return self._people.shortage

    @property
    def pressing(self) -> bool:
        """The shortage is such that somebody who runs gives way; otherwise somebody waits."""
        return self._people.pressing

    def retire(self, blocks: Sequence[int]) -> None:
        """Nobody may use them from now on; nothing is under way. Those who do are computed again elsewhere. Only blocks
        beyond `Limits.promised` come and go: the others are what the longest context needs."""
        assert not self._flying and all(block >= self.limits.promised_count for block in blocks)
        self._people.retire(blocks)

    def restore(self, blocks: Sequence[int]) -> None:
        """They may be used again; what was in them is lost."""
        self._people.tables.pool.restore(blocks)

    def speculate(self, sequence: int, allowed: bool) -> None:
        """Drafts are welcome for it from now on, or not."""
        self._people.states[sequence].speculates = allowed

    def tokens(self, sequence: int) -> Sequence[int]:
        """Prompt and answer so far; not to be changed. KeyError when it has left."""
        return self._people.states[sequence].tokens

    def max_context(self, sequence: int) -> int:
        return self._people.states[sequence].max_context

    def reused_tokens(self, sequence: int) -> int:
        """Prompt tokens that the cache had when it was first admitted."""
        return self._people.states[sequence].reused or 0

    def counts(self) -> Counts:
        people, pool = self._people, self._people.tables.pool
        return Counts(
            running=len(people.running),
            waiting=len(people.states) - len(people.running),
            blocks_used=pool.used,
            blocks_free=pool.empty,
            blocks_cached=pool.cached,
            preemptions=people.preemptions,
            prompt_tokens=people.prompt_tokens,
            prefix_hit_tokens=people.prefix_hit_tokens,
            drafts=self._drafts,
            accepted_drafts=self._accepted_drafts,
        )

    def _under_way(self, planned: Planned) -> bool:
        flying = self._flying
        return bool(flying) and (planned is flying[0] or any(one is planned for one in flying))

    def _learn(self, planned: Planned, now: float) -> None:
        """A step begins when the one before it has ended, though both were under way."""
        if not planned.prompt_tokens:
            seconds = now - max(planned.planned_at, self._committed_at)
            self._planner.costs = self._planner.costs.after(planned.step.token_count, seconds)
        self._committed_at = now

    def _settle(self, state: SequenceState, row: Row, taken: Sequence[int], forking: Sequence[int]) -> None:
        """What became of one row: its tokens are computed, drafts judged, samples forked, full blocks published."""
        assert row.start == state.computed, "rows of a sequence end in their order"
        people = self._people
        people.tables.copied(state)
        certain = len(row.tokens) - len(state.drafted.drafts)
        base = state.computed + certain
        whole = base == len(state.tokens)
        right = self._judge(state, taken)
        state.tokens.extend(taken)
        state.planned -= certain
        state.drafted = NOTHING
        people.settle(state, people.tables.publish(state, min(base + right, len(state.tokens))))
        if whole and state.samples:
            for sample in [sample for sample in state.samples if sample.id in forking]:
                people.fork(state, sample, base)
            people.free_samples(state)
        state.answering = whole
        state.told = max(state.told, base)
        state.computed = min(base + right, len(state.tokens) - 1)

    def _judge(self, state: SequenceState, taken: Sequence[int]) -> int:
        drafts = state.drafted.drafts
        right = 0
        while right < min(len(drafts), len(taken)) and drafts[right] == taken[right]:
            right += 1
        if drafts and state.drafting is not None:
            self._drafts += len(drafts)
            self._accepted_drafts += right
            state.drafting.judge(state.drafted, right, state.price, len(state.tokens) + len(taken))
        return right

    def _go_on(self, sample: SequenceState, taken: Sequence[int]) -> None:
        """A sample that has just forked, or could not: then its first tokens are read like a prompt."""
        if sample.parent is not None:
            self._people.detach(sample)
            self._people.line.restore(sample)
        if taken:
            self._people.free_samples(sample)
        sample.tokens.extend(taken)
        if sample.running:
            sample.computed = min(sample.computed, len(sample.tokens) - 1)


def _forking(planned: Planned) -> int:
    """Samples that have no seat yet and will need one when the step has ended."""
    return len(planned.picks) - len({pick.row for pick in planned.picks})
