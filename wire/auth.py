"""Proof of a shared token without showing it: HMAC-SHA256 over both nonces and what was said so far (RFC 2104).

Each side sends a fresh nonce and proves the token over both, so a recorded proof is good for nothing. The sides prove
under different names, so a proof cannot be sent back to its maker. The transcript is in it, so nobody can take a
version or a capability out of the handshake. It protects the handshake alone: what follows is as safe as the line,
which TLS is for. Randomness comes from the caller.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from wire.errors import OutOfBounds, WrongProof
from wire.frames import Buffer
from wire.state import Role

__all__ = ["NONCE_SIZE", "PROOF_SIZE", "check_proof", "proof_of", "transcript_of"]

NONCE_SIZE = 32  # as long as the hash: two peers never draw the same
PROOF_SIZE = 32
_LABELS = {Role.CLIENT: b"potluck relay 1 client\0", Role.SERVER: b"potluck relay 1 server\0"}


def transcript_of(payloads: Iterable[Buffer]) -> bytes:
    """SHA-256 over the handshake's payloads so far, each behind its length as 4 bytes, big-endian."""
    digest = hashlib.sha256()
    for payload in payloads:
        digest.update(len(payload).to_bytes(4, "big"))
        digest.update(payload)
    return digest.digest()


def proof_of(role: Role, token: str, client_nonce: bytes, server_nonce: bytes, transcript: bytes) -> bytes:
    """The 32 bytes with which `role` proves that it knows `token`. Raises OutOfBounds for a nonce of another size."""
    if not token or len(client_nonce) != NONCE_SIZE or len(server_nonce) != NONCE_SIZE:
        raise OutOfBounds(f"a proof needs a token and two nonces of {NONCE_SIZE} bytes")
    said = _LABELS[role] + client_nonce + server_nonce + transcript
    return hmac.digest(token.encode(), said, "sha256")


def check_proof(proof: Buffer, expected: bytes) -> None:
    """Compares in a time that tells nothing. Raises WrongProof."""
    if not hmac.compare_digest(bytes(proof), expected):
        raise WrongProof("the peer does not know the token")
