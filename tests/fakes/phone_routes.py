"""One request at one phone: is the client welcome, does a fault strike, who answers. Also the plain-text answers of
Go's router.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from functools import lru_cache
from urllib.parse import urlsplit

from tests.fakes import phone_catalog as catalog
from tests.fakes import phone_openai as openai
from tests.fakes.phone_control import answer_control
from tests.fakes.phone_faults import Fault
from tests.fakes.phone_http import Exchange
from tests.fakes.phone_ollama import answer_chat, answer_generate, go_json
from tests.fakes.phone_pulls import answer_pull
from tests.fakes.phone_requests import Refused, Unreadable
from tests.fakes.phone_responses import responses
from tests.fakes.phone_state import PhoneState, SeenRequest
from tests.fakes.phone_telling import JSON, NDJSON, PLAIN, Ended, RunnerDied, Telling

Answering = Callable[[Telling, bytes], Awaitable[None]]


async def _root(telling: Telling, _: bytes) -> None:
    await telling.whole(200, b"Ollama is running", "text/plain; charset=utf-8")


async def _version(telling: Telling, _: bytes) -> None:
    await telling.whole(200, go_json({"version": telling.state.settings.version}))


async def _tags(telling: Telling, _: bytes) -> None:
    await telling.whole(200, catalog.tags(telling.state.settings))


async def _ps(telling: Telling, _: bytes) -> None:
    await telling.whole(200, catalog.running(telling))


async def _show(telling: Telling, body: bytes) -> None:
    await telling.whole(200, catalog.show(telling.state.settings, body))


async def _delete(telling: Telling, body: bytes) -> None:
    await telling.whole(200, catalog.delete(telling.state.settings, body), "")


_ROUTES: dict[str, dict[str, tuple[str, Answering]]] = {
    "/": {"GET": ("root", _root), "HEAD": ("root", _root)},
    "/api/version": {"GET": ("version", _version), "HEAD": ("version", _version)},
    "/api/tags": {"GET": ("tags", _tags), "HEAD": ("tags", _tags)},
    "/api/ps": {"GET": ("ps", _ps)},
    "/api/show": {"POST": ("show", _show)},
    "/api/chat": {"POST": ("chat", answer_chat)},
    "/api/generate": {"POST": ("generate", answer_generate)},
    "/api/embed": {"POST": ("embed", catalog.embed)},
    "/api/embeddings": {"POST": ("embed", catalog.embed_old)},
    "/api/delete": {"DELETE": ("other", _delete)},
    "/api/pull": {"POST": ("pull", answer_pull)},
    "/v1/chat/completions": {"POST": ("v1", openai.chat_completions)},
    "/v1/completions": {"POST": ("v1", openai.completions)},
    "/v1/embeddings": {"POST": ("v1", openai.embeddings)},
    "/v1/models": {"GET": ("v1", openai.models)},
}
_NEWER_ROUTES: dict[str, dict[str, tuple[str, Answering]]] = {
    "/v1/messages": {"POST": ("v1", openai.messages)},
    "/v1/responses": {"POST": ("v1", responses)},
}
_FREE_HOSTS = ("localhost",)
_FREE_SUFFIXES = (".localhost", ".local", ".internal")
_FREE_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")


@lru_cache(maxsize=1024)  # asked for every request
def is_welcome_host(host: str) -> bool:
    """A Host that is an address of a private net, localhost, or ends in .local, .localhost or .internal."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", *_FREE_HOSTS) or name.endswith(_FREE_SUFFIXES)
    return address.is_loopback or address.is_private or address.is_unspecified


def is_welcome_origin(origin: str, host: str) -> bool:
    parts = urlsplit(origin)
    if parts.scheme in _FREE_SCHEMES or parts.netloc == host:
        return True
    return parts.scheme in ("http", "https") and parts.hostname in ("localhost", "127.0.0.1", "0.0.0.0")


def route(state: PhoneState, exchange: Exchange) -> tuple[str, Answering]:
    """The name of the path for faults and counters, and who answers."""
    request = exchange.request
    methods = _ROUTES.get(request.path)
    if methods is None and state.settings.profile.newer_dialects:
        methods = _NEWER_ROUTES.get(request.path)
    if request.path.startswith("/v1/models/") and request.method == "GET":
        name = request.path.removeprefix("/v1/models/")
        return "v1", lambda telling, _: openai.one_model(telling, name)
    if methods is None:
        return "other", _not_found
    if request.method not in methods:
        return "other", _wrong_method(", ".join(methods)) if state.settings.profile.knows_methods else _not_found
    name, answering = methods[request.method]
    if name in ("chat", "generate") and state.settings.profile.renders and b'"_debug_render_only"' in request.body:
        name = "render"
    return name, answering


async def _not_found(telling: Telling, _: bytes) -> None:
    await telling.whole(404, b"404 page not found", PLAIN)


def _wrong_method(allowed: str) -> Answering:
    async def answer(telling: Telling, _: bytes) -> None:
        await telling.whole(405, b"405 method not allowed", PLAIN, {"Allow": allowed})

    return answer


async def serve(state: PhoneState, exchange: Exchange) -> None:
    """One request from its arrival to its end; never raises but for cancellation, which means that the client has
    left.
    """
    request, counters = exchange.request, state.counters
    if request.path == "/_control" and state.settings.control:
        answer_control(state, exchange)
        return
    name, answering = route(state, exchange)
    counters.requests[name] += 1
    state.log.append(SeenRequest(name, request.method, request.path, request.headers, request.body, state.clock()))
    counters.in_flight += 1
    counters.max_in_flight = max(counters.max_in_flight, counters.in_flight)
    exchange.extra = state.settings.headers
    try:
        if not state.thawed.is_set():
            await state.thawed.wait()
        fault = state.faults.for_request(name, state.clock())
        if fault is not None:
            counters.faults[fault.kind] += 1
        await _answer(Telling(state, exchange, fault), fault, name, answering)
    except Ended:
        pass
    except asyncio.CancelledError:
        counters.cancelled += 1
        raise
    finally:
        counters.in_flight -= 1


async def _answer(telling: Telling, fault: Fault | None, name: str, answering: Answering) -> None:
    request, settings = telling.exchange.request, telling.state.settings
    await telling.before()
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    if settings.check_origin and not (is_welcome_host(host) and (not origin or is_welcome_origin(origin, host))):
        telling.state.counters.refused += 1
        await telling.whole(403, b"", "")
        return
    try:
        if fault is not None and fault.kind == "status":
            extra = {"Retry-After": fault.retry_after} if fault.retry_after else None
            await telling.whole(fault.status, _error(name, fault.status, fault.message, telling), JSON, extra)
            return
        await answering(telling, request.body)
    except Refused as refused:
        await _refuse(telling, name, refused)
    except RunnerDied as died:
        await _say_died(telling, name, str(died))


def _error(name: str, status: int, message: str, telling: Telling) -> bytes:
    if name == "v1":
        return openai.error_body(status, message, telling.state.settings)
    return go_json({"error": message})


async def _refuse(telling: Telling, name: str, refused: Refused) -> None:
    body = _error(name, refused.status, refused.message, telling)
    if name == "v1" and not isinstance(refused, Unreadable):
        await telling.whole(refused.status, body + b"\n", openai.JSON_LINE)
    elif refused.streamed and name != "v1" and refused.status == 200:
        await telling.whole(200, body + b"\n", NDJSON, chunked=True)
    elif refused.streamed and name != "v1":
        await telling.whole(refused.status, body, "application/json", chunked=True)
    else:
        await telling.whole(refused.status, body)


async def _say_died(telling: Telling, name: str, message: str) -> None:
    telling.disarm()
    body = _error(name, 500, message, telling)
    if telling.exchange.begun:
        await telling.line(body + b"\n")
        await telling.end()
    else:
        await telling.whole(500, body)
