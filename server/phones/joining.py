"""Drives joining: looks at a phone before it is let in, writes the fleet file, hears what joined phones report.

Invariants: a phone is called at the address that its own packets came from and nowhere else; an invitation is used up
exactly when the phone stands in the fleet file; what one phone or address may cause is bounded. Must not know HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from secrets import token_urlsafe
from typing import TypeVar

from server.backends.resolver import Resolver
from server.care import Condition
from server.errors import CallerRefused, FleetFileUnusable, GatewayError, RequestInvalid
from server.nodes import Node, NodeId, NodeSpec, ProbeReport
from server.phones import registration
from server.phones.attempts import Attempts, source_of
from server.phones.invitations import TOKEN_BYTES, Invitation, Invitations
from server.phones.invitations_file import InvitationsFile, invitations_path
from server.phones.ledger import Edit, Ledger, edited
from server.phones.lookout import WINDOW_SECONDS, Look, Lookout, Resolve
from server.phones.reach import callable_host
from server.phones.registration import Registration
from server.phones.sightings import Sightings, refuse_stranger
from server.phones_watch import FleetFile
from server.registry import NodeCondition, NodeProbed, Registry

Found = TypeVar("Found")

WRONG_TOKENS = 10  # of one address in a window; with 192 bits to guess it is the processor that is spared
REPORTS = 60  # and renewals of one phone in a window; it sends three

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PhoneNews:
    """What a phone reports besides its condition. `heard_at`: wall clock seconds."""

    heard_at: float
    signal_dbm: int | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """`phone_token` is None for a phone that has its token already."""

    id: NodeId
    name: str
    phone_token: str | None = None


class Joining:
    """All about joined phones. On one event loop. `wall` is the wall clock, `new_token` makes secrets."""

    def __init__(
        self,
        registry: Registry,
        fleet_file: FleetFile,
        look: Look,
        wall: Callable[[], float],
        new_token: Callable[[], str] = lambda: token_urlsafe(TOKEN_BYTES),
        resolve: Resolve | None = None,
    ) -> None:
        self.news: dict[NodeId, PhoneNews] = {}
        self.registered_at: dict[NodeId, float] = {}  # wall clock seconds, of this run
        self._registry, self._wall, self._new_token = registry, wall, new_token
        self._ledger = Ledger(fleet_file)
        self._lookout = Lookout(look, resolve or Resolver().resolve, wall)
        self._kept = InvitationsFile(invitations_path(fleet_file.state.path))
        self._invitations = Invitations(self._kept.read())
        self._sightings = Sightings()
        self._told: dict[NodeId, str] = {}  # why a phone's address is not renewed
        self._wrong = Attempts(WRONG_TOKENS, WINDOW_SECONDS)
        self._reports = Attempts(REPORTS, WINDOW_SECONDS)

    # invitations

    def invite(self, minutes: float, model: str | None) -> tuple[str, Invitation]:
        """A new token, which is told here and never again."""
        token = self._new_token()
        while self._invitations.names(token):
            token = self._new_token()
        made = self._invitations.invite(token, minutes, model, self._wall())
        self._kept.write(self._invitations.kept)
        return token, made

    @property
    def now(self) -> float:
        """The clock that invitations go by, in seconds."""
        return self._wall()

    @property
    def invitations(self) -> list[Invitation]:
        """Those that a phone can still join with; the oldest first."""
        return self._invitations.waiting(self._wall())

    def withdraw(self, invitation_id: str) -> None:
        """No phone joins with it from now on. Raises InvitationUnknown."""
        self._invitations.withdraw(invitation_id, self._wall())
        self._kept.write(self._invitations.kept)

    def see(self, token: str, peer: str | None) -> Invitation:
        """Somebody looks at the script and does not fetch it. Raises CallerRefused, TooManyTries."""
        return self._counted(peer, lambda: self._invitations.see(token, self._wall()))

    def begin(self, token: str, peer: str | None) -> Invitation:
        """A phone fetches its script. Raises CallerRefused, TooManyTries."""
        now = self._wall()
        invitation = self._counted(peer, lambda: self._invitations.begin(token, now))
        if invitation.begun_at == now:
            self._kept.write(self._invitations.kept)
        return invitation

    # phones that come

    async def join(self, token: str, phone: Registration, peer: str | None) -> Joined:
        """A phone comes with an invitation. Raises GatewayError, and then the invitation is as good as before."""
        invitation = self._counted(peer, lambda: self._invitations.claim(token, self._wall()))
        try:
            host = callable_host(peer)
            self._refuse_taken_id(phone.id, host)
            report = await self._lookout.look_at(host, phone.port)
            names = await self._lookout.names_of(host, self._names_at(phone.port))
            self._refuse_taken_id(phone.id, host)
            phone_token = self._new_token()
            await self._ledger.admit(
                phone.id,
                phone_token,
                lambda specs: self._admitted(invitation, lambda: registration.joined(specs, phone, host, names)),
                lambda: self._used(invitation, phone.id),
            )
        finally:
            self._invitations.release(invitation)
        name = self._listed(phone.id, report) or phone.name
        log.info("the phone %s has joined at %s", name, host)
        return Joined(phone.id, name, phone_token)

    async def come_again(self, phone_token: str, phone: Registration, peer: str | None) -> Joined:
        """A phone that has its own token tells where and what it is now. Raises GatewayError."""
        phone_id = self.holder(phone_token, peer)
        if phone_id != phone.id:
            raise CallerRefused("this token belongs to another phone", status=401)
        self._reports.spend(phone_id, self._wall())
        host = callable_host(peer)
        known = self._node(phone_id).spec
        report = None
        if not registration.is_at(known, host, phone.port):
            report = await self._seen_at(phone_id, host, phone.port)
        if registration.renewed(known, phone, host) != known:
            await self._move(known, host, lambda specs: self._renewed(specs, phone, host))
        self.registered_at[phone_id] = self._wall()
        return Joined(phone_id, self._listed(phone_id, report) or phone.name)

    def holder(self, phone_token: str, peer: str | None) -> NodeId:
        """Whose token it is. Raises CallerRefused (401) where the phone is none of ours, or no longer."""

        def find() -> NodeId:
            found = self._ledger.holder(phone_token)
            if found is None:
                raise CallerRefused("this phone is not known here", status=401)
            return found

        phone_id = self._counted(peer, find)
        if self._registry.node(phone_id) is None:
            if self._ledger.is_broken:  # it may stand there: phones that are told to leave do not return
                raise FleetFileUnusable("the fleet file is broken, so nobody knows whether this phone is in it")
            raise CallerRefused("this phone was removed from the fleet", status=401)
        return phone_id

    async def report(self, phone_id: NodeId, condition: Condition, signal_dbm: int | None, peer: str | None) -> None:
        """What `holder` tells of itself. Its address is renewed where it has changed and the phone answers there."""
        now = self._wall()
        self._reports.spend(phone_id, now)
        self.news[phone_id] = PhoneNews(now, signal_dbm)
        self._registry.emit(NodeCondition(phone_id, condition, now))
        try:
            host = callable_host(peer)
            known = self._node(phone_id).spec
            report = None
            if not registration.is_at(known, host, known.port):
                report = await self._seen_at(phone_id, host, known.port)
            if registration.moved(known, host, known.port) != known:
                await self._move(
                    known,
                    host,
                    lambda specs: edited(specs, phone_id, lambda spec: registration.moved(spec, host, spec.port)),
                )
            self._listed(phone_id, report)
            self._told.pop(phone_id, None)
        except GatewayError as error:  # what it told of its battery counts all the same
            if self._told.get(phone_id) != error.message:  # reports go on; one line is enough
                log.warning("the address of the phone %s is not renewed: %s", phone_id, error.message)
            self._told[phone_id] = error.message

    # the owner's orders

    async def enable(self, phone_id: NodeId, wanted: bool) -> None:
        """False: it finishes what it has and gets nothing new, until told otherwise. Raises GatewayError."""

        def switched(spec: NodeSpec) -> NodeSpec:
            details = {key: word for key, word in spec.details.items() if key != registration.DISPLACED}
            return replace(spec, enabled=wanted, details=details)

        await self._ledger.change(lambda specs: edited(specs, phone_id, switched))

    async def list_found(self, found: NodeSpec) -> None:
        """A phone that was found on a cable gets an entry by its serial, and is the owner's to change from then on.

        Raises RequestInvalid where it has no serial, FleetFileUnusable.
        """
        entry = registration.listed(found)
        await self._ledger.change(
            lambda specs: (*specs, *([] if any(one.id == entry.id for one in specs) else [entry]))
        )

    async def rename(self, phone_id: NodeId, name: str) -> None:
        def named(specs: Sequence[NodeSpec]) -> Sequence[NodeSpec]:
            if any(spec.name == name and spec.id != phone_id for spec in specs):
                raise RequestInvalid(f"another node is called '{name}'", field="name")
            return edited(specs, phone_id, lambda spec: replace(spec, name=name))

        await self._ledger.change(named)

    async def change(self, phone_id: NodeId, wanted: Callable[[NodeSpec], NodeSpec]) -> None:
        """Other words of the owner's in its entry, but for its name. Raises GatewayError."""
        await self._ledger.change(lambda specs: edited(specs, phone_id, wanted))

    async def remove(self, phone_id: NodeId) -> None:
        """It leaves the fleet file, and its token is none any more: it can come back with an invitation only."""
        await self._ledger.dismiss(phone_id)
        self.news.pop(phone_id, None)
        self.registered_at.pop(phone_id, None)
        self._told.pop(phone_id, None)

    def has_token(self, phone_id: NodeId) -> bool:
        """Did it join, rather than being listed by hand? As far as the file of secrets can be read."""
        try:
            return self._ledger.knows(phone_id)
        except FleetFileUnusable:
            return False

    # steps

    def _counted(self, peer: str | None, find: Callable[[], Found]) -> Found:
        """What the token opens; a wrong one counts against the address. Raises CallerRefused, TooManyTries."""
        source, now = source_of(peer or ""), self._wall()
        self._wrong.check(source, now)
        try:
            return find()
        except CallerRefused:
            self._wrong.count(source, now)
            raise

    async def _seen_at(self, phone_id: NodeId, host: str, port: int) -> ProbeReport:
        """A phone with its own token has come from there. Raises GatewayError."""
        self._sightings.refuse_copy(self._node(phone_id), host, self._wall())
        return await self._lookout.look_at(host, port)

    async def _move(self, known: NodeSpec, host: str, wanted: Edit) -> None:
        await self._ledger.change(wanted)
        if registration.place_of(known) != host:
            self._sightings.moved(known.id, registration.place_of(known), self._wall())

    def _refuse_taken_id(self, phone_id: NodeId, host: str) -> None:
        """An invitation adds a phone, and takes the place of none that is there."""
        node = self._registry.node(phone_id)
        if node is None:
            return
        if node.spec.origin != "file":
            raise RequestInvalid("a node that is not in the fleet file has this id", field="id")
        refuse_stranger(node, host)

    def _node(self, phone_id: NodeId) -> Node:
        node = self._registry.node(phone_id)
        if node is None:
            raise CallerRefused("this phone was removed from the fleet", status=401)
        return node

    def _names_at(self, port: int) -> set[str]:
        """The host names by which the owner has listed what serves at this port."""
        specs = [node.spec for node in self._registry.fleet.nodes.values() if node.spec.origin == "file"]
        return {spec.host for spec in specs if spec.port == port and registration.is_named(spec)}

    def _admitted(self, invitation: Invitation, entered: Callable[[], Sequence[NodeSpec]]) -> Sequence[NodeSpec]:
        """Asked at the last moment: the invitation may have been withdrawn while the phone was looked at."""
        self._invitations.known(invitation).refuse_withdrawn()
        return entered()

    def _used(self, invitation: Invitation, phone_id: NodeId) -> None:
        """The phone stands in the fleet file."""
        self._invitations.use(invitation)
        self._kept.write(self._invitations.kept)
        self.registered_at[phone_id] = self._wall()

    def _renewed(self, specs: Sequence[NodeSpec], phone: Registration, host: str) -> Sequence[NodeSpec]:
        """Like a phone that joins, but for one that must still be there."""
        edited(specs, phone.id, lambda spec: spec)
        return registration.joined(specs, phone, host)

    def _listed(self, phone_id: NodeId, report: ProbeReport | None) -> str | None:
        """What was found while looking serves as the first probe. Returns the phone's name, where the file that was
        just written has not been broken since.
        """
        node = self._registry.node(phone_id)
        if node is None:
            return None
        if report is not None:
            self._registry.emit(NodeProbed(phone_id, report, self._wall()))
        return node.name
