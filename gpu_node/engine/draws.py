"""Random numbers that are looked up, not drawn in turn: the n-th token of a sample always meets the same one.

Invariant: `uniform` is a pure function of its two integers, so neither batching, preemption, speculation nor a restart
changes an answer. Must not know torch nor logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

WORD = (1 << 64) - 1
# The step and the mixer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
STEP = 0x9E3779B97F4A7C15


class NoToken(IntEnum):
    """In the place of a token: why there is none."""

    NOT_FINITE = -1
    NOTHING_ALLOWED = -2
    UNDECIDED = -3  # the draw lies beyond the candidates that were looked at


@dataclass(frozen=True, slots=True)
class Draw:
    """What decides one token besides the logits."""

    uniform: float
    temperature: float
    top_k: int  # below 1: all
    top_p: float
    min_p: float
    typical_p: float


def uniform(key: int, written: int) -> float:
    """The number in [0, 1) that token `written` (0 is the first) of the sample `key` meets; 53 bits are random.

    SplitMix64 is a counter behind a mixer, so its n-th output needs no state. The key is mixed before the counter is
    added: neighbouring seeds give unrelated numbers, and no two keys walk the same sequence a few places apart.
    """
    return (_mixed(_mixed(key & WORD) + (written + 1) * STEP) >> 11) * 2.0**-53


def _mixed(word: int) -> int:
    word &= WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)
