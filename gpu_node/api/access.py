"""Who may call. With keys: whoever shows one. Without: loopback and private addresses, and no foreign web page.

Who asks is told to the application: callers get equal turns, and where there are several keys each has prompts of its
own in the cache, so that nobody can tell by the time taken what another one asked. The check of Host and Origin keeps
pages that a browser on this network happens to show from using the node. Pure decisions in `AccessRules`; the
middleware only asks them. Keys are compared in constant time and never logged.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_node.api.pages import PAGE_PREFIX
from gpu_node.api.replies import error_reply
from gpu_node.api.terms import ASKER, Asker

OPEN_PATHS = frozenset({"/live"})
KEY_HEADERS = ("x-api-key", "x-api-token")
LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class AccessRules:
    keys: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # (name, key)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def judge(self, client: str | None, path: str, headers: Mapping[str, str]) -> Refusal | None:
        if path in OPEN_PATHS:
            return None
        if self.keys:
            if self._name_of_key(headers) is not None or is_shell(path, headers):
                return None
            return Refusal(401, "a valid API key is required: Authorization: Bearer, X-API-Key or X-API-TOKEN")
        if not is_near(client):
            return Refusal(403, "without an API key only callers from private networks are served")
        if not self._host_is_ours(headers.get("host", "")):
            return Refusal(403, "this Host is not a name of this machine")
        if not self._origin_is_ours(headers.get("origin"), headers.get("host", "")):
            return Refusal(403, "this Origin may not call")
        return None

    def asker(self, client: str | None, headers: Mapping[str, str]) -> Asker:
        """Call after `judge` has let the request in."""
        name = self._name_of_key(headers) if self.keys else client
        return Asker(name or "", name or "" if len(self.keys) > 1 else "")

    def _name_of_key(self, headers: Mapping[str, str]) -> str | None:
        shown = [headers.get(name, "") for name in KEY_HEADERS]
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            shown.append(token.strip())
        found: str | None = None
        for candidate in shown:
            for name, key in self.keys:  # every key every time: the time taken must not tell which one was near
                if hmac.compare_digest(candidate.encode(), key.encode()):
                    found = name
        return found

    def _host_is_ours(self, host: str) -> bool:
        name = host_name(host)
        return not name or is_address(name) or name in self.hosts or name.endswith(".localhost")

    def _origin_is_ours(self, origin: str | None, host: str) -> bool:
        if origin is None or origin.lower() in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # brackets that hold no address
            return False
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        if host and parts.netloc.lower() == host.lower():
            return True  # the page came from this very node
        return parts.hostname in LOCAL_NAMES or is_loopback(parts.hostname)


def is_shell(path: str, headers: Mapping[str, str]) -> bool:
    """The page without its facts: it is where a browser's reader types the key in."""
    return path.startswith(PAGE_PREFIX) or (path == "/" and "text/html" in headers.get("accept", ""))


def rules_of(api_keys: tuple[str, ...], hosts: tuple[str, ...], origins: tuple[str, ...]) -> AccessRules:
    machine = socket.gethostname().lower()
    own = LOCAL_NAMES | {machine, f"{machine}.local"} | {host.lower() for host in hosts}
    return AccessRules(
        tuple(named_keys(api_keys)), frozenset(own), frozenset(origin.lower().rstrip("/") for origin in origins)
    )


def named_keys(entries: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """`name:key`, or a bare key, which is named after its place."""
    for place, entry in enumerate(entries, start=1):
        name, colon, key = entry.partition(":")
        yield (name, key) if colon else (f"key {place}", entry)


class AccessControl:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            # A header that came twice counts as its last one, in the checks and everywhere else.
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            client = scope.get("client")
            address = client[0] if client else None
            refusal = self._rules.judge(address, scope["path"], headers)
            if refusal is not None:
                reply = error_reply(refusal.message, refusal.status, scope["path"])
                if refusal.status == 401:
                    reply.headers["WWW-Authenticate"] = "Bearer"
                await reply(scope, receive, send)
                return
            scope[ASKER] = self._rules.asker(address, headers)
        await self._app(scope, receive, send)


def is_near(client: str | None) -> bool:
    try:
        address = ipaddress.ip_address((client or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_private or address.is_link_local


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    return is_address(name) and ipaddress.ip_address(name).is_loopback


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return (host if host.count(":") > 1 else host.partition(":")[0]).lower().rstrip(".")
