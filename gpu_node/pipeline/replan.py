"""What becomes of a running plan when devices come, go, change or die. Pure: a situation in, a decision out.

Invariants: what runs is only given up for something better, for something that was asked for, or because it is gone; a
device whose leaving nobody could bear stays, with the sentence that says so. Must not know workers, threads or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_node.plan_picture import Picture
from gpu_node.split_plan import DoesNotFit, Plan

# A switch computes everything under way again: less than this is not worth it, and paces are measurements.
WORTH_IT = 1.05
# Who plans by these has weighed one time against the other; elsewhere neither may get worse.
BY_TIME = ("profiled", "by hand")


@dataclass(frozen=True, slots=True)
class Situation:
    """Budgets by device, None: whatever is free."""

    plan: Plan | None  # that runs; None: none does any more
    budgets: Mapping[str, int | None]  # that it was made with
    present: Mapping[str, int | None]  # of the devices that plans are made over
    leaving: frozenset[str]
    found: Picture | DoesNotFit  # over those present


@dataclass(frozen=True, slots=True)
class Keep:
    """What runs goes on."""


@dataclass(frozen=True, slots=True)
class Build:
    picture: Picture
    why: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """What was asked of these devices cannot be done."""

    devices: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing can run."""

    error: DoesNotFit


Decision = Keep | Build | Refuse | Stop


def decide(situation: Situation) -> Decision:
    plan, found = situation.plan, situation.found
    used = () if plan is None else tuple(stage.device for stage in plan.stages)
    gone = [name for name in used if name not in situation.present and name not in situation.leaving]
    if isinstance(found, DoesNotFit):
        if plan is None or gone:
            return Stop(found)
        asked = _asked(situation, used)
        return Refuse(asked, str(found)) if asked else Keep()
    if plan is None:
        return Build(found, found.plan.reason)
    if gone:
        return Build(found, f"{', '.join(gone)} is gone")
    asked = _asked(situation, used)
    if asked:
        return Build(found, f"asked for: {', '.join(asked)}")
    why = gain(plan, found.plan)
    return Build(found, why) if why else Keep()


def gain(current: Plan, new: Plan) -> str:
    """What the new plan is better in; empty: in nothing that is worth a switch."""
    if spans(current) == spans(new):
        return ""
    if new.capacity_tokens > current.capacity_tokens * WORTH_IT:
        return f"room for {new.capacity_tokens:,} tokens instead of {current.capacity_tokens:,}"
    if new.capacity_tokens * WORTH_IT < current.capacity_tokens:
        return ""
    pairs = (
        (current.latency_seconds, new.latency_seconds, "a step"),
        (current.period_seconds, new.period_seconds, "from step to step"),
    )
    told = [(before, after, what) for before, after, what in pairs if before is not None and after is not None]
    if new.strategy not in BY_TIME and any(after > before * WORTH_IT for before, after, _ in told):
        return ""
    gained = [
        f"{after * 1e3:.1f} ms {what}, not {before * 1e3:.1f}"
        for before, after, what in told
        if before > after * WORTH_IT
    ]
    return ", ".join(gained)


def spans(plan: Plan) -> tuple[tuple[str, int, int], ...]:
    return tuple((stage.device, stage.first, stage.behind) for stage in plan.stages)


def kept_layers(held: Mapping[str, tuple[int, int]], plan: Plan) -> int:
    """So many layers of the plan need not be read anew; `held`: first and behind the last, by device."""
    kept = 0
    for stage in plan.stages:
        first, behind = held.get(stage.device, (0, 0))
        kept += max(min(behind, stage.behind) - max(first, stage.first), 0)
    return kept


def _asked(situation: Situation, used: tuple[str, ...]) -> tuple[str, ...]:
    """Devices in use that somebody wants back, all of them or a part."""
    return tuple(name for name in used if name in situation.leaving or _shrunk(situation, name))


def _shrunk(situation: Situation, name: str) -> bool:
    before, now = situation.budgets.get(name), situation.present.get(name)
    return name in situation.present and before is not None and now is not None and now < before
