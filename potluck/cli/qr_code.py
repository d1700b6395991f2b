"""A QR code in characters, for a terminal. What is in it, and what is said beside it, is the caller's business."""

from __future__ import annotations

import io

BLOCKS = "█▀▄"


BORDER = 2


def columns_of(text: str, encoding: str | None) -> int:
    """How wide the code of this text is: in a narrower terminal its lines would break, and no camera reads it."""
    import segno

    columns = int(segno.make(text, error="l", micro=False).symbol_size(border=BORDER)[0])
    return columns if _has_blocks(encoding) else 2 * columns


def drawn(text: str, encoding: str | None) -> str:
    """The code of this text: two rows a line where the terminal has half blocks, else spaces in two colours."""
    import segno

    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out, border=BORDER, compact=_has_blocks(encoding))
    return out.getvalue().rstrip("\n")


def _has_blocks(encoding: str | None) -> bool:
    try:
        BLOCKS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
