"""A model whose next token depends on every token before it, read back through block tables: a stale block shows.

It keeps what each slot holds, does a step as a runner would, and judges drafts as a sampler would. Sequences are driven
through a real scheduler; `follow` says what any of them must answer, however it was batched.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from gpu_node.engine.scheduler import Limits, Planned, Scheduler, Submission
from gpu_node.engine.step import Row, Step

VOCABULARY = 7


def follow(tokens: Sequence[int], key: int) -> int:
    """Mostly what the last token suggests, so that drafts come true; sometimes what the whole text says."""
    whole = crc32(array("q", [key, *tokens]).tobytes())
    return (tokens[-1] * 3 + 1) % VOCABULARY if whole % 3 else whole // 3 % VOCABULARY


def answer(prompt: Sequence[int], key: int, length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(follow(tokens, key))
    return tokens[len(prompt) :]


@dataclass
class PagedModel:
    block_tokens: int
    slots: dict[int, tuple[int, int]] = field(default_factory=dict)  # slot to (token, position)

    def run(self, step: Step) -> list[list[int]]:
        """The tokens that each row can see, its own drafts included."""
        sources, targets = [copy.source for copy in step.copies], [copy.target for copy in step.copies]
        assert len(set(targets)) == len(targets) and not set(targets) & set(sources)
        for source, target in zip(sources, targets, strict=True):
            for offset in range(self.block_tokens):
                self.slots.pop(target * self.block_tokens + offset, None)
                held = self.slots.get(source * self.block_tokens + offset)
                if held is not None:
                    self.slots[target * self.block_tokens + offset] = held
        written: Counter[int] = Counter()
        for row in step.rows:
            for position, token in enumerate(row.tokens, row.start):
                slot = self._slot(row, position)
                self.slots[slot] = (token, position)
                written[slot] += 1
        assert not written or max(written.values()) == 1, "two rows write one slot"
        self._assert_apart(step)
        return [self._read(row) for row in step.rows]

    def _slot(self, row: Row, position: int) -> int:
        return row.blocks[position // self.block_tokens] * self.block_tokens + position % self.block_tokens

    def _assert_apart(self, step: Step) -> None:
        users = Counter(block for row in step.rows for block in row.blocks)
        for row in step.rows:
            assert len(set(row.blocks)) == len(row.blocks)
            for block in row.blocks[row.start // self.block_tokens :]:
                assert users[block] == 1, "a block that is written is in another row's table"

    def _read(self, row: Row) -> list[int]:
        end = row.start + len(row.tokens)
        assert row.tokens, "a row computes something"
        assert len(row.blocks) == -(-end // self.block_tokens)
        held = [self.slots[self._slot(row, position)] for position in range(end)]
        assert [position for _, position in held] == list(range(end))
        return [token for token, _ in held]


@dataclass
class Story:
    """One sample to be driven to its end."""

    prompt: tuple[int, ...]
    key: int
    length: int
    written: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.written) >= self.length

    @property
    def expected(self) -> list[int]:
        return answer(self.prompt, self.key, self.length)


@dataclass
class Play:
    """A scheduler, the model and all stories, one step after the other."""

    limits: Limits
    stories: dict[int, Story] = field(default_factory=dict)
    now: float = 0.0
    steps: list[Planned] = field(default_factory=list)
    done: list[int] = field(default_factory=list)  # in the order of their ends

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)
        self.model = PagedModel(self.limits.block_tokens)

    def submit(self, prompt: Sequence[int], length: int, **options: object) -> tuple[int, ...]:
        prompt = tuple(prompt)
        context = min(len(prompt) + length, self.limits.capacity_tokens)
        submission = Submission(prompt, context, **options)
        ids = self.scheduler.submit(submission, self.now)
        for key, identity in enumerate(ids):
            self.stories[identity] = Story(prompt, key, length)
        return ids

    def plan(self) -> Planned | None:
        self.now += 1.0
        planned = self.scheduler.schedule(self.now)
        self.check()
        if planned is not None:
            self._check_plan(planned)
            self.steps.append(planned)
        return planned

    def step(self) -> Planned:
        planned = self.plan()
        assert planned is not None, "somebody waits, and nothing can be computed"
        self.play(planned)
        return planned

    def play(self, planned: Planned, keep: Callable[[list[int]], list[int]] = lambda chosen: chosen) -> None:
        """The forward, then the answers, then who has ended: as an engine's loop does it.

        `keep` says how much of what was chosen is accepted; nothing: that pick has failed for now.
        """
        seen = self.model.run(planned.step)
        chosen = {pick.sequence: keep(self._choose(pick, seen[pick.row])) for pick in planned.picks}
        accepted = {identity: tokens for identity, tokens in chosen.items() if tokens and self.lives(identity)}
        over = [identity for identity, tokens in accepted.items() if self._write(identity, tokens)]
        left = self.scheduler.commit(planned, accepted, self.now + 0.5)
        assert set(left) <= set(over), "a context overflowed before the answer's end"
        for identity in over:
            self.scheduler.finish(identity)
            self.done.append(identity)
        self.check()

    def lives(self, identity: int) -> bool:
        return identity in self.scheduler._people.states

    def run(self, most: int = 10_000) -> None:
        """Until nobody is left."""
        while self.scheduler.busy:
            most -= 1
            assert most, "it never ends"
            self.step()

    def assert_told(self) -> None:
        for story in self.stories.values():
            assert story.written == story.expected[: len(story.written)]

    def _choose(self, pick, seen: list[int]) -> list[int]:
        story = self.stories[pick.sequence]
        certain = len(seen) - len(pick.drafts)
        assert seen[:certain] == [*story.prompt, *story.written], "a wrong or stale token was read"
        chosen = [follow(seen[:certain], story.key)]
        for index, draft in enumerate(pick.drafts):
            if chosen[-1] != draft:
                break
            chosen.append(follow(seen[: certain + index + 1], story.key))
        return chosen[: story.length - len(story.written)]

    def _write(self, identity: int, tokens: list[int]) -> bool:
        story = self.stories[identity]
        story.written += tokens
        return story.complete

    def _check_plan(self, planned: Planned) -> None:
        step = planned.step
        assert 0 < step.token_count <= self.limits.step_tokens
        assert not planned.decodes or step.token_count <= self.limits.mixed_step_tokens
        assert len({row.sequence for row in step.rows}) == len(step.rows)
        pool = self.scheduler._people.tables.pool
        for row in step.rows:
            for block in row.blocks[row.start // self.limits.block_tokens :]:
                assert pool.is_writable(block)

    def check(self) -> None:
        """Everybody is somewhere, every block is somebody's or nobody's."""
        people = self.scheduler._people
        pool, running = people.tables.pool, people.running.members
        holders = Counter(block for state in running for block in state.blocks)
        holders.update(state.copy.source for state in running if state.copy is not None)
        assert [holders[block] for block in range(pool.block_count)] == pool._holders
        assert pool.used + pool.cached + pool.empty + pool.retired == self.limits.block_count
        assert not any(holders[block] for block in pool._retired)
        lined = [*people.line.returned, *(state for line in people.line.lines.values() for state in line)]
        held = people.promises.everybody()
        unborn = [sample for state in people.states.values() for sample in state.samples]
        places = [*running, *lined, *held, *unborn]
        assert len(places) == len(set(places)) and set(places) == set(people.states.values())
        assert len(held) == people.promises.holding and len(lined) == len(people.line)
        assert len(running) <= self.limits.max_running
        for state in [*lined, *held, *unborn]:
            assert not state.blocks and not state.computed and not state.planned and not state.published


LIMITS = Limits(block_tokens=4, block_count=64, max_running=8, step_tokens=32, mixed_step_tokens=16, max_drafts=0)


def text(length: int, first: int = 0) -> list[int]:
    """Prompts of different `first` share nothing."""
    return [first, *(at % 7 for at in range(1, length))]


def parts(planned: Planned) -> dict[int, int]:
    return {row.sequence: len(row.tokens) for row in planned.step.rows}
