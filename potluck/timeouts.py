"""How long a client waits, phase by phase. The named defaults live here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .errors import Misuse


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; every value is above 0, or None to wait without end.

    `connect_seconds`: a gateway stands in the same network, so silence at connecting means that it is not there.
    `answer_seconds`: for a whole answer or batch, of which nothing is heard before its end; old phones write slowly.
    `silence_seconds`: the longest pause in a stream; a phone that reads a long prompt anew says nothing for minutes.
    `lookup_seconds`: for health, nodes and models, which the gateway answers from memory.
    """

    connect_seconds: float | None = 5.0
    answer_seconds: float | None = 600.0
    silence_seconds: float | None = 300.0
    lookup_seconds: float | None = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise Misuse(f"{field.name} must be above 0, or None to wait without end")
