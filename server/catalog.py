"""Model names: what a request's `model` means in this fleet. Pure; knows nothing of load or time.

`:latest` and case do not matter, aliases come from the settings, "auto" (or nothing) means each node's own model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from server.errors import ModelNotFound
from server.nodes import ModelCopy, ModelKey, Node, NodeStatus, model_key

AUTO = "auto"
MAX_NAME_CHARS = 256  # what is longer was not mistyped; looking for names near it would stop everybody else
NEAREST_NAMES = 3  # more would be a list, not a hint
LISTED = (NodeStatus.READY, NodeStatus.DRAINING)


def resolve(model: str | None, nodes: Collection[Node], aliases: Mapping[str, str]) -> ModelKey | None:
    """The key of the model meant; None for each node's own.

    A name that a silent node is known to have resolves too: that it cannot answer now is another error.
    Raises ModelNotFound, with the nearest names, when no node ever listed it.
    """
    if model is None or model.strip().lower() in ("", AUTO):
        return None
    wanted = model_key(model)
    if any(wanted in node.models for node in nodes):  # asked for every request: no list of all models is made
        return wanted
    by_key = {model_key(alias): target for alias, target in aliases.items()}
    target = by_key.get(wanted)
    if target is not None:
        return None if target.strip().lower() == AUTO else resolve(target, nodes, {})
    if len(model) > MAX_NAME_CHARS:
        raise ModelNotFound(f"{model[:MAX_NAME_CHARS]}…")
    known = {key for node in nodes for key in node.models}
    raise ModelNotFound(model, nearest(wanted, [*known, *by_key]))


def nearest(wanted: str, names: Iterable[str]) -> tuple[str, ...]:
    """Known names that look like the wanted one, best first; the same model in another size counts as near."""
    candidates = sorted({name for name in names if len(name) <= MAX_NAME_CHARS})
    close = get_close_matches(wanted, candidates, n=NEAREST_NAMES, cutoff=0.6)
    family = wanted.split(":")[0]
    close += [name for name in candidates if name.split(":")[0] == family and name not in close]
    return tuple(close[:NEAREST_NAMES])


def union(nodes: Iterable[Node]) -> dict[ModelKey, ModelCopy]:
    """Every model that some node can serve now, each once (the first copy found), by name."""
    copies: dict[ModelKey, ModelCopy] = {}
    for node in nodes:
        if node.status in LISTED:
            for key, copy in node.models.items():
                copies.setdefault(key, copy)
    return dict(sorted(copies.items()))
