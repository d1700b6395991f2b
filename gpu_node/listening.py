"""The sockets that the node listens on, and the HTTP server on one of them: uvicorn, stopped by the node alone.

Binding comes first and apart, so that a taken port is a plain sentence before anything heavy has begun. The relay is
never bound where strangers reach it unless they have to prove a token.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from gpu_node.errors import UsageError
from gpu_node.settings import NodeSettings

log = logging.getLogger("gpu_node")

# Answers that were cut by the stop still want to be written; a client that reads nothing must not hold the node.
STOP_SECONDS = 3
# Relay clients that connect at once, after a restart for example.
RELAY_BACKLOG = 512
# Whoever hears a handshake can try tokens at leisure; those that people think of are soon found.
SHORT_TOKEN = 16


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
    except UnicodeError as error:  # a part of the name is empty or too long
        raise UsageError(f"cannot listen on {host}: that is no name of a host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def bind_relay(settings: NodeSettings) -> socket.socket | None:
    """The relay's socket, listening already, so that nobody else gets the port; None where there is no relay.

    A port that nobody asked for and somebody has is left to them. Raises `UsageError`, also for an address beyond
    this machine without a token."""
    if settings.no_relay:
        return None
    try:
        listener = _listening(settings.host, settings.relay_port)
    except UsageError:
        if settings.asks_for_relay_port:
            raise
        listener = _listening(settings.host, 0)
        taken, port = settings.relay_port, listener.getsockname()[1]
        log.warning("port %d is taken, so the relay takes %d; --relay-port names another one", taken, port)
    if not is_loopback_socket(listener):
        _check_token(settings, listener)
    return listener


def is_loopback_socket(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _listening(host: str, port: int) -> socket.socket:
    listener = bind(host, port)
    try:
        listener.listen(RELAY_BACKLOG)
    except OSError as error:  # bound by two who started at once
        listener.close()
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def _check_token(settings: NodeSettings, listener: socket.socket) -> None:
    if not settings.token:
        listener.close()
        raise UsageError(
            f"the relay listens on {settings.host} only with a token: set POTLUCK_NODE_TOKEN to a long random text "
            "(openssl rand -hex 32), the same at its clients, or start with --no-relay"
        )
    if len(settings.token) < SHORT_TOKEN and settings.tls_certificate is None:
        log.warning(
            "the relay's token has %d characters only: who listens in this network can guess it", len(settings.token)
        )
