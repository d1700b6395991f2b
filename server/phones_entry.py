"""One entry of the fleet file and the `NodeSpec` it means, both ways. Pure.

Every field is checked; a wrong one is an `EntryError` that names the field and says what is wanted.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from server.adb.ports import preferred_port
from server.durations import duration_seconds
from server.nodes import DEFAULT_OLLAMA_PORT, DEFAULT_RELAY_PORT, NodeId, NodeKind, NodeSpec, model_key

FIELDS = (
    "host",
    "port",
    "id",
    "name",
    "kind",
    "model",
    "weight",
    "max_concurrency",
    "serial",
    "tags",
    "enabled",
    "api_key_env",
    "continues_final_message",
    "tls",
    "warm_up",
    "keep_alive",
    "details",
)
FIELDS_OF_KINDS: Mapping[str, tuple[NodeKind, ...]] = {  # the others are of all
    "continues_final_message": ("openai",),
    "tls": ("relay",),
    "warm_up": ("ollama",),
    "keep_alive": ("ollama", "relay"),
}
MAX_TEXT_CHARS = 200
MAX_CONCURRENCY = 10_000
MAX_DETAILS = 32
MAX_WARM_UP, MAX_MODEL_CHARS = 32, 256
LEAST_KEEP_SECONDS = 1.0  # with less, every answer would drop the model; older Ollamas leave out the fraction besides
MAX_KEEP_SECONDS = 10 * 365 * 86_400.0  # what is meant for longer is meant for ever, and Ollama counts nanoseconds
AUTO = "auto"
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0  # weights are added up; far beyond each other, the smaller ones would be lost
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CABLE_HOST = "127.0.0.1"  # where a phone's forward ends


class EntryError(Exception):
    """A field of an entry is wrong. `field` is None where the entry as a whole is meant."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """ "; did you mean x?" where a known name is near, else all that are known."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def spec_of(entry: Any) -> NodeSpec:
    """The node that an entry means. Raises EntryError."""
    _verify_shape(entry)
    kind = _field(entry, "kind", _kind, "ollama")
    identity, host, port = _place(entry, kind)
    tls = _field(entry, "tls", _trust, False)
    spec = NodeSpec(
        id=NodeId(identity),
        name=_field(entry, "name", _text, identity),
        kind=kind,
        host=host,
        port=port,
        models=_field(entry, "model", _models, ()),
        weight=_field(entry, "weight", _weight, 1.0),
        max_concurrency=_field(entry, "max_concurrency", _concurrency, None),
        serial=_field(entry, "serial", _text, None),
        tags=_field(entry, "tags", _tags, ()),
        enabled=_field(entry, "enabled", _flag, True),
        api_key_env=_field(entry, "api_key_env", _variable, None),
        continues_final_message=_field(entry, "continues_final_message", _flag, False),
        tls=bool(tls),
        tls_file=tls if isinstance(tls, str) else None,
        details=_field(entry, "details", _details, {}),
        warm_up=_field(entry, "warm_up", warm_up_of, None),
        keep_alive=_field(entry, "keep_alive", keep_alive_of, None),
    )
    _verify_together(spec)
    return spec


def _verify_shape(entry: Any) -> None:
    if not isinstance(entry, dict):
        raise EntryError(f'an entry is an object like {{"host": "192.168.1.20"}}, not {_kind_of(entry)}')
    for key in entry:
        if key not in FIELDS:
            raise EntryError(f"unknown field {key!r}: {nearest(key, FIELDS)}", key)


def _place(entry: Mapping[str, Any], kind: NodeKind) -> tuple[str, str, int]:
    """Its id, host and port; of a phone on a cable all three follow from its serial."""
    host, serial = _host(entry), _field(entry, "serial", _text, None)
    if "host" in entry:
        port = _field(entry, "port", _port, _default_port(kind))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return _field(entry, "id", _text, address), host, port
    if kind != "ollama":
        raise EntryError("'host' is missing: only phones of kind 'ollama' are reached by their serial alone", "serial")
    return _field(entry, "id", _text, serial), host, _field(entry, "port", _port, preferred_port(serial))


def _verify_together(spec: NodeSpec) -> None:
    """What each field for itself does not show."""
    for name, kinds in FIELDS_OF_KINDS.items():
        if getattr(spec, name) not in (None, False) and spec.kind not in kinds:
            words = " and ".join(map(repr, kinds))
            raise EntryError(
                f"{name!r} is for nodes of {'kind' if len(kinds) == 1 else 'the kinds'} {words} only", name
            )
    served = {model_key(name) for name in spec.models}
    strangers = [name for name in spec.warm_up or () if served and model_key(name) not in served]
    if strangers:
        raise EntryError(f"'warm_up' names {strangers[0]!r}, which 'model' does not let it serve", "warm_up")


def entry_of(spec: NodeSpec) -> dict[str, Any]:
    """The shortest entry that means this node: what is as by default is left out."""
    entry: dict[str, Any] = {"host": spec.host, "port": spec.port, "id": spec.id, "name": spec.name, "kind": spec.kind}
    entry["model"] = spec.models[0] if len(spec.models) == 1 else list(spec.models)
    entry["weight"] = "auto" if spec.weight is None else spec.weight
    entry |= {"max_concurrency": spec.max_concurrency, "serial": spec.serial, "tags": list(spec.tags)}
    entry |= {"enabled": spec.enabled, "api_key_env": spec.api_key_env}
    entry["continues_final_message"] = spec.continues_final_message
    entry["tls"] = spec.tls_file or spec.tls
    entry |= {"details": dict(spec.details), "warm_up": warm_up_word(spec.warm_up), "keep_alive": spec.keep_alive}
    defaults = {
        "port": _default_port(spec.kind),
        "id": spec.address,
        "name": spec.id,
        "kind": "ollama",
        "model": [],
        "weight": 1.0,
        "max_concurrency": None,
        "serial": None,
        "tags": [],
        "enabled": True,
        "api_key_env": None,
        "continues_final_message": False,
        "tls": False,
        "details": {},
        "warm_up": AUTO,
        "keep_alive": None,
    }
    shortest = {key: value for key, value in entry.items() if key not in defaults or value != defaults[key]}
    return _without_place(shortest, spec)


def _without_place(entry: dict[str, Any], spec: NodeSpec) -> dict[str, Any]:
    """A phone on a cable whose port nobody chose is its serial and nothing else."""
    if spec.serial is None or (spec.host, spec.port) != (CABLE_HOST, preferred_port(spec.serial)):
        return entry
    named = {} if spec.id == spec.serial else {"id": spec.id}
    if spec.kind != "ollama":
        return entry
    return {key: value for key, value in entry.items() if key not in ("host", "port", "id")} | named


def _field(entry: Mapping[str, Any], name: str, check: Callable[[Any], Any], default: Any) -> Any:
    if name not in entry:
        return default
    try:
        return check(entry[name])
    except ValueError as problem:
        raise EntryError(f"{name!r} must be {problem}, not {_kind_of(entry[name])}", name) from None


def _host(entry: Mapping[str, Any]) -> str:
    if "host" not in entry:
        if "serial" in entry:
            return CABLE_HOST
        raise EntryError("'host' is missing: the name or the address of the phone, or its 'serial' for one on a cable")
    host: str = _field(entry, "host", _host_text, None)
    return host


def _host_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a name or an address")
    host = value.strip()
    if "//" in host or "/" in host:
        raise ValueError("a name or an address, no URL")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if host.count(":") == 1:
        raise ValueError("without a port, which is the field 'port'")
    try:
        labels = host.encode("idna").decode("ascii").removesuffix(".").split(".")
    except UnicodeError:
        raise ValueError("a name or an address") from None
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("a name or an address")
    if all(label.isdigit() for label in labels):
        raise ValueError("an address of four numbers below 256")
    return ".".join(labels).lower()


def _port(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise ValueError("a whole number from 1 to 65535")
    return value


def _kind(value: Any) -> NodeKind:
    if value not in get_args(NodeKind):
        raise ValueError("'ollama', 'openai' or 'relay'")
    kind: NodeKind = value
    return kind


def _default_port(kind: NodeKind) -> int:
    return DEFAULT_RELAY_PORT if kind == "relay" else DEFAULT_OLLAMA_PORT


def _trust(value: Any) -> bool | str:
    """What certificates are trusted: true for those that the system trusts, else the path of a file."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("true, false, or the path of a file with certificates")
    return value.strip()


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > MAX_TEXT_CHARS:
        raise ValueError(f"a printable text of 1 to {MAX_TEXT_CHARS} characters")
    return value.strip()


def _models(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise ValueError("a model's name or a list of names")
    if not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        raise ValueError("a model's name or a list of names")
    return tuple(dict.fromkeys(name.strip() for name in names))


def warm_up_of(value: Any) -> tuple[str, ...] | None:
    """What a node is to hold in memory: nothing for false, None where the setting decides. Raises ValueError."""
    if value is False:
        return ()
    if value == AUTO:
        return None
    try:
        found = _models(value)
    except ValueError:
        raise ValueError("a model's name, a list of names, false for none, or 'auto'") from None
    if len(found) > MAX_WARM_UP or max(map(len, found)) > MAX_MODEL_CHARS:
        raise ValueError(f"at most {MAX_WARM_UP} names of at most {MAX_MODEL_CHARS} characters")
    return found


def warm_up_word(warm_up: tuple[str, ...] | None) -> str | list[str] | bool:
    """The shortest value of the field that means this."""
    if warm_up is None:
        return AUTO
    if not warm_up:
        return False
    return warm_up[0] if warm_up[0] != AUTO and len(warm_up) == 1 else list(warm_up)


def keep_alive_of(value: Any) -> str | float | None:
    """How long requests keep a model in memory; None where the node decides. Raises ValueError."""
    if value == AUTO:
        return None
    known = isinstance(value, str) and len(value) <= MAX_TEXT_CHARS
    seconds = duration_seconds(value) if known else value if type(value) in (int, float) else None
    if seconds is None or not (-MAX_KEEP_SECONDS <= seconds < 0 or LEAST_KEEP_SECONDS <= seconds <= MAX_KEEP_SECONDS):
        raise ValueError("seconds, 1 or more, or a duration such as '1h30m', below zero for ever; or 'auto'")
    return value  # type: ignore[no-any-return]


def _weight(value: Any) -> float | None:
    if value == AUTO:
        return None
    if type(value) not in (int, float) or not MIN_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError(f"a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, or 'auto'")
    return float(value)


def _concurrency(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_CONCURRENCY:
        raise ValueError(f"a whole number from 1 to {MAX_CONCURRENCY}")
    return value


def _tags(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("a list of texts")
    return tuple(dict.fromkeys(_text(tag) for tag in value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _variable(value: Any) -> str:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        raise ValueError("the name of an environment variable, never the key itself")
    return value


def _details(value: Any) -> dict[str, str | int | float]:
    if not isinstance(value, dict) or len(value) > MAX_DETAILS:
        raise ValueError(f"an object of at most {MAX_DETAILS} words about the phone")
    for key, word in value.items():
        if not isinstance(word, str | int | float) or isinstance(word, bool):
            raise ValueError("an object of texts and numbers")
        if not f"{key}{word}".isprintable() or max(len(key), len(str(word))) > MAX_TEXT_CHARS:
            raise ValueError(f"an object of printable texts of at most {MAX_TEXT_CHARS} characters, and numbers")
    return value


def _kind_of(value: Any) -> str:
    """How a wrong value is shown: short, and a text as it is written in JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "…")
    return str(value)[:60]
