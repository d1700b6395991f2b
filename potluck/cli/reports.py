"""How a command ends: its exit code, and one plain sentence (with a hint) on stderr instead of a traceback.

0 done, 1 failed, 2 used wrongly, 130 stopped by Ctrl-C, 141 the reader of a pipe has left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from potluck.cli.safe_text import one_line
from potluck.errors import (
    AnswerCutShort,
    AnswerTimeout,
    GatewayUnreachable,
    KeyRefused,
    Misuse,
    PotluckError,
    QueueFull,
    UnexpectedAnswer,
)

FAILED = 1
USED_WRONGLY = 2
STOPPED = 130  # 128 + SIGINT, as shells have it
READER_LEFT = 141  # 128 + SIGPIPE


@contextmanager
def reporting() -> Iterator[None]:
    """Around a command's work: whatever is expected to go wrong ends it with a sentence and a code."""
    try:
        yield
    except Misuse as error:
        tell_error(error)
        raise typer.Exit(USED_WRONGLY) from error
    except PotluckError as error:
        tell_error(error)
        raise typer.Exit(FAILED) from error
    except BrokenPipeError as error:
        _give_up_stdout()
        raise typer.Exit(READER_LEFT) from error
    except OSError as error:  # a full disk behind stdout: everything else is translated where it happens
        _give_up_stdout()
        typer.echo(f"error: cannot write the answer: {sentence(error.strerror or str(error))}", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(STOPPED) from error


def _give_up_stdout() -> None:
    """Python would flush once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell_error(error: PotluckError) -> None:
    typer.echo(f"error: {sentence(error.message)}", err=True)
    if advice := advice_for(error):
        typer.echo(f"       {advice}", err=True)


def sentence(message: str) -> str:
    text = one_line(message)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def advice_for(error: PotluckError) -> str | None:
    """What to do about it: the gateway's own hint, else what this command knows."""
    if isinstance(error, KeyRefused) and error.code == "unauthorized":  # the gateway's hint speaks of headers
        return "Give the key in the environment variable POTLUCK_API_KEY or with --key-file."
    if error.hint:
        hint = sentence(error.hint)
        return hint[0].upper() + hint[1:]
    match error:
        case GatewayUnreachable():
            return "Start a gateway with: potluck serve. One elsewhere is named with --url or POTLUCK_URL."
        case QueueFull(retry_after_seconds=float() | int() as seconds):
            return f"Try again in {seconds:.0f} s."
        case AnswerCutShort():
            return "What came of the answer is kept; ask again for a whole one."
        case AnswerTimeout():
            return "A node may be loading its model; potluck status shows what the nodes do."
        case UnexpectedAnswer():
            return "Is that address really a Potluck gateway?"
    return None
