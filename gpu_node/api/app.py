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
from gpu_node.api.batch import BatchApi
from gpu_node.api.devices import PREFIX as DEVICE_PATHS
from gpu_node.api.devices import DevicesApi
from gpu_node.api.infer import InferApi
from gpu_node.api.models import ModelsApi
from gpu_node.api.ollama import OllamaApi
from gpu_node.api.openai import OpenAiApi
from gpu_node.api.operations import Operations
from gpu_node.api.pages import PAGE_PREFIX, PagesApi
from gpu_node.api.pipeline import PipelineApi
from gpu_node.api.replies import OPENAI_PATHS, error_reply, status_of, text_reply
from gpu_node.api.service import Service
from gpu_node.errors import NodeError, RequestError
from gpu_node.metrics import NodeMetrics

Endpoint = Callable[[Request], Awaitable[Response]]
Table = dict[str, tuple[str, Endpoint]]

# Paths that end in a name.
NAMED_PATHS = {
    "/v1/models/": "/v1/models/{id}",
    DEVICE_PATHS: f"{DEVICE_PATHS}{{name}}",
    PAGE_PREFIX: f"{PAGE_PREFIX}{{file}}",
}
CLIENT_LEFT = 499

log = logging.getLogger("gpu_node.api")


def build_app(service: Service, rules: AccessRules) -> ASGIApp:
    ollama, openai = OllamaApi(service), OpenAiApi(service)
    batch, models, infer = BatchApi(service, openai), ModelsApi(service), InferApi(service)
    devices = DevicesApi(service)
    routes: Table = {}
    residents, fleet = service.residents, service.fleet
    happened = (lambda: fleet.event_counts) if fleet is not None else dict
    metrics = NodeMetrics(lambda: residents.hosts, lambda: residents.accounts, routes, service.relay, happened)
    operations, pages = Operations(service, metrics), PagesApi()
    pipeline = PipelineApi(service)
    routes |= {
        "/": ("GET", pages.root),
        "/page/{file}": ("GET", pages.asset),
        "/live": ("GET", operations.live),
        "/ready": ("GET", operations.ready),
        "/health": ("GET", operations.health),
        "/metrics": ("GET", operations.metrics),
        "/api/generate": ("POST", ollama.generate),
        "/api/chat": ("POST", ollama.chat),
        "/api/embed": ("POST", ollama.embed),
        "/api/embeddings": ("POST", ollama.embed_one),
        "/api/tags": ("GET", ollama.tags),
        "/api/ps": ("GET", ollama.ps),
        "/api/show": ("POST", ollama.show),
        "/api/version": ("GET", ollama.version),
        "/v1/models": ("GET", openai.models),
        "/v1/models/{id}": ("GET", openai.model),
        "/v1/chat/completions": ("POST", openai.chat),
        "/v1/completions": ("POST", openai.completions),
        "/v1/embeddings": ("POST", openai.embeddings),
        "/v1/batch/completions": ("POST", batch.completions),
        "/api/models": ("GET", models.listed),
        "/api/models/load": ("POST", models.load),
        "/api/models/unload": ("POST", models.unload),
        "/api/infer": ("POST", infer.infer),
        "/api/gpu": ("GET", operations.gpu),
        "/api/system": ("GET", operations.system),
        "/api/devices": ("GET", devices.listed),
        "/api/devices/{name}": ("DELETE", devices.remove),
        "/api/queue/status": ("GET", operations.queue),
        "/api/batcher/stats": ("GET", operations.batcher),
        "/api/pipeline/status": ("GET", pipeline.status),
        "/api/sessions": ("GET", operations.sessions),
    }
    # Beside what the table has for that path.
    also: Table = {"/api/devices": ("POST", devices.change)}
    return AccessControl(Routes(routes, also, metrics.count_response), rules)


class Routes:
    """One method a path, and a second one where `also` has it; HEAD where there is GET."""

    def __init__(
        self,
        routes: Mapping[str, tuple[str, Endpoint]],
        also: Mapping[str, tuple[str, Endpoint]],
        count: Callable[[str, int], None],
    ) -> None:
        self._routes, self._also, self._count = routes, also, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "the server is started without websockets and lifespan"
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        try:
            await self._serve(Request(scope, receive), receive, watched)
        except ClientDisconnect:
            pass
        except NodeError as error:
            if status:
                raise
            field = error.field if isinstance(error, RequestError) else None
            await error_reply(str(error), status_of(error), path, field)(scope, receive, watched)
        except Exception:  # top of the request's task
            log.exception("a request failed")
            if status:
                raise
            await error_reply("the node failed to answer; its log says why", 500, path)(scope, receive, watched)
        finally:
            self._count(_pattern(path), status or CLIENT_LEFT)

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        reply = await self._reply(request)
        await reply(request.scope, receive, send)

    async def _reply(self, request: Request) -> Response:
        path = request.url.path
        route, second = self._routes.get(_pattern(path)), self._also.get(_pattern(path))
        if route is None:
            if path.startswith(OPENAI_PATHS):
                return error_reply(f"there is no {path}", 404, path)
            return text_reply("404 page not found", 404)
        if second is not None and request.method == second[0]:
            route = second
        method, endpoint = route
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            if path.startswith(OPENAI_PATHS):
                reply = error_reply(f"{path} wants {method}", 405, path)
                reply.headers["Allow"] = method
                return reply
            return text_reply(
                "405 method not allowed", 405, {"Allow": method if second is None else f"{method}, {second[0]}"}
            )
        return await endpoint(request)


def _pattern(path: str) -> str:
    below = next((prefix for prefix in NAMED_PATHS if path.startswith(prefix) and len(path) > len(prefix)), None)
    return path if below is None else NAMED_PATHS[below]
