"""Setting up one phone over adb, step by step, with adbutils: files, settings, and Termux as far as Android allows.

A shell over adb may write to shared storage and change system settings; it may not reach into Termux. So the script
lands where Termux can read it, and the last step is a command that a person gives there (or has typed). Each setting is
asked for first, and read back. The settings: Android's documents on phantom processes and Doze.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from potluck.errors import Misuse

if TYPE_CHECKING:
    from adbutils import AdbDevice

FOLDER = "/sdcard/potluck"  # phone_setup.sh looks for models in its `models`
PIECE = 64 * 1024  # the most that one packet of adb's sync service may carry
TERMUX = "com.termux"
ANDROID_12, ANDROID_12L = 31, 32
MOST_PROCESSES = str(2**31 - 1)
MONITOR = "settings_enable_monitor_phantom_procs"
PERMISSIONS = ("READ_EXTERNAL_STORAGE", "WRITE_EXTERNAL_STORAGE")
SHELL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Change:
    """A setting of the phone: `is_made` reads whether it is as wanted already."""

    question: str
    commands: tuple[str, ...]
    read: str
    wanted: str

    def is_made(self, said: str) -> bool:
        return self.wanted in said.split() or f",{self.wanted}," in said


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


def setup_files(script: Path | None, models: Sequence[Path] | None) -> list[tuple[Path, str]]:
    """The script and the models: those named, else every GGUF file in ./models. Raises Misuse where one is missing."""
    found = script or next((path for path in _script_places() if path.is_file()), None)
    if found is None or not found.is_file():
        raise Misuse("phone_setup.sh is not here: name it with --script")
    named = list(models) if models else sorted(Path("models").glob("*.gguf"))
    for path in named:
        if not path.is_file():
            raise Misuse(f"there is no file {path}")
    return [(found, f"{FOLDER}/phone_setup.sh"), *((path, f"{FOLDER}/models/{path.name}") for path in named)]


def changes_for(sdk: int) -> list[Change]:
    """What keeps Android from killing Ollama, by its API level. Pure."""
    doze = Change(
        "Let Termux run on while the screen is off (battery optimisation off)?",
        (f"dumpsys deviceidle whitelist +{TERMUX}",),
        "dumpsys deviceidle whitelist",
        TERMUX,
    )
    if sdk < ANDROID_12:
        return [doze]
    commands: tuple[str, ...]
    if sdk < ANDROID_12L:
        commands = (
            "device_config set_sync_disabled_for_tests persistent",
            f"device_config put activity_manager max_phantom_processes {MOST_PROCESSES}",
        )
        read, wanted = "device_config get activity_manager max_phantom_processes", MOST_PROCESSES
    else:
        commands = (f"settings put global {MONITOR} false",)
        read, wanted = f"settings get global {MONITOR}", "false"
    return [Change("Switch off Android's killer of background processes?", commands, read, wanted), doze]


def set_up(port: int, serial: str, wish: Wish) -> None:
    """All steps on one phone. Raises Misuse with a sentence."""
    import adbutils

    device = adbutils.AdbClient(host="127.0.0.1", port=port, socket_timeout=SHELL_SECONDS).device(serial)
    try:
        _check_termux(device)
        for here, there in wish.files:
            push(device, here, there)
        for change in changes_for(_number(_say(device, "getprop ro.build.version.sdk"))):
            _make(device, change, wish.agree)
        _open_termux(device, wish)
    except (adbutils.AdbError, OSError) as problem:
        words = " ".join(str(part) for part in problem.args) or type(problem).__name__
        raise Misuse(f"{serial} did not go along: {words}") from problem


def push(device: AdbDevice, here: Path, there: str) -> None:
    """One file, unless one of that size is there."""
    size = here.stat().st_size
    known = device.sync.stat(there)
    if here.suffix == ".gguf" and known.size == size:
        typer.echo(f"  {there} is there already")
        return
    _say(device, f"mkdir -p {there.rpartition('/')[0]}")
    with here.open("rb") as file, typer.progressbar(length=size, label=f"  {there}", file=sys.stderr) as bar:
        device.sync.push(_Counted(file, bar.update), there, mode=0o644)
    got = device.sync.stat(there).size
    if got != size:
        raise Misuse(f"{there} has {got} bytes on the phone instead of {size}: is its storage full?")
    typer.echo(f"  pushed {there}")


class _Counted:
    """A file whose reading moves a progress bar; larger pieces than adbutils asks for are several times faster."""

    def __init__(self, file: Any, count: Callable[[int], None]) -> None:
        self._file, self._count = file, count

    def read(self, _: int = -1) -> bytes:
        piece: bytes = self._file.read(PIECE)
        self._count(len(piece))
        return piece

    def close(self) -> None:
        self._file.close()


def _check_termux(device: AdbDevice) -> None:
    listed = _say(device, f"pm list packages -i {TERMUX}").splitlines()
    own = [line for line in listed if line.split()[:1] == [f"package:{TERMUX}"]]
    if not own:
        raise Misuse("Termux is not installed: get it from F-Droid or GitHub (not the Play Store), then again")
    if "com.android.vending" in own[0]:
        typer.echo(
            "  ! this Termux is the Play Store's: the one from F-Droid or GitHub is the better one (docs/phones.md)"
        )


def _make(device: AdbDevice, change: Change, agree: Callable[[str], bool]) -> None:
    if change.is_made(_say(device, change.read)):
        typer.echo(f"  done before: {change.question.rstrip('?')}")
        return
    if not agree(f"  {change.question}"):
        typer.echo("  left as it is")
        return
    for command in change.commands:
        _say(device, command)
    if change.is_made(_say(device, change.read)):
        typer.echo(f"  done: {change.question.rstrip('?')}")
    else:
        typer.echo(f"  ! the phone did not take it; by hand: adb shell {change.commands[-1]}")


def _open_termux(device: AdbDevice, wish: Wish) -> None:
    for permission in PERMISSIONS:  # to read what was pushed; newer Androids may ask the person all the same
        _say(device, f"pm grant {TERMUX} android.permission.{permission}")
    _say(device, f"am start -n {TERMUX}/.app.TermuxActivity")
    if wish.type_it and wish.agree(f"  Type '{wish.command}' into Termux now? It must be in front and unlocked."):
        _say(device, f"input text {shlex.quote(wish.command.replace(' ', '%s'))}")
        _say(device, "input keyevent 66")
        typer.echo("  typed; watch the phone: it asks for access to files once, tap Allow")
        return
    typer.echo("  Termux is open on the phone. Unlock it, type this there, and tap Allow when it asks for files:")
    typer.echo(f"    {wish.command}")


def _say(device: AdbDevice, command: str) -> str:
    return str(device.shell(command, timeout=SHELL_SECONDS))


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _script_places() -> list[Path]:
    beside = Path(__file__).resolve().parents[2] / "phone_setup" / "phone_setup.sh"
    return [beside, Path(sys.prefix) / "share" / "potluck" / "phone_setup" / "phone_setup.sh"]
