"""PUSH: a client's files become a model of this node.

Invariants: the disk is written in threads, and a frame's credit goes back only when its bytes are there, so that a
quick client waits for a slow disk; one client at a time pushes a model, and the next waits for its turn; whatever ends
a push, what came stays for the same offer. What may be pushed, and how it is kept, is the store's matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import WeakValueDictionary

from gpu_node.errors import NodeBusy, StoreRefused
from gpu_node.names import canonical
from gpu_node.relay.call import RelayCall
from gpu_node.staging import Incoming
from wire.connection import FrameReceived
from wire.messages import decode_chunk
from wire.messages_session import Ack, ErrorCode
from wire.messages_work import Phase, Progress, Push

if TYPE_CHECKING:
    from transport.streams import Stream

log = logging.getLogger("gpu_node.relay")
Given = TypeVar("Given")

# In the details of an error, whose frame is small.
MOST_NAMES, LONGEST_NAMES = 32, 2048


@dataclass(frozen=True, slots=True)
class PushLimits:
    open: int = 4  # being written: more would only share the disk
    inside: int = 16  # together with those that wait for their turn
    silence_seconds: float = 60.0  # between two chunks; then somebody else may have the model's turn
    turn_seconds: float = 75.0  # for a turn: longer than a silent client keeps it
    told_seconds: float = 2.0  # between two words on how far checking is


class Store(Protocol):
    def begin(self, offer: Push) -> Incoming: ...


class Pushes:
    def __init__(
        self,
        store: Store | None,
        is_taken: Callable[[str], bool],
        arrived: Callable[[str], Awaitable[None]],
        limits: PushLimits | None = None,
    ) -> None:
        """`store` None: this node takes no models. `is_taken` tells whether a name is no client's to push; it looks at
        the disk. `arrived` hears of every model that has new files."""
        self._store, self._is_taken, self._arrived = store, is_taken, arrived
        self._limits = limits or PushLimits()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._open = asyncio.Semaphore(self._limits.open)
        self._inside = 0

    async def handle(self, call: RelayCall) -> None:
        """Raises `StoreRefused`, `RequestError`, `DigestMismatch`, `NodeBusy`, `NodeStopping`."""
        ends = call.request.ends
        offer = call.message(Push)
        if self._store is None:
            raise StoreRefused("this node takes no models from clients")
        if await _in_thread(self._is_taken, offer.model):
            raise StoreRefused(f"{offer.model} is a name of this node's own models: push it under another one")
        async with self._turn(call.stream, canonical(offer.model)):
            incoming = await _in_thread(self._store.begin, offer)
            try:
                if not ends:
                    call.stream.widen()
                    await call.stream.send_message(Ack(held=incoming.held))
                    await self._receive(call.stream, incoming)
                await self._finish(call, incoming)
            finally:
                await _in_thread(incoming.close)

    @asynccontextmanager
    async def _turn(self, stream: Stream, model: str) -> AsyncIterator[None]:
        if self._inside >= self._limits.inside:
            raise NodeBusy()
        turn = self._turns.setdefault(model, asyncio.Lock())
        self._inside += 1
        try:
            if turn.locked() or self._open.locked():
                await stream.send_message(Progress(Phase.WAITING, text="other clients are pushing"))
            await self._wait_for(turn.acquire(), f"{model} is being pushed by another client; try again later")
            try:
                await self._wait_for(self._open.acquire(), "other models are being pushed; try again later")
                try:
                    yield
                finally:
                    self._open.release()
            finally:
                turn.release()
        finally:
            self._inside -= 1

    async def _wait_for(self, turn: Awaitable[object], refusal: str) -> None:
        try:
            async with asyncio.timeout(self._limits.turn_seconds):
                await turn
        except TimeoutError:
            raise StoreRefused(refusal) from None

    async def _receive(self, stream: Stream, incoming: Incoming) -> None:
        """Until the client's half of the stream has ended."""
        while True:
            frame = await self._heard(stream.receive())
            try:
                held = await _in_thread(_written, incoming, frame) if frame.payload.nbytes else None
            finally:
                stream.release(frame)
            if frame.ends:
                return
            if held is not None:
                await self._heard(stream.send_message(Ack(held)))

    async def _heard(self, word: Awaitable[Given]) -> Given:
        try:
            async with asyncio.timeout(self._limits.silence_seconds):
                return await word
        except TimeoutError:
            raise StoreRefused(
                f"nothing was heard for {self._limits.silence_seconds:.0f} s; what came is kept, so offer it again"
            ) from None

    async def _finish(self, call: RelayCall, incoming: Incoming) -> None:
        is_new, offer = not incoming.stored, incoming.offer
        wrong = await self._checked(call.stream, incoming)
        if wrong:
            call.stream.fail(
                ErrorCode.DIGEST_MISMATCH,
                f"{len(wrong)} of {len(offer.files)} files have to come, or to come again",
                details=(("files", _some(wrong)),),
            )
            return
        if is_new:
            log.info("%s pushed %s", call.session.owner, offer.model)
            await self._arrived(canonical(offer.model))
        sizes = tuple(file.size for file in offer.files)
        await call.stream.send_message(Ack(sum(sizes), sizes), ends=True)

    async def _checked(self, stream: Stream, incoming: Incoming) -> list[str]:
        total = sum(file.size for file in incoming.offer.files)
        work = asyncio.ensure_future(asyncio.to_thread(incoming.finish))
        try:
            while not (await asyncio.wait([work], timeout=self._limits.told_seconds))[0]:
                await stream.send_message(Progress(Phase.READING, incoming.checked_bytes, total))
        except BaseException:
            incoming.stopped = True
            await _ended(work)
            raise
        return work.result()


def _written(incoming: Incoming, frame: FrameReceived) -> int:
    """Raises RemoteErrors for what is no chunk."""
    return incoming.write(decode_chunk(frame.payload))


async def _in_thread(work: Callable[..., Given], *given: object) -> Given:
    """A thread cannot be cancelled: whoever is cancelled here waits until it has let go of file and frame."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *given))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        result = await _ended(thread)
        if isinstance(result, Incoming):
            await _ended(asyncio.ensure_future(asyncio.to_thread(result.close)))
        raise


async def _ended(work: asyncio.Future[Given]) -> Given | None:
    """However often we are cancelled meanwhile: a file must not be closed under a thread that writes it."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    return None if work.cancelled() or work.exception() else work.result()


def _some(names: list[str]) -> tuple[str, ...]:
    """As many as fit into an error."""
    kept: list[str] = []
    for name in names[:MOST_NAMES]:
        if sum(map(len, kept)) + len(name) > LONGEST_NAMES:
            break
        kept.append(name)
    return tuple(kept)


__all__ = ["PushLimits", "Pushes"]
