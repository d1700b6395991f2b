import dataclasses

import pytest

from potluck import Answer, BatchItem, GatewayFailed, NodeShare, Timings, UnexpectedAnswer, Usage
from potluck.answers import read_answer
from tests.potluck.loopback import ANSWER, DONE


def test_every_field_is_read():
    assert read_answer(ANSWER) == Answer(
        text="Paris is nice",
        model="qwen2.5:0.5b",
        node="pixel-3",
        cached=False,
        usage=Usage(12, 3),
        timings=Timings(1.5, 240.0, 900.0),
        tokens_per_second=9.5,
        attempts=1,
        nodes=(NodeShare("pixel-3", 3, "first"),),
        done_reason="stop",
    )


def test_it_is_written_back_as_it_was_read():
    assert read_answer(ANSWER).as_record() == ANSWER


def test_thoughts_are_kept_beside_the_text():
    answer = read_answer({**ANSWER, "thinking": "hmm"})
    assert (answer.text, answer.thinking, answer.as_record()["thinking"]) == ("Paris is nice", "hmm", "hmm")


def test_it_is_frozen_and_reads_as_its_text():
    answer = read_answer(DONE, "told")
    assert str(answer) == "told"
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.text = "other"


def test_a_cached_answer_needs_no_measurements():
    answer = read_answer({"response": "x", "model": "m", "node": "", "cached": True, "nodes": ["pixel-3"]})
    assert answer.cached
    assert answer.timings == Timings()
    assert answer.tokens_per_second is None
    assert answer.nodes == (NodeShare("pixel-3"),)


@pytest.mark.parametrize(
    "wrong",
    [
        {"response": None},
        {"response": 5},
        {"model": None},
        {"node": 3},
        {"usage": []},
        {"usage": {"prompt_tokens": "many"}},
        {"tokens_per_second": True},
        {"nodes": [3]},
        {"nodes": [{"tokens": 3}]},
    ],
)
def test_a_wrong_field_is_never_guessed_at(wrong):
    with pytest.raises(UnexpectedAnswer):
        read_answer({**ANSWER, **wrong})


def test_a_failed_item_raises_its_own_error_when_it_is_used():
    error = GatewayFailed("no")
    item = BatchItem(0, error=error)
    with pytest.raises(GatewayFailed):
        item.text  # noqa: B018
    assert BatchItem(0, ok=read_answer(ANSWER)).text == "Paris is nice"
