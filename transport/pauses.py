"""When to try again: pure.

Pauses grow by a factor up to a longest one and are spread by chance, so that clients of a node that comes back do not
come all at once (Brooker, "Exponential Backoff And Jitter"). Time and chance are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Patience", "PausePolicy", "may_try_again", "next_pause"]


@dataclass(frozen=True, slots=True)
class PausePolicy:
    """`patience_seconds`: how long after the cut it is tried; None: as long as the node keeps the session.

    `when_refused`: also while nobody listens there. Such a node has forgotten its sessions, but comes back perhaps.
    """

    first_seconds: float = 0.05  # a cable that was replugged, a node that took us for another connection
    factor: float = 2.0
    longest_seconds: float = 5.0
    jitter: float = 0.5  # this share of a pause is left to chance
    patience_seconds: float | None = None
    when_refused: bool = True


def next_pause(policy: PausePolicy, failures: int, chance: float) -> float:
    """Seconds to wait before the next try, after so many failures; the first try after a cut waits for nothing.

    `chance` is at least 0 and below 1.
    """
    if failures == 0:
        return 0.0
    whole = min(policy.longest_seconds, policy.first_seconds * policy.factor ** min(failures - 1, 64))
    return whole * (1 - policy.jitter * chance)


def may_try_again(policy: PausePolicy, grace_seconds: float, cut_for_seconds: float, *, refused: bool = False) -> bool:
    """Whether another try can still help after so long without a connection; `refused`: nobody listened at the last."""
    if refused and not policy.when_refused:
        return False
    patience = grace_seconds if policy.patience_seconds is None else policy.patience_seconds
    return cut_for_seconds < patience


class Patience:
    """How long something is asked for again and again that nothing comes of: so long, counted from the first time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def went_on(self) -> None:
        """Something came of it, so all counts anew."""
        self._since = None

    def is_over(self, now: float) -> bool:
        """It was in vain once more."""
        self._since = now if self._since is None else self._since
        return now - self._since > self._seconds
