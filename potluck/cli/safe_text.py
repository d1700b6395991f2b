"""Text from a model or a node, made safe for a terminal.

A model may write escape sequences, and a terminal would obey them: move the cursor, rename the window, hide text. What
goes into a pipe or a file is left as it is.
"""

from __future__ import annotations

# All control characters but tab and newline; C1 as well, since some terminals take 0x9b for an escape.
_CONTROL: dict[int, str] = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
# A return belongs to the end of a line on some systems, and could only overwrite what stands on it.
_CONTROL[ord("\r")] = ""


def for_terminal(text: str) -> str:
    """The same text, in which no character can steer a terminal."""
    return text.translate(_CONTROL)


def one_line(text: str) -> str:
    """For a place in a table or a sentence."""
    return " ".join(for_terminal(text).split())
