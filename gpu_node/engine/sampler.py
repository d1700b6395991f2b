"""From logits to tokens for a whole step at once: logit bias, penalties, forbidden tokens, then the draw or the argmax.

Invariants: the logits given stay as they were; a pick's outcome depends on its own row, options, key and history alone,
never on the batch or on drafts; only tokens (and logprobs where asked for) cross to the host. Must not know sequences,
blocks or how a guide came to its mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_node.engine.candidates import CHUNK, FIRST_LOOK, drawn, likeliest
from gpu_node.engine.draws import Draw, NoToken, uniform
from gpu_node.engine.host_draw import draw_on_host
from gpu_node.engine.sequence import Logprob, SamplingOptions, TokenLogprob
from gpu_node.engine.step import Choice, Pick

NOT_FINITE_TEXT = "the model produced numbers that are not finite"
NOTHING_ALLOWED_TEXT = "no token of the vocabulary may come next"


@dataclass(frozen=True, slots=True)
class Line:
    """One position to be decided: a row of logits and what bears on it."""

    pick: Pick
    row: int
    ahead: int = 0  # so many drafts are taken as written

    @property
    def plain(self) -> bool:
        """Whether the model's own favourite is the answer."""
        return self.pick.options.greedy and not self.edited

    @property
    def edited(self) -> bool:
        pick, options = self.pick, self.pick.options
        return options.penalises or bool(options.logit_bias or pick.banned) or pick.allowed is not None

    @property
    def recent(self) -> list[int]:
        """What the penalties look back at."""
        pick, count = self.pick, self.pick.options.repeat_last_n
        drafts = pick.drafts[: self.ahead]
        if count < 0:
            return [*pick.history, *drafts]
        return [*pick.history[-count:], *drafts][-count:]

    @property
    def draw(self) -> Draw:
        pick, options = self.pick, self.pick.options
        number = uniform(pick.key, pick.written + self.ahead)
        return Draw(number, options.temperature, options.top_k, options.top_p, options.min_p, options.typical_p)


class Sampler:
    """Holds nothing between calls: draws are looked up by key and position (see `draws`)."""

    @torch.inference_mode()
    def sample(self, logits: Tensor, picks: Sequence[Pick], first_rows: Sequence[int]) -> tuple[Choice, ...]:
        """`logits` [n, vocabulary] of any float type; pick i's positions are the rows from `first_rows[i]` on.

        A pick with drafts has one row more than drafts: each position is decided as if the drafts before it had been
        written, and counts while it equals the draft there. `Pick.banned` holds for all of them; a mask (`allowed`) is
        of the first position only, so nothing after that is decided. A pick whose row holds numbers that are not
        finite, or nothing that may be chosen, gets a `Choice.error` of its own.
        """
        lines = [line for pick, row in zip(picks, first_rows, strict=True) for line in lines_of(pick, row)]
        ids = _decide(logits, lines) if lines else []
        told = _logprobs(logits, lines, ids)
        choices, at = [], 0
        for pick in picks:
            choices.append(_judged(pick, ids, told, at))
            at += positions(pick)
        return tuple(choices)


def positions(pick: Pick) -> int:
    return 1 if pick.allowed is not None else 1 + len(pick.drafts)


def lines_of(pick: Pick, row: int) -> Iterator[Line]:
    return (Line(pick, row + ahead, ahead) for ahead in range(positions(pick)))


def _judged(pick: Pick, ids: Sequence[int], told: Mapping[int, TokenLogprob], at: int) -> Choice:
    if ids[at] < 0:
        return Choice(error=NOTHING_ALLOWED_TEXT if ids[at] == NoToken.NOTHING_ALLOWED else NOT_FINITE_TEXT)
    count = 1
    # A draft's successor that failed is decided again, alone, when its turn comes: then the error is told.
    while count < positions(pick) and ids[at + count - 1] == pick.drafts[count - 1] and ids[at + count] >= 0:
        count += 1
    logprobs = tuple(told[at + position] for position in range(count)) if pick.options.logprobs is not None else ()
    return Choice(tuple(ids[at : at + count]), logprobs)


def _decide(logits: Tensor, lines: Sequence[Line]) -> list[int]:
    """A token for each line, or a negative reason; one transfer to the host, a second for rare wide draws."""
    plain = [at for at, line in enumerate(lines) if line.plain]
    if len(plain) == len(lines):
        return [int(token) for token in likeliest(chosen_rows(logits, lines)).tolist()]
    rest = [at for at, line in enumerate(lines) if not line.plain]
    greedy = [at for at in rest if lines[at].pick.options.greedy]
    sampled = [at for at in rest if not lines[at].pick.options.greedy]
    order = [*greedy, *sampled]
    rows = prepared(logits, [lines[at] for at in order])
    found = []
    if plain:
        found.append(likeliest(chosen_rows(logits, [lines[at] for at in plain])))
    if greedy:
        found.append(likeliest(rows[: len(greedy)]))
    draws = [lines[at].draw for at in sampled]
    if sampled:
        found.append(_drawn(rows[len(greedy) :], draws))
    ids = [0] * len(lines)
    for at, token in zip([*plain, *order], torch.cat(found).tolist(), strict=True):
        ids[at] = token
    _decide_wide(rows[len(greedy) :], draws, sampled, ids)
    return ids


def _drawn(rows: Tensor, draws: Sequence[Draw]) -> Tensor:
    if rows.device.type != "cpu":
        return drawn(rows, draws)
    pairs = zip(rows.numpy(), draws, strict=True)
    return torch.tensor([draw_on_host(row, draw, CHUNK, FIRST_LOOK) for row, draw in pairs])


def _decide_wide(rows: Tensor, draws: Sequence[Draw], places: Sequence[int], ids: list[int]) -> None:
    """Fill in the lines whose draw lies beyond the likeliest candidates: their rows are sorted as a whole."""
    wide = [number for number, at in enumerate(places) if ids[at] == NoToken.UNDECIDED]
    if not wide:
        return
    tokens = drawn(rows[wide], [draws[number] for number in wide], everything=True).tolist()
    for number, token in zip(wide, tokens, strict=True):
        ids[places[number]] = token


def chosen_rows(logits: Tensor, lines: Sequence[Line]) -> Tensor:
    rows = [line.row for line in lines]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return logits[rows[0] : rows[0] + len(rows)]
    return logits[torch.tensor(rows, device=logits.device)]


def prepared(logits: Tensor, lines: Sequence[Line]) -> Tensor:
    """The lines' rows in float32 with their edits made, and -inf behind the vocabulary up to whole chunks."""
    size = logits.shape[-1]
    width = -(-size // CHUNK) * CHUNK
    rows = torch.empty((len(lines), width), dtype=torch.float32, device=logits.device)
    rows[:, size:] = -torch.inf
    rows[:, :size] = chosen_rows(logits, lines)
    _add_bias(rows, lines, size)
    _penalise(rows, lines, size)
    _forbid(rows, lines, size)
    return rows


def _add_bias(rows: Tensor, lines: Sequence[Line], size: int) -> None:
    entries = [(at, *entry) for at, line in enumerate(lines) for entry in line.pick.options.logit_bias]
    entries = [entry for entry in entries if 0 <= entry[1] < size]
    if entries:
        places, tokens, amounts = (np.array(column) for column in zip(*entries, strict=True))
        added = torch.from_numpy(amounts.astype(np.float32)).to(rows.device)
        rows.view(-1).index_put_((_flat(rows, places, tokens),), added, accumulate=True)


def _penalise(rows: Tensor, lines: Sequence[Line], size: int) -> None:
    """Tokens of the recent past become less likely, as llama.cpp and Ollama have it."""
    recent = [np.asarray(line.recent if line.pick.options.penalises else (), dtype=np.int64) for line in lines]
    places = np.repeat(np.arange(len(lines)), [len(tokens) for tokens in recent])
    tokens = np.concatenate(recent)
    known = (tokens >= 0) & (tokens < size)
    said, times = np.unique(places[known] * size + tokens[known], return_counts=True)
    if not said.size:
        return
    options = [line.pick.options for line in lines]
    weights = np.array([(o.repeat_penalty, o.frequency_penalty, o.presence_penalty) for o in options])
    repeat, frequency, presence = weights[said // size].T
    amounts = np.stack([repeat, times * frequency + presence]).astype(np.float32)
    factor, amount = torch.from_numpy(amounts).to(rows.device)
    where = _flat(rows, said // size, said % size)
    values = rows.view(-1)[where]
    rows.view(-1)[where] = torch.where(values > 0, values / factor, values * factor) - amount


def _forbid(rows: Tensor, lines: Sequence[Line], size: int) -> None:
    banned = [(at, token) for at, line in enumerate(lines) for token in line.pick.banned if 0 <= token < size]
    if banned:
        rows.view(-1)[_flat(rows, *np.array(banned).T)] = -torch.inf
    for at, line in enumerate(lines):
        if line.pick.allowed is not None:
            rows[at, :size].masked_fill_(_forbidden(line.pick.allowed, size).to(rows.device), -torch.inf)


def _flat(rows: Tensor, places: Any, tokens: Any) -> Tensor:
    return torch.from_numpy(places * rows.shape[-1] + tokens).to(rows.device)


def _forbidden(mask: bytes, size: int) -> Tensor:
    """Tokens that a bit mask leaves out; those it has no bit for, such as a model's padding, are left out too."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=size, bitorder="little")
    return torch.from_numpy(bits == 0)


def _logprobs(logits: Tensor, lines: Sequence[Line], ids: Sequence[int]) -> dict[int, TokenLogprob]:
    """By line, for those that ask and were decided: of the model's own distribution, before any option."""
    asking = [at for at, line in enumerate(lines) if line.pick.options.logprobs is not None and ids[at] >= 0]
    if not asking:
        return {}
    rows = chosen_rows(logits, [lines[at] for at in asking]).float()
    wanted = [_wanted(lines[at].pick.options, logits.shape[-1]) for at in asking]
    top, tokens = rows.topk(max(wanted), dim=-1)
    chosen = rows.gather(-1, torch.tensor([[ids[at]] for at in asking], device=rows.device))
    values = torch.cat([chosen, top], dim=-1) - rows.logsumexp(-1, keepdim=True)
    told = {}
    for at, count, numbers, likely in zip(asking, wanted, values.tolist(), tokens.tolist(), strict=True):
        best = tuple(Logprob(token, number) for token, number in zip(likely, numbers[1 : count + 1], strict=False))
        told[at] = TokenLogprob(Logprob(ids[at], numbers[0]), best)
    return told


def _wanted(options: SamplingOptions, size: int) -> int:
    return min(max(options.logprobs or 0, 0), size)
