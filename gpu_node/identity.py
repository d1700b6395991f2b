"""Who this node is, for clients and gateways that find it again at another address or after a restart.

The id stays: it is made of a random number that is kept on disk, the machine's name, and the place that the relay was
asked to listen at, since several nodes may share their folder, of one machine and of several (a network drive, a volume
of containers). Where nothing can be kept, or the port is any free one, the id is a new one each time.
The incarnation is higher after every start, by the clock. Must not know who is told.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from wire.beacon import NODE_ID_BYTES

log = logging.getLogger("gpu_node")

FILE_NAME = "node-identity"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    name: str
    node_id: bytes
    incarnation: int


def identity_of(folder: Path, place: tuple[str, int], name: str = "", machine: str | None = None) -> Identity:
    """`folder` outlives the node (its cache); `place` is what the relay was asked to listen at, port 0 for any.

    `name`: the machine's where it is empty. `machine`: this one's where it is None."""
    machine = socket.gethostname() if machine is None else machine
    host, port = place
    secret = kept_secret(folder / FILE_NAME) if port else secrets.token_bytes(SECRET_BYTES)
    seat = f"{machine}\0{host}\0{port}".encode(errors="replace")
    node_id = hashlib.sha256(secret + seat).digest()[:NODE_ID_BYTES]
    return Identity(name or machine or "node", node_id, time.time_ns() // 1_000_000)


def kept_secret(path: Path) -> bytes:
    """What the file holds, made where there is none; two nodes that start at once agree. Never raises OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path)
        kept = path.read_bytes()
    except OSError as error:
        log.debug("the node's identity cannot be kept: %s", error)
        kept = b""
    return kept if len(kept) == SECRET_BYTES else secrets.token_bytes(SECRET_BYTES)


def _make(path: Path) -> None:
    """Whole or not at all, and never in place of another's."""
    if path.exists() and path.stat().st_size == SECRET_BYTES:
        return
    new = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        new.write_bytes(secrets.token_bytes(SECRET_BYTES))
        new.chmod(0o600)
        if path.exists():  # cut short by a full disk
            os.replace(new, path)
        else:
            os.link(new, path)
    except FileExistsError:  # the other node was quicker
        pass
    finally:
        new.unlink(missing_ok=True)
