"""Open invitations on disk, so that a gateway which starts anew still lets in the phones that are being set up.

Hashes only, for the owner only, written whole or not at all. Losing the file costs new invitations and nothing else, so
nothing here raises: what cannot be read is nothing, what cannot be written is said once. Must not know tokens.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.phones.invitations import MOST_REMEMBERED, Invitation
from server.whole_file import for_owner_only, write_whole

LARGEST_BYTES = 1024 * 1024
DIGEST_BYTES = 32

log = logging.getLogger(__name__)


def invitations_path(fleet_file: Path) -> Path:
    """`phones.json` has its invitations in `phones.invitations.json`."""
    return fleet_file.with_name(f"{fleet_file.name.removesuffix('.json')}.invitations.json")


class InvitationsFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = False

    def read(self) -> list[Invitation]:
        try:
            with self.path.open("rb") as file:
                records = json.loads(file.read(LARGEST_BYTES))["invitations"]
            return [_invitation(record) for record in records[:MOST_REMEMBERED]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            log.warning("%s cannot be read (%s); phones have to be invited anew", self.path, problem)
            return []

    def write(self, invitations: Iterable[Invitation]) -> None:
        """Not waited for to reach the disk: after a power cut an invitation is asked for anew."""
        records = [asdict(one) | {"digest": one.digest.hex()} for one in invitations]
        try:
            write_whole(self.path, json.dumps({"invitations": records}, indent=2), for_owner_only, durable=False)
        except OSError as problem:
            if not self._told:
                log.warning("%s cannot be written (%s); a restart voids invitations", self.path, problem.strerror)
            self._told = True


def _invitation(record: Any) -> Invitation:
    """Raises ValueError, KeyError, TypeError."""
    digest, model, state = bytes.fromhex(record["digest"]), record["model"], record["state"]
    if len(digest) != DIGEST_BYTES or state not in ("open", "used", "withdrawn") or not isinstance(model, str | None):
        raise ValueError("one is broken")
    begun_at = None if record["begun_at"] is None else _time(record["begun_at"])
    return Invitation(digest, _time(record["made_at"]), _time(record["expires_at"]), model, begun_at, state)


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("one has no time")
    return float(value)
