"""Setting up one phone over adb, step by step: files, settings, and Termux as far as Android allows.

A shell over adb may write to shared storage and change system settings; it may not reach into Termux. So the script
lands where Termux can read it, and the last step is a command that a person gives there (or has typed). Each setting is
asked for first, and read back; a file gets its name when it is whole. The settings: Android's documents on phantom
processes and Doze.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from potluck.cli.adb_models import model_files
from potluck.cli.safe_text import one_line
from potluck.errors import Misuse
from server.adb.server_link import ServerLink
from server.adb.states import Transport
from server.adb.sync_service import SIZES, push, size_of
from server.errors import AdbError

FOLDER = "/sdcard/potluck"  # phone_setup.sh looks for models in its `models`
TERMUX = "com.termux"
ANDROID_11, ANDROID_12, ANDROID_12L = 30, 31, 32
MOST_PROCESSES = str(2**31 - 1)
MONITOR = "settings_enable_monitor_phantom_procs"
PERMISSIONS = ("READ_EXTERNAL_STORAGE", "WRITE_EXTERNAL_STORAGE")
SHELL_SECONDS = 20.0
ROOM_TO_SPARE = 64 << 20  # bytes; a phone whose storage is full to the last misbehaves in other ways
WEIGHTS_BYTES = 1 << 16
_MODEL = re.compile(r"[A-Za-z0-9][\w.:/-]*")


@dataclass(frozen=True, slots=True)
class Change:
    """A setting of the phone. `wanted`: a pattern that is found in what `read` prints when it is as wanted."""

    question: str
    commands: tuple[str, ...]
    read: str
    wanted: str

    def is_made(self, said: str) -> bool:
        return re.search(self.wanted, said, re.MULTILINE) is not None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be done to each phone. `agree` is asked before each change."""

    files: Sequence[tuple[Path, str]]  # here, and where to on the phone
    model: str
    type_it: bool
    agree: Callable[[str], bool]

    @property
    def command(self) -> str:
        """What Termux is to run."""
        return f"bash {FOLDER}/phone_setup.sh --usb {self.model}".rstrip()


@dataclass(frozen=True, slots=True)
class Phone:
    """One that is being set up."""

    link: ServerLink
    transport: Transport

    async def say(self, command: str) -> str:
        return await self.link.shell(self.transport, command)


def setup_files(script: Path | None, models: Sequence[Path] | None, model: str = "") -> list[tuple[Path, str]]:
    """The script and the models: those named, else all in ./models. Raises Misuse where one is missing."""
    found = script or next((path for path in _script_places() if path.is_file()), None)
    if found is None or not found.is_file():
        raise Misuse("phone_setup.sh is not here: name it with --script")
    pushed = [(here, f"{FOLDER}/models/{there}") for here, there in model_files(models, model)]
    return [(found, f"{FOLDER}/phone_setup.sh"), *pushed]


def checked_model(name: str) -> str:
    """The name as it may be typed into a shell. Raises Misuse."""
    if name and not _MODEL.fullmatch(name):
        raise Misuse(f"{name!r} is no model's name; they look like qwen2.5:1.5b")
    return name


def changes_for(sdk: int) -> list[Change]:
    """What keeps Android from killing Ollama and lets Termux read what was pushed, by its API level. Pure."""
    commands = [f"pm grant {TERMUX} android.permission.{permission}" for permission in PERMISSIONS]
    if sdk >= ANDROID_11:  # there the permissions alone do not show files that a shell wrote
        commands.append(f"appops set --uid {TERMUX} MANAGE_EXTERNAL_STORAGE allow")
    files = Change(
        "Let Termux read what was pushed (access to files)?",
        tuple(commands),
        f"dumpsys package {TERMUX}",
        r"READ_EXTERNAL_STORAGE: granted=true",
    )
    doze = Change(
        "Let Termux run on while the screen is off (battery optimisation off)?",
        (f"dumpsys deviceidle whitelist +{TERMUX}",),
        "dumpsys deviceidle whitelist",
        rf",{TERMUX},",
    )
    return [*_killer_changes(sdk), doze, files]


def _killer_changes(sdk: int) -> list[Change]:
    """Android 12 brought the killer of background processes, 12L a setting for it."""
    question = "Switch off Android's killer of background processes?"
    if sdk < ANDROID_12:
        return []
    if sdk >= ANDROID_12L:
        commands = (f"settings put global {MONITOR} false",)
        return [Change(question, commands, f"settings get global {MONITOR}", r"^false$")]
    older = (
        "device_config set_sync_disabled_for_tests persistent",
        f"device_config put activity_manager max_phantom_processes {MOST_PROCESSES}",
    )
    read = "device_config get activity_manager max_phantom_processes"
    return [Change(question, older, read, rf"^{MOST_PROCESSES}$")]


def free_bytes(said: str) -> int | None:
    """Of what `df -k` prints of one folder; None where it is something else."""
    lines = said.strip().splitlines()
    if len(lines) < 2 or "Available" not in lines[0]:
        return None
    figures = [word for word in lines[-1].split() if word.isdecimal()]
    return int(figures[2]) * 1024 if len(figures) >= 3 else None


async def set_up(link: ServerLink, transport: Transport, wish: Wish) -> None:
    """All steps on one phone. Raises Misuse with a sentence."""
    phone = Phone(link, transport)
    try:
        await _check_termux(phone)
        await _push_all(phone, wish.files)
        for change in changes_for(_number(await phone.say("getprop ro.build.version.sdk"))):
            await _make(phone, change, wish.agree)
        await _open_termux(phone, wish)
    except AdbError as problem:
        raise Misuse(
            f"{transport.serial} did not go along: {one_line(problem.message)}; once more goes on"
        ) from problem


async def _push_all(phone: Phone, files: Sequence[tuple[Path, str]]) -> None:
    missing = []
    for here, there in files:
        size = here.stat().st_size
        # Of small files the size says too little.
        if size >= WEIGHTS_BYTES and await size_of(phone.link, phone.transport, there) == size % SIZES:
            typer.echo(f"  {there} is there already")
        else:
            missing.append((here, there, size))
    needed = sum(size for _, _, size in missing)
    free = free_bytes(await phone.say("df -k /sdcard"))
    if free is not None and free < needed + ROOM_TO_SPARE:
        raise Misuse(
            f"{phone.transport.serial} has {_gb(free)} free and these files take {_gb(needed)}: delete something"
            " there, or take a smaller model"
        )
    for folder in sorted({there.rpartition("/")[0] for _, there, _ in missing}):
        await phone.say(f"mkdir -p {shlex.quote(folder)}")
    for here, there, size in missing:
        await push_file(phone, here, there, size)


async def push_file(phone: Phone, here: Path, there: str, size: int) -> None:
    """One file. It has another name until it is whole, so that nobody takes a part of a model for a model."""
    part = f"{there}.part"
    try:
        with typer.progressbar(length=size, label=f"  {there}", file=sys.stderr) as bar:
            await push(phone.link, phone.transport, here, part, bar.update)
        got = await size_of(phone.link, phone.transport, part)
        if got != size % SIZES:
            raise Misuse(f"{there} has {got} bytes on the phone instead of {size}: is its storage full?")
        await phone.say(f"mv -f {shlex.quote(part)} {shlex.quote(there)}")
        if await size_of(phone.link, phone.transport, there) != got:
            raise Misuse(f"{part} could not be renamed on the phone")
    except (AdbError, Misuse):
        with suppress(AdbError):
            await phone.say(f"rm -f {shlex.quote(part)}")
        raise
    typer.echo(f"  pushed {there}")


async def _check_termux(phone: Phone) -> None:
    listed = (await phone.say(f"pm list packages -i {TERMUX}")).splitlines()
    own = [line for line in listed if line.split()[:1] == [f"package:{TERMUX}"]]
    if not own:
        raise Misuse("Termux is not installed: get it from F-Droid or GitHub (not the Play Store), then again")
    if "com.android.vending" in own[0]:
        typer.echo(
            "  ! this Termux is the Play Store's: the one from F-Droid or GitHub is the better one (docs/phones.md)"
        )


async def _make(phone: Phone, change: Change, agree: Callable[[str], bool]) -> None:
    if change.is_made(await phone.say(change.read)):
        typer.echo(f"  done before: {change.question.rstrip('?')}")
        return
    if not agree(f"  {change.question}"):
        typer.echo("  left as it is")
        return
    for command in change.commands:
        await phone.say(command)
    if change.is_made(await phone.say(change.read)):
        typer.echo(f"  done: {change.question.rstrip('?')}")
    else:
        typer.echo(f"  ! the phone did not take it; by hand: adb shell {change.commands[-1]}")


async def _open_termux(phone: Phone, wish: Wish) -> None:
    said = await phone.say(f"am start -n {TERMUX}/.app.TermuxActivity")
    opened = "Error" not in said
    if (
        opened
        and wish.type_it
        and wish.agree(f"  Type '{wish.command}' into Termux now? It must be in front, unlocked.")
    ):
        await phone.say(f"input text {shlex.quote(wish.command.replace(' ', '%s'))}")
        await phone.say("input keyevent 66")
        typer.echo("  typed; watch the phone: if it asks for access to files, tap Allow")
        return
    where = "Termux is open on the phone. Unlock it" if opened else "Unlock the phone, open Termux"
    typer.echo(f"  {where}, type this there, and tap Allow if it asks for access to files:")
    typer.echo(f"    {wish.command}")
    typer.echo("  When it has finished, leave the cable in: potluck adb devices shows whether Ollama answers.")


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _script_places() -> list[Path]:
    beside = Path(__file__).resolve().parents[2] / "phone_setup" / "phone_setup.sh"
    return [beside, Path(sys.prefix) / "share" / "potluck" / "phone_setup" / "phone_setup.sh"]
