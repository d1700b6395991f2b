"""4-bit weights in groups of 32 columns by torch's own kernels, on CPU and CUDA.

The kernels want bfloat16: activations, and also scales and minima, are rounded to it; `measure_error` tells what that
costs. On CPU the packed order depends on the processor, so it is never written anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight

GROUPS = (32, 64, 128, 256)  # that the kernels know
MIDDLE = 8  # a code of 8 means the kernels' zero
CUDA_TILES = 8  # inner tiles of the CUDA kernel: its widest loads; asks for columns in multiples of 128


class Int4Product:
    def __init__(self, weight: QuantisedWeight, bias: Tensor | None, compute: torch.dtype) -> None:
        """`weight` that `fits_int4`; `bias` [rows] in the compute dtype."""
        self._on_cpu = weight.codes.device.type == "cpu"
        self._group, self._bias, self._compute = weight.group, bias, compute
        self._packed = _packed_for_cpu(weight) if self._on_cpu else _packed_for_cuda(weight)
        self._scales_and_zeros = _scales_and_zeros(weight)
        self.rows, self.columns = weight.shape

    @property
    def bytes(self) -> int:
        parts = (self._packed, self._scales_and_zeros)
        return sum(part.nbytes for part in parts) + (0 if self._bias is None else self._bias.nbytes)

    @property
    def form(self) -> str:
        return f"int4, groups of {self._group}"

    def __call__(self, x: Tensor) -> Tensor:
        operators = torch.ops.aten
        multiply = operators._weight_int4pack_mm_for_cpu if self._on_cpu else operators._weight_int4pack_mm
        found: Tensor = multiply(x.bfloat16(), self._packed, self._group, self._scales_and_zeros)
        found = found.to(self._compute)
        return found if self._bias is None else found.add_(self._bias)

    def add_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        return residual.add_(self(x), alpha=scale)


def fits_int4(weight: QuantisedWeight, device: torch.device) -> bool:
    """Whether torch has a kernel for this weight there."""
    rows, columns = weight.shape
    if weight.bits != 4 or weight.group not in GROUPS:
        return False
    if device.type == "cpu":
        return rows % 16 == 0
    return rows % 8 == 0 and columns % (16 * CUDA_TILES) == 0


def _scales_and_zeros(weight: QuantisedWeight) -> Tensor:
    """[groups, rows, 2]; the kernels compute (code - 8) * scale + zero."""
    scales = weight.scales.float()
    zeros = scales * MIDDLE + (0 if weight.minima is None else weight.minima.float())
    return torch.stack((scales, zeros), dim=2).transpose(0, 1).contiguous().bfloat16()


def _packed_for_cpu(weight: QuantisedWeight) -> Tensor:
    codes = weight.unpacked().to(torch.int32)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)  # type: ignore[no-any-return]


def _packed_for_cuda(weight: QuantisedWeight) -> Tensor:
    codes = weight.unpacked()
    pairs = ((codes[:, 0::2] << 4) | codes[:, 1::2]).contiguous()
    return torch.ops.aten._convert_weight_to_int4pack(pairs, CUDA_TILES)  # type: ignore[no-any-return]
