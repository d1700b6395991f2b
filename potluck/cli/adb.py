"""`potluck adb`: phones on a cable or on wireless debugging: list them, set them up, pair with them.

Speaks to the adb server of this machine, which is started when there is none, as adb itself does. Text from phones is
made harmless before it is shown.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from potluck.cli.reports import FAILED, STOPPED, reporting, sentence
from potluck.cli.safe_text import one_line
from potluck.cli.text_table import lines_of
from potluck.errors import Misuse

if TYPE_CHECKING:
    from server.adb.server_link import ServerLink
    from server.adb.states import AdbPhone, Facts, Transport

Result = TypeVar("Result")
PORT = 11434
ANSWER_SECONDS = 5.0
SETUP_SECONDS = 20.0  # a dump of a busy phone, a piece of a file onto a slow card
NO_PHONES = (
    "No phone is listed. Is the cable one for data? Is USB debugging on (Settings, About phone, tap Build number"
    " seven times; then Developer options, USB debugging)? Without a cable: potluck adb pair."
)

Server = Annotated[
    str, typer.Option("--server", envvar="POTLUCK_ADB_SERVER", help="Address of the adb server on this machine.")
]
DEFAULT_SERVER = "127.0.0.1:5037"

app = typer.Typer(
    help="Phones on a cable or on wireless debugging: list them, set them up, pair with them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A phone as `devices` shows it. `problem`: what to do about it; empty when nothing is wrong. `usable`: it can be
    spoken to, whether or not Ollama answers there. `id`: its own serial number, by whatever way it is reached."""

    serial: str
    id: str
    name: str
    state: str
    android: str
    answers: bool
    local_ports: tuple[int, ...]
    problem: str
    usable: bool = True


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show the phones: state, what is wrong with them and what to do, and the ports that lead to them."""
    listed = with_server(server, list_phones)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in listed], indent=2))
        return
    if not listed:
        fail(NO_PHONES)
    for line in [*table(listed), *(one_line(f"! {one.serial}: {one.problem}") for one in listed if one.problem)]:
        typer.echo(line)


@app.command()
def setup(
    serials: Annotated[list[str] | None, typer.Argument(help="Only these phones; all that are ready else.")] = None,
    model_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--model-file",
            help="Push this GGUF file, folder of safetensors or Ollama store (may be repeated). Default: ./models.",
        ),
    ] = None,
    script: Annotated[Path | None, typer.Option("--script", help="Another phone_setup.sh.")] = None,
    model: Annotated[str, typer.Option("--model", help="The model's name, given to the script.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change the settings of the phones without asking.")] = False,
    type_it: Annotated[
        bool, typer.Option("--type", help="Type the command into Termux; the phone must be unlocked.")
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Push the script and models, switch off what kills Ollama (asks first), open Termux and say what to tap."""
    from potluck.cli.adb_setup import Wish, checked_model, set_up, setup_files
    from server.adb.states import Transport

    with reporting():
        name = checked_model(model)
        wish = Wish(setup_files(script, model_file, name), name, type_it, _agreed if yes else typer.confirm)
    chosen = _chosen(with_server(server, list_phones), serials or [])
    if len(chosen) > 1 and not serials and not yes:
        typer.confirm(f"Set up these {len(chosen)} phones: {', '.join(map(_called, chosen))}?", abort=True)
    failed = 0
    for one in chosen:
        typer.echo(_called(one))
        transport = Transport(one.serial, one.state)
        try:
            with_server(server, lambda link, way=transport: set_up(link, way, wish), SETUP_SECONDS)  # type: ignore[misc]
        except Misuse as problem:
            failed += 1
            typer.echo(f"error: {sentence(problem.message)}", err=True)
        except KeyboardInterrupt:
            typer.echo("stopped; to run it again does no harm", err=True)
            raise typer.Exit(STOPPED) from None
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def pair(
    place: Annotated[
        str | None, typer.Argument(help="HOST:PORT that 'Pair device with pairing code' shows. Without it: by QR code.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Argument(help="The six figures; asked for when left out, which keeps them to you."),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=1, max=600, help="How long to wait.")] = 120.0,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Pair with a phone over Wi-Fi (Android 11 and newer: Developer options, Wireless debugging)."""
    from potluck.cli.adb_pairing import PAIR_SECONDS, pair_by_code, pair_by_qr

    def ask(place: str, code: str) -> str:
        return with_server(server, lambda link: link.pair(place, code), PAIR_SECONDS)

    with_server(server, _nothing)  # before anything is shown or typed
    with reporting():
        if place is None:
            said = pair_by_qr(ask, seconds)
        else:
            said = pair_by_code(ask, place, code or typer.prompt("Pairing code", hide_input=True))
    typer.echo(one_line(said))
    typer.echo("The phone is listed by: potluck adb devices. Wireless debugging ends with a reboot on many phones.")


async def list_phones(link: ServerLink) -> list[Listed]:
    """Every phone once, and what is known of it now."""
    from server.adb.states import phones_of

    transports = await link.transports()
    facts = dict(zip([each.key for each in transports], await _each(link, transports), strict=True))
    forwards = await link.forwards()
    phones = phones_of(transports, {key: told for key, told in facts.items() if told is not None}, {})
    answering = await asyncio.gather(*(_answers(link, phone) for phone in phones))
    return [
        Listed(
            phone.transport.serial,
            phone.id,
            phone.name,
            phone.transport.state,
            phone.told.android,
            answers,
            tuple(each.local_port for each in forwards if each.serial in phone.serials),
            _problem(phone, answers),
            phone.usable,
        )
        for phone, answers in zip(phones, answering, strict=True)
    ]


def with_server(
    server: str, work: Callable[[ServerLink], Awaitable[Result]], patience_seconds: float = ANSWER_SECONDS
) -> Result:
    """The work's result, with a server that was started if there was none. Ends the command with a sentence."""
    from server.adb.binary import start_server
    from server.adb.server_link import ServerLink
    from server.errors import AdbError, AdbServerGone

    async def run() -> Result:
        link = ServerLink(port=_port_of(server), patience=patience_seconds)
        try:
            await link.version()
        except AdbServerGone:
            await start_server(link.port)
        return await work(link)

    try:
        # Not asyncio.run: it would keep the first Ctrl-C from whoever is being asked something.
        with asyncio.Runner() as runner:
            return runner.get_loop().run_until_complete(run())
    except AdbError as problem:
        fail(problem.message)


def table(listed: Sequence[Listed]) -> list[str]:
    """As wide as it has to be."""
    rows = [("SERIAL", "PHONE", "STATE", "ANDROID", "OLLAMA", "LOCAL PORTS"), *map(_row, listed)]
    return lines_of(rows)


def fail(message: str) -> NoReturn:
    typer.echo(f"error: {sentence(message)}", err=True)
    raise typer.Exit(FAILED)


def misused(message: str) -> NoReturn:
    with reporting():
        raise Misuse(message)


async def _nothing(_: ServerLink) -> None:
    return None


async def _each(link: ServerLink, transports: Sequence[Transport]) -> list[Facts | None]:
    from server.adb.states import QUESTION, READY, parse_facts
    from server.errors import AdbError

    async def ask(transport: Transport) -> Facts | None:
        try:
            return parse_facts(await link.shell(transport, QUESTION)) if transport.state == READY else None
        except AdbError:
            return None

    return list(await asyncio.gather(*map(ask, transports)))


async def _answers(link: ServerLink, phone: AdbPhone) -> bool:
    return phone.usable and await link.serves(phone.transport, PORT) is not None


def _problem(phone: AdbPhone, answers: bool) -> str:
    from server.adb.states import NOT_ANSWERING

    if phone.advice:
        return phone.advice
    if not phone.known:
        return "it is listed and does not answer: plug it in again"
    return "" if answers else NOT_ANSWERING.format(port=PORT)


def _chosen(listed: Sequence[Listed], serials: Sequence[str]) -> list[Listed]:
    """Those that are named, else all that can be used. Ends the command where there is none, or one cannot be used."""
    known = {name: one for one in listed for name in (one.id, one.serial)}
    for serial in serials:
        if serial not in known:
            misused(f"no phone {serial!r} is listed; potluck adb devices shows those that are")
        if not known[serial].usable:
            fail(f"{serial}: {one_line(known[serial].problem)}")
    named = {known[serial].serial: known[serial] for serial in serials}
    chosen = list(named.values()) or [one for one in listed if one.usable]
    if not chosen:
        problems = [f"{one.serial}: {one_line(one.problem)}" for one in listed if one.problem]
        fail("; ".join(problems) or NO_PHONES)
    return chosen


def _called(one: Listed) -> str:
    return f"{one_line(one.serial)} ({one_line(one.name)})"


def _agreed(_: str) -> bool:
    return True


def _port_of(server: str) -> int:
    host, _, port = server.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal() or not 1 <= int(port) <= 65535:
        misused(f"--server is 127.0.0.1 and a port, not {server!r}: forwards end on the machine of the adb server")
    return int(port)


def _row(one: Listed) -> tuple[str, ...]:
    return (
        one_line(one.serial),
        one_line(one.name),
        one_line(one.state),
        one_line(one.android) or "-",
        "answers" if one.answers else "-",
        ", ".join(map(str, one.local_ports)) or "-",
    )
