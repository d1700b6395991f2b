"""`potluck models`: which model suits a phone, which phone has what, and a model pulled onto phones.

`recommend` needs no gateway; the others speak to one. Text from phones is made harmless before it is shown.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potluck.cli.connection import KeyFile, Url
from potluck.cli.gateway_calls import ask, print_json, records, text, told
from potluck.cli.pull_progress import Bars, Lines, Phones, size_text
from potluck.cli.reports import FAILED, STOPPED, reporting
from potluck.cli.safe_text import one_line
from potluck.cli.text_table import lines_of
from potluck.errors import Misuse, UnexpectedAnswer

if TYPE_CHECKING:
    from potluck.model_advice import Advice, Chip

PULL_PATH = "/api/models/pull"
SILENT_SECONDS = 660.0  # twice as long as the gateway bears the silence of a phone, and some more
LEAST_WIDTH = 20  # columns that names are folded into

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
    """Say which model suits a phone with so much memory; without --ram, show the tables by memory and by chip."""
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
        lines += ["", *chip_table(known)]
    if chip and known is None:
        names = ", ".join(one.name for one in CHIPS)
        lines += ["", f"! no measurement of '{one_line(chip)}' is known; there are some of {names}"]
    for line in lines:
        typer.echo(line)


@app.command("list")
def listed(as_json: AsJson = False, url: Url = None, key_file: KeyFile = None) -> None:
    """Show which node has which model, and which is in memory."""
    answer = ask(url, key_file, "GET", "/api/models")
    if as_json:
        print_json(answer)
        return
    models = held_models(answer)
    if not models:
        typer.echo("no node has a model; pull one with: potluck models pull NAME --all")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in [*(model_table(models, width) if models else ()), *model_remarks(models, answer)]:
        typer.echo(line)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="Its name in Ollama's library, such as qwen2.5:1.5b.")],
    everywhere: Annotated[bool, typer.Option("--all", help="Onto every phone that is not drained.")] = False,
    nodes: Annotated[list[str] | None, typer.Option("--node", "-n", help="Onto this one; may be repeated.")] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=64, help="How many phones load at a time.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="The gateway's own lines, as JSON.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Pull a model onto phones; each shows how far it is. Ctrl-C stops it, what has come is kept on the phones."""
    with reporting():
        if everywhere == bool(nodes):
            raise Misuse("say where to: --all, or --node NAME once or more")
    where: dict[str, Any] = {"nodes": nodes} if nodes else {"all": True}
    body = {"model": model, "at_once": at_once, **where}
    with reporting():
        try:
            phones = _shown(url, key_file, body, as_json)
        except KeyboardInterrupt:
            typer.echo("stopped; the phones keep what they have, and the same command goes on there", err=True)
            raise typer.Exit(STOPPED) from None
        if phones.summary is None:
            raise UnexpectedAnswer("the gateway did not tell how the pull ended")
    if not as_json:
        typer.echo(phones.last_line())
    if phones.failed:
        typer.echo(f"! {len(phones.failed)} failed: {', '.join(phones.failed)}", err=True)
        raise typer.Exit(FAILED)


def _shown(url: str | None, key_file: Path | None, body: Mapping[str, Any], as_json: bool) -> Phones:
    """Show the pull as it goes. Raises PotluckError."""
    from rich.console import Console

    from potluck.refusals import refusal

    phones = Phones()
    with (
        closing(told(url, key_file, PULL_PATH, body, SILENT_SECONDS)) as lines,
        Bars(Console(highlight=False)) if sys.stdout.isatty() and not as_json else Lines(typer.echo) as view,
    ):
        for record in lines:
            if "error" in record and "node" not in record:
                raise refusal({"message": str(record["error"])})
            phone = phones.take(record)
            if as_json:
                typer.echo(json.dumps(record, ensure_ascii=False))
            elif phone is not None:
                view.show(phone)
    return phones


def held_models(answer: Mapping[str, Any]) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Each model with the nodes that have it; what a GPU node could merely fetch is left out."""
    found = []
    for model in records(answer.get("models")):
        copies = {text(one.get("node")): one for one in records(model.get("nodes")) if one.get("available", True)}
        if copies:
            found.append((text(model.get("name")), copies))
    return found


def model_table(models: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], width: int | None) -> list[str]:
    """A column for each node; where these do not fit the width, the nodes' names in one, or below the model."""
    nodes = list(dict.fromkeys(node for _, copies in models for node in copies))
    rows = [("MODEL", "SIZE", *nodes)]
    for name, copies in models:
        rows.append((name, _size(copies), *(_held(copies.get(node)) for node in nodes)))
    lines = lines_of(rows)
    if width is None or max(map(len, lines)) <= width:
        return lines
    rows, lists = [("MODEL", "SIZE", "IN MEMORY OF", "ALSO ON")], []
    for name, copies in models:
        loaded = ", ".join(node for node, copy in copies.items() if copy.get("loaded"))
        others = ", ".join(node for node, copy in copies.items() if not copy.get("loaded"))
        rows.append((name, _size(copies), loaded or "-", others or "-"))
        lists += [
            f"{name}  {_size(copies)}",
            *_folded("in memory of", loaded, width),
            *_folded("also on", others, width),
        ]
    lines = lines_of(rows)
    return lines if max(map(len, lines)) <= width else lists


def _folded(what: str, nodes: str, width: int) -> list[str]:
    """The names over as many rows as they need, none of which a terminal would break in the middle of a word."""
    if not nodes:
        return []
    return wrap(
        f"{what} {nodes}",
        max(width, LEAST_WIDTH),
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def model_remarks(
    models: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], answer: Mapping[str, Any]
) -> list[str]:
    """Which copies differ under one name, and who did not answer."""
    lines = []
    for name, copies in models:
        digests = {str(copy["digest"]) for copy in copies.values() if copy.get("digest")}
        if len(digests) > 1:
            lines.append(f"! {name} is not the same everywhere; potluck models pull {name} --all brings the newest")
    silent = records(answer.get("silent"))
    return lines + [f"! {text(one.get('node'))} did not answer: {text(one.get('error'))}" for one in silent]


def _size(copies: Mapping[str, Mapping[str, Any]]) -> str:
    sizes = [copy["size_bytes"] for copy in copies.values() if isinstance(copy.get("size_bytes"), int)]
    return size_text(max(sizes)) if any(sizes) else "-"


def _held(copy: Mapping[str, Any] | None) -> str:
    return "-" if copy is None else "in memory" if copy.get("loaded") else "yes"


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
    others = f"Also fit: {', '.join(advice.others)}.  " if advice.others else ""
    lines.append(f"{others}Set up with: potluck phones invite --model {advice.model}")
    return lines


def ram_table(advice: Advice | None) -> list[str]:
    from potluck.model_advice import RAM_LINES

    rows = [
        (f"{line.ram_gb} GB", line.model, f"{line.download_mb} MB", ", ".join(line.others))
        for line in RAM_LINES
        if advice is None or line.ram_gb <= advice.line.ram_gb
    ]
    return lines_of([("RAM", "MODEL", "DOWNLOAD", "OTHERS THAT FIT"), *rows])


def chip_table(chip: Chip | None) -> list[str]:
    """What was measured on this chip, else on all."""
    from potluck.model_advice import CHIPS

    rows = [
        (each.name, one.model, f"{one.tokens_per_second:g}", one.engine, one.source)
        for each in ([chip] if chip is not None else CHIPS)
        for one in each.measured
    ]
    return lines_of([("CHIP", "MODEL", "TOK/S", "PROGRAM", "SOURCE"), *rows])


def _record(advice: Advice | None) -> dict[str, Any]:
    from potluck.model_advice import CHIPS, RAM_LINES

    if advice is None:
        return {"by_ram": [asdict(line) for line in RAM_LINES], "by_chip": [asdict(chip) for chip in CHIPS]}
    return {
        "model": advice.model,
        "download_mb": advice.taken.download_mb,
        "others": list(advice.others),
        "largest_that_fits": advice.line.model,
        "chip": None if advice.chip is None else asdict(advice.chip),
        "expected_tokens_per_second": None if advice.expected is None else [round(one, 1) for one in advice.expected],
    }
