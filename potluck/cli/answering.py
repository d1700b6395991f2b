"""An answer on its way to stdout: tokens as they come, then how it went.

`tell` keeps what was written whatever happens: a stop or an error leaves the text, and the caller's line ends. Knows
nothing of where the stream comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from potluck.answers import Answer, Queued, Thinking
from potluck.cli.safe_text import for_terminal, one_line

if TYPE_CHECKING:
    from rich.status import Status

    from potluck.streams import Stream


def tell(stream: Stream, *, for_people: bool) -> Answer:
    """Write the tokens of the stream to stdout, and return the whole answer. Closes the stream in every case.

    `for_people` adds what belongs to no answer, on stderr: a sign of life, and what the model thinks.
    """
    on_terminal = sys.stdout.isatty()
    line_open = False
    try:
        with stream, _sign(for_people) as sign:
            for event in stream.events():
                if isinstance(event, Queued):
                    _show_place(sign, event)
                    continue
                if sign is not None:
                    sign.stop()
                    sign = None
                if isinstance(event, Thinking):
                    _show_thought(event, for_people)
                    continue
                sys.stdout.write(for_terminal(event) if on_terminal else event)
                sys.stdout.flush()
                line_open = not event.endswith("\n") if event else line_open
            return stream.answer
    finally:
        if line_open:
            sys.stdout.write("\n")
            sys.stdout.flush()


@contextmanager
def _sign(wanted: bool) -> Iterator[Status | None]:
    """A sign of life on stderr until the first token; only for people, so only on a terminal."""
    if not wanted:
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("[dim]waiting for the first word …[/dim]", spinner="dots") as status:
        yield status


def _show_place(sign: Status | None, event: Queued) -> None:
    if sign is not None:
        sign.update(f"[dim]waiting for a free node, place {event.position} in the queue …[/dim]")


def _show_thought(event: Thinking, for_people: bool) -> None:
    if for_people:
        typer.secho(for_terminal(event.text), err=True, dim=True, nl=False)


def summary(answer: Answer) -> str:
    """One line on how the answer came about."""
    parts = [_who(answer), answer.model, _counted(answer.usage.completion_tokens, "token")]
    if answer.tokens_per_second is not None and not answer.cached:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.timings.first_token_ms is not None and not answer.cached:
        parts.append(f"first token after {seconds(answer.timings.first_token_ms)}")
    if answer.timings.total_ms is not None:
        parts.append(f"{seconds(answer.timings.total_ms)} in all")
    if answer.attempts > 1:
        parts.append(_counted(answer.attempts, "attempt"))
    if answer.done_reason == "length":
        parts.append("stopped at its limit of length")
    return one_line(" · ".join(part for part in parts if part))


def _who(answer: Answer) -> str:
    if answer.cached:
        return "from the cache"
    return " then ".join(share.node for share in answer.nodes) or answer.node


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def seconds(milliseconds: float) -> str:
    value = milliseconds / 1000
    if value < 0.01:
        return "under 0.01 s"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
