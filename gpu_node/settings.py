"""The node's settings: one frozen value, read once at start. Nobody else reads the environment.

Sources, strongest first: command line, environment (`POTLUCK_NODE_…`, and `POTLUCK_API_KEYS`, which node and gateway
share), defaults. Other `POTLUCK_` names belong to the gateway. A wrong or unknown one stops the start with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

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

PREFIX = "POTLUCK_NODE_"
KEYS_NAME = "POTLUCK_API_KEYS"

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
    exit_with_parent: bool = False
    announce_port: bool = False

    @field_validator("keep_alive", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        return parse_duration(value) if isinstance(value, str | int | float) else value

    @field_validator("memory", "kv_memory", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str | int) else value

    @field_validator("block_tokens")
    @classmethod
    def _block(cls, value: int) -> int:
        if value not in BLOCK_TOKENS:
            raise ValueError(f"a block has one of {', '.join(map(str, BLOCK_TOKENS))} slots")
        return value

    @field_validator("cache", mode="before")
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
    if environ.get(KEYS_NAME):
        values["api_keys"] = environ[KEYS_NAME]
    values.update(flags)
    try:
        return NodeSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        told = f"--{field.replace('_', '-')}" if field in flags else _name_of(field)
        raise UsageError(f"{told}: {first['msg'].removeprefix('Value error, ')}") from error


def _name_of(field: str) -> str:
    return KEYS_NAME if field == "api_keys" else PREFIX + field.upper()


def _field_of(name: str) -> str:
    field = name.removeprefix(PREFIX).lower()
    if field in NodeSettings.model_fields and field != "api_keys":
        return field
    known = [PREFIX + known.upper() for known in NodeSettings.model_fields if known != "api_keys"]
    near = get_close_matches(name, known, n=1)
    raise UsageError(f"the setting {name} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
