"""Single fields: what each check takes, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from server.api import fields
from server.api.options import OPTION_CHECKS, TOP_LEVEL_OPTIONS, ollama_options, own_options
from server.durations import duration_seconds
from server.errors import RequestInvalid


def refusal(check: Any, value: Any, field: str = "thing") -> str:
    with pytest.raises(RequestInvalid) as caught:
        check(value, field)
    assert (caught.value.field or "").startswith(field)
    return caught.value.message


def test_unknown_fields_are_named_with_the_nearest():
    with pytest.raises(RequestInvalid) as caught:
        fields.checked({"promt": 1}, {"prompt": fields.text, "model": fields.text})
    assert (caught.value.field, caught.value.hint) == ("promt", "did you mean prompt?")
    with pytest.raises(RequestInvalid) as caught:
        fields.checked({"zzz" * 100: 1}, {"prompt": fields.text})
    assert caught.value.hint is None
    assert len(caught.value.message) < 120


def test_null_is_not_given():
    assert fields.checked({"prompt": None}, {"prompt": fields.text}) == {}
    assert fields.known_only({"prompt": None, "other": 1}, {"prompt": fields.text}) == {}


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "null"), (True, "true or false"), ("x", "text"), (1, "a number"), (1.5, "a number"), ([], "a list"),
     ({}, "an object")],
)  # fmt: skip
def test_kinds_in_words(value: Any, words: str):
    assert fields.kind_of(value) == words


def test_text():
    assert fields.text("", "thing") == ""
    assert refusal(fields.text, 1) == "'thing' must be text, not a number"
    assert fields.filled_text(" a ", "thing") == " a "
    assert "must not be empty" in refusal(fields.filled_text, " \n")


def test_flags_and_containers():
    assert fields.flag(False, "thing") is False
    assert "true or false" in refusal(fields.flag, 1)
    assert "an object" in refusal(fields.record, [])
    assert "a list" in refusal(fields.sequence, {})
    assert fields.text_or_texts("a", "thing") == ["a"]
    assert fields.text_or_texts(["a", "b"], "thing") == ["a", "b"]
    assert "thing[1]" in refusal(fields.text_or_texts, ["a", 2])
    assert "text or a list" in refusal(fields.text_or_texts, 2)


def test_numbers():
    check = fields.number(0, 1)
    assert check(0, "thing") == 0
    assert check(0.5, "thing") == 0.5
    assert refusal(check, 1.5) == "'thing' must be between 0 and 1, not 1.5"
    assert "not true or false" in refusal(check, True)
    assert "at least 0" in refusal(fields.number(0), -1)
    assert "at most 3" in refusal(fields.number(high=3), 4)


def test_whole_numbers():
    check = fields.integer(1, 5, also=(-1,))
    assert check(3.0, "thing") == 3
    assert type(check(3.0, "thing")) is int
    assert check(-1, "thing") == -1
    assert refusal(check, 0) == "'thing' must be between 1 and 5 or -1"
    assert refusal(check, 1.5) == "'thing' must be a whole number, not 1.5"
    assert "a whole number, not text" in refusal(check, "1")
    assert "true or false" in refusal(check, True)
    assert "thing" in refusal(fields.integer(), 1e300)


def test_words():
    assert fields.one_of("a", "b")("b", "thing") == "b"
    assert refusal(fields.one_of("a", "b"), "c") == "'thing' must be one of 'a', 'b'"
    assert refusal(fields.one_of("a"), ["a"])


def test_images():
    assert fields.base64_texts(["aGk="], "thing") == ["aGk="]
    assert "thing[0]" in refusal(fields.base64_texts, ["not base64!"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m0s", 600), ("0s", 0), ("0", 0), ("-1s", -1), ("-1m", -60), ("1h30m", 5400), ("1.5s", 1.5), ("+5ms", 0.005),
     ("3µs", 3e-6), ("2us", 2e-6), ("7ns", 7e-9)],
)  # fmt: skip
def test_durations(text: str, seconds: float):
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-", "5", "m", "5 m", "1.2.3s", ".s", "5d", "1h-5m", "s5", "5m5"])
def test_what_is_no_duration(text: str):
    assert duration_seconds(text) is None


def test_keep_alive():
    assert fields.keep_alive("5m", "thing") == "5m"
    assert fields.keep_alive(-1, "thing") == -1
    assert "no duration" in refusal(fields.keep_alive, "soon")
    assert "number of seconds" in refusal(fields.keep_alive, True)
    assert [fields.is_unload(value) for value in ("0s", 0, "0", 0.0, "5m", 1, None, "-1s")] == [
        True, True, True, True, False, False, False, False,
    ]  # fmt: skip


def test_own_options_know_every_name_and_range():
    assert own_options({"temperature": 0.5, "top_k": None, "stop": "x"}, "options") == {
        "temperature": 0.5,
        "stop": ["x"],
    }
    with pytest.raises(RequestInvalid) as caught:
        own_options({"temprature": 1}, "options")
    assert (caught.value.field, caught.value.hint) == ("options.temprature", "did you mean temperature?")
    with pytest.raises(RequestInvalid) as caught:
        own_options({"top_p": 2}, "options")
    assert caught.value.field == "options.top_p"
    assert set(TOP_LEVEL_OPTIONS) <= set(OPTION_CHECKS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"seed": "x"}, 'option "seed" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"num_predict": 1e300}, 'option "num_predict" must be of type integer'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_wrong_options_get_ollamas_own_sentence_but_400(options: dict[str, Any], words: str):
    with pytest.raises(RequestInvalid) as caught:
        ollama_options(options, "options")
    assert caught.value.message == words
    assert caught.value.http_status == 400


def test_options_of_ollama_that_nobody_knows_are_passed_over():
    given = {"no_such_option": 1, "temperature": None, "top_k": 2.7, "stop": ["a"], "use_mmap": False}
    assert ollama_options(given, "options") == {"top_k": 2, "stop": ["a"], "use_mmap": False}


def test_texts_that_end_an_answer():
    check = fields.stop_texts(2)
    assert check("a", "thing") == ["a"]
    assert check(["", "a", ""], "thing") == ["a"]
    assert check("", "thing") == []
    assert "more than 2" in refusal(check, ["a", "b", "c"])
    assert "longer than 256" in refusal(check, "a" * 257)
    with pytest.raises(RequestInvalid, match="more than 64"):
        own_options({"stop": ["a"] * 65}, "options")
    with pytest.raises(RequestInvalid, match="more than 64"):
        ollama_options({"stop": ["a"] * 65}, "options")
    assert ollama_options({"stop": ["", "a"]}, "options") == {"stop": ["a"]}


def test_short_names():
    assert fields.short_name("a" * 256, "thing") == "a" * 256
    assert "longer than 256" in refusal(fields.short_name, "a" * 257)
