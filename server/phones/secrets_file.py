"""The phones' own tokens, hashed, in a file beside the fleet file that only its owner may read.

Written whole or not at all. Invariant: no token is ever in it, only SHA-256 of it, so that who reads the file can
speak for no phone. Must not know what a token is used for.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from pathlib import Path

from server.errors import FleetFileUnusable
from server.nodes import NodeId
from server.phones.invitations import digest_of
from server.phones_file import Signature, signature_of
from server.whole_file import for_owner_only, write_whole

LARGEST_BYTES = 4 * 1024 * 1024


def secrets_path(fleet_file: Path) -> Path:
    """`phones.json` has its secrets in `phones.secrets.json`. Another ending stays: it may be what makes it unique."""
    return fleet_file.with_name(f"{fleet_file.name.removesuffix('.json')}.secrets.json")


class Secrets:
    """Phone to the hash of its token. Read at first use, and when the file has changed. All raise FleetFileUnusable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hashes: dict[NodeId, bytes] | None = None
        self._seen: Signature | None = None

    def holder(self, token: str) -> NodeId | None:
        """Whose token it is. Looks at all of them, so that the time taken tells nothing."""
        digest = digest_of(token)
        found = None
        for phone, known in self._known().items():
            if hmac.compare_digest(known, digest):
                found = phone
        return found

    def knows(self, phone: NodeId) -> bool:
        return phone in self._known()

    def give(self, phone: NodeId, token: str) -> bytes | None:
        """From now on this is the phone's token, and an older one, whose hash is returned, is none."""
        before = self._known().get(phone)
        self._write({**self._known(), phone: digest_of(token)})
        return before

    def take(self, phone: NodeId) -> None:
        """The phone has none any more."""
        self.restore(phone, None)

    def restore(self, phone: NodeId, before: bytes | None) -> None:
        """As it was before a `give` that came to nothing."""
        known = self._known()
        if known.get(phone) != before:
            others = {other: digest for other, digest in known.items() if other != phone}
            self._write(others if before is None else {**others, phone: before})

    def _known(self) -> dict[NodeId, bytes]:
        """Read anew where somebody else has written the file. One that has vanished is no order to forget everybody."""
        signature = signature_of(self.path)
        if self._hashes is None or (signature is not None and signature != self._seen):
            self._hashes, self._seen = _read(self.path), signature
        return self._hashes

    def _write(self, hashes: dict[NodeId, bytes]) -> None:
        try:
            _save(self.path, hashes)
        except OSError as problem:
            raise FleetFileUnusable(f"{self.path} cannot be written: {problem.strerror or problem}") from problem
        self._hashes, self._seen = hashes, signature_of(self.path)


def _read(path: Path) -> dict[NodeId, bytes]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST_BYTES))
        return {NodeId(phone): bytes.fromhex(digest) for phone, digest in content["phones"].items()}
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise FleetFileUnusable(f"{path} cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise FleetFileUnusable(f"{path} is broken; without it joined phones have to be invited again") from problem


def _save(path: Path, hashes: Mapping[NodeId, bytes]) -> None:
    text = json.dumps({"phones": {phone: digest.hex() for phone, digest in hashes.items()}}, indent=2) + "\n"
    write_whole(path, text, for_owner_only)
