"""How phones come in: /join with the set-up script, /api/phones/join and /api/phones/report.

Open without an API key, since phones have none: an invitation or the phone's own token is asked for instead. Bodies are
small and read in bounds; nothing of a token gets into a log, an error or a header. Must not know how phones are kept.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from server.api import fields
from server.api.access import FORWARDING_HEADERS, given_key, is_loopback
from server.api.incoming import Incoming
from server.api.services import Services
from server.care import Condition, parse_termux_battery, parse_thermal_report, renewed
from server.errors import CallerRefused, PathUnknown, RequestInvalid, TooManyTries
from server.exchange import CallerId
from server.http_errors import Header, error_headers
from server.nodes import NodeId
from server.phones import Registration
from server.phones.reach import HIGHEST_PORT, LOWEST_PORT, callable_host
from server.phones.registration import PHONE_ID, plain

JOIN_PREFIX = "/join/"
SCRIPT_TYPE = b"text/x-shellscript; charset=utf-8"
BODY_LIMIT_BYTES = 16 * 1024  # a phone tells twelve fields, or what one command of Termux says
LONGEST_TOKEN = 200
MOST_RAM_BYTES = 1 << 46
FASTEST_TOKENS = 10_000.0
SIGNAL_DBM = (-127, 0)
_NAME = "phone_setup/phone_setup.sh"
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
# A phone's own calls have none of these: who adds them stands between, and the address is his.
_PROXY_HEADERS = (*FORWARDING_HEADERS, b"via", b"x-forwarded-host", b"x-forwarded-proto", b"x-client-ip")
_NEVER_KEPT: list[Header] = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]

JOIN_FIELDS: dict[str, fields.Check] = {
    "token": fields.text,
    "id": fields.text,
    "name": fields.text,
    "port": fields.integer(LOWEST_PORT, HIGHEST_PORT),
    "chip": fields.text,
    "ram_bytes": fields.integer(0, MOST_RAM_BYTES),
    "android": fields.text,
    "termux": fields.text,
    "ollama": fields.text,
    "mode": fields.one_of("native", "proot", "usb"),
    "model": fields.text,
    "tokens_per_second": fields.number(0, FASTEST_TOKENS),
}
_TOLD = ("chip", "ram_bytes", "android", "termux", "ollama", "mode", "model", "tokens_per_second")
REPORT_FIELDS: dict[str, fields.Check] = {"battery": fields.record, "thermal": fields.record, "wifi": fields.record}


def find_script() -> bytes | None:
    """The set-up script: of this checkout, or as it was installed. None where the installation lacks it."""
    for folder in (Path(__file__).parents[2], Path(sys.prefix) / "share" / "potluck"):
        if (folder / _NAME).is_file():
            return (folder / _NAME).read_bytes()
    return None


class JoinApi:
    def __init__(self, services: Services) -> None:
        self._services, self._joining = services, services.joining
        self._script = find_script()

    async def script(self, incoming: Incoming) -> None:
        """The plain script: who has it still needs an invitation."""
        await self._send(incoming, self._found(incoming))

    async def invited(self, incoming: Incoming) -> None:
        """The script with this gateway's address and the token in front; for a bad token one that says so."""
        script, token = self._found(incoming), incoming.path.removeprefix(JOIN_PREFIX)
        incoming.caller = _caller(incoming)
        try:
            if len(token) > LONGEST_TOKEN:
                raise CallerRefused("this invitation is not known here")
            _check_place(incoming)
            # Who asks for the head alone, as previews of links do, sets up nothing.
            come = self._joining.see if incoming.method == "HEAD" else self._joining.begin
            invitation = come(token, _peer(incoming))
        except (CallerRefused, RequestInvalid, TooManyTries) as error:
            await self._send_away(incoming, error)
            return
        lines = [f"POTLUCK_GATEWAY={shlex.quote(address_of(incoming))}", f"POTLUCK_TOKEN={shlex.quote(token)}"]
        if invitation.model is not None:
            lines.append(f"POTLUCK_MODEL={shlex.quote(invitation.model)}")
        await self._send(incoming, "\n".join([*lines, ""]).encode() + script)

    async def _send_away(self, incoming: Incoming, error: CallerRefused | RequestInvalid | TooManyTries) -> None:
        """A refusal for somebody who pipes whatever comes into a shell."""
        self._services.log.refused(incoming, error)
        unknown = isinstance(error, CallerRefused)
        then = "ask for a new one" if unknown else error.hint
        words = f"{error.message[:1].upper()}{error.message[1:]}" + (f"; {then}." if then else ".")
        incoming.reply.headers += error_headers(error)
        script = f"echo {shlex.quote(words)} >&2\nexit 1\n".encode()
        await self._send(incoming, script, 404 if unknown else error.http_status)

    async def join(self, incoming: Incoming) -> None:
        self._check_way(incoming)
        body = fields.known_only(await incoming.json(), JOIN_FIELDS)
        phone, own = registration_of(body), given_key(incoming.headers)
        if (_peer(incoming), phone.port) == incoming.scope.get("server"):
            raise RequestInvalid("this is the gateway itself, and no phone", field="port")
        if "token" in body:
            joined = await self._joining.join(body["token"], phone, _peer(incoming))
        elif own is not None:
            joined = await self._joining.come_again(own.decode("latin-1"), phone, _peer(incoming))
        else:
            raise CallerRefused("an invitation is needed", status=401, hint="make one: potluck phones invite")
        answer = {"id": joined.id, "name": joined.name, "report_url": f"{address_of(incoming)}/api/phones/report"}
        if joined.phone_token is not None:
            answer["phone_token"] = joined.phone_token
        incoming.reply.headers += _NEVER_KEPT
        await incoming.reply.answer_json(answer)

    async def report(self, incoming: Incoming) -> None:
        self._check_way(incoming)
        own = given_key(incoming.headers)
        if own is None:
            raise CallerRefused("the phone's own token is needed", status=401)
        peer = _peer(incoming)
        phone = self._joining.holder(own.decode("latin-1"), peer)
        body = fields.known_only(await incoming.json(), REPORT_FIELDS)
        await self._joining.report(phone, condition_of(body, time.time()), signal_of(body), peer)
        await incoming.reply.answer_empty()

    def _check_way(self, incoming: Incoming) -> None:
        """Phones come by themselves: neither a page in a browser nor a proxy may speak for one."""
        incoming.caller = _caller(incoming)
        incoming.body_limit = min(incoming.body_limit, BODY_LIMIT_BYTES)
        _check_proxy(incoming)
        if b"origin" in incoming.headers:
            raise CallerRefused("phones join by the set-up script, not from a page")

    def _found(self, incoming: Incoming) -> bytes:
        if self._script is None:
            raise PathUnknown("/join")
        return self._script

    async def _send(self, incoming: Incoming, script: bytes, status: int = 200) -> None:
        incoming.reply.headers += _NEVER_KEPT
        await incoming.reply.answer(script, SCRIPT_TYPE, status)


def registration_of(body: dict[str, Any]) -> Registration:
    """Raises RequestInvalid."""
    for name in ("id", "port"):
        if name not in body:
            raise RequestInvalid(f"'{name}' is missing", field=name)
    if not PHONE_ID.fullmatch(body["id"]):
        raise RequestInvalid("'id' must be 32 hexadecimal figures", field="id")
    if body.get("mode") == "usb":
        raise RequestInvalid(
            "a phone that listens for a cable only does not join over the network",
            field="mode",
            hint="plug it into the gateway's machine, which finds it by adb; or set it up with --wifi",
        )
    told = {name: plain(word) if isinstance(word := body[name], str) else word for name in _TOLD if name in body}
    details = {name: word for name, word in told.items() if word not in ("", 0)}
    return Registration(NodeId(body["id"]), plain(body.get("name", "")) or "phone", body["port"], details)


def condition_of(body: dict[str, Any], now: float) -> Condition:
    """Battery and heat as the phone tells them; what means nothing is not told. `now`: wall clock seconds."""
    thermal = parse_thermal_report(body.get("thermal", {}), now)
    return renewed(thermal, parse_termux_battery(body.get("battery", {}), now))


def signal_of(body: dict[str, Any]) -> int | None:
    rssi = body.get("wifi", {}).get("rssi")
    return rssi if type(rssi) is int and SIGNAL_DBM[0] < rssi < SIGNAL_DBM[1] else None


def address_of(incoming: Incoming) -> str:
    """The gateway as the phone has reached it: the phone's own word where that can be an address and nothing else."""
    scheme = "https" if incoming.scope.get("scheme") == "https" else "http"
    host = incoming.header(b"host") or ""
    if not _HOST.fullmatch(host):
        server = incoming.scope.get("server") or ("127.0.0.1", 8000)
        host = f"[{server[0]}]:{server[1]}" if ":" in server[0] else f"{server[0]}:{server[1]}"
    return f"{scheme}://{host}"


def _check_proxy(incoming: Incoming) -> None:
    if any(name in incoming.headers for name in _PROXY_HEADERS):
        raise RequestInvalid("a phone cannot join through a proxy", hint="use the gateway's own address")


def _check_place(incoming: Incoming) -> None:
    """Who could not join in the end is told before the downloads. From this machine the script may be looked at."""
    _check_proxy(incoming)
    peer = _peer(incoming)
    if peer is not None and not is_loopback(peer):
        callable_host(peer)


def _caller(incoming: Incoming) -> CallerId:
    """For the log: these calls have no key, and are let in by what they bring."""
    return CallerId(f"ip:{_peer(incoming)}")


def _peer(incoming: Incoming) -> str | None:
    client = incoming.scope.get("client")
    return client[0] if client else None
