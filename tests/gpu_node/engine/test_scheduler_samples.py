"""Samples that fork, tokens that are read, contexts that are full, and caches that are lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.engine.scheduler import Submission
from tests.gpu_node.engine.paged_model import LIMITS, Play, Story, answer, parts, text


def test_samples_share_the_prompt_and_copy_what_they_write() -> None:
    play = Play(LIMITS)
    ids = play.submit(text(10), 8, samples=3)
    first = play.step()
    assert len(first.step.rows) == 1 and [pick.sequence for pick in first.picks] == list(ids)
    assert play.scheduler.counts().blocks_used == 3
    second = play.step()
    assert parts(second) == dict.fromkeys(ids, 1)
    assert len(second.step.copies) == 3
    assert len({copy.source for copy in second.step.copies}) == 1
    tables = [row.blocks for row in second.step.rows]
    assert len({table[:2] for table in tables}) == 1 and len({table[2] for table in tables}) == 3
    assert play.scheduler.reused_tokens(ids[1]) == 10
    play.run()
    play.assert_told()
    assert len({tuple(play.stories[identity].written) for identity in ids}) == 3


def test_a_full_last_block_is_not_copied() -> None:
    play = Play(LIMITS)
    play.submit(text(8), 4, samples=3)
    play.step()
    assert not play.step().step.copies


def test_more_samples_than_seats_run_later_from_the_cache() -> None:
    play = Play(replace(LIMITS, max_running=2))
    ids = play.submit(text(17), 4, samples=5)
    play.run()
    assert [len(play.stories[identity].written) for identity in ids] == [4] * 5
    play.assert_told()
    assert sum(planned.prompt_tokens for planned in play.steps) == 17 + 3  # one token each for those who came later


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_others_go_on_when_the_first_sample_is_cancelled(steps: int) -> None:
    play = Play(replace(LIMITS, step_tokens=8))
    ids = play.submit(text(12), 4, samples=3)
    for _ in range(steps):
        play.step()
    play.scheduler.cancel(ids[0])
    play.check()
    play.run()
    play.assert_told()
    assert all(play.stories[identity].complete for identity in ids[1:])


@pytest.mark.parametrize("seats", [1, 2, 3, 8])
def test_the_others_go_on_when_the_first_is_cancelled_while_they_fork(seats: int) -> None:
    play = Play(replace(LIMITS, max_running=seats))
    ids = play.submit(text(10), 5, samples=5)
    planned = play.plan()
    assert planned is not None and len(planned.picks) == min(5, seats)
    play.scheduler.cancel(ids[0])
    play.play(planned)
    play.run()
    play.assert_told()
    assert all(play.stories[identity].complete for identity in ids[1:])


# Logits and hidden states


@pytest.mark.parametrize("wanted", ["logits", "hidden"])
def test_every_token_is_told_of_once_in_order_also_after_a_preemption(wanted: str) -> None:
    play = Play(replace(LIMITS, step_tokens=8))
    play.submit(text(3, 1), 30)
    (identity,) = play.scheduler.submit(Submission(tuple(text(30)), 30, output=wanted), 0.0)
    told: list[int] = []
    for turn in range(40):
        if not play.lives(identity):
            break
        planned = play.plan()
        assert planned is not None
        for read in planned.reads:
            row = planned.step.rows[read.row]
            end = row.start + len(row.tokens)
            told += range(end - row.output_tokens, end)
            assert row.output == (wanted if row.output_tokens else "nothing") and read.sequence == identity
            assert read.last == (end == 30)
        play.play(planned)
        if turn in (1, 3):
            assert play.scheduler.preempt_youngest() == identity
    assert told == list(range(30))


def test_all_logits_are_computed_although_the_prompt_is_cached() -> None:
    play = Play(LIMITS)
    play.submit(text(20), 1)
    play.run()
    play.scheduler.submit(Submission(tuple(text(20)), 20, output="logits"), 0.0)
    (row,) = play.step().step.rows
    assert (row.start, row.output_tokens) == (0, 20)
    play.scheduler.submit(Submission(tuple(text(20)), 20, output="logits", last_only=True), 0.0)
    (row,) = play.step().step.rows
    assert (row.start, row.output_tokens) == (16, 1)
    assert not play.scheduler.busy


# Contexts


def test_a_full_context_is_told_and_goes_on_when_it_was_shifted() -> None:
    play = Play(LIMITS)
    (identity,) = play.scheduler.submit(Submission(tuple(text(6)), 8), 0.0)
    play.stories[identity] = Story(tuple(text(6)), 0, 100)
    over: tuple[int, ...] = ()
    while not over:
        planned = play.plan()
        assert planned is not None
        seen = play.model.run(planned.step)
        tokens = play._choose(planned.picks[0], seen[0])
        play._write(identity, tokens)
        over = play.scheduler.commit(planned, {identity: tokens}, play.now)
    assert over == (identity,) and len(play.scheduler.tokens(identity)) == 9
    kept = [*play.scheduler.tokens(identity)[:2], *play.scheduler.tokens(identity)[6:]]
    play.scheduler.rebase(identity, kept)
    play.stories[identity] = Story(tuple(kept), 0, 3)
    play.run()
    assert play.stories[identity].written == answer(kept, 0, 3)


def test_tokens_that_were_forced_are_read_like_a_prompt() -> None:
    play = Play(LIMITS)
    (identity,) = play.submit(text(5), 20)
    planned = play.plan()
    assert planned is not None
    play.model.run(planned.step)
    play.scheduler.commit(planned, {identity: [1, 2, 3, 4, 5, 6]}, play.now)
    play.stories[identity] = Story((*text(5), 1, 2, 3, 4, 5, 6), 0, 5)
    assert parts(play.step()) == {identity: 6}
    play.run()
    play.assert_told()


def test_a_lost_cache_loses_no_token() -> None:
    play = Play(LIMITS)
    ids = [play.submit(text(9, first), 12)[0] for first in range(3)]
    for _ in range(4):
        play.step()
    flying = play.scheduler.schedule(play.now)
    assert flying is not None
    assert play.scheduler.reset_cache() == ()
    assert play.scheduler.commit(flying, {ids[0]: [1]}, play.now) == ()  # void
    play.model.slots.clear()
    play.run()
    play.assert_told()
    assert sorted(play.done) == ids


def test_a_smaller_cache_sends_away_only_what_it_cannot_hold() -> None:
    play = Play(LIMITS)
    large = play.submit(text(60), 20)[0]
    small = play.submit(text(6, 1), 50)[0]
    play.step()
    play.limits = replace(LIMITS, block_count=8)
    assert play.scheduler.reset_cache(play.limits) == (large,)
    assert play.scheduler.limits == play.limits and play.scheduler.max_context(small) == 32
    play.stories[small].length = 26
    play.run()
    play.assert_told()
    assert play.done == [small]
