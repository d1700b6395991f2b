"""How the files of vectors are written and read; `python -m tests.wire.vector_files` writes them anew.

A line that begins with `#` says what follows. Every other line is a name, a sign and the bytes as hex digits: `=` what
is written and read for the value above, `~` what is also read as a value, `!` what must be refused.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.wire import vector_values as values
from wire.beacon import pack_beacon
from wire.frames import FrameType
from wire.handshake import Challenge, ClientHandshake, ClientTerms, ServerHandshake, ServerTerms
from wire.messages import decode_message, encode_chunk, encode_message
from wire.messages_work import Chunk
from wire.tensors import pack_tensor_header

FOLDER = Path(__file__).parent / "vectors"
LEGEND = "# NAME = the bytes of the value above, NAME ~ bytes that also mean a value, NAME ! bytes that are refused.\n"


def message_lines() -> Iterator[str]:
    yield "# Payloads by the type of their frame; fields: docs/protocol-messages.md\n"
    yield LEGEND
    for name, value in values.MESSAGES.items():
        data = b"".join(encode_chunk(value) if isinstance(value, Chunk) else encode_message(value))
        yield f"\n# {shown(value)}\n{name} = {data.hex()}\n"
    for name, (digits, same) in values.ALSO.items():
        told = f"the value of {same}" if same else repr(values.OTHERWISE[name])
        yield f"\n# {told}\n{name} ~ {bytes.fromhex(digits).hex()}\n"
    for name, digits in values.REFUSED.items():
        yield f"\n{name} ! {bytes.fromhex(digits).hex()}\n"


def tensor_lines() -> Iterator[str]:
    yield "# Tensor headers; fields: docs/protocol-messages.md\n"
    yield LEGEND
    for name, header in values.TENSORS.items():
        yield f"\n# {header!r}\n{name} = {pack_tensor_header(header, zlib.crc32).hex()}\n"
    good = pack_tensor_header(values.TENSORS["whole-matrix"], zlib.crc32)
    for name, place, digit in values.BROKEN_TENSORS:
        broken = bytearray(good)
        broken[place] = digit
        sealed = name != "wrong-crc"
        yield f"\n{name} ! {(_sealed(broken) if sealed else bytes(broken)).hex()}\n"


def beacon_lines() -> Iterator[str]:
    yield "# Discovery datagrams; fields: docs/protocol-messages.md\n"
    yield LEGEND
    yield f"# Signed ones by the token {values.TOKEN!r}\n"
    for name, (beacon, token) in values.BEACONS.items():
        yield f"\n# {beacon!r}\n{name} = {pack_beacon(beacon, token).hex()}\n"
    signed = pack_beacon(*values.BEACONS["probe-signed"])
    yield f"\nanother-signature ! {signed[:-1].hex()}{signed[-1] ^ 1:02x}\n"
    yield f"\nanother-time ! {signed[:21].hex()}{signed[21] ^ 1:02x}{signed[22:].hex()}\n"


def handshake_lines() -> Iterator[str]:
    yield "# Two whole handshakes, payload by payload in their order; docs/protocol.md section 3\n"
    yield f"# Client's nonce: bytes 0 to 31. Node's: 32 to 63. Session key: 64 to 95. Token: {values.TOKEN!r}\n"
    for name, payload in (*handshake_payloads(values.TOKEN), *handshake_payloads(None)):
        yield f"\n# {shown(decode_message(FrameType[name.split('/')[1]], payload))}\n{name} = {payload.hex()}\n"


def handshake_payloads(token: str | None) -> list[tuple[str, bytes]]:
    """What each side says in a handshake with this token; without one nobody proves anything."""
    client = ClientHandshake(ClientTerms("laptop", token, ("lz4", "later"), signal_dbm=-61), values.NONCE)
    server = ServerHandshake(ServerTerms("tower", token, ("lz4",), bytes(range(16)), 7, 300, 30), values.KEY)
    kind = "token" if token else "open"
    said = [(f"{kind}/HELLO/first", client.begin())]
    answer = server.receive(said[0][1])
    if isinstance(answer, Challenge):
        said.append(("token/WELCOME/challenge", answer.payload))
        proof = client.receive(answer.payload, ends=False)
        assert proof is not None
        said.append(("token/HELLO/proof", proof))
        server.receive(proof)
    return [*said, (f"{kind}/WELCOME/session", server.welcome(values.DIGEST, resumed=False))]


def shown(value: Any) -> str:
    """The value with all its fields, also those that are left out where it is printed."""
    fields = ", ".join(f"{field.name}={getattr(value, field.name)!r}" for field in dataclasses.fields(value))
    return f"{type(value).__name__}({fields})"


def read_vectors(text: str) -> dict[str, tuple[str, bytes]]:
    """Sign and bytes by name."""
    found: dict[str, tuple[str, bytes]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, sign, *digits = line.split(" ")
            assert name not in found, name
            found[name] = sign, bytes.fromhex("".join(digits))
    return found


def _sealed(header: bytearray) -> bytes:
    return bytes(header[:60]) + zlib.crc32(header[:60]).to_bytes(4, "big")


WRITERS = {
    "messages.hex": message_lines,
    "tensors.hex": tensor_lines,
    "beacons.hex": beacon_lines,
    "handshake.hex": handshake_lines,
}

if __name__ == "__main__":
    for file_name, lines in WRITERS.items():
        (FOLDER / file_name).write_text("".join(lines()))
