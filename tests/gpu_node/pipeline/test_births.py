"""What a template is told comes back from its bytes; what has no place in a message is noticed before it is sent."""

from __future__ import annotations

import pytest

from gpu_node.pipeline.births import CODEC, Birth, Born, Ended, Failed, Ready, Unfit
from wire.errors import BadPayload, OutOfBounds


def test_a_birth_tells_what_is_other_than_in_the_template() -> None:
    birth = Birth.between(3, ("/x", "1", "cuda:1"), {"A": "1", "B": "2", "C": "3"}, {"A": "1", "B": "4", "D": "5"})
    assert birth == Birth(3, ("/x", "1", "cuda:1"), (("B", "4"), ("D", "5")), ("C",))
    assert CODEC.unpack(CODEC.pack(birth)) == birth


@pytest.mark.parametrize(
    "message", [Ready(6.2), Unfit("it has 3 threads"), Born(0, 4321), Failed(2, "no memory"), Ended(2, 0, 9)]
)
def test_what_a_template_says_comes_back(message: object) -> None:
    assert CODEC.unpack(CODEC.pack(message)) == message


def test_what_is_none_of_this_is_refused() -> None:
    with pytest.raises(OutOfBounds):
        CODEC.pack(Birth(0, (), (("LONG", "x" * 10_000),)))
    with pytest.raises(BadPayload):
        CODEC.unpack(CODEC.pack(Born(0, 1)).replace(b"Born", b"Dead"))
