"""A stage made of parts: the layers of one model on several devices, one after the other in one process.

Invariants: between parts only hidden states travel, [tokens, hidden size]; each part has a pool over its own layers and
a block has the same number in all of them; a part whose budget is stated never holds more than that. A whole model on
one device is the chain of one part. Must not know how a part computes.

A part that lies elsewhere has to receive, for each forward: the step's rows as plain numbers (`step_message`), from
which it makes the batch itself, the copies of blocks that come before them, and from the part before it the hidden
states of all the step's tokens in single precision. It answers its own hidden states, the last part the outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu_node.engine.batch import Batch
from gpu_node.engine.kv_pool import KvPool, LayerShape
from gpu_node.engine.step import BlockCopy, Output
from gpu_node.errors import DeviceOutOfMemory


@dataclass(frozen=True, slots=True)
class Holding:
    """For people: how weights are held."""

    forms: dict[str, int]  # bytes by form of product
    errors: tuple[float, ...] = ()  # relative, of the products measured against the weights given

    @property
    def bytes(self) -> int:
        return sum(self.forms.values())

    @property
    def error(self) -> float | None:
        """Their mean; None: nothing is lost."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    @staticmethod
    def of_all(holdings: Iterable[Holding]) -> Holding:
        forms: Counter[str] = Counter()
        errors: list[float] = []
        for holding in holdings:
            forms.update(holding.forms)
            errors += holding.errors
        return Holding(dict(forms), tuple(errors))


class Part(Protocol):
    """Some layers in a row. Every call comes from one thread, in inference mode."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """In which keys and values are kept."""
        ...

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def holding(self) -> Holding: ...

    @property
    def token_bytes(self) -> int:
        """What a token's keys and values take in these layers."""
        ...

    @property
    def pool(self) -> KvPool | None:
        """The cache, once it is taken."""
        ...

    def take_cache(self, block_tokens: int, block_count: int) -> None: ...

    def drop_cache(self) -> None: ...

    def forward(self, batch: Batch, hidden: Tensor | None, want: Output) -> Tensor:
        """`hidden`: of the part before, [tokens, hidden size], which is used up; None: this is the first part.

        Answers the hidden states of all tokens, valid until the next forward; the last part answers as a stage does."""
        ...

    def close(self) -> None: ...


class StageChain:
    """The stage that its parts are together."""

    def __init__(
        self, parts: Sequence[Part], budgets: Sequence[int | None] = (), on_close: Callable[[], None] | None = None
    ) -> None:
        """`budgets`: bytes for weights and cache of each part, None: nothing is stated. `on_close` is called once the
        parts are closed: what they share goes last.

        Raises `DeviceOutOfMemory` with the figures where weights alone are more than that."""
        self._parts, self._on_close = tuple(parts), on_close
        self._budgets = tuple(budgets) or (None,) * len(parts)
        self.layer_shapes = tuple(shape for part in parts for shape in part.layer_shapes)
        self.holding = Holding.of_all(part.holding for part in parts)
        self.check_budgets(0)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    @property
    def pools(self) -> tuple[KvPool, ...]:
        """Of the cache that was taken, part by part."""
        return tuple(part.pool for part in self._parts if part.pool is not None)

    @property
    def device(self) -> torch.device:
        return self._parts[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self._parts[0].dtype

    @property
    def token_bytes(self) -> int:
        return sum(part.token_bytes for part in self._parts)

    @property
    def vocabulary_size(self) -> int:
        return self._parts[0].vocabulary_size

    @property
    def hidden_size(self) -> int:
        return self._parts[0].hidden_size

    @property
    def memory_bytes(self) -> int:
        return self.holding.bytes

    def most_blocks(self, block_tokens: int) -> int | None:
        limits = [
            (budget - part.holding.bytes) // (part.token_bytes * block_tokens)
            for part, budget in zip(self._parts, self._budgets, strict=True)
            if budget is not None
        ]
        return min(limits, default=None)

    def check_budgets(self, cache_tokens: int) -> None:
        """Raises `DeviceOutOfMemory` for the first part whose weights and cache are more than was stated."""
        first = 0
        for number, (part, budget) in enumerate(zip(self._parts, self._budgets, strict=True)):
            weights, cache = part.holding.bytes, cache_tokens * part.token_bytes
            behind = first + len(part.layer_shapes)
            if budget is not None and weights + cache > budget:
                raise DeviceOutOfMemory(
                    f"part {number} (layers {first} to {behind - 1}) takes {weights + cache:,} bytes "
                    f"({weights:,} of weights, {cache:,} for {cache_tokens:,} tokens) and may take {budget:,}"
                )
            first = behind

    def take_cache(self, block_tokens: int, block_count: int) -> None:
        self.drop_cache()
        self.check_budgets(block_tokens * block_count)
        for part in self._parts:
            part.take_cache(block_tokens, block_count)

    def drop_cache(self) -> None:
        for part in self._parts:
            part.drop_cache()

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        for pool in self.pools:
            for copy in copies:
                pool.copy(copy.source, copy.target)

    def clear_blocks(self, blocks: Iterable[int]) -> None:
        wanted = tuple(blocks)
        for pool in self.pools:
            pool.clear(wanted)

    def forward(self, batch: Batch, want: Output) -> Tensor:
        first, *others = self._parts
        found = first.forward(batch, None, want)
        device = first.device
        for part in others:
            if part.device != device:
                device = part.device
                batch, found = batch.on(device), found.to(device)
            found = part.forward(batch, found, want)
        return found

    def close(self) -> None:
        for part in self._parts:
            part.close()
        if self._on_close is not None:
            self._on_close()
