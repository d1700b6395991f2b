"""Whether quantised products with this processor's instructions give the whole numbers that they must.

Instructions differ between processors, and not every kind was at hand when these kernels were written: before the rarer
ones are trusted with a model, they multiply small numbers here, and code without them takes over where they are wrong.
Must not know models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from gpu_node.engine.products.base import QuantisedWeight, pack_nibbles
from gpu_node.engine.products.kernels.availability import Target
from gpu_node.engine.products.kernels.catalogue import QUANTISER
from gpu_node.engine.products.kernels.library import KernelLibrary
from gpu_node.engine.products.kernels.program import Operation, Program
from gpu_node.engine.products.kernels.weights import packed_weight

logger = logging.getLogger(__name__)

CODES: tuple[tuple[Literal[4, 8], int, int], ...] = ((4, 0, 16), (8, -128, 128))  # bits, least, end
# Instructions that the tests of every change run on; others are tried at each start.
TRUSTED = ("portable", "avx2")
ROWS, COLUMNS = 8, 64


def proven(library: KernelLibrary, other: Callable[[Target], KernelLibrary]) -> KernelLibrary:
    """The library itself, or `other` one for the same machine without the instructions that failed."""
    if library.target.dots in TRUSTED or computes_rightly(library):
        return library
    logger.warning("%s instructions compute wrongly here; kernels do without them", library.target.dots)
    return other(replace(library.target, dots="portable"))


def computes_rightly(library: KernelLibrary) -> bool:
    """Products of whole numbers, of all signs and of the greatest size, against torch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-127, 128, (2, COLUMNS), generator=generator)
    x[:, ::32] = torch.tensor([[127], [-127]])  # so that the scale of every group is 1
    for bits, low, high in CODES:
        codes = torch.randint(low, high, (ROWS, COLUMNS), generator=generator)
        codes[0], codes[1] = low, high - 1
        packed = pack_nibbles(codes, 32) if bits == 4 else codes.to(torch.int8)
        weight = QuantisedWeight(packed, torch.ones(ROWS, COLUMNS // 32), None, 32, bits, (ROWS, COLUMNS))
        if not torch.equal(_product(library, weight, x.float()), (x @ codes.t()).float()):
            return False
    return True


def _product(library: KernelLibrary, weight: QuantisedWeight, x: torch.Tensor) -> torch.Tensor:
    held, y = packed_weight(weight), torch.empty(x.shape[0], ROWS)
    codes, factors = torch.empty(x.shape, dtype=torch.int8), torch.empty(2, x.shape[0], COLUMNS // 32)
    written = (codes.data_ptr(), factors[0].data_ptr(), factors[1].data_ptr())
    source = (x.data_ptr(), COLUMNS, x.shape[0], COLUMNS // 32)
    result = (x.shape[0], y.data_ptr(), ROWS, 0, 0)
    matrix = (held.data.data_ptr(), ROWS, COLUMNS // 32)
    Program(
        library,
        (
            Operation(QUANTISER, (*source, *written), (x, codes, factors)),
            Operation(held.kernel, (*matrix, *written, *result), (held, codes, factors, y)),
        ),
    ).run()
    return y
