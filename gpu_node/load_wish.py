"""How a model is to be held: the settings' defaults, and what one loading asks for instead.

A value only; whoever loads reads it. Must not know HTTP or torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
WeightsMode = Literal["auto", "full", "stored", "int8", "int4"]
KernelsMode = Literal["auto", "torch", "compiled"]
SpeculationMode = Literal["auto", "off"]

# Tokens of a step that only reads prompts, where nobody says it: a GPU reads a thousand in about the time of one, a CPU
# core needs the time of each.
CPU_STEP_TOKENS, GPU_STEP_TOKENS = 512, 4096
# Slots of a block: what the attention kernels can bear.
BLOCK_TOKENS = (8, 16, 32, 64, 128, 256)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoadWish:
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    weights: WeightsMode = "auto"
    kernels: KernelsMode = "auto"
    threads: int = 0  # 0: torch decides
    context: int = 0  # 0: the model's own, within reason
    block_tokens: int = 16
    kv_bytes: int = 0  # 0 and no blocks either: as much as is sensible beside the weights
    kv_blocks: int = 0
    max_running: int = 32
    step_tokens: int = 0  # 0: as the device can bear
    mixed_step_tokens: int = 0
    speculation: SpeculationMode = "auto"


def parse_bytes(value: int | str) -> int:
    """A number of bytes, or a text like "2GB" or "512 MiB". Raises `ValueError` with a sentence."""
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size cannot be negative")
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'"{value}" is no size: write bytes, or a text like "2GB" or "512MiB"')
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " "))
