"""The words of a fake model: token i of an answer is a pure function of the conversation and i.

A word looks like ` w17-3fa2`: its position and four digits that stand for model and conversation. `x9b1c` after it
is the salt of an answer that nothing made deterministic, `n` marks an answer given anew after a closed one, `z`
words of a copy that diverges. White space, multi-byte characters and punctuation stand between the words, so that
seams at any character are tested. Given a prompt that ends in a part of its own answer, the model finds out how
much is told, to the character, and goes on there. This file knows no HTTP, no time and no settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from tests.fakes.phone_demo import demo_tokens

WORD = re.compile(r"w(\d+)-([0-9a-f]{4}(?:x[0-9a-f]{4})?n?z?)")
ASSISTANT = "<|im_start|>assistant\n"
_END = "<|im_end|>"
_OWN_START = re.compile(r"\n?[ ]?w[01](?:-(?:[0-9a-f]|$)|$)|\n?[ ]?w$")
_SALT_PART = re.compile(r"w\d+-[0-9a-f]{4}x([0-9a-f]{1,4})")
_SPACES = (" ", "\n", "\n\n", "  ")
_BYTES = (" 漢字", "😀", " żółć", " naïve", "👩‍🚀", " مرحبا")
_MARKS = (",", ".", ";", "'s", '"', "<b>")

# The model never says more than this: `num_predict` 0 and -1 are endless, and a test must still end.
LONGEST_ANSWER = 1_000_000
# A raw prompt without any header is searched for own words no further back than this.
LONGEST_SEARCH = 100_000


def token(tag: str, position: int, joined: bool = False) -> str:
    """Token `position` of the answer `tag`. `joined`: the prompt ends inside a line, so the first word needs a
    space before it.
    """
    number = int(tag[:4], 16)
    begins_with_newline = number % 8 == 0
    if position == 0:
        return "\n" if begins_with_newline else f"{' ' if joined else ''}w0-{tag}"
    if position == 1:
        return f"{'' if begins_with_newline else ' '}w1-{tag}"
    kind = (position + number) % 12
    pick = (number * 31 + position * 17) >> 2
    if kind == 0:
        return _SPACES[pick % len(_SPACES)]
    if kind == 4:
        return _BYTES[pick % len(_BYTES)]
    if kind == 8:
        return _MARKS[pick % len(_MARKS)]
    return f" w{position}-{tag}"


def natural_length(tag: str, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return low + int(tag[:4], 16) * 2654435761 % (max(high - low, 0) + 1)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What an answer depends on besides the prompt."""

    identity: str  # the model's digest
    sampling: str = ""  # "" when greedy or unseeded, else the seed
    salt: str = ""  # four hex digits when nothing makes the answer deterministic
    bounds: tuple[int, int] = (16, 96)
    diverge_after: int | None = None
    demo: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer, of which the first `told` characters stand in the prompt already."""

    tag: str
    length: int
    joined: bool = False
    diverge_after: int | None = None
    told: int = 0
    sentences: tuple[str, ...] = ()  # a readable answer (demo), already split into tokens

    def tokens(self) -> Iterator[str]:
        """The whole answer from its first token on."""
        if self.sentences:
            yield from self.sentences
            return
        for position in range(min(self.length, LONGEST_ANSWER)):
            diverges = self.diverge_after is not None and position >= self.diverge_after
            yield token(self.tag + "z" if diverges else self.tag, position, self.joined)

    def rest(self) -> Iterator[str]:
        """What is not told yet; the first piece may be the end of a token."""
        skip = self.told
        for piece in self.tokens():
            if skip >= len(piece):
                skip -= len(piece)
                continue
            yield piece[skip:]
            skip = 0

    @property
    def text(self) -> str:
        return "".join(self.tokens())

    def starts_with(self, told: str) -> bool:
        """Whether `told` is the beginning of this answer (or all of it)."""
        position = 0
        for piece in self.tokens():
            if position >= len(told):
                return True
            if not told.startswith(piece, position) and not piece.startswith(told[position:]):
                return False
            position += len(piece)
        return position >= len(told)


def split_prompt(prompt: str) -> tuple[str, str]:
    """The prompt up to where the assistant speaks, and what it has said so far."""
    found = prompt.rfind(ASSISTANT)
    if found < 0 or _END in prompt[found:]:
        return prompt, ""
    cut = found + len(ASSISTANT)
    return prompt[:cut], prompt[cut:]


def answers_anew(base: str) -> bool:
    """Whether the assistant speaks right after a closed message of its own."""
    if not base.endswith(ASSISTANT):
        return False
    before = base.rfind("<|im_start|>", 0, len(base) - len(ASSISTANT))
    return before >= 0 and base.startswith(ASSISTANT, before)


def conversation_digits(prompt: str, about: Conversation) -> str:
    key = f"{about.identity}\0{about.sampling}\0{prompt}"
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=2).hexdigest()


def answer_after(base: str, about: Conversation) -> Answer:
    """The answer to a prompt of which nothing is told."""
    tag = conversation_digits(base, about)
    if about.salt:
        tag += "x" + about.salt
    if answers_anew(base):
        tag += "n"
    joined = bool(base) and not base[-1].isspace()
    if about.demo:
        sentences = demo_tokens(base, tag)
        return Answer(tag, len(sentences), joined, sentences=sentences)
    return Answer(tag, natural_length(tag, about.bounds), joined, about.diverge_after)


def answer_to(prompt: str, about: Conversation) -> Answer:
    """The answer to a prompt that may end in a part of it.

    First guess: all that stands after the assistant's header is the model's own. Else a client wrote the beginning:
    then the own part starts at a first word, perhaps a broken one. If nothing fits, all of it is the client's and
    nothing is told.
    """
    base, tail = split_prompt(prompt)
    if not tail and base.endswith(ASSISTANT):
        return answer_after(base, about)
    starts = [len(base)] if tail else []
    first = len(base) if tail else max(0, len(prompt) - LONGEST_SEARCH)
    starts += [match.start() for match in _OWN_START.finditer(prompt, first)]
    starts += [start + 1 for start in starts if start < len(prompt) and prompt[start] in "\n "]
    for start in starts:
        told = prompt[start:]
        answer = answer_after(prompt[:start], _with_salt_of(told, about))
        # A copy that diverges by itself still reads what another one told.
        for reading in (answer, replace(answer, diverge_after=None)):
            if reading.starts_with(told):
                return replace(reading, told=len(told))
    return answer_after(prompt, about)


def _with_salt_of(told: str, about: Conversation) -> Conversation:
    """A salted answer goes on with the salt that its words show; one that broke inside the salt keeps the digits it
    has.
    """
    if not about.salt:
        return about
    found = _SALT_PART.search(told)
    return replace(about, salt=(found.group(1) + about.salt)[:4]) if found else about
