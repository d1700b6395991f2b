"""The gateway's routes as values: what to send, how long to wait, how to read what comes back.

Both clients do nothing but carry these calls out, so that everything but the I/O is written once. Knows httpx only for
its timeout value; performs no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from .answers import Answer, BatchItem, as_record, read_answer
from .asking import Message, ask_body, batch_body
from .errors import Misuse, UnexpectedAnswer
from .fleet import Health, NodeHealth, read_health, read_model_names, read_nodes
from .records import read_item
from .refusals import read_refusal
from .timeouts import Timeouts
from .version import __version__

DEFAULT_URL = "http://127.0.0.1:8000"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One request. `also_good` are statuses beside 200 whose body is read in the same way."""

    method: str
    path: str
    timeout: httpx.Timeout
    read_body: Callable[[Any], Result]
    body: Mapping[str, Any] | None = None
    also_good: tuple[int, ...] = ()

    def read(self, response: httpx.Response) -> Result:
        """The response's body must have been received."""
        if response.status_code != 200 and response.status_code not in self.also_good:
            raise read_refusal(response.status_code, response.headers, response.content)
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError) as error:
            raise UnexpectedAnswer(f"{response.url} did not answer in JSON") from error
        return self.read_body(body)


def ask_call(
    prompt: str | None, messages: Sequence[Message] | None, options: Mapping[str, Any], timeouts: Timeouts
) -> Call[Answer]:
    body = ask_body(prompt, messages, options)
    return Call("POST", "/ask", _waiting(timeouts, timeouts.answer_seconds), _read_whole, body)


def stream_call(
    prompt: str | None, messages: Sequence[Message] | None, options: Mapping[str, Any], timeouts: Timeouts
) -> Call[Any]:
    body = ask_body(prompt, messages, options)
    return Call("POST", "/ask_stream", _waiting(timeouts, timeouts.silence_seconds), as_is, body)


def batch_call(
    requests: Sequence[str | Mapping[str, Any]], options: Mapping[str, Any], timeouts: Timeouts
) -> Call[list[BatchItem]]:
    def read_results(value: Any) -> list[BatchItem]:
        results = as_record(value, "an object").get("results")
        if not isinstance(results, list) or len(results) != len(requests):
            raise UnexpectedAnswer(f"the gateway did not answer all {len(requests)} requests of the batch")
        return [read_item(as_record(record, "results"), index) for index, record in enumerate(results)]

    body = batch_body(requests, options, stream=False)
    return Call("POST", "/ask_batch", _waiting(timeouts, timeouts.answer_seconds), read_results, body)


def batch_stream_call(
    requests: Sequence[str | Mapping[str, Any]], options: Mapping[str, Any], timeouts: Timeouts
) -> Call[Any]:
    body = batch_body(requests, options, stream=True)
    return Call("POST", "/ask_batch", _waiting(timeouts, timeouts.silence_seconds), as_is, body)


def health_call(timeouts: Timeouts) -> Call[Health]:
    # A gateway without a node that answers says so with 503, and with the same facts.
    return Call("GET", "/health", _lookup(timeouts), read_health, also_good=(503,))


def nodes_call(timeouts: Timeouts) -> Call[tuple[NodeHealth, ...]]:
    return Call("GET", "/api/nodes", _lookup(timeouts), read_nodes)


def models_call(timeouts: Timeouts) -> Call[list[str]]:
    return Call("GET", "/v1/models", _lookup(timeouts), read_model_names)


def load_call(model: str, node: str | None, options: Mapping[str, Any], timeouts: Timeouts) -> Call[Mapping[str, Any]]:
    body = _about_model(model, node, options)
    return Call("POST", "/api/models/load", _waiting(timeouts, timeouts.answer_seconds), _read_record, body)


def unload_call(model: str, node: str | None, timeouts: Timeouts) -> Call[Mapping[str, Any]]:
    # The gateway gives its nodes five seconds, and waits for none of them longer.
    return Call("POST", "/api/models/unload", _lookup(timeouts), _read_record, _about_model(model, node, {}))


def as_is(value: Any) -> Any:
    return value


def client_settings(base_url: str, api_key: str | None) -> dict[str, Any]:
    """What both kinds of httpx client are built with."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise Misuse(f"{base_url!r} is no address of a gateway: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise Misuse(f"{base_url!r} is no address of a gateway; it looks like {DEFAULT_URL}")
    headers = {"User-Agent": f"potluck/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {_checked_key(api_key)}"
    return {
        "base_url": url,
        "headers": headers,
        # The gateway is one machine in the same network: proxies and .netrc of the environment are not meant for it.
        "trust_env": False,
        # Whoever asks 500 things at once waits in the gateway's fair queue, not in a pool that knows no turns.
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
    }


def _checked_key(api_key: str) -> str:
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise Misuse("an API key consists of printable ASCII characters without spaces")
    return api_key


def _about_model(model: str, node: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    if "stream" in given:
        raise Misuse("'stream' is for programs that read the lines themselves: POST /api/models/load")
    return {"model": model, **({} if node is None else {"node": node}), **given}


def _read_record(value: Any) -> Mapping[str, Any]:
    return as_record(value, "an object")


def _read_whole(value: Any) -> Answer:
    return read_answer(as_record(value, "an object"))


def _lookup(timeouts: Timeouts) -> httpx.Timeout:
    return _waiting(timeouts, timeouts.lookup_seconds)


def _waiting(timeouts: Timeouts, silence_seconds: float | None) -> httpx.Timeout:
    return httpx.Timeout(silence_seconds, connect=timeouts.connect_seconds)
