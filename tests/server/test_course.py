"""One request over all its attempts: sums of counts, durations and shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.affinity import conversation
from server.course import Attempt, Course, answer_is_over, break_off, durations_of, usage_of
from server.exchange import Durations, NodeDone, NodeShare, Token, Usage
from server.retry import Outage
from tests.server.scripted_nodes import chat, node_of, seat_of

DONE = NodeDone("stop", "qwen:1b", Usage(30, 12), Durations(total=90, load=5, prompt=20, generation=60))


def course_of(told: int = 0, **options: Any) -> Course:
    request = chat("hi", options=options)
    course = Course(request, conversation(request), 0.0, Outage(5))
    for _ in range(told):
        course.told.add(Token("x"))
    return course


def attempt_of(way: str = "first", before: int = 0, tokens: int = 0, done: NodeDone | None = None) -> Attempt:
    return Attempt(seat_of(node_of("a")), way, before, tokens, done=done)


def test_a_plain_answer_counts_what_its_node_counted() -> None:
    course = course_of(12)
    for way in ("first", "retry", "replay"):
        attempt = attempt_of(way, tokens=12, done=DONE)
        assert usage_of(course, attempt) == Usage(30, 12)
        assert durations_of(course, attempt) == DONE.durations


@pytest.mark.parametrize("way", ["chat", "raw"])
def test_counts_are_summed_over_the_parts(way: str) -> None:
    """Token counts are summed over the parts: the second node had the told part in its prompt."""
    attempt = attempt_of(way, before=7, tokens=12, done=replace(DONE, usage=Usage(37, 12)))
    assert usage_of(course_of(19), attempt) == Usage(30, 19)
    silent = attempt_of(way, before=7, tokens=12, done=replace(DONE, usage=Usage(0, 0)))
    assert usage_of(course_of(19), silent) == Usage(0, 19)


def test_an_exact_part_counts_the_prompt_alone_and_what_it_wrote_itself() -> None:
    attempt = attempt_of("exact", before=7, tokens=12, done=DONE)
    assert usage_of(course_of(19), attempt) == Usage(30, 19)


def test_without_a_last_record_what_was_told_counts() -> None:
    course = course_of(5)
    assert usage_of(course, attempt_of(tokens=5)) == Usage(course.conversation.tokens, 5)
    assert durations_of(course, attempt_of()) == Durations()


def test_a_part_that_broke_off_keeps_its_share_and_its_time() -> None:
    """Durations are summed over the parts; the final record names every node with its share."""
    course = course_of(4)
    broken = attempt_of(tokens=4)
    broken.first_at, broken.last_at = 10.0, 12.5
    break_off(course, broken)
    assert broken.broke_off
    assert course.shares == [NodeShare("a", 4, "first")]
    last = attempt_of("chat", before=4, tokens=12, done=DONE)
    spent = round(2.5e9)
    assert durations_of(course, last) == Durations(90 + spent, 5, 20, 60 + spent)


def test_a_part_that_told_nothing_has_no_share() -> None:
    course = course_of()
    break_off(course, attempt_of())
    assert (course.shares, course.spent) == ([], Durations())


@pytest.mark.parametrize(
    ("told", "options", "over"),
    [
        (5, {"num_predict": 5}, True),
        (6, {"num_predict": 5}, True),
        (4, {"num_predict": 5}, False),
        (5, {}, False),
        (5, {"num_predict": -1}, False),
        (5, {"num_predict": -2}, False),
        (5, {"num_predict": 0}, False),
        (0, {"num_predict": 5}, False),
    ],
)
def test_an_answer_is_over_when_nothing_is_left_of_num_predict(told: int, options: dict[str, int], over: bool) -> None:
    """Nothing left of `num_predict`: finish with `length`; never send 0."""
    assert answer_is_over(course_of(told, **options)) is over
