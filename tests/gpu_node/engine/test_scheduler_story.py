"""Whatever happens to requests, their answers are those of a model that has each one alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpu_node.engine.scheduler import Limits
from gpu_node.errors import ContextExceeded, NodeBusy
from tests.gpu_node.engine.paged_model import Play

LIMITS = st.builds(
    Limits,
    block_tokens=st.sampled_from([1, 2, 4]),
    block_count=st.integers(6, 24),
    max_running=st.integers(1, 6),
    step_tokens=st.integers(1, 40),
    mixed_step_tokens=st.integers(1, 16),
    max_waiting=st.integers(0, 12),
    max_drafts=st.sampled_from([0, 2, 8]),
)
# Half of them begin alike, so that prefixes are shared.
PROMPTS = st.one_of(
    st.integers(1, 20).map(lambda length: ([0, 1, 2, 3] * 5)[:length]),
    st.lists(st.integers(0, 6), min_size=1, max_size=20),
)
WHICH = st.integers(0, 50)


class StoryMachine(RuleBasedStateMachine):
    play: Play

    @initialize(limits=LIMITS)
    def begin(self, limits: Limits) -> None:
        self.play = Play(limits)

    @rule(
        prompt=PROMPTS,
        length=st.integers(1, 16),
        samples=st.sampled_from([1, 1, 1, 2, 5]),
        priority=st.sampled_from([0, 0, 3]),
        caller=st.sampled_from("ab"),
        salt=st.sampled_from(["", "", "x"]),
        patience=st.sampled_from([None, None, 3.0, 30.0]),
    )
    def submit(self, prompt, length, patience, **options) -> None:
        capacity = self.play.limits.capacity_tokens
        prompt = prompt[: capacity - 1]
        deadline = None if patience is None else self.play.now + patience
        waiting = self.play.scheduler.counts().waiting
        try:
            self.play.submit(prompt, min(length, capacity - len(prompt)), deadline=deadline, **options)
        except NodeBusy:
            assert waiting >= self.play.limits.max_waiting
        self.play.check()

    @rule(limit=st.integers(1, 6))
    def some_steps(self, limit: int) -> None:
        for _ in range(limit):
            if self.play.scheduler.busy:
                self.play.step()

    @precondition(lambda self: self.play.scheduler.busy)
    @rule(
        keeps=st.lists(st.integers(0, 3), min_size=1, max_size=8),
        leaves=st.lists(WHICH, max_size=2),
        preempted=st.integers(0, 2),
    )
    def a_step_with_trouble(self, keeps: list[int], leaves: list[int], preempted: int) -> None:
        """Some are preempted or cancelled while it runs, some answers are cut, some fail."""
        planned = self.play.plan()
        assert planned is not None
        for _ in range(preempted):
            self.play.scheduler.preempt_youngest()
        for which in leaves:
            self.cancel(which)
        turn = iter(keeps * 10)
        self.play.play(planned, lambda chosen: chosen[: next(turn, 1)])

    @precondition(lambda self: self.play.scheduler.busy)
    @rule()
    def a_step_that_does_not_fit(self) -> None:
        planned = self.play.plan()
        assert planned is not None
        self.play.scheduler.abandon(planned)
        self.play.scheduler.preempt_youngest()
        self.play.check()

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        states = list(self.play.scheduler._people.states)
        if states:
            self.play.scheduler.cancel(states[which % len(states)])
        self.play.check()

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.play.now += seconds
        late = self.play.scheduler.expired(self.play.now)
        assert not any(self.play.lives(identity) for identity in late)
        following = self.play.scheduler.next_deadline()
        assert following is None or following > self.play.now
        self.play.check()

    @rule(which=WHICH)
    def shift(self, which: int) -> None:
        started = [identity for identity, story in self.play.stories.items() if story.written]
        alive = [identity for identity in started if self.play.lives(identity)]
        if alive:
            story = self.play.stories[alive[which % len(alive)]]
            self.play.assert_told()
            tokens = [*story.prompt, *story.written]
            story.length -= len(story.written)
            story.prompt, story.written = (*tokens[:1], *tokens[len(tokens) // 2 :]), []
            self.play.scheduler.rebase(alive[which % len(alive)], story.prompt)
            self.play.check()

    @rule(share=st.sampled_from([1.0, 1.0, 0.5]))
    def the_cache_is_lost(self, share: float) -> None:
        limits = self.play.limits
        self.play.limits = replace(limits, block_count=max(6, int(limits.block_count * share)))
        self.play.model.slots.clear()
        lost = self.play.scheduler.reset_cache(self.play.limits)
        assert not any(self.play.lives(identity) for identity in lost)
        for identity, story in self.play.stories.items():
            if self.play.lives(identity):
                room = self.play.scheduler.max_context(identity) - len(story.prompt) - len(story.written)
                story.length = min(story.length, len(story.written) + room)
                if story.complete:
                    self.play.scheduler.finish(identity)
        self.play.check()

    @rule(tokens=st.sampled_from([None, 1, 5]))
    def the_device_is_full(self, tokens: int | None) -> None:
        self.play.scheduler.limit_step(tokens)

    @rule(allowed=st.booleans(), which=WHICH)
    def drafts_are_switched(self, allowed: bool, which: int) -> None:
        states = list(self.play.scheduler._people.states)
        if states:
            self.play.scheduler.speculate(states[which % len(states)], allowed)

    @rule()
    def too_long(self) -> None:
        capacity = self.play.limits.capacity_tokens
        before = self.play.scheduler.counts()
        self.play.limits, limits = replace(self.play.limits, block_count=10_000), self.play.limits
        try:
            self.play.submit([1] * (capacity + 1), 1)
        except ContextExceeded:
            assert self.play.scheduler.counts() == before
        else:
            raise AssertionError("the cache could never hold it")
        finally:
            self.play.limits = limits

    @invariant()
    def nothing_wrong_or_repeated_was_told(self) -> None:
        if hasattr(self, "play"):
            self.play.assert_told()

    def teardown(self) -> None:
        if not hasattr(self, "play"):
            return
        alive = [identity for identity in self.play.stories if self.play.lives(identity)]
        self.play.run()
        self.play.assert_told()
        assert all(self.play.stories[identity].complete for identity in alive), "an answer was lost"
        counts = self.play.scheduler.counts()
        assert counts.blocks_used == 0 and counts.running == counts.waiting == 0
        assert self.play.scheduler.next_deadline() is None


TestStory = StoryMachine.TestCase
TestStory.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
