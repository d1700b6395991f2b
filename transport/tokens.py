"""Where a program finds the token that it shares with relay nodes. Pure: the environment comes in as a mapping."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["TOKEN_NAMES", "shared_token"]

# The first is the relay's alone; the second is the gateway's API key as well, so that setting it locks the gateway too.
TOKEN_NAMES = ("POTLUCK_NODE_TOKEN", "VRM_API_TOKEN")


def shared_token(environ: Mapping[str, str]) -> str | None:
    """The first of `TOKEN_NAMES` that is set to something."""
    return next((token for name in TOKEN_NAMES if (token := environ.get(name, "").strip())), None)
