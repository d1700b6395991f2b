"""Every option does what its name says, and a seed gives the same tokens."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.sampler import Sampler, kept, penalised
from gpu_node.engine.sequence import SamplingOptions
from gpu_node.errors import GenerationFailed

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0])
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


def drawn(count: int = 300, **options: float) -> Counter[int]:
    sampler = Sampler(SamplingOptions(**{**PLAIN, "seed": 1, **options}))  # type: ignore[arg-type]
    return Counter(sampler.choose(LOGITS, []) for _ in range(count))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert drawn(20, temperature=0) == {1: 20}


def test_plain_draws_follow_the_probabilities() -> None:
    counts = drawn(4000)
    expected = torch.softmax(LOGITS, -1)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_top_k_leaves_the_k_likeliest() -> None:
    assert set(drawn(top_k=2)) == {1, 2}


def test_top_p_leaves_the_least_set_that_reaches_p() -> None:
    assert set(drawn(top_p=0.5)) == {1}
    assert set(drawn(top_p=0.7)) == {1, 2}


def test_min_p_is_measured_against_the_likeliest() -> None:
    assert set(drawn(min_p=0.3)) == {1, 2}


def test_temperature_comes_before_top_p() -> None:
    assert set(drawn(top_p=0.5, temperature=10.0)) > {1, 2}


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def run(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS, []) for _ in range(30)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(2**70) == run(2**70)


def test_without_a_seed_two_samplers_differ() -> None:
    def run() -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=5.0, top_k=0, top_p=1.0))
        return [sampler.choose(LOGITS, []) for _ in range(60)]

    assert run() != run()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SamplingOptions(repeat_penalty=2.0), [0.0, 1.5, 2.0, 1.0, -2.0]),
        (SamplingOptions(repeat_penalty=1.0, presence_penalty=0.5), [0.0, 2.5, 2.0, 1.0, -1.5]),
        (SamplingOptions(repeat_penalty=1.0, frequency_penalty=0.5), [0.0, 2.0, 2.0, 1.0, -1.5]),
    ],
)
def test_penalties_weigh_what_was_said(options: SamplingOptions, expected: list[float]) -> None:
    assert penalised(LOGITS, [1, 4, 1], options).tolist() == expected
    assert LOGITS.tolist() == [0.0, 3.0, 2.0, 1.0, -1.0]


def test_only_the_recent_past_is_penalised() -> None:
    options = SamplingOptions(repeat_penalty=2.0, repeat_last_n=1)
    assert penalised(LOGITS, [1, 2], options).tolist() == [0.0, 3.0, 1.0, 1.0, -1.0]
    everything = SamplingOptions(repeat_penalty=2.0, repeat_last_n=-1)
    assert penalised(LOGITS, [1, 2], everything).tolist() == [0.0, 1.5, 1.0, 1.0, -1.0]
    assert not SamplingOptions(repeat_penalty=2.0, repeat_last_n=0).penalises


@settings(max_examples=50)
@given(st.floats(0, 1), st.floats(0, 1))
def test_something_is_always_left(top_p: float, min_p: float) -> None:
    probabilities = torch.softmax(LOGITS, -1).sort(descending=True).values
    assert 1 <= kept(probabilities, SamplingOptions(top_p=top_p, min_p=min_p)) <= 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_not_finite_fail_the_request(temperature: float) -> None:
    broken = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(GenerationFailed, match="not finite"):
        Sampler(SamplingOptions(temperature=temperature)).choose(broken, [])
