"""The log probabilities of an answer's tokens, in the three shapes that clients know.

Ollama and OpenAI's chat list one object a token; OpenAI's older completions list columns. A token that is only a part
of a character has no text of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_node.engine.sequence import Logprob, TokenLogprob
from gpu_node.engine.vocabulary import Vocabulary

Record = dict[str, Any]
# What JSON can carry for a token that was impossible.
LEAST = -9999.0
BROKEN = "\ufffd"


def token_records(entries: Sequence[TokenLogprob], vocabulary: Vocabulary) -> list[Record]:
    """As Ollama and OpenAI's chat write them."""
    return [
        {
            **_one(entry.chosen, vocabulary),
            "top_logprobs": [_one(other, vocabulary) for other in entry.top],
        }
        for entry in entries
    ]


def ollama_records(entries: Sequence[TokenLogprob], vocabulary: Vocabulary) -> list[Record]:
    """Without a list of others where none were asked for, as Ollama leaves it out."""
    records = token_records(entries, vocabulary)
    for record in records:
        if not record["top_logprobs"]:
            del record["top_logprobs"]
    return records


def columns(entries: Sequence[TokenLogprob], vocabulary: Vocabulary, offset: int) -> Record:
    """As OpenAI's completions write them; `offset` is where the first token's text begins."""
    tokens = [vocabulary.decode([entry.chosen.id]) for entry in entries]
    offsets = [offset + sum(map(len, tokens[:at])) for at in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(entry.chosen.logprob) for entry in entries],
        "top_logprobs": [
            {vocabulary.decode([other.id]): _finite(other.logprob) for other in reversed(entry.top)} or None
            for entry in entries
        ],
        "text_offset": offsets,
    }


def _one(entry: Logprob, vocabulary: Vocabulary) -> Record:
    text = vocabulary.decode([entry.id])
    return {
        "token": text,
        "logprob": _finite(entry.logprob),
        "bytes": None if BROKEN in text else list(text.encode()),
    }


def _finite(value: float) -> float:
    return max(value, LEAST)
