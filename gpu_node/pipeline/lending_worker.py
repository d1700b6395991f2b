"""What a worker does with orders of lending: rooms for others' blocks, and blocks of its own that lie elsewhere.

Invariants: everything belongs to one epoch and is gone with it; each holder that is lent to has a thread of its own
here, which admits it and then serves it. Orders come from one thread, epochs begin and end in another. Must not know
who decides on leases.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gpu_node.engine.batch import batch_of
from gpu_node.engine.kv_pool import LayerShape
from gpu_node.engine.layers.part import LayeredPart
from gpu_node.memory.borrowing import BorrowedCache
from gpu_node.memory.errors import LeaseFault, LenderLost, LendingError
from gpu_node.memory.lender import Lender
from gpu_node.memory.lent_blocks import LentBlocks
from gpu_node.memory.places import CacheForm
from gpu_node.pipeline.errors import LinkError, LinkSilent
from gpu_node.pipeline.gate import Gate, connect_link
from gpu_node.pipeline.heart import Heart
from gpu_node.pipeline.lend_link import LendChannel
from gpu_node.pipeline.links import Link
from gpu_node.pipeline.orders import Done, Take
from gpu_node.pipeline.orders_lending import Borrow, Lend, MoveToHost, Repay, TakeBack, lend_ends
from gpu_node.pipeline.part_loading import LoadedPart
from gpu_node.pipeline.shortage import give_back
from gpu_node.pipeline.step_frames import RING_SETTINGS
from gpu_node.pipeline.step_message import StepMessage

# So long a lender waits for its holder, and a holder for its lender's answer; it is looked so often whether the epoch
# is over meanwhile.
MEET_SECONDS = 5.0
SLICE_SECONDS = 0.1
log = logging.getLogger("gpu_node.pipeline")


class Surroundings(Protocol):
    """What lending needs of its worker."""

    heart: Heart

    @property
    def gate(self) -> Gate: ...

    @property
    def token(self) -> str: ...

    def spare_bytes(self) -> int | None:
        """Of the budget; None: nothing was stated."""
        ...

    def say(self, answer: object) -> None: ...


class BorrowingPart:
    """A part whose blocks lie in its pool, and wherever leases say."""

    def __init__(
        self, part: LayeredPart, block_tokens: int, lose: Callable[[int], None], close: Callable[[], None]
    ) -> None:
        """`lose`: a lender is gone."""
        self._part, self._block_tokens, self._lose, self._close = part, block_tokens, lose, close

    @property
    def device(self) -> torch.device:
        return self._part.device

    def compute(self, message: StepMessage, hidden: Tensor | None) -> Tensor:
        """Raises `LendingError` where blocks are gone; those who use others may go on."""
        try:
            return self._computed(message, hidden)
        except LenderLost as error:
            self._lose(error.lender)
            raise

    def _computed(self, message: StepMessage, hidden: Tensor | None) -> Tensor:
        for copy in message.copies:
            self._part.copy(copy.source, copy.target)
        return self._part.forward(batch_of(message.rows, self._block_tokens, self._part.device), hidden, message.want)

    def close(self) -> None:
        self._close()


class _Session:
    """One epoch's lending."""

    def __init__(self, worker: Surroundings, take: Take, part: LayeredPart) -> None:
        self.take = take
        self._worker = worker
        self.lender = Lender(part.device, worker.spare_bytes, take.block_count)
        self.cache: BorrowedCache | None = None
        if take.block_count > take.near_count:
            assert part.pool is not None, "its near cache is taken before"
            self.cache = BorrowedCache(part.pool, take.block_count)
            part.extend(self.cache)
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []
        self._awaited: set[int] = set()  # holders that may come
        self._serving: set[int] = set()  # holders whose thread has not come to its end
        self._turning = threading.Lock()  # over these three
        self._admitting, self._over = threading.Lock(), threading.Event()

    def await_holder(self, holder: int) -> None:
        """Admitted and served by a thread, unless one does so already: that one awaits it once more."""
        with self._turning:
            self._awaited.add(holder)
            if holder not in self._serving and not self._over.is_set():
                self._serving.add(holder)
                self._threads.append(
                    threading.Thread(target=self._serve_all, args=(holder,), name=f"lends to stage {holder}")
                )
                self._threads[-1].start()

    def borrowed(self) -> BorrowedCache:
        """Raises `LeaseFault` where all blocks are near."""
        if self.cache is None:
            raise LeaseFault("this stage has all its blocks, and borrows none")
        return self.cache

    def meet(self, order: Borrow) -> None:
        """Raises `LinkError`."""
        cache, take = self.borrowed(), self.take
        if cache.knows(order.lender):
            return
        ends = lend_ends(take.stage, order.lender, take.epoch)
        link = self._keep(connect_link(order.place, ends, self._worker.token, RING_SETTINGS, MEET_SECONDS))
        cache.meet(LentBlocks(order.lender, cache.form, LendChannel(link), link.close))

    def lose(self, lender: int) -> None:
        """It does not answer any more; it may be met anew."""
        if self.cache is not None:
            self.cache.part_with(lender)

    def close(self) -> None:
        with self._turning:
            self._over.set()
        if self.cache is not None:
            self.cache.close()
        for link in self._links:
            self._worker.heart.remove(link)
            link.close()
        for thread in self._threads:
            thread.join()
        self.lender.forget()

    def _serve_all(self, holder: int) -> None:
        """Each time that it comes, as long as it is awaited."""
        while True:
            with self._turning:
                if self._over.is_set() or holder not in self._awaited:
                    self._serving.discard(holder)
                    return
                self._awaited.discard(holder)
            self._serve(holder)

    def _serve(self, holder: int) -> None:
        try:
            channel = LendChannel(self._admitted(holder))
            self.lender.serve(holder, channel, (self.take.limits.rows, self.take.limits.tokens))
            channel.close()  # it broke the rules
        except LinkError as error:
            if not self._over.is_set():
                log.info("Stage %d borrows nothing here any more: %s", holder, error)
        except Exception:  # a holder must not be left waiting for an answer
            log.exception("Lending to stage %d has failed", holder)
            self._hang_up(holder)

    def _admitted(self, holder: int) -> Link:
        ends = lend_ends(holder, self.take.stage, self.take.epoch)
        deadline = time.monotonic() + MEET_SECONDS
        while not self._over.is_set() and time.monotonic() < deadline:
            try:
                with self._admitting:
                    return self._keep(self._worker.gate.admit([ends], SLICE_SECONDS))
            except LinkSilent:
                continue
        raise LinkSilent("it has not come")

    def _hang_up(self, holder: int) -> None:
        for link in self._links:
            if link.ends == lend_ends(holder, self.take.stage, self.take.epoch):
                link.close()

    def _keep(self, link: Link) -> Link:
        self._links.append(link)
        self._worker.heart.add(link)
        if self._over.is_set():
            link.close()
        return link


class WorkerLending:
    def __init__(self, worker: Surroundings) -> None:
        self._worker = worker
        self._session: _Session | None = None

    @property
    def lent_bytes(self) -> int:
        session = self._session
        return 0 if session is None else session.lender.lent_bytes

    @property
    def host_bytes(self) -> int:
        session = self._session
        return 0 if session is None or session.cache is None else session.cache.host_bytes

    def seat(self, take: Take, loaded: LoadedPart) -> BorrowingPart:
        """The part of an epoch that begins; the one before is over."""
        session = self._session = _Session(self._worker, take, loaded.part)

        def close() -> None:
            session.close()
            if self._session is session:
                self._session = None

        return BorrowingPart(loaded.part, take.block_tokens, session.lose, close)

    def lend(self, order: Lend) -> None:
        session = self._of(order.epoch)
        shapes = tuple(LayerShape(each.kv_heads, each.key_dim, each.value_dim, each.window) for each in order.layers)
        form = CacheForm(shapes, order.block_tokens, getattr(torch, order.dtype))
        session.lender.lend(order.holder, order.lease, (order.first, order.behind), form)
        session.await_holder(order.holder)
        self._worker.say(Done(order.number))

    def borrow(self, order: Borrow) -> None:
        session = self._of(order.epoch)
        session.meet(order)
        session.borrowed().borrow(order.lease, order.lender, (order.first, order.behind))
        self._worker.say(Done(order.number))

    def move(self, order: MoveToHost) -> None:
        cache = self._of(order.epoch).borrowed()
        if not cache.move_to_host(order.lease, order.within_seconds):
            raise LendingError(f"lease {order.lease} does not come over within {order.within_seconds} s")
        self._worker.say(Done(order.number))

    def repay(self, order: Repay) -> None:
        self._of(order.epoch).borrowed().repay(order.lease)
        self._worker.say(Done(order.number))

    def take_back(self, order: TakeBack) -> None:
        lender = self._of(order.epoch).lender
        lender.take_back(order.holder, order.lease)
        give_back(lender.device)
        self._worker.say(Done(order.number))

    def _of(self, epoch: int) -> _Session:
        session = self._session
        if session is None or session.take.epoch != epoch:
            raise LeaseFault(f"epoch {epoch} is not the one that is computed here")
        return session
