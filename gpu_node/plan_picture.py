"""A plan as people and programs look at it: a record for JSON, a table, and a bar for each device. Pure.

Bars share one scale, the largest device's, so that unequal devices look unequal; what is there at all is seen at any
width. Every line fits the width. Must not know terminals, HTTP or how the plan was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_node.split_plan import Plan, PlannedDevice, Sizes, StagePlan

NARROWEST = 40
LEAST_BAR = 8
# weights, cache that is promised, activations of a step, room that is left, reserve
SIGNS = "█▓▒░·"
PLAIN_SIGNS = "#%+-."
MEANINGS = ("weights", "cache", "step", "free", "reserve")


@dataclass(frozen=True, slots=True)
class Share:
    """What a plan does with one device, in bytes; `stage` is None where it gets no layer."""

    device: PlannedDevice
    stage: StagePlan | None
    weights_bytes: int = 0
    cache_bytes: int = 0
    step_bytes: int = 0

    @property
    def free_bytes(self) -> int:
        """Usable, and not promised."""
        return max(self.device.usable_bytes - self.weights_bytes - self.cache_bytes - self.step_bytes, 0)

    @property
    def parts(self) -> tuple[int, ...]:
        """As `MEANINGS` names them; they add up to the device."""
        used = (self.weights_bytes, self.cache_bytes, self.step_bytes, self.free_bytes)
        return (*used, max(self.device.free_bytes - sum(used), 0))


@dataclass(frozen=True, slots=True)
class Picture:
    """A plan with what it was made from."""

    plan: Plan
    sizes: Sizes
    devices: tuple[PlannedDevice, ...]

    @property
    def shares(self) -> tuple[Share, ...]:
        """Stages in their order, then devices without one."""
        named = {device.name: device for device in self.devices}
        used = [self._share(named[stage.device], stage) for stage in self.plan.stages]
        idle = [Share(device, None) for device in self.devices if device.name not in {one.device.name for one in used}]
        return (*used, *idle)

    def _share(self, device: PlannedDevice, stage: StagePlan) -> Share:
        cache = self.plan.capacity_tokens * self.sizes.cache_token(stage.first, stage.behind)
        return Share(device, stage, stage.weights_bytes, cache, self.sizes.activations(stage.behind))


def record_of(picture: Picture, measured: bool = True) -> dict[str, Any]:
    """For JSON. Layers are counted from 0 and `behind_layer` is the first that is not the stage's any more.

    Not `measured`: the paces are only in proportion, so that shares of a step are told, and no seconds."""
    plan, sizes = picture.plan, picture.sizes
    return {
        "fits": True,
        "model": sizes.shape.name,
        "layers": sizes.layers,
        "weights_bytes": sizes.shape.weights_bytes,
        "context_tokens": sizes.demand.context_tokens,
        "concurrency": sizes.demand.sequences,
        "capacity_tokens": plan.capacity_tokens,
        "strategy": plan.strategy,
        "reason": plan.reason,
        "epoch": plan.epoch,
        "latency_seconds": plan.latency_seconds if measured else None,
        "period_seconds": plan.period_seconds if measured else None,
        "devices": [_share_record(share, picture, measured) for share in picture.shares],
    }


def _share_record(share: Share, picture: Picture, measured: bool) -> dict[str, Any]:
    stage, device = share.stage, share.device
    return {
        "device": device.name,
        "kind": device.kind,
        "total_bytes": device.free_bytes,
        "usable_bytes": device.usable_bytes,
        "first_layer": stage.first if stage else None,
        "behind_layer": stage.behind if stage else None,
        "layers": stage.layers if stage else 0,
        "share": stage.layers / picture.sizes.layers if stage else 0.0,
        "weights_bytes": share.weights_bytes,
        "cache_bytes": share.cache_bytes,
        "step_bytes": share.step_bytes,
        "free_bytes": share.free_bytes,
        "capacity_tokens": stage.capacity_tokens if stage else 0,
        "seconds": stage.seconds if stage and measured else None,
        "time_share": _time_share(stage, picture.plan),
    }


def _time_share(stage: StagePlan | None, plan: Plan) -> float | None:
    """Of one decode step through all stages and links; None where the pace is not known."""
    if stage is None or stage.seconds is None or not plan.latency_seconds:
        return None
    return stage.seconds / plan.latency_seconds


def plan_lines(picture: Picture, width: int, plain: bool = False) -> list[str]:
    """All of it, for a terminal of that width (40 at least). `plain`: ASCII only."""
    width = max(width, NARROWEST)
    lines = [headline(picture, width), ""]
    lines += [*table_lines(picture, width), "", *bar_lines(picture, width, plain), ""]
    return [*lines, *wrapped(summary(picture), width)]


def headline(picture: Picture, width: int) -> str:
    """The model, with as many facts as fit."""
    shape, demand = picture.sizes.shape, picture.sizes.demand
    facts = [f"{picture.sizes.layers} layers", f"{size_text(shape.weights_bytes)} of weights"]
    times = f" x {demand.sequences}" if demand.sequences > 1 else ""
    facts.append(f"context {demand.context_tokens:,}{times}")
    line = shortened(shape.name, width)
    for fact in facts:
        line += f"   {fact}" if len(line) + 3 + len(fact) <= width else ""
    return line


def table_lines(picture: Picture, width: int) -> list[str]:
    """Columns that do not fit are left out, from the least telling one on."""
    rows = [_row(share, picture) for share in picture.shares]
    timed = any(row["TIME"] != "-" for row in rows)
    titles = ["DEVICE", "LAYERS", "SHARE", "WEIGHTS", "CACHE", *(["TIME"] if timed else []), "TOKENS", "USED", "OF"]
    for dropped in ("OF", "TIME", "CACHE", "USED", "TOKENS", "WEIGHTS", "SHARE"):
        lines = _aligned([{title: title for title in titles}, *rows], titles)
        if max(map(len, lines)) <= width:
            return lines
        titles = [title for title in titles if title != dropped]
    return [shortened(line, width) for line in _aligned([{title: title for title in titles}, *rows], titles)]


def _row(share: Share, picture: Picture) -> dict[str, str]:
    stage, whole = share.stage, share.device.free_bytes
    row = dict.fromkeys(("LAYERS", "SHARE", "WEIGHTS", "CACHE", "TOKENS", "USED", "TIME"), "-")
    row |= {"DEVICE": share.device.name, "OF": size_text(whole)}
    if stage is None:
        return row
    used = share.weights_bytes + share.cache_bytes + share.step_bytes
    last = stage.behind - 1
    time = _time_share(stage, picture.plan)
    return row | {
        "LAYERS": f"{stage.first}-{last}" if last > stage.first else str(last),
        "SHARE": f"{stage.layers / picture.sizes.layers:.0%}",
        "WEIGHTS": size_text(share.weights_bytes),
        "CACHE": size_text(share.cache_bytes),
        "TOKENS": f"{stage.capacity_tokens:,}",
        "USED": f"{used / whole:.0%}" if whole else "-",
        "TIME": "-" if time is None else f"{time:.0%}",
    }


def _aligned(rows: Sequence[dict[str, str]], titles: Sequence[str]) -> list[str]:
    """Names to the left, numbers to the right."""
    widths = {title: max(len(row[title]) for row in rows) for title in titles}
    left = ("DEVICE", "LAYERS")
    return [
        "  ".join(
            row[title].ljust(widths[title]) if title in left else row[title].rjust(widths[title]) for title in titles
        ).rstrip()
        for row in rows
    ]


def bar_lines(picture: Picture, width: int, plain: bool = False) -> list[str]:
    """One bar a device and what its signs mean."""
    signs = PLAIN_SIGNS if plain else SIGNS
    shares = picture.shares
    most = max(share.device.free_bytes for share in shares)
    names = min(max(len(share.device.name) for share in shares), width - LEAST_BAR - 14)
    room = max(width - names - 14, LEAST_BAR)  # two spaces on either side, and a size
    lines = []
    for share in shares:
        whole = share.device.free_bytes
        cells = max(round(room * whole / most), 1) if most else 1
        bar = "".join(sign * count for sign, count in zip(signs, cells_of(share.parts, cells), strict=True))
        lines.append(f"{shortened(share.device.name, names):<{names}}  {bar}  {size_text(whole)}")
    seen = [any(share.parts[at] for share in shares) for at in range(len(MEANINGS))]
    legend = [f"{sign} {meaning}" for sign, meaning, told in zip(signs, MEANINGS, seen, strict=True) if told]
    return [*lines, *(" " * (names + 2) + line for line in _filled(legend, width - names - 2))]


def cells_of(parts: Sequence[int], cells: int) -> list[int]:
    """So many cells for each part, by the largest remainder; what is there gets one where there are enough."""
    whole = sum(parts)
    if not whole:
        return [0] * len(parts)
    shares = [cells * part / whole for part in parts]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(parts)), key=lambda at: (counts[at] - shares[at], at))
    for at in by_remainder[: cells - sum(counts)]:
        counts[at] += 1
    for at, part in enumerate(parts):
        largest = max(range(len(parts)), key=lambda other: counts[other])
        if part and not counts[at] and counts[largest] > 1:
            counts[at] += 1
            counts[largest] -= 1
    return counts


def summary(picture: Picture) -> str:
    """What the plan promises, and why it is this one."""
    plan, demand = picture.plan, picture.sizes.demand
    stages = f"{len(plan.stages)} stages" if len(plan.stages) > 1 else "1 stage"
    contexts = plan.capacity_tokens // demand.least_tokens
    kept = f"{contexts} context{'s' if contexts > 1 else ''} of {demand.context_tokens:,} tokens"
    wanted = f", of {demand.sequences} wanted" if contexts < demand.sequences else ""
    return f"{stages} ({plan.strategy}), room for {kept}{wanted}: {plan.reason or 'as it was asked for'}."


def size_text(size: int) -> str:
    """Three digits tell two devices apart."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB" if size < 1e11 else f"{size / 1e9:.0f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def wrapped(text: str, width: int) -> list[str]:
    return list(_filled(text.split(" "), width, " "))


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 2, 0)] + ".."[:width]


def _filled(words: Sequence[str], width: int, between: str = "   ") -> Iterator[str]:
    """As many words a line as fit; a word that never fits has a line of its own."""
    line = ""
    for word in words:
        if line and len(line) + len(between) + len(word) > width:
            yield line
            line = word
        else:
            line = line + between + word if line else word
    if line:
        yield line
