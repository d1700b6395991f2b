"""A stage: a whole model as the runner sees it, computing a batch over a cache of its own.

Invariants: a forward writes the keys and values of exactly the batch's slots, and may be repeated; rows do not see each
other; blocks have the same numbers wherever the layers lie. `PlainStage` runs the model's own modules of transformers;
`chain` puts parts of own layers behind the same protocol. Must not know scheduling, sampling or tokenizers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpu_node.engine.attention import Attention, AttentionTerms
from gpu_node.engine.batch import Batch, batch_of
from gpu_node.engine.families import Plug, freeze_positions, model_refusal, plug_in
from gpu_node.engine.kv_pool import KvPool, LayerShape, token_bytes
from gpu_node.engine.step import BlockCopy, Output, Row
from gpu_node.errors import ModelError

__all__ = ["LayerShape", "PlainStage", "Stage"]

PROBE_TOKENS = 11
PROBE_BLOCK = 4
# Mean difference of logits in their standard deviations, by bytes of a weight. Right models stay a hundred times below
# in single precision; 16-bit ones differ by rounding, and now and then in the choice of an expert.
PROBE_TOLERANCE = {4: 1e-3, 2: 0.25, 8: 1e-3}


class Stage(Protocol):
    """Every call comes from one thread, in inference mode."""

    @property
    def device(self) -> torch.device:
        """Where a batch is handed in."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """In which keys and values are kept."""
        ...

    @property
    def token_bytes(self) -> int:
        """What a token's keys and values take in all layers."""
        ...

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def memory_bytes(self) -> int:
        """Of the weights."""
        ...

    @property
    def pools(self) -> tuple[KvPool, ...]:
        """Of the cache that was taken, those that lie in this process; together they have all of its layers, in order,
        or what is missing lies elsewhere."""
        ...

    def most_blocks(self, block_tokens: int) -> int | None:
        """Of a cache that stays within what was stated; None: nothing was, the device decides."""
        ...

    def take_cache(self, block_tokens: int, block_count: int) -> None:
        """Memory for so many blocks, all of them empty; an earlier cache is let go first. Raises torch's out-of-memory
        error, `MemoryError`, or `DeviceOutOfMemory` where less was stated."""
        ...

    def drop_cache(self) -> None:
        """Let go of its memory; before the next forward another one is taken."""
        ...

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """In all layers, before the next forward."""
        ...

    def clear_blocks(self, blocks: Iterable[int]) -> None:
        """As `KvPool.clear`; `forward` does so by itself for `batch.fresh`."""
        ...

    def forward(self, batch: Batch, want: Output) -> Tensor:
        """Rows of `batch.output_rows`: logits [outputs, vocabulary], the last hidden states [outputs, hidden size], or
        for "nothing" an empty tensor, when only the cache is to be filled."""
        ...

    def close(self) -> None:
        """Let go of weights and cache."""
        ...


class PlainStage:
    """Every model that `families` lets in, by its own modules: right, and the measure of quicker ones."""

    def __init__(self, model: Any, attention: Attention, context: int | None = None) -> None:
        """`model`: a causal language model of transformers on its device. Raises `ModelError` with the reason when it
        cannot run here, or when its paged forward gives other numbers than its plain one.

        `context`: the longest sequence to come; None: as long as the model's config says."""
        reason = model_refusal(model)
        if reason is not None:
            raise ModelError(f"this model cannot run here: {reason}")
        config = model.config.get_text_config(decoder=True)
        freeze_positions(model, context or config.max_position_embeddings)
        self._model = model.eval()
        self._attention = attention
        self._pool: KvPool | None = None
        self._batch: Batch | None = None
        self._picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        plain = _Plain.of(model)
        self.vocabulary_size = plain.logits.shape[-1]
        self.hidden_size = plain.hidden.shape[-1]
        self.layer_shapes = plug_in(model, Plug(self._attend))
        self._prove(plain)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def memory_bytes(self) -> int:
        return int(self._model.get_memory_footprint())

    @property
    def token_bytes(self) -> int:
        return token_bytes(self.layer_shapes, self.dtype)

    @property
    def pools(self) -> tuple[KvPool, ...]:
        """Of the cache that was taken."""
        return () if self._pool is None else (self._pool,)

    def most_blocks(self, block_tokens: int) -> int | None:
        return None

    def take_cache(self, block_tokens: int, block_count: int) -> None:
        self.drop_cache()
        self._pool = KvPool(self.layer_shapes, block_tokens, block_count, self.dtype, self.device)

    def drop_cache(self) -> None:
        self._pool = None

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        for pool in self.pools:
            for copy in copies:
                pool.copy(copy.source, copy.target)

    def clear_blocks(self, blocks: Iterable[int]) -> None:
        for pool in self.pools:
            pool.clear(blocks)

    def forward(self, batch: Batch, want: Output) -> Tensor:
        assert self._pool is not None, "a cache is taken before the first forward"
        self._pool.clear(batch.fresh)
        self._batch = batch
        given = {"position_ids": batch.positions[None], "use_cache": False}
        if batch.vectors is None:
            given["input_ids"] = batch.tokens[None]
        else:
            given["inputs_embeds"] = batch.with_given(self._model.get_input_embeddings()(batch.tokens))[None]
        try:
            if want == "logits":
                return self._logits(given, batch.output_rows)
            states: Tensor = self._model.base_model(**given).last_hidden_state[0]
            return states[batch.output_rows]
        finally:
            self._batch = None

    def close(self) -> None:
        self._model = self._pool = None

    def _logits(self, given: dict[str, Any], rows: Tensor) -> Tensor:
        if self._picks_rows:
            kept: Tensor = self._model(**given, logits_to_keep=rows).logits[0]
            return kept
        found: Tensor = self._model(**given).logits[0]
        return found[rows]

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
        pool, batch = self._pool, self._batch
        assert pool is not None and batch is not None, "attention is asked for inside a forward"
        pool.write(layer, batch.slots, key, value)
        return self._attention.attend(query, layer, batch, pool, terms)

    @torch.inference_mode()
    def _prove(self, plain: _Plain) -> None:
        """The same text in two pieces over scattered blocks, beside another one, gives what it gives alone."""
        tokens, cut = plain.tokens, len(plain.tokens) // 2 + 1
        self.take_cache(PROBE_BLOCK, 8)
        steps = (
            (Row(0, tokens[:cut], 0, (5, 2), "logits", cut), Row(1, tokens[3:7], 0, (0,))),
            (Row(1, tokens[7:8], 4, (0, 4)), Row(0, tokens[cut:], cut, (5, 2, 7), "logits", len(tokens) - cut)),
        )
        pieces = [self.forward(batch_of(rows, PROBE_BLOCK, self.device), "logits") for rows in steps]
        found, expected = torch.cat(pieces).float(), plain.logits
        self.drop_cache()
        apart = float((found - expected).abs().mean() / expected.std())
        if not apart <= PROBE_TOLERANCE[self.dtype.itemsize]:
            raise ModelError(
                f"this model cannot run here: over a paged cache its logits are {apart:.2g} deviations off"
            )


@dataclass(frozen=True, slots=True)
class _Plain:
    """A model's own plain forward of a few tokens, by transformers alone."""

    tokens: tuple[int, ...]
    logits: Tensor  # [tokens, vocabulary], single precision
    hidden: Tensor  # [tokens, hidden size]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Any) -> _Plain:
        model.set_attn_implementation("eager")
        size = model.get_input_embeddings().weight.shape[0]
        tokens = tuple((at * 7919 + 13) % size for at in range(PROBE_TOKENS))
        given = torch.tensor([tokens], device=model.device)
        hidden = model.base_model(input_ids=given, use_cache=False).last_hidden_state[0]
        return cls(tokens, model(input_ids=given, use_cache=False).logits[0].float(), hidden)
