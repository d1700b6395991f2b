"""`potluck serve` and `potluck node`: the two programs of the project, started in this process.

They are imported when they are started and never before. Flags that are not ours go on to the program.
"""

from __future__ import annotations

import errno
import os
import runpy
import socket
import sys
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from potluck.cli.reports import FAILED, reporting, tell_error
from potluck.errors import Misuse, PotluckError

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
        if not _listens_elsewhere(context.args):
            check_place(host, port)
    # The gateway reads its settings itself, and has to find there what the flags said.
    os.environ.update(POTLUCK_HOST=host, POTLUCK_PORT=str(port))
    if devices is not None:
        os.environ.update(POTLUCK_EMBEDDED_DEVICES=devices)
    _run_server(arguments)


def _run_server(arguments: list[str]) -> None:
    """Ends with what uvicorn makes of it. It takes Ctrl-C itself as soon as it has begun."""
    import uvicorn.main

    import server.main  # noqa: F401  # what takes longest, and uvicorn would call Ctrl-C meanwhile a failure

    try:
        uvicorn.main.main(args=arguments, prog_name="potluck serve")
    except OSError as error:  # what its flags name: certificates, a socket's folder
        refusal = PotluckError(f"the server cannot start: {error.strerror or error}")
        refusal.hint = "do the files exist that the flags name (--ssl-certfile, --ssl-keyfile, the folder of --uds)?"
        tell_error(refusal)
        raise typer.Exit(FAILED) from error


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
    alone = ["--workers", "1"]  # whatever WEB_CONCURRENCY says
    return ["server:app", "--host", host, "--port", str(port), *speed, *quiet, *alone, *others]


def _listens_elsewhere(others: list[str]) -> bool:
    """On a socket in the file system, or on one that somebody else has opened."""
    return any(argument.partition("=")[0] in ("--uds", "--fd") for argument in others)


def check_place(host: str, port: int) -> None:
    """Raises `PotluckError` where nothing can listen there. uvicorn learns it when everything else has been started."""
    problems = []
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter of a name that no name can be: too long, or with empty parts
        raise _cannot_listen(host, port, error) from error
    for family, kind, protocol, _, address in places:
        try:
            _bind_once(socket.socket(family, kind, protocol), address)
        except OSError as error:
            problems.append(error)
    # A name may have one address of a kind that this machine lacks, and is good for the others then.
    taken = [problem for problem in problems if problem.errno == errno.EADDRINUSE]
    if taken or len(problems) == len(places):
        raise _cannot_listen(host, port, (taken or problems)[0])


def _bind_once(probe: socket.socket, address: Any) -> None:
    """As the server does: IPv6 alone, and a port that rests after its last connection counts as free."""
    with probe:
        if probe.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _cannot_listen(host: str, port: int, reason: OSError | UnicodeError) -> PotluckError:
    why = (reason.strerror if isinstance(reason, OSError) else None) or reason
    error = PotluckError(f"cannot listen on {host} port {port}: {why}")
    error.hint = "stop what runs there, or choose another place with --host and --port"
    return error


def _must_be_there(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise Misuse(f"this installation lacks {' and '.join(missing)}; install the whole project")
