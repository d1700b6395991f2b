"""When a phone is given its model before anybody asks for it. Pure: what was seen and `now` in, what is due out.

A model is loaded when its phone comes into service, when it is wished for or arrives there anew, and when another one
has displaced it and the phone has been idle for a while. One whose keep-alive ran out, or that somebody unloaded, is
left alone until the next of these: how long a model stays is `keep_alive`'s business. Must not know backends or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from server.breaker import BreakerState
from server.nodes import Load, ModelKey, Node, NodeSpec, NodeStatus, model_key

MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class WarmthRules:
    """`auto`: phones that joined or hang on a cable, and of which the fleet file says nothing, are warmed too."""

    auto: bool = True
    # Before another model is perhaps displaced, and what it remembers of conversations with it: as long as Ollama keeps
    # a model by default. Doubles while that one keeps coming back.
    idle_seconds: float = 300.0
    first_pause_seconds: float = 30.0  # after a failure; doubles with each further one
    longest_pause_seconds: float = 1800.0


@dataclass(frozen=True, slots=True)
class Warmth:
    """What is remembered of one node from look to look. Times are of the loop's clock."""

    in_service: bool = False
    answers: bool = False  # its last probe
    wishes: tuple[ModelKey, ...] = ()  # what it should hold
    pending: tuple[ModelKey, ...] = ()  # what of it is to be loaded
    held: frozenset[ModelKey] = frozenset()  # what was in its memory
    expiries: frozenset[tuple[ModelKey, str | None]] = frozenset()  # and until when: later after each use
    ended: int = 0  # requests, well or not
    idle_since: float = 0.0
    failures: int = 0
    not_before: float = 0.0
    displaced: int = 0  # times in a row that another model came between
    displaced_at: float = 0.0
    room: int | None = None  # how many wishes it was seen to hold at once, where that were not all


def wishes_of(node: Node, rules: WarmthRules) -> tuple[ModelKey, ...]:
    """What the node should hold in memory, first choice first: of what it has."""
    spec = node.spec
    if spec.kind != "ollama" or spec.origin == "embedded" or node.is_gpu_node:
        return ()
    if spec.warm_up is not None:
        return tuple(key for key in map(model_key, spec.warm_up) if key in node.models)
    if not rules.auto or not is_own_phone(spec):
        return ()
    set_up_with = spec.details.get("model")
    if isinstance(set_up_with, str) and model_key(set_up_with) in node.models:
        return (model_key(set_up_with),)
    return tuple(node.models) if len(node.models) == 1 else ()


def is_own_phone(spec: NodeSpec) -> bool:
    """Did it join, or does it hang on a cable? Other people's servers keep their memory as they like."""
    return bool(spec.details) or spec.origin == "adb" or spec.serial is not None


def is_in_service(node: Node) -> bool:
    """Does it work, as far as is known? A single probe without an answer says little: a phone that loads is slow."""
    return node.status is NodeStatus.READY and not node.refused_probe and node.resting is None


def is_lost(node: Node) -> bool:
    """Has it died or fallen silent? Under a loading, that is likely its fault."""
    return node.status is NodeStatus.SILENT or node.refused_probe


def looked(warmth: Warmth, node: Node, load: Load, rules: WarmthRules, now: float) -> Warmth:
    """What is to be remembered after a look at the node."""
    ended = load.answered + load.failed
    held = frozenset(node.resident)
    expiries = frozenset((key, model.expires_at) for key, model in node.resident.items())
    # others may ask the phone too, past the gateway
    worked = load.in_flight > 0 or ended != warmth.ended or not expiries <= warmth.expiries
    idle_since = now if worked or not warmth.in_service else warmth.idle_since
    if not is_in_service(node):
        return replace(warmth, in_service=False, answers=False, ended=ended, expiries=expiries, idle_since=now)
    wishes = wishes_of(node, rules)
    if wishes != warmth.wishes:
        warmth = replace(warmth, room=None)
    if not warmth.in_service:
        wanted = set(wishes)
    else:
        wanted = set(warmth.pending) | (set(wishes) - set(warmth.wishes))
        warmth, pushed_out = _pushed_out(warmth, wishes, held, now, rules)
        wanted |= pushed_out
    pending = tuple(key for key in wishes[: warmth.room] if key in wanted and key not in held)
    return replace(
        warmth,
        in_service=True,
        answers=node.failed_probes == 0,
        wishes=wishes,
        pending=pending,
        held=held,
        expiries=expiries,
        ended=ended,
        idle_since=idle_since,
    )


def _pushed_out(
    warmth: Warmth, wishes: tuple[ModelKey, ...], held: frozenset[ModelKey], now: float, rules: WarmthRules
) -> tuple[Warmth, set[ModelKey]]:
    """The wishes that had to go for another model. By a further wish, it shows how many there is room for."""
    gone = {key for key in wishes if key in warmth.held and key not in held}
    newcomers = held - warmth.held
    if not gone or not newcomers:
        return warmth, set()  # its time was over, or somebody let it go
    if newcomers <= set(wishes):
        return replace(warmth, room=max(1, sum(key in held for key in wishes))), gone
    again = now - warmth.displaced_at < 2 * rules.longest_pause_seconds
    return replace(warmth, displaced=warmth.displaced + 1 if again else 1, displaced_at=now), gone


def due(warmth: Warmth, load: Load, rules: WarmthRules, now: float) -> ModelKey | None:
    """What is to be loaded at this moment, if anything is."""
    if not warmth.in_service or not warmth.answers or not warmth.pending or now < warmth.not_before:
        return None
    shunned = now < max(load.busy_until, load.shunned_until)
    if load.in_flight or shunned or load.breaker.state is not BreakerState.CLOSED:
        return None
    if warmth.held and now - warmth.idle_since < _doubled(rules.idle_seconds, warmth.displaced, rules):
        return None
    return warmth.pending[0]


def is_in_the_way(load: Load, model: ModelKey) -> bool:
    """Do requests for other models wait for this loading? Ollama gives one up when whoever wanted it hangs up."""
    return any(count > 0 and other != model for other, count in load.in_flight_by_model.items())


def loaded(warmth: Warmth, model: ModelKey) -> Warmth:
    """A loading has succeeded. What else the node holds now, the next look tells."""
    pending = tuple(key for key in warmth.pending if key != model)
    return replace(warmth, pending=pending, held=warmth.held | {model}, failures=0, not_before=0.0)


def refused(warmth: Warmth, model: ModelKey) -> Warmth:
    """The node says that this cannot be: a model that only embeds, or one that is gone. It is not asked again."""
    return replace(warmth, pending=tuple(key for key in warmth.pending if key != model))


def failed(warmth: Warmth, rules: WarmthRules, now: float) -> Warmth:
    failures = warmth.failures + 1
    return replace(warmth, failures=failures, not_before=now + _doubled(rules.first_pause_seconds, failures, rules))


def _doubled(seconds: float, times: int, rules: WarmthRules) -> float:
    doublings: int = 2 ** min(max(times - 1, 0), MOST_DOUBLINGS)
    return min(seconds * doublings, max(seconds, rules.longest_pause_seconds))
