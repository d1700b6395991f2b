"""What goes into one step: a share for whoever goes on with an answer, pieces of prompts, newcomers, samples, drafts.

Invariants: decodes come first and always leave a prompt a share; who has something under way gives way to nobody. Of
several steps under way each takes its part of the decodes, so that all are alike in size and no device waits long for
the one before it. Must not know what becomes of a step.
"""

from __future__ import annotations

from itertools import islice

from gpu_node.engine.population import Population
from gpu_node.engine.sequence_state import SequenceState
from gpu_node.engine.speculation import Drafting, Proposal
from gpu_node.engine.step_builder import StepBuilder
from gpu_node.engine.step_costs import StepCosts

# Whoever waits further behind will not be read in the next few steps.
LOOKED_AT = 32


class StepPlanner:
    def __init__(self, people: Population) -> None:
        self._people = people
        self._turn = 0
        self.cap: int | None = None  # tokens of a step at most
        self.costs = StepCosts()

    def plan(self, depth: int, forking: int) -> StepBuilder:
        """`depth`: so many steps are to be under way together; `forking`: samples that fork in those which are."""
        people = self._people
        self._turn += 1
        decodes: list[SequenceState] = []
        prompts: list[SequenceState] = []
        answering = 0  # with those that are under way
        for state in people.running.members:
            pending = state.pending
            if state.overflows:
                continue
            if state.answering and pending < 2:
                answering += 1
                if pending:
                    decodes.append(state)
            elif pending:
                prompts.append(state)
        prompts.sort(key=lambda state: state.admitted)
        group = -(-answering // depth)
        budget = self._budget(min(len(decodes), group) or min(answering, 1), prompts, depth)
        step = StepBuilder(self._turn, budget, people.limits.block_tokens)
        self._decode(step, decodes, group, bool(prompts) or bool(len(people.line)))
        self._read(step, prompts)
        self._admit(step)
        self._read_on(step)
        self._fork(step, forking)
        self._draft(step)
        return step

    def _budget(self, decodes: int, prompts: list[SequenceState], depth: int) -> int:
        """While answers are under way a step that has none of them is a mixed one too: it is in their way."""
        limits = self._people.limits
        deepest = max([state.computed for state in prompts]) if prompts else 0
        tokens = limits.budget(decodes, deepest)
        if depth > 1 and not decodes:
            tokens = min(tokens, max(self._fair_piece(prompts, depth), limits.mixed_step_tokens))
        return min(tokens, self.cap) if self.cap else tokens

    def _fair_piece(self, prompts: list[SequenceState], depth: int) -> int:
        """A prompt that is read in one piece goes from device to device, and all others wait; in many small ones each
        step costs more than its tokens. Two pieces for each step under way keep the devices waiting for a quarter of
        the time at most; the last ones are smaller, since they see more."""
        left = sum(state.pending for state in prompts)
        left += sum(len(state.tokens) for state in islice(self._people.waiting, LOOKED_AT))
        return -(-left // (2 * depth))

    def _decode(self, step: StepBuilder, decodes: list[SequenceState], group: int, prompts_wait: bool) -> None:
        """One token for each of a group; when they are too many, those first that have waited longest."""
        reserve = min(self._people.limits.block_tokens, step.budget // 2) if prompts_wait else 0
        room = min(step.budget - reserve, group)
        if len(decodes) > room:
            decodes = sorted(decodes, key=lambda state: state.turn)
        for state in decodes:
            if step.used < room and state.running and self._make_room(state, state.computed + 1):
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
        if tokens > 0 and state.running and self._make_room(state, state.computed + tokens):
            step.add(state, tokens)

    def _admit(self, step: StepBuilder) -> None:
        if not len(self._people.line):
            return
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
            if more > 0 and self._make_room(share.state, share.end + more):
                step.extend(share, more)

    def _fork(self, step: StepBuilder, forking: int) -> None:
        """Samples whose prompt is read now, as far as there are seats, and a block for each to write to next."""
        people = self._people
        room = min(people.room_to_run, people.tables.pool.available - len(people.running)) - forking
        for share in step.shares:
            if share.state.samples and share.last:
                share.forks = max(0, min(len(share.state.samples), room))
                room -= share.forks

    def _make_room(self, state: SequenceState, slots: int) -> bool:
        """Those who give way for it are its juniors, and have nothing under way or in this step yet; without any it has
        to wait itself."""
        while not self._people.tables.make_room(state, slots):
            for victim in reversed(self._people.running.members):
                if victim is state:
                    return False
                if not victim.planned:
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
            limit = min(self._people.limits.max_drafts, step.left, state.max_context - len(state.tokens))
            if limit < 1 or not state.speculates or not state.sampled or state.samples:
                continue
            price = len(decodes) * self.costs.share(step.used)
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
