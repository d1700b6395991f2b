"""Blocks that lie with a lender, from their holder's side: what is asked over the channel, and the answers.

Invariants: one question at a time; an answer is read before the next question, also where nobody wanted it any more.
Whatever ends the channel is told as
`LenderLost`. Used by one thread at a time. Must not know what links are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gpu_node.engine.attention import AttentionTerms
from gpu_node.errors import DeviceOutOfMemory, NodeError
from gpu_node.memory.errors import LenderLost
from gpu_node.memory.lend_messages import (
    HEAD_SIZE,
    Bytes,
    Channel,
    Head,
    Kind,
    attend_head,
    bytes_of,
    opened,
    pack_numbers,
    partial_of,
    tensor_of,
)
from gpu_node.memory.partial_attention import Partial
from gpu_node.memory.places import CacheForm
from gpu_node.memory.scene import Scene
from wire.errors import RemoteError

# Blocks are moved so many bytes at a time: what a link takes in one go, and both sides have room for.
MOVE_BYTES = 4 << 20


class LentBlocks:
    def __init__(
        self, lender: int, form: CacheForm, channel: Channel, close: Callable[[], None] = lambda: None
    ) -> None:
        self.lender, self._form, self._channel = lender, form, channel
        self.close = close
        self.round_trips = 0
        self._asked: tuple[int, int, int] = (0, 0, 0)  # tokens, heads, value_dim of the answer that is due
        self._due = False  # an answer to `ask`

    def stage(self, scene: Scene) -> None:
        self._say(Head(Kind.SCENE).pack(), scene.pack())

    def ask(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> None:
        """`query` of the scene's tokens, `key` and `value` of its writes. `answer` follows."""
        head = attend_head(layer, query.shape[1], terms)
        dtype = self._form.dtype
        self._say(head.pack(), bytes_of(query.float()), bytes_of(key.to(dtype)), bytes_of(value.to(dtype)))
        self._due = True
        self._asked = (query.shape[0], query.shape[1], self._form.shapes[layer].value_dim)

    def answer(self) -> Partial:
        """Of the layer that was asked for; valid until the next question."""
        return partial_of(self._hear(Kind.PARTIAL), *self._asked)

    def clear(self, blocks: Sequence[int]) -> None:
        if blocks:
            self._say(Head(Kind.CLEAR, count=len(blocks)).pack(), pack_numbers(blocks))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            numbers = [number for pair in pairs for number in pair]
            self._say(Head(Kind.COPY, count=len(pairs)).pack(), pack_numbers(numbers))

    def read(self, blocks: Sequence[int]) -> Tensor:
        """[blocks, elements of a block] in host memory."""
        found = torch.empty((len(blocks), self._form.block_elements), dtype=self._form.dtype)
        for begin, some in self._pieces(blocks):
            self._say(Head(Kind.READ, count=len(some)).pack(), pack_numbers(some))
            body = self._hear(Kind.CONTENT)
            found[begin : begin + len(some)] = tensor_of(body, (len(some), found.shape[1]), found.dtype)
        return found

    def put(self, blocks: Sequence[int], content: Tensor) -> None:
        for begin, some in self._pieces(blocks):
            part = bytes_of(content[begin : begin + len(some)])
            self._say(Head(Kind.PUT, count=len(some)).pack(), pack_numbers(some), part)

    def _pieces(self, blocks: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        size = max((MOVE_BYTES - HEAD_SIZE) // (self._form.block_bytes + 4), 1)
        for begin in range(0, len(blocks), size):
            yield begin, blocks[begin : begin + size]

    def _say(self, *parts: Bytes) -> None:
        try:
            if self._due:  # the forward that asked has failed meanwhile
                self._due = False
                self._channel.hear()
            self._channel.say(*parts)
        except NodeError as error:
            raise LenderLost(self.lender, str(error)) from error

    def _hear(self, wanted: Kind) -> memoryview:
        self._due = False
        try:
            head, body = opened(self._channel.hear())
        except (NodeError, RemoteError) as error:
            raise LenderLost(self.lender, str(error)) from error
        self.round_trips += 1
        if head.kind is Kind.FAILED:
            text = bytes(body).decode(errors="replace")
            if head.count:
                raise DeviceOutOfMemory(f"the lender of stage {self.lender} ran out of memory: {text}")
            raise LenderLost(self.lender, text)
        if head.kind is not wanted:
            raise LenderLost(self.lender, f"it answers {head.kind.name} where {wanted.name} was due")
        return body
