"""Phones of a story, from outside: Termux with the real set-up script on a machine, and what a cable leads to.

A machine is a network namespace (`LabHost`) or this computer (`ThisComputer`). `TermuxPhone` is a home, a $PREFIX, the
stubs of tests/fakes/termux and a tmux of its own; its Ollama is the programmable phone (`whole_ollama`). `Cable` is its
adb daemon, a program on the same machine. Both end what they began. Everything waits in real time: these are programs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.fakes.network_namespaces import ROOT

STUBS = ROOT / "tests" / "fakes" / "termux" / "bin"
COMMANDS = "pkg dpkg getprop df ip ifconfig pm termux-wake-lock termux-wake-unlock termux-battery-status"
NEEDED = ("bash", "tmux", "curl")
PATIENCE_SECONDS = 90.0  # of a busy machine with two cores
LOOK_SECONDS = 0.05

Found = TypeVar("Found")


class Machine(Protocol):
    @property
    def address(self) -> str: ...

    def command(self, words: list[str]) -> list[str]: ...


class ThisComputer:
    """Where no namespaces can be made."""

    address = "127.0.0.1"

    def command(self, words: list[str]) -> list[str]:
        return words


def until(look: Callable[[], Found | None], what: str, seconds: float = PATIENCE_SECONDS) -> Found:
    """What `look` finds in the end. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(LOOK_SECONDS)
    return found


class TermuxPhone:
    """`habits`: settings of its Ollama, as PhoneSettings names them."""

    def __init__(self, folder: Path, machine: Machine, product: str, habits: dict[str, Any], port: int = 11434) -> None:
        self.machine, self.product, self.port = machine, product, port
        self.fake, self.home, self.shared = folder / "fake", folder / "home", folder / "sdcard"
        for made in (self.fake / "bin", self.fake / "props", self.home, self.shared, folder / "usr" / "var"):
            made.mkdir(parents=True)
        for name in COMMANDS.split():
            (self.fake / "bin" / name).symlink_to(STUBS / "stub")
        (folder / "usr" / "bin").mkdir()
        (folder / "usr" / "bin" / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
        properties = {"build.version.release": "14", "build.version.sdk": "34", "soc.model": "SM8550"}
        for name, value in {**properties, "product.model": product, "product.cpu.abilist64": "arm64-v8a"}.items():
            (self.fake / "props" / f"ro.{name}").write_text(value)
        (self.fake / "df").write_text("20000000")
        (self.fake / "meminfo").write_text("MemTotal:       5850000 kB\n")
        (self.fake / "whole_ollama").write_text(json.dumps(habits))
        self._environ = {
            "HOME": str(self.home),
            "PREFIX": str(folder / "usr"),
            "PATH": f"{self.fake / 'bin'}:/usr/bin:/bin",
            "TMUX_TMPDIR": str(folder),
            "TERMUX_VERSION": "0.118.3",
            "EXTERNAL_STORAGE": str(self.shared),
            "FAKE": str(self.fake),
            "FAKE_STUBS": str(STUBS),
            "FAKE_PYTHON": sys.executable,
            "POTLUCK_MEMINFO": str(self.fake / "meminfo"),
            "POTLUCK_RETRY_SECONDS": "0",
            "POTLUCK_REPORT_SECONDS": "1",
        }

    def type(self, line: str) -> str:
        """What a person types into Termux, and what it says; it must go well."""
        done = subprocess.run(
            self._command("bash", "-c", line),
            cwd=self.home,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def tell_battery(self, celsius: float, level: int = 80, charging: bool = True) -> None:
        """What `termux-battery-status` says from now on."""
        status, plugged = ("CHARGING", "PLUGGED_AC") if charging else ("DISCHARGING", "UNPLUGGED")
        told = {"percentage": level, "plugged": plugged, "status": status, "temperature": celsius, "health": "GOOD"}
        new = self.fake / "battery.new"
        new.write_text(json.dumps(told))
        new.rename(self.fake / "battery")

    def control(self, **change: Any) -> dict[str, Any]:
        """Change the habits of its Ollama, or none; what it has counted."""
        url = f"http://127.0.0.1:{self.port}/_control"
        if change:
            self._curl("-d", json.dumps(change), url)
        counters: dict[str, Any] = json.loads(self._curl(url))["counters"]
        return counters

    def _command(self, *words: str) -> list[str]:
        """Termux has an `ip` of its own, which is not to be the one that leads there."""
        first, *others = self.machine.command(list(words))
        return [shutil.which(first) or first, *others]

    def _curl(self, *words: str) -> str:
        return subprocess.check_output(self.machine.command(["curl", "-fsS", "--max-time", "20", *words]), text=True)

    def pid(self, name: str) -> int | None:
        """Of "server" or "report", if it runs."""
        try:
            number = int((self.home / "mobile-llm" / f"{name}.pid").read_text())
            return number if Path(f"/proc/{number}/cmdline").read_bytes() else None
        except (OSError, ValueError):
            return None

    def end(self) -> None:
        """Whatever runs on it is ended, also after a failure."""
        pids = [pid for name in ("server", "report") if (pid := self.pid(name)) is not None]
        subprocess.run(self._command("tmux", "kill-server"), env=self._environ, capture_output=True, check=False)
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)


class Cable:
    """The adb daemon of a phone: plugged in and out, and asked by `dumpsys`."""

    def __init__(self, machine: Machine, serial: str, product: str, ollama_port: int = 11434) -> None:
        words = [sys.executable, "-m", "tests.fakes.adbd_program", serial, "--model", product]
        words += ["--host", machine.address, "--ollama-port", str(ollama_port)]
        pipe = subprocess.PIPE
        self._program = subprocess.Popen(machine.command(words), cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        self.address = self._said()

    def order(self, **what: Any) -> None:
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(what) + "\n")
        self._program.stdin.flush()
        assert self._said() == "ok"

    def end(self) -> None:
        self._program.kill()
        self._program.communicate()

    def _said(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline().strip()


def missing_tools() -> str:
    """What a story needs and this machine lacks, in words; empty where all is there."""
    if not sys.platform.startswith("linux"):
        return "phones are Linux machines, and their scripts read /proc"
    missing = [name for name in NEEDED if shutil.which(name, path="/usr/bin:/bin") is None]
    return f"{' and '.join(missing)} is not installed" if missing else ""
