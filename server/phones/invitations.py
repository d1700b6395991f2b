"""Invitations: one-time tokens that expire, known here by their SHA-256 only. Pure: tokens and time are arguments.

Life: made, perhaps begun (the phone fetched its script), claimed while one phone is being looked at, then used up or
given back; withdrawn by the owner at any time before it is used up. Ended ones are remembered for a while, so that a
phone that comes late is told why. Must not know HTTP, files or phones.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

from server.errors import CallerRefused, InvitationUnknown, TooManyTries

TOKEN_BYTES = 24  # 192 bits: nobody guesses one, however long it is good for
ID_FIGURES = 8  # of the token's hash: what an invitation is called, and too little to find the token by
DEFAULT_MINUTES = 15.0
SHORTEST_MINUTES, LONGEST_MINUTES = 1.0, 24 * 60.0
# A phone that has fetched its script in time may take this long for its packages and a model of some gigabytes.
SETUP_SECONDS = 2 * 3600.0
CLOCK_BACK_SECONDS = 24 * 3600.0  # small boards start with the time at which they were switched off
MOST_OPEN = 256  # more is a loop that went wrong
REMEMBERED_SECONDS = 24 * 3600.0
MOST_REMEMBERED = 1024

State = Literal["open", "claimed", "used", "withdrawn"]
_ENDED = ("used", "withdrawn")
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
    def id(self) -> str:
        return self.digest.hex()[:ID_FIGURES]

    @property
    def joins_until(self) -> float:
        if self.begun_at is None:
            return self.expires_at
        return max(self.expires_at, self.begun_at + SETUP_SECONDS)

    def is_over(self, now: float, until: float) -> bool:
        """Also where it was made long after now: a clock that is set back by years makes none good for years."""
        return not self.made_at - CLOCK_BACK_SECONDS <= now < until

    def refuse_withdrawn(self) -> None:
        """Raises CallerRefused (403)."""
        if self.state == "withdrawn":
            raise CallerRefused("this invitation was withdrawn", hint=_NEW_ONE)


class Invitations:
    """All that were made. Every method takes `now`, in seconds of one clock."""

    def __init__(self, kept: Iterable[Invitation] = ()) -> None:
        self._all = {one.digest: one for one in kept}

    @property
    def kept(self) -> list[Invitation]:
        """What has to outlast this run: a phone that is looked at just now may try again in the next."""
        return [replace(one, state="open") if one.state == "claimed" else one for one in self._all.values()]

    def waiting(self, now: float) -> list[Invitation]:
        """Those that a phone can still join with, or is joining with just now; the oldest first."""
        found = [one for one in self._all.values() if one.state not in _ENDED and not one.is_over(now, one.joins_until)]
        return sorted(found, key=lambda one: one.made_at)

    def names(self, token: str) -> bool:
        """Is there one already that would be called like this token's? Two of one name could not be told apart."""
        return any(one.id == digest_of(token).hex()[:ID_FIGURES] for one in self._all.values())

    def invite(self, token: str, minutes: float, model: str | None, now: float) -> Invitation:
        """Raises TooManyTries where too many are open already."""
        self._forget(now)
        waiting = self.waiting(now)
        if len(waiting) >= MOST_OPEN:
            soonest = min(one.joins_until for one in waiting)
            raise TooManyTries(f"{MOST_OPEN} invitations are open already", soonest - now)
        made = Invitation(digest_of(token), now, now + 60.0 * minutes, model)
        self._all[made.digest] = made
        return made

    def withdraw(self, invitation_id: str, now: float) -> Invitation:
        """No phone joins with it from now on, nor one that is being looked at. Raises InvitationUnknown (404)."""
        found = next((one for one in self.waiting(now) if one.id == invitation_id), None)
        if found is None:
            raise InvitationUnknown(invitation_id)
        return self._put(replace(found, state="withdrawn"))

    def see(self, token: str, now: float) -> Invitation:
        """What `begin` would give, or raise; but nothing begins."""
        found = self._find(token)
        if found.state == "used":
            raise CallerRefused("this invitation has been used", hint=_NEW_ONE)
        found.refuse_withdrawn()
        if found.is_over(now, found.expires_at):
            raise CallerRefused("this invitation has expired", hint=_NEW_ONE)
        return found

    def begin(self, token: str, now: float) -> Invitation:
        """Its script is fetched: from now on the phone has time to set itself up. Raises CallerRefused (403)."""
        found = self.see(token, now)
        return self._put(replace(found, begun_at=now)) if found.begun_at is None else found

    def claim(self, token: str, now: float) -> Invitation:
        """For the one phone that is looked at now; then `release` or `use` it. Raises CallerRefused (403)."""
        found = self._find(token)
        if found.state == "used":
            raise CallerRefused("this invitation has been used", hint=_NEW_ONE)
        found.refuse_withdrawn()
        if found.state == "claimed":
            raise CallerRefused("another phone is joining with this invitation just now", hint=_NEW_ONE)
        if found.is_over(now, found.joins_until):
            raise CallerRefused("this invitation has expired", hint=_NEW_ONE)
        return self._put(replace(found, state="claimed"))

    def release(self, invitation: Invitation) -> None:
        """Unless it was used or withdrawn, the invitation is as good as before."""
        held = self.known(invitation)
        self._put(replace(held, state="open") if held.state == "claimed" else held)

    def use(self, invitation: Invitation) -> None:
        self._put(replace(self.known(invitation), state="used"))

    def known(self, claimed: Invitation) -> Invitation:
        """As it is now: its script may have been fetched meanwhile, or its owner thought better of it."""
        return self._all.get(claimed.digest, claimed)

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
            one
            for one in self._all.values()
            if one.state == "claimed" or not one.is_over(now, one.joins_until + REMEMBERED_SECONDS)
        ]
        if len(kept) >= MOST_REMEMBERED:
            kept = sorted(kept, key=lambda one: (one.state not in _ENDED, one.joins_until))[-MOST_REMEMBERED // 2 :]
        self._all = {one.digest: one for one in kept}


def digest_of(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
