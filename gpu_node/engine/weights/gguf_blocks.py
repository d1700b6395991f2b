"""GGUF's blocks of quantised values, taken apart into codes, scales and minima.

Invariants: what `decoded` gives dequantises to exactly the numbers that the `gguf` package computes; rows stay rows.
Works on bytes on any device. Knows no files and no names. The layouts are those of ggml's `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gpu_node.engine.products.base import QuantisedWeight, pack_nibbles

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

# Codes [blocks, values], scales and minima [blocks, groups].
Parts = tuple[Tensor, Tensor, Tensor | None]


def decoded(raw: Tensor, kind: str, columns: int) -> QuantisedWeight:
    """`raw` uint8 [rows, bytes of a row] of a type in `DECODERS`."""
    decoder, group, bits = DECODERS[kind]
    rows = raw.shape[0]
    codes, scales, minima = decoder(raw.reshape(-1, BLOCK_BYTES[kind]))
    shape = (rows, columns // group)
    return QuantisedWeight(
        codes=codes.reshape(rows, columns * bits // 8),
        scales=scales.reshape(shape),
        minima=None if minima is None else minima.reshape(shape),
        group=group,
        bits=bits,
        shape=(rows, columns),
    )


def numbers(raw: Tensor, kind: str, columns: int) -> Tensor:
    """The values of `raw` [rows, bytes of a row], whatever its type, as floats [rows, columns]."""
    plain = PLAIN.get(kind)
    if plain is not None:
        return raw.view(plain).view(raw.shape[0], columns)
    if kind in DECODERS:
        return decoded(raw, kind, columns).dequantised()
    return _of_the_library(raw, kind).view(raw.shape[0], columns)


def _of_the_library(raw: Tensor, kind: str) -> Tensor:
    """For types that are no codes with scales: tables and lattices, which are only ever unpacked."""
    import gguf

    values = gguf.dequantize(raw.cpu().numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values).to(raw.device)


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16)


def _q4_0(blocks: Tensor) -> Parts:
    scale = _half(blocks, 0)
    return blocks[:, 2:], scale, scale * -8  # a power of two: exact for every scale below 8188


def _q4_1(blocks: Tensor) -> Parts:
    return blocks[:, 4:], _half(blocks, 0), _half(blocks, 2)


def _fives(blocks: Tensor, high: int) -> Tensor:
    """Four low bits from nibbles, the fifth from a bit field of 32 before them."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    bits = ((blocks[:, high : high + 4].unsqueeze(2) >> shifts) & 1).reshape(-1, 32)
    low = blocks[:, high + 4 :]
    return torch.cat((low & 15, low >> 4), dim=1) | (bits << 4)


def _q5_0(blocks: Tensor) -> Parts:
    return _fives(blocks, 2).to(torch.int8) - 16, _half(blocks, 0), None


def _q5_1(blocks: Tensor) -> Parts:
    return _fives(blocks, 4).to(torch.int8), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Parts:
    return blocks[:, 2:].contiguous().view(torch.int8), _half(blocks, 0), None


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of six bits each out of twelve bytes."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (mixed & 15) | ((first >> 2) & 48)), dim=1)
    minima = torch.cat((second & 63, (mixed >> 4) | ((second >> 2) & 48)), dim=1)
    return scales, minima


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    return _half(blocks, 0).float() * scales.float(), -(_half(blocks, 2).float() * minima.float())


def _nibbles_in_order(packed: Tensor) -> Tensor:
    """128 bytes to 256 codes: of every 32 bytes first the low halves, then the high ones."""
    pieces = packed.reshape(-1, 4, 32)
    return torch.cat((pieces & 15, pieces >> 4), dim=2).reshape(-1, 256)


def _q4_k(blocks: Tensor) -> Parts:
    scales, minima = _k_scales(blocks)
    return pack_nibbles(_nibbles_in_order(blocks[:, 16:]), 32), scales, minima


def _q5_k(blocks: Tensor) -> Parts:
    scales, minima = _k_scales(blocks)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    high = ((blocks[:, 16:48].unsqueeze(1) >> shifts) & 1).reshape(-1, 256)
    codes = _nibbles_in_order(blocks[:, 48:]) | (high << 4)
    return codes.to(torch.int8), scales, minima


def _q6_k(blocks: Tensor) -> Parts:
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = torch.cat((low & 15, low >> 4), dim=2).reshape(-1, 256)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    codes = low | (((high >> shifts) & 3).reshape(-1, 256) << 4)
    scales = _half(blocks, 208).float() * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return codes.to(torch.int8) - 32, scales, None


def _twos(packed: Tensor) -> Tensor:
    """64 bytes to 256 codes of two bits: of every 32 bytes first the lowest bits, then the next ones."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device).view(1, 1, 4, 1)
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)


def _q2_k(blocks: Tensor) -> Parts:
    scales = _half(blocks, 80).float() * (blocks[:, :16] & 15).float()
    minima = -(_half(blocks, 82).float() * (blocks[:, :16] >> 4).float())
    return pack_nibbles(_twos(blocks[:, 16:80]), 16), scales, minima


def _q3_k(blocks: Tensor) -> Parts:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    high = ((blocks[:, :32].unsqueeze(1) >> shifts) & 1).reshape(-1, 256)
    codes = _twos(blocks[:, 32:96]) | (high << 2)  # the value is this minus 4
    low, upper = blocks[:, 96:104], blocks[:, 104:108]
    crossing = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(1, 4, 1)
    six = torch.cat((low & 15, low >> 4), dim=1) | (((upper.unsqueeze(1) >> crossing) & 3).reshape(-1, 16) << 4)
    scales = _half(blocks, 108).float() * (six.to(torch.int8) - 32).float()
    return pack_nibbles(codes, 16), scales, scales * -4


DECODERS: dict[str, tuple[Callable[[Tensor], Parts], int, Literal[4, 8]]] = {
    "Q4_0": (_q4_0, 32, 4),
    "Q4_1": (_q4_1, 32, 4),
    "Q5_0": (_q5_0, 32, 8),
    "Q5_1": (_q5_1, 32, 8),
    "Q8_0": (_q8_0, 32, 8),
    "Q2_K": (_q2_k, 16, 4),
    "Q3_K": (_q3_k, 16, 4),
    "Q4_K": (_q4_k, 32, 4),
    "Q5_K": (_q5_k, 32, 8),
    "Q6_K": (_q6_k, 16, 8),
}
BLOCK_BYTES = {
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34,
    "Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210,
}  # fmt: skip
