"""What a caller asks, made into the body of a request; local mistakes are found before anything is sent.

Options travel under the names of the HTTP API. Which of them exist is the gateway's to judge: it refuses an unknown one
with its name and the nearest known one, so nothing is dropped here. Knows nothing of HTTP.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

from .errors import Misuse

Image = str | bytes | PathLike[str]
"""Base64 text, the file's bytes, or a path to it."""

Message = Mapping[str, Any]
"""`{"role": "user" | "assistant" | "system", "content": "…"}`, perhaps with `images`."""


class AskOptions(TypedDict, total=False):
    """Everything that may stand beside a prompt; what is None is left out."""

    model: str | None
    system: str | None
    images: Sequence[Image] | None
    options: Mapping[str, Any] | None
    format: str | Mapping[str, Any] | None
    think: bool | str | None
    keep_alive: str | float | None
    priority: int | None
    deadline_s: float | None
    cache: bool | None
    progress: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    num_predict: int | None
    max_tokens: int | None
    num_ctx: int | None
    repeat_penalty: float | None


def ask_body(prompt: str | None, messages: Sequence[Message] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of one request. Exactly one of `prompt` and `messages` must be given."""
    if (prompt is None) == (messages is None):
        raise Misuse("give either a prompt or messages")
    if isinstance(messages, str | Mapping):
        raise Misuse("messages is a list of {'role': …, 'content': …}")
    body = _given(options)
    if prompt is not None:
        return {"prompt": prompt, **body}
    assert messages is not None
    return {"messages": [_message(message) for message in messages], **body}


def batch_body(
    requests: Sequence[str | Mapping[str, Any]], options: Mapping[str, Any], *, stream: bool
) -> dict[str, Any]:
    """Texts alone go as `prompts`; as soon as one is a mapping, all go as `requests` with the shared options."""
    if isinstance(requests, str | Mapping):
        raise Misuse("a batch is a list; use ask() for one request")
    shared = _given(options)
    flow = {"stream": True} if stream else {}
    if all(isinstance(request, str) for request in requests):
        return {"prompts": list(requests), **shared, **flow}
    return {"requests": [{**shared, **_batch_request(request)} for request in requests], **flow}


def _batch_request(request: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(request, str):
        return {"prompt": request}
    rest = {name: value for name, value in request.items() if name not in ("prompt", "messages")}
    return ask_body(request.get("prompt"), request.get("messages"), rest)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    if "images" in given:
        given["images"] = [_image(image) for image in given["images"]]
    return given


def _message(message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise Misuse("a message is a mapping with 'role' and 'content'")
    return _given(message)


def _image(image: Image) -> str:
    if isinstance(image, str):
        return image
    if isinstance(image, bytes):
        return b64encode(image).decode("ascii")
    try:
        return b64encode(Path(image).read_bytes()).decode("ascii")
    except OSError as error:
        raise Misuse(f"cannot read the image {image}: {error.strerror or error}") from error
