"""Host memory for blocks that come and go by ranges, at addresses of their own from the start.

Invariants: pages cost nothing until they are written, and are the system's again once they are let go; what is read of
them then is zero. Must not know what lies in blocks, nor whose they are.
"""

from __future__ import annotations

import mmap
import sys

import torch
from torch import Tensor


class Arena:
    def __init__(self, block_bytes: int, blocks: int) -> None:
        """Raises `OSError` where not even addresses are to be had."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._map = mmap.mmap(-1, block_bytes * blocks, flags=flags)
        self._block_bytes, self.blocks = block_bytes, blocks
        with torch.inference_mode(False):  # written inside of it and outside
            self.memory: Tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    @staticmethod
    def of(block_bytes: int, blocks: int) -> Arena | None:
        """None for no blocks, and where pages cannot be given back."""
        return Arena(block_bytes, blocks) if blocks and sys.platform == "linux" else None

    def let_go(self, first: int, behind: int) -> None:
        """All pages that hold nothing but these blocks."""
        page = mmap.PAGESIZE
        begin = -(-first * self._block_bytes // page) * page
        end = behind * self._block_bytes // page * page
        if begin < end:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)
