import pytest

from potluck.cli.questions import parse_options, question
from potluck.errors import Misuse


@pytest.mark.parametrize(
    ("prompt", "piped", "asked"),
    [
        ("Why?", None, "Why?"),
        ("Why?", "", "Why?"),
        ("Why?", "log line\n", "log line\n\nWhy?"),
        (None, "log line\n", "log line"),
        ("-", "log line\n", "log line"),
        ("  indented", None, "  indented"),
    ],
)
def test_prompt_and_pipe_are_joined(prompt, piped, asked):
    assert question(prompt, piped) == asked


@pytest.mark.parametrize(("prompt", "piped"), [(None, None), ("", None), ("-", ""), (" ", "\n")])
def test_nothing_to_ask(prompt, piped):
    with pytest.raises(Misuse, match="nothing to ask"):
        question(prompt, piped)


def test_options_take_json_where_it_is_json():
    pairs = ["temperature=0.2", "top_k = 40", 'stop=["a","b"]', "mirostat=true", "name=plain text", "x=a=b", "empty="]
    assert parse_options(pairs, {"seed": None}) == {
        "temperature": 0.2,
        "top_k": 40,
        "stop": ["a", "b"],
        "mirostat": True,
        "name": "plain text",
        "x": "a=b",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (["temperature"], "looks like"),
        (["=1"], "looks like"),
        (["seed=1"], "seed is given twice"),
        (["top_k=1", "top_k=2"], "top_k is given twice"),
    ],
)
def test_options_that_cannot_be_meant(pairs, reason):
    with pytest.raises(Misuse, match=reason):
        parse_options(pairs, {"seed": 7})
