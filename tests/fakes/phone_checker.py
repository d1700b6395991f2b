"""What an answer must be, and what is wrong with one that is not: the test's side of the deterministic text. Pure.

`expected_answer` runs the phone's own planning over a request; `verify_answer` reads tag and positions out of a
text, makes the true text from them and says where and how the two part: a gap, a repeat, a splice of two answers,
or characters that belong to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.fakes.phone_call import Call, Ending, Piece, Plan, plan_call
from tests.fakes.phone_requests import Contexts, read_chat, read_generate
from tests.fakes.phone_settings import PhoneSettings
from tests.fakes.phone_text import WORD, Answer, natural_length

Problem = Literal["", "gap", "repeat", "splice", "garbled", "foreign", "empty"]


@dataclass(frozen=True, slots=True)
class Expected:
    """A complete answer as a phone would give it."""

    text: str
    pieces: tuple[str, ...]
    done_reason: str
    eval_count: int
    prompt_eval_count: int
    rendered: str
    tag: str

    @property
    def tokens(self) -> int:
        """Tokens that show in the text."""
        return len(self.pieces)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`: the text is the true answer from its first character on. `complete`: to its natural end as well."""

    ok: bool
    problem: Problem
    at: int  # the first wrong character
    tokens: int  # right tokens before it
    complete: bool
    detail: str = ""

    def __bool__(self) -> bool:
        return self.ok


def expected_answer(
    messages: Sequence[dict[str, Any]] | None = None,
    *,
    prompt: str | None = None,
    settings: PhoneSettings | None = None,
    model: str | None = None,
    options: dict[str, Any] | None = None,
    salt: str = "0000",
    **fields: Any,
) -> Expected:
    """The answer to `/api/chat` (messages) or `/api/generate` (prompt); further fields as in the request.

    Temperature is 0 here unless `options` says otherwise: an unseeded answer needs the salt that the phone chose.
    """
    plan = _plan(messages, prompt, settings or PhoneSettings(), model, options, salt, fields)
    pieces: list[str] = []
    ending = Ending("stop", 0)
    for piece in plan.pieces():
        if isinstance(piece, Piece):
            pieces.append(piece.text)
        else:
            ending = piece
    count = len(plan.read_tokens)
    return Expected(
        "".join(pieces), tuple(pieces), ending.reason, ending.eval_count, count, plan.rendered, plan.answer.tag
    )


def verify_answer(
    text: str,
    messages: Sequence[dict[str, Any]] | None = None,
    *,
    prompt: str | None = None,
    settings: PhoneSettings | None = None,
    model: str | None = None,
    options: dict[str, Any] | None = None,
    **fields: Any,
) -> Verdict:
    """Whether `text` is an unbroken beginning of one answer; with messages or prompt also: of the answer to those.

    Works for salted answers: the salt is read out of the text. Not for `format`, tools and demo texts, which have
    no words to read.
    """
    settings = settings or PhoneSettings()
    found = WORD.search(text)
    if found is None:
        return Verdict(False, "empty", 0, 0, False, "no word of any answer in the text")
    tag = found.group(2)
    if messages is not None or prompt is not None:
        salt = tag[5:9] if len(tag) > 4 and tag[4] == "x" else "0000"
        chosen = {"temperature": 0} if tag[4:5] != "x" and options is None else options or {}
        right = _plan(messages, prompt, settings, model, chosen, salt, fields).answer
        if tag.removesuffix("z") != right.tag:
            detail = f"the words say {tag}, the question asks for {right.tag}"
            return Verdict(False, "foreign", found.start(), 0, False, detail)
    else:
        bare = tag.removesuffix("z")
        right = Answer(bare, natural_length(bare, settings.answer_tokens), text.startswith(" "), settings.diverge_after)
    return _compare(text, right)


def _compare(text: str, answer: Answer) -> Verdict:
    position = 0
    count = 0
    for piece in answer.tokens():
        if position >= len(text):
            return Verdict(True, "", position, count, False)
        if not text.startswith(piece, position):
            rest = text[position:]
            if piece.startswith(rest):
                return Verdict(True, "", len(text), count, False, "ends inside a token")
            return _problem(text, answer, position, count)
        position += len(piece)
        count += 1
    if position < len(text):
        return _problem(text, answer, position, count)
    return Verdict(True, "", position, count, True)


def _problem(text: str, answer: Answer, position: int, count: int) -> Verdict:
    """Name what went wrong at `position` by the next whole word after it."""
    found = WORD.search(text, position)
    if found is None:
        return Verdict(False, "garbled", position, count, False, f"unexpected {text[position : position + 40]!r}")
    number, tag = int(found.group(1)), found.group(2)
    diverged = tag.endswith("z") and answer.diverge_after is None
    if diverged or tag.removesuffix("z") != answer.tag:
        return Verdict(False, "splice", position, count, False, f"goes on with {tag} instead of {answer.tag}")
    problem: Problem = "repeat" if number < count else "gap" if number > count + 3 else "garbled"
    if problem == "garbled" and number > count:
        expected = [piece for at, piece in enumerate(answer.tokens()) if count <= at < number]
        problem = "gap" if "".join(expected) not in text[position : found.start()] else "garbled"
    detail = f"token {number} after {count} right ones: {text[position : position + 40]!r}"
    return Verdict(False, problem, position, count, False, detail)


def _plan(
    messages: Sequence[dict[str, Any]] | None,
    prompt: str | None,
    settings: PhoneSettings,
    model: str | None,
    options: dict[str, Any] | None,
    salt: str,
    fields: dict[str, Any],
) -> Plan:
    if (messages is None) == (prompt is None):
        raise ValueError("give messages or a prompt")
    chosen = {"temperature": 0, **(options or {})}
    if options is not None and not options:
        chosen = {}
    body = {"model": model or settings.models[0].name, "options": chosen, **fields}
    call: Call
    if messages is not None:
        call = read_chat({**body, "messages": list(messages)}, settings)
    else:
        contexts = Contexts(find=lambda ids: f"[context {ids}]")
        call = read_generate({**body, "prompt": prompt}, settings, contexts)
    return plan_call(call, settings, salt)
