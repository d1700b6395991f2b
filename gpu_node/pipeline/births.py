"""What a node and the template of its workers tell each other: one message, one packet of a Unix socket.

    node -> template      Birth, with two descriptors: input and stderr of the worker
    template -> node      Ready or Unfit, once; Born, with a handle of the process, or Failed; Ended

Invariants: a token is never in a message, it comes over the worker's own input; whatever is larger than a message may
be is a worker that is started plainly. Pure. Must not know processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_node.pipeline.order_codec import MESSAGE_BYTES, OrderCodec

__all__ = ["CODEC", "MESSAGE_BYTES", "Birth", "Born", "Ended", "Failed", "Ready", "Unfit"]


@dataclass(frozen=True, slots=True)
class Birth:
    """A worker is wanted. Its environment: the template's, but for these."""

    number: int
    arguments: tuple[str, ...]
    changed: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()

    @classmethod
    def between(cls, number: int, arguments: tuple[str, ...], had: Mapping[str, str], new: Mapping[str, str]) -> Birth:
        """`had`: the template's environment, `new`: the worker's."""
        changed = tuple(sorted((name, value) for name, value in new.items() if had.get(name) != value))
        return cls(number, arguments, changed, tuple(sorted(had.keys() - new.keys())))


@dataclass(frozen=True, slots=True)
class Ready:
    seconds: float  # of processor time that every worker is spared


@dataclass(frozen=True, slots=True)
class Unfit:
    """No worker may come of this process, nor of another one like it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Born:
    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Failed:
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    number: int
    code: int
    signal: int  # 0: it ended by itself


CODEC = OrderCodec((Birth, Ready, Unfit, Born, Failed, Ended))
