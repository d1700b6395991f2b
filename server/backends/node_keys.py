"""The key that a node wants, by the name its entry gives. Pure: keys come in as a mapping."""

from __future__ import annotations

from collections.abc import Mapping

from server.errors import NodeUnreachable
from server.nodes import NodeSpec
from transport.tokens import shared_token


def token_of(spec: NodeSpec, secrets: Mapping[str, str]) -> str | None:
    """A relay node's token: the one that its entry names, else the one that all share, where it is set."""
    if spec.api_key_env is not None:
        return key_of(spec, secrets)
    return shared_token(secrets)


def key_of(spec: NodeSpec, secrets: Mapping[str, str]) -> str | None:
    """The node's key, or None where its entry names none. A missing or malformed key makes the node unreachable."""
    if spec.api_key_env is None:
        return None
    key = secrets.get(spec.api_key_env, "").strip()
    if not key:
        raise NodeUnreachable(f"{spec.name}: the environment variable {spec.api_key_env} with its key is not set")
    if not (key.isascii() and key.isprintable()):
        raise NodeUnreachable(f"{spec.name}: the key in {spec.api_key_env} holds characters that no header may hold")
    return key
