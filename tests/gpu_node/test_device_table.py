"""What events make of a node's devices, each case by itself. All of them at random: `test_device_table_events`."""

from __future__ import annotations

import pytest

from gpu_node.device_changes import (
    Add,
    Ask,
    Event,
    Hold,
    Lose,
    Recover,
    Refuse,
    Remove,
    Resize,
    See,
    Wait,
    after,
)
from gpu_node.device_losses import LOSS_WINDOW_SECONDS, MOST_LOSSES, PAUSES_SECONDS
from gpu_node.device_table import MOST_GONE, DeviceTable, Happening, listed
from gpu_node.devices import MOST_DEVICES, Device, parse_devices
from gpu_node.errors import RequestError, UsageError

MIB = 1 << 20


def table_of(text: str, joins: bool = False) -> DeviceTable:
    return listed(parse_devices(text), 0.0, joins)[0]


def play(table: DeviceTable, *events: Event, at: float = 1.0) -> DeviceTable:
    for event in events:
        table, _ = after(table, event, at)
    return table


def happened(table: DeviceTable, event: Event, at: float = 1.0) -> list[tuple[str, str]]:
    return [(one.device, one.what) for one in after(table, event, at)[1]]


def refusal(table: DeviceTable, event: Event) -> str:
    with pytest.raises(RequestError) as caught:
        after(table, event, 1.0)
    return f"{caught.value.status} {caught.value}"


def states(table: DeviceTable) -> dict[str, str]:
    return {one.name: one.state for one in table.devices}


def holding(table: DeviceTable, model: str = "m", **bytes_of: int) -> DeviceTable:
    return play(table, Hold(model, tuple((name.replace("_", ":"), size) for name, size in bytes_of.items())))


def test_a_start_lists_its_devices() -> None:
    table, told = listed(parse_devices("cpu:64MiB@0.5,cuda:0"), 3.0)
    assert states(table) == {"cpu:0": "present", "cuda:0": "present"}
    assert [one.since for one in table.devices] == [3.0, 3.0]
    assert told == (
        Happening("cpu:0", "listed", "67 MB at 0.5 of its speed"),
        Happening("cuda:0", "listed", "whatever is free"),
    )


def test_a_removed_device_drains_first() -> None:
    table = holding(table_of("cpu:64MiB,cpu:64MiB"), cpu_0=MIB, cpu_1=MIB)
    table = holding(table, "other", cpu_1=MIB)
    assert happened(table, Remove("cpu:1")) == [("cpu:1", "leaving")]
    leaving = play(table, Remove("cpu:1"))
    assert [one.name for one in leaving.present] == ["cpu:0"]
    still = holding(leaving, cpu_0=2 * MIB)
    assert states(still)["cpu:1"] == "leaving"  # the other model is still there
    assert happened(still, Hold("other")) == [("cpu:1", "left")]
    assert states(play(still, Hold("other")))["cpu:1"] == "gone"


def test_one_that_nobody_uses_leaves_at_once() -> None:
    table = play(table_of("cpu:64MiB,cpu:64MiB"), Remove("cpu:0"))
    assert states(table) == {"cpu:0": "gone", "cpu:1": "present"}
    assert "409 cpu:0 has left already" in refusal(table, Remove("cpu:0"))


def test_a_refused_removal_is_undone_unless_it_is_forced() -> None:
    table = play(holding(table_of("cpu:64MiB,cpu:64MiB"), cpu_0=MIB), Remove("cpu:0"))
    back = play(table, Refuse("cpu:0", "the rest is too small"))
    assert (states(back)["cpu:0"], back.named("cpu:0").reason) == ("present", "the rest is too small")
    forced = play(table, Remove("cpu:0", force=True))
    assert forced.epoch > table.epoch  # whoever plans is to look again
    assert happened(forced, Refuse("cpu:0", "too small")) == [("cpu:0", "refused"), ("cpu:0", "left")]


def test_a_removal_can_be_taken_back() -> None:
    table = play(holding(table_of("cpu:64MiB,cpu:64MiB"), cpu_0=MIB), Remove("cpu:0", force=True), Ask("cpu:0"))
    assert states(table)["cpu:0"] == "present"
    assert not table.named("cpu:0").forced


def test_the_last_device_stays() -> None:
    table = table_of("cpu:64MiB,cpu:64MiB")
    assert "409 cpu:0 is the last device" in refusal(play(table, Remove("cpu:1")), Remove("cpu:0"))
    lost = play(table, Lose("cpu:1", "killed"))
    assert "the last device" in refusal(lost, Remove("cpu:0", force=True))
    assert states(play(lost, Remove("cpu:1")))["cpu:1"] == "gone"  # it computes nothing anyway
    assert "404 there is no device cpu:7 here; there are cpu:0, cpu:1" in refusal(table, Remove("cpu:7"))


def test_a_lost_device_is_tried_again_after_a_growing_pause() -> None:
    table, now, pauses = table_of("cpu:64MiB,cpu:64MiB"), 100.0, []
    for _ in range(MOST_LOSSES - 1):
        table, _ = after(table, Lose("cpu:0", "killed"), now)
        until = table.named("cpu:0").until
        assert until is not None
        pauses.append(until - now)
        assert states(play(table, Wait(), at=until - 0.01))["cpu:0"] == "lost"
        now = until
        table = play(table, Wait(), at=now)
        assert states(table)["cpu:0"] == "present"
    assert pauses == [*PAUSES_SECONDS, PAUSES_SECONDS[-1]]
    table = play(table, Lose("cpu:0", "killed"), at=now)
    assert table.named("cpu:0").until is None
    assert states(play(table, Wait(), at=now + 1e6))["cpu:0"] == "lost"
    asked = play(table, Ask("cpu:0"), Lose("cpu:0", "killed"), at=now)
    assert asked.named("cpu:0").until == now + PAUSES_SECONDS[0]  # a person begins anew


def test_losses_of_long_ago_do_not_count() -> None:
    table = table_of("cpu:64MiB,cpu:64MiB")
    for turn in range(3 * MOST_LOSSES):
        table = play(table, Lose("cpu:0", "killed"), Recover("cpu:0"), at=turn * LOSS_WINDOW_SECONDS)
    assert (states(table)["cpu:0"], table.named("cpu:0").losses) == ("present", 3 * MOST_LOSSES)


def test_one_loss_counts_once() -> None:
    table = play(table_of("cpu:64MiB,cpu:64MiB"), Lose("cpu:0", "killed"))
    assert after(table, Lose("cpu:0", "so says another model"), 2.0) == (table, ())
    assert after(table, Lose("cpu:9", "long gone"), 2.0) == (table, ())


def test_who_dies_while_leaving_has_left() -> None:
    table = play(holding(table_of("cpu:64MiB,cpu:64MiB"), cpu_0=MIB), Remove("cpu:0"))
    assert happened(table, Lose("cpu:0", "killed")) == [("cpu:0", "lost"), ("cpu:0", "left")]


def test_a_budget_grows_at_once_and_shrinks_when_a_plan_has_made_room() -> None:
    table = holding(table_of("cpu:64MiB,cpu:64MiB"), cpu_0=40 * MIB)
    assert play(table, Resize("cpu:0", 50 * MIB)).named("cpu:0").device.budget_bytes == 50 * MIB
    asked = play(table, Resize("cpu:0", 30 * MIB))
    one = asked.named("cpu:0")
    assert (one.device.budget_bytes, one.wanted_bytes) == (64 * MIB, 30 * MIB)
    assert asked.present[0].budget_bytes == 30 * MIB  # plans are made for what is wanted
    assert holding(asked, cpu_0=31 * MIB).named("cpu:0").wanted_bytes == 30 * MIB
    done = holding(asked, cpu_0=30 * MIB).named("cpu:0")
    assert (done.device.budget_bytes, done.wanted_bytes) == (30 * MIB, None)
    refused = play(asked, Refuse("cpu:0", "no plan")).named("cpu:0")
    assert (refused.device.budget_bytes, refused.wanted_bytes, refused.reason) == (64 * MIB, None, "no plan")
    died = play(asked, Lose("cpu:0", "killed")).named("cpu:0")
    assert (died.device.budget_bytes, died.wanted_bytes) == (30 * MIB, None)


def test_no_budget_is_promised_twice() -> None:
    table = holding(table_of("cpu:64MiB,cpu:64MiB"), cpu_0=40 * MIB)
    room = table.cpu_room(200 * MIB)
    assert room == (200 - 24 - 64) * MIB  # what is held is not available any more
    said = refusal(table, Add(parse_devices("cpu:113MiB")[0], 200 * MIB))
    assert said == (
        "409 118 MB of main memory are not free: 210 MB are available, "
        "and budgets of other devices may still fill 92 MB of them"
    )
    added = play(table, Add(parse_devices("cpu:112MiB")[0], 200 * MIB))
    assert [one.name for one in added.present] == ["cpu:0", "cpu:1", "cpu:2"]
    assert "are not free" in refusal(added, Resize("cpu:1", 65 * MIB, 200 * MIB))
    assert play(table, Resize("cpu:1", 176 * MIB, 200 * MIB)).present[1].budget_bytes == 176 * MIB


def test_names_of_budgets_are_not_used_again() -> None:
    table = play(table_of("cpu:64MiB,cpu:64MiB"), Remove("cpu:1"), Add(parse_devices("cpu:32MiB")[0]))
    assert states(table) == {"cpu:0": "present", "cpu:1": "gone", "cpu:2": "present"}
    back = play(table, Ask("cpu:1"))
    assert states(back)["cpu:1"] == "present"
    assert "409 cpu:1 is present already" in refusal(back, Ask("cpu:1"))
    assert "are not free" in refusal(table, Ask("cpu:1", 65 * MIB))


def test_a_number_is_not_used_again_when_its_device_is_forgotten() -> None:
    table = table_of("cpu:1MiB")
    for _ in range(MOST_GONE + 2):
        table = play(table, Add(Device("", "cpu", 0, MIB)))
    for at, name in enumerate(reversed([one.name for one in table.present[1:]])):  # the last one first
        table = play(table, Remove(name), at=float(at))
    assert f"cpu:{MOST_GONE + 3}" in states(play(table, Add(Device("", "cpu", 0, MIB))))


def test_what_was_of_no_use_has_one_once_it_is_held() -> None:
    table = play(table_of("cpu:64MiB,cpu:64MiB"), Refuse("cpu:1", "no use for it"))
    assert table.named("cpu:1").reason == "no use for it"
    assert play(table, Hold("m", (("cpu:1", 5),))).named("cpu:1").reason == ""


def test_memory_of_a_card_belongs_to_one_device() -> None:
    table = table_of("cuda:0,cpu:64MiB")
    assert "409 cuda:0 (present) has the memory of cuda:0" in refusal(table, Add(parse_devices("cuda:0:1GiB")[0]))
    gone = play(table, Remove("cuda:0"))
    halves = play(gone, Add(parse_devices("cuda:0:1GiB")[0]), Add(parse_devices("cuda:0:2GiB")[0]))
    assert [(one.name, one.budget_bytes) for one in halves.present] == [
        ("cuda:0", 1 << 30), ("cpu:0", 64 * MIB), ("cuda:0.1", 2 << 30),
    ]  # fmt: skip
    with_whole = table_of("cpu,cuda:1")
    assert "cpu:0 (present) has the memory of cpu" in refusal(with_whole, Add(parse_devices("cpu:1GiB")[0]))


def test_a_cpu_needs_a_budget() -> None:
    assert 'as in "cpu:1GiB"' in refusal(table_of("cuda:0"), Add(parse_devices("cpu")[0]))


def test_sizes_that_hold_nothing() -> None:
    with pytest.raises(UsageError, match="write a size with its unit"):
        after(table_of("cpu:64MiB"), Resize("cpu:0", 5), 1.0)
    lost = play(table_of("cpu:64MiB,cpu:64MiB"), Lose("cpu:0", "killed"))
    assert "409 cpu:0 is lost" in refusal(lost, Resize("cpu:0", 5 * MIB))


def see(*cards: str) -> See:
    return See((("cpu", 500), *((card, 1000) for card in cards)))


def test_a_card_that_vanishes_is_lost_and_comes_back_with_the_probe() -> None:
    table = play(table_of("cuda:0,cuda:1,cpu:64MiB"), see("cuda:0", "cuda:1"))
    assert [one.free_bytes for one in table.devices] == [1000, 1000, 500]
    once = play(table, see("cuda:0"))
    assert states(once)["cuda:1"] == "present"  # a driver may stumble once
    twice = play(once, see("cuda:0"), at=50.0)
    assert states(twice) == {"cuda:0": "present", "cuda:1": "lost", "cpu:0": "present"}
    assert states(play(twice, Wait(), at=1e6))["cuda:1"] == "lost"
    assert "409 cuda:1 cannot come back: this machine does not show it any more" in refusal(twice, Ask("cuda:1"))
    assert happened(twice, see("cuda:0", "cuda:1")) == [("cuda:1", "joined")]


def test_the_worker_of_a_pulled_card_may_notice_first() -> None:
    table = play(table_of("cuda:0,cpu:64MiB"), see("cuda:0"), Lose("cuda:0", "its worker died"), see(), see())
    assert (table.named("cuda:0").until, table.named("cuda:0").losses) == (None, 1)
    assert states(play(table, see("cuda:0"))) == {"cuda:0": "present", "cpu:0": "present"}


def test_a_card_that_comes_and_goes_stays_out_until_it_is_asked_for() -> None:
    table = table_of("cuda:0,cpu:64MiB")
    for _ in range(MOST_LOSSES):
        table = play(table, see("cuda:0"), see(), see())
    table = play(table, see("cuda:0"))
    assert states(table)["cuda:0"] == "lost"
    assert states(play(table, Ask("cuda:0")))["cuda:0"] == "present"


def test_cards_that_no_probe_has_seen_are_not_missed() -> None:
    table = play(table_of("xpu:0,cuda:0,cpu:64MiB"), see(), see(), see())
    assert set(states(table).values()) == {"present"}


def test_new_cards_join_where_the_list_is_open() -> None:
    closed, opened = table_of("cuda:0"), table_of("cuda:0", joins=True)
    assert states(play(closed, see("cuda:0", "cuda:1"))) == {"cuda:0": "present"}
    joined = play(opened, see("cuda:0", "cuda:1", "nonsense", "npu:0"))
    assert states(joined) == {"cuda:0": "present", "cuda:1": "present"}
    removed = play(joined, Remove("cuda:1"), see("cuda:0", "cuda:1"))
    assert states(removed)["cuda:1"] == "gone"  # a person's word stands


def test_the_list_is_bounded() -> None:
    table = table_of("cpu:1MiB")
    for _ in range(MOST_GONE + 5):
        table = play(table, Add(Device("", "cpu", 0, MIB)))
        table = play(table, Remove(table.present[-1].name))
    assert len(table.devices) == 1 + MOST_GONE
    for _ in range(MOST_DEVICES - 1):
        table = play(table, Add(Device("", "cpu", 0, MIB)))
    assert "409 there are 64 devices already" in refusal(table, Add(Device("", "cpu", 0, MIB)))
    assert "64 devices" in refusal(table, Ask(next(one.name for one in table.devices if one.state == "gone")))


def test_only_what_concerns_plans_counts_as_a_new_epoch() -> None:
    table = table_of("cuda:0,cpu:64MiB")
    same: list[Event] = [see("cuda:0"), Wait(), Hold("m", (("cpu:0", 5),)), Refuse("cpu:0", "no use for it")]
    other: list[Event] = [Remove("cpu:0"), Resize("cpu:0", 5 * MIB), Lose("cpu:0", "x"), Add(Device("", "cpu", 0, MIB))]
    assert {play(table, event).epoch for event in same} == {table.epoch}
    assert {play(table, event).epoch for event in other} == {table.epoch + 1}
