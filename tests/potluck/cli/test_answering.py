from dataclasses import replace

from potluck.answers import NodeShare, Timings, read_answer
from potluck.cli.answering import seconds, summary
from tests.potluck.loopback import ANSWER

WHOLE = read_answer(ANSWER)


def test_how_it_went():
    assert summary(WHOLE) == (
        "pixel-3 · qwen2.5:0.5b · 3 tokens · 9.5 tokens/s · first token after 0.24 s · 0.90 s in all"
    )


def test_how_it_went_with_several_nodes():
    told = replace(WHOLE, nodes=(NodeShare("a", 2), NodeShare("b\x1b", 1)), attempts=2, done_reason="length")
    assert summary(told).startswith("a then b� · ")
    assert summary(told).endswith("2 attempts · stopped at its limit of length")


def test_a_cached_answer_says_so():
    cached = replace(WHOLE, cached=True, timings=Timings(0, 0, 0.4))
    assert summary(cached) == "from the cache · qwen2.5:0.5b · 3 tokens · under 0.01 s in all"


def test_seconds():
    assert [seconds(value) for value in (9, 10, 1234, 61_000)] == ["under 0.01 s", "0.01 s", "1.23 s", "61 s"]
