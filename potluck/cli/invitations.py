"""The invitations of `potluck phones`: make one, see which are open, withdraw them. Speaks to the gateway.

An invitation is named by the figures that the list shows, or the first of them; its token is shown once, when made.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from potluck.cli.connection import KeyFile, Url
from potluck.cli.gateway_calls import AsJson, ask, print_json, records, text
from potluck.cli.qr_code import columns_of, drawn
from potluck.cli.reports import reporting
from potluck.cli.safe_text import one_line
from potluck.cli.text_table import lines_of, terminal_width
from potluck.errors import Misuse

SHORTEST_ID = 4  # fewer figures name an invitation by accident
PATH = "/api/phones/invitations"


def invite(
    minutes: Annotated[
        float, typer.Option("--minutes", "-m", min=1, max=1440, help="How long the invitation is good for.")
    ] = 15.0,
    model: Annotated[str | None, typer.Option("--model", help="The model that the phone is set up with.")] = None,
    qr: Annotated[bool | None, typer.Option("--qr/--no-qr", help="A QR code; by default at a terminal.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Make a line that brings one phone in. Paste it into Termux there, or scan its QR code."""
    wish = {"minutes": minutes} | ({"model": model} if model else {})
    told = ask(url, key_file, "POST", "/api/phones/invite", wish)
    if as_json:
        print_json(told)
        return
    command = one_line(str(told.get("command", "")))
    if qr or (qr is None and sys.stdout.isatty()):
        typer.echo(code_for(command, sys.stdout.encoding, terminal_width()))
    for line in invitation_lines(told, minutes):
        typer.echo(line)


def invitations(as_json: AsJson = False, url: Url = None, key_file: KeyFile = None) -> None:
    """Show the invitations that are open."""
    told = ask(url, key_file, "GET", PATH)
    if as_json:
        print_json(told)
        return
    found = records(told.get("invitations"))
    if not found:
        typer.echo("no invitation is open; make one with: potluck phones invite")
        return
    for line in table(found):
        typer.echo(line)


def withdraw(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[INVITATION]...", help="Its id, or the first four or more figures of it."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Void invitations that are open. No phone joins with them any more; phones that have joined stay."""
    with reporting():
        if every == bool(names):
            raise Misuse("say which: the ids that potluck phones invitations shows, or --all")
        found = records(ask(url, key_file, "GET", PATH).get("invitations"))
        meant = found if every else [chosen_invitation(found, name) for name in dict.fromkeys(names or ())]
    if not meant:
        typer.echo("no invitation is open")
    for one in meant:
        ask(url, key_file, "DELETE", f"{PATH}/{quote(str(one.get('id', '')), safe='')}")
        typer.echo(f"{text(one.get('id'))} is withdrawn")


def chosen_invitation(found: Sequence[Mapping[str, Any]], wanted: str) -> Mapping[str, Any]:
    """The one that is meant. Raises Misuse where none is, or several are."""
    folded = wanted.strip().lower()
    meant = [one for one in found if len(folded) >= SHORTEST_ID and str(one.get("id", "")).startswith(folded)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise Misuse(f"'{wanted}' means {len(meant)} invitations; give more figures of the id")
    open_ones = ", ".join(text(one.get("id")) for one in found[:10])
    raise Misuse(f"no invitation '{wanted}' is open" + (f"; open are: {open_ones}" if open_ones else ""))


def code_for(command: str, encoding: str | None, width: int | None) -> str:
    """The QR code, or where it does not fit, words instead."""
    columns = columns_of(command, encoding)
    if width is not None and columns > width:
        return f"(For the QR code this terminal has to be {columns} columns wide.)"
    return drawn(command, encoding)


def invitation_lines(told: Mapping[str, Any], minutes: float) -> list[str]:
    """The line to type, until when, the same by other addresses of the gateway, and how to take it back."""
    lines = ["In Termux on the phone:", "", f"  {one_line(str(told.get('command', '')))}", ""]
    lines.append(f"Good for one phone and {minutes:g} minutes. The phone must be in the gateway's network.")
    if told.get("id"):
        lines.append(f"To take it back: potluck phones withdraw {text(told['id'])}")
    others = records(told.get("links"))[1:]
    if others:
        lines.append("Other addresses of the gateway, if that one is in another network than the phone:")
        lines += [f"  {text(one.get('url'))}  ({text(one.get('interface'))})" for one in others]
    return lines


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("INVITATION", "GOOD FOR", "SCRIPT", "MODEL")
    rows = [
        (
            text(one.get("id")),
            left_words(one.get("seconds_left")),
            "fetched" if one.get("fetched") else "-",
            text(one.get("model")),
        )
        for one in found
    ]
    return lines_of([head, *rows])


def left_words(seconds: object) -> str:
    """As one counts down: rounded down, so that nobody comes late."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return "-"
    hours, rest = divmod(max(0, int(seconds)), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min" if rest >= 60 else f"{rest} s"
