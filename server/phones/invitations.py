"""Invitations: one-time tokens that expire, known here by their SHA-256 only. Pure: tokens and time are arguments.

Life: made, perhaps begun (the phone fetched its script), claimed while one phone is being looked at, then used up or
given back. Ended ones are remembered for a while, so that a phone that comes late is told why. Must not know HTTP,
files or phones.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

from server.errors import CallerRefused, TooManyTries

TOKEN_BYTES = 24  # 192 bits: nobody guesses one, however long it is good for
DEFAULT_MINUTES = 15.0
SHORTEST_MINUTES, LONGEST_MINUTES = 1.0, 24 * 60.0
# A phone that has fetched its script in time may take this long for its packages and a model of some gigabytes.
SETUP_SECONDS = 2 * 3600.0
MOST_OPEN = 256  # more is a loop that went wrong
REMEMBERED_SECONDS = 24 * 3600.0
MOST_REMEMBERED = 1024

State = Literal["open", "claimed", "used"]
_NEW_ONE = "ask for a new one: potluck phones invite"


@dataclass(frozen=True, slots=True)
class Invitation:
    """`expires_at`: until when its script may be fetched, and until when a phone that did not fetch it may join."""

    digest: bytes
    made_at: float
    expires_at: float
    model: str | None = None
    begun_at: float | None = None  # the script was fetched
    state: State = "open"

    @property
    def joins_until(self) -> float:
        if self.begun_at is None:
            return self.expires_at
        return max(self.expires_at, self.begun_at + SETUP_SECONDS)


class Invitations:
    """All that were made. Every method takes `now`, in seconds of one clock."""

    def __init__(self, kept: Iterable[Invitation] = ()) -> None:
        self._all = {one.digest: one for one in kept}

    @property
    def kept(self) -> list[Invitation]:
        """What has to outlast this run: a phone that is looked at just now may try again in the next."""
        return [replace(one, state="open") if one.state == "claimed" else one for one in self._all.values()]

    def invite(self, token: str, minutes: float, model: str | None, now: float) -> Invitation:
        """Raises TooManyTries where too many are open already."""
        self._forget(now)
        waiting = [one for one in self._all.values() if one.state != "used" and now < one.joins_until]
        if len(waiting) >= MOST_OPEN:
            soonest = min(one.joins_until for one in waiting)
            raise TooManyTries(f"{MOST_OPEN} invitations are open already", soonest - now)
        made = Invitation(digest_of(token), now, now + 60.0 * minutes, model)
        self._all[made.digest] = made
        return made

    def begin(self, token: str, now: float) -> Invitation:
        """Its script is fetched: from now on the phone has time to set itself up. Raises CallerRefused (403)."""
        found = self._find(token)
        if found.state == "used":
            raise CallerRefused("this invitation has been used", hint=_NEW_ONE)
        if now >= found.expires_at:
            raise CallerRefused("this invitation has expired", hint=_NEW_ONE)
        if found.begun_at is None:
            found = self._put(replace(found, begun_at=now))
        return found

    def claim(self, token: str, now: float) -> Invitation:
        """For the one phone that is looked at now; then `release` or `use` it. Raises CallerRefused (403)."""
        found = self._find(token)
        if found.state == "used":
            raise CallerRefused("this invitation has been used", hint=_NEW_ONE)
        if found.state == "claimed":
            raise CallerRefused("another phone is joining with this invitation just now", hint=_NEW_ONE)
        if now >= found.joins_until:
            raise CallerRefused("this invitation has expired", hint=_NEW_ONE)
        return self._put(replace(found, state="claimed"))

    def release(self, invitation: Invitation) -> None:
        """The phone was not let in: the invitation is as good as before."""
        self._end(invitation, "open")

    def use(self, invitation: Invitation) -> None:
        self._end(invitation, "used")

    def _end(self, claimed: Invitation, state: State) -> None:
        """Its script may have been fetched meanwhile."""
        self._put(replace(self._all.get(claimed.digest, claimed), state=state))

    def _find(self, token: str) -> Invitation:
        """Looks at all of them, so that the time taken tells nothing."""
        digest = digest_of(token)
        found = None
        for known, invitation in self._all.items():
            if hmac.compare_digest(known, digest):
                found = invitation
        if found is None:
            raise CallerRefused("this invitation is not known here", hint=_NEW_ONE)
        return found

    def _put(self, invitation: Invitation) -> Invitation:
        self._all[invitation.digest] = invitation
        return invitation

    def _forget(self, now: float) -> None:
        kept = [
            one for one in self._all.values() if one.state == "claimed" or now < one.joins_until + REMEMBERED_SECONDS
        ]
        if len(kept) >= MOST_REMEMBERED:
            kept = sorted(kept, key=lambda one: (one.state != "used", one.joins_until))[-MOST_REMEMBERED // 2 :]
        self._all = {one.digest: one for one in kept}


def digest_of(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
