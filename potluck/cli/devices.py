"""`potluck devices`: what a GPU node splits its models over, and changing it while it runs. Speaks to the node itself.

Text from the node is made harmless before it is shown. A refusal is one sentence on stderr and exit code 1; nothing is
tried twice, since a wish is no question.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from potluck.cli.connection import KeyFile, chosen_key
from potluck.cli.reports import FAILED, reporting, sentence
from potluck.cli.safe_text import one_line
from potluck.cli.text_table import lines_of
from potluck.errors import Misuse

if TYPE_CHECKING:
    import httpx

DEFAULT_NODE = "http://127.0.0.1:5000"
CONNECT_SECONDS = 5.0
# Of an answer beyond what was to be waited for: a plan is made first.
ANSWER_SECONDS = 30.0
SHOWN_EVENTS = 20

Node = Annotated[str, typer.Option("--node", help="Address of the node.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the node's own answer, as JSON.")]
Wait = Annotated[
    float, typer.Option("--wait", "-w", min=0, max=600, help="Seconds to wait until it is done or refused.")
]
Name = Annotated[str, typer.Argument(help='Its name, as in "cpu:1".')]

app = typer.Typer(
    help="List, add, resize and remove the devices that a GPU node splits its models over, while it runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def listed(
    events: Annotated[bool, typer.Option("--events", help="Show what happened to them, too.")] = False,
    as_json: AsJson = False,
    node: Node = DEFAULT_NODE,
    key_file: KeyFile = None,
) -> None:
    """Show the devices: what they are, how much models hold there, and what is wrong with them."""
    told = _ask(node, key_file, "GET", "/api/devices")
    if as_json:
        _print_json(told)
        return
    devices = _records(told.get("devices"))
    for line in [*table(devices), *remarks(devices), *(event_lines(_records(told.get("events"))) if events else [])]:
        typer.echo(line)


@app.command()
def add(
    device: Annotated[
        str, typer.Argument(help='"cpu:1GiB", "cpu:1GiB@0.5", "cuda:1", or the name of one that was here before.')
    ],
    wait: Wait = 0.0,
    as_json: AsJson = False,
    node: Node = DEFAULT_NODE,
    key_file: KeyFile = None,
) -> None:
    """Add a device, or take back one that was lost, is leaving or was removed; models spread over it by themselves."""
    body = {"name": device} if _is_name(device) else {"device": device}
    told = _ask(node, key_file, "POST", "/api/devices", body, wait)
    _report(told, as_json)


@app.command()
def resize(
    name: Name,
    budget: Annotated[str, typer.Argument(help='How much memory models may have there, as in "512MiB".')],
    wait: Wait = 0.0,
    as_json: AsJson = False,
    node: Node = DEFAULT_NODE,
    key_file: KeyFile = None,
) -> None:
    """Give a device another budget. A smaller one takes effect when a new plan makes do with it."""
    told = _ask(node, key_file, "POST", "/api/devices", {"name": name, "budget": budget}, wait)
    _report(told, as_json)


@app.command()
def remove(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also where the rest cannot hold the models.")] = False,
    wait: Wait = 2.0,
    as_json: AsJson = False,
    node: Node = DEFAULT_NODE,
    key_file: KeyFile = None,
) -> None:
    """Take a device away: models move off it first, and no answer is lost."""
    from urllib.parse import quote

    path = f"/api/devices/{quote(name, safe=':')}" + ("?force=true" if force else "")
    _report(_ask(node, key_file, "DELETE", path, None, wait), as_json)


def table(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """As wide as it has to be."""
    rows = [("DEVICE", "STATE", "BUDGET", "FREE", "SPEED", "HELD", "MODELS"), *map(_row, devices)]
    return lines_of(rows)


def remarks(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a device, or was refused, and when it is tried again."""
    lines = []
    for one in devices:
        parts = [_text(one.get("reason"))] if one.get("reason") else []
        if one.get("wanted_bytes") is not None:
            parts.append(f"{_size(one['wanted_bytes'])} is asked for")
        if one.get("retry_seconds") is not None:
            parts.append(f"it is tried again in {one['retry_seconds']:.0f} s")
        elif one.get("state") == "lost":
            parts.append(f"it comes back when it is asked for: potluck devices add {_text(one.get('device'))}")
        if parts:
            lines.append(f"! {_text(one.get('device'))}: {'; '.join(parts)}")
    return lines


def event_lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The latest last, by the clock on the wall."""
    lines = []
    for one in events[-SHOWN_EVENTS:]:
        at = time.strftime("%H:%M:%S", time.localtime(one.get("at") or 0))
        lines.append(f"{at}  {_text(one.get('device'))} {_text(one.get('what'))}  {_text(one.get('detail'))}".rstrip())
    return lines


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    models = one.get("models") or {}
    speed, budget = one.get("speed"), one.get("budget_bytes")
    return (
        _text(one.get("device")),
        _text(one.get("state")),
        "what is free" if budget is None else _size(budget),
        _size(one.get("free_bytes")),
        "-" if speed is None else f"{speed:g}",
        _size(sum(models.values())) if models else "-",
        ", ".join(map(one_line, models)) or "-",
    )


def _report(told: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(told)
        return
    for line in [*table([told]), *remarks([told])]:
        typer.echo(line)


def _ask(
    node: str, key_file: Path | None, method: str, path: str, body: Any = None, wait: float | None = None
) -> dict[str, Any]:
    """The node's answer. Ends the command with a sentence where there is none, or a refusal."""
    import httpx

    from potluck.calls import client_settings
    from potluck.seam import reason_of

    with reporting():
        url = node if "://" in node else f"http://{node}"
        settings = client_settings(url, chosen_key(key_file, os.environ))
        timeout = httpx.Timeout(ANSWER_SECONDS + (wait or 0.0), connect=CONNECT_SECONDS)
        params = {} if wait is None else {"wait": f"{wait:g}"}
        try:
            with httpx.Client(timeout=timeout, **settings) as client:
                target = httpx.URL(path).copy_merge_params(params)
                reply = client.request(method, target, json=body) if body else client.request(method, target)
        except httpx.TransportError as error:
            _fail(f"no node answers at {url} ({reason_of(error)})", "Start one with: potluck node. Elsewhere: --node.")
        except UnicodeError as error:  # the system's, for a name with an empty part or one that is too long
            raise Misuse(f"'{url}' is no address of a node: that is no name of a host") from error
        return _read(reply, url)


def _read(reply: httpx.Response, url: str) -> dict[str, Any]:
    try:
        told = json.loads(reply.content)
    except (ValueError, RecursionError):
        told = None
    said = told.get("error") if isinstance(told, dict) else None
    if reply.status_code == 401:
        _fail(str(said), "Give the key in the environment variable POTLUCK_API_KEY or with --key-file.")
    if reply.status_code == 404 and "/api/devices" in reply.request.url.path and "/api/devices" in str(said):
        _fail(f"{url} has no list of devices", "That is the gateway perhaps: --node takes the address of a GPU node.")
    if reply.status_code >= 400 and isinstance(said, str):
        if reply.status_code == 400:
            raise Misuse(said)
        _fail(said)
    if not reply.is_success or not isinstance(told, dict):
        _fail(f"{url} does not speak of devices (status {reply.status_code})", "Is that address really a GPU node's?")
    return told


def _fail(message: str, advice: str = "") -> NoReturn:
    typer.echo(f"error: {sentence(message)}", err=True)
    if advice:
        typer.echo(f"       {advice}", err=True)
    raise typer.Exit(FAILED)


def _is_name(text: str) -> bool:
    """`cpu:1` is one that was here; `cuda:1` may be new, and is taken back by adding it. A CPU's number has up to six
    digits: so few bytes are no budget."""
    return re.fullmatch(r"cpu:\d{1,6}|[a-z]+:\d{1,3}\.\d{1,3}", text.strip(), re.ASCII) is not None


def _records(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return one_line(str(value)) if value not in (None, "") else "-"


def _size(size: object) -> str:
    if not isinstance(size, int):
        return "-"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _print_json(told: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
