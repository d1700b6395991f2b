"""Which model for which phone: the table is the one of the set-up script and of the page, and the advice follows it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from potluck.model_advice import (
    BITS,
    CHIPS,
    OTHER_DOWNLOADS_MB,
    RAM_LINES,
    READABLE_TOKENS_PER_SECOND,
    Chip,
    Measurement,
    chip_named,
    line_for,
    recommend,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "phone_setup" / "phone_setup.sh"
PAGE = (ROOT / "docs" / "phones.md").read_text(encoding="utf-8")


def rows_under(head: str) -> list[list[str]]:
    """The cells of the page's table with this head."""
    table = PAGE.partition(f"{head}\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_table_by_ram_is_that_of_the_set_up_script() -> None:
    found = re.search(r"^readonly RAM_TABLE='(.*?)'$", SCRIPT.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    mine = [
        f"{one.ram_gb}|{one.below_mb}|{one.model}|{one.download_mb}|{one.largest_millions}|{', '.join(one.others)}"
        for one in RAM_LINES
    ]
    assert found[1].splitlines() == mine


def test_the_table_by_ram_is_that_of_the_page() -> None:
    mine = [
        [f"{one.ram_gb} GB", f"`{one.model}`", f"{one.download_mb} MB", ", ".join(f"`{other}`" for other in one.others)]
        for one in RAM_LINES
    ]
    assert rows_under("| RAM | model | download | others that fit |") == mine


def test_the_table_by_chip_is_that_of_the_page() -> None:
    mine = [
        [
            chip.name,
            ", ".join(f"`{code}`" for code in chip.codes),
            one.model,
            f"{one.tokens_per_second:g}",
            one.engine,
            one.source,
        ]
        for chip in CHIPS
        for one in chip.measured
    ]
    assert rows_under("| chip | known as | model | tokens/s | with | source |") == mine


def test_the_script_takes_the_same_line_for_every_memory() -> None:
    memories = [1000, 2599, 2600, 3299, 3300, 4999, 5000, 6999, 7000, 10499, 10500, 16000]
    asked = "\n".join(f"ram_line {memory}" for memory in memories)
    done = subprocess.run(
        ["bash", "-c", f'POTLUCK_SOURCED=yes; . "$1" || exit 1\n{asked}', "bash", str(SCRIPT)],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    models = [line.split("|")[2] for line in done.stdout.splitlines()]
    assert models == [line_for(memory / 1000).model for memory in memories]


@pytest.mark.parametrize(
    ("ram", "model"),
    [(1, "smollm2:135m"), (2, "smollm2:135m"), (3, "qwen2.5:0.5b"), (4, "gemma3:1b"), (6, "qwen2.5:1.5b"),
     (8, "llama3.2:3b"), (12, "qwen2.5:7b"), (16, "qwen2.5:7b"), (24, "qwen2.5:7b")],
)  # fmt: skip
def test_memory_decides_where_the_chip_is_not_known(ram: float, model: str) -> None:
    advice = recommend(ram)
    assert advice.model == advice.line.model == model
    assert advice.expected is None


def test_no_model_is_named_that_is_larger_than_half_of_the_memory() -> None:
    downloads = {line.model: line.download_mb for line in RAM_LINES} | OTHER_DOWNLOADS_MB
    for tenths in range(10, 650):
        advice = recommend(tenths / 10)
        assert all(downloads[name] <= tenths * 50 for name in (advice.model, *advice.others)), tenths
    assert recommend(1).others == () and recommend(2).others == ("smollm2:360m",)


def test_the_tables_lines_fit_what_they_promise() -> None:
    assert all(line.millions <= line.largest_millions for line in RAM_LINES)
    assert [line.ram_gb for line in RAM_LINES] == sorted({line.ram_gb for line in RAM_LINES})
    assert [line.millions for line in RAM_LINES] == sorted(line.millions for line in RAM_LINES)


@pytest.mark.parametrize(
    ("words", "name"),
    [("SM8550", "Snapdragon 8 Gen 2"), ("sm8550-ab", "Snapdragon 8 Gen 2"), ("kalama", "Snapdragon 8 Gen 2"),
     ("Qualcomm Snapdragon 8 Gen 3", "Snapdragon 8 Gen 3"), ("google tensor g2", "Tensor G2"), ("GS101", "Tensor G1"),
     ("Qualcomm SM8650", "Snapdragon 8 Gen 3"), ("Snapdragon 8 Gen 2 for Galaxy", "Snapdragon 8 Gen 2"),
     ("Snapdragon 8 Elite Gen 5", "Snapdragon 8 Elite Gen 5"), ("S5E9945", "Exynos 2400")],
)  # fmt: skip
def test_a_chip_is_known_by_code_and_by_name(words: str, name: str) -> None:
    chip = chip_named(words)
    assert chip is not None and chip.name == name


@pytest.mark.parametrize(
    "words", ["", "SM6375", "Snapdragon", "Gen 2", "Tensor", "Tensor G20", "Snapdragon 8s Gen 3", "xsm8550", "-"]
)
def test_a_chip_that_nobody_measured_is_none(words: str) -> None:
    assert chip_named(words) is None


def chip(*speeds: float) -> Chip:
    return Chip("x", ("x",), tuple(Measurement("e", "m", 1000, speed, "s") for speed in speeds))


def test_a_slow_chip_gets_a_smaller_model_and_a_fast_one_what_fits() -> None:
    slow = recommend(8, chip(8.0))  # 3.2 billion parameters at 2.5 tokens/s, 1.54 at 5.2
    assert (slow.model, slow.line.model) == ("qwen2.5:1.5b", "llama3.2:3b")
    assert slow.expected is not None and slow.expected[0] >= READABLE_TOKENS_PER_SECOND
    assert recommend(8, chip(40.0)).model == "llama3.2:3b"
    assert recommend(8, chip(0.1)).model == RAM_LINES[0].model  # nothing is fast enough there


def test_the_expected_speed_spans_the_measurements_and_goes_with_the_size() -> None:
    expected = recommend(4, chip(10.0, 30.0)).expected
    assert expected == (10.0, 30.0)  # gemma3:1b is as large as what was measured
    eight_bits = Measurement("e", "m", 1000, 10.0, "s", bits=8)
    assert eight_bits.expected(1000) == 10.0 * 8 / BITS
