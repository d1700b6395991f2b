"""All sequences: who waits, who runs, who is held for a prefix, and the moves between these.

Invariants: a sequence is in exactly one place: in line, held, running, or a sample that will fork from another one;
only running ones hold blocks; whatever leaves settles its promises. Must not know what a step computes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from gpu_node.engine.block_chain import BlockChain, BlockKey
from gpu_node.engine.block_table import BlockTables
from gpu_node.engine.planned import Limits, Submission
from gpu_node.engine.promises import Promises
from gpu_node.engine.sequence_state import RunningSet, SequenceState
from gpu_node.engine.waiting_line import WaitingLine
from gpu_node.errors import ContextExceeded, NodeBusy

SWEPT_AT = 64  # deadlines of sequences that have left: fewer are not worth looking for
SOON_TOKENS = 4  # whoever runs will have written so many when more blocks could have been found for it


class Population:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tables = BlockTables(limits.block_tokens, limits.block_count, limits.promised)
        self.running = RunningSet()
        self.line = WaitingLine()
        self.promises = Promises()
        self.states: dict[int, SequenceState] = {}
        self.preemptions = self.prompt_tokens = self.prefix_hit_tokens = 0
        self._ids = self._admissions = 0
        self._deadlines: list[tuple[float, int]] = []  # a heap; some have left
        self._no_room: tuple[int, int, int] | None = None  # who found none, and when

    @property
    def room_to_run(self) -> int:
        """Seats; those who are held for a prefix will need theirs."""
        return self.limits.max_running - len(self.running) - self.promises.holding

    @property
    def waiting(self) -> Iterator[SequenceState]:
        """Those in line, about as they will have their turn."""
        return chain(self.line.returned, chain.from_iterable(self.line.lines.values()))

    @property
    def pressing(self) -> bool:
        """Blocks are missing for those who run: somebody gives way, unless more are found."""
        return self._needed_soon > self.tables.pool.available

    @property
    def _needed_soon(self) -> int:
        """By those who run."""
        tables, soon = self.tables, 0
        for state in self.running:
            slots = min(len(state.tokens) + SOON_TOKENS, state.max_context)
            soon += max(0, tables.blocks_for(slots) - len(state.blocks))
        return soon

    @property
    def shortage(self) -> int:
        """Blocks that would be needed now, by those who run and by those who have a seat, and are not there."""
        tables, soon, behind = self.tables, self._needed_soon, 0
        for state in islice(self.waiting, max(self.room_to_run, 0)):
            behind += tables.missing(state, tables.pool.find(tables.shareable(state)))
        needed = max(soon, len(self.running)) + behind if behind else soon  # as much as `admit` asks for
        return max(0, needed - tables.pool.available)

    def enter(self, submission: Submission) -> tuple[int, ...]:
        if submission.max_context > self.limits.capacity_tokens:
            raise ContextExceeded
        if len(self.line) + self.promises.holding >= self.limits.max_waiting + max(0, self.room_to_run):
            raise NodeBusy
        states = [self._state(submission) for _ in range(submission.samples)]
        first, *samples = states
        first.samples = samples
        for sample in samples:
            sample.parent = first
        self.line.enter(first)
        if submission.deadline is not None:
            self._watch(submission.deadline, states)
        return tuple(state.id for state in states)

    def _watch(self, deadline: float, states: list[SequenceState]) -> None:
        for state in states:
            heapq.heappush(self._deadlines, (deadline, state.id))
        if len(self._deadlines) > SWEPT_AT + 2 * len(self.states):
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.states]
            heapq.heapify(self._deadlines)

    def _state(self, submission: Submission) -> SequenceState:
        self._ids += 1
        chain = BlockChain(submission.salt, self.limits.block_tokens)
        state = SequenceState(
            self._ids, submission, list(submission.ids), submission.max_context, chain, submission.speculate
        )
        self.states[state.id] = state
        return state

    def leave(self, state: SequenceState) -> None:
        """For good. The first of its samples takes its place, when they have not forked yet."""
        del self.states[state.id]
        state.gone = True
        heir = state.samples[0] if state.samples else None
        if heir is not None:
            heir.samples, heir.parent = state.samples[1:], None
            for sample in heir.samples:
                sample.parent = heir
            state.samples = []
        if state.parent is not None:
            self.detach(state)
        elif state.running:
            self._stop(state)
        elif not self.promises.leave(state):
            fresh = self.line.leave(state)
            if fresh and heir is not None:
                self.line.enter(heir)
                return
        if heir is not None:
            self.line.restore(heir)

    def detach(self, sample: SequenceState) -> None:
        """It will not fork any more."""
        assert sample.parent is not None
        sample.parent.samples.remove(sample)
        sample.parent = None

    def free_samples(self, state: SequenceState) -> None:
        """They cannot fork from it any more: each goes on by itself, from what the cache has."""
        for sample in list(state.samples):
            self.detach(sample)
            self.line.restore(sample)

    def preempt(self, state: SequenceState) -> None:
        """Its blocks go to others; all its tokens will be computed again."""
        self._stop(state)
        state.preempted += 1
        self.preemptions += 1
        self.line.restore(state)

    def retire(self, blocks: Iterable[int]) -> None:
        """Nobody has them any more: who holds one gives way, and is computed again from what the cache still has."""
        leaving = set(blocks)
        for state in reversed(list(self.running)):
            held = state.blocks if state.copy is None else (*state.blocks, state.copy.source)
            if not leaving.isdisjoint(held):
                self.preempt(state)
        self.tables.pool.retire(tuple(leaving))

    def start_over(self, state: SequenceState, tokens: Iterable[int]) -> None:
        """Its tokens are others now."""
        assert state.parent is None, "it has not started yet"
        self.free_samples(state)
        if state.running:
            self._stop(state)
            self.line.restore(state)
        state.tokens = list(tokens)
        state.rename()

    def _stop(self, state: SequenceState) -> None:
        self.running.remove(state)
        self.settle(state, state.chain.keys[state.published : state.promised])
        state.promised = 0
        self.tables.drop(state)

    def settle(self, owner: SequenceState, keys: Iterable[BlockKey]) -> None:
        for state in self.promises.settle(owner, list(keys)):
            self.line.restore(state)

    def admit(self) -> SequenceState | None:
        """The next in line starts to run, with blocks for all its tokens. None when there is no room for it.

        Who could reuse what is being computed right now is held until it is there.
        """
        while self.room_to_run > 0 and (state := self.line.peek()) is not None:
            now = (state.id, self.tables.pool.releases, len(self.running))
            if now == self._no_room:
                return None
            keys = self.tables.shareable(state)
            found = self.tables.pool.find(keys)
            promised = self.promises.last_promised(state, keys[len(found) :])
            if promised is not None:
                self.promises.hold(self.line.take(), promised)
                continue
            # Whoever runs may soon want a block more; without that much room somebody would be preempted at once.
            if self.tables.missing(state, found) + len(self.running) > self.tables.pool.available:
                self._no_room = now
                return None
            self.line.take()
            self.tables.take(state, found)
            self._count(state)
            self.running.add(state)
            self._promise(state)
            return state
        return None

    def _count(self, state: SequenceState) -> None:
        self._admissions += 1
        state.admitted = self._admissions
        if state.reused is None:
            state.reused = state.computed
            self.prompt_tokens += len(state.tokens)
            self.prefix_hit_tokens += state.computed

    def _promise(self, state: SequenceState) -> None:
        if state.private:
            return
        state.promised = len(state.tokens) // self.limits.block_tokens
        state.chain.extend(state.tokens, state.promised)
        self.promises.make(state, state.chain.keys[state.published : state.promised])

    def fork(self, parent: SequenceState, sample: SequenceState, computed: int) -> None:
        """The sample runs from here on beside the one whose prompt is its own."""
        self.detach(sample)
        self.tables.fork(parent, sample, computed)
        self.running.add(sample)
        sample.reused, sample.admitted = computed, parent.admitted

    def expired(self, now: float) -> tuple[int, ...]:
        """Those whose deadline has passed; they have left."""
        late: list[int] = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self.states):
            _, identity = heapq.heappop(self._deadlines)
            state = self.states.get(identity)
            if state is not None:
                self.leave(state)
                late.append(identity)
        return tuple(late)

    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self.states:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def reset(self, limits: Limits) -> tuple[int, ...]:
        """The cache is empty and may be smaller: all wait again. Those that no longer fit leave; they are returned."""
        for state in [*self.running, *self.promises.everybody()]:
            state.running, state.awaits, state.promised = False, None, 0
            state.forget_blocks()
            self.line.restore(state)
        self.limits, self._no_room = limits, None
        self.running, self.promises = RunningSet(), Promises()
        self.tables = BlockTables(limits.block_tokens, limits.block_count, limits.promised)
        lost = [state for state in self.states.values() if len(state.tokens) > limits.capacity_tokens]
        for state in lost:
            self.leave(state)
        for state in self.states.values():
            state.max_context = min(state.max_context, limits.capacity_tokens)
            if state.chain.block_tokens != limits.block_tokens:
                state.chain = BlockChain(state.chain.salt, limits.block_tokens)
        return tuple(state.id for state in lost)
