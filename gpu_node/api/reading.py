"""From a parsed body to what the engine understands. Every field is honoured or refused, none is forgotten.

Pure functions: the same body gives the same request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_node.api.guides import guide_of_format
from gpu_node.api.schemas import AnswerBody, ChatBody, GenerateBody, MessageBody, check_options
from gpu_node.engine.sequence import (
    Bounds,
    ChatPrompt,
    GenerationRequest,
    Guide,
    Message,
    Prompt,
    RawPrompt,
    SamplingOptions,
)
from gpu_node.errors import RequestError

# Ollama's own floor; below it there is nothing to cut and nothing to say.
SMALLEST_CONTEXT = 4
MOST_TOP_LOGPROBS = 20  # Ollama's and OpenAI's
NO_IMAGES = "Multimodal data provided, but model does not support multimodal requests."
RAW_ALONE = "raw mode does not support template, system, or context"


def read_generate(body: GenerateBody, name: str, parameters: Mapping[str, Any], context: int) -> GenerationRequest:
    if body.suffix:
        raise RequestError(f"{name} does not support insert")
    if body.images:
        raise RequestError(NO_IMAGES)
    if body.raw and (body.template or body.system or body.context):
        raise RequestError(RAW_ALONE)
    if body.template:
        raise RequestError(
            "template is not supported: the model's own chat template is used; send raw: true to use none"
        )
    refuse_common(body, name)
    return _request(_generate_prompt(body), body, parameters, context)


def read_chat(body: ChatBody, name: str, parameters: Mapping[str, Any], context: int) -> GenerationRequest:
    if body.tools:
        raise RequestError(f"{name} does not support tools")
    messages = tuple(_message(message, name) for message in body.messages or ())
    refuse_common(body, name)
    return _request(ChatPrompt(messages), body, parameters, context)


def refuse_common(body: AnswerBody, name: str) -> None:
    if body.think:
        raise RequestError(f'"{name}" does not support thinking')
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MOST_TOP_LOGPROBS:
        raise RequestError(f"top_logprobs must be between 0 and {MOST_TOP_LOGPROBS}", field="top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", field="top_logprobs")


def read_bounds(options: Mapping[str, Any], context: int, truncate: bool | None, shift: bool | None = None) -> Bounds:
    """A larger num_ctx than the model has is taken for all that it has, as Ollama takes it."""
    wanted = options.get("num_ctx", 0)
    return Bounds(
        context_tokens=max(min(wanted, context) if wanted > 0 else context, SMALLEST_CONTEXT),
        max_tokens=options.get("num_predict", -1),
        keep_tokens=options.get("num_keep", 4),
        truncate=truncate is not False,
        shift=shift is not False,
    )


def _request(prompt: Prompt, body: AnswerBody, parameters: Mapping[str, Any], context: int) -> GenerationRequest:
    options = {**check_options(parameters), **check_options(body.options)}
    form = Form(guide_of_format(body.format), (body.top_logprobs or 0) if body.logprobs else None)
    return GenerationRequest(
        prompt=prompt,
        sampling=read_sampling(options, SamplingOptions(), form),
        bounds=read_bounds(options, context, body.truncate, body.shift),
        stop=tuple(_unique(options.get("stop", ()))),
    )


@dataclass(frozen=True, slots=True)
class Form:
    """What does not stand among the options in either dialect."""

    guide: Guide | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


def read_sampling(options: Mapping[str, Any], plain: SamplingOptions, form: Form) -> SamplingOptions:
    """`options` in Ollama's words; `plain` holds what the dialect means where nothing is said."""
    for name, neutral in (("mirostat", 0), ("tfs_z", 1.0)):
        if options.get(name, neutral) != neutral:
            raise RequestError(f'option "{name}" is not supported by this node', field=name)
    seed = options.get("seed", -1)
    penalty = options.get("repeat_penalty", plain.repeat_penalty)
    if penalty <= 0:
        raise RequestError('option "repeat_penalty" must be above 0', field="repeat_penalty")
    return SamplingOptions(
        temperature=max(options.get("temperature", plain.temperature), 0.0),
        top_k=options.get("top_k", plain.top_k),
        top_p=_share(options.get("top_p", plain.top_p)),
        min_p=_share(options.get("min_p", plain.min_p)),
        repeat_penalty=penalty,
        presence_penalty=options.get("presence_penalty", plain.presence_penalty),
        frequency_penalty=options.get("frequency_penalty", plain.frequency_penalty),
        repeat_last_n=options.get("repeat_last_n", plain.repeat_last_n),
        seed=None if seed < 0 else seed,
        typical_p=_share(options.get("typical_p", plain.typical_p)) or 1.0,
        logit_bias=form.logit_bias,
        logprobs=form.logprobs,
        guide=form.guide,
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _generate_prompt(body: GenerateBody) -> Prompt:
    if body.raw:
        return RawPrompt(body.prompt or "")
    messages = [Message("system", body.system)] if body.system else []
    messages.append(Message("user", body.prompt or ""))
    return ChatPrompt(tuple(messages), tuple(body.context or ()))


def _message(body: MessageBody, name: str) -> Message:
    if body.images:
        raise RequestError(NO_IMAGES)
    if body.tool_calls:
        raise RequestError(f"{name} does not support tools")
    return Message(body.role, body.content or "")


def _unique(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(word for word in words if word))
