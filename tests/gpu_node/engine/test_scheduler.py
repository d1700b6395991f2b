"""What is computed when: budgets, turns, priorities, deadlines and preemption."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from gpu_node.engine.scheduler import Scheduler, Submission
from gpu_node.errors import ContextExceeded, DeadlineExceeded, NodeBusy
from tests.gpu_node.engine.paged_model import LIMITS, Play, parts, text


def test_a_step_that_only_reads_is_large_and_one_that_decodes_is_not() -> None:
    play = Play(LIMITS)
    (early,) = play.submit(text(4), 30)
    play.step()
    (late,) = play.submit(text(100, 1), 2)
    assert parts(play.step()) == {early: 1, late: 15}
    play.scheduler.cancel(early)
    assert parts(play.step()) == {late: 32}


def test_running_answers_go_on_at_every_step_while_a_long_prompt_is_read() -> None:
    play = Play(LIMITS)
    early = [play.submit(text(4, first), 30)[0] for first in range(4)]
    play.step()
    play.submit(text(120, 5), 1)
    for _ in range(8):
        planned = play.step()
        assert set(early) <= set(parts(planned)) and planned.decodes == 4 and planned.prompt_tokens == 12


def test_a_new_request_joins_at_the_next_step() -> None:
    play = Play(LIMITS)
    (early,) = play.submit(text(4), 30)
    play.step()
    (late,) = play.submit(text(5, 1), 3)
    assert parts(play.step()) == {early: 1, late: 5}
    assert parts(play.step()) == {early: 1, late: 1}


def test_too_many_answers_for_one_step_take_turns_and_leave_a_prompt_its_share() -> None:
    play = Play(replace(LIMITS, mixed_step_tokens=6))
    early = [play.submit(text(3, first), 40)[0] for first in range(6)]
    while len(play.stories[early[-1]].written) < 1:
        play.step()
    (book,) = play.submit(text(60, 6), 1)
    before = {identity: len(play.stories[identity].written) for identity in early}
    for _ in range(8):
        planned = play.step()
        assert parts(planned)[book] == 3 and planned.decodes == 3
    gained = [len(play.stories[identity].written) - before[identity] for identity in early]
    assert gained == [4] * 6


def test_a_short_prompt_need_not_wait_for_a_book() -> None:
    play = Play(LIMITS)
    (book,) = play.submit(text(200), 1)
    play.step()
    (page,) = play.submit(text(20, 1), 1)
    assert parts(play.step()) == {book: 16, page: 16}
    assert parts(play.step()) == {page: 4, book: 28}
    assert parts(play.step()) == {book: 32}


def test_of_two_books_the_one_that_ends_first_is_read_first() -> None:
    play = Play(LIMITS)
    (first,) = play.submit(text(100), 1)
    play.step()
    (second,) = play.submit(text(120, 1), 1)
    assert parts(play.step()) == {first: 16, second: 16}
    assert parts(play.step()) == {first: 32}


def test_a_book_is_read_at_half_speed_at_least_whoever_comes() -> None:
    play = Play(replace(LIMITS, block_count=200))
    (book,) = play.submit(text(700), 1)
    play.step()
    for at in range(20):
        play.submit(text(14 + at % 5, 1 + at % 6), 1, caller=str(at))
        assert parts(play.step())[book] >= 16
    assert len(play.done) > 10


def test_what_nobody_was_admitted_for_goes_to_who_reads() -> None:
    play = Play(replace(LIMITS, block_count=30))
    (book,) = play.submit(text(100), 1)
    play.step()
    play.submit(text(60, 1), 1)  # waits for blocks
    assert parts(play.step()) == {book: 32}


def test_limit_step_narrows_and_widens_again() -> None:
    play = Play(LIMITS)
    (identity,) = play.submit(text(60), 1)
    play.scheduler.limit_step(5)
    assert parts(play.step()) == {identity: 5}
    play.scheduler.limit_step(None)
    assert parts(play.step()) == {identity: 32}


def test_an_idle_scheduler_plans_nothing() -> None:
    scheduler = Scheduler(LIMITS)
    assert scheduler.schedule(0.0) is None and not scheduler.busy and scheduler.next_deadline() is None


def test_two_steps_are_not_planned_at_once() -> None:
    play = Play(LIMITS)
    play.submit(text(4), 4)
    play.scheduler.schedule(0.0)
    with pytest.raises(AssertionError, match="neither committed nor abandoned"):
        play.scheduler.schedule(0.0)


# Who comes in


def test_a_full_line_refuses() -> None:
    scheduler = Scheduler(replace(LIMITS, max_running=2, max_waiting=3))
    for _ in range(5):
        scheduler.submit(Submission((1,), 4), 0.0)
    with pytest.raises(NodeBusy):
        scheduler.submit(Submission((1,), 4), 0.0)
    assert scheduler.counts().waiting == 5


def test_without_a_line_whoever_can_run_at_once_is_welcome() -> None:
    play = Play(replace(LIMITS, max_running=1, max_waiting=0))
    play.submit(text(3), 3)
    with pytest.raises(NodeBusy):
        play.submit(text(3), 3)
    play.run()
    play.submit(text(3), 3)


def test_what_could_never_fit_is_refused() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.submit(Submission((1,), LIMITS.capacity_tokens), 0.0)
    with pytest.raises(ContextExceeded):
        scheduler.submit(Submission((1,), LIMITS.capacity_tokens + 1), 0.0)
    assert scheduler.counts().waiting == 1


def test_callers_get_equal_turns() -> None:
    play = Play(replace(LIMITS, max_running=2, step_tokens=8, mixed_step_tokens=8))
    whose: dict[int, str] = {}
    for at in range(30):
        whose[play.submit(text(3 + at % 3, at % 7), 3, caller="many")[0]] = "many"
    for caller in ("few", "rare"):
        for at in range(8):
            whose[play.submit(text(3 + at % 3, at % 7), 3, caller=caller)[0]] = caller
    play.run()
    first = Counter(whose[identity] for identity in play.done[:24])
    assert max(first.values()) - min(first.values()) <= 1 and set(first) == {"many", "few", "rare"}


def test_within_one_caller_the_urgent_go_first() -> None:
    play = Play(replace(LIMITS, max_running=1))
    calm = play.submit(text(3), 2)[0]
    urgent = play.submit(text(3, 1), 2, priority=5)[0]
    later = play.submit(text(3, 2), 2, priority=5)[0]
    play.run()
    assert play.done == [urgent, later, calm]


def test_a_large_prompt_that_waits_for_blocks_is_not_overtaken() -> None:
    play = Play(replace(LIMITS, block_count=16))
    play.submit(text(32), 12)
    play.step()
    (large,) = play.submit(text(40, 1), 1)
    (small,) = play.submit(text(2, 2), 1)
    play.run()
    assert play.done.index(large) < play.done.index(small)


def test_an_endless_stream_of_urgent_requests_starves_nobody() -> None:
    limits = replace(LIMITS, block_count=12, max_running=4, max_waiting=4)
    play = Play(limits)
    (calm,) = play.submit(text(20), 20, caller="calm")
    for at in range(600):
        if play.stories[calm].complete:
            break
        if play.scheduler.counts().waiting < 3:
            play.submit(text(6, at % 7), 16, caller="urgent", priority=100)
        play.step()
    assert play.stories[calm].complete and play.scheduler.counts().preemptions > 0
    play.assert_told()


# Deadlines


def test_a_deadline_ends_whoever_runs_or_waits() -> None:
    play = Play(replace(LIMITS, max_running=1))
    (runs,) = play.submit(text(4), 50, deadline=5.0)
    (waits,) = play.submit(text(4, 1), 50, deadline=4.0)
    (stays,) = play.submit(text(4, 2), 2)
    play.step()
    assert play.scheduler.next_deadline() == 4.0 and play.scheduler.expired(3.9) == ()
    assert play.scheduler.expired(5.0) == (waits, runs)
    assert play.scheduler.next_deadline() is None and play.scheduler.expired(9.0) == ()
    play.run()
    assert play.done == [stays]


def test_a_deadline_of_who_has_left_is_forgotten() -> None:
    play = Play(LIMITS)
    (first,) = play.submit(text(4), 2, deadline=5.0)
    play.submit(text(4, 1), 2, deadline=7.0)
    play.scheduler.cancel(first)
    assert play.scheduler.next_deadline() == 7.0 and play.scheduler.expired(6.0) == ()


def test_a_deadline_that_has_passed_is_refused() -> None:
    scheduler = Scheduler(LIMITS)
    with pytest.raises(DeadlineExceeded):
        scheduler.submit(Submission((1,), 4, deadline=3.0), 3.0)
    assert not scheduler.busy


def test_every_sample_has_the_deadline() -> None:
    play = Play(LIMITS)
    ids = play.submit(text(4), 9, samples=3, deadline=5.0)
    play.step()
    assert play.scheduler.expired(5.0) == ids and not play.scheduler.busy


# Who gives way


def test_the_least_urgent_and_youngest_gives_way_first() -> None:
    play = Play(replace(LIMITS, block_count=9))
    oldest = play.submit(text(8), 20)[0]
    calm = play.submit(text(4, 1), 20, priority=-1)[0]
    urgent = play.submit(text(4, 2), 20, priority=1)[0]
    play.run()
    assert play.scheduler.counts().preemptions > 0
    assert play.done.index(calm) == 2 and {oldest, urgent} == set(play.done[:2])
    play.assert_told()


def test_who_gave_way_goes_on_before_anybody_new() -> None:
    play = Play(replace(LIMITS, max_running=2))
    play.submit(text(6), 9)
    (youngest,) = play.submit(text(6, 1), 9)
    play.step()
    play.submit(text(6, 2), 9, caller="new", priority=9)
    assert play.scheduler.preempt_youngest() == youngest
    assert youngest in parts(play.step())


def test_the_only_one_running_does_not_give_way() -> None:
    play = Play(LIMITS)
    play.submit(text(6), 9)
    assert play.scheduler.preempt_youngest() is None
    play.step()
    assert play.scheduler.preempt_youngest() is None


def test_leaving_is_idempotent_and_frees_all_at_once() -> None:
    play = Play(LIMITS)
    (identity,) = play.submit(text(20), 9)
    play.step()
    assert play.scheduler.counts().blocks_used
    play.scheduler.cancel(identity)
    play.scheduler.cancel(identity)
    play.scheduler.finish(identity)
    counts = play.scheduler.counts()
    assert counts.blocks_used == counts.running == 0 and counts.blocks_cached == 5
    with pytest.raises(KeyError):
        play.scheduler.tokens(identity)


def test_a_step_that_has_not_run_is_planned_again() -> None:
    play = Play(LIMITS)
    play.submit(text(6), 5, samples=2)
    play.step()
    first = play.plan()
    assert first is not None and first.step.copies
    play.scheduler.abandon(first)
    play.scheduler.abandon(first)
    second = play.plan()
    assert second is not None and second.step == first.step  # the copy is ordered again
    play.play(second)
    play.run()
    play.assert_told()


# What is held


def test_urgent_ones_do_not_wait_for_the_prefix_of_the_calm() -> None:
    play = Play(LIMITS)
    (calm,) = play.submit(text(90), 1)
    play.step()
    (urgent,) = play.submit(text(90), 1, priority=1)
    assert set(parts(play.step())) == {calm, urgent}


def test_counts_tell_what_is_held() -> None:
    play = Play(LIMITS)
    play.submit(text(16), 2)
    play.run()
    (again,) = play.submit(text(16), 2)
    play.step()
    counts = play.scheduler.counts()
    assert (counts.running, counts.waiting) == (1, 0)
    assert (counts.prompt_tokens, counts.prefix_hit_tokens) == (32, 12)
    assert play.scheduler.reused_tokens(again) == 12
    assert counts.blocks_used + counts.blocks_free + counts.blocks_cached == LIMITS.block_count
