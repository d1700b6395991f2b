"""What a command line asks: the prompt from words and stdin, the options from flags. Pure but for reading stdin.

Knows nothing of the gateway's answer; which option names exist is the gateway's to say.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from potluck.errors import Misuse

STDIN = "-"


def question(prompt: str | None, piped: str | None) -> str:
    """Piped text comes first and the prompt after it, so that one asks about a file: `potluck ask 'Why?' < log`."""
    said = "" if prompt is None or prompt == STDIN else prompt
    parts = [part for part in ((piped or "").rstrip(), said) if part.strip()]
    if not parts:
        raise Misuse("there is nothing to ask; give a prompt, or pipe one in")
    return "\n\n".join(parts)


def read_piped(wanted: bool) -> str | None:
    """All of stdin where it is a pipe or a file (or asked for by `-`); None where it is a terminal or /dev/null."""
    if not wanted and not _is_piped():
        return None
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Misuse("what comes from stdin is no UTF-8 text") from error


def _is_piped() -> bool:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return False
    try:
        mode = stat.S_IFMT(os.fstat(sys.stdin.fileno()).st_mode)
    except OSError:  # a stand-in without a descriptor
        return True
    return mode in (stat.S_IFIFO, stat.S_IFREG)


def parse_options(pairs: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """`name=value` pairs, values as JSON where they are JSON. A name that is also given as a flag is refused."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        name = name.strip()
        if not sign or not name:
            raise Misuse(f"an option looks like temperature=0.2, not {pair!r}")
        if name in options or flags.get(name) is not None:
            raise Misuse(f"{name} is given twice")
        options[name] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
