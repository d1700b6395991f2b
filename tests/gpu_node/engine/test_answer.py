"""A sample's way from chosen tokens to text, and where it ends; the same whether tokens come alone or together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.answer import Answer
from gpu_node.engine.sequence import Bounds, Logprob, Token, TokenLogprob
from tests.fakes.scripted_runner import END, ByteVocabulary

VOCABULARY = ByteVocabulary()
PROMPT = (1, 2, 3)
WIDE = Bounds(context_tokens=1000)


def answer_of(bounds: Bounds = WIDE, stop: Sequence[str] = (), guide: object = None) -> Answer:
    return Answer(VOCABULARY, PROMPT, bounds, stop, guide)


def run(answer: Answer, tokens: Sequence[int], pieces: Sequence[int] = ()) -> tuple[str, list[int]]:
    """Feed the tokens in pieces of these sizes, as a runner would: what is not taken is chosen again."""
    text, ids, sizes = "", [], list(pieces)
    while answer.reason is None:
        at = len(answer.written)
        assert at < len(tokens), "the script is over"
        size = sizes.pop(0) if sizes else 1
        event = answer.take(tokens[at : at + size])
        if event is not None:
            text += event.text
            ids += event.ids
        if answer.must_shift:
            answer.shift()
    return text, ids


def test_the_end_token_is_counted_but_not_written() -> None:
    answer = answer_of()
    assert run(answer, [*b"hi", END]) == ("hi", [*b"hi"])
    assert (answer.reason, answer.steps, answer.written) == ("stop", 3, [*b"hi"])
    assert answer.tokens == [*PROMPT, *b"hi"]


def test_the_limit_counts_every_token() -> None:
    answer = answer_of(Bounds(1000, max_tokens=2))
    assert run(answer, [*b"hello"]) == ("he", [*b"he"])
    assert answer.reason == "length"


def test_a_character_comes_when_it_is_whole_and_its_ids_at_once() -> None:
    answer = answer_of()
    events = [answer.take([byte]) for byte in "é!".encode()]
    assert [(event.text, event.ids) for event in events] == [("", (0xC3,)), ("é", (0xA9,)), ("!", (0x21,))]


def test_what_is_held_back_comes_out_at_the_end() -> None:
    answer = answer_of(Bounds(1000, max_tokens=3), stop=["END"])
    assert run(answer, [*b"xEN"])[0] == "xEN"
    answer = answer_of(Bounds(1000, max_tokens=1))
    assert run(answer, [0xC3])[0] == "\ufffd"


def test_a_stop_string_over_several_tokens_ends_the_answer_and_is_not_told() -> None:
    answer = answer_of(stop=["</s>"])
    text, ids = run(answer, [*b"ab</s>cd"])
    assert (text, answer.reason) == ("ab", "stop")
    assert ids == [*b"ab</s>"]


def test_until_min_tokens_nothing_ends_the_answer() -> None:
    answer = answer_of(Bounds(1000, min_tokens=4), stop=["x"])
    assert answer.banned == VOCABULARY.end_ids
    assert run(answer, [*b"xaxbcxd"])[0] == "xaxbc"
    assert answer.banned == frozenset()


def test_drafts_judged_while_the_end_was_banned_do_not_count_beyond_that() -> None:
    answer = answer_of(Bounds(1000, min_tokens=2))
    event = answer.take([*b"abcd"])
    assert event is not None and event.ids == tuple(b"ab")


def test_ignoring_the_end_writes_end_tokens_like_others() -> None:
    answer = answer_of(Bounds(1000, max_tokens=3, ignore_end=True))
    assert run(answer, [97, END, 98]) == ("ab", [97, END, 98])
    assert answer.reason == "length"


def test_logprobs_go_with_the_tokens_that_count() -> None:
    logprobs = [TokenLogprob(Logprob(token, -0.5)) for token in b"abc"]
    answer = answer_of(Bounds(1000, max_tokens=2))
    assert answer.take([*b"abc"], logprobs) == Token("ab", 0, (97, 98), tuple(logprobs[:2]))


def test_nothing_certain_and_nothing_written_is_no_event() -> None:
    assert answer_of().take([END]) is None


def test_a_full_context_ends_the_answer_or_shifts() -> None:
    answer = answer_of(Bounds(context_tokens=5, shift=False))
    assert run(answer, [*b"abcdef"])[0] == "abc"  # the last one is chosen, never computed
    assert answer.reason == "length"
    answer = answer_of(Bounds(context_tokens=5, max_tokens=-2))
    run(answer, [*b"abcdef"])
    assert answer.reason == "length"


def test_a_shift_keeps_the_front_and_the_later_half() -> None:
    answer = Answer(VOCABULARY, tuple(range(10)), Bounds(context_tokens=12, keep_tokens=2, max_tokens=20))
    answer.take([20])
    answer.take([21])
    assert not answer.must_shift
    answer.take([22])
    assert answer.must_shift and answer.tokens == [*range(10), 20, 21, 22]
    assert answer.shift() == [0, 1, 7, 8, 9, 20, 21, 22]
    assert answer.tokens == [0, 1, 7, 8, 9, 20, 21, 22] and not answer.must_shift
    assert answer.written == [20, 21, 22]
    answer.take([23])
    assert answer.tokens[-2:] == [22, 23]


@given(
    st.lists(st.integers(97, 100), min_size=60, max_size=60),
    st.lists(st.integers(1, 9), max_size=40),
    st.lists(st.text("abcd", min_size=2, max_size=3), max_size=2),
    st.integers(4, 30),
    st.integers(0, 12),
)
def test_tokens_that_come_together_make_the_same_answer(
    tokens: list[int], pieces: list[int], stop: list[str], context: int, least: int
) -> None:
    bounds = Bounds(context_tokens=context, max_tokens=40, min_tokens=least)
    alone, together = answer_of(bounds, stop), answer_of(bounds, stop)
    assert run(alone, tokens) == run(together, tokens, pieces)
    assert (alone.reason, alone.tokens, alone.steps) == (together.reason, together.tokens, together.steps)


class Digits:
    """A guide: two digits, and the end."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    @property
    def finished(self) -> bool:
        return len(self.seen) == 2

    def mask(self) -> bytes:
        return b""

    def accept(self, token_id: int) -> None:
        if not 48 <= token_id < 58:
            raise ValueError("no digit")
        self.seen.append(token_id)


def test_a_guide_goes_along_and_ends_the_answer_even_early() -> None:
    guide = Digits()
    answer = answer_of(Bounds(1000, min_tokens=5), guide=guide)
    assert answer.banned == frozenset()
    event = answer.take([*b"12"])
    assert event is not None and event.ids == (49,)  # the second one's mask was the first one's
    answer.take([50])
    assert (answer.reason, guide.seen) == ("stop", [49, 50])


def test_what_a_guide_raises_comes_through() -> None:
    with pytest.raises(ValueError, match="no digit"):
        answer_of(guide=Digits()).take([97])
