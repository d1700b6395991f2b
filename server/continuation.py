"""How a half-told answer goes on at another node, and the seam between the parts. Pure: values in, values out.

What a node really does decides, never its name: chat goes on where the node's own rendering stays open after the text
so far, raw takes the rendering as a prompt, replay asks again and skips what was told. Where the tokens themselves are
known, a node of our protocol goes on behind the last of them, exactly as the first one would have. Whatever passes the
seam must give the client one text without a gap or a repeat, or an honest end. The rules come from recordings of real
servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.exchange import AskRequest, Begun, Message, Token
from server.nodes import Node
from server.workload import told_tokens

Way = Literal["exact", "chat", "raw", "replay"]
ENDLESS = (-1, -2)  # Ollama's num_predict: no end, and until the context is full
# fields under which an answer cannot be cut and glued: what they ask for is not text alone
REPLAY_ONLY_FIELDS = ("images", "tools", "think", "suffix", "logprobs")
# Beginnings of text that tokenizers add on their own; some renderings spell them out as well.
BEGINNINGS = (
    "<bos>",
    "<s>",
    "<|begin_of_text|>",
    "<｜begin▁of▁sentence｜>",
    "<BOS_TOKEN>",
    "<|startoftext|>",
    "[gMASK]<sop>",
)


@dataclass(slots=True)
class Told:
    """What the client has been told so far, by however many nodes."""

    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    tokens: int = 0
    other_than_text: bool = False  # tool calls cannot be continued
    anything: bool = False  # that the client has heard
    ids: list[int] | None = field(default_factory=list)  # of all tokens so far; None: not all are known

    @property
    def text(self) -> str:
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0] if self.parts else ""

    @property
    def thinking(self) -> str:
        return "".join(self.thoughts)

    @property
    def begun(self) -> Begun | None:
        """The answer so far by its tokens; None where they are not known."""
        return None if self.ids is None else Begun(tuple(self.ids), len(self.text.encode()))

    def add(self, token: Token) -> int:
        """Write the token down; returns how many of the model's tokens it may have held."""
        ids = token.ids
        if ids is None:
            count, self.ids = told_tokens(token.text, token.tokens), None
        else:
            count = len(ids)
            if self.ids is not None:
                self.ids += ids
        self.tokens += count
        if token.text:
            self.anything = True
            self.parts.append(token.text)
        elif token.is_heard:
            self.anything = True
        if token.thinking:
            self.thoughts.append(token.thinking)
        if token.tool_calls:
            self.other_than_text = True
        return count

    def forget_unheard(self) -> None:
        """Nothing was heard yet, perhaps for tokens that are no whole character: the answer may begin anew."""
        self.tokens, self.ids = 0, []


def ways(request: AskRequest, node: Node, told: Told) -> tuple[Way, ...]:
    """The ways that could work at this node, in the order to try them. Empty: none fits."""
    if node.spec.kind == "relay" and told.ids is not None and not told.other_than_text:
        return ("exact", *_by_text(request, node, told))
    return _by_text(request, node, told)


def _by_text(request: AskRequest, node: Node, told: Told) -> tuple[Way, ...]:
    replay: tuple[Way, ...] = ("replay",) if request.options.get("temperature") == 0 else ()
    if told.other_than_text:
        return ()
    if told.thoughts or _is_guided(request) or any(request.fields.get(name) for name in REPLAY_ONLY_FIELDS):
        return replay
    if _has_images(request):
        return replay
    if node.spec.kind == "openai":
        open_end: tuple[Way, ...] = ("chat",) if node.spec.continues_final_message else ()
        return (*(open_end if request.operation == "chat" else ()), *replay)
    if request.operation == "generate" and request.fields.get("raw"):
        return ("raw", *replay)
    if request.operation == "generate" and request.fields.get("context"):
        return replay  # the token ids of the history cannot be put before a text
    report = node.report
    if report is not None and report.continues_assistant and request.operation == "chat":
        return ("chat", *replay)
    if report is not None and report.renders:
        return ("chat", "raw", *replay) if request.operation == "chat" else ("raw", *replay)
    return replay


def _is_guided(request: AskRequest) -> bool:
    """Whether a grammar holds the answer: a node that goes on begins the grammar anew, in the middle of the text.

    The empty schema is one too: it lets any JSON through, and nothing else.
    """
    return request.fields.get("format") not in (None, "")


def _has_images(request: AskRequest) -> bool:
    return any(message.get("images") or message.get("tool_calls") for message in request.messages)


def extended(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with the text so far at their end, as one assistant message.

    If the client's own last message is the assistant's, the text extends it: Ollama joins two in a row by a blank line.
    """
    if messages and messages[-1].get("role") == "assistant":
        last = messages[-1]
        return [*messages[:-1], {**last, "content": f"{last.get('content') or ''}{text}"}]
    return [*messages, {"role": "assistant", "content": text}]


def stays_open(rendered: str, rendered_extended: str, text: str) -> bool:
    """Does the template leave the last assistant message open? Character for character: "ends in the text" is not
    enough, since a closed rendering ends in "assistant\\n" and the text so far may be "\\n"."""
    return rendered_extended == rendered + text


def raw_prompt(rendered: str, text: str, adds_beginning: bool) -> str:
    """The rendered conversation and the text so far, as a prompt for raw generation.

    `adds_beginning`: the tokenizer puts the beginning-of-text token there itself, so a spelled-out one is left out.
    """
    if adds_beginning:
        for beginning in BEGINNINGS:
            if rendered.startswith(beginning):
                rendered = rendered[len(beginning) :]
                break
    return rendered + text


def adds_beginning(show: Mapping[str, Any]) -> bool:
    """What `/api/show` says about the tokenizer."""
    info = show.get("model_info")
    return bool(info.get("tokenizer.ggml.add_bos_token")) if isinstance(info, Mapping) else False


def remaining_predict(options: Mapping[str, Any], told_tokens: int) -> int | None:
    """How many tokens may still come; None: no limit was set. 0 means the answer is over (never send it: endless)."""
    limit = options.get("num_predict")
    if limit is None or limit in ENDLESS or limit <= 0:
        return None
    return int(max(0, limit - told_tokens))


def continued_options(options: Mapping[str, Any], told_tokens: int) -> dict[str, Any]:
    left = remaining_predict(options, told_tokens)
    return dict(options) if left is None else {**options, "num_predict": left}


class Diverged(Exception):
    """A replay told something else than what the client already has."""


@dataclass(slots=True)
class ReplaySkip:
    """Skips what was told before, word for word. `feed` returns what is new."""

    text: str
    position: int = 0

    def feed(self, piece: str) -> str:
        """Raises Diverged at the first character that differs."""
        rest = len(self.text) - self.position
        if rest <= 0:
            return piece
        overlap = min(rest, len(piece))
        if self.text[self.position : self.position + overlap] != piece[:overlap]:
            raise Diverged
        self.position += overlap
        return piece[overlap:]

    @property
    def finished(self) -> bool:
        return self.position >= len(self.text)


@dataclass(slots=True)
class SeamStops:
    """Stop strings that begin in the told part and end in the new one: no node sees them whole.

    Holds back a character only while a match across the seam is still possible, and is done after as many characters
    as the longest stop string has.
    """

    stops: tuple[str, ...]
    before: str  # the end of the told text
    held: str = ""
    held_tokens: int = 0
    open: bool = True

    @classmethod
    def at(cls, options: Mapping[str, Any], told: str) -> SeamStops:
        stops = options.get("stop") or ()
        texts = (stops,) if isinstance(stops, str) else tuple(stops)
        texts = tuple(stop for stop in texts if len(stop) > 1)
        longest = max((len(stop) for stop in texts), default=0)
        tail = told[-(longest - 1) :] if longest > 1 else ""
        return cls(texts, tail, open=any(_straddles(tail, stop) for stop in texts))

    def feed(self, piece: str, tokens: int = 1) -> tuple[str, bool]:
        """What may be told now, and whether a stop string was completed (then nothing more comes).

        While something is held back, `held_tokens` counts the tokens in it.
        """
        if not self.open:
            self.held_tokens = 0
            return piece, False
        self.held += piece
        self.held_tokens += tokens
        possible = False
        for stop in self.stops:
            for begun in _beginnings(self.before, stop):
                missing = stop[begun:]
                if self.held.startswith(missing):
                    return "", True
                possible = possible or missing.startswith(self.held)
        if possible:
            return "", False
        self.open = False
        told, self.held = self.held, ""
        return told, False

    def rest(self) -> str:
        """The stream ended: what was held back is text after all."""
        told, self.held = self.held, ""
        self.open = False
        return told


def _beginnings(text: str, stop: str) -> list[int]:
    """How many characters of the stop string the text may end with."""
    return [count for count in range(1, len(stop)) if text.endswith(stop[:count])]


def _straddles(tail: str, stop: str) -> bool:
    return bool(_beginnings(tail, stop))
