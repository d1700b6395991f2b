"""`potluck status`: the fleet, live. Looks again and again, through restarts of the gateway, until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from potluck.cli.connection import KeyFile, Url, connect
from potluck.cli.reports import reporting
from potluck.cli.safe_text import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from potluck.fleet import Health
    from potluck.gateway import Gateway

# A gateway answers this from memory; whoever watches wants to know soon that it does not.
LOOKUP_SECONDS = 5.0


def status(
    once: Annotated[bool, typer.Option("--once", help="Print it once and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the gateway's own /health once, as JSON.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 1.0,
    url: Url = None,
    key_file: KeyFile = None,
) -> None:
    """Watch the fleet in a live table; Ctrl-C leaves. Without a terminal it is printed once."""
    from potluck.timeouts import Timeouts

    timeouts = Timeouts(connect_seconds=LOOKUP_SECONDS, lookup_seconds=LOOKUP_SECONDS)
    with reporting(), connect(url, key_file, timeouts) as gateway:
        if as_json:
            typer.echo(json.dumps(dict(gateway.health().record), ensure_ascii=False, indent=2))
        elif once or not sys.stdout.isatty():
            _print_once(gateway)
        else:
            _watch(gateway, interval)


def _print_once(gateway: Gateway) -> None:
    from rich.console import Console

    from potluck.cli.fleet_view import Canvas, fleet_view

    console = Console(highlight=False)
    canvas = Canvas(console.width, plain=console.options.ascii_only)
    console.print(fleet_view(gateway.health(), one_line(gateway.url), canvas))


def _watch(gateway: Gateway, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    watch = Watch(gateway.health, one_line(gateway.url))
    console = Console(highlight=False)
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                watch.look()
                live.update(watch.view(console), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:  # the usual way to leave, so not a failure
        return


class Watch:
    """What the last looks found out; a gateway that is gone for a while does not end it."""

    def __init__(self, look: Callable[[], Health], url: str) -> None:
        self._look = look
        self._url = url
        self.health: Health | None = None
        self.trouble: str | None = None

    def look(self) -> None:
        """Ask once. A refusal (a wrong key) is raised: asking again would not mend it."""
        from potluck.errors import AnswerTimeout, GatewayFailed, GatewayUnreachable, UnexpectedAnswer

        try:
            self.health = self._look()
            self.trouble = None
        except (GatewayUnreachable, AnswerTimeout, GatewayFailed, UnexpectedAnswer) as error:
            self.trouble = error.message

    def view(self, console: Console) -> RenderableType:
        from potluck.cli.fleet_view import Canvas, fleet_view, no_gateway_view

        if self.health is None:
            return no_gateway_view(self._url, self.trouble or "not asked yet")
        canvas = Canvas(console.width, console.height, console.options.ascii_only)
        return fleet_view(self.health, self._url, canvas, trouble=self.trouble)
