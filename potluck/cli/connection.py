"""Which gateway a command speaks to, and with which key. The only place of this package that reads the environment.

Keys come from the environment or a file, never from the command line, where everybody on the machine could read them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potluck.errors import Misuse

if TYPE_CHECKING:
    from potluck.gateway import Gateway
    from potluck.timeouts import Timeouts

URL_VARIABLE = "POTLUCK_URL"
KEY_VARIABLE = "POTLUCK_API_KEY"

Url = Annotated[
    str | None,
    typer.Option("--url", help=f"Address of the gateway. Default: ${URL_VARIABLE}, else http://127.0.0.1:8000."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"File that holds the API key. Default: the key in ${KEY_VARIABLE}."),
]


def connect(url: str | None, key_file: Path | None, timeouts: Timeouts | None = None) -> Gateway:
    """A client for what the flags and the environment say. Raises `Misuse` for what cannot be meant."""
    from potluck.gateway import Gateway

    return Gateway(chosen_url(url, os.environ), api_key=chosen_key(key_file, os.environ), timeouts=timeouts)


def chosen_url(url: str | None, environment: Mapping[str, str]) -> str:
    """People write `192.168.1.5:8000`; what is missing is added."""
    from potluck.calls import DEFAULT_URL

    chosen = (url or environment.get(URL_VARIABLE) or DEFAULT_URL).strip()
    return chosen if "://" in chosen else f"http://{chosen}"


def chosen_key(key_file: Path | None, environment: Mapping[str, str]) -> str | None:
    if key_file is None:
        return environment.get(KEY_VARIABLE, "").strip() or None
    try:
        key = key_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"cannot read the key from {key_file}: {getattr(error, 'strerror', None) or error}") from error
    if not key:
        raise Misuse(f"the key file {key_file} is empty")
    return key
