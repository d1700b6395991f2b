"""What operators and supervisors ask: alive, ready, healthy, and a line of text for people and for `ollama` itself."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gpu_node import __version__
from gpu_node.api.replies import error_reply, json_reply, text_reply
from gpu_node.host import ModelHost


class Operations:
    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def root(self, request: Request) -> Response:
        return text_reply("Potluck GPU node is running")

    async def live(self, request: Request) -> Response:
        return json_reply({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """Ready from the first load on: an idle model comes back with the next request."""
        state = self._host.engine.state
        if state in ("ready", "empty") and self._host.loaded_once:
            return json_reply({"status": "ready"})
        return error_reply(self._host.engine.error or f"the model is not loaded yet ({state})", 503)

    async def health(self, request: Request) -> Response:
        engine, host = self._host.engine, self._host
        runner = engine.runner
        return json_reply(
            {
                "status": {"ready": "ok", "empty": "idle", "closed": "stopping"}.get(engine.state, engine.state),
                "version": __version__,
                "model": host.name,
                "loaded": runner is not None,
                "device": runner.device if runner else None,
                "dtype": runner.dtype if runner else None,
                "memory_bytes": runner.memory_bytes if runner else 0,
                "context_length": host.context_tokens,
                "slots": 1,
                "in_flight": int(host.slot.busy),
                "waiting": host.slot.waiting,
                "error": engine.error or None,
            }
        )
