"""One sample from the tokens that the model chose to text, and the decision where it ends.

Invariants: a token is written at most once; the end token is counted but not written; after `reason` is set nothing is
taken any more; what text is held back (open characters, half a stop string) comes out at the end. The same tokens give
the same answer whether they come one by one, several at a time, or were given as written elsewhere. Must not know the
scheduler, the clock or torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gpu_node.engine.prompt import kept_in_front
from gpu_node.engine.sequence import Bounds, FinishReason, Given, Token, TokenLogprob
from gpu_node.engine.text_stream import StopWatch, TokenText
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import GenerationFailed, RequestError

NOTHING_BANNED: frozenset[int] = frozenset()


class GuideState(Protocol):
    """How far one sample has come in what it must match. Used by one thread at a time."""

    @property
    def finished(self) -> bool:
        """Nothing but the end may follow."""
        ...

    def mask(self) -> bytes:
        """The tokens that may come next: one bit each, least significant first; end tokens where it may end."""
        ...

    def accept(self, token_id: int) -> None: ...


class Answer:
    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        bounds: Bounds,
        stop: Sequence[str] = (),
        guide: GuideState | None = None,
        sample: int = 0,
    ) -> None:
        self.prompt, self.sample, self.guide = prompt, sample, guide
        self.written: list[int] = []
        self.steps = 0  # tokens chosen, the end token included
        self.reason: FinishReason | None = None
        self.must_shift = False  # the context is full: call `shift` before the next token
        self._bounds, self._end_ids = bounds, vocabulary.end_ids
        self._limit, self._context = bounds.token_limit, bounds.context_tokens
        self._text = TokenText(vocabulary.decode, prompt)
        self._stop = StopWatch(stop)
        self._base, self._base_written = prompt, 0  # what stands before `written[_base_written:]`
        self.given_steps = 0  # of `steps`, those that were made elsewhere
        self.unsaid = ""  # text of the given tokens that nobody was told
        self._said_bytes = 0  # of the text to come: somebody was told

    def resume(self, given: Given) -> None:
        """Go through an answer that was begun elsewhere as if it had been written here; it may have ended there.

        Raises `RequestError` when no answer to this request can have come so far.
        """
        text = ""
        for token in given.ids:
            if self.reason is not None:
                raise RequestError("the given answer goes on behind its end", field="given")
            text += self._rewrite(token)
        if self.reason is not None:
            text += self._flush()
        self.given_steps = self.steps
        self._skip_said(text, given.text_bytes)

    def _rewrite(self, token: int) -> str:
        self.steps += 1
        if self._ends(token):
            self.reason = "stop"
            return ""
        try:
            text = self._write(token)
        except GenerationFailed as error:
            raise RequestError(f"the given answer is none that its guide allows: {error}", field="given") from error
        if self.must_shift:
            self.shift()
        return text

    def _skip_said(self, text: str, said_bytes: int) -> None:
        """An answer that ended elsewhere has told what is still held back here."""
        certain = text.encode()
        possible = certain if self.reason is not None else (text + self._stop.held + self._text.held).encode()
        try:
            possible[:said_bytes].decode()
        except UnicodeDecodeError:
            raise RequestError("the given text ends within a character", field="given") from None
        if said_bytes > len(possible):
            raise RequestError("more text is given than the given tokens have", field="given")
        self.unsaid = certain[said_bytes:].decode()
        self._said_bytes = max(said_bytes - len(certain), 0)

    def _without_said(self, text: str) -> str:
        raw = text.encode()
        said, self._said_bytes = self._said_bytes, max(self._said_bytes - len(raw), 0)
        return raw[said:].decode(errors="ignore")

    @property
    def tokens(self) -> list[int]:
        """What the model has before it: prompt and answer, or what a context shift left of them."""
        return [*self._base, *self.written[self._base_written :]]

    @property
    def banned(self) -> frozenset[int]:
        """Tokens that must not come next. A guide that is complete may end before `min_tokens`."""
        early = len(self.written) < self._bounds.min_tokens and self.guide is None
        return self._end_ids if early and not self._bounds.ignore_end else NOTHING_BANNED

    def take(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> Token | None:
        """The event that these tokens make; None when they make none. `written` has grown by the tokens that count.

        Whatever the guide or the decoder raises comes through: the sample cannot go on then.
        """
        before, text = len(self.written), ""
        for token in tokens[: self._usable(len(tokens))]:
            self.steps += 1
            if self._ends(token):
                self.reason = "stop"
                break
            text += self._write(token)
            if self.reason is not None or self.must_shift:
                break
        if self.reason is not None:
            text += self._flush()
        if self._said_bytes:
            text = self._without_said(text)
        ids = tuple(self.written[before:])
        return Token(text, self.sample, ids, tuple(logprobs[: len(ids)])) if ids or text else None

    def shift(self) -> list[int]:
        """Make room: the front stays, half of the rest goes; what remains is computed anew at its new place.

        Ollama's rule. The last token has not been computed yet and stays in any case.
        """
        *filled, last = self.tokens
        keep = kept_in_front(self._bounds)
        dropped = max((len(filled) - keep) // 2, 1)
        left = [*filled[:keep], *filled[keep + dropped :], last]
        self._base, self._base_written, self.must_shift = left, len(self.written), False
        return left

    def narrow(self, context_tokens: int) -> None:
        """The cache has become smaller than the context that was asked for."""
        if context_tokens < self._context:
            self._bounds, self._context = replace(self._bounds, context_tokens=context_tokens), context_tokens

    def _usable(self, count: int) -> int:
        """Later tokens of a step were judged by what held for the first: its mask, its banned tokens."""
        if self.guide is not None:
            return 1
        missing = self._bounds.min_tokens - len(self.written)
        return min(count, missing) if missing > 0 and not self._bounds.ignore_end else count

    def _ends(self, token: int) -> bool:
        return token in self._end_ids and (self.guide is not None or not self._bounds.ignore_end)

    def _write(self, token: int) -> str:
        if self.guide is not None:
            self.guide.accept(token)
        self.written.append(token)
        piece = self._text.feed(token)
        if len(self.written) >= self._bounds.min_tokens:
            piece = self._stop.feed(piece)
        if self._stop.hit or (self.guide is not None and self.guide.finished):
            self.reason = "stop"
        elif self.steps >= self._limit:
            self.reason = "length"
        elif len(self._base) + len(self.written) - self._base_written > self._context:
            self.must_shift = self._bounds.may_shift
            self.reason = None if self.must_shift else "length"
        return piece

    def _flush(self) -> str:
        if self._stop.hit:
            return ""
        text = self._stop.feed(self._text.flush()) + self._stop.flush()
        if self._stop.hit:
            self.reason = "stop"
        return text
