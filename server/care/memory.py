"""Rests that outlive their nodes: what a phone that comes back had not recovered from. Pure; a value.

A phone that was unplugged, lost its network, or was silent until its words were too old, has not cooled down by that:
where its next words lie between the two marks of a rest, the rest goes on. Bounded in time and in number. Knows no
node: a phone has a name here that stays its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.care.care import Care
from server.care.condition import Condition

REMEMBERED_SECONDS = 3600.0  # whatever heated a phone up before is over; and few stay away for so long and come back
MOST_REMEMBERED = 4096  # phones at rest at once
HEAT = ("temperature_c", "thermal_status", "overheated")  # the first measures; the others are verdicts
CHARGE = ("level",)


@dataclass(frozen=True, slots=True)
class Rest:
    """What the phone told when it last rested for heat, and for its charge; None: it does not, or has recovered."""

    heat: Condition | None = None
    charge: Condition | None = None

    def remembered(self, now: float) -> Rest:
        """Without what is too long ago. A clock that was set makes nothing younger."""
        return Rest(_young(self.heat, now), _young(self.charge, now))

    def renewed(self, told: Condition, care: Care) -> Rest:
        """After other words (those still believed) and the care that they meant: what nobody spoke of has not ended."""
        heat = told if care.hot else None if _answers(told, self.heat, HEAT) else self.heat
        charge = told if care.low else None if _answers(told, self.charge, CHARGE) else self.charge
        return Rest(heat, charge)

    @property
    def newest(self) -> Condition | None:
        return max(filter(None, (self.heat, self.charge)), key=lambda told: told.at, default=None)


@dataclass(frozen=True, slots=True)
class RestMemory:
    """By the phone's name. `of` and `renewed`; replaced whole."""

    rests: Mapping[str, Rest] = field(default_factory=dict)

    def of(self, phone: str, now: float) -> Rest:
        return self.rests.get(phone, Rest()).remembered(now)

    def renewed(self, phone: str, rest: Rest, now: float) -> RestMemory:
        """With this phone's rest; the oldest goes where there are too many."""
        if rest == Rest() and phone not in self.rests:
            return self
        kept = dict(self.rests)  # what is too old goes when it is the oldest of too many, and is not believed before
        kept.pop(phone, None)
        if rest.remembered(now) != Rest():
            kept[phone] = rest
        if len(kept) > MOST_REMEMBERED:
            del kept[next(iter(kept))]
        return RestMemory(kept)


def _young(told: Condition | None, now: float) -> Condition | None:
    return told if told is not None and abs(now - told.at) <= REMEMBERED_SECONDS else None


def _answers(told: Condition, asked: Condition | None, facts: tuple[str, ...]) -> bool:
    """Does it tell the measure itself, or else everything that was told when the rest was decided?"""
    needed = [name for name in facts if asked is not None and getattr(asked, name) is not None]
    return getattr(told, facts[0]) is not None or all(getattr(told, name) is not None for name in needed)
