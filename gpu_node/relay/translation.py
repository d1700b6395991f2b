"""From the protocol's messages to what the engine understands, and back. Every field is honoured or refused.

Invariants: no session shares cached prompts with anybody unless both name the same salt; a caller's turns are counted
within its session. Pure functions. Must not know streams, sessions or torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpu_node.engine import sequence as engine
from gpu_node.engine.vocabulary import Vocabulary
from gpu_node.errors import RequestError
from gpu_node.relay.errors import shortened
from wire import messages_work as wire
from wire.frames import Buffer
from wire.messages import encode_message
from wire.token_frames import pack_tokens

# As in the HTTP API: below it there is nothing to cut and nothing to say.
SMALLEST_CONTEXT = 4
MOST_PRIORITY = 1000
# Separates what a client may name from what the node itself does: no key or salt of the HTTP API has it.
SEPARATOR = "\x1f"
REASONS = {"stop": wire.FinishReason.STOP, "length": wire.FinishReason.LENGTH}


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose request it is: a session, and what it says of whom it asks for."""

    owner: str
    caller: str = ""
    cache_salt: str = ""

    @property
    def turns(self) -> str:
        """Everybody with the same has turns together."""
        return f"{self.owner}{SEPARATOR}{self.caller}"

    @property
    def salt(self) -> str:
        """Only who names one shares with others who name it."""
        return f"salt{SEPARATOR}{self.cache_salt}" if self.cache_salt else f"relay{SEPARATOR}{self.owner}"


def generation_of(asked: wire.Generate, asker: Asker, context_tokens: int, now: float) -> engine.GenerationRequest:
    """`context_tokens`: the model's; `now`: on the engine's clock. Raises `RequestError`."""
    if abs(asked.priority) > MOST_PRIORITY:
        raise RequestError(f"priority must lie between -{MOST_PRIORITY} and {MOST_PRIORITY}", field="priority")
    return engine.GenerationRequest(
        prompt=prompt_of(asked.prompt),
        sampling=sampling_of(asked.sampling),
        bounds=bounds_of(asked.bounds, context_tokens),
        stop=tuple(dict.fromkeys(asked.stop)),
        samples=asked.samples,
        priority=asked.priority,
        deadline=None if asked.deadline_ms is None else now + asked.deadline_ms / 1000,
        caller=asker.turns,
        cache_salt=asker.salt,
        given=tuple(engine.Given(one.ids, one.text_bytes) for one in asked.given),
    )


def embedding_of(asked: wire.Embed, asker: Asker, context_tokens: int) -> engine.EmbeddingRequest:
    return engine.EmbeddingRequest(
        texts=asked.texts,
        context_tokens=context_of(asked.context_tokens, context_tokens),
        truncate=asked.truncate,
        normalise=asked.normalise,
        dimensions=asked.dimensions,
        caller=asker.turns,
        cache_salt=asker.salt,
    )


def prompt_of(asked: wire.ChatPrompt | wire.TextPrompt | wire.TokenPrompt) -> engine.Prompt:
    match asked:
        case wire.ChatPrompt(messages, context):
            return engine.ChatPrompt(tuple(engine.Message(one.role, one.content) for one in messages), context)
        case wire.TextPrompt(text):
            return engine.RawPrompt(text)
        case wire.TokenPrompt(ids):
            return engine.TokenPrompt(ids)


def sampling_of(asked: wire.Sampling) -> engine.SamplingOptions:
    """Shares beyond 0 and 1 are taken for these, as Ollama and the HTTP API take them."""
    if asked.repeat_penalty <= 0:
        raise RequestError("repeat_penalty must be above 0", field="repeat_penalty")
    return engine.SamplingOptions(
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=_share(asked.top_p),
        min_p=_share(asked.min_p),
        repeat_penalty=asked.repeat_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repeat_last_n=asked.repeat_last_n,
        seed=asked.seed,
        typical_p=_share(asked.typical_p) or 1.0,
        logit_bias=tuple((one.id, one.bias) for one in asked.logit_bias),
        logprobs=asked.logprobs,
        guide=_guide_of(asked.guide),
    )


def bounds_of(asked: wire.Bounds, context_tokens: int) -> engine.Bounds:
    return engine.Bounds(
        context_tokens=context_of(asked.context_tokens, context_tokens),
        max_tokens=asked.max_tokens,
        keep_tokens=asked.keep_tokens,
        truncate=asked.truncate,
        shift=asked.shift,
        min_tokens=asked.min_tokens,
        ignore_end=asked.ignore_end,
    )


def context_of(asked: int, context_tokens: int) -> int:
    """More than the model has is taken for all that it has."""
    return max(min(asked or context_tokens, context_tokens), SMALLEST_CONTEXT)


def keep_alive_of(seconds: float | None) -> float | None:
    if seconds is not None and not seconds >= 0:
        raise RequestError("keep_alive_seconds must be 0 or more", field="keep_alive_seconds")
    return seconds


def _guide_of(asked: wire.JsonGuide | wire.RegexGuide | None) -> engine.Guide | None:
    match asked:
        case None:
            return None
        case wire.JsonGuide(schema):
            return engine.JsonGuide(schema)
        case wire.RegexGuide(pattern):
            return engine.RegexGuide(pattern)


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


class Numbering:
    """Numbers what an engine tells, and writes it as TOKENS."""

    def __init__(self, asked: wire.Generate, vocabulary: Vocabulary) -> None:
        self.index = asked.next_index if asked.given else 0
        self._positions = [len(one.ids) for one in asked.given] or [0] * asked.samples
        self._vocabulary = vocabulary

    def payloads(self, token: engine.Token) -> list[bytes]:
        """One, but for a text or likelihoods that no frame holds."""
        place, sample = self._positions[token.sample], token.sample
        if not sample and not token.logprobs:
            payload = pack_tokens(self.index, place, token.text, token.ids)
            if payload is not None:
                self.index += 1
                self._positions[0] = place + len(token.ids)
                return [payload]
        return [self._written(piece) for piece in _in_frames(token)]

    def _written(self, token: engine.Token) -> bytes:
        place = self._positions[token.sample]
        logprobs = tuple(self._told(one) for one in token.logprobs)
        message = wire.Tokens(self.index, place, token.text, token.ids, token.sample, logprobs)
        self.index += 1
        self._positions[token.sample] = place + len(token.ids)
        return joined(encode_message(message))

    def done(self, done: engine.Done, load_ns: int) -> bytes:
        return joined(
            encode_message(
                wire.Done(
                    self.index,
                    REASONS[done.reason],
                    prompt_tokens=done.prompt_tokens,
                    output_tokens=done.output_tokens,
                    prompt_ns=done.prompt_ns,
                    output_ns=done.output_ns,
                    reused_tokens=done.reused_tokens,
                    reasons=tuple(REASONS[reason] for reason in done.reasons) if len(done.reasons) > 1 else (),
                    # What a frame cannot hold nobody can give back either.
                    context=done.context if len(done.context) <= CONTEXT_MOST else (),
                    load_ns=load_ns,
                )
            )
        )

    def _told(self, one: engine.TokenLogprob) -> wire.TokenLogprob:
        return wire.TokenLogprob(self._spelled(one.chosen), tuple(map(self._spelled, one.top)))

    def _spelled(self, one: engine.Logprob) -> wire.Logprob:
        text = shortened(self._vocabulary.decode([one.id]), wire.TOKEN_TEXT_BYTES)
        return wire.Logprob(one.id, one.logprob if not math.isnan(one.logprob) else -math.inf, text)


# 4 bytes each, and some room for the fields beside them.
CONTEXT_MOST = wire.TOKENS - 1024
# Of likelihoods in one frame: each has an id, a number and a text.
LOGPROBS_MOST = 512


def _in_frames(token: engine.Token) -> list[engine.Token]:
    """The same in pieces that fit: ids and their likelihoods a few at a time, the text with the last of them."""
    width = 1 + max((len(one.top) for one in token.logprobs), default=0)
    step = max(LOGPROBS_MOST // width, 1) if token.logprobs else len(token.ids) or 1
    texts = _pieces(token.text, wire.TEXT_BYTES // 2)
    pieces = [
        engine.Token("", token.sample, token.ids[at : at + step], token.logprobs[at : at + step])
        for at in range(0, len(token.ids), step)
    ] or [engine.Token("", token.sample)]
    last = pieces.pop()
    pieces.append(engine.Token(texts[0], last.sample, last.ids, last.logprobs))
    return pieces + [engine.Token(text, token.sample) for text in texts[1:]]


def _pieces(text: str, most_bytes: int) -> list[str]:
    most = most_bytes // 4  # bytes of the longest characters
    return [text[at : at + most] for at in range(0, len(text), most)] or [""]


def text_payloads(text: str) -> list[bytes]:
    """A text alone, as TOKENS."""
    pieces = _pieces(text, wire.TEXT_BYTES)
    return [joined(encode_message(wire.Tokens(index, 0, piece))) for index, piece in enumerate(pieces)]


def joined(parts: list[Buffer]) -> bytes:
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
