from __future__ import annotations

from typing import Any

import pytest

from gpu_node.api.schemas import ChatBody, GenerateBody, check_options, parse
from gpu_node.errors import RequestError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"temperature": True}, 'option "temperature" must be of type float32'),
        ({"seed": "7"}, 'option "seed" must be of type integer'),
        ({"num_ctx": [1]}, 'option "num_ctx" must be of type integer'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": 1}, 'option "stop" must be of type array'),
        ({"stop": ["a", 1]}, 'option "stop" must be of an array of strings'),
        ({"num_ctx": float("inf")}, 'option "num_ctx" must be of type integer'),
    ],
)
def test_wrong_types_in_ollamas_words(options: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_options(options)
    assert (str(caught.value), caught.value.status) == (told, 400)


def test_right_types_unknown_names_and_nulls() -> None:
    given = {"temperature": 1, "seed": 7.0, "stop": "x", "no_such_option": object(), "top_k": None}
    assert check_options(given) == {"temperature": 1, "seed": 7, "stop": ["x"]}
    assert check_options(None) == {}


def test_unknown_fields_pass_and_wrong_ones_are_named() -> None:
    assert parse(ChatBody, b'{"model": "m", "colour": "red"}').model_name == "m"
    with pytest.raises(RequestError, match=r'field "messages.0.content" is wrong: .* \(got number\)'):
        parse(ChatBody, b'{"messages": [{"role": "user", "content": 5}]}')
    with pytest.raises(RequestError, match='field "stream" is wrong'):
        parse(ChatBody, b'{"stream": "yes"}')
    with pytest.raises(RequestError, match=r'field "context\.1" is wrong'):
        parse(GenerateBody, b'{"context": [1, "2"]}')


def test_keep_alive_in_all_its_forms() -> None:
    def seconds(text: bytes) -> float | None:
        return parse(ChatBody, b'{"keep_alive": ' + text + b"}").keep_alive_seconds

    assert seconds(b'"5m"') == 300
    assert seconds(b"0") == 0
    assert seconds(b"1.5") == 1.5
    assert seconds(b"-1") == float("inf")
    assert seconds(b"null") is None
    assert seconds(b'""') is None
