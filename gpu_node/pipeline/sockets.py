"""What links ask of the kernel's sockets, Unix or TCP, beyond Python's own calls. Must not know frames."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from collections.abc import Sequence
from contextlib import suppress

from wire.frames import Buffer

# Linux takes 1,024 pieces in one gather write.
PIECES_A_WRITE = 1024
# Of a Unix socket. Of 0.2 to 8 MiB the quickest for frames of 1 MB: both sides copy at once, within their caches.
SOCKET_BYTES = 1 << 18


def prepare(line: socket.socket, silence_seconds: float) -> None:
    """Calls wait in the kernel at most that long, each for its next bytes."""
    line.setblocking(True)
    seconds = struct.pack("@ll", int(silence_seconds), int(silence_seconds % 1 * 1e6))
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    if line.family == socket.AF_UNIX:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    else:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def waiting_bytes(line: socket.socket) -> int:
    """Received by the kernel, and not taken yet; 0 of a closed one."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(line, termios.FIONREAD, count)
    except (OSError, ValueError):
        return 0
    return count[0]


def send_some(line: socket.socket, parts: Sequence[Buffer]) -> list[Buffer]:
    """One gather write; what is left of the parts."""
    return behind(parts, line.sendmsg(parts[:PIECES_A_WRITE]))


def behind(parts: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left when so many bytes are gone."""
    for at, part in enumerate(parts):
        size = len(part)
        if sent < size:
            return [memoryview(part)[sent:], *parts[at + 1 :]] if sent else list(parts[at:])
        sent -= size
    return []


def shut_down(line: socket.socket) -> None:
    """Wakes up whoever waits in it."""
    with suppress(OSError):  # not connected any more
        line.shutdown(socket.SHUT_RDWR)
