"""The bodies of OpenAI's dialect. Unknown fields are refused, as OpenAI refuses them.

Beside OpenAI's own fields stand those that users of other servers know (`top_k`, `min_p`, `regex` and their like). What
only concerns bookkeeping at OpenAI is taken without effect; everything else is honoured or refused in `openai_reading`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from gpu_node.api.schemas import Body, duration_of

Finite = Annotated[float, Field(allow_inf_nan=False)]
Tokens = list[int]
TextOrTokens = str | list[str] | Tokens | list[Tokens]


class OpenAiBody(Body):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str = Field(min_length=1, max_length=256)
    keep_alive: int | float | str | None = None
    priority: int | None = None
    deadline_s: float | None = None
    # Bookkeeping at OpenAI.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None

    @property
    def keep_alive_seconds(self) -> float | None:
        return None if self.keep_alive in (None, "") else duration_of(self.keep_alive or 0)


class StreamOptions(Body):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class TextBody(OpenAiBody):
    """What chat and completions have in common."""

    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0)
    temperature: Finite | None = Field(default=None, ge=0)
    top_p: Finite | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: Finite | None = Field(default=None, ge=0, le=1)
    typical_p: Finite | None = Field(default=None, gt=0, le=1)
    presence_penalty: Finite | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: Finite | None = Field(default=None, gt=0)
    repeat_penalty: Finite | None = Field(default=None, gt=0)
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, Finite] | None = None
    num_ctx: int | None = Field(default=None, ge=1)
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    guided_regex: str | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_choice: list[str] | None = None
    store: Literal[False] | None = None

    @property
    def samples(self) -> int:
        return self.n or 1


class ChatMessage(Body):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None


class ChatCompletionBody(TextBody):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class CompletionBody(TextBody):
    prompt: TextOrTokens
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingsBody(OpenAiBody):
    input: TextOrTokens
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
