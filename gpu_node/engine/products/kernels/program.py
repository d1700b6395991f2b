"""Operations in a row as one call into compiled code, on one thread or on several.

An operation is a kernel with its arguments: addresses of tensors that it keeps alive, whose contents may change between
runs. A program of many costs one call; its threads split every operation and meet after each. Helper threads sleep on a
lock between programs and never spin there; within a program they wait for each other for microseconds, and give their
core away when that takes longer. Invariant: one program of a crew runs at a time. Must not know what kernels compute.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.emitter import I64, POINTER, Emitter, Value
from gpu_node.engine.products.kernels.library import KernelLibrary

INTERPRETER = "run_program"
# So often a waiting thread looks before it offers its core to others: some ten microseconds.
LOOKS = 4000
# Waking a helper and meeting it again costs some 30 us; below so many bytes read it would take longer than it saves.
WORTH_SPLITTING_BYTES = 4 << 20

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True, slots=True)
class Operation:
    kernel: str
    arguments: tuple[int, ...]
    keeps: tuple[object, ...] = field(default=(), repr=False)  # whatever owns the memory that the arguments name
    reads_bytes: int = 0  # about; by this it is judged whether threads pay


class Crew:
    """`threads - 1` helpers and the thread that calls. Programs of several callers wait for each other."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._busy = threading.Lock()
        self._wakes = [threading.Semaphore(0) for _ in range(threads - 1)]
        self._call: tuple[Program, ctypes.Array[ctypes.c_int64]] | None = None
        self._helpers = [
            threading.Thread(target=self._help, args=(part,), name=f"kernels-{part}", daemon=True)
            for part in range(1, threads)
        ]
        for helper in self._helpers:
            helper.start()

    def run(self, program: Program) -> None:
        with self._busy:
            arguments = program.next_turn(self.threads)
            self._call = (program, arguments)
            for wake in self._wakes:
                wake.release()
            program.enter(arguments, 0, self.threads)

    def close(self) -> None:
        """Helpers end. Idempotent; nothing may run any more."""
        with self._busy:
            self._call = None
            for wake in self._wakes:
                wake.release()
            for helper in self._helpers:
                helper.join()
            self._wakes, self._helpers, self.threads = [], [], 1

    def _help(self, part: int) -> None:
        wake, threads = self._wakes[part - 1], self.threads
        while True:
            wake.acquire()
            call = self._call
            if call is None:
                return
            call[0].enter(call[1], part, threads)
            del call  # a sleeping helper keeps no model alive


class Program:
    """Not to be run by two threads at a time; with a crew that is seen to."""

    def __init__(self, library: KernelLibrary, operations: Sequence[Operation], crew: Crew | None = None) -> None:
        """Compiles what is missing. `crew` None: the calling thread does everything."""
        self._operations = tuple(operations)
        self._arguments = [(ctypes.c_int64 * len(one.arguments))(*one.arguments) for one in operations]
        table = [
            number
            for one, arguments in zip(operations, self._arguments, strict=True)
            for number in (library.address(one.kernel), ctypes.addressof(arguments))
        ]
        self._table = (ctypes.c_int64 * len(table))(*table)
        self._meeting = ctypes.c_int64(0)  # how often a thread has ended an operation, over all runs
        self._ended = 0
        self._entry = _Entry(library.address(INTERPRETER))
        self._alone = self._turn(0)
        self._crew = crew if crew is not None and crew.threads > 1 and self._is_worth_splitting() else None

    def run(self) -> None:
        """Computes; the interpreter's lock is free meanwhile."""
        if self._crew is None:
            self._entry(self._alone, 0, 1)
        else:
            self._crew.run(self)

    def next_turn(self, threads: int) -> ctypes.Array[ctypes.c_int64]:
        """Arguments of one run by so many threads. A late thread of the run before never waits for this one's."""
        turn = self._turn(self._ended)
        self._ended += threads * len(self._operations)
        return turn

    def enter(self, arguments: ctypes.Array[ctypes.c_int64], part: int, parts: int) -> None:
        self._entry(arguments, part, parts)

    def _turn(self, ended: int) -> ctypes.Array[ctypes.c_int64]:
        meeting = ctypes.addressof(self._meeting)
        return (ctypes.c_int64 * 4)(ctypes.addressof(self._table), len(self._operations), meeting, ended)

    def _is_worth_splitting(self) -> bool:
        return sum(one.reads_bytes for one in self._operations) >= WORTH_SPLITTING_BYTES


def write_interpreter(name: str, target: Target) -> str:
    """Arguments: table of (kernel, its arguments), how many, address of the meeting counter, its value before."""
    e = Emitter(name, target.triple)
    table, count, meeting, ended = e.arguments(4)
    with e.loop(0, count) as index:
        kernel = e.load(table + index * 16, I64)
        arguments = e.load(table + index * 16 + 8, I64)
        e.invoke(kernel, arguments)
        with e.when(e.integer(1) < e.parts):
            _meet(e, meeting, ended + (index + 1) * e.parts, target)
    return e.finish()


def _meet(e: Emitter, meeting: Value, all_ended: Value, target: Target) -> None:
    pointer = e.builder.inttoptr(meeting.raw, POINTER)
    e.builder.atomic_rmw("add", pointer, e.integer(1).raw, "acq_rel")
    looks = e.variable(e.integer(0))
    head, wait, after = (e.function.append_basic_block(name) for name in ("look", "wait", "met"))
    e.builder.branch(head)
    e.builder.position_at_end(head)
    seen = Value(e, e.builder.load_atomic(pointer, "acquire", 8, typ=I64))
    e.builder.cbranch((seen < all_ended).raw, wait, after)
    e.builder.position_at_end(wait)
    e.relax("x86" in target.triple)
    looks.set(looks.get() + 1)
    with e.when(looks.get() > LOOKS):
        e.give_way()
    e.builder.branch(head)
    e.builder.position_at_end(after)
