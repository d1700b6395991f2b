"""Who waits to send on one connection: for room on a stream, for a stream to open, for all to be written.

Invariants: who waits is woken by what it waits for and by every end, and then looks for itself; among the senders of
one stream the first comes first. Must not know sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque

from wire.connection import Connection

__all__ = ["Waiting"]

Waiter = asyncio.Future[None]


class Waiting:
    """Look `at_room` after every taking from `connection`, `at_written` when the line has nothing left."""

    def __init__(self, connection: Connection) -> None:
        self.rooms: dict[int, deque[tuple[int, Waiter]]] = {}  # stream: the payload's size, and who waits
        self._connection = connection
        self.openers: list[Waiter] = []
        self.drains: list[tuple[int | None, Waiter]] = []

    async def room(self, number: int, size: int) -> None:
        """Until a payload of `size` may fit on the stream, or the stream ends."""
        entry = (max(1, size), asyncio.get_running_loop().create_future())
        waiters = self.rooms.setdefault(number, deque())
        waiters.append(entry)
        try:
            await entry[1]
        finally:
            if entry in waiters:
                waiters.remove(entry)
                if not waiters and self.rooms.get(number) is waiters:
                    del self.rooms[number]

    async def opening(self) -> None:
        """Until one more stream may fit."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self.openers.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self.openers:
                self.openers.remove(waiter)

    async def drained(self, number: int | None) -> None:
        """Until nothing of the stream, or of any, waits in this process; or all is lost."""
        entry = (number, asyncio.get_running_loop().create_future())
        self.drains.append(entry)
        try:
            await entry[1]
        finally:
            if entry in self.drains:
                self.drains.remove(entry)

    def at_room(self) -> None:
        """Something has left: wakes who fits now."""
        if self.openers:
            self.wake_openers()
        if not self.rooms:
            return
        # Who waits has a frame of the same stream before it: nothing changes for it until one of these leaves.
        for number in self._connection.moved_streams() & self.rooms.keys():
            waiters, room = self.rooms[number], self._connection.room(number)
            while waiters and room >= waiters[0][0]:
                size, waiter = waiters.popleft()
                room -= size
                _wake(waiter)
            if not waiters:
                del self.rooms[number]

    def at_written(self) -> None:
        """The line has nothing left of what was taken so far."""
        if not self.drains:
            return
        done = [entry for entry in self.drains if not self._holds(entry[0])]
        self.drains = [entry for entry in self.drains if entry not in done]
        for _, waiter in done:
            _wake(waiter)

    def wake_sender(self, number: int) -> None:
        for _, waiter in self.rooms.pop(number, ()):
            _wake(waiter)

    def wake_openers(self) -> None:
        openers, self.openers = self.openers, []
        for waiter in openers:
            _wake(waiter)

    def wake_all(self) -> None:
        for number in list(self.rooms):
            self.wake_sender(number)
        self.wake_openers()
        drains, self.drains = self.drains, []
        for _, waiter in drains:
            _wake(waiter)

    def _holds(self, number: int | None) -> bool:
        connection = self._connection
        numbers = connection.open_streams if number is None else (number,)
        return any(connection.has_waiting(each) for each in numbers)


def _wake(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
