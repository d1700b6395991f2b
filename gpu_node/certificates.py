"""The relay's TLS: a context made of the files that the settings name, or one sentence that says what is wrong."""

from __future__ import annotations

import ssl
from pathlib import Path

from gpu_node.errors import UsageError


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """TLS 1.2 and later. Raises `UsageError`; never asks for a pass phrase, since nobody may be there to answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        _check_readable(path)
    try:
        context.load_cert_chain(certificate, key, password=_refuse)
    except ssl.SSLError as error:
        told = f"{certificate}" if key is None else f"{certificate} and {key}"
        raise UsageError(f"{told} cannot be used for TLS: {_reason(error)}") from error
    return context


def _check_readable(path: Path | None) -> None:
    try:
        if path is not None:
            path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse() -> str:
    raise UsageError("the key for TLS is locked by a pass phrase: give one that is not (openssl pkey -in … -out …)")


def _reason(error: ssl.SSLError) -> str:
    match error.reason:
        case "KEY_VALUES_MISMATCH":
            return "the key is not that of the certificate"
        case "EE_KEY_TOO_SMALL" | "CA_KEY_TOO_SMALL" | "CA_MD_TOO_WEAK":
            return "it is too weak by today's measure"
        case _:
            return "a certificate and its key in PEM form are wanted"
