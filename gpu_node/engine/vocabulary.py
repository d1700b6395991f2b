"""Text to token ids and back, and the model's own chat template.

`Vocabulary` is what the engine needs of a tokenizer; `TokenizerVocabulary` fits one of transformers to it. Safe to call
from two threads at once, since it changes nothing in the tokenizer. Must not import torch or transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gpu_node.engine.sequence import Message
from gpu_node.errors import RequestError


class Vocabulary(Protocol):
    @property
    def size(self) -> int: ...

    @property
    def end_ids(self) -> frozenset[int]: ...

    @property
    def begins_with_bos(self) -> bool:
        """Whether `encode` puts a begin-of-sequence token in front of a text that lacks it."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation up to the point where the assistant speaks next."""
        ...


class TokenizerVocabulary:
    def __init__(self, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._end_ids = end_ids
        first = list(tokenizer("", add_special_tokens=True)["input_ids"])[:1]
        self._first = first if first and first[0] == tokenizer.bos_token_id else []

    @property
    def size(self) -> int:
        return len(self._tokenizer)

    @property
    def end_ids(self) -> frozenset[int]:
        return self._end_ids

    @property
    def begins_with_bos(self) -> bool:
        return bool(self._first)

    def encode(self, text: str) -> list[int]:
        if self._backend is not None:
            ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        else:
            ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        return ids if ids[:1] == self._first else self._first + ids

    def decode(self, ids: Sequence[int]) -> str:
        if self._backend is not None:  # the same text in a quarter of the time; it is asked for every token
            return str(self._backend.decode(list(ids), skip_special_tokens=True))
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def tokenizer_json(self) -> str:
        """The tokenizer in the format of the tokenizers library; tells the bytes of every token.

        Raises `RequestError` for tokenizers of other makes.
        """
        if self._backend is None:
            raise RequestError("answers cannot be guided with this model: its tokenizer is of an older kind")
        return str(self._backend.to_str())

    def render(self, messages: Sequence[Message]) -> str:
        if not self._tokenizer.chat_template:
            return "\n\n".join(message.content for message in messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs of strangers: they raise what they like
            raise RequestError(f"the model's chat template refuses these messages: {error}") from error
        return str(text)
