"""The words of the fake model: any cut can be continued to the character, and whatever is wrong with a text is
found and named.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.phone import FakeModel, PhoneSettings, expected_answer, verify_answer
from tests.fakes.phone_call import Piece, plan_call, tokens_of
from tests.fakes.phone_requests import Contexts, read_chat, read_generate
from tests.fakes.phone_template import Message, render
from tests.fakes.phone_text import WORD, Conversation, answer_to

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
# Its answer begins with a newline: the case that a comparison by endings gets wrong.
NEWLINE_FIRST = next(
    [{"role": "user", "content": f"Question {number}"}]
    for number in range(100)
    if expected_answer([{"role": "user", "content": f"Question {number}"}]).text.startswith("\n")
)
SALT = "9b1c"


def continued(settings: PhoneSettings, messages: list[dict[str, Any]], told: str, **options: Any) -> str:
    """What /api/chat says after the text so far, as last assistant message."""
    return told + expected_answer([*messages, assistant(told)], settings=settings, options=options or None).text


def continued_raw(settings: PhoneSettings, messages: list[dict[str, Any]], told: str, **options: Any) -> str:
    prompt = expected_answer(messages, settings=settings).rendered + told
    return told + expected_answer(prompt=prompt, raw=True, settings=settings, options=options or None).text


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("messages", [QUESTION, NEWLINE_FIRST], ids=["plain", "newline first"])
@pytest.mark.parametrize("way", [continued, continued_raw])
def test_every_cut_goes_on_to_the_character(messages: list[dict[str, Any]], way: Any) -> None:
    settings = PhoneSettings(template="open")
    whole = expected_answer(messages, settings=settings).text
    for cut in range(len(whole) + 1):
        assert way(settings, messages, whole[:cut]) == whole, f"cut at {cut}"


def test_raw_goes_on_with_a_closed_template_too() -> None:
    settings = PhoneSettings(template="closed")
    whole = expected_answer(QUESTION, settings=settings).text
    assert {continued_raw(settings, QUESTION, whole[:cut]) for cut in range(1, len(whole))} == {whole}


def test_a_closed_template_answers_anew_and_shows_it() -> None:
    settings = PhoneSettings(template="closed")
    whole = expected_answer(QUESTION, settings=settings)
    anew = expected_answer([*QUESTION, assistant(whole.text[:40])], settings=settings)
    assert anew.tag.endswith("n")
    assert anew.text not in whole.text
    verdict = verify_answer(whole.text[:40] + anew.text, QUESTION, settings=settings)
    assert verdict.problem == "splice"
    assert verdict.at <= 40


def test_a_trimming_template_loses_the_space_at_the_seam() -> None:
    settings = PhoneSettings(template="trimming")
    whole = expected_answer(QUESTION, settings=settings).text
    for cut in range(1, len(whole)):
        told = whole[:cut]
        right = continued(settings, QUESTION, told) == whole
        assert right == (told == told.strip()), f"cut at {cut}: {told[-3:]!r}"
        assert continued_raw(settings, QUESTION, told) == whole


def test_every_answer_mixes_words_white_space_and_multi_byte_characters() -> None:
    for number in range(200):
        expected = expected_answer(prompt=f"question {number}", settings=PhoneSettings(answer_tokens=(16, 16)))
        assert any(not piece.strip() for piece in expected.pieces), expected.text
        assert any(len(piece.encode()) > len(piece) for piece in expected.pieces), expected.text
        assert expected.eval_count == 17  # the end of the turn counts


@given(cut=st.integers(0, 400), options=st.sampled_from([{}, {"seed": 7}, {"temperature": 0}, {"temperature": 1.5}]))
def test_salted_and_seeded_answers_go_on_as_well(cut: int, options: dict[str, Any]) -> None:
    settings = PhoneSettings(template="open")
    call = read_chat({"model": "smollm2:135m", "messages": QUESTION, "options": options}, settings)
    whole = plan_call(call, settings, SALT).answer.text
    told = whole[:cut]
    body = {"model": "smollm2:135m", "messages": [*QUESTION, assistant(told)], "options": options}
    rest = "".join(plan_call(read_chat(body, settings), settings, "0f0f").answer.rest()) if told else whole
    digits_told = "x" not in whole[:9] or cut >= whole.index("x") + 5
    if digits_told or not told:
        assert told + rest == whole
    else:  # the salt was not all told, so the rest is another answer of the same question
        assert verify_answer(told + rest, QUESTION, settings=settings, options=options)


def test_unseeded_answers_differ_and_still_verify() -> None:
    settings = PhoneSettings()
    call = read_chat({"model": "smollm2:135m", "messages": QUESTION}, settings)
    first, second = (plan_call(call, settings, salt).answer.text for salt in ("0001", "0002"))
    assert first != second
    for text in (first, second):
        assert verify_answer(text, QUESTION, settings=settings).complete
        assert verify_answer(text, settings=settings).complete
    assert verify_answer(first[:50] + second[50:], QUESTION, settings=settings).problem == "splice"


def test_what_the_client_began_is_not_taken_for_told() -> None:
    settings = PhoneSettings(template="open")
    began = [*QUESTION, assistant("The sky is")]
    whole = expected_answer(began, settings=settings).text
    assert whole.startswith((" w0-", "\n"))
    for cut in range(2, len(whole)):
        told = "The sky is" + whole[:cut]
        assert continued(settings, QUESTION, told) == "The sky is" + whole, f"cut at {cut}"


def test_a_raw_prompt_without_any_template_goes_on() -> None:
    whole = expected_answer(prompt="Once upon a time", raw=True).text
    for cut in range(3, len(whole)):
        rest = expected_answer(prompt="Once upon a time" + whole[:cut], raw=True).text
        assert whole[:cut] + rest == whole, f"cut at {cut}"


@given(text=st.text(alphabet="w01-abcdefx \nné漢", max_size=40))
def test_whatever_a_prompt_ends_in_it_is_answered(text: str) -> None:
    answer = answer_to("<|im_start|>assistant\n" + text, Conversation("model"))
    assert "".join(answer.rest()) == answer.text[answer.told :]
    assert answer.told in (0, len(text)) or text.endswith(answer.text[: answer.told])


def test_another_digest_is_another_answer() -> None:
    one = PhoneSettings(models=(FakeModel("m:1b", digest="a" * 64),))
    other = PhoneSettings(models=(FakeModel("m:1b", digest="b" * 64),))
    text = expected_answer(QUESTION, settings=one).text
    assert text != expected_answer(QUESTION, settings=other).text
    assert verify_answer(text, QUESTION, settings=other).problem == "foreign"


def test_a_diverging_copy_leaves_the_answer_after_k_tokens() -> None:
    right, wrong = PhoneSettings(), PhoneSettings(diverge_after=5)
    texts = [expected_answer(QUESTION, settings=settings).pieces for settings in (right, wrong)]
    assert texts[0][:5] == texts[1][:5]
    assert texts[0][5:7] != texts[1][5:7]
    assert verify_answer("".join(texts[1]), QUESTION, settings=right).problem == "splice"


def test_gap_repeat_splice_and_garbage_are_told_apart() -> None:
    pieces = expected_answer(QUESTION).pieces
    other = expected_answer(prompt="something else").text
    text = "".join(pieces)
    faults = {
        "gap": pieces[:8] + pieces[9:],
        "repeat": pieces[:8] + pieces[7:],
        "splice": (*pieces[:8], other),
        "garbled": (*pieces[:8], "?", *pieces[8:]),
        "foreign": (other,),
        "empty": ("no word",),
    }
    for problem, parts in faults.items():
        assert verify_answer("".join(parts), QUESTION).problem == problem
    assert verify_answer(text, QUESTION).complete
    for cut in range(len(pieces[0]), len(text)):
        verdict = verify_answer(text[:cut], QUESTION)
        assert verdict.ok
        assert not verdict.complete


@given(first=st.integers(0, 300), second=st.integers(0, 300))
def test_no_gap_and_no_repeat_passes(first: int, second: int) -> None:
    """Any two pieces of the answer put together are right only if they fit, or look the same."""
    text = expected_answer(QUESTION).text
    pasted = text[:first] + text[second:]
    assert verify_answer(pasted, QUESTION).ok == (text.startswith(pasted) and WORD.search(pasted) is not None)


def test_stop_strings_across_the_borders_of_tokens() -> None:
    pieces = expected_answer(QUESTION).pieces
    stop = pieces[3][-2:] + pieces[4] + pieces[5][:2]
    stopped = expected_answer(QUESTION, options={"stop": [stop, "never"]})
    text = "".join(pieces)
    assert stopped.text == text[: text.index(stop)]
    assert (stopped.done_reason, stopped.eval_count) == ("stop", 6)
    almost = expected_answer(QUESTION, options={"stop": [pieces[3][-1:] + "@"]})
    assert almost.text == text, "what was held back comes out when it is no stop string"
    assert expected_answer(QUESTION, options={"stop": [pieces[3][-1:] + "@"], "num_predict": 4}).text == "".join(
        pieces[:4]
    )


def test_limits() -> None:
    whole = expected_answer(QUESTION)
    assert whole.done_reason == "stop"
    for endless in (0, -1, -2):
        assert expected_answer(QUESTION, options={"num_predict": endless}).text == whole.text
    for limit in (1, 2, 7):
        short = expected_answer(QUESTION, options={"num_predict": limit})
        assert (short.text, short.done_reason, short.eval_count) == ("".join(whole.pieces[:limit]), "length", limit)


def test_json_begins_anew_unless_the_grammar_goes_on() -> None:
    settings = PhoneSettings(template="open")
    whole = expected_answer(QUESTION, settings=settings, format="json").text
    told = [*QUESTION, assistant(whole[:30])]
    assert expected_answer(told, settings=settings, format="json").text == whole
    settings.grammar_begins_anew = False
    assert whole[:30] + expected_answer(told, settings=settings, format="json").text == whole


def test_a_schema_is_obeyed() -> None:
    schema = {
        "type": "object",
        "properties": {
            "capital": {"type": "string"},
            "size": {"type": "integer"},
            "sea": {"type": "boolean"},
            "rivers": {"type": "array", "items": {"enum": ["Seine", "Marne"]}},
            "mayor": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
    }
    value = json.loads(expected_answer(QUESTION, format=schema).text)
    assert list(value) == list(schema["properties"])
    assert isinstance(value["size"], int)
    assert set(value["rivers"]) <= {"Seine", "Marne"}
    assert value["mayor"] is None


@pytest.mark.parametrize(
    ("add_bos_token", "written", "same"),
    [(True, False, True), (True, True, False), (False, True, True), (False, False, False)],
)
def test_a_bos_too_many_or_too_few_changes_the_answer(add_bos_token: bool, written: bool, same: bool) -> None:
    """The rendering shows the BOS as text; a raw prompt must leave it to a tokenizer that adds its own."""
    model = FakeModel(bos_text="<bos>", add_bos_token=add_bos_token)
    settings = PhoneSettings(models=(model,), version="0.33.0-rc2")
    chat = expected_answer(QUESTION, settings=settings)
    assert chat.rendered.startswith("<bos><|im_start|>")
    prompt = chat.rendered if written else chat.rendered.removeprefix("<bos>")
    raw = expected_answer(prompt=prompt + chat.text[:30], raw=True, settings=settings)
    assert (chat.text[:30] + raw.text == chat.text) == same


def test_too_long_a_prompt_loses_its_oldest_turns_first() -> None:
    turns = [{"role": "system", "content": "Be kind."}]
    for number in range(30):
        turns += [{"role": "user", "content": f"question {number} " * 5}, assistant(f"answer {number}")]
    turns.append({"role": "user", "content": "last one"})
    kept = expected_answer(turns, settings=PhoneSettings(num_ctx=200))
    assert "Be kind." in kept.rendered
    assert "question 0 " not in kept.rendered
    assert "last one" in kept.rendered
    assert kept.prompt_eval_count <= 200


def test_roles_in_a_row_are_joined_with_a_blank_line() -> None:
    messages = [Message("user", "one"), Message("user", "two"), Message("assistant", "three")]
    expected = "<|im_start|>user\none\n\ntwo<|im_end|>\n<|im_start|>assistant\nthree"
    assert render(messages, "open") == expected
    assert render(messages, "closed") == expected + "<|im_end|>\n<|im_start|>assistant\n"


def test_the_tokenizer_keeps_its_own_words_whole() -> None:
    expected = expected_answer(QUESTION)
    words = [piece for piece in tokens_of(expected.text) if "w" in piece]
    assert words == [piece for piece in expected.pieces if "w" in piece]
    assert "".join(tokens_of(expected.text)) == expected.text


def test_thinking_and_tools_where_the_model_has_them() -> None:
    model = FakeModel(capabilities=("completion", "thinking", "tools"))
    settings = PhoneSettings(models=(model,))
    body = {"model": model.name, "messages": QUESTION, "think": True, "options": {"temperature": 0}}
    plan = plan_call(read_chat(body, settings), settings, SALT)
    pieces = [piece for piece in plan.pieces() if isinstance(piece, Piece)]
    assert [piece.thinking for piece in pieces[:7]] == [True] * 6 + [False]
    tool = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}}}
    plan = plan_call(read_chat({**body, "think": False, "tools": [tool]}, settings), settings, SALT)
    (called,) = next(piece for piece in plan.pieces() if isinstance(piece, Piece)).tool_calls
    assert called["function"]["name"] == "look"
    assert isinstance(called["function"]["arguments"]["at"], int)


def test_demo_answers_are_readable_and_the_same_each_time() -> None:
    settings = PhoneSettings(demo=True, template="open")
    whole = expected_answer(QUESTION, settings=settings)
    assert "Why is the sky blue?" in whole.text
    assert whole.text[0].isupper()
    assert whole.text.endswith(".")
    assert expected_answer(QUESTION, settings=settings, options={"temperature": 1}).text == whole.text
    for cut in range(1, len(whole.text)):
        assert continued(settings, QUESTION, whole.text[:cut]) == whole.text


def test_images_change_the_answer() -> None:
    model = FakeModel(capabilities=("completion", "vision"))
    settings = PhoneSettings(models=(model,), version="0.33.0-rc2")
    texts = {
        expected_answer([{"role": "user", "content": "see", "images": [image]}], settings=settings).text
        for image in ("aGVsbG8=", "d29ybGQ=")
    }
    assert len(texts) == 2


def test_a_system_prompt_and_a_context_change_the_answer() -> None:
    settings = PhoneSettings()
    plain = expected_answer(prompt="hi").text
    assert expected_answer(prompt="hi", system="Be kind.").text != plain
    body = {"model": "smollm2:135m", "prompt": "hi", "context": [1, 2], "options": {"temperature": 0}}
    call = read_generate(body, settings, Contexts(find=lambda ids: f"<{ids}>"))
    assert plan_call(call, settings, SALT).rendered.startswith("<[1, 2]>")
    assert plan_call(replace(call, context_text=""), settings, SALT).answer.text == plain
