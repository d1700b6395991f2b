"""TLS for tests: both sides of one certificate that signs itself."""

from __future__ import annotations

import ssl
from pathlib import Path

NODE_PEM = Path(__file__).with_name("node.pem")  # certificate and key of node.test, localhost and 127.0.0.1


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(NODE_PEM)
    return context


def trusting_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(NODE_PEM))
