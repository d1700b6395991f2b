"""What `scripts/run` has to know before it starts the server: address, what to print, whether a model is wanted.

`start_plan.py [flags of uvicorn]` prints four words: host, port, the address to tell people (or -), yes or no. Reads
flags, environment and potluck.toml as the gateway does, and says at once when the port is taken or none, when more
processes are asked for than the one that there may be, or when a list of devices is none, which the gateway itself
would learn from the node's end only.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_fleet import is_free

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gpu_node.devices import parse_devices  # noqa: E402
from gpu_node.errors import UsageError  # noqa: E402

HIGHEST_PORT = 65535
REFUSED = ("--workers", "--factory")  # as `potluck serve` does
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class StartPlan:
    """`flag_host` and `flag_port` are the last words of the command line; uvicorn sees them as well."""

    host: str
    port: str
    flag_host: str | None
    flag_port: str | None
    is_https: bool
    is_plain_tcp: bool
    wants_model: bool
    devices: str = ""

    @property
    def listens(self) -> tuple[str, int] | None:
        """Host and port as far as they are known before the start."""
        port = self.flag_port or self.port
        if not self.is_plain_tcp or not port.isdigit() or int(port) == 0:
            return None
        return self.flag_host or self.host, int(port)

    @property
    def url(self) -> str:
        if self.listens is None:
            return "-"
        host, port = self.listens
        shown = EVERY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
        return f"{'https' if self.is_https else 'http'}://{shown}:{port}"


def main(arguments: list[str]) -> int:
    plan = start_plan(arguments, os.environ, _settings_file(Path(os.environ.get("POTLUCK_CONFIG") or "potluck.toml")))
    problem = problem_of_flags(arguments) or problem_of_place(plan.listens) or problem_of(plan.devices)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(plan.host, plan.port, plan.url, "yes" if plan.wants_model else "no")
    return 0


def start_plan(arguments: Sequence[str], environment: Mapping[str, str], file: Mapping[str, Any]) -> StartPlan:
    written = {key.lower().removeprefix("potluck_"): value for key, value in file.items()}

    def setting(name: str, *others: str, default: str) -> str:
        found = (environment.get(key) for key in (name, *others))
        return next((value for value in found if value), "") or str(
            written.get(name.lower().removeprefix("potluck_"), default)
        )

    mode = setting("POTLUCK_EMBEDDED_NODE", default="auto").lower()
    devices = setting("POTLUCK_EMBEDDED_DEVICES", default="").strip()
    listed = phones_listed(Path(setting("POTLUCK_PHONES_FILE", default="phones.json")))
    return StartPlan(
        host=setting("POTLUCK_HOST", "HOST", "UVICORN_HOST", default="127.0.0.1"),
        port=setting("POTLUCK_PORT", "PORT", "UVICORN_PORT", default="8000"),
        flag_host=_flag(arguments, "--host"),
        flag_port=_flag(arguments, "--port"),
        is_https=_flag(arguments, "--ssl-certfile") is not None,
        is_plain_tcp=_flag(arguments, "--uds") is None and _flag(arguments, "--fd") is None,
        wants_model=mode == "on" or (mode == "auto" and (not listed or bool(devices))),
        devices=devices,
    )


def problem_of_flags(arguments: Sequence[str]) -> str:
    """Why uvicorn must not be given these flags; empty: it may."""
    refused = next((word for word in (argument.partition("=")[0] for argument in arguments) if word in REFUSED), None)
    return f"{refused} cannot be used: the gateway is one process with one queue" if refused else ""


def problem_of_place(listens: tuple[str, int] | None) -> str:
    """Why nothing can listen there, with a way out; empty: it can, or the place is not known before the start."""
    if listens is None:
        return ""
    host, port = listens
    if port > HIGHEST_PORT:
        return f"{port} is no port: the highest one is {HIGHEST_PORT}"
    if is_free(port, host):
        return ""
    return (
        f"cannot listen on {host} port {port}: it is taken, or no address of this machine.\n"
        f"       Stop what runs there, or choose another port: scripts/run --port {port % HIGHEST_PORT + 1}"
    )


def problem_of(devices: str) -> str:
    """Why that is no list of devices, in one sentence; empty: it is one, or there is none."""
    if not devices or devices.lower() == "auto":
        return ""
    try:
        parse_devices(devices)
    except UsageError as error:
        return str(error)
    return ""


def phones_listed(path: Path) -> bool:
    """True if the fleet file names anybody. A broken file is the gateway's to explain, and no reason to fetch."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return bool(content.get("phones") if isinstance(content, dict) else content)


def _flag(arguments: Sequence[str], name: str) -> str | None:
    """The last value of a flag, given as `--name value` or `--name=value`."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == name and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value


def _settings_file(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the gateway itself says what is wrong with it
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
