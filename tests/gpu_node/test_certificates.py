"""Files for TLS: taken, or refused in one sentence."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from gpu_node.certificates import server_context
from gpu_node.errors import UsageError
from tests.transport.certificates import NODE_PEM

# No certificate belongs to it: it only has to be locked.
LOCKED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgJ2mzOEiCFXwICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEHbnGesnod9idp/ThR54kSwEQL3W
YBaNz4CqpJ8BVijzpMH+jGa/FvwSGq4I7c75NZKTh5ip9NxfOe5eYSq5CFVhqfGo
hQIcXch9jFXdzZVK3eY=
-----END ENCRYPTED PRIVATE KEY-----
"""


def test_one_file_or_two(tmp_path: Path) -> None:
    assert server_context(NODE_PEM, None).minimum_version is ssl.TLSVersion.TLSv1_2
    text = NODE_PEM.read_text()
    begin = text.index("-----BEGIN CERTIFICATE")
    end = text.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----\n")
    certificate, key = tmp_path / "node.crt", tmp_path / "node.key"
    certificate.write_text(text[begin:end])
    key.write_text(text[:begin] + text[end:])
    assert server_context(certificate, key)
    with pytest.raises(UsageError, match="a certificate and its key in PEM form are wanted"):
        server_context(certificate, None)


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pem cannot be read: No such file"):
        server_context(tmp_path / "none.pem", None)
    with pytest.raises(UsageError, match=r"none\.key cannot be read"):
        server_context(NODE_PEM, tmp_path / "none.key")
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=r"text\.pem cannot be used for TLS"):
        server_context(tmp_path / "text.pem", None)


def test_nobody_is_asked_for_a_pass_phrase(tmp_path: Path) -> None:
    (tmp_path / "locked.key").write_text(LOCKED)
    with pytest.raises(UsageError, match="locked by a pass phrase"):
        server_context(NODE_PEM, tmp_path / "locked.key")
