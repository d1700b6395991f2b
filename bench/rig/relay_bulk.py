"""Pings and tensors over the relay and over a bare socket, in turns: what the protocol adds to the same bytes."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Sequence
from functools import partial

from bench.rig.raw_socket import RawClient
from bench.rig.report import median
from potluck.relay_tensors import read_into, write
from transport.session import RelaySession
from wire.messages_memory import Alloc, Free
from wire.tensors import DType, TensorFlags, TensorHeader

HANDLE = 1
PIECES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)  # of the bare socket's calls: it takes the best
CALIBRATION_BYTES = 16 << 20
WAYS = ("raw socket", "relay", "relay, pieces checked too")
Seconds = dict[str, list[float]]


async def pings(session: RelaySession, raw: RawClient, rounds: int, count: int) -> Seconds:
    """Round trips of a PING with content, and of as many bytes on the bare socket."""
    link = await session.link()
    found: Seconds = {"raw socket": [], "relay": []}
    for _ in range(rounds):
        found["raw socket"] += [raw.ping_seconds() for _ in range(count)]
        found["relay"] += [await link.ping() for _ in range(count)]
    return found


class Bulk:
    """Writes and reads tensors of any size in every way, each way in turn."""

    def __init__(self, session: RelaySession, raw: RawClient, most_bytes: int) -> None:
        self._session, self._raw = session, raw
        self._source = memoryview(bytearray(os.urandom(min(most_bytes, 1 << 20)) * max(1, most_bytes >> 20)))
        self._room = memoryview(bytearray(most_bytes))
        self.pieces: dict[str, int] = {}

    def calibrate(self) -> None:
        """Find the best size of a call for the bare socket."""
        size = min(CALIBRATION_BYTES, len(self._source))
        ways = {
            "write": partial(self._raw.write_seconds, self._source[:size]),
            "read": partial(self._raw.read_seconds, self._room[:size]),
        }
        for name, run in ways.items():
            seconds = {piece: median([run(piece) for _ in range(5)]) for piece in PIECES}
            self.pieces[name] = min(PIECES, key=seconds.__getitem__)

    async def measure(self, size: int, rounds: int) -> dict[str, Seconds]:
        """Seconds of each write and each read, by way. The first of each is a warm-up."""
        link = await self._session.link()
        await link.ask(Alloc(HANDLE, DType.UINT8, (size,)))
        found: dict[str, Seconds] = {"write": {way: [] for way in WAYS}, "read": {way: [] for way in WAYS}}
        source, room = self._source[:size], self._room[:size]
        for _ in range(rounds + 1):
            found["write"]["raw socket"].append(self._raw.write_seconds(source, self.pieces["write"]))
            found["read"]["raw socket"].append(self._raw.read_seconds(room, self.pieces["read"]))
            for way, flags in ((WAYS[1], TensorFlags.NONE), (WAYS[2], TensorFlags.CHECKED)):
                tensor = TensorHeader(DType.UINT8, (size,), size, batch=HANDLE, flags=flags)
                found["write"][way].append(await timed(write(self._session, tensor, source)))
                found["read"][way].append(await timed(read_into(self._session, tensor, room)))
        assert room == source, "what is read is what was written"
        await link.ask(Free((HANDLE,)))
        return {name: {way: seconds[1:] for way, seconds in ways.items()} for name, ways in found.items()}


async def timed(work: Awaitable[None]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def rounds_for(size: int, most_bytes: int) -> int:
    """As many as move about the largest tensor five times, within reason."""
    return max(5, min(200, 5 * most_bytes // size))


def shares(found: dict[str, Seconds]) -> dict[str, dict[str, float]]:
    """The bare socket's median time by each way's: 1 is as quick."""
    return {
        name: {way: median(seconds["raw socket"]) / median(seconds[way]) for way in WAYS[1:]}
        for name, seconds in found.items()
    }


def gigabytes_per_second(size: int, seconds: Sequence[float]) -> float:
    return size / median(seconds) / 1e9
