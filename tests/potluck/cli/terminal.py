"""The real command in a real terminal: a process on a pseudo terminal that can be typed at and watched."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[3]
# How long a loaded machine may take to start Python; nothing waits this long unless it fails.
PATIENCE_SECONDS = 60.0
PRESS_SECONDS = 5.0  # a second Ctrl-C must not meet the command while it ends
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
CTRL_C, CTRL_D = "\x03", "\x04"


def environment(url: str, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
    return {**kept, "POTLUCK_URL": url, "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), **more}


class Terminal:
    """`Terminal(url, "status")` in a `with` block. `seen` is everything so far, without colours."""

    def __init__(self, url: str, *arguments: str, size: tuple[int, int] = (80, 24)) -> None:
        self.seen = ""
        self.raw = ""
        self._waited_for = 0
        self._master, slave = pty.openpty()
        self._resize(*size)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "potluck", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(url),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def press_until(self, key: str, text: str) -> None:
        """Press until the text comes: Python's prompt overlooks a Ctrl-C in the moment in which it draws a letter."""
        self.type(key)
        for _ in range(int(PATIENCE_SECONDS / PRESS_SECONDS)):
            try:
                self.wait_for(text, patience_seconds=PRESS_SECONDS)
                return
            except AssertionError:
                self.type(key)
        self.wait_for(text)

    def wait_for(self, text: str, patience_seconds: float = PATIENCE_SECONDS) -> str:
        """Until the text comes after the one waited for last; returns all between the two, with it."""
        deadline = time.monotonic() + patience_seconds
        start = self._waited_for
        while (found := self.seen.find(text, start)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} did not come; this came: {self.seen[start:]!r}")
        self._waited_for = found + len(text)
        return self.seen[start : self._waited_for]

    def end(self) -> int:
        """Read to the end of the process and return its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # the other end is closed: the process has ended
            return False
        self.raw += data.decode(errors="replace")
        self.seen = _ESCAPES.sub("", self.raw)
        return bool(data)

    def _resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def run(
    url: str, *arguments: str, given: str | bytes | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command without a terminal. Without `given`, stdin is empty in the way of /dev/null."""
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    if given is not None:
        source = {"input": given.encode() if isinstance(given, str) else given}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [sys.executable, "-m", "potluck", *arguments],
        capture_output=True,
        env=environment(url, **variables),
        timeout=PATIENCE_SECONDS,
        **source,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
