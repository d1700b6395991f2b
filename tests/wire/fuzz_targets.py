"""What bytes are thrown at: functions that return, or raise something that no peer may cause.

`TARGETS` by name; `run` picks one by the first byte, so that one corpus serves all. Used by hypothesis in the tests
and by atheris in `python -m tests.wire.atheris_run`.
"""

from __future__ import annotations

import hmac
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.wire.fuzz_connection import connection_story, raw_connection, stories
from tests.wire.sides import ACTIONS, Sides
from transport.codec import Lz4Codec
from wire.beacon import Replays, pack_beacon, unpack_beacon
from wire.codec import decode
from wire.errors import RemoteError
from wire.frames import FrameType
from wire.handshake import Accepted, ClientHandshake, ClientTerms, ServerHandshake, ServerTerms
from wire.messages import decode_chunk, decode_message, encode_chunk, encode_message, without_proof
from wire.messages_work import Tokens
from wire.tensors import check_piece, pack_tensor_header, place, split_piece

__all__ = ["SEEDS", "TARGETS", "run", "seeds"]

KINDS = tuple(FrameType)
TOKEN = "correct horse battery staple"
VECTORS = Path(__file__).parent / "vectors"
ROOM = bytearray(1 << 12)


def message(data: bytes) -> None:
    """The first byte is the type. What can be read is written, and read as the same again."""
    kind, payload = KINDS[data[0] % len(KINDS)] if data else FrameType.PING, data[1:]
    is_chunk = kind is FrameType.DATA
    try:
        read = decode_chunk(payload) if is_chunk else decode_message(kind, payload)
    except RemoteError:
        return
    written = b"".join(encode_chunk(read) if is_chunk else encode_message(read))  # type: ignore[arg-type]
    assert len(written) <= len(payload)
    assert (decode_chunk(written) if is_chunk else decode_message(kind, written)) == read
    if kind in (FrameType.HELLO, FrameType.WELCOME):
        blank = without_proof(kind, payload)
        assert without_proof(kind, blank) == blank


def tokens(data: bytes) -> None:
    """The short way and the codec read the same, faults too."""
    heard = []
    for read in (lambda: decode_message(FrameType.TOKENS, data), lambda: decode(data, Tokens)):
        try:
            heard.append(repr(read()))
        except RemoteError as error:
            heard.append(f"{type(error).__name__}: {error}")
    assert heard[0] == heard[1]


def tensor(data: bytes) -> None:
    """A header, sealed when the first byte is odd, and the bytes of its piece."""
    seal, data = data[:1] > b"\x7f", data[1:]
    if seal and len(data) >= 64:
        data = data[:60] + zlib.crc32(data[:60]).to_bytes(4, "big") + data[64:]
    try:
        header, piece = split_piece(data, zlib.crc32)
        assert pack_tensor_header(header, zlib.crc32) == data[:64] and len(piece) == header.size
        assert header.offset + header.size <= header.tensor_size
        check_piece(header, piece, zlib.crc32)
        place(header, ROOM)[:] = piece
    except RemoteError:
        return


def beacon(data: bytes) -> None:
    """A datagram; the first byte says whether we have a token and whether the sender had it."""
    how, data = data[0] if data else 0, data[1:]
    token = TOKEN if how & 1 else None
    if how & 2:
        data += hmac.digest(TOKEN.encode(), b"potluck beacon 1\0" + data, "sha256")
    try:
        read, signed = unpack_beacon(data, token)
    except RemoteError:
        return
    assert signed or token is None
    replays = Replays()
    if replays.is_news(read, read.sent_ms):
        assert not replays.is_news(read, read.sent_ms)
    assert unpack_beacon(pack_beacon(read, token), token)[0] == read


def handshake(data: bytes) -> None:
    """Payloads out of nowhere get nobody in who has no token, whatever was said before."""
    how, data = data[0] if data else 0, data[1:]
    token = None if how & 1 else TOKEN
    client = ClientHandshake(ClientTerms("laptop", token, ("lz4",), bytes(32)), bytes(32))
    server = ServerHandshake(ServerTerms("tower", token, ("lz4",)), bytes(range(32)))
    first = client.begin()
    try:
        challenge = server.receive(first if how & 2 else data)
        if how & 4 and not isinstance(challenge, Accepted):
            client.receive(challenge.payload, ends=False)
        said = server.receive(data)
        assert token is None or not isinstance(said, Accepted)
    except RemoteError:
        pass
    try:
        client.receive(data, ends=bool(how & 8))
        assert token is None or client.welcome is None
    except RemoteError:
        pass


def compressed(data: bytes) -> None:
    """Any block, said to be of any size: that many bytes, or a fault that the connection tells the peer."""
    size = int.from_bytes(data[:3], "big") % ((1 << 20) + 1)
    try:
        plain = Lz4Codec().decompress(data[3:], size)
    except ValueError:
        return
    assert len(plain) == size


def sides(data: bytes) -> None:
    """Two honest sides, three bytes an action: nobody is ever at fault."""
    both, sizes = Sides(), (0, 10, 30_000, 200_000)
    for at in range(0, min(len(data), 240) - 2, 3):
        both.act(ACTIONS[data[at] % len(ACTIONS)], data[at + 1] % 6, sizes[data[at + 2] % 4])
    both.finish()
    both.check_that_all_is_over()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "connection": connection_story,
    "raw": raw_connection,
    "message": message,
    "tokens": tokens,
    "tensor": tensor,
    "beacon": beacon,
    "handshake": handshake,
    "compressed": compressed,
    "sides": sides,
}
_IN_ORDER = tuple(TARGETS.values())


def run(data: bytes) -> None:
    """The first byte picks the target, the rest is for it."""
    _IN_ORDER[data[0] % len(_IN_ORDER) if data else 0](data[1:])


def seeds() -> Iterator[tuple[str, bytes]]:
    """Target and bytes: every vector where it belongs, and stories that end well."""
    for path in sorted(VECTORS.glob("*.hex")):
        for name, data in _vectors(path):
            yield from _seeds_of(path.stem, name, data)
    yield "compressed", (300).to_bytes(3, "big") + bytes(Lz4Codec().compress(b"word " * 60))
    yield "sides", bytes((0, 0, 1, 8, 0, 3, 2, 0, 2, 8, 0, 3, 5, 0, 1, 9, 0, 3, 4, 0, 0, 6, 0, 0))
    for story in stories():
        yield "connection", story


def _vectors(path: Path) -> Iterator[tuple[str, bytes]]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    if not any(sign in line for line in lines for sign in "=~!"):
        yield path.stem, bytes.fromhex("".join(lines))
        return
    for line in lines:
        name, _, *digits = line.split(" ")
        yield name, bytes.fromhex("".join(digits))


def _seeds_of(file: str, name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    match file:
        case "messages":
            kind = FrameType[name.split("/")[0]]
            yield "message", bytes((KINDS.index(kind),)) + data
            if kind is FrameType.TOKENS:
                yield "tokens", data
        case "tensors":
            yield "tensor", b"\x01" + data
        case "beacons":
            yield "beacon", bytes((0 if "open" in name else 1,)) + data
        case "handshake":
            for how in (0, 2, 6, 8, 14, 1, 9):
                yield "handshake", bytes((how,)) + data
        case _:
            yield "raw", data


SEEDS = tuple(seeds())
