"""From wide weights to 8 and 4-bit codes, and how far a product is from the weight that it stands for.

Rounding to nearest with the range of each group chosen from a few by its squared error, the idea of llama.cpp's
`make_qkx2_quants` without its refit. Works row tile by row tile, so nothing is ever held twice in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gpu_node.engine.products.base import Product, QuantisedWeight, pack_nibbles, row_tiles

INT4_GROUP = 32
INT8_GROUP = 32  # of kernels that know groups; torch's wants one scale a row
# Shares of a group's full range: cutting off its ends often costs less than coarser steps for all the rest.
RANGES = (1.0, 0.94, 0.88, 0.82)
SMALLEST = 6e-8  # the least positive half: a scale for groups of equal numbers
PROBES = 8  # random vectors that an error is measured with
PROBE_SEED = 0x9E3779B97F4A7C15  # not a seed that a random weight may have been drawn with: they must not be alike


def quantised_int4(weight: Tensor, group: int = INT4_GROUP) -> QuantisedWeight:
    """`weight` [rows, columns] floating -> 4-bit codes with a scale and a minimum for every group."""
    rows, columns = weight.shape
    parts = [_int4_tile(weight[tile].float().view(-1, columns // group, group)) for tile in row_tiles(rows, columns)]
    codes = [pack_nibbles(part[0].view(-1, columns), group) for part in parts]
    scales, minima = (torch.cat([part[at] for part in parts]) for at in (1, 2))
    return QuantisedWeight(torch.cat(codes), scales, minima, group, 4, (rows, columns))


def quantised_int8(weight: Tensor, group: int | None = None) -> QuantisedWeight:
    """`weight` [rows, columns] floating -> 8-bit codes with a scale for every group, or one a row."""
    rows, columns = weight.shape
    return _int8((weight[tile].float() for tile in row_tiles(rows, columns)), group or columns)


def quantised_rows(weight: QuantisedWeight) -> QuantisedWeight:
    """Any quantised weight -> 8-bit codes with one scale a row."""
    return _int8((weight.select(tile).dequantised() for tile in row_tiles(*weight.shape)), weight.shape[1])


def quantised_groups(weight: QuantisedWeight) -> QuantisedWeight:
    """Any quantised weight -> 8-bit codes with a scale for every 32 columns, which must divide the row."""
    return _int8((weight.select(tile).dequantised() for tile in row_tiles(*weight.shape)), INT8_GROUP)


def measure_error(
    product: Product, weight: Tensor | QuantisedWeight, compute: torch.dtype, bias: Tensor | None = None
) -> float:
    """|product(x) - x W^T - b| / |x W^T| for a few random x, as in decoding."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    device = weight.codes.device if isinstance(weight, QuantisedWeight) else weight.device
    x = torch.randn(PROBES, product.columns, generator=generator).to(device, compute)
    found = product(x).float() - (0 if bias is None else bias.float())
    difference, size = 0.0, 0.0
    for rows in row_tiles(product.rows, product.columns):
        wide = weight.select(rows).dequantised() if isinstance(weight, QuantisedWeight) else weight[rows].float()
        wanted = x.float() @ wide.t()
        difference += float((found[:, rows] - wanted).square().sum())
        size += float(wanted.square().sum())
    return math.sqrt(difference / max(size, 1e-30))


def _int8(tiles: Iterable[Tensor], group: int) -> QuantisedWeight:
    codes, scales = [], []
    for tile in tiles:
        groups = tile.view(tile.shape[0], -1, group)
        scale = groups.abs().amax(dim=2).div_(127).clamp_min_(SMALLEST)
        if group == INT8_GROUP:
            scale = scale.half().float()  # two bytes each: as in GGUF's Q8_0
        codes.append(groups.div(scale.unsqueeze(2)).round_().clamp_(-127, 127).to(torch.int8).view(tile.shape))
        scales.append(scale.half() if group == INT8_GROUP else scale)
    whole = torch.cat(codes)
    return QuantisedWeight(whole, torch.cat(scales), None, group, 8, (whole.shape[0], whole.shape[1]))


def _int4_tile(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[rows, groups, group] -> codes of that shape, scales and minima [rows, groups] in float16."""
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    least = torch.full_like(low, torch.inf)
    for share in RANGES:
        cut = (high - low) * ((1 - share) / 2)
        found = _rounded(groups, low + cut, high - cut)
        error = _error(groups, found)
        better = error < least
        least = torch.where(better, error, least)
        best = found if best is None else _chosen(better, found, best)
    assert best is not None
    return best


def _rounded(groups: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales = ((high - low) / 15).clamp_min(SMALLEST).half()
    minima = low.half()
    codes = (groups - minima.float().unsqueeze(2)).div_(scales.float().unsqueeze(2)).round_().clamp_(0, 15)
    return codes.to(torch.uint8), scales, minima


def _error(groups: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    codes, scales, minima = found
    back = codes.float().mul_(scales.float().unsqueeze(2)).add_(minima.float().unsqueeze(2))
    return back.sub_(groups).square_().sum(dim=2)


def _chosen(
    better: Tensor, found: tuple[Tensor, Tensor, Tensor], best: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.where(better.unsqueeze(2), found[0], best[0])
    return codes, torch.where(better, found[1], best[1]), torch.where(better, found[2], best[2])
