"""`potluck models`: which model suits a phone, which phone has what, and a model pulled onto phones.

`recommend` needs no gateway; the others speak to one. Text from phones is made harmless before it is shown.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potluck.cli.safe_text import one_line

if TYPE_CHECKING:
    from potluck.model_advice import Advice

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

app = typer.Typer(
    help="Which model suits a phone, which phone has what, and models pulled onto phones.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def recommend(
    ram: Annotated[float | None, typer.Option("--ram", min=1, max=64, help="The phone's memory, in GB.")] = None,
    chip: Annotated[
        str | None, typer.Option("--chip", help="Its processor, as SM8550 or 'Snapdragon 8 Gen 2'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which model suits a phone with so much memory; without --ram, show the tables."""
    from potluck.model_advice import CHIPS, chip_named
    from potluck.model_advice import recommend as advice_for

    known = chip_named(chip) if chip else None
    advice = None if ram is None else advice_for(ram, known)
    if as_json:
        typer.echo(json.dumps(_record(advice), ensure_ascii=False, indent=2))
        return
    lines = [] if advice is None else [*advice_lines(advice), ""]
    lines += ram_table(advice)
    if advice is None or (chip and known is None):
        lines += ["", *chip_table()]
    if chip and known is None:
        names = ", ".join(one.name for one in CHIPS)
        lines += ["", f"! no measurement of '{one_line(chip)}' is known; there are some of {names}"]
    for line in lines:
        typer.echo(line)


def advice_lines(advice: Advice) -> list[str]:
    """What to take, how fast it may be and why; last, how to set it up."""
    line, chip = advice.taken, advice.chip
    lines = [f"{advice.model}  ({line.download_mb} MB to download)"]
    if chip is not None and advice.expected is not None:
        low, high = (f"{speed:.0f}" for speed in advice.expected)
        speed = low if low == high else f"{low} to {high}"
        lines.append(f"about {speed} tokens/s on a {chip.name}, by what others measured:")
        lines += [
            f"  {one.tokens_per_second:g} tokens/s  {one.model}, {one.engine} ({one.source})" for one in chip.measured
        ]
    if advice.taken != advice.line:
        lines.append(f"{advice.line.model} would fit the memory too, and be slower than people read.")
    lines.append(f"Also fit: {', '.join(line.others)}.  Set up with: bash phone_setup.sh {advice.model}")
    return lines


def ram_table(advice: Advice | None) -> list[str]:
    from potluck.model_advice import RAM_LINES

    rows = [
        (f"{line.ram_gb} GB", line.model, f"{line.download_mb} MB", ", ".join(line.others))
        for line in RAM_LINES
        if advice is None or line.ram_gb <= advice.line.ram_gb
    ]
    return columns([("RAM", "MODEL", "DOWNLOAD", "OTHERS THAT FIT"), *rows])


def chip_table() -> list[str]:
    from potluck.model_advice import CHIPS

    rows = [
        (chip.name, one.model, f"{one.tokens_per_second:g}", one.engine, one.source)
        for chip in CHIPS
        for one in chip.measured
    ]
    return columns([("CHIP", "MODEL", "TOK/S", "PROGRAM", "SOURCE"), *rows])


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """As wide as each has to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _record(advice: Advice | None) -> dict[str, Any]:
    from potluck.model_advice import CHIPS, RAM_LINES

    if advice is None:
        return {"by_ram": [asdict(line) for line in RAM_LINES], "by_chip": [asdict(chip) for chip in CHIPS]}
    return {
        "model": advice.model,
        "download_mb": advice.taken.download_mb,
        "others": list(advice.taken.others),
        "largest_that_fits": advice.line.model,
        "chip": None if advice.chip is None else asdict(advice.chip),
        "expected_tokens_per_second": None if advice.expected is None else [round(one, 1) for one in advice.expected],
    }
