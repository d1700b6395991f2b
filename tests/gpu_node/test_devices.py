"""The list of devices: what is read, what is refused with a sentence, and what a planner gets of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_node.devices import (
    KINDS,
    LEAST_BUDGET_BYTES,
    LEAST_SPEED,
    LOCAL_LINK,
    MOST_DEVICES,
    REFERENCE,
    Device,
    DeviceProfile,
    device_text,
    local_links,
    parse_devices,
    planned_devices,
)
from gpu_node.errors import UsageError
from gpu_node.split import SplitWish, plan_split
from gpu_node.split_plan import GRAPH_BYTES, Demand, LayerSize, ModelShape

GIB = 1 << 30
SHAPE = ModelShape("m", (LayerSize(100_000_000, 1000),) * 6, 40_000_000, 50_000_000, 64, 1000)


def test_budgets_of_a_cpu_and_a_card() -> None:
    assert parse_devices("cpu:2GiB@1.0, CPU:1GiB@0.5 ,cuda:0") == (
        Device("cpu:0", "cpu", 0, 2 * GIB, 1.0),
        Device("cpu:1", "cpu", 1, GIB, 0.5),
        Device("cuda:0", "cuda", 0),
    )


def test_cards_by_their_own_number_and_their_parts() -> None:
    devices = parse_devices("cuda:1:16GB,rocm:1:1GB,cuda:1:8GB@0.25,mps,xpu:0")
    assert [device.name for device in devices] == ["cuda:1.0", "rocm:1", "cuda:1.1", "mps:0", "xpu:0"]
    assert [device.card for device in devices] == ["cuda:1", "rocm:1", "cuda:1", "mps:0", "xpu:0"]
    assert devices[2].budget_bytes == 8_000_000_000 and devices[2].speed == 0.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is written like"),
        (" ", "is written like"),
        ("cpu:1GiB,", "before and after each comma"),
        ("gpu:0", '"gpu:0" names no device: the kinds are cpu, cuda'),
        ("2GiB", "names no device"),
        ("cuda", "write cuda:0, or cuda:0:16GiB"),
        ("cuda:16GiB", "write cuda:0"),
        ("cuda@0.5", "write cuda:0"),
        ("cuda:-1", "does not say which one"),
        ("cuda:0:1GiB:2", "too many parts"),
        ("cpu:1GiB:2", "write cpu:2GiB@1.0"),
        ("cpu:2", "has 2 bytes, which hold nothing"),
        ("cpu:lots", '"lots" is no size'),
        ("cpu:-1GiB", "is no size"),
        ("cpu:" + "9" * 400 + "TB", "cpu:"),
        ("cpu:1GiB@", "has no speed behind its @"),
        ("cpu:1GiB@fast", "has no speed"),
        ("cpu:1GiB@0", "0.5 takes twice as long as 1"),
        ("cpu:1GiB@-1", "has no speed"),
        ("cpu:1GiB@1.5", "has no speed"),
        ("cpu:1GiB@nan", "has no speed"),
        ("cpu:1GiB@inf", "has no speed"),
        ("cpu,cpu", "cpu is listed 2 times: state how much memory each part has, as in cpu:2GiB"),
        ("cpu:1GiB,cpu", "cpu is listed 2 times"),
        ("cuda:0,cuda:0:1GiB", "cuda:0 is listed 2 times"),
        (",".join(["cpu:1GiB"] * (MOST_DEVICES + 1)), "are too many"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_devices(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="cpudaxmsr:@,0123456789.GMiB -", max_size=40))
def test_any_text_is_devices_or_a_sentence(text: str) -> None:
    try:
        devices = parse_devices(text)
    except UsageError:
        return
    assert parse_devices(device_text(devices)) == devices


budgets = st.integers(LEAST_BUDGET_BYTES, 1 << 45)
speeds = st.none() | st.floats(LEAST_SPEED, 1)
entries = st.builds(
    lambda kind, number, budget, speed: (
        kind
        + ("" if kind in ("cpu", "mps") else f":{number}")
        + f":{budget}"
        + ("" if speed is None else f"@{speed!r}")
    ),
    st.sampled_from(KINDS),
    st.integers(0, 3),
    budgets,
    speeds,
)


@given(st.lists(entries, min_size=1, max_size=8))
def test_every_list_has_its_entries_in_order_under_unique_names_and_is_written_as_it_was_read(texts: list[str]) -> None:
    devices = parse_devices(",".join(texts))
    assert len({device.name for device in devices}) == len(devices) == len(texts)
    assert [device.kind for device in devices] == [text.partition(":")[0] for text in texts]
    cpus = [device.name for device in devices if device.kind == "cpu"]
    assert cpus == [f"cpu:{number}" for number in range(len(cpus))]
    assert parse_devices(device_text(devices)) == devices


def test_a_budget_is_used_whole_and_what_is_free_only_in_part() -> None:
    stated, free, card = planned_devices(
        parse_devices("rocm:0:9GB,cpu,cuda:0"), {"cpu": 10**9, "cuda:0": 10**10}, SHAPE
    )
    assert stated.usable_bytes == 9 * 10**9 - GRAPH_BYTES
    assert (free.free_bytes, free.usable_bytes) == (10**9, 9 * 10**8)
    assert card.usable_bytes == 9 * 10**9 - GRAPH_BYTES
    assert [device.pace for device in (stated, free, card)] == [None] * 3


def test_a_device_that_is_not_here_wants_its_memory_stated() -> None:
    with pytest.raises(UsageError, match=r"no cuda:3 here; .* cuda:3:16GiB"):
        planned_devices(parse_devices("cuda:3"), {"cpu": GIB}, SHAPE)
    assert planned_devices(parse_devices("cuda:3:1GiB"), {}, SHAPE)[0].free_bytes == GIB


def test_half_the_speed_takes_twice_as_long_measured_or_not() -> None:
    measured = {"cpu": DeviceProfile(2e9, 0.001)}
    for profiles in (None, measured):
        full, half = planned_devices(parse_devices("cpu:1GiB@1,cpu:1GiB@0.5"), {}, SHAPE, profiles)
        assert full.pace is not None and half.pace is not None
        assert half.pace.layer_seconds == pytest.approx(2 * full.pace.layer_seconds)
        assert half.pace.head_seconds == pytest.approx(2 * full.pace.head_seconds)


def test_a_measured_device_needs_no_stated_speed() -> None:
    (device,) = planned_devices(parse_devices("cpu:1GiB"), {}, SHAPE, {"cpu": DeviceProfile(2e9, 0.001)})
    assert device.pace is not None
    assert device.pace.layer_seconds == pytest.approx(0.051)
    assert device.pace.head_seconds == pytest.approx(0.025)


def test_stated_speeds_decide_a_profiled_plan() -> None:
    devices = parse_devices("cpu:500MB@1,cpu:500MB@0.5")
    planned = planned_devices(devices, {}, SHAPE)
    plan = plan_split(SHAPE, planned, local_links(devices), Demand(16, step_tokens=16), SplitWish("profiled"))
    held = {stage.device: stage.layers for stage in plan.stages}
    assert held["cpu:0"] == 4 and held["cpu:1"] == 2  # no more than four fit
    assert plan.latency_seconds is not None
    pace, hop = REFERENCE.pace(SHAPE), LOCAL_LINK.seconds(64 * 2)
    layers = (4 + 2 * 2) * pace.layer_seconds
    assert plan.latency_seconds == pytest.approx(layers + pace.head_seconds + hop)  # the head is on the quick one


def test_links_go_both_ways_between_all() -> None:
    links = local_links(parse_devices("cpu:1GiB,cpu:1GiB,cuda:0"))
    assert len(links) == 6
    assert links["cuda:0", "cpu:1"] == LOCAL_LINK
