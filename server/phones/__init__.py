"""How phones join the fleet and stay in it: invitations, registration, the phones' own secrets, reports.

Decisions (`invitations`, `registration`, `reach`, `links`, `attempts`, `sightings`) are pure; `ledger` writes,
`lookout` calls phones back, `joining` drives all of them.
Invariants: no token is kept or logged, only SHA-256 of it; nobody can make the gateway call an address that the
caller's own packets do not come from. Must not know HTTP.
"""

from server.phones.invitations import Invitation, Invitations
from server.phones.joining import Joining, PhoneNews
from server.phones.links import Link, links_of
from server.phones.registration import Registration

__all__ = ["Invitation", "Invitations", "Joining", "Link", "PhoneNews", "Registration", "links_of"]
