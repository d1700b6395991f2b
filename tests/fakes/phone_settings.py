"""What a fake phone is: its models, its speed, its habits. Values only, shared by every other `phone_*` file.

`PhoneSettings` is mutable on purpose: a test (or `POST /_control`) changes a phone while it runs, and the next
request sees it. Everything at which versions of Ollama differ stands in `VersionProfile`, so no other file asks for
a version number. This file knows nothing of sockets, clocks or text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

Template = Literal["open", "closed", "trimming"]
RawMode = Literal["on", "refused", "ignored"]


@dataclass(frozen=True, slots=True)
class VersionProfile:
    """One version's ways, each seen in `tests/recordings/`."""

    renders: bool  # `_debug_render_only` answers the rendering; older versions generate instead
    refuses_too_long: bool  # `truncate: false` is honoured
    too_long_from_runner: bool  # ... with the words of llama-server
    lists_details: bool  # /api/tags with context_length, embedding_length and capabilities
    halves_too_long: bool  # what is left of a prompt that is cut: half the context, not all of it
    ps_has_context: bool
    knows_thinking: bool
    knows_logprobs: bool
    knows_methods: bool  # 405 with Allow; older versions say 404
    newer_dialects: bool  # /v1/messages and /v1/responses
    bad_format_status: int
    refuses_images: bool
    embeds_chat_models: bool
    lean_deltas: bool  # /v1 sends the role once only and an empty last delta
    reason_before_done: bool  # order of two fields in /api/chat
    says_try_pulling: bool  # the 404 of /api/chat
    checks_model_names: bool
    unload_lag_seconds: float  # /api/ps still lists a model for a moment after its unload


_PROFILES = {
    "0.6": VersionProfile(
        renders=False,
        refuses_too_long=False,
        too_long_from_runner=False,
        halves_too_long=False,
        lists_details=False,
        ps_has_context=False,
        knows_thinking=False,
        knows_logprobs=False,
        knows_methods=False,
        newer_dialects=False,
        bad_format_status=200,
        refuses_images=False,
        embeds_chat_models=True,
        lean_deltas=False,
        reason_before_done=True,
        says_try_pulling=True,
        checks_model_names=False,
        unload_lag_seconds=0.05,
    ),
    "0.24": VersionProfile(
        renders=True,
        refuses_too_long=True,
        too_long_from_runner=False,
        halves_too_long=False,
        lists_details=True,
        ps_has_context=True,
        knows_thinking=True,
        knows_logprobs=True,
        knows_methods=True,
        newer_dialects=True,
        bad_format_status=500,
        refuses_images=False,
        embeds_chat_models=True,
        lean_deltas=False,
        reason_before_done=False,
        says_try_pulling=False,
        checks_model_names=True,
        unload_lag_seconds=0.05,
    ),
    "0.33": VersionProfile(
        renders=True,
        refuses_too_long=True,
        too_long_from_runner=True,
        halves_too_long=True,
        lists_details=True,
        ps_has_context=True,
        knows_thinking=True,
        knows_logprobs=True,
        knows_methods=True,
        newer_dialects=True,
        bad_format_status=500,
        refuses_images=True,
        embeds_chat_models=False,
        lean_deltas=True,
        reason_before_done=False,
        says_try_pulling=False,
        checks_model_names=True,
        unload_lag_seconds=0.0,
    ),
}


@lru_cache(maxsize=64)
def profile_of(version: str) -> VersionProfile:
    """The recorded profile that a version behaves like: the newest one that is not newer."""
    minor = int(version.split(".")[1]) if version.startswith("0.") else 1_000
    if minor < 12:  # rendering came with 0.11.5; 0.11 itself counts as old here
        return _PROFILES["0.6"]
    return _PROFILES["0.24" if minor < 25 else "0.33"]


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model on a phone. Two phones hold the same copy if `digest` is equal; the digest decides the words of every
    answer.
    """

    name: str = "smollm2:135m"
    digest: str = ""
    size: int = 98_363_007
    family: str = "llama"
    parameter_size: str = "134.52M"
    quantization: str = "Q4_1"
    context_length: int = 8192
    embedding_length: int = 576
    capabilities: tuple[str, ...] = ("completion",)
    bos_text: str = ""  # the rendering begins with the BOS as text (Gemma 4, Cohere, DeepSeek on 0.33)
    add_bos_token: bool = False  # the tokenizer adds a BOS of its own, as /api/show tells

    @property
    def identity(self) -> str:
        return self.digest or hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def full_name(self) -> str:
        """The name as lists show it: with a tag."""
        return self.name if ":" in self.name else f"{self.name}:latest"


@dataclass(slots=True)
class PhoneSettings:
    """A phone's whole configuration. Times are those of the phone: every wait and every reported duration is
    multiplied by `time_scale`, so a scaled phone is simply a faster one and agrees with itself. `keep_alive` stays
    in real seconds.
    """

    version: str = "0.24.0"
    models: tuple[FakeModel, ...] = (FakeModel(),)
    template: Template = "closed"
    raw: RawMode = "on"
    grammar_begins_anew: bool = True  # with `format`, a continued answer starts its JSON from the first brace again
    tokens_per_second: float = 0.0  # 0: as fast as it can
    prompt_tokens_per_second: float = 0.0
    burst: int = 16  # without a speed: tokens that go out in one write
    load_seconds: float = 0.0
    time_scale: float = 1.0
    prompt_cache: int = 1  # how many conversations are held; 0: none
    num_parallel: int = 1
    num_ctx: int = 4096
    max_queue: int = 512
    max_loaded_models: int = 1
    keep_alive_seconds: float = 300.0
    answer_tokens: tuple[int, int] = (16, 96)  # natural length of an answer, a function of the prompt
    diverge_after: int | None = None  # other words from this token on: a copy that computes a little differently
    demo: bool = False  # readable English instead of self-describing words
    check_origin: bool = True  # 403 for a foreign Host or Origin, as Ollama does on loopback
    control: bool = False  # /_control answers
    seed: int = 0  # of faults with a probability and of the salts of unseeded answers
    log_size: int = 256  # requests kept for tests to look at
    headers: dict[str, str] = field(default_factory=dict)  # added to every answer (a proxy in front, for instance)
    library: tuple[FakeModel, ...] = ()  # what can be pulled; one of the phone's own with another digest is newer
    pull_bytes_per_second: float = 0.0  # 0: as fast as it can, ten lines of progress for each part
    pull_error: str = ""  # what every pull ends with: "dial tcp: lookup registry: no such host"
    free_bytes: int | None = None  # of storage: a part that is larger does not find room

    @property
    def profile(self) -> VersionProfile:
        return profile_of(self.version)

    def model_named(self, name: str) -> FakeModel | None:
        """Ollama's own rule: case does not matter, and no tag means `:latest`."""
        wanted = name.casefold() if ":" in name else f"{name.casefold()}:latest"
        return next((model for model in self.models if model.full_name.casefold() == wanted), None)

    def token_seconds(self, count: int = 1) -> float:
        return count / self.tokens_per_second * self.time_scale if self.tokens_per_second > 0 else 0.0

    def reading_seconds(self, count: int) -> float:
        return count / self.prompt_tokens_per_second * self.time_scale if self.prompt_tokens_per_second > 0 else 0.0
