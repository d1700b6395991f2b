"""`potluck phones`: look at the fleet's phones and change them; inviting is next door. Speaks to the gateway.

Text from phones is made harmless before it is shown. A phone is named by its id, the beginning of it, or its name; what
fits several is refused, since a wrong phone removed is worse than a word more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from potluck.cli import invitations
from potluck.cli.connection import KeyFile, Url
from potluck.cli.gateway_calls import AsJson, ask, print_json, records, text
from potluck.cli.reports import reporting
from potluck.cli.safe_text import one_line
from potluck.cli.text_table import lines_of, terminal_width
from potluck.errors import Misuse

_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?", re.ASCII)  # what JSON knows too: not nan, inf or 1_000
_JOINED_ID = re.compile(r"[0-9a-f]{32}")
HEAD = ("PHONE", "ID", "STATE", "BATTERY", "HEAT", "SIGNAL", "TOK/S", "MODELS", "ADDRESS")
# How columns give way in a narrow terminal, and what they keep; with 0 they go.
GIVES = (
    ("MODELS", 12), ("ADDRESS", 0), ("SIGNAL", 0), ("PHONE", 12), ("TOK/S", 0), ("MODELS", 0), ("HEAT", 0),
    ("BATTERY", 0), ("ID", 0), ("PHONE", 6),
)  # fmt: skip
SHOWN_OF_ID = 8  # figures: no two phones of a fleet have the same
SHORTEST_ID = 4  # fewer characters of an id name a phone by accident

Phone = Annotated[str, typer.Argument(help="Its name, its id, or the first four or more figures of the id.")]

app = typer.Typer(
    help="Invite phones into the fleet, list, drain, rename and remove them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command()(invitations.invite)
app.command("invitations")(invitations.invitations)
app.command()(invitations.withdraw)


@app.command("list")
def listed(as_json: AsJson = False, url: Url = None, key_file: KeyFile = None) -> None:
    """Show the phones and how they are. A narrow terminal leaves out what is needed least."""
    told = ask(url, key_file, "GET", "/api/phones")
    if as_json:
        print_json(told)
        return
    phones = records(told.get("phones"))
    if not phones:
        typer.echo("no phones yet; invite one with: potluck phones invite")
        return
    for line in [*table(phones, terminal_width()), *remarks(phones)]:
        typer.echo(line)


@app.command()
def drain(phone: Phone, url: Url = None, key_file: KeyFile = None) -> None:
    """Give a phone nothing new; what it is at, it finishes. Lasts until resumed."""
    found = _named(url, key_file, phone)
    told = ask(url, key_file, "POST", f"{_path(found)}/drain")
    rest = told.get("in_flight")
    typer.echo(f"{text(told.get('name'))} gets nothing new" + (f", and finishes {rest} answers" if rest else ""))


@app.command()
def resume(phone: Phone, url: Url = None, key_file: KeyFile = None) -> None:
    """Take a drained phone back into service."""
    told = ask(url, key_file, "POST", f"{_path(_named(url, key_file, phone))}/resume")
    typer.echo(f"{text(told.get('name'))} is in service again")


@app.command()
def rename(
    phone: Phone,
    name: Annotated[str, typer.Argument(help="What it is called from now on.")],
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Call a phone otherwise."""
    told = ask(url, key_file, "PATCH", _path(_named(url, key_file, phone)), {"name": name})
    typer.echo(f"it is called {text(told.get('name'))} now")


@app.command()
def keep(
    phone: Phone,
    warm_up: Annotated[
        list[str] | None,
        typer.Option("--warm-up", "-w", help="Model that it is given before anybody asks; may be repeated; or auto."),
    ] = None,
    no_warm_up: Annotated[bool, typer.Option("--no-warm-up", help="Give it none before somebody asks.")] = False,
    keep_alive: Annotated[
        str | None,
        typer.Option("--keep-alive", "-k", help="How long a model stays: 1h, 300 (seconds), -1 for ever; or auto."),
    ] = None,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Say what a phone holds in memory. And for how long."""
    with reporting():
        wish = kept_wish(warm_up, no_warm_up, keep_alive)
    told = ask(url, key_file, "PATCH", _path(_named(url, key_file, phone)), wish)
    typer.echo(f"{text(told.get('name'))}: {kept_words(told)}")


@app.command()
def remove(
    phone: Phone,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Take a phone out of the fleet. It finishes what it is at, and comes back with a new invitation only."""
    found = _named(url, key_file, phone)
    if not yes and not typer.confirm(f"Remove {text(found.get('name'))} from the fleet?"):
        raise typer.Exit(1)
    ask(url, key_file, "DELETE", _path(found))
    typer.echo(f"{text(found.get('name'))} is removed")


def kept_wish(warm_up: Sequence[str] | None, no_warm_up: bool, keep_alive: str | None) -> dict[str, Any]:
    """The change that is meant. Raises Misuse."""
    if warm_up and no_warm_up:
        raise Misuse("--warm-up and --no-warm-up say the opposite of each other")
    wish: dict[str, Any] = {"warm_up": False} if no_warm_up else {}
    if warm_up:
        wish["warm_up"] = warm_up[0] if len(warm_up) == 1 else list(warm_up)
    if keep_alive is not None:
        wish["keep_alive"] = float(keep_alive) if _NUMBER.fullmatch(keep_alive) else keep_alive
    if not wish:
        raise Misuse("say what it is to keep: --warm-up MODEL, --no-warm-up or --keep-alive TIME")
    return wish


def kept_words(phone: Mapping[str, Any]) -> str:
    """What it keeps in memory, as the gateway tells it."""
    warm_up, keep_alive = phone.get("warm_up"), phone.get("keep_alive")
    match warm_up:
        case False:
            warmed = "given no model before somebody asks"
        case "auto":
            warmed = "warmed as POTLUCK_WARM_UP says"
        case _:
            names = warm_up if isinstance(warm_up, list) else [warm_up]
            warmed = f"warmed with {', '.join(map(text, names))}"
    if keep_alive == "auto":
        return f"{warmed}; keeps a model as long as it likes itself"
    seconds = f"{keep_alive:g} s" if _is_number(keep_alive) else text(keep_alive)
    return f"{warmed}; keeps a model {'for ever' if seconds.startswith('-') else f'for {seconds}'} after a request"


def table(phones: Sequence[Mapping[str, Any]], width: int | None = None) -> list[str]:
    """As wide as it has to be; in a narrower terminal without what is needed least."""
    gives = [(HEAD.index(title), least) for title, least in GIVES]
    return lines_of([HEAD, *map(_row, phones)], width, gives)


def remarks(phones: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why one gets no work though it is there, and what went wrong with those that do not answer."""
    lines = [f"! {text(one.get('name'))} rests: {text(one.get('resting'))}" for one in phones if one.get("resting")]
    silent = [one for one in phones if one.get("status") == "silent" and one.get("last_error")]
    return lines + [f"! {text(one.get('name'))}: {text(one.get('last_error'))}" for one in silent]


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    told = one.get("condition")
    condition: Mapping[str, Any] = told if isinstance(told, dict) else {}
    level, heat = condition.get("battery_percent"), condition.get("temperature_c")
    charging = "+" if condition.get("charging") else ""
    models = one.get("models")
    return (
        text(one.get("name")),
        _short_id(one),
        _state(one),
        "-" if not _is_number(level) else f"{level:.0f}%{charging}",
        "-" if not _is_number(heat) else f"{heat:.0f} C",
        "-" if not _is_number(one.get("signal_dbm")) else f"{one['signal_dbm']:.0f} dBm",
        "-" if not _is_number(one.get("tokens_per_second")) else f"{one['tokens_per_second']:.1f}",
        ", ".join(one_line(str(model)) for model in models) if isinstance(models, list) and models else "-",
        text(one.get("address")),
    )


def _short_id(one: Mapping[str, Any]) -> str:
    """What names it in a command: the beginning of a joined phone's id, or a serial. Addresses have a column."""
    phone_id = text(one.get("id"))
    if phone_id == text(one.get("address")):
        return "-"
    return phone_id[:SHOWN_OF_ID] if _JOINED_ID.fullmatch(phone_id) else phone_id


def _state(one: Mapping[str, Any]) -> str:
    if one.get("drained"):
        return "draining" if one.get("in_flight") else "drained"
    return "resting" if one.get("resting") else text(one.get("status"))


def chosen_phone(phones: Sequence[Mapping[str, Any]], wanted: str) -> Mapping[str, Any]:
    """The one that is meant. Raises Misuse where none is, or several are."""
    folded = wanted.casefold()
    called = [one for one in phones if one.get("name") == wanted]
    called = called or [one for one in phones if str(one.get("name", "")).casefold() == folded]
    # A phone chooses its own first name: one that is called like the beginning of another's id is not meant by it.
    begun = [one for one in phones if len(wanted) >= SHORTEST_ID and str(one.get("id", "")).startswith(wanted)]
    exact = [one for one in phones if one.get("id") == wanted]
    found = exact or [*called, *(one for one in begun if one not in called)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Misuse(
            f"'{wanted}' means {len(found)} phones; name one by its id, which potluck phones list --json shows"
        )
    names = ", ".join(text(one.get("name")) for one in phones[:10])
    raise Misuse(f"there is no phone '{wanted}'" + (f"; there are: {names}" if names else ""))


def _named(url: str | None, key_file: Path | None, wanted: str) -> Mapping[str, Any]:
    phones = records(ask(url, key_file, "GET", "/api/phones").get("phones"))
    with reporting():
        return chosen_phone(phones, wanted)


def _path(phone: Mapping[str, Any]) -> str:
    return f"/api/phones/{quote(str(phone.get('id', '')), safe=':')}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
