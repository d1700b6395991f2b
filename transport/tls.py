"""A line through TLS: the non-blocking TLS socket of the standard library, in all else as on a plain socket.

Invariants: decrypted bytes go straight into the protocol's buffers; a write that TLS could not finish is repeated with
the very same bytes, as OpenSSL asks for; a peer that ends without the farewell of TLS counts as cut. Must not know
frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from transport.errors import ConnectFailed
from transport.lines import Line, SocketLine, joined
from wire.frames import Buffer

__all__ = ["Tls", "TlsLine", "line_over"]

# Pieces up to this are encrypted together: a record of its own costs some 29 bytes and a call.
SMALL_BYTES = 4096
# What is handed to TLS at once: four of its records, so one call does not hold the loop for long.
PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Tls:
    """`server_name` is for the client: the name that the node's certificate must have."""

    context: ssl.SSLContext
    server_side: bool = False
    server_name: str | None = None
    handshake_seconds: float = 10.0


async def line_over(connected: socket.socket, tls: Tls | None = None) -> Line:
    """A line over a connected socket, which belongs to the line from now on, also when this raises.

    Raises ConnectFailed when TLS cannot be agreed on: no TLS there, a certificate that is not trusted, too late.
    """
    return SocketLine(connected) if tls is None else await TlsLine.over(connected, tls)


class TlsLine(SocketLine):
    """Made by `over`, when the handshake is done."""

    _again = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)
    _short_is_all = False  # one read gives one record

    def __init__(self, secured: ssl.SSLSocket, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(secured, clock)
        self._secured = secured

    @classmethod
    async def over(cls, connected: socket.socket, tls: Tls) -> TlsLine:
        """As `line_over`."""
        address = _address_of(connected)
        connected.setblocking(False)
        # Set by Python 3.11.2: then OpenSSL tells an end without the farewell as one with it.
        tls.context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        try:
            secured = tls.context.wrap_socket(
                connected,
                server_side=tls.server_side,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                server_hostname=None if tls.server_side else tls.server_name,
            )
        except (OSError, ValueError) as error:
            connected.close()
            raise ConnectFailed(address, f"no TLS: {error}") from error
        try:
            async with asyncio.timeout(tls.handshake_seconds):
                await _shake_hands(secured)
        except BaseException as error:
            secured.close()
            if isinstance(error, TimeoutError):
                raise ConnectFailed(address, f"no TLS within {tls.handshake_seconds:g} seconds") from error
            if isinstance(error, OSError):
                raise ConnectFailed(address, f"no TLS: {error}") from error
            raise
        return cls(secured)

    def _prepared(self, buffers: list[Buffer]) -> list[Buffer]:
        pieces: list[Buffer] = []
        for buffer in joined(buffers, SMALL_BYTES):
            view = memoryview(buffer)
            pieces += [view[start : start + PIECE_BYTES] for start in range(0, len(view), PIECE_BYTES)]
        return pieces

    def _read(self) -> None:
        super()._read()
        if self._reading and self._secured.pending():
            self._loop.call_soon(self._read_on)  # decrypted already: the loop sees nothing of it

    def _send(self, buffers: list[Buffer]) -> int:
        total = 0
        for buffer in buffers:
            try:
                sent = self._secured.send(buffer)
            except self._again:
                break
            except OSError as error:
                return self._fail_to_send(error)
            total += sent
            if sent < len(buffer):
                break
        self.sent_bytes += total
        self._sent_since += total
        return total

    def _say_end(self) -> None:
        with contextlib.suppress(*self._again):  # it waits for the peer's farewell, we do not
            self._secured.unwrap()
        super()._say_end()


async def _shake_hands(secured: ssl.SSLSocket) -> None:
    loop, descriptor = asyncio.get_running_loop(), secured.fileno()
    while True:
        ready = loop.create_future()
        try:
            return secured.do_handshake()
        except ssl.SSLWantReadError:
            loop.add_reader(descriptor, _tell, ready)
            forget = loop.remove_reader
        except ssl.SSLWantWriteError:
            loop.add_writer(descriptor, _tell, ready)
            forget = loop.remove_writer
        try:
            await ready
        finally:
            forget(descriptor)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _address_of(connected: socket.socket) -> str:
    try:
        peer = connected.getpeername()
    except OSError:
        return "nobody"
    if not isinstance(peer, tuple):
        return str(peer) or "a local socket"
    host, port = str(peer[0]), int(peer[1])
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
