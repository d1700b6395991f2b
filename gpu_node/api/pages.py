"""The node's page: GET / for browsers, and its parts under /page/, the same for everybody and without a key.

The shell holds no facts; it asks /api/pipeline/status with the key that its reader types in. Programs that ask / get
the line by which they know the node. Everything comes from here: the policy lets a browser load nothing from elsewhere
and run no inline script, so that a model's or a device's name can run nothing.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from gpu_node.api.replies import text_reply

PAGE_PREFIX = "/page/"
NODE_SENTENCE = "Potluck GPU node is running"
_FOLDER = Path(__file__).parent.parent / "page"
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "bars.js": "text/javascript; charset=utf-8",
    "bars.css": "text/css; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


class PagesApi:
    def __init__(self) -> None:
        self._files = {name: (_FOLDER / name).read_bytes() for name in _TYPES}

    async def root(self, request: Request) -> Response:
        if wants_page(request.method, request.headers.get("accept", "")):
            return self._file("index.html")
        return text_reply(NODE_SENTENCE, headers={"Vary": "Accept"})

    async def asset(self, request: Request) -> Response:
        name = request.url.path.removeprefix(PAGE_PREFIX)
        return self._file(name) if name in self._files else text_reply("404 page not found", 404)

    def _file(self, name: str) -> Response:
        return Response(self._files[name], headers={**_HEADERS, "Content-Type": _TYPES[name]})


def wants_page(method: str, accept: str) -> bool:
    """A browser that asks for something to show; programs, and whoever only looks whether we live, do not."""
    return method == "GET" and "text/html" in accept
