"""What the errors carry, and that telling one again loses nothing."""

from __future__ import annotations

from transport.errors import ConnectFailed, ConnectionLost, ProtocolBroken, Refused, TransportError
from wire.errors import BadChecksum
from wire.messages_session import Error, ErrorCode


def test_all_have_one_root() -> None:
    import transport.errors as errors

    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, TransportError) for kind in kinds) and len(kinds) > 5


def test_a_failed_connection_names_the_address() -> None:
    error = ConnectFailed("127.0.0.1:8765", "connection refused")
    assert (error.address, error.reason, str(error)) == (
        "127.0.0.1:8765",
        "connection refused",
        "127.0.0.1:8765: connection refused",
    )


def test_a_loss_is_told_again_as_another_object() -> None:
    lost = ConnectionLost("gone", ErrorCode.STOPPING)
    again = lost.again()
    assert again is not lost and (again.reason, again.code) == ("gone", ErrorCode.STOPPING)
    broken = ProtocolBroken(BadChecksum("bytes changed"))
    assert isinstance(broken, ConnectionLost) and broken.code is ErrorCode.BAD_CHECKSUM
    assert broken.again().error is broken.error and "BadChecksum: bytes changed" in str(broken)


def test_a_refusal_is_what_the_message_says() -> None:
    refused = Refused.by(Error(ErrorCode.NO_ROOM, "full", 20, (("free_bytes", 5),)))
    assert (refused.code, refused.text, refused.retry_after_ms) == (ErrorCode.NO_ROOM, "full", 20)
    assert refused.details == {"free_bytes": 5} and str(refused) == "NO_ROOM: full"
    assert str(Refused(ErrorCode.BUSY)) == "BUSY"
