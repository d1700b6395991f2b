"""The picture of a plan: its numbers add up, and it fits wherever it is shown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_node.plan_picture import (
    MEANINGS,
    NARROWEST,
    PLAIN_SIGNS,
    SIGNS,
    Picture,
    bar_lines,
    cells_of,
    plan_lines,
    record_of,
    shortened,
    size_text,
    table_lines,
    wrapped,
)
from gpu_node.split import SplitWish, Strategy, plan_split
from gpu_node.split_plan import Demand, DoesNotFit, LayerSize, ModelShape, Pace, PlannedDevice, Sizes

MB = 1_000_000
SHAPE = ModelShape("smollm", (LayerSize(10 * MB, 1000),) * 8, 4 * MB, 4 * MB, 64, 1000)
DEMAND = Demand(1024, 4, step_tokens=16)


def picture(
    *megabytes: float, demand: Demand = DEMAND, pace: Pace | None = None, strategy: Strategy = "balanced"
) -> Picture:
    devices = tuple(
        PlannedDevice(f"cpu:{number}", int(size * MB), pace=pace, stated=True) for number, size in enumerate(megabytes)
    )
    return Picture(plan_split(SHAPE, devices, {}, demand, SplitWish(strategy)), Sizes(SHAPE, demand), devices)


def test_the_whole_picture() -> None:
    assert plan_lines(picture(80, 40, 5), 80) == [
        "smollm   8 layers   88 MB of weights   context 1,024 x 4",
        "",
        "DEVICE  LAYERS  SHARE  WEIGHTS    CACHE  TOKENS  USED       OF",
        "cpu:0   0-5       75%    64 MB    16 MB   2,658  100%    80 MB",
        "cpu:1   6-7       25%    24 MB  5.31 MB   7,967   73%    40 MB",
        "cpu:2   -           -        -        -       -     -  5.00 MB",
        "",
        "cpu:0  " + "█" * 47 + "▓" * 12 + "▒░  80 MB",
        "cpu:1  " + "█" * 17 + "▓" * 4 + "▒" + "░" * 8 + "  40 MB",
        "cpu:2  ░░░░  5.00 MB",
        "       █ weights   ▓ cache   ▒ step   ░ free",
        "",
        "2 stages (balanced), room for 2 contexts of 1,024 tokens, of 4 wanted: no single",
        "device holds it with its cache.",
    ]


def test_a_split_in_numbers() -> None:
    found = record_of(picture(80, 40, 5))
    assert json.loads(json.dumps(found)) == found
    assert (found["fits"], found["model"], found["layers"], found["capacity_tokens"]) == (True, "smollm", 8, 2656)
    devices = found["devices"]
    assert sum(one["layers"] for one in devices) == 8
    assert sum(one["share"] for one in devices) == pytest.approx(1)
    assert sum(one["weights_bytes"] for one in devices) == 88 * MB
    assert sum(one["cache_bytes"] for one in devices) == 8 * 1000 * 2656
    for one in devices:
        used = one["weights_bytes"] + one["cache_bytes"] + one["step_bytes"]
        assert used + one["free_bytes"] == one["usable_bytes"] == one["total_bytes"]
    idle = devices[-1]
    assert (idle["device"], idle["layers"], idle["first_layer"]) == ("cpu:2", 0, None)


def test_seconds_are_told_only_where_they_were_measured() -> None:
    shown = picture(60, 60, pace=Pace(0.01, 0.02), strategy="profiled")
    told, untold = record_of(shown), record_of(shown, measured=False)
    assert told["latency_seconds"] == pytest.approx(0.1)
    assert sum(one["time_share"] for one in told["devices"]) == pytest.approx(1)
    assert (untold["latency_seconds"], untold["period_seconds"]) == (None, None)
    assert [one["seconds"] for one in untold["devices"]] == [None, None]
    assert [one["time_share"] for one in untold["devices"]] == [one["time_share"] for one in told["devices"]]
    assert "TIME" in table_lines(shown, 80)[0]
    assert "TIME" not in table_lines(picture(60, 60), 80)[0]


megabytes = st.floats(0.1, 20_000)


@settings(max_examples=60, deadline=None)
@given(st.lists(megabytes, min_size=1, max_size=4), st.integers(0, 200), st.booleans(), st.integers(1, 50))
def test_every_line_fits_the_width_and_every_device_is_shown(
    sizes: list[float], width: int, plain: bool, sequences: int
) -> None:
    try:
        shown = picture(*sizes, demand=Demand(1024, sequences, step_tokens=16))
    except DoesNotFit:
        return
    lines = plan_lines(shown, width, plain)
    assert max(map(len, lines)) <= max(width, NARROWEST)
    assert all(line == line.rstrip() for line in lines)
    for number in range(len(sizes)):
        assert sum(line.startswith(f"cpu:{number} ") for line in lines) == 2  # its row and its bar
    if plain:
        assert all(line.isascii() for line in lines)


def test_bars_share_one_scale() -> None:
    large, small = (line.split("  ")[1] for line in bar_lines(picture(200, 100), 120)[:2])
    assert len(small) == pytest.approx(len(large) / 2, abs=1)
    assert set(large + small) <= set(SIGNS)
    plain = [line.split("  ")[1] for line in bar_lines(picture(200, 100), 120, plain=True)[:2]]
    assert [bar.translate(str.maketrans(SIGNS, PLAIN_SIGNS)) for bar in (large, small)] == plain


def test_only_signs_that_are_seen_are_explained() -> None:
    legend = bar_lines(picture(200), 120)[-1]
    assert [meaning for meaning in MEANINGS if meaning in legend] == ["weights", "cache", "step", "free"]


@given(st.lists(st.integers(0, 10**12), min_size=5, max_size=5), st.integers(1, 200))
def test_cells_add_up_and_show_all_there_is(parts: list[int], cells: int) -> None:
    counts = cells_of(parts, cells)
    assert sum(counts) == (cells if any(parts) else 0)
    assert all(count == 0 for part, count in zip(parts, counts, strict=True) if not part)
    if cells >= len(parts):
        assert all(count for part, count in zip(parts, counts, strict=True) if part)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.00 MB"), (8_192_000, "8.19 MB"), (231 * MB, "231 MB"), (1_500 * MB, "1.50 GB"), (192_000 * MB, "192 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_long_texts() -> None:
    assert wrapped("a bb ccc", 4) == ["a bb", "ccc"]
    assert (shortened("abcdef", 6), shortened("abcdef", 5), shortened("abcdef", 1)) == ("abcdef", "abc..", ".")


def test_what_is_wanted_and_not_kept_is_said() -> None:
    said = " ".join(plan_lines(picture(110), 200))
    assert "room for 2 contexts of 1,024 tokens, of 4 wanted: one device holds all of it." in said
    assert "room for 1 context of 1,024 tokens:" in plan_lines(picture(110, demand=Demand(1024)), 200)[-1]
