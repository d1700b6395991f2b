"""The page: GET / and its parts under /dashboard/, the same for everybody and without a key.

The shell holds no facts; it asks /health with the key that its reader types in. Programs that ask / get the sentence by
which Ollama's clients know a server.
"""

from __future__ import annotations

from pathlib import Path

from server.api.incoming import Incoming
from server.errors import PathUnknown
from server.http_errors import Header

_FOLDER = Path(__file__).parent.parent / "dashboard"
_KINDS = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
}
# Everything from here, nothing from elsewhere, no inline script: a node's name or a model's answer can run nothing.
_HEADERS: list[Header] = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
OLLAMA_SENTENCE = b"Ollama is running"


class PagesApi:
    def __init__(self) -> None:
        self._files = {one.name: one.read_bytes() for one in _FOLDER.iterdir() if one.suffix in _KINDS}

    async def root(self, incoming: Incoming) -> None:
        if incoming.method != "HEAD" and b"text/html" in incoming.headers.get(b"accept", b""):
            await self._send(incoming, "index.html")
        else:
            incoming.reply.headers.append((b"vary", b"Accept"))
            await incoming.reply.answer(OLLAMA_SENTENCE, b"text/plain; charset=utf-8")

    async def asset(self, incoming: Incoming) -> None:
        name = incoming.path.removeprefix("/dashboard/")
        if name not in self._files:
            raise PathUnknown(incoming.path)
        await self._send(incoming, name)

    async def _send(self, incoming: Incoming, name: str) -> None:
        incoming.reply.headers += [*_HEADERS, (b"vary", b"Accept")]
        await incoming.reply.answer(self._files[name], _KINDS[Path(name).suffix])
