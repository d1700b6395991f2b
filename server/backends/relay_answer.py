"""What a node of kind relay says, as the gateway's events, reports and errors. Pure.

Faults are judged as those of nodes that speak HTTP: what would be a 4xx there never counts against the node, a node
that is busy or stopping is left alone for a while, what the protocol or the model broke is the node's fault. Numbers
are bounded by the protocol already; those that learned speeds are made of are bounded here once more.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from server.backends.figures import MOST_NANOSECONDS
from server.errors import NodeBroken, NodeBusy, NodeError, NodeIncapable, NodeRefused, NodeStalled, NodeUnreachable
from server.exchange import Durations, Embedding, NodeDone, Token, Usage
from transport.errors import ConnectFailed, ConnectionLost, ProtocolBroken, Refused, TransportError, WrongToken
from wire.errors import LocalError
from wire.messages_session import ErrorCode
from wire.messages_work import Done, FinishReason, Logprob, TokenLogprob, Tokens, Vectors

MAX_RETRY_AFTER_SECONDS = 3600.0
LEAST_LOGPROB = -9999.0  # what JSON can carry for a token that was impossible
BROKEN_CHARACTER = "\ufffd"
BUSY = frozenset({ErrorCode.BUSY, ErrorCode.STOPPING, ErrorCode.NO_ROOM})
# code -> the status that our own node's HTTP API gives for the same
REFUSED_STATUS = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.CONTEXT_EXCEEDED: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.UNKNOWN_HANDLE: 404,
    ErrorCode.DIGEST_MISMATCH: 400,
    ErrorCode.STORE_REFUSED: 400,
}


@contextmanager
def translated(address: str) -> Iterator[None]:
    """What goes wrong inside, before anything of an answer has come, leaves as a NodeError."""
    try:
        yield
    except TransportError as problem:
        raise error_of(address, problem, begun=False) from cause_of(problem)
    except LocalError as problem:
        raise too_large(problem) from problem


def cause_of(problem: TransportError) -> BaseException:
    """What the system said, where it did: whether nobody listens is told from other failures by that."""
    return problem.__cause__ if isinstance(problem.__cause__, OSError) else problem


def too_large(problem: Exception) -> NodeIncapable:
    """What no message can carry; a node that speaks HTTP may take it."""
    return NodeIncapable(f"a node of kind relay cannot be asked this: {problem}", 400)


def error_of(address: str, error: TransportError, *, begun: bool) -> NodeError:
    """`begun`: a part of the answer has come, so that it was cut and not only missed."""
    match error:
        case Refused():
            return refusal_of(address, error)
        case WrongToken():
            return NodeBroken(f"{address} refuses the gateway: {error}")
        case ConnectFailed():
            return NodeUnreachable(f"cannot connect to {address}: {error.reason}")
        case ProtocolBroken():
            return NodeBroken(f"{address} does not speak the protocol as it should: {error}")
        case ConnectionLost() if begun:
            return NodeBroken(f"{address} cut its answer short ({error})")
        case ConnectionLost():
            return NodeUnreachable(f"{address} dropped the connection before it answered ({error})")
        case _:
            return NodeBroken(f"{address} failed: {error}")


def refusal_of(address: str, error: Refused) -> NodeError:
    text, code = error.text or f"{error.code.name} without a word", error.code
    if code in BUSY:
        seconds = None if error.retry_after_ms is None else error.retry_after_ms / 1000
        return NodeBusy(text, None if seconds is None else min(seconds, MAX_RETRY_AFTER_SECONDS))
    status = REFUSED_STATUS.get(code)
    if status is not None:
        told = error.details.get("status")
        return NodeRefused(text, told if type(told) is int and 400 <= told < 500 else status)
    if code is ErrorCode.UNSUPPORTED:
        return NodeIncapable(text, 501)
    return NodeBroken(f"{address} failed: {text}")


def stalled(address: str, phase: str) -> NodeStalled:
    return NodeStalled(f"{address} was silent for too long ({phase})", phase)


_slots: dict[str, Any] = dict(vars(Token))
_put_text, _put_thinking, _put_calls = (_slots[name].__set__ for name in ("text", "thinking", "tool_calls"))
_put_logprobs, _put_count, _put_ids = (_slots[name].__set__ for name in ("logprobs", "tokens", "ids"))


def token_of(tokens: Tokens) -> Token:
    """As the class makes it, at half the price: every token passes here, and frozen classes set fields the long way."""
    ids, logprobs = tokens.ids, tokens.logprobs
    token = object.__new__(Token)
    _put_text(token, tokens.text)
    _put_thinking(token, "")
    _put_calls(token, ())
    _put_logprobs(token, logprob_records(logprobs) if logprobs else ())
    _put_count(token, len(ids))
    _put_ids(token, ids)
    return token


def logprob_records(entries: Iterable[TokenLogprob]) -> tuple[dict[str, Any], ...]:
    """As Ollama writes them: without a list of others where none were asked for."""
    return tuple(
        {**_record(entry.chosen), "top_logprobs": [_record(other) for other in entry.top]}
        if entry.top
        else _record(entry.chosen)
        for entry in entries
    )


def _record(entry: Logprob) -> dict[str, Any]:
    text = entry.text
    return {
        "token": text,
        "logprob": min(max(entry.logprob, LEAST_LOGPROB), 0.0),
        "bytes": None if BROKEN_CHARACTER in text else list(text.encode()),
    }


def done_of(done: Done, model: str, total_ns: int, *, with_context: bool) -> NodeDone:
    """`total_ns` is how long the gateway waited in all; nodes of this kind tell only what they did themselves."""
    return NodeDone(
        "length" if done.reason is FinishReason.LENGTH else "stop",
        model,
        Usage(done.prompt_tokens, done.output_tokens),
        Durations(total_ns, _bounded(done.load_ns), _bounded(done.prompt_ns), _bounded(done.output_ns)),
        done.context if with_context else (),
    )


def _bounded(nanoseconds: int) -> int:
    return min(nanoseconds, MOST_NANOSECONDS)


def embedding_of(message: Vectors, address: str, texts: int) -> Embedding:
    """Raises NodeBroken where it is not one vector of numbers a text."""
    numbers = array("f", bytes(message.data))
    if sys.byteorder == "big":
        numbers.byteswap()
    if not math.isfinite(sum(numbers)):  # JSON has no word for what is not finite
        raise NodeBroken(f"{address} answered with vectors that are not finite")
    size = message.dimensions
    vectors = [numbers[at : at + size].tolist() for at in range(0, len(numbers), size)]
    if len(vectors) != texts:
        raise NodeBroken(f"{address} answered with {len(vectors)} vectors for {texts} texts")
    return Embedding(vectors)
