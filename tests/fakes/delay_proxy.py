"""A line that is slow: hands on datagrams in both directions, each so many seconds late. For one asker at a time."""

from __future__ import annotations

import asyncio

from transport.datagrams import DatagramSocket, Source


class DelayProxy:
    """In an `async with` block: what is sent to `port` on loopback comes to `target`, and the answers back."""

    def __init__(self, target: tuple[str, int], seconds: float) -> None:
        self._target, self._seconds = target, seconds
        self._asker: Source | None = None
        self._late: set[asyncio.TimerHandle] = set()

    async def __aenter__(self) -> DelayProxy:
        self._front = DatagramSocket("127.0.0.1", 0, self._from_asker)
        self._back = DatagramSocket("127.0.0.1", 0, self._from_target)
        self.port = self._front.port
        return self

    async def __aexit__(self, *_: object) -> None:
        for handle in self._late:
            handle.cancel()
        self._front.close()
        self._back.close()

    def _from_asker(self, datagram: bytes, source: Source) -> None:
        self._asker = source
        self._later(lambda: self._back.send(datagram, *self._target))

    def _from_target(self, datagram: bytes, _: Source) -> None:
        asker = self._asker
        if asker is not None:
            self._later(lambda: asker.answer(datagram))

    def _later(self, act: object) -> None:
        handle = asyncio.get_running_loop().call_later(self._seconds, act)  # type: ignore[arg-type]
        self._late.add(handle)
