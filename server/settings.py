"""The gateway's settings: one frozen value, read once at start. Nobody else reads the environment.

Sources, strongest first: arguments, environment (`POTLUCK_…`), `potluck.toml`, defaults. A wrong value or an unknown
name stops the start with a sentence that names it and the nearest known one. docs/settings.md lists every setting; a
test holds the two equal. Keys are never shown.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

EmbeddedMode = Literal["auto", "on", "off"]
DiscoveryMode = Literal["auto", "on", "off"]
AdbMode = Literal["auto", "on", "off"]
WarmUpMode = Literal["auto", "off"]
StrategyName = Literal["weighted_round_robin", "least_busy", "fastest"]

PREFIX = "POTLUCK_"
CONFIG_NAME = "POTLUCK_CONFIG"
DEFAULT_CONFIG = Path("potluck.toml")
# Known without the prefix, because users know them from other servers. HOST and PORT are where uvicorn listens.
BARE_NAMES = {"ENABLE_LRU_CACHE": "enable_lru_cache", "HOST": "host", "PORT": "port"}
TOKEN_NAME = "VRM_API_TOKEN"  # one more API key, of this name:
TOKEN_KEY_NAME = "vrm"
# Prefixed names that are others' business: the GPU node's, the client's, and where the file of settings is.
FOREIGN_PREFIX = "POTLUCK_NODE_"
FOREIGN_NAMES = ("POTLUCK_URL", "POTLUCK_API_KEY", CONFIG_NAME)
SECRETS = frozenset({"api_keys", TOKEN_NAME})


class SettingsError(Exception):
    """The gateway cannot start with these settings; the message is one sentence for its owner."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # the fleet
    phones_file: Path = Path("phones.json")
    embedded_node: EmbeddedMode = "auto"
    embedded_model: str = "default"
    embedded_devices: str = ""
    model_aliases: dict[str, str] = Field(default_factory=dict)
    discovery: DiscoveryMode = "auto"
    discovery_port: int = Field(8766, ge=1, le=65535)
    adb: AdbMode = "auto"
    adb_server: str = "127.0.0.1:5037"
    adb_read_s: float = Field(30.0, gt=0)
    warm_up: WarmUpMode = "auto"

    # scheduling
    strategy: StrategyName = "weighted_round_robin"
    affinity: bool = True
    queue_limit: int = Field(1024, ge=0)
    queue_timeout_s: float = Field(300.0, gt=0)
    no_node_wait_s: float = Field(3.0, ge=0)

    # probes
    probe_interval_s: float = Field(5.0, gt=0)
    probe_timeout_s: float = Field(2.0, gt=0)
    probe_retry_s: float = Field(1.0, gt=0)

    # patience with nodes
    connect_timeout_s: float = Field(5.0, gt=0)
    patience_factor: float = Field(3.0, ge=1)
    first_token_floor_s: float = Field(5.0, gt=0)
    between_tokens_floor_s: float = Field(5.0, gt=0)
    load_allowance_s: float = Field(120.0, ge=0)
    silence_ceiling_s: float = Field(600.0, gt=0)
    request_timeout_s: float = Field(3600.0, gt=0)

    # failover
    breaker_failures: int = Field(3, ge=1)
    breaker_rest_s: float = Field(30.0, gt=0)
    breaker_longest_rest_s: float = Field(300.0, gt=0)
    attempts_per_outage: int = Field(5, ge=1)
    retry_budget_ratio: float = Field(0.2, ge=0)
    retry_budget_floor: int = Field(10, ge=0)

    # care for phones
    care: bool = True
    care_warm_c: float = Field(37.0, gt=0, lt=100)
    care_hot_c: float = Field(43.0, gt=0, lt=100)
    care_cooled_c: float = Field(39.0, gt=0, lt=100)
    care_low_battery: float = Field(15.0, ge=0, lt=100)
    care_charged: float = Field(30.0, gt=0, le=100)
    care_stale_s: float = Field(180.0, ge=60)  # phones report every 30 s: less, and a rest would come and go

    # answer cache
    enable_lru_cache: bool = True
    cache_entries: int = Field(1024, ge=1)
    cache_bytes: int = Field(32 * 1024 * 1024, ge=0)
    cache_ttl_s: float = Field(3600.0, gt=0)
    cache_dialects: Literal["deterministic", "always", "never"] = "deterministic"

    # who may call
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_keys: str = Field("", repr=False)
    allowed_origins: str = ""
    allowed_hosts: str = ""
    body_limit_bytes: int = Field(4 * 1024 * 1024, gt=0)
    body_timeout_s: float = Field(60.0, gt=0)
    batch_limit: int = Field(10_000, ge=1)

    # running
    drain_s: float = Field(30.0, ge=0)
    log_prompts: bool = False
    log_format: Literal["console", "json", "auto"] = "auto"

    @field_validator("phones_file")
    @classmethod
    def _home(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _aliases(cls, value: object) -> object:
        return parse_aliases(value) if isinstance(value, str) else value

    @field_validator("api_keys", "allowed_origins", "allowed_hosts", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        """A list in the file of settings is the same as a text with commas."""
        if isinstance(value, list) and all(isinstance(part, str) and "," not in part for part in value):
            return ",".join(value)
        return value

    @field_validator("embedded_model", "host")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.strip()

    @field_validator("adb_server")
    @classmethod
    def _here(cls, value: str) -> str:
        host, _, port = value.strip().rpartition(":")
        if host not in ("127.0.0.1", "localhost") or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise ValueError("must be 127.0.0.1 and a port: forwards end on the machine of the adb server")
        return f"127.0.0.1:{int(port)}"

    @field_validator("embedded_devices")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return value.strip()

    @property
    def embedded_mode(self) -> EmbeddedMode:
        """Who lists devices for it wants it, whatever else there is."""
        return "on" if self.embedded_devices and self.embedded_node == "auto" else self.embedded_node

    @model_validator(mode="after")
    def _used(self) -> Settings:
        if self.embedded_devices and self.embedded_node == "off":
            raise ValueError(f"{PREFIX}EMBEDDED_DEVICES is for the embedded node, and {PREFIX}EMBEDDED_NODE is off")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Settings:
        _require_order(self, "breaker_rest_s", "breaker_longest_rest_s")
        _require_order(self, "first_token_floor_s", "silence_ceiling_s")
        _require_order(self, "between_tokens_floor_s", "silence_ceiling_s")
        for smaller, larger in (("care_warm_c", "care_hot_c"), ("care_cooled_c", "care_hot_c")):
            _require_order(self, smaller, larger, strictly=True)
        _require_order(self, "care_low_battery", "care_charged", strictly=True)
        _require_order(self, "adb_read_s", "care_stale_s", strictly=True)  # or each reading would be forgotten first
        return self

    def __str__(self) -> str:
        return repr(self)


def read_settings(environ: Mapping[str, str], arguments: Mapping[str, Any] | None = None) -> Settings:
    """The settings of this start. `arguments` has the names of the fields. Raises SettingsError."""
    path = Path(environ.get(CONFIG_NAME) or DEFAULT_CONFIG)
    values: dict[str, Any] = {}
    told_by: dict[str, str] = {}  # who named a field, for the message when its value is wrong
    sources = (
        _from_file(path, required=bool(environ.get(CONFIG_NAME))),
        _from_environment(environ),
        {name: (name, value) for name, value in (arguments or {}).items()},
    )
    for source in sources:
        for field, (name, value) in source.items():
            values[field], told_by[field] = value, name
    _add_token(values, environ.get(TOKEN_NAME, ""))
    try:
        return Settings(**values)
    except ValidationError as problem:
        raise SettingsError(_sentence(problem, values, told_by)) from None  # the chained text would show values


def parse_aliases(text: str) -> dict[str, str]:
    """`alias=model,alias=model` or a JSON object. Raises ValueError."""
    text = text.strip()
    if text.startswith("{"):
        try:
            value = json.loads(text, object_pairs_hook=_distinct)
        except json.JSONDecodeError as problem:
            raise ValueError(f"is no JSON ({problem})") from None
        if not all(isinstance(model, str) for model in value.values()):
            raise ValueError("must map each alias to the name of a model")
        return dict(value)
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(alias.strip() and equals and model.strip() for alias, equals, model in pairs):
        raise ValueError("must be alias=model,alias=model or a JSON object")
    return _distinct([(alias.strip(), model.strip()) for alias, _, model in pairs])


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Which of two meanings counts would be a matter of luck."""
    found: dict[str, Any] = {}
    for alias, model in pairs:
        if alias in found:
            raise ValueError(f"names the alias '{alias}' twice")
        found[alias] = model
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for name, field in BARE_NAMES.items():
        if environ.get(name):
            found[field] = (name, environ[name])
    for name, value in environ.items():
        spelled = name.upper()  # in small letters it is a mistake worth a word, not somebody else's
        if not spelled.startswith(PREFIX) or spelled.startswith(FOREIGN_PREFIX) or name in FOREIGN_NAMES:
            continue
        field = spelled.removeprefix(PREFIX).lower()
        if field not in Settings.model_fields or name != spelled:
            others = [other.removeprefix(PREFIX).lower() for other in FOREIGN_NAMES]
            nearest = _nearest(field, [*Settings.model_fields, *others], lambda known: PREFIX + known.upper())
            raise SettingsError(f"{name} is no setting of the gateway{nearest}")
        if value.strip() or field in SECRETS:
            found[field] = (name, value)
    return found


def _from_file(path: Path, *, required: bool) -> dict[str, tuple[str, Any]]:
    """The settings of a TOML file, under the fields' names or the environment's."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        if required:
            raise SettingsError(f"{CONFIG_NAME} names {path}, which does not exist") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingsError(f"{path} is no TOML: {problem}") from problem
    except OSError as problem:
        raise SettingsError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    found: dict[str, tuple[str, Any]] = {}
    for key, value in content.items():
        field = key.lower().removeprefix(PREFIX.lower())
        if field not in Settings.model_fields:
            raise SettingsError(f"{key} in {path} is no setting{_nearest(field, list(Settings.model_fields))}")
        if field in found:
            raise SettingsError(f"{path} sets {field} twice: as {found[field][0].partition(' in ')[0]} and as {key}")
        found[field] = (f"{key} in {path}", value)
    return found


def _add_token(values: dict[str, Any], token: str) -> None:
    """VRM_API_TOKEN counts as an API key among the others."""
    token = token.strip()
    if not token:
        return
    if "," in token:
        raise SettingsError(f"{TOKEN_NAME} must not contain a comma")
    keys = values.get("api_keys", "")
    others = keys if isinstance(keys, list) else [keys] if keys else []
    values["api_keys"] = ",".join([*others, f"{TOKEN_KEY_NAME}:{token}"])


def _require_order(settings: Settings, smaller: str, larger: str, *, strictly: bool = False) -> None:
    low, high = getattr(settings, smaller), getattr(settings, larger)
    if low > high or (strictly and low == high):
        relation = "must be less than" if strictly else "must not be more than"
        raise ValueError(f"{PREFIX}{smaller.upper()} {relation} {PREFIX}{larger.upper()}")


def _sentence(problem: ValidationError, values: Mapping[str, Any], told_by: Mapping[str, str]) -> str:
    first = problem.errors()[0]
    words = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not first["loc"]:
        return words
    field = str(first["loc"][0])
    name = told_by.get(field, field)
    if field not in Settings.model_fields:
        return f"{name} is no setting of the gateway{_nearest(field, list(Settings.model_fields))}"
    shown = "" if field in SECRETS else f", not {values.get(field)!r}"
    return f"{name} {words.partition(', unable to')[0]}{shown}"


def _nearest(name: str, known: list[str], spelled: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {spelled(close[0])}?" if close else "; docs/settings.md lists them all"
