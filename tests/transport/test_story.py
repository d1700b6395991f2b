"""How the rest of an answer is asked for."""

import pytest

from transport.story import Story
from wire.errors import BadPayload
from wire.messages_work import Done, FinishReason, Generate, Given, TextPrompt, Tokens

ASKED = Generate("tiny", TextPrompt("Paris?"), deadline_ms=10_000)
JOB, OTHER = b"j" * 16, b"o" * 16


def begun(request=ASKED):
    story = Story(request, JOB, 100.0)
    story.take(Tokens(0, 0, "ą", (5,)))
    story.take(Tokens(1, 1, "b", (6, 7)))
    return story


def test_the_job_is_ours_unless_the_caller_has_one():
    assert Story(ASKED, JOB, 0.0).request().job == JOB
    assert Story(Generate("tiny", TextPrompt(""), job=b"own"), JOB, 0.0).request().job == b"own"


def test_the_rest_of_a_job_is_asked_for_by_its_index():
    request = begun().request()
    assert (request.job, request.next_index, request.given) == (JOB, 2, ())


def test_behind_a_job_that_is_gone_it_goes_on_by_ids():
    story = begun()
    story.begin_anew(OTHER, 104.0)
    request = story.request()
    assert (request.job, request.next_index) == (OTHER, 0)
    assert request.given == (Given((5, 6, 7), 3),)
    assert request.deadline_ms == 6_000
    assert story.take(Tokens(0, 3, "c", (8,))) == Tokens(2, 3, "c", (8,))
    assert story.request().next_index == 1
    done = story.end(Done(1, FinishReason.STOP, output_tokens=1))
    assert (done.index, done.output_tokens) == (3, 4)


def test_where_nothing_was_told_it_simply_begins_anew():
    story = Story(ASKED, JOB, 0.0)
    story.begin_anew(OTHER, 20.0)
    assert (story.request().given, story.request().deadline_ms) == ((), 0)


def test_samples_are_counted_apart_and_what_was_given_counts():
    request = Generate("tiny", TextPrompt(""), samples=2, given=(Given((1, 2), 2), Given((), 0)))
    story = Story(request, JOB, 0.0)
    story.take(Tokens(0, 0, "x", (9,), 1))
    story.take(Tokens(1, 2, "y", (3,), 0))
    story.begin_anew(OTHER, 0.0)
    assert story.request().given == (Given((1, 2, 3), 3), Given((9,), 1))


@pytest.mark.parametrize("wrong", [Tokens(3, 3), Tokens(1, 3), Tokens(2, 2), Tokens(2, 4), Tokens(2, 0, sample=1)])
def test_what_is_not_the_next_one_is_a_fault(wrong):
    with pytest.raises(BadPayload):
        begun().take(wrong)


@pytest.mark.parametrize("index", [1, 3])
def test_an_end_that_misses_something_is_a_fault(index):
    with pytest.raises(BadPayload):
        begun().end(Done(index, FinishReason.STOP))
