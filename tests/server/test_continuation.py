"""How a half-told answer goes on: the ways of each node, and a seam without a gap or a repeat."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from server.continuation import (
    BEGINNINGS,
    Diverged,
    ReplaySkip,
    SeamStops,
    Told,
    adds_beginning,
    continued_options,
    extended,
    raw_prompt,
    remaining_predict,
    stays_open,
    ways,
)
from server.exchange import AskRequest, Token
from tests.server.scripted_nodes import chat, node_of, report_of

GREEDY = {"temperature": 0}
TOOLS = {"tools": [{"type": "function"}]}
RENDERS = node_of("a", report_of(renders=True))
OLD = node_of("a", report_of(version="0.6.0", renders=False))
OURS = node_of("a", report_of(continues_assistant=True))
PLAIN_OPENAI = node_of("a", report_of(), kind="openai")
VLLM = node_of("a", report_of(), kind="openai", continues_final_message=True)


def told(text: str = "so far", thinking: str = "", tool_calls: tuple[Any, ...] = ()) -> Told:
    result = Told()
    result.add(Token(text, thinking, tool_calls))
    return result


def generate(**changes: Any) -> AskRequest:
    return chat(operation="generate", messages=(), prompt="hi", **changes)


# --- the ways


@pytest.mark.parametrize(
    ("node", "request_", "expected"),
    [
        (RENDERS, chat("hi"), ("chat", "raw")),
        (RENDERS, chat("hi", options=GREEDY), ("chat", "raw", "replay")),
        (RENDERS, generate(), ("raw",)),
        (RENDERS, generate(fields={"raw": True}), ("raw",)),
        (RENDERS, generate(fields={"context": [1, 2]}), ()),
        (RENDERS, generate(fields={"context": [1, 2]}, options=GREEDY), ("replay",)),
        (OLD, chat("hi"), ()),
        (OLD, chat("hi", options=GREEDY), ("replay",)),
        (OLD, generate(options=GREEDY), ("replay",)),
        (OLD, generate(fields={"raw": True}, options=GREEDY), ("raw", "replay")),
        (OURS, chat("hi", options=GREEDY), ("chat", "replay")),
        (OURS, generate(), ()),
        (PLAIN_OPENAI, chat("hi"), ()),
        (PLAIN_OPENAI, chat("hi", options=GREEDY), ("replay",)),
        (VLLM, chat("hi", options=GREEDY), ("chat", "replay")),
        (VLLM, generate(), ()),
    ],
)
def test_the_ways_of_each_kind_of_node(node: Any, request_: AskRequest, expected: tuple[str, ...]) -> None:
    """chat, raw, replay, in this order, decided for each node by what it really does; older ones would generate
    when asked to render; replay only at temperature 0; kind `openai`: vLLM by setting, otherwise replay or nothing."""
    assert ways(request_, node, told()) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "json"},
        {"format": {"type": "object"}},
        {"format": {}},  # any JSON, and nothing else
        TOOLS,
        {"think": True},
        {"think": "high"},
        {"images": ["x"]},
        {"suffix": "}"},
        {"logprobs": True},
    ],
)
@pytest.mark.parametrize("node", [RENDERS, OURS, VLLM])
def test_what_cannot_be_cut_and_glued_is_only_replayed(node: Any, fields: dict[str, Any]) -> None:
    """Replay: for requests with `format`, images, tools or thinking (a JSON grammar would begin anew)."""
    assert ways(chat("hi", fields=fields), node, told()) == ()
    assert ways(chat("hi", fields=fields, options=GREEDY), node, told()) == ("replay",)


def test_fields_that_are_switched_off_do_not_matter() -> None:
    off = {"think": False, "tools": [], "logprobs": False, "format": ""}
    assert ways(chat("hi", fields=off), RENDERS, told()) == ("chat", "raw")


@pytest.mark.parametrize("extra", [{"images": ["x"]}, {"tool_calls": [{"function": {}}]}])
def test_messages_with_images_or_tool_calls_are_only_replayed(extra: dict[str, Any]) -> None:
    messages = ({"role": "user", "content": "hi", **extra},)
    assert ways(chat(messages=messages, options=GREEDY), RENDERS, told()) == ("replay",)


def test_told_thoughts_are_only_replayed() -> None:
    assert ways(chat("hi", options=GREEDY), RENDERS, told("", thinking="hm")) == ("replay",)
    assert ways(chat("hi"), RENDERS, told("", thinking="hm")) == ()


def test_told_tool_calls_end_it() -> None:
    """None fits: one honest error event ends the stream."""
    assert ways(chat("hi", options=GREEDY), RENDERS, told(tool_calls=({},))) == ()


# --- what was told


def test_what_was_told_is_counted() -> None:
    so_far = Told()
    assert not so_far.anything
    for token in (Token("a"), Token("b", tokens=3), Token("", thinking="hm")):
        so_far.add(token)
    assert (so_far.text, so_far.thinking, so_far.tokens, so_far.anything) == ("ab", "hm", 5, True)
    so_far.add(Token("c"))
    assert so_far.text == "abc"


def test_text_was_told_whatever_its_tokens_are_said_to_be() -> None:
    so_far = Told()
    so_far.add(Token("a", tokens=0))
    assert so_far.anything


# --- chat: one message, and the template leaves it open


def test_the_text_so_far_becomes_the_assistants_message() -> None:
    messages = extended(chat("hi").messages, " hello\n")
    assert messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " hello\n"}]


def test_the_text_so_far_extends_the_clients_own_message() -> None:
    """The text so far extends that message; it never becomes a second one."""
    request = chat("hi", "hel")
    assert extended(request.messages, "lo")[-1] == {"role": "assistant", "content": "hello"}
    assert len(extended(request.messages, "lo")) == 2
    assert request.messages[-1]["content"] == "hel"
    without_text = ({"role": "assistant", "thinking": "hm"},)
    assert extended(without_text, "lo") == [{"role": "assistant", "thinking": "hm", "content": "lo"}]


@pytest.mark.parametrize(
    ("rendered", "longer", "text", "is_open"),
    [
        ("<user>hi<assistant>", "<user>hi<assistant>hel", "hel", True),
        ("<user>hi<assistant>", "<user>hi<assistant>hel</>", "hel", False),
        ("<user>hi<assistant>", "<user>hi<assistant>hel", "hel ", False),
        ("<user>hi</><assistant>\n", "<user>hi</><assistant>\n</><assistant>\n", "\n", False),
        ("A", "B hel", "hel", False),
    ],
)
def test_open_means_character_for_character(rendered: str, longer: str, text: str, is_open: bool) -> None:
    """`render(messages + text) == render(messages) + text`. "Ends in the text" is not enough: a closed rendering
    ends in "assistant\\n", and the text so far may be "\\n"."""
    assert stays_open(rendered, longer, text) is is_open


# --- raw


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_beginning_is_never_told_twice(beginning: str) -> None:
    """Where `/api/show` says `add_bos_token`, leave the text's one out."""
    rendered = f"{beginning}<user>hi"
    assert raw_prompt(rendered, " so", adds_beginning=True) == "<user>hi so"
    assert raw_prompt(rendered, " so", adds_beginning=False) == f"{rendered} so"


def test_only_one_beginning_at_the_very_beginning_is_left_out() -> None:
    assert raw_prompt("<bos><bos>x<bos>", "", adds_beginning=True) == "<bos>x<bos>"
    assert raw_prompt("<bos><s>x", "", adds_beginning=True) == "<s>x"
    assert raw_prompt("x<bos>", "<s>", adds_beginning=True) == "x<bos><s>"


@pytest.mark.parametrize(
    ("show", "adds"),
    [
        ({"model_info": {"tokenizer.ggml.add_bos_token": True}}, True),
        ({"model_info": {"tokenizer.ggml.add_bos_token": False}}, False),
        ({"model_info": {}}, False),
        ({"model_info": None}, False),
        ({}, False),
    ],
)
def test_whether_the_tokenizer_adds_it_is_what_show_says(show: dict[str, Any], adds: bool) -> None:
    assert adds_beginning(show) is adds


# --- num_predict


@pytest.mark.parametrize(
    ("options", "told_tokens", "left"),
    [
        ({}, 5, None),
        ({"num_predict": -1}, 5, None),
        ({"num_predict": -2}, 5, None),
        ({"num_predict": 0}, 5, None),
        ({"num_predict": 10}, 4, 6),
        ({"num_predict": 10}, 10, 0),
        ({"num_predict": 10}, 12, 0),
    ],
)
def test_what_is_left_of_num_predict(options: dict[str, int], told_tokens: int, left: int | None) -> None:
    """Nothing left of `num_predict`: finish with `length`; -1, -2 and 0 set no limit."""
    assert remaining_predict(options, told_tokens) == left


def test_the_rest_of_num_predict_is_asked_for() -> None:
    options = {"num_predict": 10, "seed": 1}
    assert continued_options(options, 4) == {"num_predict": 6, "seed": 1}
    assert options["num_predict"] == 10
    assert continued_options({"num_predict": -1}, 4) == {"num_predict": -1}
    assert continued_options({}, 4) == {}


# --- replay


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


CUTS = st.lists(st.integers(0, 30), max_size=12)


@given(text=st.text("ab ", max_size=20), at=st.integers(0, 20), cuts=CUTS)
def test_a_replay_tells_exactly_what_is_new_however_it_is_cut(text: str, at: int, cuts: list[int]) -> None:
    """What was told must come again word for word and is skipped."""
    before = text[: min(at, len(text))]
    skip = ReplaySkip(before)
    new = "".join(skip.feed(piece) for piece in pieces_of(text, cuts))
    assert before + new == text
    assert skip.finished


@given(text=st.text("ab", min_size=1, max_size=20), wrong=st.integers(0, 19), cuts=CUTS)
def test_a_replay_that_differs_anywhere_diverges_and_tells_nothing(text: str, wrong: int, cuts: list[int]) -> None:
    assume(wrong < len(text))
    skip = ReplaySkip(text)
    other = text[:wrong] + "X" + text[wrong + 1 :]
    new = ""
    with pytest.raises(Diverged):
        for piece in pieces_of(other, cuts):
            new += skip.feed(piece)
    assert new == ""
    assert not skip.finished


# --- stop strings over the seam


def stops_of(text: str, stops: list[str]) -> set[int]:
    """Where a single run may end: where the stop string begins that is complete first; servers differ where several
    are complete at once."""
    for end in range(1, len(text) + 1):
        starts = {end - len(stop) for stop in stops if text[:end].endswith(stop)}
        if starts:
            return starts
    return set()


def completed(text: str, stops: list[str]) -> int:
    """Behind the first stop string that is whole; 0 where there is none."""
    return next((end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)), 0)


def told_over_the_seam(text: str, cut: int, cuts: list[int], stops: list[str]) -> str:
    """A first node told text[:cut] and died; another goes on with the rest, and stops at what it sees itself."""
    before = text[:cut]
    rest = text[cut:]
    own_ends = stops_of(rest, stops)
    rest = rest[: min(own_ends)] if own_ends else rest
    seam = SeamStops.at({"stop": stops}, before)
    new = ""
    for piece in pieces_of(rest, cuts):
        told_now, stopped = seam.feed(piece)
        new += told_now
        if stopped:
            return before + new
    return before + new + seam.rest()


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab", max_size=12), cut=st.integers(0, 12), cuts=CUTS, stops=STOPS)
@example(text="xabc", cut=3, cuts=[], stops=["abc"])
@example(text="aab", cut=2, cuts=[], stops=["aab", "ab"])
def test_stop_strings_may_straddle_the_seam(text: str, cut: int, cuts: list[int], stops: list[str]) -> None:
    """Stop strings may straddle it: however the text is cut, what is told equals a single run that stops at them."""
    cut = min(cut, len(text))
    assume(not stops_of(text[:cut], stops))
    ends = stops_of(text, stops) or {len(text)}
    own_ends = stops_of(text[cut:], stops)
    # one that the node completes within the straddling one hides the rest of that from everybody
    assume(not own_ends or cut + min(own_ends) >= completed(text, stops))
    assert told_over_the_seam(text, cut, cuts, stops) in {text[: max(cut, end)] for end in ends}


@given(text=st.text("abc", max_size=16), cut=st.integers(0, 16), cuts=CUTS, stops=STOPS)
def test_held_back_text_is_never_lost_and_held_no_longer_than_needed(
    text: str, cut: int, cuts: list[int], stops: list[str]
) -> None:
    cut = min(cut, len(text))
    seam = SeamStops.at({"stop": stops}, text[:cut])
    new = ""
    for piece in pieces_of(text[cut:], cuts):
        now, stopped = seam.feed(piece)
        if stopped:
            return
        new += now
        assert text[cut:].startswith(new + seam.held)
        assert len(seam.held) < max(len(stop) for stop in stops)
    assert new + seam.rest() == text[cut:]
    assert seam.held == ""


def test_without_a_begun_stop_string_nothing_is_held_back() -> None:
    seam = SeamStops.at({"stop": ["END"]}, "once upon")
    assert seam.feed("E") == ("E", False)


@pytest.mark.parametrize("stop", ["END", ["x", "END"]])
def test_a_begun_stop_string_is_held_back_until_it_is_none(stop: Any) -> None:
    seam = SeamStops.at({"stop": stop}, "so E")
    assert seam.feed("N") == ("", False)
    assert seam.feed("T") == ("NT", False)
    assert seam.feed("END") == ("END", False)


def test_a_stop_string_over_the_seam_ends_the_answer() -> None:
    seam = SeamStops.at({"stop": ["END"]}, "so E")
    assert seam.feed("N") == ("", False)
    assert seam.feed("D and more") == ("", True)


def test_the_tokens_of_held_back_text_are_counted() -> None:
    seam = SeamStops.at({"stop": ["ENDING"]}, "so E")
    seam.feed("N")
    seam.feed("D", tokens=2)
    assert seam.held_tokens == 3
    assert seam.feed("!") == ("ND!", False)
    assert seam.held_tokens == 4


@pytest.mark.parametrize("options", [{}, {"stop": None}, {"stop": []}, {"stop": ""}, {"stop": ["", "x"]}])
def test_requests_without_stop_strings_have_an_open_seam(options: dict[str, Any]) -> None:
    assert SeamStops.at(options, "so x").feed("x") == ("x", False)
