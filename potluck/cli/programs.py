"""`potluck serve` and `potluck node`: the two programs of the project, started in this process.

They are imported when they are started and never before. Flags that are not ours go on to the program.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from potluck.cli.reports import reporting
from potluck.errors import Misuse

PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
PASS_ON_WITH_HELP: dict[str, Any] = {**PASS_ON, "help_option_names": []}


def serve(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; 0.0.0.0 opens it to the network.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option("--devices", help='What the model is split over: "cuda:0,cuda:1", "cpu:2GiB@1.0,cpu:1GiB@0.5".'),
    ] = None,
) -> None:
    """Run the gateway here, until Ctrl-C. Other flags go to uvicorn (--log-level, --ssl-keyfile …).

    Without flags it listens where the settings say (HOST, PORT, potluck.toml), else on 127.0.0.1:8000.
    """
    with reporting():
        _must_be_there("server", "uvicorn")
        if devices is not None:
            _check_devices(devices)
        flags = {"host": host, "port": port, "embedded_devices": devices}
        host, port = _listening_place({name: value for name, value in flags.items() if value is not None})
        arguments = server_arguments(host, port, context.args)
    # The gateway reads its settings itself, and has to find there what the flags said.
    os.environ.update(POTLUCK_HOST=host, POTLUCK_PORT=str(port))
    if devices is not None:
        os.environ.update(POTLUCK_EMBEDDED_DEVICES=devices)
    import uvicorn.main

    uvicorn.main.main(args=arguments, prog_name="potluck serve")


def _check_devices(devices: str) -> None:
    """The node would only say so when it is started, in the middle of the gateway's log."""
    _must_be_there("gpu_node")
    from gpu_node.devices import parse_devices
    from gpu_node.errors import UsageError

    try:
        parse_devices(devices)
    except UsageError as error:
        raise Misuse(f"--devices: {error}") from error


def _listening_place(flags: dict[str, Any]) -> tuple[str, int]:
    """The flags first, then what the gateway's own settings say."""
    from server.settings import SettingsError, read_settings

    try:
        settings = read_settings(os.environ, flags)
    except SettingsError as error:
        raise Misuse(str(error)) from error
    return settings.host, settings.port


def node(context: typer.Context) -> None:
    """Run a GPU node here: the model goes on this machine's GPU or CPU. All flags go to gpu_node."""
    with reporting():
        _must_be_there("gpu_node")
    sys.argv[1:] = context.args
    sys.argv[0] = "potluck node"
    runpy.run_module("gpu_node", run_name="__main__", alter_sys=False)


def server_arguments(host: str, port: int, others: list[str]) -> list[str]:
    """uvicorn's command line. One worker: one process keeps one fleet, one queue and one set of counters."""
    for argument in others:
        if not argument.startswith("-"):
            continue
        if argument.partition("=")[0] in ("--workers", "--factory"):
            raise Misuse(f"{argument.partition('=')[0]} cannot be used: the gateway is one process with one queue")
    speed = ["--loop", "uvloop", "--http", "httptools"] if sys.platform != "win32" else []
    quiet = ["--no-access-log"]  # the gateway writes one line a request itself
    return ["server:app", "--host", host, "--port", str(port), *speed, *quiet, *others]


def _must_be_there(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise Misuse(f"this installation lacks {' and '.join(missing)}; install the whole project")
