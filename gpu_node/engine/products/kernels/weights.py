"""Weights as kernels want them: dense ones as they lie, quantised ones repacked into panels of eight interleaved rows.

Invariants: a `KernelWeight` keeps the memory that its kernel reads alive and never changes it; packing is exact. Must
not import llvmlite, nor know which layer a weight belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight

GROUP = 32
PANEL_ROWS = 8
TILE_NUMBERS = 1 << 20  # so many numbers are repacked at a time: little memory beside the weight itself
KINDS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# Up to so many rows of x kernels are quicker than torch's wide products, which have to widen all weights first
# (measured on one core with AVX2, 3072 x 576 and 576 x 1536; for 4-bit weights no number was found where they lose).
ROWS_WORTH_IT: dict[str | int, int] = {"f32": 16, "bf16": 48, "f16": 48, 8: 256, 4: 4096}


class Unsuitable(ValueError):
    """There is no kernel for such a weight or tensor; torch must do it."""


@dataclass(frozen=True, slots=True)
class KernelWeight:
    rows: int  # outputs
    columns: int  # inputs
    kernel: str
    data: Tensor
    bias: Tensor | None  # float32 [rows]
    quantised: bool

    @property
    def bytes(self) -> int:
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @property
    def bits(self) -> int:
        """Of a code; 0 for dense weights."""
        return int(self.kernel[len("packed")]) if self.quantised else 0

    @property
    def form(self) -> str:
        """For people."""
        kind = f"{self.bits}-bit" if self.quantised else str(self.data.dtype).removeprefix("torch.")
        return f"{kind}, compiled kernel"

    @property
    def rows_worth_it(self) -> int:
        """With more rows of x than this torch multiplies quicker."""
        return ROWS_WORTH_IT[self.bits or KINDS[self.data.dtype]]


def dense_weight(weight: Tensor, bias: Tensor | None = None) -> KernelWeight:
    """`weight` [rows, columns] of 16 or 32-bit floating numbers is used where it lies.

    Raises `Unsuitable` when its columns are no multiple of 8 or it is not contiguous in main memory.
    """
    rows, columns = weight.shape
    kind = KINDS.get(weight.dtype)
    if kind is None or columns % 8 or not weight.is_contiguous() or weight.device.type != "cpu":
        raise Unsuitable(f"no kernel multiplies with a {rows} x {columns} weight of {weight.dtype}.")
    return KernelWeight(rows, columns, f"dense_{kind}", weight.detach(), _bias(bias, rows), quantised=False)


def packed_weight(weight: QuantisedWeight, bias: Tensor | None = None) -> KernelWeight:
    """A repacked copy. Groups of more than 32 columns get their scale once per 32: half a bit to one bit a weight more.

    Raises `Unsuitable` when groups are no multiple of 32 columns.
    """
    rows, columns = weight.shape
    if weight.group % GROUP or weight.codes.device.type != "cpu":
        raise Unsuitable(f"no kernel multiplies with groups of {weight.group} columns.")
    scales = _scale_dtype(weight)
    step = max(TILE_NUMBERS // columns // PANEL_ROWS, 1) * PANEL_ROWS
    data = torch.empty(0, dtype=torch.uint8)
    for start in range(0, rows, step):
        tile = _panels(weight.select(slice(start, start + step)), scales)
        if not start:  # one place for all: tiles that are joined in the end would take the weight's memory twice
            data = tile.new_empty(-(-rows // PANEL_ROWS), *tile.shape[1:])
        data[start // PANEL_ROWS :][: len(tile)] = tile
    name = f"packed{weight.bits}{'' if weight.minima is None else 'm'}_{KINDS[scales]}"
    return KernelWeight(rows, columns, name, data, _bias(bias, rows), quantised=True)


def _bias(bias: Tensor | None, rows: int) -> Tensor | None:
    if bias is not None and bias.shape != (rows,):
        raise Unsuitable(f"a bias of shape {tuple(bias.shape)} does not belong to {rows} rows.")
    return None if bias is None else bias.detach().float().contiguous()


def _scale_dtype(weight: QuantisedWeight) -> torch.dtype:
    """Half the memory where halves hold the same numbers."""
    parts = [weight.scales] if weight.minima is None else [weight.scales, weight.minima]
    return torch.float16 if all(torch.equal(part.half().float(), part.float()) for part in parts) else torch.float32


def _panels(weight: QuantisedWeight, scales: torch.dtype) -> Tensor:
    """Bytes [panels, groups, bytes of a group]: scales, minima, codes of eight rows; missing rows are nothing."""
    parts = [_interleaved(part, weight, scales) for part in (weight.scales, weight.minima) if part is not None]
    codes = _filled(weight.unpacked().view(torch.uint8))
    panels, groups = codes.shape[0] // PANEL_ROWS, weight.shape[1] // GROUP
    if weight.bits == 4:
        halves = codes.view(panels, PANEL_ROWS, groups, 4, 2, 4)
        codes = halves[:, :, :, :, 0] | (halves[:, :, :, :, 1] << 4)
    steps = codes.view(panels, PANEL_ROWS, groups, -1, 4).permute(0, 2, 3, 1, 4)
    return torch.cat([*parts, steps.reshape(panels, groups, -1)], dim=2)


def _interleaved(numbers: Tensor, weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """[rows, columns / group] -> bytes [panels, columns / 32, of eight numbers]."""
    each = _filled(numbers.to(dtype).repeat_interleave(weight.group // GROUP, dim=1))
    panels = each.view(-1, PANEL_ROWS, each.shape[1]).transpose(1, 2).contiguous()
    return panels.view(torch.uint8)


def _filled(rows: Tensor) -> Tensor:
    """With rows of zeros up to a whole number of panels."""
    missing = -rows.shape[0] % PANEL_ROWS
    return rows if not missing else torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
