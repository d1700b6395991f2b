"""The probe as the node sees it: run as a child when it is needed, its findings kept in memory and on the disk.

Invariants: one child at a time, each bounded in time and never left behind; a device that hangs is left out by name and
the others are asked again without it; a file that is torn, old or of other devices is as good as none. Must not import
torch, which is the child's business.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from gpu_node.device_profiles import BadRecord, Findings, FoundDevice, LeftOut, kept_findings, kept_text, read_line
from gpu_node.inventory import gpus, machine

FILE_NAME = "devices.json"
# Importing torch from a slow disk takes long; a device is measured within a second where its driver works.
IMPORT_SECONDS = 90.0
DEVICE_SECONDS = 30.0
# Each round without what hung in the one before; a machine where more hangs has other troubles.
ROUNDS = 3
# Devices that the key does not see (those of AMD, Intel and Apple) may have been changed meanwhile.
LONGEST_KEPT_SECONDS = 24 * 3600.0
# Who asks again within that gets what is known: a probe takes a processor for seconds.
REFRESH_SECONDS = 30.0
# More than any machine has devices, so that a child that babbles ends.
MOST_LINES = 4096
PACKAGE_ROOT = str(Path(__file__).resolve().parent.parent)

log = logging.getLogger("gpu_node")


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    import_seconds: float = IMPORT_SECONDS
    device_seconds: float = DEVICE_SECONDS


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """How the child is started. `command` takes `--threads` and `--skip`."""

    command: tuple[str, ...] = (sys.executable, "-m", "gpu_node.probe")
    threads: int = 0
    times: ProbeTimes = ProbeTimes()
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


class Probing:
    """From any thread."""

    def __init__(
        self,
        file: Path,
        run: ProbeRun = ProbeRun(),
        key: Callable[[int], Mapping[str, Any]] | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`file` is where the findings are kept between starts; `key` says what they depend on."""
        self._file, self._run, self._key, self._wall, self._clock = file, run, key or key_of, wall, clock
        self._asked_at = -math.inf
        self._one = threading.Lock()
        self._known: Findings | None = None

    @property
    def known(self) -> Findings | None:
        """What was found out so far; never waits."""
        return self._known

    def findings(self, refresh: bool = False) -> Findings:
        """Waits for the child where nothing is known yet, or everything is to be asked anew and was not just now."""
        with self._one:
            refresh = refresh and self._clock() - self._asked_at > REFRESH_SECONDS
            if self._known is None or refresh:
                key = self._key(self._run.threads)
                self._known = (None if refresh else self._kept(key)) or self._asked(key)
            return self._known

    def _kept(self, key: Mapping[str, Any]) -> Findings | None:
        try:
            return kept_findings(self._file.read_text(encoding="utf-8"), key, self._wall(), LONGEST_KEPT_SECONDS)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, BadRecord) as error:
            log.info("%s is left aside: %s", self._file, error)
            return None

    def _asked(self, key: Mapping[str, Any]) -> Findings:
        found = probed(self._run)
        self._asked_at = self._clock()
        for one in found.left_out:
            log.warning("%s is left out: %s", one.what, one.why)
        if found.devices:
            self._keep(kept_text(found, key, self._wall()))
        return found

    def _keep(self, text: str) -> None:
        """Whole or not at all."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._file.parent, prefix=FILE_NAME, delete=False, encoding="utf-8"
            ) as made:
                made.write(text)
            os.replace(made.name, self._file)
        except OSError as error:
            log.info("%s cannot be written, so devices are measured at each start: %s", self._file, error)


def key_of(threads: int) -> dict[str, Any]:
    """What measurements depend on, as far as it is seen without torch."""
    here = machine()
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    return {
        "torch": torch,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": [here.processor, here.usable_cores, threads],
        "cards": [[gpu.uuid, gpu.driver] for gpu in gpus(None)],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def probed(run: ProbeRun) -> Findings:
    """What children found, the later ones without what hung in an earlier one."""
    hung: list[LeftOut] = []
    devices: tuple[FoundDevice, ...] = ()
    told: tuple[LeftOut, ...] = ()
    for _ in range(ROUNDS):
        child = _Child(run, [one.what for one in hung])
        devices, told = tuple(child.devices), tuple(child.left_out)
        if child.hung is None:
            break
        hung.append(LeftOut(child.hung, child.why))
        if child.hung == "torch":
            break
    return Findings(devices, (*told, *hung))


class _Child:
    """One run of the probe, waited for."""

    def __init__(self, run: ProbeRun, skip: Sequence[str]) -> None:
        self.devices: list[FoundDevice] = []
        self.left_out: list[LeftOut] = []
        self.hung: str | None = None
        self.why = ""
        self._asking, self._done = "torch", False
        words = [*run.command, "--threads", str(run.threads), "--skip", ",".join(skip)]
        path = os.pathsep.join(filter(None, [PACKAGE_ROOT, run.environ.get("PYTHONPATH")]))
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env={**run.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            self.hung, self.why = "torch", f"the probe cannot be started: {error.strerror or error}"
            return
        try:
            self._follow(child, run.times)
        finally:
            _end(child)

    def _follow(self, child: subprocess.Popen[str], times: ProbeTimes) -> None:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert child.stdout is not None, "it was asked for as a pipe"
        threading.Thread(target=_pass_on, args=(child.stdout, lines), name="read the probe", daemon=True).start()
        while not self._done:
            patience = times.import_seconds if self._asking == "torch" else times.device_seconds
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                self.hung, self.why = self._asking, f"it did not answer within {patience:.0f} s"
                return
            if line is None:
                if self._asking != "torch" or not self.left_out:
                    code = child.wait()
                    self.hung, self.why = self._asking, f"the probe ended while it asked, with code {code}"
                return
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            told = read_line(line)
        except BadRecord as error:
            self.left_out.append(LeftOut(self._asking, f"the probe answered what cannot be read: {error}"))
            return
        if isinstance(told, FoundDevice):
            self.devices.append(told)
        elif isinstance(told, LeftOut):
            self.left_out.append(told)
        elif line.startswith('{"asking": '):
            self._asking = str(json.loads(line)["asking"])
        elif line.startswith('{"done": '):
            self._done = True


def _pass_on(source: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    try:
        for count, line in enumerate(source):
            if count >= MOST_LINES:
                break
            lines.put(line)
    except ValueError:  # closed under our hands: the child was given up
        pass
    lines.put(None)


def _end(child: subprocess.Popen[str]) -> None:
    """A process that hangs in a driver cannot be waited for, even killed."""
    if child.poll() is None:
        child.kill()
    try:
        child.wait(2.0)
    except subprocess.TimeoutExpired:
        return
    if child.stdout is not None:
        child.stdout.close()
