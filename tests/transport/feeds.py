"""A feed that keeps what a line tells it."""

from __future__ import annotations


class Feed:
    """`room` is how much it takes at once."""

    def __init__(self, room: int = 1 << 16) -> None:
        self.received = bytearray()
        self.told: list[str] = []
        self.errors: list[OSError | None] = []
        self.measured: list[tuple[int, float]] = []
        self.frames_per_read = 0
        self._buffer = bytearray(room)

    def get_buffer(self) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, count: int) -> int:
        self.received += self._buffer[:count]
        return self.frames_per_read

    def turn_over(self) -> None:
        self.told.append("turn")

    def line_ready(self) -> None:
        self.told.append("ready")

    def line_measured(self, size: int, seconds: float) -> None:
        self.measured.append((size, seconds))

    def line_ended(self) -> None:
        self.told.append("ended")

    def line_lost(self, error: OSError | None) -> None:
        self.told.append("lost")
        self.errors.append(error)
