"""What the same bytes cost on a bare TCP socket: an echo, a sink and a source, blocking, with nothing around them.

The floor that a protocol is measured against. An order is 16 bytes: one letter, the size of a piece of a receive or
send call, and how many bytes. `python -m bench.rig.raw_socket PORT` serves one client at a time on loopback.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bench.rig.servers import ROOT, on_core

ORDER = struct.Struct(">cxxxIQ")
PING, SINK, SOURCE = b"p", b"s", b"r"
ECHO_BYTES = 32
DONE = b"."


def serve(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        with peer, suppress(ConnectionError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _serve_one(peer)


def _serve_one(peer: socket.socket) -> None:
    room = bytearray(256 << 20)  # touched before: pages that come on the way would be counted against the socket
    view = memoryview(room)
    while True:
        order = _received(peer, bytearray(ORDER.size))
        if order is None:
            return
        letter, piece, size = ORDER.unpack(order)
        if letter == PING:
            peer.sendall(view[:size])
        elif letter == SINK:
            receive(peer, view[:size], piece)
            peer.sendall(DONE)
        else:
            send(peer, view[:size], piece)


def receive(peer: socket.socket, room: memoryview, piece: int) -> None:
    done = 0
    while done < len(room):
        count = peer.recv_into(room[done : done + piece])
        if not count:
            raise ConnectionError("the peer has left")
        done += count


def send(peer: socket.socket, data: memoryview, piece: int) -> None:
    for start in range(0, len(data), piece):
        peer.sendall(data[start : start + piece])


class RawClient:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ping_seconds(self) -> float:
        began = time.perf_counter()
        self._socket.sendall(ORDER.pack(PING, ECHO_BYTES, ECHO_BYTES))
        _received(self._socket, bytearray(ECHO_BYTES))
        return time.perf_counter() - began

    def write_seconds(self, data: memoryview, piece: int) -> float:
        began = time.perf_counter()
        self._socket.sendall(ORDER.pack(SINK, piece, len(data)))
        send(self._socket, data, piece)
        _received(self._socket, bytearray(len(DONE)))
        return time.perf_counter() - began

    def read_seconds(self, room: memoryview, piece: int) -> float:
        began = time.perf_counter()
        self._socket.sendall(ORDER.pack(SOURCE, piece, len(room)))
        receive(self._socket, room, piece)
        return time.perf_counter() - began


def _received(peer: socket.socket, room: bytearray) -> bytearray | None:
    """None where the peer has left."""
    done = 0
    while done < len(room):
        count = peer.recv_into(memoryview(room)[done:])
        if not count:
            return None
        done += count
    return room


@contextmanager
def raw_server(port: int, core: int | None) -> Iterator[None]:
    """The other end, in a process of its own on that core."""
    command = on_core(core, [sys.executable, "-m", "bench.rig.raw_socket", str(port)])
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.terminate()


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        print("listening", flush=True)
        with suppress(KeyboardInterrupt):
            serve(listener)


if __name__ == "__main__":
    main()
