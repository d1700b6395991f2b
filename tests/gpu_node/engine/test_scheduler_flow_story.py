"""However many steps are under way, answers are those of a model that has each request alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gpu_node.engine.scheduler import Limits
from gpu_node.errors import NodeBusy
from tests.gpu_node.engine.flow import Flow
from tests.gpu_node.engine.test_scheduler_story import PROMPTS, WHICH

LIMITS = st.builds(
    Limits,
    block_tokens=st.sampled_from([1, 2, 4]),
    block_count=st.integers(12, 30),
    max_running=st.integers(1, 8),
    step_tokens=st.integers(1, 40),
    mixed_step_tokens=st.integers(1, 16),
    max_waiting=st.integers(0, 12),
    max_drafts=st.sampled_from([0, 2, 8]),
    promised=st.integers(6, 12),
)


class FlowMachine(RuleBasedStateMachine):
    flow: Flow

    @initialize(limits=LIMITS, depth=st.integers(1, 4))
    def begin(self, limits: Limits, depth: int) -> None:
        self.flow = Flow(limits, depth=depth)

    @rule(
        prompt=PROMPTS,
        length=st.integers(1, 16),
        samples=st.sampled_from([1, 1, 1, 2, 5]),
        priority=st.sampled_from([0, 0, 3]),
        caller=st.sampled_from("ab"),
        patience=st.sampled_from([None, None, 3.0, 30.0]),
    )
    def submit(self, prompt, length, patience, **options) -> None:
        capacity = self.flow.limits.capacity_tokens
        prompt = prompt[: capacity - 1]
        deadline = None if patience is None else self.flow.now + patience
        with suppress(NodeBusy):
            self.flow.submit(prompt, min(length, capacity - len(prompt)), deadline=deadline, **options)
        self.flow.check()

    @rule(prompt=PROMPTS, priority=st.sampled_from([0, 3]))
    def submit_text(self, prompt, priority) -> None:
        with suppress(NodeBusy):
            self.flow.submit_text(prompt[: self.flow.limits.capacity_tokens], priority=priority)

    @rule(limit=st.integers(1, 8))
    def some_steps(self, limit: int) -> None:
        for _ in range(limit):
            if self.flow.scheduler.busy or self.flow.flying:
                self.flow.step()

    @rule()
    def another_step_begins(self) -> None:
        self.flow.launch()

    @rule(keeps=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def a_step_ends_with_trouble(self, keeps: list[int]) -> None:
        """Some answers are cut, some picks fail."""
        if self.flow.flying:
            turn = iter(keeps * 10)
            self.flow.land(lambda chosen: chosen[: next(turn, 1)])

    @rule(preempted=st.integers(0, 2))
    def a_step_fails(self, preempted: int) -> None:
        self.flow.drop()
        for _ in range(preempted):
            self.flow.scheduler.preempt_youngest()
        self.flow.check()

    @rule(which=WHICH)
    def somebody_is_preempted_with_rows_under_way(self, which: int) -> None:
        """Nothing does that today; rows of the life before must be void all the same."""
        running = [state for state in self.flow.scheduler._people.running if state.sampled]
        if running:
            self.flow.scheduler._people.preempt(running[which % len(running)])
        self.flow.check()

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        states = list(self.flow.scheduler._people.states)
        if states:
            self.flow.scheduler.cancel(states[which % len(states)])
        self.flow.check()

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.flow.now += seconds
        self.flow.scheduler.expired(self.flow.now)
        self.flow.check()

    @rule(which=WHICH)
    def shift(self, which: int) -> None:
        flow = self.flow
        alive = [identity for identity, story in flow.stories.items() if story.written and flow.lives(identity)]
        if alive:
            story = flow.stories[alive[which % len(alive)]]
            flow.assert_told()
            tokens = [*story.prompt, *story.written]
            story.length -= len(story.written)
            story.prompt, story.written = (*tokens[:1], *tokens[len(tokens) // 2 :]), []
            flow.scheduler.rebase(alive[which % len(alive)], story.prompt)
            flow.check()

    @rule(blocks=st.sets(st.integers(0, 29)))
    def blocks_go(self, blocks: set[int]) -> None:
        limits = self.flow.limits
        self.flow.land_all()
        self.flow.scheduler.retire([block for block in blocks if limits.promised <= block < limits.block_count])
        self.flow.check()

    @rule(blocks=st.sets(st.integers(0, 29)))
    def blocks_come(self, blocks: set[int]) -> None:
        self.flow.land_all()
        coming = [block for block in blocks if block < self.flow.limits.block_count]
        for stage in (self.flow.model, self.flow.last):  # with unknown content
            for slot in list(stage.slots):
                if slot // stage.block_tokens in self.flow.scheduler._people.tables.pool._retired.intersection(coming):
                    del stage.slots[slot]
        self.flow.scheduler.restore(coming)
        self.flow.check()

    @rule(share=st.sampled_from([1.0, 1.0, 0.5]), depth=st.integers(1, 4))
    def the_cache_is_lost(self, share: float, depth: int) -> None:
        """And the new one may be another, on more or fewer devices."""
        flow = self.flow
        flow.lose_cache()
        flow.limits = replace(flow.limits, promised=max(6, int(flow.limits.promised * share)))
        flow.depth = depth
        lost = flow.scheduler.reset_cache(flow.limits)
        assert not any(flow.lives(identity) for identity in lost)
        for identity, story in flow.stories.items():
            if flow.lives(identity):
                room = flow.scheduler.max_context(identity) - len(story.prompt) - len(story.written)
                story.length = min(story.length, len(story.written) + room)
                if story.complete:
                    flow.scheduler.finish(identity)
        flow.check()

    @rule(tokens=st.sampled_from([None, 1, 5]))
    def the_device_is_full(self, tokens: int | None) -> None:
        self.flow.scheduler.limit_step(tokens)

    @invariant()
    def nothing_wrong_or_repeated_was_told(self) -> None:
        if hasattr(self, "flow"):
            self.flow.assert_told()
            assert self.flow.scheduler.shortage >= 0

    def teardown(self) -> None:
        if not hasattr(self, "flow"):
            return
        alive = [identity for identity in self.flow.stories if self.flow.lives(identity)]
        texts = [identity for identity in self.flow.texts if self.flow.lives(identity)]
        self.flow.run()
        self.flow.assert_told()
        assert all(self.flow.stories[identity].complete for identity in alive), "an answer was lost"
        assert all(tuple(self.flow.read[identity]) == self.flow.texts[identity] for identity in texts)
        counts = self.flow.scheduler.counts()
        assert counts.blocks_used == 0 and counts.running == counts.waiting == 0
        assert self.flow.scheduler.shortage == 0


TestFlow = FlowMachine.TestCase
TestFlow.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
