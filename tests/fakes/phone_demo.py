"""Readable answers for demonstrations: English sentences about the question, the same ones for the same prompt.

Nothing here is knowledge; a demo phone says so in its first sentence. Pure functions.
"""

from __future__ import annotations

import re

_PIECES = re.compile(r"\s*\w+|\s*[^\w\s]+|\s+")
_QUESTION = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)

_OPENINGS = (
    'This is a simulated phone, so here is a practice answer to "{topic}".',
    'You asked about "{topic}", and a simulated phone on your desk is happy to make conversation.',
    'A pretend phone read "{topic}" with care and would say the following.',
)
_MIDDLES = (
    "A small model that runs offline keeps every word at home, and nobody has to be asked for permission.",
    "Each phone in the fleet holds a whole copy of the model, so four phones answer four questions at the same time.",
    "When one phone goes silent in the middle of a sentence, another one picks the sentence up at the very next word.",
    "The first token takes the longest, because the whole question is read before a single word is said.",
    "Old hardware is slower than a data centre, but it is already paid for and it fits in a drawer.",
    "A conversation likes to come home: the phone that has read it once does not have to read it again.",
    "You can watch the words arrive one by one, at the pace of a patient reader.",
    "Turn the network off and try again; the answer will be the same.",
)
_ENDINGS = (
    "Plug in a real phone and this text turns into a real answer.",
    "That is all a simulated phone can say about it.",
    "For a true answer, add a phone with a real model to phones.json.",
)


def topic_of(prompt: str) -> str:
    """The last question in a rendered prompt, shortened for quoting."""
    questions = _QUESTION.findall(prompt)
    words = (questions[-1] if questions else prompt).split()
    text = " ".join(words[:12])
    return f"{text} …" if len(words) > 12 else text or "nothing at all"


def demo_tokens(prompt: str, digits: str) -> tuple[str, ...]:
    """The answer as pieces of about a token each."""
    number = int(digits[:4], 16)
    middles = [_MIDDLES[(number + step * 3) % len(_MIDDLES)] for step in range(2 + number % 3)]
    opening = _OPENINGS[number % len(_OPENINGS)].format(topic=topic_of(prompt))
    return tuple(_PIECES.findall(" ".join([opening, *middles, _ENDINGS[number // 8 % len(_ENDINGS)]])))
