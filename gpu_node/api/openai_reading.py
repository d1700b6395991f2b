"""From a body of OpenAI's dialect to what the engine understands. Every field is honoured or refused.

Pure functions of the body and of what the model is. What a request leaves open, the model's own parameters say, then
OpenAI's defaults. A prompt that is too long is refused, and a full context ends the answer: nothing is cut unasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_node.api.guides import (
    guide_of_choice,
    guide_of_json,
    guide_of_regex,
    guide_of_response_format,
    one_guide,
)
from gpu_node.api.openai_fields import ChatCompletionBody, ChatMessage, CompletionBody, TextBody, TextOrTokens
from gpu_node.api.reading import NO_IMAGES, Form, read_sampling
from gpu_node.api.schemas import check_options
from gpu_node.engine.sequence import (
    Bounds,
    ChatPrompt,
    GenerationRequest,
    Guide,
    Message,
    Prompt,
    RawPrompt,
    SamplingOptions,
    TokenPrompt,
)
from gpu_node.errors import RequestError

# OpenAI's: what a model does when nothing is said.
PLAIN = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, repeat_penalty=1.0, repeat_last_n=-1)
# OpenAI's default for completions; chat has none.
COMPLETION_TOKENS = 16
MOST_STOPS, LONGEST_STOP = 64, 256
MOST_BIASES, LARGEST_BIAS = 1024, 100.0
MOST_PROMPTS = 2048
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What reading needs to know of the model; sizes are 0 while it is not loaded."""

    name: str
    parameters: Mapping[str, Any]
    context_tokens: int
    vocabulary_size: int = 0


def read_chat(body: ChatCompletionBody, model: ModelFacts) -> GenerationRequest:
    if body.tools:
        raise RequestError(f"{model.name} does not support tools", field="tools")
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", field="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise RequestError("give max_completion_tokens or max_tokens, not both", field="max_tokens")
    messages = tuple(_message(message, model.name) for message in body.messages)
    _check_continuation(body, messages)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    return _request(ChatPrompt(messages), body, model, logprobs, limit)


def read_completions(body: CompletionBody, model: ModelFacts) -> list[GenerationRequest]:
    """One a prompt."""
    if body.suffix:
        raise RequestError(f"{model.name} does not support a suffix", field="suffix")
    if body.best_of is not None and body.best_of != body.samples:
        raise RequestError("best_of is not supported beyond n", field="best_of")
    if body.echo and body.logprobs is not None:
        raise RequestError("echo together with logprobs is not supported: prompts are not scored", field="echo")
    prompts = split_prompts(body.prompt, "prompt")
    limit = body.max_tokens or model.parameters.get("num_predict") or COMPLETION_TOKENS
    return [_request(prompt, body, model, body.logprobs, limit) for prompt in prompts]


def split_prompts(value: TextOrTokens, field: str) -> list[RawPrompt | TokenPrompt]:
    """A text, a list of texts, the tokens of one prompt, or a list of those."""
    if isinstance(value, str):
        return [RawPrompt(value)]
    if not value:
        raise RequestError(f"{field} must not be empty", field=field)
    if isinstance(value[0], int):
        return [_token_prompt(value, field)]
    if len(value) > MOST_PROMPTS:
        raise RequestError(f"{field} may hold at most {MOST_PROMPTS} prompts", field=field)
    return [RawPrompt(one) if isinstance(one, str) else _token_prompt(one, field) for one in value]


def _token_prompt(ids: Sequence[Any], field: str) -> TokenPrompt:
    if not ids or any(one < 0 for one in ids):
        raise RequestError(f"{field} must hold at least one token, each from 0 on", field=field)
    return TokenPrompt(tuple(ids))


def _request(
    prompt: Prompt, body: TextBody, model: ModelFacts, logprobs: int | None, limit: int | None
) -> GenerationRequest:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream to be true", field="stream_options")
    options = {**check_options(model.parameters), **_options(body)}
    form = Form(_guide(body), logprobs, _bias(body, model.vocabulary_size))
    most = limit or options.get("num_predict", -1)
    if body.min_tokens is not None and 0 < most < body.min_tokens:
        raise RequestError("min_tokens must not be above max_tokens", field="min_tokens")
    return GenerationRequest(
        prompt=prompt,
        sampling=read_sampling(options, PLAIN, form),
        bounds=Bounds(
            context_tokens=min(body.num_ctx or model.context_tokens, model.context_tokens),
            max_tokens=most,
            truncate=False,
            shift=False,
            min_tokens=body.min_tokens or 0,
            ignore_end=bool(body.ignore_eos),
        ),
        stop=tuple(options.get("stop", ())),
        samples=body.samples,
    )


def _options(body: TextBody) -> dict[str, Any]:
    """What was given, in Ollama's words."""
    if body.repetition_penalty is not None and body.repeat_penalty is not None:
        raise RequestError("give repetition_penalty or repeat_penalty, not both", field="repeat_penalty")
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k if body.top_k != -1 else 0,
        "min_p": body.min_p,
        "typical_p": body.typical_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repeat_penalty": body.repetition_penalty or body.repeat_penalty,
        "seed": None if body.seed is None else body.seed % (1 << 63),
        "stop": _stops(body.stop),
    }
    return {name: value for name, value in given.items() if value is not None}


def _stops(value: str | list[str] | None) -> list[str] | None:
    if value is None:
        return None
    words = list(dict.fromkeys(word for word in ([value] if isinstance(value, str) else value) if word))
    if len(words) > MOST_STOPS or any(len(word) > LONGEST_STOP for word in words):
        raise RequestError(f"stop may hold {MOST_STOPS} texts of {LONGEST_STOP} characters", field="stop")
    return words


def _guide(body: TextBody) -> Guide | None:
    return one_guide(
        {
            "response_format": guide_of_response_format(body.response_format),
            "regex": None if body.regex is None else guide_of_regex(body.regex, "regex"),
            "guided_regex": None if body.guided_regex is None else guide_of_regex(body.guided_regex, "guided_regex"),
            "guided_json": None if body.guided_json is None else guide_of_json(body.guided_json, "guided_json"),
            "guided_choice": None
            if body.guided_choice is None
            else guide_of_choice(body.guided_choice, "guided_choice"),
        }
    )


def _bias(body: TextBody, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    given = body.logit_bias or {}
    if len(given) > MOST_BIASES:
        raise RequestError(f"logit_bias may name at most {MOST_BIASES} tokens", field="logit_bias")
    bias: list[tuple[int, float]] = []
    for word, value in given.items():
        if not word.isascii() or not word.isdigit() or (vocabulary_size and int(word) >= vocabulary_size):
            raise RequestError(f"logit_bias: {word!r} is no token of this model", field="logit_bias")
        if abs(value) > LARGEST_BIAS:
            raise RequestError(f"logit_bias: {value} is not between -100 and 100", field="logit_bias")
        bias.append((int(word), float(value)))
    return tuple(bias)


def _message(message: ChatMessage, name: str) -> Message:
    if message.tool_calls or message.function_call or message.tool_call_id or message.role in ("tool", "function"):
        raise RequestError(f"{name} does not support tools", field="messages")
    if message.audio:
        raise RequestError(f"{name} does not support audio", field="messages")
    role = ROLES.get(message.role)
    if role is None:
        raise RequestError(f"the role {message.role!r} is unknown; there are {', '.join(ROLES)}", field="messages")
    return Message(role, _text(message.content) or message.refusal or "")


def _text(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        kind, text = part.get("type"), part.get("text", part.get("refusal"))
        if kind not in ("text", "refusal"):
            raise RequestError(NO_IMAGES if kind == "image_url" else f"content of type {kind!r} is not supported",
                               field="messages")  # fmt: skip
        if not isinstance(text, str):
            raise RequestError("a part of type text needs its text", field="messages")
        texts.append(text)
    return "".join(texts)


def _check_continuation(body: ChatCompletionBody, messages: Sequence[Message]) -> None:
    """A last assistant message is always continued; the fields of other servers may say so, but not the contrary."""
    open_ended = messages[-1].role == "assistant"
    if body.continue_final_message not in (None, open_ended):
        raise RequestError(
            "continue_final_message must be true with a last message of the assistant, and false without",
            field="continue_final_message",
        )
    if body.add_generation_prompt not in (None, not open_ended):
        raise RequestError(
            "add_generation_prompt must be false with a last message of the assistant, and true without",
            field="add_generation_prompt",
        )
