"""The seam: a replay tells only what is new, a continuation holds back what may be a stop string."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.attempt import ReplayFailed
from server.errors import NodeBroken, NodeError
from server.exchange import NodeDone, Token, Usage
from tests.server.scripted_nodes import chat
from tests.server.telling import DONE, Telling, course_of, tokens

# --- the seam of a replay


def replayed(told: str, *steps: Any, thinking: str = "") -> Telling:
    return Telling(course_of(told=told, thinking=thinking), "replay", steps)


async def test_a_replay_tells_only_what_is_new() -> None:
    told = await replayed("hello", tokens("he", "llo w", "orld"), [DONE]).run()
    assert told.text == " world"
    assert told.course.told.text == "hello world"
    assert told.attempt.tokens == 2


@pytest.mark.parametrize("steps", [[tokens("he", "lp")], [tokens("x")], [tokens("hello world".upper())]])
async def test_a_replay_that_tells_something_else_ends_unheard(steps: list[Any]) -> None:
    """Diverges: next rule; the client hears nothing of it, and it is no strike."""
    telling = replayed("hello", *steps, [DONE])
    with pytest.raises(ReplayFailed):
        await telling.run()
    assert telling.batches == []
    assert telling.course.told.text == "hello"


async def test_a_replay_that_ends_too_soon_is_no_answer() -> None:
    telling = replayed("hello", tokens("hel"), [DONE])
    with pytest.raises(ReplayFailed):
        await telling.run()
    assert telling.batches == []


async def test_a_replay_that_ends_where_it_broke_off_is_whole() -> None:
    told = await replayed("hello", tokens("hello"), [DONE]).run()
    assert (told.text, told.attempt.done, told.attempt.tokens) == ("", DONE, 0)


async def test_thoughts_are_replayed_as_well() -> None:
    steps = [[Token("", "hm"), Token("", "m"), Token("a"), Token("b")], [DONE]]
    told = await replayed("", *steps, thinking="hmm").run()
    assert told.batches[0] == tokens("a", "b")
    assert told.course.told.tokens == 4 + 2, "thoughts that were told are not counted again"
    again = await replayed("a", *steps, thinking="hmm").run()
    assert again.text == "b"


@pytest.mark.parametrize(
    ("text", "thinking", "steps"),
    [
        ("", "hmm", [Token("", "h"), Token("a")]),  # the answer begins before all thoughts have come again
        ("a", "hm", [Token("", "hm"), Token("", "more"), Token("a")]),  # more thoughts than before the answer
        ("a", "hm", [Token("", "xx")]),
        ("a", "hm", [Token("", "hm"), Token("a", "more")]),
        ("ab", "", [Token("a"), Token("", tool_calls=({},))]),
    ],
)
async def test_thoughts_and_text_come_again_in_their_order(text: str, thinking: str, steps: list[Token]) -> None:
    telling = replayed(text, steps, [DONE], thinking=thinking)
    with pytest.raises(ReplayFailed):
        await telling.run()
    assert telling.batches == []


async def test_after_the_told_part_everything_is_passed_on() -> None:
    last = Token("", tool_calls=({"function": {}},))
    told = await replayed("a", [Token("a"), Token("", logprobs=(1,)), last, DONE]).run()
    assert told.batches == [[Token("", logprobs=(1,)), last]]


# --- the seam of a continuation


def continued(told: str, *steps: Any, **options: Any) -> Telling:
    return Telling(course_of(chat("hi", options=options), told=told), "chat", steps)


async def test_a_continuation_is_told_as_it_comes() -> None:
    told = await continued("hel", tokens("lo"), [DONE]).run()
    assert told.course.told.text == "hello"


async def test_a_stop_string_over_the_seam_ends_the_answer_and_the_node() -> None:
    """Stop strings may straddle the seam: nothing more is told, the stream to the node is closed."""
    told = await continued("so E", tokens("N", "D", "x"), tokens("more"), [DONE], stop=["END"]).run()
    assert (told.text, told.attempt.stopped, told.attempt.done) == ("", True, None)
    assert told.backend.closed == 1
    assert told.course.told.text == "so E"


async def test_the_reason_is_stop_also_when_the_node_said_length_at_once() -> None:
    length = NodeDone("length", "qwen:1b", Usage(10, 5))
    told = await continued("so E", [*tokens("N", "D"), length], stop="END").run()
    assert told.attempt.stopped
    assert told.attempt.done is not None
    assert (told.attempt.done.reason, told.attempt.done.usage) == ("stop", length.usage)


async def test_held_back_text_comes_with_all_its_tokens() -> None:
    """Held-back text is never lost, and `num_predict` counts it."""
    told = await continued("so E", tokens("N"), [Token("T", tokens=2)], [DONE], stop="END").run()
    assert told.text == "NT"
    assert told.attempt.tokens == 3


async def test_held_back_text_comes_at_the_end_at_the_latest() -> None:
    told = await continued("so E", tokens("N"), [DONE], stop="END").run()
    assert (told.text, told.attempt.tokens, told.attempt.stopped) == ("N", 1, False)
    longer = await continued("so E", tokens("N", "D"), [DONE], stop="ENDE").run()
    assert (longer.text, longer.attempt.tokens) == ("ND", 2)


async def test_held_back_text_of_a_node_that_breaks_was_never_told() -> None:
    telling = continued("so E", tokens("N"), NodeBroken("cut"), stop="END")
    with pytest.raises(NodeError):
        await telling.run()
    assert telling.course.told.text == "so E"
    assert telling.attempt.tokens == 0


async def test_what_comes_with_held_back_text_is_not_held_back() -> None:
    told = await continued("so E", [Token("N", "a thought")], [Token("", "another")], [DONE], stop="END").run()
    thoughts = [event.thinking for batch in told.batches for event in batch if isinstance(event, Token)]
    assert thoughts == ["a thought", "another", ""]
    assert (told.text, told.attempt.tokens) == ("N", 2)


@given(
    parts=st.lists(st.lists(st.sampled_from(["a", "b", "E", "N", "D", "EN", "ND"]), max_size=4), max_size=6),
    told=st.sampled_from(["x", "xE", "xEN"]),
)
async def test_every_token_is_counted_once(parts: list[list[str]], told: str) -> None:
    """Token counts over a seam that holds text back equal those that the node told, unless a stop string ended it."""
    steps = [tokens(*part) for part in parts if part]
    telling = await continued(told, *steps, [DONE], stop="END").run()
    if not telling.attempt.stopped:
        assert telling.attempt.tokens == sum(len(part) for part in parts)
        assert telling.text == "".join("".join(part) for part in parts)
        assert telling.course.told.tokens == 4 + telling.attempt.tokens


# --- tokens by their ids


async def test_tokens_without_a_whole_character_are_kept_and_not_told() -> None:
    telling = Telling(course_of(chat("hi")), "first", [[Token("", tokens=1, ids=(5,))], [Token("é", ids=(6,)), DONE]])
    await telling.run()
    assert telling.batches == [[Token("é", ids=(6,))]]
    assert (telling.course.told.ids, telling.attempt.tokens) == ([5, 6], 2)
    assert telling.course.copy is not None


async def test_an_exact_answer_needs_no_seam() -> None:
    """The node has seen the told part: it watches for stop strings itself."""
    course = course_of(chat("hi", options={"stop": ["END"]}))
    course.told.add(Token("so E", ids=(1, 2)))
    telling = Telling(course, "exact", [[Token("N", ids=(3,))], [Token("", ids=()), DONE]])
    await telling.run()
    assert (telling.text, telling.attempt.stopped, course.told.ids) == ("N", False, [1, 2, 3])


async def test_text_held_at_a_seam_has_no_tokens_of_its_own() -> None:
    course = course_of(chat("hi", options={"stop": ["END"]}), told="so E")
    telling = Telling(course, "chat", [[Token("N", ids=(3,))], [Token("T", ids=(4,)), DONE]])
    await telling.run()
    assert (telling.text, telling.attempt.tokens, course.told.ids) == ("NT", 2, None)
