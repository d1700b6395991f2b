"""Puts the routes, the checks and the error texts together into one ASGI application.

Invariants: every request gets exactly one answer; an error before the first byte has its status, one after it cuts the
connection, so that no client takes a torso for an answer; no traceback leaves the node.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_node.api.access import AccessControl, AccessRules
from gpu_node.api.ollama import OllamaApi
from gpu_node.api.operations import Operations
from gpu_node.api.replies import error_reply, text_reply
from gpu_node.errors import NodeBusy, NodeError, NodeStopping, RequestError
from gpu_node.host import ModelHost

Endpoint = Callable[[Request], Awaitable[Response]]

log = logging.getLogger("gpu_node.api")


def build_app(host: ModelHost, rules: AccessRules, max_body_bytes: int) -> ASGIApp:
    ollama, operations = OllamaApi(host, max_body_bytes), Operations(host)
    routes: dict[str, tuple[str, Endpoint]] = {
        "/": ("GET", operations.root),
        "/live": ("GET", operations.live),
        "/ready": ("GET", operations.ready),
        "/health": ("GET", operations.health),
        "/api/generate": ("POST", ollama.generate),
        "/api/chat": ("POST", ollama.chat),
        "/api/embed": ("POST", ollama.embed),
        "/api/embeddings": ("POST", ollama.embed_one),
        "/api/tags": ("GET", ollama.tags),
        "/api/ps": ("GET", ollama.ps),
        "/api/show": ("POST", ollama.show),
        "/api/version": ("GET", ollama.version),
    }
    return AccessControl(Routes(routes), rules)


class Routes:
    """One method a path; HEAD where there is GET."""

    def __init__(self, routes: Mapping[str, tuple[str, Endpoint]]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server is started without websockets and lifespan"
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            reply = await self._reply(Request(scope, receive))
            await reply(scope, receive, watched)
        except ClientDisconnect:
            return
        except NodeError as error:
            if started:
                raise
            await error_reply(str(error), status_of(error))(scope, receive, send)
        except Exception:  # top of the request's task
            log.exception("a request failed")
            if started:
                raise
            await error_reply("the node failed to answer; its log says why", 500)(scope, receive, send)

    async def _reply(self, request: Request) -> Response:
        route = self._routes.get(request.url.path)
        if route is None:
            return text_reply("404 page not found", 404)
        method, endpoint = route
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            return text_reply("405 method not allowed", 405, {"Allow": method})
        return await endpoint(request)


def status_of(error: NodeError) -> int:
    if isinstance(error, RequestError):
        return error.status
    return 503 if isinstance(error, NodeBusy | NodeStopping) else 500
