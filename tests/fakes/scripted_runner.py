"""A model runner without torch: its cache is a table of tokens, and what comes next depends on what it reads there.

It keeps to the contract of `ModelRunner` strictly: a row's past is read from the blocks that the row names, slot by
slot, so whoever hands it wrong blocks, skips a copy or shares what is still being written gets other answers, or an
error at once when a slot was never written. Faults are asked for by token or by step.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gpu_node.engine.sequence import Logprob, Message, TokenLogprob
from gpu_node.engine.step import CacheShape, Choice, Pick, Row, Step, StepByStep, StepResult
from gpu_node.errors import DeviceOutOfMemory

END = 256
HIDDEN_SIZE = 4


class ByteVocabulary:
    """One token a byte, and one that ends an answer."""

    size = 257
    end_ids = frozenset({END})
    begins_with_bos = False

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(number for number in ids if number < END).decode(errors="replace")

    def render(self, messages: Sequence[Message]) -> str:
        turns = "".join(f"<{message.role}>{message.content}\n" for message in messages)
        return f"{turns}<assistant>"


class CharVocabulary(ByteVocabulary):
    """One token a character; a zero ends an answer."""

    size = 0x110000
    end_ids = frozenset({0})

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def mixed(history: Sequence[int], draw: int = 0) -> int:
    """A letter that depends on everything before it."""
    digest = hashlib.blake2b(repr((list(history), draw)).encode(), digest_size=2).digest()
    return ord("a") + int.from_bytes(digest, "little") % 26


def written_out(text: str, after: str = "") -> Callable[[Sequence[int], int], int]:
    """Whoever asks gets this text and then the end; `after` is how the prompt ends."""
    ids, mark = list(text.encode()), list(after.encode())

    def next_token(history: Sequence[int], draw: int) -> int:
        past = list(history)
        for size in range(len(ids), -1, -1):
            if past[len(past) - size :] == ids[:size] and past[: len(past) - size][-len(mark) or len(past) :] == mark:
                return ids[size] if size < len(ids) else END
        raise AssertionError("no prompt ends like that")

    return next_token


class ScriptedRunner(StepByStep):
    """`next_token` gets the tokens so far and a number that is 0 for greedy samples, else the sample's own draw."""

    device = "cpu"
    dtype = "float32"
    memory_bytes = 1000
    embedding_length = HIDDEN_SIZE

    def __init__(
        self,
        next_token: Callable[[Sequence[int], int], int] = mixed,
        blocks: int = 64,
        block_tokens: int = 4,
        vocabulary: Any = None,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary or ByteVocabulary()
        self.next_token = next_token
        self.cache = CacheShape(block_tokens, blocks, block_bytes=block_tokens * 100)
        self.summary: dict[str, Any] = {"kernels": "none"}
        self.steps: list[Step] = []
        self.threads: set[int] = set()
        self.closed = 0
        # Faults.
        self.poison: dict[int, Callable[[], BaseException]] = {}  # a row that computes this token raises that
        self.not_finite: set[int] = set()  # logits after this token are none
        self.failures: list[BaseException | None] = []  # one a step, first come first served
        self.most_tokens: int | None = None  # of a step, beyond which memory runs out
        self.most_rows: int | None = None
        self.before_run: Callable[[Step], None] = lambda step: None
        self._slots: dict[tuple[int, int], int] = {}

    def run(self, step: Step, picks: Sequence[Pick]) -> StepResult:
        self.threads.add(threading.get_ident())
        assert not self.closed, "a closed runner computes nothing"
        self.before_run(step)
        self.steps.append(step)
        self._fail(step)
        for copy in step.copies:
            for offset in range(self.cache.block_tokens):
                if (copy.source, offset) in self._slots:
                    self._slots[copy.target, offset] = self._slots[copy.source, offset]
        for row in step.rows:
            self._write(row)
        pasts = {index: self._past(row) for index, row in enumerate(step.rows) if row.output != "nothing"}
        choices = tuple(self._choose(pick, step.rows[pick.row], pasts[pick.row]) for pick in picks)
        picked = {pick.row for pick in picks}
        arrays = {index: self._array(step.rows[index], past) for index, past in pasts.items() if index not in picked}
        return StepResult(choices, arrays)

    def shrink_cache(self, block_count: int) -> CacheShape:
        self._slots.clear()
        self.cache = CacheShape(self.cache.block_tokens, block_count, self.cache.block_bytes)
        return self.cache

    def close(self) -> None:
        self.closed += 1

    def _fail(self, step: Step) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        if self.most_tokens is not None and step.token_count > self.most_tokens:
            raise DeviceOutOfMemory(f"{step.token_count} tokens")
        if self.most_rows is not None and len(step.rows) > self.most_rows:
            raise DeviceOutOfMemory(f"{len(step.rows)} rows")
        for row in step.rows:
            for token in row.tokens:
                if token in self.poison:
                    raise self.poison[token]()

    def _slot(self, row: Row, position: int) -> tuple[int, int]:
        block = row.blocks[position // self.cache.block_tokens]
        assert 0 <= block < self.cache.block_count
        return block, position % self.cache.block_tokens

    def _write(self, row: Row) -> None:
        assert row.tokens, "a row without tokens"
        for position, token in enumerate(row.tokens, row.start):
            self._slots[self._slot(row, position)] = token

    def _past(self, row: Row) -> list[int]:
        """All tokens up to the row's end, read from the cache."""
        return [self._slots[self._slot(row, position)] for position in range(row.start + len(row.tokens))]

    def _choose(self, pick: Pick, row: Row, past: list[int]) -> Choice:
        assert row.output == "logits" and row.output_tokens == 1 + len(pick.drafts)
        end = len(past) - len(pick.drafts)
        assert past[:end] == list(pick.history), "the cache holds something else than the history"
        if any(token in self.not_finite for token in row.tokens):
            return Choice(error="the logits are not finite")
        chosen: list[int] = []
        for number in range(1 + len(pick.drafts)):
            history = past[: end + number]
            chosen.append(self._permitted(pick, self._draw(pick, history, number)))
            if number == len(pick.drafts) or chosen[-1] != pick.drafts[number]:
                break
        return Choice(tuple(chosen), self._logprobs(pick, chosen))

    def _draw(self, pick: Pick, history: list[int], number: int) -> int:
        draw = 0 if pick.options.greedy else hash((pick.key, pick.written + number)) & 0xFFFF
        return self.next_token(history, draw)

    def _permitted(self, pick: Pick, token: int) -> int:
        for step in range(self.vocabulary.size):
            other = (token + step) % self.vocabulary.size
            if other not in pick.banned and (pick.allowed is None or pick.allowed[other // 8] >> other % 8 & 1):
                return other
        raise AssertionError("nothing is permitted")

    def _logprobs(self, pick: Pick, chosen: Sequence[int]) -> tuple[TokenLogprob, ...]:
        if pick.options.logprobs is None:
            return ()
        top = pick.options.logprobs
        return tuple(
            TokenLogprob(Logprob(token, -1.0), tuple(Logprob(token + n, -1.0 - n) for n in range(top)))
            for token in chosen
        )

    def _array(self, row: Row, past: list[int]) -> Any:
        """Hidden states or logits that say which token and position they belong to."""
        import numpy as np

        width = HIDDEN_SIZE if row.output == "hidden" else self.vocabulary.size
        rows = np.zeros((row.output_tokens, width), dtype=np.float32)
        first = len(past) - row.output_tokens
        for index in range(row.output_tokens):
            rows[index, 0], rows[index, 1], rows[index, 2] = past[first + index], first + index, 1.0
            if past[first + index] in self.not_finite:
                rows[index, 3] = np.nan
        return rows
