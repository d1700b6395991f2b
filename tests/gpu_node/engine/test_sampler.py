"""Every option does what its name says, whatever else is in the batch, and draws follow the probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.engine.draws import uniform
from gpu_node.engine.sampler import NOT_FINITE_TEXT, NOTHING_ALLOWED_TEXT, Sampler
from gpu_node.engine.sequence import SamplingOptions
from gpu_node.engine.step import Choice, Pick

LOGITS = [0.0, 3.0, 2.0, 1.0, -1.0]
DRAWS = 2000  # enough for a chi-square of five tokens to tell a wrong share from luck
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


def options(**changes: object) -> SamplingOptions:
    return SamplingOptions(**{**PLAIN, **changes})


def sampled(
    logits: Sequence[Sequence[float]], picks: Sequence[Pick], dtype: torch.dtype = torch.float32
) -> list[Choice]:
    firsts = np.cumsum([0, *(1 + len(pick.drafts) for pick in picks)])[:-1].tolist()
    return list(Sampler().sample(torch.tensor(logits, dtype=dtype), picks, firsts))


def pick(key: int = 1, written: int = 0, history: Sequence[int] = (), **changes: object) -> Pick:
    own = {name: changes.pop(name) for name in ("drafts", "banned", "allowed") if name in changes}
    return Pick(0, options(**changes), key, written, history, **own)


def drawn(count: int = 300, logits: Sequence[float] = LOGITS, **changes: object) -> Counter[int]:
    picks = [pick(written=at, **changes) for at in range(count)]
    choices = Sampler().sample(torch.tensor([logits]), picks, [0] * count)
    return Counter(choice.tokens[0] for choice in choices)


def softmax(values: Sequence[float]) -> list[float]:
    peak = max(values)
    weights = [math.exp(value - peak) for value in values]
    total = sum(weights)
    return [weight / total for weight in weights]


def reference(logits: Sequence[float], pick: Pick) -> int:
    """One token the slow and obvious way: sort everything, cut, add up."""
    opts = pick.options
    row = [float(np.float32(value)) for value in logits]
    for token, amount in opts.logit_bias:
        row[token] += amount
    if opts.penalises:
        recent = pick.history if opts.repeat_last_n < 0 else pick.history[-opts.repeat_last_n :]
        for token, times in Counter(recent).items():
            value = row[token]
            value = value / opts.repeat_penalty if value > 0 else value * opts.repeat_penalty
            row[token] = value - times * opts.frequency_penalty - opts.presence_penalty
    for token in range(len(row)):
        closed = pick.allowed is not None and not pick.allowed[token // 8] >> token % 8 & 1
        if token in pick.banned or closed:
            row[token] = -math.inf
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if opts.greedy:
        return order[0]
    order = order[: opts.top_k] if opts.top_k > 0 else order
    chances = dict(zip(order, softmax([row[token] / opts.temperature for token in order]), strict=True))
    chances = {token: chance for token, chance in chances.items() if chance > 0}
    if opts.typical_p < 1:
        expected = -sum(chance * math.log(chance) for chance in chances.values())
        surprises = {token: abs(-math.log(chance) - expected) for token, chance in chances.items()}
        near = sorted(chances, key=lambda token: surprises[token])
        chances = {token: chances[token] for token in until(near, chances, opts.typical_p)}
        total = sum(chances.values())
        chances = {token: chances[token] / total for token in order if token in chances}
    left = until(list(chances), chances, opts.top_p) if opts.top_p < 1 else list(chances)
    left = [token for token in left if chances[token] >= opts.min_p * chances[left[0]]] or left[:1]
    reach, total = uniform(pick.key, pick.written) * sum(chances[token] for token in left), 0.0
    for token in left:
        total += chances[token]
        if total > reach:
            return token
    return left[-1]


def until(tokens: Sequence[int], chances: dict[int, float], mass: float) -> list[int]:
    taken, total = [], 0.0
    for token in tokens:
        if taken and total >= mass:
            break
        taken.append(token)
        total += chances[token]
    return taken


# Logits that repeat, as those of 16 bits do, and thresholds that fall between sums, not on them.
ROWS = st.integers(1, 200).flatmap(
    lambda size: st.lists(st.integers(-20, 20).map(lambda n: n / 3), min_size=size, max_size=size)
)
OPTIONS = st.builds(
    options,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 1000]),
    top_p=st.sampled_from([0.0, 0.3217, 0.9173, 1.0]),
    min_p=st.sampled_from([0.0, 0.0613, 0.5171, 1.0]),
    typical_p=st.sampled_from([0.0, 0.2713, 0.9391, 1.0]),
    repeat_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(ROWS, OPTIONS, st.integers(0, 2**64 - 1), st.data()), min_size=1, max_size=4))
def test_it_equals_the_slow_and_obvious_way_in_any_company(cases: list) -> None:
    size = max(len(row) for row, *_ in cases)
    tokens = st.integers(0, size - 1)
    rows, picks = [], []
    for row, opts, key, data in cases:
        rows.append([*row, *[-30.0] * (size - len(row))])
        bias = data.draw(st.dictionaries(tokens, st.sampled_from([-3.3, 2.1]), max_size=3))
        opts = options(
            **{name: getattr(opts, name) for name in opts.__slots__ if name != "logit_bias"},
            logit_bias=tuple(bias.items()),
        )
        banned = data.draw(st.frozensets(tokens, max_size=min(3, size - 1)))
        free = [token for token in range(size) if token not in banned]
        mask = data.draw(st.none() | st.frozensets(st.sampled_from(free), min_size=1))
        allowed = None if mask is None else packed(mask, size)
        history = data.draw(st.lists(tokens, max_size=70))
        picks.append(Pick(0, opts, key, data.draw(st.integers(0, 50)), history, (), banned, allowed))
    choices = sampled(rows, picks)
    for row, one, choice in zip(rows, picks, choices, strict=True):
        assert choice.tokens == (reference(row, one),)
        assert sampled([row], [one])[0].tokens == choice.tokens


def packed(tokens: Sequence[int] | frozenset[int], size: int) -> bytes:
    mask = bytearray(-(-size // 8))
    for token in tokens:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


@pytest.mark.parametrize("top_k", [0, 40, 300])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.95, 0.0), (1.0, 0.02)])
def test_large_vocabularies_are_cut_without_a_difference(top_k: int, top_p: float, min_p: float) -> None:
    for spread, dtype in ((0.5, torch.float32), (3.0, torch.bfloat16)):
        row = (torch.randn(6000, generator=torch.Generator().manual_seed(3)) * spread).to(dtype)
        for written in range(4):
            one = pick(key=9, written=written, top_k=top_k, top_p=top_p, min_p=min_p)
            choice = Sampler().sample(row.unsqueeze(0), [one], [0])[0]
            assert choice.tokens == (reference(row.tolist(), one),)


def chi_square(counts: Counter[int], expected: dict[int, float]) -> float:
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    return sum((counts[token] - share * total) ** 2 / (share * total) for token, share in expected.items())


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_p": 0.85}, [1, 2]),
        ({"min_p": 0.1}, [1, 2, 3]),
        ({"top_k": 4, "temperature": 3.0}, [0, 1, 2, 3]),
        ({"banned": frozenset({1})}, [0, 2, 3, 4]),
        ({"allowed": packed([0, 1, 4], 5)}, [0, 1, 4]),
    ],
)
def test_draws_follow_the_probabilities(changes: dict, left: list[int]) -> None:
    heat = changes.get("temperature", 1.0)
    shares = dict(zip(left, softmax([LOGITS[token] / heat for token in left]), strict=True))
    # With 4 degrees of freedom it exceeds 18.5 once in a thousand; the key is fixed, so the outcome is too.
    assert chi_square(drawn(DRAWS, key=3, **changes), shares) < 18.5


def test_draws_of_many_keys_follow_the_probabilities_too() -> None:
    picks = [pick(key=key) for key in range(DRAWS)]
    choices = Sampler().sample(torch.tensor([LOGITS]), picks, [0] * len(picks))
    counts = Counter(choice.tokens[0] for choice in choices)
    assert chi_square(counts, dict(enumerate(softmax(LOGITS)))) < 18.5


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert drawn(20, temperature=0) == {1: 20}
    assert drawn(5, [1.0, 7.0, 7.0, 7.0], temperature=0) == {1: 5}


def test_typical_sampling_leaves_out_the_too_likely() -> None:
    row = [math.log(share) for share in (0.4, *[0.06] * 10)]
    assert set(drawn(400, row, typical_p=0.27)) == {1, 2, 3, 4, 5}
    assert 0 in drawn(400, row, typical_p=0.999)


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-12])
def test_a_temperature_that_single_precision_cannot_divide_by_takes_the_likeliest(temperature: float) -> None:
    assert drawn(5, [1.0, 7.0, 6.999, 7.0], temperature=temperature) == {1: 5}


def test_temperature_comes_before_top_p() -> None:
    assert set(drawn(top_p=0.5, temperature=10.0)) > {1, 2}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"repeat_penalty": 2.0}, [0.0, 1.5, 2.0, 1.0, -2.0]),
        ({"presence_penalty": 0.5}, [0.0, 2.5, 2.0, 1.0, -1.5]),
        ({"frequency_penalty": 0.5}, [0.0, 2.0, 2.0, 1.0, -1.5]),
        ({"logit_bias": ((3, 4.0), (3, 1.0), (99, 5.0))}, [0.0, 3.0, 2.0, 6.0, -1.0]),
        ({"repeat_penalty": 2.0, "repeat_last_n": 1}, [0.0, 1.5, 2.0, 1.0, -1.0]),
        ({"repeat_penalty": 2.0, "repeat_last_n": 0}, LOGITS),
    ],
)
def test_edits_weigh_what_was_said(changes: dict, expected: list[float]) -> None:
    logits = torch.tensor([LOGITS])
    shares = dict(enumerate(softmax(expected)))
    picks = [pick(key=3, written=at, history=[1, 4, 1], **changes) for at in range(DRAWS)]
    counts = Counter(choice.tokens[0] for choice in Sampler().sample(logits, picks, [0] * DRAWS))
    assert chi_square(counts, shares) < 18.5
    assert logits.tolist() == [LOGITS]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_drafts_never_change_the_outcome(data: st.DataObject) -> None:
    size, count = 12, data.draw(st.integers(1, 5))
    rows = data.draw(
        st.lists(st.lists(st.integers(-6, 6).map(float), min_size=size, max_size=size), min_size=count, max_size=count)
    )
    opts = data.draw(OPTIONS)
    history = data.draw(st.lists(st.integers(0, size - 1), max_size=6))
    key = data.draw(st.integers(0, 2**64 - 1))
    alone: list[int] = []  # position by position, as without speculation
    for at, row in enumerate(rows):
        one = Pick(0, opts, key, 4 + at, [*history, *alone])
        alone.extend(sampled([row], [one])[0].tokens)
    drafts = tuple(
        token if data.draw(st.integers(0, 3)) else data.draw(st.integers(0, size - 1)) for token in alone[:-1]
    )
    choice = sampled(rows, [Pick(0, opts, key, 4, history, drafts)])[0]
    right = next((at for at, (one, two) in enumerate(zip(drafts, alone, strict=False)) if one != two), len(drafts))
    assert choice.tokens == tuple(alone[: right + 1])


def test_rows_of_drafts_lie_behind_one_another_and_several_samples_share_a_row() -> None:
    rows = [[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]]
    drafting = pick(temperature=0, drafts=(1, 0))
    twins = [pick(key=key) for key in range(40)]
    first, *rest = Sampler().sample(torch.tensor([*rows, [0.0, 0.0]]), [drafting, *twins], [0, *[3] * 40])
    assert first.tokens == (1, 0, 1)
    assert {choice.tokens for choice in rest} == {(0,), (1,)}


def test_a_mask_is_of_the_first_position_alone() -> None:
    choice = sampled([[0.0, 9.0], [9.0, 0.0]], [pick(temperature=0, drafts=(1,), allowed=b"\x02")])[0]
    assert choice.tokens == (1,)


def test_a_mask_shorter_than_the_vocabulary_closes_the_rest() -> None:
    row = [0.0] * 16 + [9.0]
    assert sampled([row], [pick(temperature=0, allowed=b"\x00\x80")])[0].tokens == (15,)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("edits", [{}, {"banned": frozenset({0})}, {"top_k": 2}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_fail_their_pick_alone(temperature: float, edits: dict, bad: float) -> None:
    rows = [[0.0, 5.0, 1.0], [1.0, bad, 2.0], [-math.inf] * 3]
    picks = [pick(temperature=0), pick(temperature=temperature, **edits), pick(temperature=temperature, **edits)]
    good, broken, empty = sampled(rows, picks)
    assert good.tokens == (1,) and not good.error
    assert broken == Choice(error=NOT_FINITE_TEXT)
    assert empty == Choice(error=NOTHING_ALLOWED_TEXT)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_pick_that_may_choose_nothing_says_so(temperature: float) -> None:
    picks = [pick(temperature=temperature, allowed=b"\x00"), pick(temperature=temperature, banned=frozenset(range(5)))]
    assert {choice.error for choice in sampled([LOGITS, LOGITS], picks)} == {NOTHING_ALLOWED_TEXT}


def test_a_draft_whose_successor_fails_is_still_taken() -> None:
    choice = sampled([[0.0, 9.0], [math.nan, 0.0]], [pick(temperature=0, drafts=(1,))])[0]
    assert choice == Choice((1,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_of_the_models_own_distribution(dtype: torch.dtype, temperature: float) -> None:
    own = {"temperature": temperature, "logit_bias": ((4, 50.0),), "drafts": (4,)}
    two, none, chosen = sampled(
        [LOGITS] * 4, [pick(logprobs=2, **own), pick(temperature=0), pick(logprobs=0, temperature=0)], dtype
    )
    shares = [math.log(share) for share in softmax(LOGITS)]
    assert two.tokens == (4, 4) and len(two.logprobs) == 2
    for told in two.logprobs:
        assert (told.chosen.id, told.chosen.logprob) == (4, pytest.approx(shares[4], abs=1e-5))
        assert [(top.id, pytest.approx(top.logprob, abs=1e-5)) for top in told.top] == [(1, shares[1]), (2, shares[2])]
    assert none.logprobs == ()
    assert chosen.logprobs[0].chosen.logprob == pytest.approx(shares[1], abs=1e-5) and chosen.logprobs[0].top == ()


def test_more_logprobs_than_tokens_are_all_tokens() -> None:
    assert len(sampled([LOGITS], [pick(logprobs=50)])[0].logprobs[0].top) == 5


def test_nothing_asked_is_nothing_answered() -> None:
    assert Sampler().sample(torch.zeros(0, 5), [], []) == ()
