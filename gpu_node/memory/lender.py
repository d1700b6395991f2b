"""The lending side: rooms for other stages' blocks in this device's memory, and attention over them where they are.

Each holder is served by a thread of its own over its own channel. Invariants: what is lent stands in `lent_bytes` from
before it is taken until after it is let go; everything that arrives is checked before anything is made of it, and who
breaks the rules is not served any more. Must not know links, nor the model that the blocks belong to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from gpu_node.engine.runner import NO_MEMORY_TEXTS
from gpu_node.memory.errors import LeaseFault
from gpu_node.memory.lend_messages import (
    Bytes,
    Channel,
    Head,
    Kind,
    bytes_of,
    failure_parts,
    opened,
    partial_parts,
    tensor_of,
    unpack_numbers,
)
from gpu_node.memory.places import CacheForm, HeldBlocks, Staged
from gpu_node.memory.scene import SceneBounds, unpack_scene
from wire.errors import BadPayload

log = logging.getLogger("gpu_node.memory")


@dataclass(slots=True, eq=False)
class _Holder:
    blocks: HeldBlocks
    lock: threading.Lock = field(default_factory=threading.Lock)  # rooms come and go between messages
    staged: Staged | None = None
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)  # number -> first block, bytes


class Lender:
    """One for a worker's device."""

    def __init__(
        self, device: torch.device | str, spare: Callable[[], int | None] = lambda: None, most_blocks: int = 0
    ) -> None:
        """`spare`: bytes that may still be lent, asked before each; None: whatever the device has. `most_blocks`: of
        any holder; 0: nobody knows."""
        self.device, self._spare, self._most_blocks = torch.device(device), spare, most_blocks
        self._holders: dict[int, _Holder] = {}
        self._lock = threading.Lock()
        self.served = 0  # messages that were answered

    @property
    def lent_bytes(self) -> int:
        with self._lock:
            return sum(size for holder in self._holders.values() for _, size in holder.leases.values())

    def lend(self, holder: int, lease: int, blocks: tuple[int, int], form: CacheForm) -> int:
        """Room for the holder's blocks `blocks[0]` to `blocks[1]` (excluded); its bytes.

        Raises `LeaseFault`, `MemoryError` where no more may be lent, and torch's out-of-memory error."""
        first, behind = blocks
        size = (behind - first) * form.block_bytes
        if behind <= first:
            raise LeaseFault("a lease has a block")
        spare = self._spare()
        if spare is not None and size > spare:
            raise MemoryError(f"{size:,} bytes are asked for, and {spare:,} may still be lent")
        with self._lock:
            found = self._holders.get(holder)
            if found is None:
                found = self._holders[holder] = _Holder(HeldBlocks(form, self.device, self._most_blocks))
        with found.lock:
            if lease in found.leases or found.blocks.form != form:
                raise LeaseFault(f"lease {lease} is of another cache, or there already")
            found.leases[lease] = (first, size)
            try:
                found.blocks.add(first, behind)
            except BaseException:
                del found.leases[lease]
                raise
        return size

    def take_back(self, holder: int, lease: int) -> int:
        """The bytes that are free again. Raises `LeaseFault`."""
        with self._lock:
            found = self._holders.get(holder)
        if found is None or lease not in found.leases:
            raise LeaseFault(f"stage {holder} has no lease {lease} here")
        with found.lock:
            first, size = found.leases[lease]
            found.blocks.remove(first)
            found.staged = None
            del found.leases[lease]
        return size

    def forget(self, holder: int | None = None) -> None:
        """All that a holder has here, or all holders."""
        with self._lock:
            for number in [holder] if holder is not None else list(self._holders):
                self._holders.pop(number, None)

    def serve(self, holder: int, channel: Channel, limits: tuple[int, int] = (4096, 1 << 16)) -> None:
        """Until the channel ends, which raises what it raises; or until something came that no holder says: then the
        reason is told and this returns. `limits`: rows and tokens of a step."""
        while True:
            message = channel.hear()
            try:
                answer = self._answer(holder, message, limits)
            except (BadPayload, LeaseFault) as error:
                log.warning("Stage %d is not lent to any more: %s", holder, error)
                channel.say(*failure_parts(str(error), out_of_memory=False))
                return
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:  # CPUs say it with a RuntimeError
                if not _is_shortage(error):
                    raise
                channel.say(*failure_parts(str(error), out_of_memory=True))
                continue
            if answer is not None:
                channel.say(*answer)
                self.served += 1

    @torch.inference_mode()
    def _answer(self, holder: int, message: memoryview, limits: tuple[int, int]) -> tuple[Bytes, ...] | None:
        head, body = opened(message)
        with self._lock:
            found = self._holders.get(holder)
        if found is None:
            raise LeaseFault(f"nothing is lent to stage {holder}")
        with found.lock:
            if head.kind is Kind.SCENE:
                bounds = SceneBounds(found.blocks.form.block_tokens, *limits)
                found.staged = found.blocks.stage(unpack_scene(body, bounds, found.blocks.holds))
                return None
            if head.kind is Kind.ATTEND:
                return _attend(found, head, body)
            return _moved(found.blocks, head, body)


def _attend(holder: _Holder, head: Head, body: memoryview) -> tuple[Bytes, ...]:
    staged, blocks = holder.staged, holder.blocks
    if staged is None or head.layer >= len(blocks.form.shapes):
        raise BadPayload("a layer that is not there, or of no step")
    shape, scene, dtype = blocks.form.shapes[head.layer], staged.scene, blocks.form.dtype
    if not head.heads or head.heads % shape.kv_heads:
        raise BadPayload(f"{head.heads} heads do not share {shape.kv_heads}")
    query_bytes = scene.tokens * head.heads * shape.key_dim * 4
    key_bytes = scene.writes * shape.kv_heads * shape.key_dim * dtype.itemsize
    query = tensor_of(body[:query_bytes], (scene.tokens, head.heads, shape.key_dim), torch.float32)
    key = _rows(body[query_bytes : query_bytes + key_bytes], scene.writes, shape.kv_heads, shape.key_dim, dtype)
    value = _rows(body[query_bytes + key_bytes :], scene.writes, shape.kv_heads, shape.value_dim, dtype)
    device = blocks.device
    blocks.write(staged, head.layer, key.to(device), value.to(device))
    return partial_parts(blocks.attend(staged, head.layer, query.to(device), head.terms(shape.window)))


def _rows(data: memoryview, count: int, heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    return tensor_of(data, (count, heads, dim), dtype)


def _moved(blocks: HeldBlocks, head: Head, body: memoryview) -> tuple[Bytes, ...] | None:
    named, content = unpack_numbers(body, head.count * (2 if head.kind is Kind.COPY else 1))
    if not named or not blocks.holds(numpy.array(named)):
        raise BadPayload("a block that nobody lent")
    if head.kind is Kind.READ and not content:
        return (Head(Kind.CONTENT, count=head.count).pack(), bytes_of(blocks.read(named)))
    if head.kind is Kind.PUT:
        blocks.put(named, tensor_of(content, (len(named), blocks.form.block_elements), blocks.form.dtype))
    elif head.kind is Kind.CLEAR and not content:
        blocks.clear(named)
    elif head.kind is Kind.COPY and not content:
        for at in range(0, len(named), 2):
            blocks.copy(named[at], named[at + 1])
    else:
        raise BadPayload(f"{head.kind.name} is not what a lender is asked, or too long")
    return None


def _is_shortage(error: Exception) -> bool:
    told = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return told or any(text in str(error) for text in NO_MEMORY_TEXTS)
