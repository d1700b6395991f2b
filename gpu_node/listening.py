"""The HTTP server: uvicorn on a socket that is bound beforehand, stopped by the node alone.

Binding comes first and apart, so that a taken port is a plain sentence before anything heavy has begun.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from gpu_node.errors import UsageError

# Answers that were cut by the stop still want to be written; a client that reads nothing must not hold the node.
STOP_SECONDS = 3


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: the node decides what ends when."""

    def __init__(self, app: ASGIApp, on_listening: Callable[[str, int], None], on_stop: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # else a caller could claim to be a neighbour
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(config)
        self._on_listening, self._on_stop = on_listening, on_stop

    def stop(self) -> None:
        """The second time without waiting for clients."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            self._on_listening(*listener.getsockname()[:2])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """Raises `UsageError` when the address is taken or not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener
