"""The `potluck` command: its subcommands and what they are called.

Importing this package is cheap, since `potluck --help` is what people try first: a subcommand imports what it needs
(the client, rich, the server, the GPU node) when it runs. Nothing outside imports this package.
"""

from __future__ import annotations

from typing import Annotated

import typer

from potluck.cli import adb, ask, chat, devices, discover, models, phones, plan, programs, status
from potluck.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="potluck",
    help="One private endpoint in front of the phones and GPUs you already own.",
    epilog="Start with: potluck serve. Then, in another terminal: potluck ask 'What is the capital of France?'",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"potluck {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("serve", context_settings=programs.PASS_ON)(programs.serve)
app.command("node", context_settings=programs.PASS_ON_WITH_HELP, add_help_option=False)(programs.node)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.command("status")(status.status)
app.command("discover")(discover.discover)
app.command("plan")(plan.plan)
app.add_typer(devices.app, name="devices")
app.add_typer(phones.app, name="phones")
app.add_typer(models.app, name="models")
app.add_typer(adb.app, name="adb")
