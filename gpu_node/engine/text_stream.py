"""From tokens to text that can be shown: whole characters only, and never a part of a stop string.

`TokenText` decodes step by step with a window of earlier tokens, because the text of a token depends on its
neighbours (bytes of one character, the space before a word). `StopWatch` holds text back while it could still become a
stop string. Pure: knows no torch and no model, only a function from ids to text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"
# Enough tokens of the prompt for the decoder to know whether the first new one begins with a space.
WINDOW_TOKENS = 8
# A character has at most 4 bytes, so 4 tokens; text that is still broken after them is broken for good.
LONGEST_CHARACTER_TOKENS = 4


class TokenText:
    """Feed ids one by one, get the text that they make certain."""

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(before[-WINDOW_TOKENS:])
        self._told = decode(self._window) if self._window else ""
        self._pending = 0

    def feed(self, token_id: int) -> str:
        self._window.append(token_id)
        self._pending += 1
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and self._pending < LONGEST_CHARACTER_TOKENS:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What is still held back, broken or not."""
        return self._advance(self._decode(self._window)) if self._pending else ""

    def _advance(self, text: str) -> str:
        fresh = text[len(self._told) :]
        self._pending = 0
        self._window = self._window[-WINDOW_TOKENS:]
        self._told = self._decode(self._window)
        return fresh


class StopWatch:
    """Cuts the text at the first stop string, wherever token borders fall."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(word for word in stop if word)
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        if self.hit:
            return ""
        text = self._held + text
        cut = min((at for word in self._stop if (at := text.find(word)) >= 0), default=-1)
        if cut >= 0:
            self.hit, self._held = True, ""
            return text[:cut]
        keep = self._longest_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self._stop):
                return size
        return 0
