"""Where in a JSON text each field stands, so that a mistake can be told with its line and column. Pure.

Only for text that `json.loads` has taken: it finds places, it does not check.
"""

from __future__ import annotations

import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # public in json.decoder, missing in the stubs

Place = tuple[str | int, ...]  # keys and indices, from the outermost inwards

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r"[^\s,\]}]+")


def places(text: str) -> dict[Place, int]:
    """The offset of every value, by its keys and indices; of a field, where its name begins."""
    return _Scan(text).places


def repeats(text: str) -> list[tuple[int, str]]:
    """The offset and name of every field that stands in its object a second time."""
    return _Scan(text).repeats


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both counted from 1, as editors do."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.places: dict[Place, int] = {}
        self.repeats: list[tuple[int, str]] = []
        self._value(self._skip(0), ())

    def _skip(self, offset: int) -> int:
        found = _SPACE.match(self.text, offset)
        return found.end() if found else offset

    def _value(self, offset: int, at: Place) -> int:
        """Note the value that begins here and all within it; returns where it ends."""
        self.places.setdefault(at, offset)
        match self.text[offset]:
            case "{":
                return self._members(offset, at)
            case "[":
                return self._items(offset, at)
            case '"':
                return int(scanstring(self.text, offset + 1)[1])
        plain = _PLAIN.match(self.text, offset)
        return plain.end() if plain else offset

    def _members(self, offset: int, at: Place) -> int:
        offset = self._skip(offset + 1)
        while self.text[offset] != "}":
            key, end = scanstring(self.text, offset + 1)
            if (*at, key) in self.places:
                self.repeats.append((offset, key))
            self.places.setdefault((*at, key), offset)
            colon = self._skip(end)
            offset = self._comma(self._value(self._skip(colon + 1), (*at, key)))
        return offset + 1

    def _items(self, offset: int, at: Place) -> int:
        offset = self._skip(offset + 1)
        index = 0
        while self.text[offset] != "]":
            offset = self._comma(self._value(offset, (*at, index)))
            index += 1
        return offset + 1

    def _comma(self, offset: int) -> int:
        """Where the next item or the closing bracket begins."""
        offset = self._skip(offset)
        return self._skip(offset + 1) if self.text[offset] == "," else offset
