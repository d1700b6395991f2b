"""The application: one route table, one way in, one way out.

Every request passes the same steps: route, access, handler, and an error in the dialect of its path. Whatever bad input
comes, the answer is a 4xx; our own faults end in the log and in a 500 without details. Knows no handler's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from server.api.ask import AskApi
from server.api.ask_batch import BatchApi
from server.api.fleet import FleetApi
from server.api.incoming import ClientGone, Incoming, Receive, Scope
from server.api.invitations import INVITATIONS_PREFIX, InvitationsApi
from server.api.join import JOIN_PREFIX, JoinApi
from server.api.models import ModelsApi
from server.api.ollama import OllamaApi
from server.api.ollama_models import OllamaModelsApi
from server.api.openai_batch import OpenAIBatchApi
from server.api.openai_chat import OpenAIChatApi
from server.api.openai_completions import OpenAICompletionsApi
from server.api.openai_models import OpenAIModelsApi
from server.api.pages import PagesApi
from server.api.phones import PHONES_PREFIX, PhonesApi
from server.api.pipeline import PIPELINE_PATH, PipelineApi
from server.api.reply import Send
from server.api.services import Services
from server.errors import GatewayDraining, GatewayError, InternalError, MethodRefused, PathUnknown
from server.http_errors import Dialect, Header

Handler = Callable[[Incoming], Awaitable[None]]
Routes = dict[str, dict[str, Handler]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Answered without a key: nothing here tells anything about the fleet. Phones that join bring secrets of their own.
OPEN_PATHS = frozenset({"/live", "/", "/join", "/api/phones/join", "/api/phones/report"})
OPEN_PREFIXES = ("/dashboard/", JOIN_PREFIX)
# What a draining gateway still tells: that it drains.
_DRAINING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_CORS_METHODS = b"GET, POST, PATCH, DELETE, HEAD, OPTIONS"
_CORS_SECONDS = b"600"


def route_table(services: Services) -> Routes:
    """Path to method to handler. A path that ends in a slash stands for all paths below it."""
    parts = (_prompts, _openai, _ollama, _models, _phones, _state)
    return {path: methods for part in parts for path, methods in part(services).items()}


def _prompts(services: Services) -> Routes:
    ask, batch = AskApi(services), BatchApi(services)
    return {
        "/ask": {"POST": ask.ask},
        "/ask_stream": {"POST": ask.ask_stream},
        "/ask_batch": {"POST": batch.ask_batch},
    }


def _openai(services: Services) -> Routes:
    chat, completions, models = OpenAIChatApi(services), OpenAICompletionsApi(services), OpenAIModelsApi(services)
    many = OpenAIBatchApi(services, chat, completions)
    return {
        "/v1/chat/completions": {"POST": chat.chat},
        "/v1/completions": {"POST": completions.completions},
        "/v1/batch/completions": {"POST": many.completions},
        "/v1/embeddings": {"POST": completions.embeddings},
        "/v1/models": {"GET": models.list_models},
        "/v1/models/": {"GET": models.one_model},
    }


def _ollama(services: Services) -> Routes:
    ollama, listing = OllamaApi(services), OllamaModelsApi(services)
    return {
        "/api/generate": {"POST": ollama.generate},
        "/api/chat": {"POST": ollama.chat},
        "/api/embed": {"POST": ollama.embed},
        "/api/embeddings": {"POST": ollama.embeddings},
        "/api/tags": {"GET": listing.tags},
        "/api/ps": {"GET": listing.ps},
        "/api/show": {"POST": listing.show},
        "/api/version": {"GET": listing.version},
        "/api/pull": {"POST": listing.refuse},
        "/api/push": {"POST": listing.refuse},
        "/api/create": {"POST": listing.refuse},
        "/api/copy": {"POST": listing.refuse_known},
        "/api/delete": {"DELETE": listing.refuse_known},
        "/api/blobs/": {"GET": listing.refuse, "POST": listing.refuse},
    }


def _models(services: Services) -> Routes:
    """What nodes hold, and on which devices."""
    held, pipeline = ModelsApi(services), PipelineApi(services)
    return {
        "/api/models": {"GET": held.listed},
        "/api/models/load": {"POST": held.load},
        "/api/models/unload": {"POST": held.unload},
        "/api/models/pull": {"POST": held.pull},
        "/api/gpu": {"GET": held.gpu},
        PIPELINE_PATH: {"GET": pipeline.status},
    }


def _phones(services: Services) -> Routes:
    join, phones, invitations = JoinApi(services), PhonesApi(services), InvitationsApi(services)
    return {
        "/join": {"GET": join.script},
        JOIN_PREFIX: {"GET": join.invited},
        "/api/phones": {"GET": phones.listed},
        "/api/phones/invite": {"POST": invitations.invite},
        "/api/phones/invitations": {"GET": invitations.listed},
        INVITATIONS_PREFIX: {"DELETE": invitations.withdraw},
        "/api/phones/join": {"POST": join.join},
        "/api/phones/report": {"POST": join.report},
        PHONES_PREFIX: {"POST": phones.order, "PATCH": phones.patch, "DELETE": phones.remove},
    }


def _state(services: Services) -> Routes:
    fleet, pages = FleetApi(services), PagesApi()
    return {
        "/": {"GET": pages.root},
        "/dashboard/": {"GET": pages.asset},
        "/health": {"GET": fleet.health},
        "/live": {"GET": fleet.live},
        "/ready": {"GET": fleet.ready},
        "/metrics": {"GET": fleet.metrics},
        "/api/nodes": {"GET": fleet.nodes},
        "/api/queue/status": {"GET": fleet.queue},
    }


_OWN_PATHS = ("/api/nodes", "/api/queue/status", "/api/phones")  # below Ollama's prefix


def dialect_of(path: str) -> Dialect:
    if path.startswith("/v1/"):
        return "openai"
    if path.startswith("/api/") and not path.startswith(_OWN_PATHS):
        return "ollama"
    return "ask"


def build_app(services: Services) -> App:
    """The ASGI application for `http` scopes."""
    return HttpApplication(services, route_table(services))


class HttpApplication:
    def __init__(self, services: Services, routes: Mapping[str, Mapping[str, Handler]]) -> None:
        self._services = services
        self._body_limit = services.settings.body_limit_bytes
        self._body_seconds = services.settings.body_timeout_s
        self._exact = {path: (path, methods, dialect_of(path)) for path, methods in routes.items()}
        self._below = [entry for path, entry in self._exact.items() if path.endswith("/") and path != "/"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        path: str = scope["path"]
        entry = self._exact.get(path) or self._entry_below(path)
        dialect = entry[2] if entry else dialect_of(path)
        incoming = Incoming(scope, receive, send, dialect, self._body_limit, self._body_seconds)
        open_requests = self._services.open_requests.requests
        open_requests.add(incoming)
        try:
            await self._answer(incoming, entry)
        except GatewayError as error:
            await self._refuse(incoming, error)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            await self._cancelled(incoming)
        except Exception as error:  # the last net: a fault of ours must not reach the client as a traceback
            self._services.log.failed(incoming, error)
            await self._refuse(incoming, InternalError())
        finally:
            incoming.end()
            open_requests.discard(incoming)
            self._services.metrics.http_finished(incoming.route or "other", incoming.reply.status)

    def _entry_below(self, path: str) -> tuple[str, Mapping[str, Handler], Dialect] | None:
        for entry in self._below:
            if path.startswith(entry[0]) and len(path) > len(entry[0]):
                return entry
        return None

    async def _answer(self, incoming: Incoming, entry: tuple[str, Mapping[str, Handler], Dialect] | None) -> None:
        self._admit(incoming)
        if incoming.method == "OPTIONS":
            await self._options(incoming, entry[1] if entry else {})
            return
        if entry is None:
            raise PathUnknown(incoming.shown_path)
        incoming.route, methods, _ = entry
        handler = methods.get("GET" if incoming.method == "HEAD" else incoming.method)
        if handler is None:
            incoming.reply.headers.append((b"allow", _allowed(methods)))
            raise MethodRefused(incoming.shown_path, incoming.method)
        if self._services.open_requests.draining and incoming.method not in _DRAINING_METHODS:
            raise GatewayDraining("the gateway is being stopped and takes no new requests")
        await handler(incoming)

    def _admit(self, incoming: Incoming) -> None:
        """Know the caller, or refuse it; tell browsers of welcome pages that they may read the answer."""
        incoming.check_headers()
        headers, access = incoming.headers, self._services.access
        origin = headers.get(b"origin")
        if origin is not None and access.welcomes(origin, headers.get(b"host")):
            incoming.reply.headers += _cors_headers(origin)
        preflight = incoming.method == "OPTIONS" and b"access-control-request-method" in headers
        if is_open(incoming.path) or (preflight and access.needs_key):
            return  # a preflight cannot bring the key; it learns nothing but what the answer's headers say
        server = incoming.scope.get("server")
        local = server is not None and server[1] is None
        incoming.caller = access.caller(incoming.scope.get("client"), headers, local)
        if server is not None and not local:
            self._services.exposure.note(server[0])

    async def _options(self, incoming: Incoming, methods: Mapping[str, Handler]) -> None:
        headers = incoming.reply.headers
        headers.append((b"allow", _allowed(methods)))
        asked = incoming.headers.get(b"access-control-request-headers")
        if any(name == b"access-control-allow-origin" for name, _ in headers):
            headers.append((b"access-control-allow-methods", _CORS_METHODS))
            headers.append((b"access-control-max-age", _CORS_SECONDS))
            if asked is not None:
                headers.append((b"access-control-allow-headers", asked))
        await incoming.reply.answer_empty()

    async def _refuse(self, incoming: Incoming, error: GatewayError) -> None:
        """Answer with the error; a response that has begun has told it already."""
        self._services.log.refused(incoming, error)
        if not incoming.reply.status:
            await incoming.refuse(error)

    async def _cancelled(self, incoming: Incoming) -> None:
        """The client left, or the gateway cut the request; anybody else's cancel goes on upwards."""
        task = asyncio.current_task()
        if incoming.cut_error is None and not incoming.gone:
            raise asyncio.CancelledError
        if task is not None:
            task.uncancel()
        if incoming.cut_error is not None and not incoming.gone:
            await self._refuse(incoming, incoming.cut_error)


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def _allowed(methods: Mapping[str, Handler]) -> bytes:
    names = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    return ", ".join(sorted(names)).encode()


def _cors_headers(origin: bytes) -> list[Header]:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"X-Request-Id, X-Cache, Retry-After"),
        (b"vary", b"Origin"),
    ]


__all__ = ["App", "Handler", "HttpApplication", "build_app", "dialect_of", "is_open", "route_table"]
