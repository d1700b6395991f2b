"""Decides, step by step, which tokens of which sequences are computed next.

Iteration-level scheduling (Orca, Yu et al. 2022) with one token budget for decodes, prompts in pieces (Sarathi-Serve,
Agrawal et al. 2024) and drafts. Invariants: a step never exceeds its budget; decodes come first and always leave a
prompt a share; preemption loses blocks, never tokens; one step is in flight at most. Must not know torch, text,
sampling or clocks: `now` is an argument. All calls come from one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpu_node.engine.planned import Counts, Limits, Planned, PlannedPick, PlannedRead, Submission
from gpu_node.engine.population import Population
from gpu_node.engine.sequence_state import SequenceState
from gpu_node.engine.speculation import NOTHING, Drafting, Proposal
from gpu_node.engine.step import Row
from gpu_node.engine.step_builder import StepBuilder
from gpu_node.engine.step_costs import StepCosts
from gpu_node.errors import DeadlineExceeded

__all__ = ["Counts", "Limits", "Planned", "PlannedPick", "PlannedRead", "Scheduler", "Submission"]


class Scheduler:
    def __init__(self, limits: Limits) -> None:
        self._people = Population(limits)
        self._in_flight: Planned | None = None
        self._turn = 0
        self._cap: int | None = None
        self._costs = StepCosts()
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

    def schedule(self, now: float) -> Planned | None:
        """The next step; None when nothing can be computed. Commit or abandon it before asking again."""
        assert self._in_flight is None, "the last step has been neither committed nor abandoned"
        self._turn += 1
        able = [state for state in self._people.running if not state.overflows]
        decodes = [state for state in able if state.decodes]
        prompts = sorted((state for state in able if not state.decodes), key=lambda state: state.admitted)
        depth = max((state.computed for state in prompts), default=0)
        step = StepBuilder(self._turn, self._budget(len(decodes), depth), self.limits.block_tokens)
        self._decode(step, decodes, bool(prompts) or bool(len(self._people.line)))
        self._read(step, prompts)
        self._admit(step)
        self._read_on(step)
        self._fork(step)
        self._draft(step)
        if not step.shares:
            return None
        self._in_flight = step.build(now)
        return self._in_flight

    def commit(self, planned: Planned, accepted: Mapping[int, Sequence[int]], now: float) -> tuple[int, ...]:
        """The step has run. `accepted` has the tokens that each picked sequence goes on with: what the model chose,
        cut or lengthened by the caller; a sequence without any stays as it is and is picked again. Whoever failed must
        have left before, so that nothing of its row is published. Returns who has more tokens than `max_context` now:
        they must be rebased or finished before the next step.
        """
        if planned is not self._in_flight:
            return ()  # the cache was reset meanwhile
        self._in_flight = None
        if not planned.prompt_tokens:
            self._costs = self._costs.after(planned.step.token_count, now - planned.planned_at)
        states = self._people.states
        samples = [pick for pick in planned.picks if planned.step.rows[pick.row].sequence != pick.sequence]
        for row in planned.step.rows:
            state = states.get(row.sequence)
            if state is not None:
                self._settle(state, row, accepted, [pick.sequence for pick in samples if pick.sequence in accepted])
        for pick in samples:
            sample = states.get(pick.sequence)
            if sample is not None:
                self._go_on(sample, accepted.get(pick.sequence, ()))
        for read in planned.reads:
            if read.last:
                self.finish(read.sequence)
        return tuple(
            pick.sequence for pick in planned.picks if pick.sequence in states and states[pick.sequence].overflows
        )

    def abandon(self, planned: Planned) -> None:
        """The step has not run; nothing has changed but that some blocks may be taken."""
        if planned is not self._in_flight:
            return
        self._in_flight = None
        for row in planned.step.rows:
            state = self._people.states.get(row.sequence)
            if state is not None:
                state.planned, state.drafted = 0, NOTHING

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
        self._cap = tokens

    def reset_cache(self, limits: Limits | None = None) -> tuple[int, ...]:
        """The cache is lost: all wait again with the tokens they have; a step in flight is void. Returns those that
        do not fit any more and have left; `max_context` of the others is cut to what fits."""
        self._in_flight = None
        return self._people.reset(limits or self.limits)

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

    def _budget(self, decodes: int, depth: int) -> int:
        tokens = self.limits.budget(decodes, depth)
        return min(tokens, self._cap) if self._cap else tokens

    def _decode(self, step: StepBuilder, decodes: list[SequenceState], prompts_wait: bool) -> None:
        """One token for each; when they are too many, those first that have waited longest."""
        reserve = min(self.limits.block_tokens, step.budget // 2) if prompts_wait else 0
        room = step.budget - reserve
        if len(decodes) > room:
            decodes = sorted(decodes, key=lambda state: state.turn)
        for state in decodes:
            if step.used < room and state.running and self._make_room(step, state, state.computed + 1):
                step.add(state, 1, decode=True)

    def _read(self, step: StepBuilder, prompts: list[SequenceState]) -> None:
        """Prompts as they were admitted; up to half a step is for a later and shorter one, that need not wait for a
        book: for the shortest of those that are being read, or for who is admitted next."""
        if not prompts:
            return
        first = prompts[0]
        shortest = min(prompts, key=lambda state: state.pending)
        if shortest is not first:
            self._piece(step, shortest, step.left // 2)
        elif len(prompts) == 1 and len(self._people.line):
            self._piece(step, first, step.left - step.left // 2)
        for state in prompts:
            if state.turn != step.turn:
                self._piece(step, state, step.left)

    def _piece(self, step: StepBuilder, state: SequenceState, most: int) -> None:
        tokens = min(state.pending, most)
        if tokens > 0 and state.running and self._make_room(step, state, state.computed + tokens):
            step.add(state, tokens)

    def _admit(self, step: StepBuilder) -> None:
        unborn = sum(len(state.samples) for state in self._people.running)  # their seats are taken
        while step.left > 0 and self._people.room_to_run > unborn:
            state = self._people.admit()
            if state is None:
                return
            unborn += len(state.samples)
            step.add(state, min(state.pending, step.left))

    def _read_on(self, step: StepBuilder) -> None:
        """What nobody was admitted for goes back to those who read."""
        for share in step.shares:
            more = min(len(share.state.tokens) - share.end, step.left)
            if more > 0 and self._make_room(step, share.state, share.end + more):
                step.extend(share, more)

    def _fork(self, step: StepBuilder) -> None:
        """Samples whose prompt is read now, as far as there are seats, and a block for each to write to next."""
        people = self._people
        room = min(people.room_to_run, people.tables.pool.available - len(people.running))
        for share in step.shares:
            if share.state.samples and share.last:
                share.forks = max(0, min(len(share.state.samples), room))
                room -= share.forks

    def _make_room(self, step: StepBuilder, state: SequenceState, slots: int) -> bool:
        """Those who give way for it are its juniors, and not in this step yet; without any it has to wait itself."""
        while not self._people.tables.make_room(state, slots):
            for victim in reversed(self._people.running.members):
                if victim is state:
                    return False
                if victim.turn != step.turn:
                    break
            else:
                return False
            self._people.preempt(victim)
        return True

    def _draft(self, step: StepBuilder) -> None:
        """Guesses for what is left of the budget, where they pay; nobody gives way for them."""
        decodes = [share for share in step.shares if share.decode]
        for share in decodes:
            state = share.state
            limit = min(self.limits.max_drafts, step.left, state.max_context - len(state.tokens))
            if limit < 1 or not state.speculates or not state.sampled or state.samples:
                continue
            price = len(decodes) * self._costs.share(step.used)
            if state.drafting is None:
                state.drafting = Drafting()
            proposal = state.drafting.propose(state.tokens, price, limit)
            fitting = self._fitting(state, proposal)
            if fitting.drafts:
                step.draft(share, fitting, price)

    def _fitting(self, state: SequenceState, proposal: Proposal) -> Proposal:
        tables = self._people.tables
        slots = len(state.tokens) + len(proposal.drafts)
        more = tables.blocks_for(slots) - len(state.blocks)
        if more <= 0 or (more + len(self._people.running) <= tables.pool.available and tables.make_room(state, slots)):
            return proposal
        return Proposal(proposal.drafts[: tables.covered(state) - len(state.tokens)], proposal.size)

    def _settle(
        self, state: SequenceState, row: Row, accepted: Mapping[int, Sequence[int]], forking: Sequence[int]
    ) -> None:
        """What became of one row: its tokens are computed, drafts judged, samples forked, full blocks published."""
        taken = accepted.get(state.id, ())
        if not state.planned:  # it lost its blocks while the step ran
            self._go_on(state, taken)
            return
        people = self._people
        people.tables.copied(state)
        base = state.computed + state.planned
        whole = base == len(state.tokens)
        right = self._judge(state, taken)
        state.tokens.extend(taken)
        state.planned, state.drafted = 0, NOTHING
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
