"""Who may call: the keys, the private network, and browsers' pages from elsewhere.

Without keys: callers on loopback and private ranges only, and no page that this machine did not serve, neither by
`Origin` nor by a name of its own that points here (`Host`). With keys the key alone decides, compared in constant time.
Decisions are pure; a key's text appears in no message, log line or caller id.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from urllib.parse import urlsplit

from server.errors import CallerRefused
from server.exchange import CallerId

# Address ranges from which callers need no key. Not the shared range 100.64.0.0/10: a provider's customers meet there.
_PRIVATE_RANGES = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
_KEY_HINT = "send it as 'Authorization: Bearer …', 'X-API-Key' or 'X-API-TOKEN'"
_NO_KEY_HINT = "set POTLUCK_API_KEYS and send a key to call from outside the private network"
# Every header by which a proxy on this machine admits that the caller is somebody else.
FORWARDING_HEADERS = (b"x-forwarded-for", b"forwarded", b"x-real-ip")


@dataclass(frozen=True, slots=True)
class AccessRules:
    """`keys` maps the hash of each key to its name; no keys means the private network."""

    keys: Mapping[bytes, str] = field(default_factory=dict)
    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    @property
    def needs_key(self) -> bool:
        return bool(self.keys)

    def caller(self, address: tuple[str, int] | None, headers: Mapping[bytes, bytes], local: bool) -> CallerId:
        """Who calls. Raises CallerRefused (401 or 403). `local`: the connection came by a Unix socket."""
        if self.keys:
            return CallerId(f"key:{self._key_name(headers)}")
        host = self._network_caller(address, headers, local)
        self._check_host(headers.get(b"host"))
        self._check_origin(headers)
        return CallerId(f"ip:{host}")

    def _key_name(self, headers: Mapping[bytes, bytes]) -> str:
        given = given_key(headers)
        if given is None:
            raise CallerRefused("an API key is needed", status=401, hint=_KEY_HINT)
        name = self._matching(given)
        if name is None:
            raise CallerRefused("this API key is not known here", status=401, hint=_KEY_HINT)
        return name

    def _matching(self, given: bytes) -> str | None:
        """Looks at every key, so that the time taken tells nothing about them."""
        digest = sha256(given).digest()
        found = None
        for known, name in self.keys.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _network_caller(self, address: tuple[str, int] | None, headers: Mapping[bytes, bytes], local: bool) -> str:
        if address is None:
            if local and not any(name in headers for name in FORWARDING_HEADERS):
                return "unix"
            raise CallerRefused("the caller's address is not known", hint=_NO_KEY_HINT)
        if not is_private(address[0]):
            raise CallerRefused("callers from outside the private network need a key", hint=_NO_KEY_HINT)
        return address[0]

    def _check_host(self, host: bytes | None) -> None:
        if host is not None and not is_own_host(host, self.hosts):
            raise CallerRefused(
                "the Host header names neither an address nor this machine",
                hint="list the name in POTLUCK_ALLOWED_HOSTS if it is yours",
            )

    def _check_origin(self, headers: Mapping[bytes, bytes]) -> None:
        origin = headers.get(b"origin")
        if origin is not None and not self.welcomes(origin, headers.get(b"host")):
            raise CallerRefused(
                "pages of this origin may not call the gateway",
                hint="list it in POTLUCK_ALLOWED_ORIGINS if it is yours",
            )

    def welcomes(self, origin: bytes, host: bytes | None) -> bool:
        """May a page of this origin call? Our own page may, those of this machine, and those that settings list."""
        text = origin.decode("latin-1").lower()
        if text in self.origins or "*" in self.origins:
            return True
        return _is_same_place(text, None if host is None else host.decode("latin-1").lower())


class Exposure:
    """Says once that others can reach the gateway although no key is set."""

    def __init__(self, needs_key: bool, say: Callable[[str], None]) -> None:
        self._silent = needs_key
        self._say = say
        self.address: str | None = None  # where the server was told to listen, where that is known

    def listens(self, address: str | None) -> None:
        self.address = address
        self.note(address)

    def note(self, address: str | None) -> None:
        """The server listens, or was called, at this address."""
        if self._silent or not address or address == "localhost" or is_loopback(address):
            return
        self._silent = True
        self._say(address)


def access_rules(api_keys: str, allowed_origins: str, allowed_hosts: str) -> AccessRules:
    """From the settings' texts. Raises ValueError, without the key in it, for an unusable one."""
    return AccessRules(
        keys=read_keys(api_keys),
        origins=frozenset(part.lower().rstrip("/") for part in _parts(allowed_origins)),
        hosts=frozenset(host_name(part.lower()) for part in _parts(allowed_hosts)),
    )


def read_keys(api_keys: str) -> dict[bytes, str]:
    """`name:key` entries, separated by commas; an entry without a name is called key1, key2 …"""
    keys: dict[bytes, str] = {}
    for number, entry in enumerate(_parts(api_keys), 1):
        name, separator, key = entry.partition(":")
        if not separator:
            name, key = f"key{number}", entry
        name, key = name.strip(), key.strip()
        if not name or not key:
            raise ValueError(f"entry {number} of POTLUCK_API_KEYS is not 'name:key'")
        if name in keys.values():
            raise ValueError(f"POTLUCK_API_KEYS names '{name}' twice")
        digest = sha256(key.encode()).digest()
        if digest in keys:
            raise ValueError(f"POTLUCK_API_KEYS gives '{keys[digest]}' and '{name}' the same key")
        keys[digest] = name
    return keys


def given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request brings, by whichever of the three headers."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and key.strip():
            return key.strip()
    return headers.get(b"x-api-key") or headers.get(b"x-api-token")


@lru_cache(maxsize=4096)  # callers are few and come often; parsing an address costs more than all other checks
def is_private(host: str) -> bool:
    address = _address(host)
    if address is None:
        return False
    return any(address in network for network in _PRIVATE_RANGES if network.version == address.version)


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback


@lru_cache(maxsize=1024)
def is_own_host(host: bytes, allowed: frozenset[str]) -> bool:
    """Does the Host header name an address, this machine, or what the settings allow?"""
    name = host_name(host.decode("latin-1").lower())
    return is_address_or_local(name) or name in own_names() or name in allowed or "*" in allowed


@lru_cache(maxsize=1024)
def is_address_or_local(name: str) -> bool:
    """An IP address, `localhost` or a name below it: nobody else's name server can answer for these."""
    return name == "localhost" or name.endswith(".localhost") or _address(name) is not None


@lru_cache(maxsize=1)
def own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return frozenset({name, short, f"{short}.local"})


def host_name(host: str) -> str:
    """The name in a Host header, without port, brackets and the root's dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") > 1:
        return host  # a bare IPv6 address
    return host.partition(":")[0].rstrip(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_same_place(origin: str, host: str | None) -> bool:
    """Is the origin the very server that is asked, or another on this machine's loopback?"""
    try:
        parts = urlsplit(origin)
        name, port = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not name:
        return False
    if name == "localhost" or name.endswith(".localhost") or is_loopback(name):
        return True
    default = ":80" if parts.scheme == "http" else ":443"
    return host is not None and parts.netloc.removesuffix(default) == host.removesuffix(default) and port != 0


def _parts(setting: str) -> Iterable[str]:
    return [part.strip() for part in setting.split(",") if part.strip()]
