"""The node's settings: one frozen value, read once at start. Nobody else reads the environment.

Sources, strongest first: command line, environment (`POTLUCK_NODE_…`, what node and gateway share: `POTLUCK_API_KEYS`
and `VRM_API_TOKEN`, and `BARE_NAMES`), defaults. Other `POTLUCK_` names belong to the gateway. A wrong or unknown one
stops the start with its name. No secret is a flag, since everybody on a machine sees the flags of its processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from gpu_node.devices import Device, parse_devices
from gpu_node.durations import parse_duration
from gpu_node.errors import UsageError
from gpu_node.load_wish import (
    BLOCK_TOKENS,
    DeviceName,
    DtypeName,
    KernelsMode,
    LoadWish,
    SpeculationMode,
    WeightsMode,
    parse_bytes,
)
from gpu_node.model_store import default_cache
from gpu_node.split import Goal, SplitWish, Strategy

PREFIX = "POTLUCK_NODE_"
KEYS_NAME = "POTLUCK_API_KEYS"
TOKEN_NAME = "VRM_API_TOKEN"
# Known without the prefix, as other programs that lend memory between GPUs call them.
BARE_NAMES = {"VRM_LEND_RATIO": "lend_ratio", "VRM_RECLAIM_THRESHOLD": "reclaim_threshold"}

# Proofs are made of all its bytes; more than this is a mistake, a file's contents for example.
LONGEST_TOKEN, LONGEST_NAME = 1024, 63
# A client that was cut off knows within minutes whether it comes back; its memory is wanted meanwhile.
LONGEST_GRACE_SECONDS = 3600.0

WordList = Annotated[tuple[str, ...], NoDecode]


class NodeSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    model: str = "default"
    host: str = "127.0.0.1"
    port: int = Field(default=5000, ge=0, le=65535)
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    context: int = Field(default=0, ge=0)
    weights: WeightsMode = "auto"
    kernels: KernelsMode = "auto"
    speculation: SpeculationMode = "auto"
    memory: int = 0
    devices: str = "auto"
    split: Strategy = "balanced"
    split_goal: Goal | None = None  # latency, unless something is said
    split_layers: Annotated[tuple[int, ...], NoDecode] = ()
    lend_ratio: float = Field(default=0.7, ge=0, le=1)
    reclaim_threshold: float = Field(default=0.8, ge=0, le=1)
    kv_memory: int = 0
    kv_blocks: int = Field(default=0, ge=0)
    block_tokens: int = 16
    max_running: int = Field(default=32, ge=1, le=1024)
    step_tokens: int = Field(default=0, ge=0)
    mixed_step_tokens: int = Field(default=0, ge=0)
    keep_alive: float = parse_duration("5m")
    keep_main: bool = False
    cache: Path
    max_queue: int = Field(default=512, ge=0)
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    allowed_hosts: WordList = ()
    allowed_origins: WordList = ()
    api_keys: WordList = Field(default=(), repr=False)
    no_relay: bool = False
    relay_port: int = Field(default=8765, ge=0, le=65535)
    token: str = Field(default="", repr=False)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    session_idle: float = parse_duration("5m")
    session_grace: float = parse_duration("30s")
    announce: Literal["auto", "on", "off"] = "auto"
    name: str = ""
    no_push: bool = False
    push_limit: int = 0
    exit_with_parent: bool = False
    announce_port: bool = False

    @field_validator("keep_alive", "session_idle", "session_grace", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str | int | float) else value

    @field_validator("session_idle")
    @classmethod
    def _idle(cls, value: float) -> float:
        if value < 1:
            raise ValueError("a session needs a second at least; -1 lets it be idle for ever")
        return value

    @field_validator("session_grace")
    @classmethod
    def _grace(cls, value: float) -> float:
        if value > LONGEST_GRACE_SECONDS:
            raise ValueError("a session that was cut off is kept for an hour at most")
        return value

    @field_validator("memory", "kv_memory", "push_limit", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str | int) else value

    @field_validator("devices")
    @classmethod
    def _listed(cls, value: str, info: ValidationInfo) -> str:
        if value.strip().lower() in ("", "auto"):
            return "auto"
        try:
            parse_devices(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
        if info.data.get("device", "auto") != "auto":
            raise ValueError("a list of devices leaves nothing to choose: give --device or --devices, not both")
        if info.data.get("memory"):
            raise ValueError("each device of a list has a budget of its own, as in cpu:2GiB, so that --memory is none")
        return value.strip()

    @field_validator("split_goal")
    @classmethod
    def _goal_of_what(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("split") != "profiled":
            raise ValueError("only a profiled split is made for a goal: --split profiled")
        return value

    @field_validator("split_layers", mode="before")
    @classmethod
    def _counts(cls, value: object) -> object:
        return layer_counts(value) if isinstance(value, str) else value

    @field_validator("split_layers")
    @classmethod
    def _by_hand(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        listed = info.data.get("devices", "auto")
        if value and listed == "auto":
            raise ValueError("layers are given to devices that are listed: --devices")
        if value and len(value) > len(parse_devices(listed)):
            raise ValueError(f"{len(value)} counts of layers are more than the {len(parse_devices(listed))} devices")
        return value

    @field_validator("block_tokens")
    @classmethod
    def _block(cls, value: int) -> int:
        if value not in BLOCK_TOKENS:
            raise ValueError(f"a block has one of {', '.join(map(str, BLOCK_TOKENS))} slots")
        return value

    @field_validator("token")
    @classmethod
    def _token(cls, value: str) -> str:
        if value != value.strip() or not value.isprintable() or len(value) > LONGEST_TOKEN:
            raise ValueError("a token is one line of printable characters, without spaces around it")
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value.isprintable() or len(value.encode(errors="replace")) > LONGEST_NAME:
            raise ValueError(f"a name has at most {LONGEST_NAME} bytes, all of them printable")
        return value.strip()

    @field_validator("tls_key")
    @classmethod
    def _key_of_what(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_certificate") is None:
            raise ValueError("a key needs its certificate: --tls-certificate")
        return value

    @field_validator("announce")
    @classmethod
    def _announced(cls, value: str, info: ValidationInfo) -> str:
        if value == "on" and info.data.get("no_relay"):
            raise ValueError("there is nothing to announce without the relay")
        return value

    @field_validator("cache", "tls_certificate", "tls_key", mode="before")
    @classmethod
    def _home(cls, value: object) -> object:
        return Path(value).expanduser() if isinstance(value, str) else value

    @field_validator("allowed_hosts", "allowed_origins", "api_keys", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(entry.endswith(":") for entry in value):
            raise ValueError("a key is empty: write key, or name:key, separated by commas")
        return value

    @property
    def asks_for_relay_port(self) -> bool:
        """Somebody named the port, so no other will do."""
        return "relay_port" in self.model_fields_set

    @property
    def announces(self) -> bool:
        """A node that ends with its parent is known to the parent, and nobody else's business."""
        return not self.no_relay and (self.announce == "on" or (self.announce == "auto" and not self.exit_with_parent))

    @property
    def listed_devices(self) -> tuple[Device, ...]:
        """Empty: nobody listed any."""
        return () if self.devices == "auto" else parse_devices(self.devices)

    @property
    def split_wish(self) -> SplitWish:
        return SplitWish(self.split, self.split_goal or "latency", self.split_layers)

    @property
    def wish(self) -> LoadWish:
        """How models are loaded where a loading does not say."""
        return LoadWish(
            device=self.device,
            dtype=self.dtype,
            weights=self.weights,
            kernels=self.kernels,
            threads=self.threads,
            context=self.context,
            block_tokens=self.block_tokens,
            kv_bytes=self.kv_memory,
            kv_blocks=self.kv_blocks,
            max_running=self.max_running,
            step_tokens=self.step_tokens,
            mixed_step_tokens=self.mixed_step_tokens,
            speculation=self.speculation,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # the environment comes in through `read_settings`, as a value


def read_settings(environ: Mapping[str, str], flags: Mapping[str, Any]) -> NodeSettings:
    """`flags` holds what the command line names; everything else comes from `environ` or the defaults."""
    values: dict[str, Any] = {"cache": default_cache(environ)}
    for name, value in environ.items():
        if name.startswith(PREFIX):
            values[_field_of(name)] = value
    for name, field in BARE_NAMES.items():
        if environ.get(name) and field not in values:
            values[field] = environ[name]
    if environ.get(KEYS_NAME):
        values["api_keys"] = environ[KEYS_NAME]
    if environ.get(TOKEN_NAME) and not values.get("token"):
        values["token"] = environ[TOKEN_NAME]
    values.update(flags)
    try:
        return NodeSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        told = f"--{field.replace('_', '-')}" if field in flags else _name_of(field, environ)
        raise UsageError(f"{told}: {first['msg'].removeprefix('Value error, ')}") from error


def layer_counts(text: str) -> tuple[int, ...]:
    """ "12,18". Raises `ValueError`."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
        raise ValueError(f'"{text}" is no split by hand: write the layers of each device in turn, as in 12,18')
    return tuple(map(int, words))


def _name_of(field: str, environ: Mapping[str, str]) -> str:
    if field == "token" and not environ.get(PREFIX + "TOKEN"):
        return TOKEN_NAME
    bare = next((name for name, own in BARE_NAMES.items() if own == field), "")
    if bare and PREFIX + field.upper() not in environ:
        return bare
    return KEYS_NAME if field == "api_keys" else PREFIX + field.upper()


def _field_of(name: str) -> str:
    field = name.removeprefix(PREFIX).lower()
    if field in NodeSettings.model_fields and field != "api_keys":
        return field
    known = [PREFIX + known.upper() for known in NodeSettings.model_fields if known != "api_keys"]
    near = get_close_matches(name, known, n=1)
    raise UsageError(f"the setting {name} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
