"""Mistakes that other engines have made, each with what must happen instead.

From the trackers of nano-vllm (144, 199, 208, 211, 217, 233), vLLM (18411) and transformers' continuous batching.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_node.engine.scheduler import Limits
from tests.gpu_node.engine.paged_model import Play, Story, answer
from tests.gpu_node.engine.test_scheduler import parts, text

LIMITS = Limits(block_tokens=4, block_count=40, max_running=4, step_tokens=32, mixed_step_tokens=16, max_drafts=0)


def read(play: Play, length: int, first: int = 0) -> None:
    """The prompt is in the cache afterwards."""
    play.submit(text(length, first), 1)
    play.run()


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 12, 31, 32, 33])
def test_a_prompt_that_is_cached_as_a_whole_still_computes_its_last_token(length: int) -> None:
    play = Play(LIMITS)
    read(play, length)
    (identity,) = play.submit(text(length), 3)
    planned = play.step()
    assert 1 <= parts(planned)[identity] <= LIMITS.block_tokens  # never an empty row
    assert planned.step.rows[0].output_tokens == 1
    play.run()
    play.assert_told()


def test_the_last_cached_block_is_computed_in_a_block_of_its_own() -> None:
    play = Play(LIMITS)
    (first,) = play.submit(text(8), 20)
    play.step()
    (second,) = play.submit(text(8), 20)
    rows = {row.sequence: row for row in play.step().step.rows}
    assert rows[first].blocks[0] == rows[second].blocks[0] and rows[first].blocks[1] != rows[second].blocks[1]
    # Once it is full and known to be the same, it is kept once.
    rows = {row.sequence: row for row in play.step().step.rows}
    assert rows[first].blocks[1] == rows[second].blocks[1]


def test_after_a_preemption_the_table_covers_what_is_computed_and_nothing_is_skipped() -> None:
    play = Play(LIMITS)
    (identity,) = play.submit(text(6), 30)
    play.submit(text(6, 1), 1)
    for _ in range(13):
        play.step()
        play.scheduler._people.preempt(play.scheduler._people.states[identity])
        planned = play.plan()  # hits what it has published itself
        assert planned is not None
        row = next(row for row in planned.step.rows if row.sequence == identity)
        tokens = [*play.stories[identity].prompt, *play.stories[identity].written]
        assert [*tokens[: row.start], *row.tokens] == tokens
        assert row.start == (len(tokens) - 1) // 4 * 4
        assert len(row.blocks) == -(-len(tokens) // 4)
        play.play(planned)
        assert len(play.stories[identity].written) == len(tokens) - 6 + 1
    play.run()
    play.assert_told()


def test_a_preempted_sequence_drops_its_blocks() -> None:
    play = Play(LIMITS)
    play.submit(text(6), 9)
    play.submit(text(10, 1), 9)
    play.step()
    used = play.scheduler.counts().blocks_used
    play.scheduler.preempt_youngest()
    counts = play.scheduler.counts()
    assert counts.blocks_used == used - 3 and counts.blocks_cached == 2 and counts.running == 1
    state = play.scheduler._people.line.returned[0]
    assert (state.blocks, state.computed, state.published) == ([], 0, 0)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_preemption_while_the_step_runs_loses_no_token(samples: int) -> None:
    play = Play(LIMITS)
    play.submit(text(4, 1), 20)
    play.submit(text(10), 8, samples=samples)
    for _ in range(3):
        planned = play.plan()
        assert planned is not None
        play.scheduler.preempt_youngest()
        play.play(planned)
        play.assert_told()
    assert sum(len(story.written) for story in play.stories.values()) >= 3 + samples
    play.run()
    play.assert_told()


def test_preemption_that_finds_its_blocks_taken_reads_everything_again() -> None:
    play = Play(replace(LIMITS, block_count=12))
    play.submit(text(4), 40)
    (young,) = play.submit(text(20, 1), 20)
    play.run()
    assert play.scheduler.counts().preemptions >= 1
    rows = [row for planned in play.steps for row in planned.step.rows if row.sequence == young]
    assert any(row.start == 0 for row in rows[1:]) or any(len(row.tokens) > 4 for row in rows[1:])
    play.assert_told()


def test_blocks_that_are_being_filled_are_not_hit() -> None:
    play = Play(LIMITS)
    (first,) = play.submit(text(20), 4)
    (second,) = play.submit(text(22), 4)
    planned = play.plan()
    assert planned is not None and parts(planned) == {first: 20}
    pool = play.scheduler._people.tables.pool
    chain = play.scheduler._people.states[first].chain
    assert not pool.find(chain.keys)
    play.play(planned)
    assert len(pool.find(chain.keys)) == 5
    assert parts(play.step()) == {first: 1, second: 2}  # and computed once, not twice


def test_nothing_of_a_step_that_did_not_run_is_hit() -> None:
    play = Play(LIMITS)
    (first,) = play.submit(text(20), 4)
    planned = play.plan()
    assert planned is not None
    play.scheduler.abandon(planned)
    play.scheduler.cancel(first)
    (second,) = play.submit(text(20), 4)
    assert parts(play.step()) == {second: 20}
    assert play.scheduler.counts().blocks_cached == 0


def test_nothing_of_a_row_that_failed_is_hit() -> None:
    play = Play(LIMITS)
    (bad,) = play.submit(text(20), 4)
    (good,) = play.submit(text(12, 1), 4)
    planned = play.plan()
    assert planned is not None
    play.scheduler.finish(bad)
    play.play(planned)
    assert play.scheduler.counts().blocks_cached == 0
    (again,) = play.submit(text(20), 4)
    assert parts(play.step()) == {good: 1, again: 15}


@pytest.mark.parametrize("leave", ["cancel", "preempt"])
def test_who_waits_for_a_prefix_goes_on_when_it_is_not_computed_after_all(leave: str) -> None:
    play = Play(LIMITS)
    (other,) = play.submit(text(4, 3), 30)
    (first,) = play.submit(text(60), 4)
    (second,) = play.submit(text(60), 4)
    play.step()
    play.step()
    assert play.scheduler._people.promises.holding == 1
    if leave == "cancel":
        play.scheduler.cancel(first)
    else:
        assert play.scheduler.preempt_youngest() == first
    play.check()
    planned = play.step()
    assert set(parts(planned)) == {other, second if leave == "cancel" else first}
    play.run()
    play.assert_told()


def test_eight_with_one_long_prefix_compute_it_once() -> None:
    play = Play(replace(LIMITS, block_count=200, max_running=8, step_tokens=1_000, mixed_step_tokens=64))
    for last in range(7):
        play.submit([*text(128), last, last, last], 4)
    play.submit(text(131, 1), 4)
    play.run()
    play.assert_told()
    assert sum(planned.prompt_tokens for planned in play.steps) == 131 + 6 * 3 + 131
    assert len(play.steps) <= 4 + 2


def test_drafts_that_were_wrong_are_never_hit() -> None:
    play = Play(replace(LIMITS, max_drafts=4))
    (identity,) = play.submit([0, 1, 4, 6, 5, 2, 0, 1, 4, 6, 5, 2], 60)
    pool = play.scheduler._people.tables.pool
    while play.scheduler.busy:
        play.step()
        story = play.stories[identity]
        told = [*story.prompt, *story.written]
        for entry in pool._entries:
            prefix: list[int] = []
            while entry is not None:
                prefix[:0] = entry.key.tokens
                entry = entry.parent
            assert prefix == told[: len(prefix)]
    counts = play.scheduler.counts()
    assert counts.drafts > counts.accepted_drafts


def test_a_wrong_draft_leaves_no_stale_slot() -> None:
    """The slot of a rejected draft is written again before anybody reads it."""
    play = Play(replace(LIMITS, max_drafts=8))
    play.submit([0, 1, 4, 6, 5, 2, 0, 1, 4, 6, 5, 2], 100)
    starts = []
    while play.scheduler.busy:
        (row,) = play.step().step.rows
        starts.append(row.start)
    assert starts == sorted(starts) and len(set(starts)) == len(starts)
    play.assert_told()


def test_cached_blocks_go_one_by_one() -> None:
    play = Play(replace(LIMITS, block_count=12))
    read(play, 17)
    read(play, 17, 1)
    assert play.scheduler.counts().blocks_cached == 8
    read(play, 21, 2)
    assert play.scheduler.counts().blocks_cached == 11
    (old,) = play.submit(text(17), 1)
    play.step()
    (young,) = play.submit(text(17, 1), 1)
    hits = play.scheduler.counts().prefix_hit_tokens
    play.step()
    assert play.scheduler.counts().prefix_hit_tokens - hits == 8  # of each only the end has gone
    assert {old, young} <= set(play.done)


def test_an_answer_is_a_prefix_too() -> None:
    play = Play(LIMITS)
    (identity,) = play.submit(text(6), 20)
    play.run()
    told = [*text(6), *play.stories[identity].written]
    (following,) = play.submit([*told, 1, 2, 3], 2)
    assert parts(play.step()) == {following: 29 - 24}


def test_another_salt_shares_nothing() -> None:
    play = Play(LIMITS)
    read(play, 20)
    (other,) = play.submit(text(20), 1, salt="other")
    assert parts(play.step()) == {other: 20}


def test_a_pick_that_failed_for_now_is_picked_again() -> None:
    play = Play(LIMITS)
    identity, _ = play.submit(text(8), 12, samples=2)
    planned = play.plan()
    assert planned is not None
    play.play(planned, lambda chosen: [])
    assert play.step().picks[0].sequence == identity
    for at in range(40):
        if play.scheduler.busy:
            again = play.plan()
            assert again is not None
            play.play(again, lambda chosen, at=at: chosen[: at % 2])
    play.run()
    play.assert_told()


def test_a_shift_at_the_edge_of_a_block_computes_the_right_tokens() -> None:
    for keep in range(1, 9):
        play = Play(LIMITS)
        (identity,) = play.submit(text(8), 16)
        while len(play.stories[identity].written) < 8:
            play.step()
        kept = [*text(8)[:keep], *play.stories[identity].written[2:]]
        play.scheduler.rebase(identity, kept)
        play.stories[identity] = Story(tuple(kept), 0, 6)
        play.run()
        assert play.stories[identity].written == answer(kept, 0, 6)


def test_one_sequence_may_fill_the_whole_cache() -> None:
    play = Play(replace(LIMITS, block_count=6, max_drafts=4))
    ids = [play.submit(text(4, first), 20)[0] for first in range(3)]
    play.run()
    play.assert_told()
    assert sorted(play.done) == ids and play.scheduler.counts().preemptions > 0
