"""How often one source may try something: a sliding window each, in a bounded table. Pure: time is an argument."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque

from server.errors import TooManyTries
from server.phones.reach import is_private

MOST_SOURCES = 1024
_SITE_BITS = 64  # a host has as many IPv6 addresses of one network as it likes; at home all phones are in one


class Attempts:
    """`limit` tries within `window_seconds` for each source."""

    def __init__(self, limit: int, window_seconds: float) -> None:
        self._limit, self._window = limit, window_seconds
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, source: str, now: float) -> None:
        """Raises TooManyTries while the source has none left. Counts nothing."""
        tries = self._tries.get(source)
        while tries and not now - self._window < tries[0] <= now:  # a clock that was set back locks nobody out
            tries.popleft()
        if tries and len(tries) >= self._limit:
            raise TooManyTries("too many tries from this address", tries[0] + self._window - now)

    def count(self, source: str, now: float) -> None:
        """One more. The source that was heard least lately is forgotten where there are too many."""
        tries = self._tries.setdefault(source, deque(maxlen=self._limit))
        tries.append(now)
        self._tries.move_to_end(source)
        if len(self._tries) > MOST_SOURCES:
            self._tries.popitem(last=False)

    def spend(self, source: str, now: float) -> None:
        """`check`, then `count`."""
        self.check(source, now)
        self.count(source, now)


def source_of(host: str) -> str:
    """What counts as one source: an address of a private network, else an IPv4 address or a whole IPv6 network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if is_private(str(address)):
            return host
        return str(ipaddress.ip_network((address, _SITE_BITS), strict=False))
    return str(address)
