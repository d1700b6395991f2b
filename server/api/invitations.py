"""The owner's invitations: make one, see which are open, withdraw them. Ordinary calls, with a key where keys are.

A token is told once, to who made it; from then on its invitation goes by the beginning of the token's hash, which opens
nothing. Must not know how phones are kept.
"""

from __future__ import annotations

import asyncio
import io
import re
import socket
from typing import Any

import segno

from server.api import fields
from server.api.fleet import iso_time
from server.api.incoming import Incoming
from server.api.services import Services
from server.backends.resolver import is_address
from server.errors import LoopbackOnly, RequestInvalid
from server.phones.invitations import DEFAULT_MINUTES, LONGEST_MINUTES, SHORTEST_MINUTES, Invitation
from server.phones.links import Link, command_of, links_of
from server.phones.reach import is_private
from transport.interfaces import interfaces, source_towards

INVITATIONS_PREFIX = "/api/phones/invitations/"
# An address of documentation (RFC 5737): nothing is sent there, only the way to it is asked for.
ELSEWHERE = "192.0.2.1"
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}")
_INVITE_FIELDS: dict[str, fields.Check] = {
    "minutes": fields.number(SHORTEST_MINUTES, LONGEST_MINUTES),
    "model": fields.filled_text,
}


class InvitationsApi:
    def __init__(self, services: Services) -> None:
        self._services, self._joining = services, services.joining

    async def invite(self, incoming: Incoming) -> None:
        wish = fields.checked(await incoming.json(), _INVITE_FIELDS)
        model = wish.get("model")
        if model is not None and not _MODEL.fullmatch(model):
            raise RequestInvalid("'model' is no name of a model", field="model")
        links = await self._links(incoming)
        token, invitation = self._joining.invite(wish.get("minutes", DEFAULT_MINUTES), model)
        records = [_link(one, token) for one in links]
        incoming.reply.headers.append((b"cache-control", b"no-store"))
        await incoming.reply.answer_json(
            {
                "id": invitation.id,
                "token": token,
                "made_at": iso_time(invitation.made_at),
                "expires_at": iso_time(invitation.expires_at),
                "links": records,
                "command": records[0]["command"],
                "qr_svg": records[0]["qr_svg"],
            }
        )

    async def listed(self, incoming: Incoming) -> None:
        """GET /api/phones/invitations: those that a phone can still join with."""
        now = self._joining.now
        await incoming.reply.answer_json({"invitations": [_record(one, now) for one in self._joining.invitations]})

    async def withdraw(self, incoming: Incoming) -> None:
        """DELETE /api/phones/invitations/ID."""
        self._joining.withdraw(incoming.path.removeprefix(INVITATIONS_PREFIX))
        await incoming.reply.answer_empty()

    async def _links(self, incoming: Incoming) -> tuple[Link, ...]:
        services, (host, port) = self._services, incoming.scope.get("server") or ("", None)
        listening = services.exposure.address
        if listening is None:  # another server than uvicorn, or a socket that was handed to it
            called_here = port is not None and is_private(host)
            listening = host if called_here else services.settings.host
        # A proxy's word for the scheme is about the proxy: phones come to the gateway's own port.
        by_tls = incoming.scope.get("scheme") == "https" and b"x-forwarded-proto" not in incoming.headers
        scheme = "https" if by_tls else "http"
        asked_at = (host, port or services.settings.port)
        return links_of(await addresses_of(listening), asked_at, interfaces(), source_towards(ELSEWHERE), scheme)


def _record(invitation: Invitation, now: float) -> dict[str, Any]:
    """`expires_at`: until when a phone may join with it, which is later once its script was fetched."""
    record = {
        "id": invitation.id,
        "made_at": iso_time(invitation.made_at),
        "expires_at": iso_time(invitation.joins_until),
        "seconds_left": max(0, round(invitation.joins_until - now)),
        "fetched": invitation.begun_at is not None,
    }
    return record if invitation.model is None else record | {"model": invitation.model}


def _link(link: Link, token: str) -> dict[str, Any]:
    url = link.with_token(token)
    command = command_of(url)
    told = {"url": url, "address": link.address, "interface": link.interface}
    return {**told, "command": command, "qr_svg": qr_svg(command)}


async def addresses_of(host: str) -> tuple[str, ...]:
    """Where a server listens that was told to listen at `host`; a name may have several. Raises LoopbackOnly."""
    if not host or is_address(host):
        return (host,)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise LoopbackOnly(
            f"the gateway listens at '{host}', a name that has no address any more", hint="give --host an address"
        ) from problem
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def qr_svg(text: str) -> str:
    """The code as a picture without size of its own: who shows it decides. Always dark on light."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(
        out,
        kind="svg",
        border=4,
        dark="#000",
        light="#fff",
        omitsize=True,
        xmldecl=False,
        svgclass=None,
        lineclass=None,
    )
    return out.getvalue().decode()
