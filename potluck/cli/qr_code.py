"""A QR code in characters, for a terminal. What is in it, and what is said beside it, is the caller's business."""

from __future__ import annotations

import io

BLOCKS = "█▀▄"


def drawn(text: str, encoding: str | None) -> str:
    """The code of this text: two rows a line where the terminal has half blocks, else spaces in two colours."""
    import segno

    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out, border=2, compact=_has_blocks(encoding))
    return out.getvalue().rstrip("\n")


def _has_blocks(encoding: str | None) -> bool:
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
