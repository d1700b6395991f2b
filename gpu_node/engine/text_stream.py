"""From tokens to text that can be shown: whole characters only, and never a part of a stop string.

`TokenText` decodes step by step with a window of earlier tokens, because the text of a token depends on its
neighbours (bytes of one character, the space before a word). `StopWatch` holds text back while it could still become a
stop string. A token costs the same however long the answer is. Pure: knows no torch and no model, only a function from
ids to text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"
# Enough earlier tokens for the decoder to know whether the next one begins with a space.
WINDOW_TOKENS = 8
# The window is cut back only now and then: cutting needs a second decoding.
LONGEST_WINDOW_TOKENS = 24
# A character has at most 4 bytes, so at most 3 of them can wait for the last; vocabularies with byte tokens write one
# replacement for each of them, others one for all. More of them in a row are broken for good.
LONGEST_OPEN_END = 3


class TokenText:
    """Feed ids one by one, get the text that they make certain."""

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(before[-WINDOW_TOKENS:])
        text = decode(self._window) if self._window else ""
        self._told = len(text)  # characters of the window's text
        # Where a character that is still open at the end of `before` stands: whoever completes it has written it.
        self._inherited = len(text) - _open_end(text) if text.endswith(REPLACEMENT) else None
        self._holds = False

    def feed(self, token_id: int) -> str:
        window = self._window
        window.append(token_id)
        text = self._decode(window)
        end = len(text)
        if text.endswith(REPLACEMENT):
            end -= _open_end(text)
        if self._inherited is not None and end > self._inherited:
            if text[self._inherited] != REPLACEMENT:
                self._told = self._inherited
            self._inherited = None
        fresh = text[self._told : end]
        self._told = max(self._told, end)
        self._holds = end < len(text)
        if len(window) > LONGEST_WINDOW_TOKENS:
            self._shorten(len(text) - self._told)
        return fresh

    @property
    def held(self) -> str:
        """What is still held back, broken or not."""
        return self._decode(self._window)[self._told :] if self._holds else ""

    def flush(self) -> str:
        """What is still held back comes out."""
        fresh = self.held
        self._holds, self._told = False, self._told + len(fresh)
        return fresh

    def _shorten(self, held: int) -> None:
        del self._window[:-WINDOW_TOKENS]
        self._told = max(len(self._decode(self._window)) - held, 0)


def _open_end(text: str) -> int:
    """How many replacements at the end of `text` may still become a character."""
    return min(len(text) - len(text.rstrip(REPLACEMENT)), LONGEST_OPEN_END)


class StopWatch:
    """Cuts the text at the first stop string, wherever token borders fall."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(word for word in stop if word)
        self._longest = max(map(len, self._stop), default=1) - 1
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        if not self._stop:
            return text
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

    @property
    def held(self) -> str:
        """What may still become a stop string."""
        return self._held

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        for size in range(min(self._longest, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self._stop):
                return size
        return 0
