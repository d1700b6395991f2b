"""What a model's layers may ask of compiled kernels: operations over tensors, and programs of them.

Every method but `run`, `program` and `close` only describes: it checks shapes, so that code without checks never
reads or writes elsewhere, and gives operations. Tensors of an operation stay where they are and may change their
contents between runs. All activations are float32. Must not know models.

    kernels = open_kernels(folder, threads=2)          # None where kernels cannot be compiled
    weight = dense_weight(tensor) or packed_weight(quantised)
    kernels.run(kernels.multiply(weight, x, y))         # once
    step = kernels.program([*kernels.normalise(...), *kernels.multiply(...), ...])
    step.run()                                          # as often as wanted, one call for all of it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpu_node.engine.products.kernels import availability
from gpu_node.engine.products.kernels.catalogue import QUANTISER, catalogue
from gpu_node.engine.products.kernels.library import KernelLibrary
from gpu_node.engine.products.kernels.program import Crew, Operation, Program
from gpu_node.engine.products.kernels.weights import GROUP, KernelWeight, Unsuitable


class Kernels:
    """Safe to use from several threads; programs on several threads wait for each other."""

    def __init__(self, library: KernelLibrary, threads: int = 1) -> None:
        self.library = library
        self._crew = Crew(threads) if threads > 1 else None

    def run(self, operations: Sequence[Operation]) -> None:
        Program(self.library, operations, self._crew).run()

    def program(self, operations: Sequence[Operation]) -> Program:
        """Compiles what is missing: call it while loading."""
        return Program(self.library, operations, self._crew)

    def close(self) -> None:
        """Ends the threads. Idempotent."""
        if self._crew is not None:
            self._crew.close()

    def multiply(self, weight: KernelWeight, x: Tensor, y: Tensor, adds: bool = False) -> tuple[Operation, ...]:
        """y = x W^T + b, or y += with `adds`. `x` [m, columns], `y` [m, rows]; rows of either may lie apart.

        Quantised weights round x to 8 bits for every 32 numbers first, as llama.cpp does. Any m works; from
        `crossover_rows` on torch is quicker.
        """
        _check(x, (x.shape[0], weight.columns))
        _check(y, (x.shape[0], weight.rows))
        bias = 0 if weight.bias is None else weight.bias.data_ptr()
        result = (x.shape[0], y.data_ptr(), y.stride(0), bias, int(adds))
        if not weight.quantised:
            first = (weight.data.data_ptr(), weight.rows, weight.columns, x.data_ptr(), x.stride(0))
            return (Operation(weight.kernel, (*first, *result), (weight, x, y), weight.bytes),)
        groups = weight.columns // GROUP
        rounded = torch.empty(x.shape[0], weight.columns, dtype=torch.int8)
        factors = torch.empty(2, x.shape[0], groups)
        written = (rounded.data_ptr(), factors[0].data_ptr(), factors[1].data_ptr())
        source = (x.data_ptr(), x.stride(0), x.shape[0], groups)
        return (
            Operation(QUANTISER, (*source, *written), (x, rounded, factors)),
            Operation(
                weight.kernel,
                (weight.data.data_ptr(), weight.rows, groups, *written, *result),
                (weight, rounded, factors, y),
                weight.bytes,
            ),
        )


def open_kernels(folder: Path | None = None, threads: int = 1) -> Kernels | None:
    """`folder`: where compiled code is kept between starts. None where kernels cannot be compiled."""
    if not availability.available():
        return None
    return Kernels(KernelLibrary(catalogue(), folder), threads)


def _check(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    """Raises `Unsuitable` unless the tensor has the shape and type, lies in main memory, its last dimension dense."""
    if tuple(tensor.shape) != shape or tensor.dtype is not dtype or tensor.device.type != "cpu":
        raise Unsuitable(
            f"a {dtype} tensor {shape} in main memory is needed, not {tensor.dtype} {tuple(tensor.shape)}."
        )
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise Unsuitable("the last dimension must lie without gaps.")
