"""What one token more costs in a small step: measured, since it decides whether drafts pay.

Invariants: numbers only, times are given; large steps, which read prompts, are left out. Must not know what a step is.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST = 64  # tokens; from about there on a step costs by the token, whatever the device
MEMORY = 0.95  # some twenty steps count: contexts grow, and with them the cost of a step
OUTLIER = 4.0  # times the usual: a pause of the machine, not a cost
GUESS = 0.1  # share of a step that a token more costs before anything is known: between a CPU's and a GPU's
GUESS_WEIGHT = 2.0  # tokens squared: so much spread of sizes must be seen to count as much as the guess


@dataclass(frozen=True, slots=True)
class StepCosts:
    """A straight line through the recent (tokens, seconds), drawn towards the guess while sizes hardly differ."""

    weight: float = 0.0
    tokens: float = 0.0  # mean
    seconds: float = 0.0  # mean
    spread: float = 0.0  # sum of squares of the tokens about their mean
    common: float = 0.0  # sum of products of both about their means

    def after(self, tokens: int, seconds: float) -> StepCosts:
        if not 0 < tokens <= LARGEST or seconds <= 0.0:
            return self
        seconds = min(seconds, OUTLIER * self.seconds) if self.weight else seconds
        kept = self.weight * MEMORY
        weight = kept + 1.0
        ahead, late = tokens - self.tokens, seconds - self.seconds
        mean, duration = self.tokens + ahead / weight, self.seconds + late / weight
        return StepCosts(
            weight,
            mean,
            duration,
            self.spread * MEMORY + ahead * (tokens - mean),
            self.common * MEMORY + ahead * (seconds - duration),
        )

    def share(self, tokens: int) -> float:
        """The cost of one token more, as a share of the cost of a step of `tokens`; not below zero."""
        if not self.weight:
            return GUESS
        guess = GUESS * self.seconds
        slope = max(0.0, (self.common + GUESS_WEIGHT * guess) / (self.spread + GUESS_WEIGHT))
        whole = self.seconds + slope * (tokens - self.tokens)
        return slope / whole if whole > slope else 1.0
