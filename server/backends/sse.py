"""Server-sent events, sans-IO: bytes in, the data of whole events out, however the network cuts them.

Knows comments, CRLF and data of several lines, and nothing of what the data says.
"""

from __future__ import annotations

from server.errors import NodeBroken

MAX_EVENT_BYTES = 8 * 1024 * 1024


class EventReader:
    """`feed` gives (field, data) of each event that is whole; the field is `data`, or llama-server's `error`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._half: list[bytes] = []
        self._half_bytes = 0
        self._field = b"data"
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Raises NodeBroken for an event beyond all bounds."""
        cut = data.rfind(b"\n")
        if cut < 0:
            self._keep_half(data)
            return []
        lines = data[:cut].split(b"\n")
        if self._half:
            lines[0] = b"".join(self._half) + lines[0]
            self._half = []
        self._half_bytes = 0
        if cut + 1 < len(data):
            self._keep_half(data[cut + 1 :])
        events: list[tuple[bytes, bytes]] = []
        for line in lines:
            self._read_line(line.removesuffix(b"\r"), events)
        return events

    def finish(self) -> list[tuple[bytes, bytes]]:
        """The stream has ended: an event that lacks its blank line is taken as whole."""
        return self.feed(b"\n\n")

    def _keep_half(self, data: bytes) -> None:
        self._half.append(data)
        self._half_bytes += len(data)
        self._check_bounds()

    def _read_line(self, line: bytes, events: list[tuple[bytes, bytes]]) -> None:
        if not line:
            if self._data:
                events.append((self._field, b"\n".join(self._data)))
            self._field, self._data, self._data_bytes = b"data", [], 0
            return
        name, _, value = line.partition(b":")
        if name not in (b"data", b"error"):
            return  # a comment (no name), or event, id and retry, which nobody here needs
        self._field = name
        self._data.append(value.removeprefix(b" "))
        self._data_bytes += len(value)
        self._check_bounds()

    def _check_bounds(self) -> None:
        if self._half_bytes + self._data_bytes > MAX_EVENT_BYTES:
            raise NodeBroken(f"{self._address} sent an event of more than {MAX_EVENT_BYTES} bytes")
