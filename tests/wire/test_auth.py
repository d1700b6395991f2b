from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from wire.auth import NONCE_SIZE, check_proof, proof_of, transcript_of
from wire.errors import OutOfBounds, WrongProof
from wire.state import Role

VECTORS = Path(__file__).parent / "vectors"
CLIENT, SERVER = bytes(range(32)), bytes(range(32, 64))
SAID = transcript_of([b"hello", b"challenge"])


def test_the_proof_is_the_documented_one() -> None:
    said = b"potluck relay 1 client\0" + CLIENT + SERVER + hashlib.sha256(b"\0\0\0\5hello\0\0\0\x09challenge").digest()
    assert proof_of(Role.CLIENT, "secret", CLIENT, SERVER, SAID) == hmac.new(b"secret", said, hashlib.sha256).digest()


@pytest.mark.parametrize("role", Role)
def test_the_proof_is_that_of_the_vector(role: Role) -> None:
    text = (VECTORS / f"proof-{role.value}.hex").read_text()
    proof = bytes.fromhex("".join(line for line in text.splitlines() if not line.startswith("#")))
    assert proof_of(role, "secret", CLIENT, SERVER, SAID) == proof


@pytest.mark.parametrize(
    "other",
    [
        (Role.SERVER, "secret", CLIENT, SERVER, SAID),
        (Role.CLIENT, "Secret", CLIENT, SERVER, SAID),
        (Role.CLIENT, "secret", SERVER, CLIENT, SAID),
        (Role.CLIENT, "secret", CLIENT, CLIENT, SAID),
        (Role.CLIENT, "secret", CLIENT, SERVER, transcript_of([b"hellochallenge"])),
    ],
)
def test_a_proof_of_anything_else_is_wrong(other) -> None:
    proof = proof_of(Role.CLIENT, "secret", CLIENT, SERVER, SAID)
    check_proof(proof, proof)
    with pytest.raises(WrongProof):
        check_proof(proof_of(*other), proof)


@pytest.mark.parametrize("nonce", [b"", bytes(NONCE_SIZE - 1), bytes(NONCE_SIZE + 1)])
def test_short_nonces_and_empty_tokens_are_our_own_fault(nonce: bytes) -> None:
    with pytest.raises(OutOfBounds):
        proof_of(Role.CLIENT, "secret", nonce, SERVER, SAID)
    with pytest.raises(OutOfBounds):
        proof_of(Role.CLIENT, "secret", CLIENT, nonce, SAID)
    with pytest.raises(OutOfBounds):
        proof_of(Role.CLIENT, "", CLIENT, SERVER, SAID)


def test_a_proof_of_another_size_is_wrong() -> None:
    with pytest.raises(WrongProof):
        check_proof(b"", proof_of(Role.CLIENT, "secret", CLIENT, SERVER, SAID))
