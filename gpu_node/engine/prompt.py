"""From messages or raw text to the token ids that the model reads, cut to the context the way Ollama cuts.

A last message of role assistant stays open: what the template says for the conversation before it, then its text as it
is, so that rendering with more text is the same rendering with that text behind it. Pure functions; no torch, no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_node.engine.sequence import Bounds, ChatPrompt, Message, Prompt, RawPrompt, TokenPrompt
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import ContextExceeded, RequestError

# No vocabulary in use has longer ones than runs of so many spaces.
LONGEST_TOKEN_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    text: str
    token_ids: tuple[int, ...]


def render(prompt: Prompt, vocabulary: Vocabulary, bounds: Bounds) -> str:
    """The text that the model would read."""
    if isinstance(prompt, RawPrompt):
        return prompt.text
    if isinstance(prompt, TokenPrompt):
        return vocabulary.decode(prompt.ids)
    messages = join_turns(prompt.messages)
    room = bounds.context_tokens - len(prompt.context)
    if bounds.truncate and len(messages) > 1:
        messages = _latest_that_fit(messages, lambda text: len(vocabulary.encode(text)) <= room, vocabulary)
    return render_open(messages, vocabulary)


def refuse_absurd(prompt: Prompt, bounds: Bounds, max_characters: int) -> None:
    """Raises `ContextExceeded` for what need not be tokenised to know that it is too long."""
    if isinstance(prompt, TokenPrompt):
        return  # counted exactly by `prepare`
    turns = [prompt.text] if isinstance(prompt, RawPrompt) else [message.content for message in prompt.messages]
    limit = max_characters
    if not bounds.truncate:
        limit = min(limit, bounds.context_tokens * LONGEST_TOKEN_CHARACTERS)
    if sum(map(len, turns)) > limit:
        raise ContextExceeded()


def prepare(prompt: Prompt, vocabulary: Vocabulary, bounds: Bounds) -> PreparedPrompt:
    if isinstance(prompt, TokenPrompt):
        return _prepare_tokens(prompt, vocabulary, bounds)
    text = render(prompt, vocabulary, bounds)
    before = prompt.context if isinstance(prompt, ChatPrompt) else ()
    if any(not 0 <= token < vocabulary.size for token in before):
        raise RequestError("the context holds a number that is no token of this model")
    ids = [*before, *vocabulary.encode(text)]
    if not ids:
        raise RequestError("the prompt is empty")
    return PreparedPrompt(text, tuple(cut(ids, bounds)))


def _prepare_tokens(prompt: TokenPrompt, vocabulary: Vocabulary, bounds: Bounds) -> PreparedPrompt:
    if not prompt.ids:
        raise RequestError("the prompt is empty")
    if any(not 0 <= token < vocabulary.size for token in prompt.ids):
        raise RequestError("the prompt holds a number that is no token of this model")
    if len(prompt.ids) > bounds.context_tokens:
        raise ContextExceeded()
    return PreparedPrompt("", prompt.ids)


def render_open(messages: Sequence[Message], vocabulary: Vocabulary) -> str:
    if messages and messages[-1].role == "assistant":
        return vocabulary.render(messages[:-1]) + messages[-1].content
    return vocabulary.render(messages)


def join_turns(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role become one message, as in Ollama; many templates insist that roles alternate."""
    turns: list[tuple[str, list[str]]] = []
    for message in messages:
        if turns and turns[-1][0] == message.role and message.role != "tool":
            turns[-1][1].append(message.content)
        else:
            turns.append((message.role, [message.content]))
    return [Message(role, "\n\n".join(texts)) for role, texts in turns]


def cut(ids: list[int], bounds: Bounds) -> list[int]:
    """Keep the front and the end, drop what lies between."""
    limit = bounds.context_tokens
    if len(ids) <= limit:
        return ids
    if not bounds.truncate:
        raise ContextExceeded()
    keep = kept_in_front(bounds)
    return ids[:keep] + ids[len(ids) - (limit - keep) :]


def kept_in_front(bounds: Bounds) -> int:
    wanted = bounds.context_tokens if bounds.keep_tokens < 0 else bounds.keep_tokens
    return min(wanted, bounds.context_tokens - 1)


def _latest_that_fit(messages: list[Message], fits: Callable[[str], bool], vocabulary: Vocabulary) -> list[Message]:
    """Drop the oldest turns until the rest fits; system messages and the last turn stay in any case."""
    last = len(messages) - (2 if messages[-1].role == "assistant" else 1)

    def from_turn(start: int) -> list[Message]:
        return [m for m in messages[:start] if m.role == "system"] + messages[start:]

    low, high = 0, max(last, 0)
    while low < high:  # the later the start, the shorter the text
        middle = (low + high) // 2
        if fits(render_open(from_turn(middle), vocabulary)):
            high = middle
        else:
            low = middle + 1
    return from_turn(low)
