"""`GET` and `POST /_control`: the knobs of a phone for those who do not hold its Python object. Off unless
`settings.control`.

POST takes a JSON object: names of `PhoneSettings` with new values, and `"faults": [{"kind": …, "times": …, "paths":
…}]` to add, `"heal": true` to end all faults, `"freeze": seconds`, `"forget": true`. GET answers counters and
settings.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import orjson

from tests.fakes.phone_faults import Fault, FaultRule, paths_named
from tests.fakes.phone_http import Exchange
from tests.fakes.phone_settings import FakeModel, PhoneSettings
from tests.fakes.phone_state import PhoneState

_SETTINGS = frozenset(field.name for field in fields(PhoneSettings))
_RULE_FIELDS = ("times", "paths", "probability", "skip")


def answer_control(state: PhoneState, exchange: Exchange) -> None:
    method = exchange.request.method
    if method == "GET":
        _say(exchange, 200, {"counters": state.counters.as_dict(), "settings": asdict(state.settings)})
        return
    if method != "POST":
        _say(exchange, 405, {"error": "GET or POST"})
        return
    try:
        change = orjson.loads(exchange.request.body or b"{}")
        apply_change(state, change)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _say(exchange, 400, {"error": str(error)})
        return
    _say(exchange, 200, {"ok": True})


def apply_change(state: PhoneState, change: dict[str, Any]) -> None:
    """Check all of it, then do all of it; raises ValueError or TypeError and changes nothing if something is
    unknown.
    """
    known = _SETTINGS | {"faults", "heal", "freeze", "forget"}
    unknown = sorted(set(change) - known)
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    values = {name: _value(name, change[name]) for name in change if name in _SETTINGS}
    rules = [_rule(entry) for entry in change.get("faults") or ()]
    if change.get("heal"):
        state.faults.clear()
    for rule in rules:
        rule.began = state.clock()
        state.faults.add(rule)
    for name, value in values.items():
        setattr(state.settings, name, value)
    if change.get("forget"):
        state.forget()
    if change.get("freeze"):
        state.freeze(float(change["freeze"]))


def _value(name: str, value: Any) -> Any:
    if name in ("models", "library"):
        return tuple(FakeModel(**_lists_as_tuples(entry)) for entry in value)
    if name == "answer_tokens":
        return (int(value[0]), int(value[1]))
    return value


def _lists_as_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def _rule(entry: dict[str, Any]) -> FaultRule:
    when = {name: entry[name] for name in _RULE_FIELDS if name in entry}
    what = {name: value for name, value in entry.items() if name not in _RULE_FIELDS}
    when["paths"] = paths_named(when.get("paths"))
    return FaultRule(Fault.from_json(what), **when)


def _say(exchange: Exchange, status: int, value: dict[str, Any]) -> None:
    exchange.whole(status, orjson.dumps(value), "application/json")
