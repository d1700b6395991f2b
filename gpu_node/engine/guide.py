"""Guided output: which tokens keep an answer within a JSON schema or a regular expression.

Over llguidance, a parser with no dependency of its own; it is imported when the first guide is asked for. Invariants:
compiling happens in the caller's thread, never in the engine's; size and work are bounded; a guide that cannot be
followed is the client's mistake, said in one sentence. Must not know torch, batches or what the answer's end means.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gpu_node.engine.json_form import ready_schema
from gpu_node.engine.sequence import Guide, JsonGuide
from gpu_node.engine.step import ModelRunner
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import GenerationFailed, RequestError

if TYPE_CHECKING:
    import llguidance

# Compiling takes about a millisecond for two thousand characters.
MAX_CHARACTERS = 200_000
# Clients repeat a schema with every request; a compiled one takes some hundred kilobytes.
KEPT_GRAMMARS = 16
MAX_REASON_CHARACTERS = 200
# Between two tokens of JSON. A model that may write blanks without end does.
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"


@runtime_checkable
class Spelled(Protocol):
    """A vocabulary that can tell which bytes its tokens stand for."""

    def tokenizer_json(self) -> str:
        """The tokenizer in the format of the tokenizers library."""
        ...


class GuidedAnswer:
    """One answer under a guide; used by one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """Nothing but an end token may follow."""
        return self._matcher.is_stopped()

    def mask(self) -> bytes:
        """The tokens that may come next: one bit each, least significant first; end tokens where it may end.

        Raises `GenerationFailed` when the grammar has become too complex to follow.
        """
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token_id: int) -> None:
        """Go on with a token of the last mask. Raises `GenerationFailed` for any other."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationFailed(f"the answer's form can no longer be followed: {_reason(self._matcher)}")


class Guides:
    """The guides of one model. Making it takes a third of a second for 49,152 tokens; safe from any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Raises `RequestError` when the model's tokenizer does not tell the bytes of its tokens."""
        import llguidance

        if not isinstance(vocabulary, Spelled):
            raise RequestError("answers cannot be guided with this model: its tokenizer does not spell its tokens")
        ends = sorted(token for token in vocabulary.end_ids if token < vocabulary.size)
        try:
            text = vocabulary.tokenizer_json()
            self._tokenizer = llguidance.LLTokenizer(text, n_vocab=vocabulary.size, eos_token=ends or None)
        except ValueError as error:
            raise RequestError(f"answers cannot be guided with this model's tokenizer: {_short(str(error))}") from error
        self._library = llguidance
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Guide, llguidance.LLMatcher] = OrderedDict()

    def start(self, guide: Guide) -> GuidedAnswer:
        """A fresh answer. Raises `RequestError` when the schema or pattern is wrong, unsupported or too large."""
        with self._lock:
            matcher = self._compiled.get(guide)
            if matcher is not None:
                self._compiled.move_to_end(guide)
                return GuidedAnswer(matcher.deep_copy())
        matcher = self._compile(guide)
        with self._lock:
            self._compiled[guide] = matcher
            while len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
            return GuidedAnswer(matcher.deep_copy())

    def _compile(self, guide: Guide) -> llguidance.LLMatcher:
        what = "schema" if isinstance(guide, JsonGuide) else "regular expression"
        text = guide.schema if isinstance(guide, JsonGuide) else guide.pattern
        if len(text) > MAX_CHARACTERS:
            raise RequestError(f"the {what} is longer than {MAX_CHARACTERS} characters")
        try:
            grammar = self._grammar(guide, text)
        except ValueError as error:  # the library's own limit of nesting, for instance
            raise RequestError(f"the {what} cannot be followed: {_short(str(error))}") from error
        limits = self._library.LLParserLimits(verbose_errors=False)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            _try(matcher.deep_copy(), what)
        if matcher.is_error():
            raise RequestError(f"the {what} cannot be followed: {_reason(matcher)}")
        return matcher

    def _grammar(self, guide: Guide, text: str) -> Any:
        """Raises `ValueError` where the library cannot write it."""
        if not isinstance(guide, JsonGuide):
            return self._library.LLMatcher.grammar_from_regex(text)
        options: Any = {"whitespace_pattern": WHITESPACE}
        return self._library.LLMatcher.grammar_from_json_schema(json.dumps(ready_schema(text)), overrides=options)


def guides_of(runner: ModelRunner) -> Callable[[Guide], GuidedAnswer]:
    """What starts guides for this runner's model: an engine's `guides`."""
    return Guides(runner.vocabulary).start


def _try(matcher: llguidance.LLMatcher, what: str) -> None:
    """What nothing can satisfy, or costs too much from the start, shows with the first mask. The matcher is spent."""
    matcher.compute_bitmask()
    if matcher.is_error():
        raise RequestError(f"nothing can satisfy the {what}, or it is too complex: {_reason(matcher)}")


def _reason(matcher: llguidance.LLMatcher) -> str:
    return _short(matcher.get_error())


def _short(message: str) -> str:
    """One line: of a pointed-at place in a pattern only what is wrong there."""
    lines = [line.strip() for line in message.strip().splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["unknown"])[0][:MAX_REASON_CHARACTERS].rstrip(" .")
