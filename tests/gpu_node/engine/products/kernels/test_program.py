from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

pytest.importorskip("llvmlite")

from gpu_node.engine.products.kernels.program import Crew, Program
from gpu_node.engine.products.kernels.weights import dense_weight


def layers(kernels, count: int, x: torch.Tensor) -> tuple[list, torch.Tensor]:
    """Products one behind the other, each needing all of the one before; big enough to be split."""
    numbers = torch.Generator().manual_seed(3)
    size = x.shape[1]
    operations = []
    for _ in range(count):
        weight = dense_weight(torch.randn(size, size, generator=numbers) / size**0.5)
        y = torch.empty(x.shape[0], size)
        operations += [*kernels.multiply(weight, x, y), *kernels.normalise(y, torch.ones(size), y, 1e-5)]
        x = y
    return operations, x


@pytest.fixture
def crew():
    made = Crew(3)
    yield made
    made.close()


def test_threads_compute_what_one_computes(kernels, crew):
    x = torch.randn(2, 512)
    operations, y = layers(kernels, 6, x)
    alone = Program(kernels.library, operations)
    together = Program(kernels.library, operations, crew)
    for _ in range(20):
        x.normal_()
        alone.run()
        wanted = y.clone()
        y.zero_()
        together.run()
        assert torch.equal(y, wanted)


def test_programs_of_two_callers_do_not_disturb_each_other(kernels, crew):
    x = [torch.randn(2, 512) for _ in range(2)]
    made = [layers(kernels, 5, part) for part in x]
    programs = [Program(kernels.library, operations, crew) for operations, _ in made]
    wanted = []
    for program, (_, y) in zip(programs, made, strict=True):
        program.run()
        wanted.append(y.clone())

    def runs(program: Program) -> None:
        for _ in range(30):
            program.run()

    callers = [threading.Thread(target=runs, args=(program,)) for program in programs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for (_, y), answer in zip(made, wanted, strict=True):
        assert torch.equal(y, answer)


def test_a_caller_that_finds_the_helpers_busy_works_alone(kernels):
    """Two engines on two threads: neither waits for the other."""
    crew = Crew(2)
    operations, y = layers(kernels, 5, torch.ones(1, 512))
    program = Program(kernels.library, operations, crew)
    program.run()
    wanted = y.clone()
    y.zero_()
    with crew._busy:
        program.run()
    assert torch.equal(y, wanted)
    crew.close()


def test_a_closed_crew_leaves_no_threads_and_the_caller_computes(kernels):
    before = threading.active_count()
    crew = Crew(4)
    assert threading.active_count() == before + 3
    x = torch.ones(1, 512)
    operations, y = layers(kernels, 5, x)
    program = Program(kernels.library, operations, crew)
    program.run()
    wanted = y.clone()
    crew.close()
    crew.close()
    assert threading.active_count() == before
    y.zero_()
    program.run()
    assert torch.equal(y, wanted)


def test_a_program_without_operations_ends(kernels):
    Program(kernels.library, ()).run()


def test_a_program_keeps_the_code_and_the_tensors_it_needs():
    pytest.importorskip("llvmlite")
    from gpu_node.engine.products.kernels.kernels import open_kernels

    opened = open_kernels()
    x = torch.ones(1, 64)
    operations, y = layers(opened, 2, x)
    program = opened.program(operations)
    program.run()
    wanted = y.clone()
    opened.close()
    del opened, operations
    gc.collect()
    y.zero_()
    program.run()
    assert torch.equal(y, wanted)


class Meeting:
    """A turn that ends when the caller and every helper have taken it up."""

    def __init__(self, threads: int) -> None:
        self._all = threading.Barrier(threads)

    def work(self, waits: bool) -> None:
        self._all.wait(timeout=60)


def test_idle_helpers_keep_no_model_alive(crew):
    """A helper that is just leaving the turn may be its last owner, so its end is waited for."""
    turn = Meeting(crew.threads)
    gone = threading.Event()
    weakref.finalize(turn, gone.set)
    crew.run(turn)
    del turn
    assert gone.wait(timeout=60)
