"""`potluck discover`: which GPU nodes answer on this machine and its networks. Speaks to them, not to a gateway."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potluck.cli.reports import reporting
from potluck.cli.safe_text import one_line
from potluck.cli.text_table import lines_of
from potluck.errors import Misuse
from transport.tokens import shared_token

if TYPE_CHECKING:
    from transport.found import Found

DEFAULT_PORT = 8766
NOBODY = "No node answers. Does it run, does it listen beyond 127.0.0.1, and may UDP port {port} pass its firewall?"
OTHER_TOKEN = " Nodes that share another token, or none, with this machine are not shown."
NO_TOKEN = " Nodes of a network answer only who shares their token: set POTLUCK_NODE_TOKEN, or name a token file."


def discover(
    hosts: Annotated[
        list[str] | None, typer.Argument(help="Ask these addresses too, for networks where broadcast does not pass.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.05, max=60, help="How long to listen.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Look on this machine only.")] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="UDP port of discovery.")] = DEFAULT_PORT,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File that holds the token. Default: $POTLUCK_NODE_TOKEN, $VRM_API_TOKEN."),
    ] = None,
) -> None:
    """Find GPU nodes: on this machine, and those of its networks that share the token."""
    from transport.beacons import Reach, discover
    from transport.datagrams import numeric

    with reporting():
        token = chosen_token(token_file, os.environ)
        unknown = [host for host in hosts or [] if numeric(host, port) is None]
        if unknown:
            raise Misuse(f"{unknown[0]} is no address: write it in figures, as in 192.168.1.20")
        places = [(host, port) for host in hosts or []]
        reach = Reach(network=not here, port=port)
        try:
            found = asyncio.run(discover(token, seconds=seconds, places=places, reach=reach))
        except OSError as error:
            raise Misuse(f"this machine gives no UDP socket: {error.strerror or error}") from error
    for line in [json.dumps(record_of(one)) for one in found] if as_json else table(found):
        typer.echo(line)
    if not found:
        typer.echo(NOBODY.format(port=port) + (OTHER_TOKEN if token else NO_TOKEN), err=True)
        raise typer.Exit(1)


def chosen_token(token_file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Never from the command line, where everybody on the machine could read it. Raises `Misuse`."""
    if token_file is None:
        return shared_token(environment)
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"cannot read the token from {token_file}: {getattr(error, 'strerror', None) or error}") from error
    if not token:
        raise Misuse(f"the token file {token_file} is empty")
    return token


def record_of(found: Found) -> dict[str, Any]:
    """What programs get."""
    said = found.announcement
    return {
        "id": found.node_id,
        "name": found.name,
        "addresses": [{"host": each.host, "port": each.port} for each in found.addresses],
        "models": list(said.models),
        "more_models": said.more_models,
        "free_bytes": said.free_bytes,
        "total_bytes": said.total_bytes,
        "load": said.load if isfinite(said.load) else None,
        "token_wanted": said.token_wanted,
        "verified": found.signed,
        "milliseconds": None if found.seconds is None else round(found.seconds * 1000, 1),
    }


def table(found: Sequence[Found]) -> list[str]:
    """What people get: as wide as it has to be."""
    if not found:
        return []
    rows = [("NODE", "ADDRESS", "FREE", "LOAD", "ANSWER", "MODELS"), *map(_row, found)]
    return lines_of(rows)


def _row(found: Found) -> tuple[str, ...]:
    said = found.announcement
    first = found.addresses[0]
    host = f"[{first.host}]" if ":" in first.host else first.host
    models = [one_line(name) for name in said.models]
    return (
        one_line(found.name) + ("" if found.signed or not said.token_wanted else " (wants a token)"),
        one_line(f"{host}:{first.port}"),
        f"{said.free_bytes / 1e9:.1f}/{said.total_bytes / 1e9:.1f} GB",
        f"{said.load:.0%}",
        "-" if found.seconds is None else f"{found.seconds * 1000:.0f} ms",
        ", ".join([*models, "…"] if said.more_models else models) or "-",
    )
