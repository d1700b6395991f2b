"""One call of a command to the gateway: the answer as an object, or a sentence and an exit code.

Shared by the commands about phones and models, whose answers are records to show and not values of the library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potluck.cli.connection import chosen_key, chosen_url
from potluck.cli.reports import reporting
from potluck.cli.safe_text import one_line

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
NO_CONTENT = 204  # done, and there is nothing to say about it

AsJson = Annotated[bool, typer.Option("--json", help="Print the gateway's own answer, as JSON.")]


def ask(
    url: str | None, key_file: Path | None, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The gateway's answer. Ends the command with a sentence where there is none, or a refusal."""
    import httpx

    from potluck.answers import as_record
    from potluck.calls import Call, client_settings
    from potluck.seam import translated

    with reporting():
        gateway = chosen_url(url, os.environ)
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        call = Call(method, path, timeout, lambda value: dict(as_record(value, "an object")), body)
        settings = client_settings(gateway, chosen_key(key_file, os.environ))
        with translated(gateway), httpx.Client(**settings) as client:
            answer = client.request(method, path, json=body, timeout=timeout)
            return {} if answer.status_code == NO_CONTENT else call.read(answer)


def told(
    url: str | None, key_file: Path | None, path: str, body: Mapping[str, Any], silent_seconds: float
) -> Generator[dict[str, Any], None, None]:
    """The objects that a POST gives line by line. Raises PotluckError; closing it closes the connection."""
    import httpx

    from potluck.calls import client_settings
    from potluck.records import LineDecoder, read_line
    from potluck.refusals import read_refusal
    from potluck.seam import translated

    gateway = chosen_url(url, os.environ)
    timeout = httpx.Timeout(silent_seconds, connect=CONNECT_SECONDS)
    settings, lines = client_settings(gateway, chosen_key(key_file, os.environ)), LineDecoder()
    with (
        translated(gateway),
        httpx.Client(**settings) as client,
        client.stream("POST", path, json=body, timeout=timeout) as response,
    ):
        if response.status_code != 200:
            raise read_refusal(response.status_code, response.headers, response.read())
        for chunk in response.iter_bytes():
            for line in lines.receive_data(chunk):
                yield dict(read_line(line))


def records(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """A cell of a table."""
    return one_line(str(value)) if value not in (None, "") else "-"


def print_json(told: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
