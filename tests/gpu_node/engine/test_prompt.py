"""Rendering stays open for the assistant's last message; cutting keeps what Ollama keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.engine.prompt import cut, join_turns, prepare, render, render_open
from gpu_node.engine.sequence import Bounds, ChatPrompt, Message, RawPrompt
from gpu_node.errors import ContextExceeded, RequestError
from tests.fakes.scripted_runner import CharVocabulary

VOCABULARY = CharVocabulary()
WIDE = Bounds(context_tokens=1000)


def chat(*turns: tuple[str, str]) -> ChatPrompt:
    return ChatPrompt(tuple(Message(role, content) for role, content in turns))


@given(st.text(), st.text())
def test_rendering_with_more_text_is_the_rendering_with_that_text_behind_it(first: str, more: str) -> None:
    user = Message("user", "question")
    whole = render_open([user, Message("assistant", first + more)], VOCABULARY)
    assert whole == render_open([user, Message("assistant", first)], VOCABULARY) + more
    assert render_open([user], VOCABULARY) == render_open([user, Message("assistant", "")], VOCABULARY)


def test_neighbours_of_one_role_are_joined_but_for_tools() -> None:
    messages = [Message("user", "a"), Message("user", "b"), Message("tool", "1"), Message("tool", "2")]
    assert join_turns(messages) == [Message("user", "a\n\nb"), Message("tool", "1"), Message("tool", "2")]


def test_raw_text_goes_as_it_is() -> None:
    prepared = prepare(RawPrompt("<user>as is"), VOCABULARY, WIDE)
    assert prepared.text == "<user>as is"
    assert prepared.token_ids == tuple(map(ord, "<user>as is"))


def test_the_context_comes_before_the_prompt() -> None:
    prompt = ChatPrompt((Message("user", "q"),), context=(65, 66))
    assert prepare(prompt, VOCABULARY, WIDE).token_ids[:4] == (65, 66, ord("<"), ord("u"))


def test_a_context_of_foreign_numbers_is_refused() -> None:
    with pytest.raises(RequestError, match="no token"):
        prepare(ChatPrompt((Message("user", "q"),), context=(-1,)), VOCABULARY, WIDE)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        prepare(RawPrompt(""), VOCABULARY, WIDE)


def test_the_oldest_turns_go_first_and_system_messages_stay() -> None:
    prompt = chat(("system", "S"), ("user", "x" * 50), ("assistant", "y" * 50), ("user", "now"))
    text = render(prompt, VOCABULARY, Bounds(context_tokens=60))
    assert text == "<system>S\n<user>now\n<assistant>"


def test_as_many_turns_stay_as_fit() -> None:
    prompt = chat(*(("user" if n % 2 == 0 else "assistant", f"turn {n}") for n in range(9)))
    text = render(prompt, VOCABULARY, Bounds(context_tokens=70))
    assert len(text) <= 70
    assert "turn 6" in text and "turn 8" in text and "turn 4" not in text


def test_a_half_told_answer_keeps_the_question_that_it_answers() -> None:
    prompt = chat(("user", "old" * 20), ("assistant", "old" * 20), ("user", "ask"), ("assistant", "half"))
    assert render(prompt, VOCABULARY, Bounds(context_tokens=40)) == "<user>ask\n<assistant>half"


def test_without_cutting_nothing_is_dropped_and_too_much_is_refused() -> None:
    prompt = chat(("user", "x" * 50), ("assistant", "y" * 50), ("user", "now"))
    bounds = Bounds(context_tokens=60, truncate=False)
    assert "xxx" in render(prompt, VOCABULARY, bounds)
    with pytest.raises(ContextExceeded, match="the input length exceeds the context length"):
        prepare(prompt, VOCABULARY, bounds)


@given(st.integers(1, 200), st.integers(4, 64), st.integers(-1, 80))
def test_a_cut_prompt_fills_the_context_with_its_front_and_its_end(size: int, context: int, keep: int) -> None:
    ids = list(range(size))
    left = cut(ids, Bounds(context_tokens=context, keep_tokens=keep))
    assert len(left) == min(size, context)
    assert left[-1] == ids[-1]
    if size > context:
        front = min(context - 1, keep if keep >= 0 else context)
        assert left[:front] == ids[:front]
