"""One request for text in the engine's thread: its samples, its events, its times, its one end.

Invariants: a sample that has ended is never picked again; `Done` comes once, after the last sample has ended. Must not
know the scheduler's decisions, only which sequence is which sample. Times are seconds on the engine's clock.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpu_node.engine.answer import Answer, GuideState
from gpu_node.engine.mailbox import Call
from gpu_node.engine.planned import PlannedPick, Submission
from gpu_node.engine.sequence import Done, GenerationRequest, Token
from gpu_node.engine.stats import Counters
from gpu_node.engine.step import Choice, Pick
from gpu_node.engine.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """Everything about a request that can be done without the model."""

    request: GenerationRequest  # its context is no longer than the cache
    ids: tuple[int, ...]
    guides: tuple[GuideState | None, ...]  # one a sample
    arrived: float
    begun: tuple[Answer, ...] = ()  # elsewhere, as far as they have come there; one a sample

    @property
    def submissions(self) -> tuple[Submission, ...]:
        """Answers that were begun go on each from its own tokens; one that has ended needs no sequence."""
        if not self.begun:
            return (self.submission,)
        open_ones = [answer for answer in self.begun if answer.reason is None]
        return tuple(replace(self.submission, ids=tuple(answer.tokens), samples=1) for answer in open_ones)

    @property
    def submission(self) -> Submission:
        request = self.request
        return Submission(
            self.ids,
            max_context=request.bounds.context_tokens,
            samples=request.samples,
            priority=request.priority,
            deadline=request.deadline,
            caller=request.caller,
            salt=request.cache_salt,
            speculate=request.sampling.guide is None,  # a mask is known for the next token only
        )


class Sample:
    """One sequence that is being answered."""

    __slots__ = ("answer", "generation", "key", "sequence", "told_at")

    def __init__(self, generation: Generation, sequence: int, answer: Answer, key: int) -> None:
        self.generation, self.sequence, self.answer, self.key = generation, sequence, answer, key
        self.told_at: float | None = None

    def pick(self, planned: PlannedPick, history: Sequence[int]) -> Pick:
        """Raises what the guide raises."""
        guide = self.answer.guide
        return self._pick(planned, history, None if guide is None else guide.mask())

    def pick_anything(self, planned: PlannedPick, history: Sequence[int]) -> Pick:
        """For a sample that will fail, so that its step can be computed all the same."""
        return self._pick(planned, history, None)

    def _pick(self, planned: PlannedPick, history: Sequence[int], allowed: bytes | None) -> Pick:
        answer, options = self.answer, self.generation.request.sampling
        written = len(answer.written)
        return Pick(planned.row, options, self.key, written, history, planned.drafts, answer.banned, allowed)

    def take(self, choice: Choice, now: float, counters: Counters) -> int:
        """Goes on with what was chosen; how many of the tokens count. Raises what guide or decoder raise."""
        answer = self.answer
        before, steps = len(answer.written), answer.steps
        event = answer.take(choice.tokens, choice.logprobs)
        self._measure(answer.steps - steps, now, counters)
        if event is not None:
            self.generation.call.tell(event)
        return len(answer.written) - before

    def _measure(self, tokens: int, now: float, counters: Counters) -> None:
        counters.output_tokens += tokens
        counters.output_rate.add(now, tokens)
        if self.told_at is None:
            self.generation.note_first(now, counters)
        else:
            counters.between_tokens.observe((now - self.told_at) / max(tokens, 1), tokens)
        self.told_at = now


class Generation:
    def __init__(self, prepared: PreparedGeneration, call: Call, vocabulary: Vocabulary) -> None:
        self.request, self.call = prepared.request, call
        self.submissions = prepared.submissions
        self.answers: tuple[Answer, ...] = ()
        self.samples: tuple[Sample, ...] = ()  # those that are being answered
        self._prepared, self._vocabulary = prepared, vocabulary
        self._begun: float | None = None
        self._read: float | None = None
        self._reused = 0

    def begin(self, sequences: Sequence[int]) -> None:
        """One sequence for each answer that has not ended yet."""
        self.answers = self._prepared.begun or answers_to(self._prepared, self._vocabulary)
        keys = draw_keys(self.request.sampling.seed, self.request.samples)
        going = [(answer, key) for answer, key in zip(self.answers, keys, strict=True) if answer.reason is None]
        self.samples = tuple(
            Sample(self, sequence, answer, key) for sequence, (answer, key) in zip(sequences, going, strict=True)
        )
        for answer in self.answers:
            if answer.unsaid:
                self.call.tell(Token(answer.unsaid, answer.sample))

    def note_begin(self, now: float, reused_tokens: int) -> None:
        """The prompt's first piece is about to be computed."""
        if self._begun is None:
            self._begun, self._reused = now, reused_tokens

    def note_first(self, now: float, counters: Counters) -> None:
        if self._read is None:
            self._read = now
            counters.first_token.observe(max(now - self._prepared.arrived, 0.0))

    def done(self, now: float) -> Done:
        answers = self.answers
        reasons = tuple(answer.reason or "stop" for answer in answers)
        begun = self._prepared.arrived if self._begun is None else self._begun
        read = now if self._read is None else self._read
        return Done(
            reason=reasons[0],
            prompt_tokens=len(self._prepared.ids),
            output_tokens=sum(answer.steps - answer.given_steps for answer in answers),
            prompt_ns=_nanoseconds(read - begun),
            output_ns=_nanoseconds(now - read),
            context=(*self._prepared.ids, *answers[0].written),
            reused_tokens=self._reused,
            reasons=reasons,
        )


def answers_to(prepared: PreparedGeneration, vocabulary: Vocabulary) -> tuple[Answer, ...]:
    """Nothing is written yet."""
    request = prepared.request
    return tuple(
        Answer(vocabulary, prepared.ids, request.bounds, request.stop, guide, number)
        for number, guide in enumerate(prepared.guides)
    )


def draw_keys(seed: int | None, samples: int) -> list[int]:
    """The 64-bit keys of a request's samples: of one seed always the same, however many samples there are."""
    if seed is None:
        return [secrets.randbits(64) for _ in range(samples)]
    return [_hashed(seed, number) for number in range(samples)]


def _hashed(seed: int, sample: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)
