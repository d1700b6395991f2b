"""The gateway's settings: one frozen value, read once at start. Nobody else reads the environment.

Sources, strongest first: arguments, environment (`POTLUCK_…`), `potluck.toml`, defaults. A wrong value or an
unknown `POTLUCK_` name stops the start with the name and the nearest known one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

EmbeddedMode = Literal["auto", "on", "off"]
StrategyName = Literal["weighted_round_robin", "least_busy", "fastest"]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="POTLUCK_", frozen=True, extra="forbid")

    # the fleet
    phones_file: Path = Path("phones.json")
    embedded_node: EmbeddedMode = "auto"
    embedded_model: str = "default"
    model_aliases: dict[str, str] = Field(default_factory=dict)

    # scheduling
    strategy: StrategyName = "weighted_round_robin"
    affinity: bool = True
    queue_limit: int = Field(1024, ge=0)
    queue_timeout_s: float = Field(300.0, gt=0)

    # probes
    probe_interval_s: float = Field(5.0, gt=0)
    probe_timeout_s: float = Field(2.0, gt=0)
    probe_retry_s: float = Field(1.0, gt=0)

    # patience with nodes
    connect_timeout_s: float = Field(5.0, gt=0)
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

    # answer cache
    enable_lru_cache: bool = True
    cache_entries: int = Field(1024, ge=1)
    cache_bytes: int = Field(32 * 1024 * 1024, ge=0)
    cache_ttl_s: float = Field(3600.0, gt=0)
    cache_dialects: Literal["deterministic", "always", "never"] = "deterministic"

    # who may call
    api_keys: str = ""
    allowed_origins: str = ""
    allowed_hosts: str = ""
    body_limit_bytes: int = Field(4 * 1024 * 1024, gt=0)

    # running
    drain_s: float = Field(30.0, ge=0)
    log_prompts: bool = False
    log_format: Literal["console", "json", "auto"] = "auto"
