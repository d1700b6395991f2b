"""Operations in a row as one call into compiled code, on one thread or on several.

An operation is a kernel with its arguments: addresses of tensors that it keeps alive, whose contents may change between
runs. A program of many costs one call. Threads take pieces of operations, one at a time, in order: a helper that comes
late or loses its core holds up nothing but the piece in its hands. Helpers sleep on a lock between programs; within one
they look for microseconds before they give their core away. Must not know what kernels compute.

Measured: the 453 operations of a 135M model's step in one program take 6.3 ms (4 bits, one thread, one row; llama.cpp
12 to 13 on the same core), of which passing from one to the next is 8 us. A second core makes one row 1.5 and four rows
1.6 times as quick. With both cores busy with other programs two threads take as long as one; a first version, where all
threads met after every operation, took ten times as long there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.emitter import I64, Emitter, Value, Variable
from gpu_node.engine.products.kernels.library import KernelLibrary

INTERPRETER = "run_program"
# So often a waiting thread looks before it offers its core to others: some ten microseconds.
LOOKS = 2000
# Waking helpers takes some 20 us; a program that reads less than this is over before they have done much.
WORTH_SPLITTING_BYTES = 1 << 20
# More pieces than threads, so that a slow thread takes fewer; each piece costs two atomic additions.
PIECES_PER_THREAD = 4

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True, slots=True)
class Operation:
    kernel: str
    arguments: tuple[int, ...]
    keeps: tuple[object, ...] = field(default=(), repr=False)  # whatever owns the memory that the arguments name
    pieces: int = 1  # as many as may be worked on at once, and are worth it
    reads_bytes: int = 0  # about; by this it is judged whether threads pay


class Crew:
    """`threads - 1` helpers and the thread that calls. A caller that finds the helpers busy works alone."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._busy = threading.Lock()
        self._wakes = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._turn: Turn | None = None
        self._closed = False
        self._helpers = [
            threading.Thread(target=self._help, args=(wake,), name=f"kernels-{number}", daemon=True)
            for number, wake in enumerate(self._wakes, start=1)
        ]
        for helper in self._helpers:
            helper.start()

    def run(self, turn: Turn) -> None:
        if not self._busy.acquire(blocking=False):
            turn.work(waits=True)
            return
        try:
            self._turn = turn
            for wake in self._wakes:
                wake.release()
            turn.work(waits=True)
        finally:
            self._turn = None  # idle helpers keep no model alive
            self._busy.release()

    def close(self) -> None:
        """Helpers end. Idempotent; afterwards callers work alone."""
        with self._busy:
            self._closed = True
            for wake in self._wakes:
                wake.release()
            for helper in self._helpers:
                helper.join()
            self._wakes, self._helpers = [], []

    def _help(self, wake: threading.Semaphore) -> None:
        while True:
            wake.acquire()
            if self._closed:
                return
            turn = self._turn
            if turn is not None:  # else all was done before this helper was awake
                turn.work(waits=False)
            del turn


class Turn:
    """One run of a program. It has counters of its own, so whoever comes late finds nothing left to disturb."""

    __slots__ = ("_arguments", "_entry", "_program")

    def __init__(self, program: Program, entry: Any, table: int, operations: int) -> None:
        self._program = program  # keeps what the table names alive
        self._entry = entry
        self._arguments = (ctypes.c_int64 * 4)(table, operations, 0, 0)  # pieces taken, pieces done

    def work(self, waits: bool) -> None:
        """Takes pieces until none is left; then, if it is to wait, until all are done."""
        self._entry(self._arguments, 1 if waits else 0, 1)


class Program:
    """Not to be run by two threads at a time: its tensors are what it works on."""

    def __init__(self, library: KernelLibrary, operations: Sequence[Operation], crew: Crew | None = None) -> None:
        """Compiles what is missing. `crew` None: the calling thread does everything."""
        self._library = library  # the code lives as long as it
        self._operations = tuple(operations)
        self._crew = crew if crew is not None and self._is_worth_splitting() else None
        most = 1 if self._crew is None else self._crew.threads * PIECES_PER_THREAD
        self._arguments = [(ctypes.c_int64 * len(one.arguments))(*one.arguments) for one in operations]
        table, first = [], 0
        for one, arguments in zip(operations, self._arguments, strict=True):
            table += [library.address(one.kernel), ctypes.addressof(arguments), first]
            first += max(1, min(one.pieces, most))
        self._table = (ctypes.c_int64 * (len(table) + 3))(*table, 0, 0, first)
        self._entry = _Entry(library.address(INTERPRETER))

    def run(self) -> None:
        """Computes; the interpreter's lock is free meanwhile."""
        turn = Turn(self, self._entry, ctypes.addressof(self._table), len(self._operations))
        if self._crew is None:
            turn.work(waits=True)
        else:
            self._crew.run(turn)

    def _is_worth_splitting(self) -> bool:
        return sum(one.reads_bytes for one in self._operations) >= WORTH_SPLITTING_BYTES


RECORD_BYTES = 24  # of the table: kernel, its arguments, number of its first piece; a last record ends the pieces


def write_interpreter(name: str, target: Target) -> str:
    """Arguments: table, how many operations, pieces taken, pieces done; `part` says whether to wait for the end.

    Pieces are numbered over all operations. One is taken only when the operations before its own are done.
    """
    e = Emitter(name, target.triple)
    table, count, _, _ = e.arguments(4)
    counters = e.arguments_address + 16
    total = e.load(table + count * RECORD_BYTES + 16, I64)
    record = e.variable(table)
    with e.forever() as leave:
        number = e.peek(counters)
        leave(number >= total)
        _advance(e, record, number)
        _wait(e, counters + 8, e.load(record.get() + 16, I64), target)
        number = e.increase(counters)
        leave(number >= total)
        _advance(e, record, number)
        first, end = (e.load(record.get() + at, I64) for at in (16, 16 + RECORD_BYTES))
        _wait(e, counters + 8, first, target)
        kernel, arguments = (e.load(record.get() + at, I64) for at in (0, 8))
        e.invoke(kernel, arguments, number - first, end - first)
        e.increase(counters + 8)
    with e.when(e.integer(0) < e.part):
        _wait(e, counters + 8, total, target)
    return e.finish()


def _advance(e: Emitter, record: Variable, number: Value) -> None:
    """To the record of the operation that the piece belongs to."""
    with e.forever() as leave:
        leave(e.load(record.get() + 16 + RECORD_BYTES, I64) > number)
        record.set(record.get() + RECORD_BYTES)


def _wait(e: Emitter, counter: Value, wanted: Value, target: Target) -> None:
    looks = e.variable(e.integer(0))
    with e.forever() as leave:
        leave(e.peek(counter) >= wanted)
        e.relax("x86" in target.triple)
        looks.set(looks.get() + 1)
        with e.when(looks.get() > LOOKS):
            e.give_way()
