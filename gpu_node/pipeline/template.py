"""The template of workers: a process that has imported all that a worker needs, and is copied where one is wanted.

    python -m gpu_node.pipeline.template        its input: a packet socket, on which `births` are asked for

Importing costs seconds of processor time, copying milliseconds, and copies share the memory of what was imported.
Invariants: it has one thread and no device, since neither survives a copy, and says so where that does not hold; a copy
has no descriptor but its own three; when the node is gone, however, it and its workers are gone soon after. Must not
know what workers do.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import logging
import os
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_node.pipeline.births import CODEC, MESSAGE_BYTES, Birth, Born, Ended, Failed, Ready, Unfit
from wire.errors import BadPayload

# The worker, and what loading would import: what all model families share comes with any of them.
IMPORTED = ("gpu_node.pipeline.worker", "transformers.models.llama.modeling_llama")
# When the node is gone its workers end by themselves, as they notice; after this they are ended.
LEAVING_SECONDS = 0.3
LONGEST_REASON = 500
log = logging.getLogger("gpu_node.pipeline")


@dataclass(frozen=True, slots=True)
class Newborn:
    """What a copy is told. `descriptors`: its input and its stderr."""

    birth: Birth
    descriptors: tuple[int, int]


class Template:
    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._handles: dict[int, tuple[int, int]] = {}  # number and pid by the process' handle
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)

    def serve(self) -> Newborn | None:
        """Returns in each copy, with what it was made for; in the template itself None, when the node is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._handles:
                    self._bury(descriptor)
                    continue
                data, descriptors = self._received()
                if not data:
                    self._leave()
                    return None
                newborn = _newborn(data, descriptors)
                if newborn is not None and self._copied(newborn):
                    return newborn
                for given in descriptors:
                    os.close(given)

    def _received(self) -> tuple[bytes, list[int]]:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._line, MESSAGE_BYTES, 2)
        except OSError:
            return b"", []
        return data, descriptors

    def _copied(self, newborn: Newborn) -> bool:
        """True: this is the copy."""
        number = newborn.birth.number
        try:
            pid = os.fork()
        except OSError as error:
            self._say(Failed(number, str(error)[:LONGEST_REASON]))
            return False
        if pid == 0:
            return True
        try:
            handle = os.pidfd_open(pid)
        except OSError as error:  # nobody could wait for it
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._say(Failed(number, str(error)[:LONGEST_REASON]))
            return False
        self._handles[handle] = number, pid
        self._poll.register(handle, select.POLLIN)
        self._say(Born(number, pid), handle)
        return False

    def _bury(self, handle: int) -> None:
        number, pid = self._handles.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._say(Ended(number, max(code, 0), max(-code, 0)))

    def _leave(self) -> None:
        """The node is gone; so is, in a moment, whoever was made for it, with what it has started."""
        self._poll.unregister(self._line)
        deadline = time.monotonic() + LEAVING_SECONDS
        while self._handles and (left := deadline - time.monotonic()) > 0:
            for handle, _ in self._poll.poll(left * 1000):
                self._bury(handle)
        for _, pid in self._handles.values():
            for kill in (os.killpg, os.kill):
                with suppress(OSError):
                    kill(pid, signal.SIGKILL)
        for handle in list(self._handles):
            self._bury(handle)

    def _say(self, message: object, *handles: int) -> None:
        say(self._line, message, *handles)


def say(line: socket.socket, message: object, *handles: int) -> None:
    """Nothing is raised where the node is gone: its end of the line is closed then, which is noticed in one place."""
    with suppress(OSError):
        socket.send_fds(line, [CODEC.pack(message)], handles)


def _newborn(data: bytes, descriptors: Sequence[int]) -> Newborn | None:
    try:
        birth = CODEC.unpack(data)
    except BadPayload as error:
        log.error("No worker can be made of this: %s", error)
        return None
    if not isinstance(birth, Birth) or len(descriptors) != 2:
        log.error("A worker is made of a birth, its input and its stderr")
        return None
    return Newborn(birth, (descriptors[0], descriptors[1]))


def unfitness(line: socket.socket) -> str:
    """Why this process must not be copied; empty: it may be."""
    threads = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("Threads:"))
    if threads.split()[1] != "1":
        return f"it has {threads.split()[1]} threads"
    known = {0, 1, 2, line.fileno()}
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself, closed by now
            if int(entry) not in known:
                return f"it holds {os.readlink(f'/proc/self/fd/{entry}')}"
    return ""


def become(newborn: Newborn) -> None:
    """This copy as a process that was started for this worker: session, descriptors, signals, surroundings."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for given, own in zip(newborn.descriptors, (0, 2), strict=True):
        os.dup2(given, own)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    for name in newborn.birth.removed:
        os.environ.pop(name, None)
    os.environ.update(newborn.birth.changed)
    with suppress(OSError):  # for people who look at a list of processes
        Path("/proc/self/comm").write_text(" ".join(("worker", *newborn.birth.arguments[2:])))
    gc.enable()


def reseed() -> None:
    """Else all copies would draw the same numbers."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    torch.default_generator.seed()


def _prepare(line: socket.socket) -> Ready | Unfit:
    """Import everything. Whoever waits for it may be gone before that is done."""

    def look(*_: object) -> None:
        hung_up = select.poll()
        hung_up.register(line, 0)
        if hung_up.poll(0):
            os._exit(0)

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(line, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(line, fcntl.F_GETFL)
    fcntl.fcntl(line, fcntl.F_SETFL, flags | os.O_ASYNC)
    look()
    gc.disable()
    try:
        for name in IMPORTED:
            importlib.import_module(name)
        reason = unfitness(line)
    except Exception as error:  # a worker that is started plainly says it better
        reason = f"{type(error).__name__}: {error}"
    fcntl.fcntl(line, fcntl.F_SETFL, flags)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    gc.collect()
    gc.freeze()
    return Unfit(reason[:LONGEST_REASON].replace("\0", " ")) if reason else Ready(round(time.process_time(), 3))


def main() -> int:
    """A whole process; it returns in copies only, with their exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to hear
    line = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    found = _prepare(line)
    say(line, found)
    newborn = Template(line).serve() if isinstance(found, Ready) else None
    if newborn is None:
        os._exit(0)  # nothing here wants to be tidied up, which would take most of a second
    line.detach()  # `become` closes it
    become(newborn)
    reseed()
    from gpu_node.pipeline import worker

    return worker.main(newborn.birth.arguments)


if __name__ == "__main__":
    sys.exit(main())
