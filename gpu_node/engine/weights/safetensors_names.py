"""Names in checkpoints that are not the model's own: experts one by one, and modules by older names.

Pure. Invariant: a stack is whole, with every expert's parts, or it is not offered. Must not know files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

# How the three matrices of an expert are called: gate, up, down.
_EXPERTS = (
    re.compile(r"(?P<place>.+\.mlp)\.experts\.(?P<expert>\d+)\.(?P<part>gate_proj|up_proj|down_proj)\.weight"),
    re.compile(r"(?P<place>.+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>w1|w3|w2)\.weight"),
)
_PARTS = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1, "down_proj": 2, "w2": 2}
_RENAMED = ((re.compile(r"(.+)\.block_sparse_moe\.gate\.weight"), r"\1.mlp.gate.weight"),)
_WHOLE_NAMES = {"embed_out.weight": "lm_head.weight"}


@dataclass(frozen=True, slots=True)
class Stack:
    """A parameter of one matrix an expert: its parts below each other, expert by expert."""

    experts: tuple[tuple[str, ...], ...]  # each expert's parts, from the top


def stacks_of(names: Collection[str]) -> dict[str, Stack]:
    """Parameter name to what it is stacked of."""
    found: dict[str, dict[int, dict[int, str]]] = {}
    for name in names:
        match = next((match for pattern in _EXPERTS if (match := pattern.fullmatch(name))), None)
        if match:
            place = match["place"] + ("" if match["place"].endswith(".mlp") else ".mlp")
            found.setdefault(place, {}).setdefault(int(match["expert"]), {})[_PARTS[match["part"]]] = name
    stacks = {}
    for place, experts in found.items():
        if sorted(experts) == list(range(len(experts))) and all(len(parts) == 3 for parts in experts.values()):
            in_order = [experts[expert] for expert in range(len(experts))]
            stacks[f"{place}.experts.gate_up_proj"] = Stack(tuple((parts[0], parts[1]) for parts in in_order))
            stacks[f"{place}.experts.down_proj"] = Stack(tuple((parts[2],) for parts in in_order))
    return stacks


def renamed(names: Collection[str]) -> Mapping[str, str]:
    """The model's name to the file's, where they differ."""
    found = {own: name for name, own in _WHOLE_NAMES.items() if name in names}
    for name in names:
        for pattern, own in _RENAMED:
            if pattern.fullmatch(name):
                found[pattern.sub(own, name)] = name
    return found
