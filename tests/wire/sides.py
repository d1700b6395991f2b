"""Two honest sides with frames on the way between them, for tests of what crosses."""

from __future__ import annotations

from collections.abc import Callable

from tests.wire.pipe import frames_of, ready
from wire.connection import Connection
from wire.errors import IllegalSend, QueueFull
from wire.frames import FrameType
from wire.state import Role

T = FrameType
ACTIONS = ("open", "open_end", "more", "more_end", "cancel", "answer", "done", "fail", "to_server", "to_client")


class Sides:
    """Both sides, with what is on the way between them held until it is let through."""

    def __init__(self) -> None:
        self.client, self.server = ready()
        self.on_the_way = {Role.CLIENT: b"", Role.SERVER: b""}

    def act(self, action: str, which: int, size: int) -> None:
        """Does what it says if that is allowed now."""
        client, server, payload = self.client, self.server, bytes(size)
        ours, theirs = pick(client, which), pick(server, which)
        try:
            match action:
                case "open" | "open_end":
                    client.open_stream(T.WRITE, payload, ends=action == "open_end")
                case "more" | "more_end":
                    client.send(T.DATA, ours, payload, ends=action == "more_end")
                case "cancel":
                    client.cancel(ours)
                case "answer" | "done":
                    server.send(T.ACK, theirs, payload, ends=action == "done")
                case "fail":
                    server.fail(theirs)
                case "to_server":
                    self.carry(client, server, size + 1)
                case "to_client":
                    self.carry(server, client, size + 1)
        except (IllegalSend, QueueFull):
            return

    def carry(self, sender: Connection, receiver: Connection, size: int) -> None:
        waiting = self.on_the_way[sender.role] + b"".join(sender.data_to_send(size))
        receiver.receive_data(waiting[:size])
        self.on_the_way[sender.role] = waiting[size:]
        for event in frames_of(receiver.events_received()):
            receiver.release(event)

    def finish(self) -> None:
        """Everything arrives, the client cancels what is left, the server ends it."""
        self.carry_all()
        for number in self.client.open_streams:
            self.act_on(self.client.cancel, number)
        self.carry_all()
        for number in self.server.open_streams:
            self.act_on(self.server.fail, number)
        self.carry_all()

    def act_on(self, act: Callable[[int], object], number: int) -> None:
        try:
            act(number)
        except IllegalSend:
            return

    def carry_all(self) -> None:
        while self.client.wants_to_send or self.server.wants_to_send or any(self.on_the_way.values()):
            self.carry(self.client, self.server, 1 << 24)
            self.carry(self.server, self.client, 1 << 24)

    def check_that_all_is_over(self) -> None:
        """Every stream has ended on both sides, and both agree on the credit that is left."""
        assert self.client.open_streams == self.server.open_streams == ()
        books = (self.client._books, self.server._books)
        assert [one.given.held for one in books] == [0, 0]
        assert books[0].outbox.credit.left == books[1].given.left
        assert books[1].outbox.credit.left == books[0].given.left


def pick(connection: Connection, which: int) -> int:
    numbers = connection.open_streams
    return numbers[which % len(numbers)] if numbers else 1
