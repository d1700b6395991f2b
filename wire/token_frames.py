"""The usual TOKENS, a short text and few ids of the first sample, to bytes and back without going field by field.

Every token of every answer passes here, so it costs a fraction of the way through `wire.codec`, which stays what is
right: for all that is not plainly usual these functions give None, faults too, and the codec does it. Nothing is
written here that it would not write, nothing read that it would not read; tests hold both to each other.
"""

from __future__ import annotations

import struct
from typing import Any

from wire.frames import Buffer
from wire.messages_work import Tokens

__all__ = ["TEXT_MOST", "USUAL_IDS", "USUAL_MOST", "pack_tokens", "unpack_tokens"]

# A size below this takes one byte.
TEXT_MOST = 0x7F
# Speculation and text held back until a character is whole give several ids at once; more is rare.
USUAL_IDS = 8
# Numbers below this take two bytes at most: longer answers go field by field.
_TWO_BYTES = 1 << 14
USUAL_MOST = 2 + 2 + 1 + TEXT_MOST + 1 + 4 * USUAL_IDS

# Index and position in one byte or two each, then the text's size.
_HEADS = tuple(struct.Struct(f">{form}B").pack for form in ("BB", "BH", "HB", "HH"))
_PACK_IDS = tuple(struct.Struct(f">B{count}I").pack for count in range(USUAL_IDS + 1))
_UNPACK_IDS = tuple(struct.Struct(f">{count}I").unpack_from for count in range(USUAL_IDS + 1))


def pack_tokens(index: int, position: int, text: str, ids: tuple[int, ...]) -> bytes | None:
    """The payload of TOKENS of sample 0 without log probabilities; None where that takes more than a glance."""
    if type(index) is not int or type(position) is not int or type(text) is not str or type(ids) is not tuple:
        return None
    wide = 0
    if index >= 0x80:
        if index >= _TWO_BYTES:
            return None
        index = (index & 0x7F | 0x80) << 8 | index >> 7
        wide = 2
    if position >= 0x80:
        if position >= _TWO_BYTES:
            return None
        position = (position & 0x7F | 0x80) << 8 | position >> 7
        wide += 1
    count = len(ids)
    try:
        data = text.encode()
        size = len(data)
        if size > TEXT_MOST or count > USUAL_IDS or not (size or count):
            return None
        head = _HEADS[wide](index, position, size) + data
        return head + _PACK_IDS[count](count, *ids) if count else head
    except (UnicodeEncodeError, struct.error):
        return None  # the codec says which field is at fault


def unpack_tokens(payload: Buffer) -> Tokens | None:
    """The TOKENS in `payload`; None where it takes more than a glance, or where there are none."""
    if len(payload) > USUAL_MOST:
        return None
    data = bytes(payload)
    try:
        index, place = data[0], 1
        if index >= 0x80:
            high, place = data[1], 2
            if not 0 < high < 0x80:
                return None
            index = index & 0x7F | high << 7
        position = data[place]
        place += 1
        if position >= 0x80:
            high = data[place]
            if not 0 < high < 0x80:
                return None
            position = position & 0x7F | high << 7
            place += 1
        end = place + 1 + data[place]
        text = data[place + 1 : end].decode()
        if end == len(data):
            return _made(index, position, text, ())
        count = data[end]
        if end + 1 + 4 * count != len(data):
            return None
        return _made(index, position, text, _UNPACK_IDS[count](data, end + 1))
    except (IndexError, UnicodeDecodeError):
        return None


_slots: dict[str, Any] = dict(vars(Tokens))
_put_index, _put_position, _put_text = (_slots[name].__set__ for name in ("index", "position", "text"))
_put_ids, _put_sample, _put_logprobs = (_slots[name].__set__ for name in ("ids", "sample", "logprobs"))


def _made(index: int, position: int, text: str, ids: tuple[int, ...]) -> Tokens:
    """As the class makes it, at half the price: there is nothing left to check, and frozen classes set attributes
    the long way."""
    made = object.__new__(Tokens)
    _put_index(made, index)
    _put_position(made, position)
    _put_text(made, text)
    _put_ids(made, ids)
    _put_sample(made, 0)
    _put_logprobs(made, ())
    return made
