"""One answer as far as it has come, and how to ask for the rest of it: pure.

Invariants: every TOKENS is the next one, by its index and by the position in its sample; a gap or a repeat is the
node's fault. While the node has the job, the rest is asked for by index; where the job is gone, by the ids so far, and
indexes go on counting for whoever reads. Chance and time are arguments. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from wire.errors import BadPayload
from wire.messages import Message
from wire.messages_work import Done, Generate, Given, Progress, Tokens

__all__ = ["Story"]


class Story:
    """`job`: up to 16 random bytes, used where the request has none. `now`: seconds of any steady clock."""

    def __init__(self, request: Generate, job: bytes, now: float) -> None:
        self._request = replace(request, job=request.job or job)
        self._started = now
        self._told = 0  # TOKENS of all jobs so far
        self._before = 0  # of those, the ones of jobs that are gone
        given = request.given or (Given(),) * request.samples
        self._ids = [list(each.ids) for each in given]
        self._given = sum(map(len, self._ids))
        self._written_before = 0  # ids that jobs which are gone have told
        self._text_bytes = [each.text_bytes for each in given]
        self.ended = False

    def request(self) -> Generate:
        """What to send now: for the first time, or to take up the job where it was left."""
        return replace(self._request, next_index=self._told - self._before)

    def begin_anew(self, job: bytes, now: float) -> None:
        """The node has the job no more: another one goes on behind the ids so far."""
        self._before, self._written_before = self._told, sum(map(len, self._ids)) - self._given
        given = tuple(Given(tuple(ids), size) for ids, size in zip(self._ids, self._text_bytes, strict=True))
        untold = not any(each.ids or each.text_bytes for each in given)
        self._request = replace(self._request, job=job, given=() if untold else given, deadline_ms=self._left(now))
        self._started = now

    def take_all(self, messages: Iterable[Message]) -> list[Tokens | Progress | Done]:
        """What belongs to the answer, as the reader is to see it; `ended` once its Done is in it. Raises BadPayload."""
        told: list[Tokens | Progress | Done] = []
        for message in messages:
            if isinstance(message, Tokens):
                told.append(self.take(message))
            elif isinstance(message, Progress):
                told.append(message)
            elif isinstance(message, Done):
                told.append(self.end(message))
                self.ended = True
        return told

    def take(self, tokens: Tokens) -> Tokens:
        """The same as the reader is to see it. Raises BadPayload when it is not the next one."""
        expected = self._told - self._before
        if tokens.index != expected:
            raise BadPayload(f"TOKENS {tokens.index} where {expected} is next")
        if tokens.sample >= len(self._ids):
            raise BadPayload(f"TOKENS of sample {tokens.sample} of {len(self._ids)}")
        ids = self._ids[tokens.sample]
        if tokens.position != len(ids):
            raise BadPayload(f"TOKENS at position {tokens.position} where {len(ids)} is next")
        ids.extend(tokens.ids)
        text = tokens.text
        self._text_bytes[tokens.sample] += len(text) if text.isascii() else len(text.encode())
        self._told += 1
        return replace(tokens, index=self._told - 1) if self._before else tokens

    def end(self, done: Done) -> Done:
        """The end as the reader is to see it. Raises BadPayload when TOKENS are missing before it."""
        if done.index != self._told - self._before:
            raise BadPayload(f"DONE after {done.index} TOKENS, of which {self._told - self._before} came")
        if not self._before:
            return done
        return replace(done, index=self._told, output_tokens=done.output_tokens + self._written_before)

    def _left(self, now: float) -> int | None:
        deadline = self._request.deadline_ms
        return None if deadline is None else max(0, deadline - round(1000 * (now - self._started)))
