"""What the measurement of the split computes from its samples, and what it calls reached."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from bench.contenders.potluck_split import Spec
from bench.contenders.protocol import Outcome
from bench.split import ALONE, EIGHT, MANY, ONE, PREFILL, SPARE_SHARE, STAGES, TWO_THREADS, devices, judge, ways
from gpu_node.devices import parse_devices


def figures(stages: float = 95.0, by_pace: float = 110.0, silence: float = 6.0, same: bool = True) -> dict[str, Any]:
    row = {ONE: 100.0, TWO_THREADS: 90.0, STAGES[1]: 100.0, STAGES[2]: stages, STAGES[3]: 1.0}
    plans = {ALONE.name: {"vram": 100.0, "profiled": by_pace}}
    return {
        "ways": {"tokens_per_second": {work.name: row for work in (ALONE, EIGHT, MANY, PREFILL)}},
        "strategies": {word: {"tokens_per_second": plans} for word in ("equal", "half as fast")},
        "kills": [{"silence_seconds": silence, "load_seconds": 2.0, "same": same}],
        "hop_us": {"unix link": 60.0, "unix bare": 30.0},
    }


def missed(**changes: Any) -> list[str]:
    return [target.name for target in judge(figures(**changes)) if not target.reached]


def test_two_stages_are_held_against_the_better_single_device() -> None:
    assert missed() == []
    assert missed(stages=94.0) == [f"{work.name}: two equal stages, share of one device" for work in (EIGHT, MANY)]


def test_profiled_may_lose_nothing_but_noise_and_has_to_win_where_devices_differ() -> None:
    assert missed(by_pace=100.0) == ["decode, 1, half as fast: profiled, share of vram"]
    assert len(missed(by_pace=94.0)) == 2


def test_a_loss_may_take_its_load_and_a_little_more_and_must_change_no_token() -> None:
    assert missed(silence=7.1) == ["silence after a kill, beyond the load"]
    assert missed(same=False) == ["the answers are those of a calm run"]


def test_a_rate_is_that_of_the_time_in_which_all_answers_run() -> None:
    stamps = [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 9.0]]
    assert EIGHT.rate(Outcome(9.0, [], stamps)) == pytest.approx(4 / 2)
    assert PREFILL.rate(Outcome(3.0, [], [[3.0]])) == PREFILL.prompt / 3


def test_prompts_are_new_in_every_round() -> None:
    one, other = EIGHT.load(random.Random("1")), EIGHT.load(random.Random("2"))
    assert (len(one.prompts), set(one.outputs)) == (8, {64})
    assert one.prompts != other.prompts and one == EIGHT.load(random.Random("1"))


def test_budgets_hold_the_model_only_together() -> None:
    need = 1000 << 20
    for stages, name in STAGES.items():
        budgets = [device.budget_bytes or 0 for device in parse_devices(ways(need)[name].devices)]
        assert len(budgets) == stages and sum(budgets) >= need
        assert stages == 1 or sum(budgets[1:]) < need
    assert 2 * SPARE_SHARE > 1 > SPARE_SHARE
    assert devices([1 << 20], [0.5]) == "cpu:1048576@0.5"


def test_the_stages_have_no_more_threads_than_the_device_beside_them() -> None:
    found = ways(1000 << 20)
    assert max(spec.threads for spec in found.values()) == found[TWO_THREADS].threads == 2
    assert found[ONE] == Spec(1), "loaded as nobody splits it"


def test_a_way_is_told_to_its_process_in_words() -> None:
    spec = ways(1000 << 20)[STAGES[2]]
    assert Spec(**json.loads(spec.words())) == spec
