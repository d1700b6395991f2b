"""PyTorch over the relay: a module whose forward runs on a node, and what transformers programs call.

    RemoteModule        logits or hidden states of a model on the node, as torch tensors
    RemoteCausalLM      the same with `generate` as transformers has it
    pipeline            "text-generation" over such a model

Invariants: what comes back lies where it was received, one row uncopied; a row is a request of its own, and those of a
batch run at once; padding never reaches the node. Only inference: there is no gradient over a network. This file alone
of the package imports torch; transformers is not needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

from .errors import InvalidRequest, Misuse
from .relay_answers import Piece
from .relay_arrays import TensorData
from .relay_asking import GenerateOptions
from .relay_blocking import Relay
from .transformers_options import Wish, wish_of

__all__ = [
    "RemoteCausalLM",
    "RemoteModule",
    "RemoteOutput",
    "RemotePipeline",
    "TokenStreamer",
    "from_torch",
    "pipeline",
    "to_torch",
]

Prompt = str | Sequence[Mapping[str, Any]]


def to_torch(data: TensorData) -> torch.Tensor:
    """The same memory as a torch tensor; it keeps the memory alive."""
    kind: torch.dtype = getattr(torch, data.dtype)
    if not data.nbytes:
        return torch.empty(data.shape, dtype=kind)
    return torch.frombuffer(data.data, dtype=kind).view(data.shape)


def from_torch(tensor: torch.Tensor) -> TensorData:
    """The tensor's memory, where it is contiguous and on the host; else a copy of it there."""
    plain = tensor.detach().to("cpu").contiguous()
    flat = plain.reshape(-1).view(torch.uint8).numpy()
    return TensorData(memoryview(flat.data), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


@dataclass(frozen=True, slots=True)
class RemoteOutput:
    """Like the outputs of transformers: by name, by index, and None where it was not asked for.

    `hidden_states` has the last layer's alone, which is what a node gives back.
    """

    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return getattr(self, key)
        return [value for field in fields(self) if (value := getattr(self, field.name)) is not None][key]


class RemoteModule(torch.nn.Module):
    """A model on a node. It is loaded there now, and anew when the node has let it go meanwhile.

    Results have the device of the inputs and `dtype`: float32, or for `inputs_embeds` theirs, unless it is given.
    """

    def __init__(self, relay: Relay, model: str, *, dtype: torch.dtype | None = None, **load_options: Any) -> None:
        super().__init__()
        self.relay, self.model, self.dtype = relay, model, dtype
        self._load_options = load_options
        self.loaded = relay.load_model(model, **load_options)
        self.eval()

    def train(self, mode: bool = True) -> RemoteModule:
        if mode:
            raise Misuse("a remote module cannot be trained: its weights are the node's")
        return super().train(False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_logits: bool = True,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> RemoteOutput:
        """`input_ids` (batch, tokens), or `inputs_embeds` (batch, tokens, hidden size); a single text may lack the
        batch. Where `attention_mask` is 0 there is padding, and zeros come back for it. `logits_to_keep` 1: only the
        last token's logits. Raises Misuse for gradients and for what a node cannot do.
        """
        _refuse_others(others)
        rows = _Rows(input_ids, inputs_embeds, attention_mask)
        if logits_to_keep not in (0, 1):
            raise Misuse("logits_to_keep is 0 (all) or 1 (the last)")
        logits = self._outputs(rows, "logits", bool(logits_to_keep)) if output_logits else None
        hidden = (self._outputs(rows, "hidden", False),) if output_hidden_states else None
        return RemoteOutput(logits, hidden)

    def _outputs(self, rows: _Rows, output: str, last_only: bool) -> torch.Tensor:
        try:
            results = self.relay.submit(self._run_all(rows, output, last_only))
        except InvalidRequest as error:
            if error.field != "model":
                raise
            # The node let it go: the session was idle for too long, or cut for longer than its grace.
            self.loaded = self.relay.load_model(self.model, **self._load_options)
            results = self.relay.submit(self._run_all(rows, output, last_only))
        like = self.dtype or rows.dtype
        return rows.assembled(list(map(to_torch, results)), last_only).to(device=rows.device, dtype=like)

    async def _run_all(self, rows: _Rows, output: str, last_only: bool) -> list[TensorData]:
        return await asyncio.gather(*(self._run(row, output, last_only) for row in rows.texts))

    async def _run(self, row: torch.Tensor, output: str, last_only: bool) -> TensorData:
        relay: Any = self.relay.asynchronous
        if not row.is_floating_point():
            ids: TensorData = await relay.run(self.model, row.tolist(), output=output, last_only=last_only)
            return ids
        async with await relay.tensor(from_torch(row)) as embeddings:
            found: TensorData = await relay.run(self.model, embeddings, output=output, last_only=last_only)
            return found


class _Rows:
    """A batch taken apart into texts without padding, and put together again."""

    def __init__(self, ids: torch.Tensor | None, embeddings: torch.Tensor | None, mask: torch.Tensor | None) -> None:
        if (ids is None) == (embeddings is None):
            raise Misuse("give either input_ids or inputs_embeds")
        given = ids if ids is not None else embeddings
        assert given is not None
        if given.requires_grad and torch.is_grad_enabled():
            raise Misuse("no gradient flows over a network: use torch.no_grad(), or detach() the inputs")
        own = 1 if ids is not None else 2
        if given.dim() not in (own, own + 1) or given.is_floating_point() != (ids is None):
            raise Misuse(
                "input_ids are whole numbers (batch, tokens); inputs_embeds reals (batch, tokens, hidden size)"
            )
        self._had_batch = given.dim() == own + 1
        batch = given if self._had_batch else given.unsqueeze(0)
        self.device, self.dtype = given.device, given.dtype if ids is None else torch.float32
        self._length = batch.shape[1]
        self._spans = _spans(mask, batch.shape[0], self._length)
        self.texts = [row[first:behind] for row, (first, behind) in zip(batch, self._spans, strict=True)]

    def assembled(self, results: list[torch.Tensor], last_only: bool) -> torch.Tensor:
        """(batch, tokens, width); where there is one row without padding, it is the result itself."""
        whole = last_only or all(span == (0, self._length) for span in self._spans)
        if whole:
            batch = results[0].unsqueeze(0) if len(results) == 1 else torch.stack(results)
        else:
            batch = results[0].new_zeros(len(results), self._length, results[0].shape[-1])
            for row, result, (first, behind) in zip(batch, results, self._spans, strict=True):
                row[first:behind] = result
        return batch if self._had_batch else batch[0]


def _spans(mask: torch.Tensor | None, rows: int, length: int) -> list[tuple[int, int]]:
    """From where to where each row has its text. Raises Misuse for rows without one, and for holes."""
    if mask is None:
        return [(0, length)] * rows
    mask = mask if mask.dim() == 2 else mask.unsqueeze(0)
    if mask.shape != (rows, length):
        raise Misuse(f"attention_mask is {tuple(mask.shape)} where {(rows, length)} is due")
    spans = []
    for row in mask:
        places = row.nonzero().flatten().tolist()
        if not places or places[-1] - places[0] + 1 != len(places):
            raise Misuse("each row of attention_mask must have its ones in one piece")
        spans.append((places[0], places[-1] + 1))
    return spans


def _refuse_others(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if value is None or (name, value) in (
            ("use_cache", False),
            ("return_dict", True),
            ("output_attentions", False),
        ):
            continue
        raise Misuse(f"{name} cannot be honoured by a node")


class TokenStreamer(Protocol):
    """What transformers' streamers are: `TextStreamer`, `TextIteratorStreamer` and their like."""

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


class RemoteCausalLM(RemoteModule):
    """A model on a node for programs that call `generate` of transformers."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The model's own end tokens."""
        return tuple(self.loaded.facts.get("end_ids", ()))

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        streamer: TokenStreamer | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Prompts and answers, (batch * num_return_sequences, tokens), padded behind their ends.

        Options are those of transformers: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`,
        `typical_p`, `repetition_penalty`, `num_return_sequences`, `eos_token_id`, `pad_token_id`, `stop_strings` ...,
        and `seed`; without one it is drawn from torch's generator. What a node cannot honour is refused by its name.
        """
        rows = _Rows(input_ids, None, attention_mask)
        batch = input_ids if input_ids.dim() == 2 else input_ids.unsqueeze(0)
        wish = wish_of(options, batch.shape[1], self.end_ids)
        if streamer is None:
            answers = self.relay.submit(self._generate_all(rows, wish))
        elif len(rows.texts) * wish.sequences == 1:
            answers = self._stream(rows.texts[0].tolist(), wish, streamer, batch)
        else:
            raise Misuse("a streamer takes one answer at a time")
        longest = max(map(len, answers))
        filled = [answer + [wish.pad_id] * (longest - len(answer)) for answer in answers]
        told = torch.tensor(filled, dtype=input_ids.dtype, device=input_ids.device)
        return torch.cat((batch.repeat_interleave(wish.sequences, 0), told), 1)

    async def _generate_all(self, rows: _Rows, wish: Wish) -> list[list[int]]:
        texts = enumerate(rows.texts)
        told = await asyncio.gather(
            *(self._generate(row.tolist(), wish, _drawn(wish, number)) for number, row in texts)
        )
        return [answer for answers in told for answer in answers]

    async def _generate(self, prompt: list[int], wish: Wish, seed: int | None) -> list[list[int]]:
        """One answer a sequence; the node is told to stop when all of them have come to an end token."""
        answers = _Answers(wish)
        async with self.relay.asynchronous.generate(self.model, prompt, **_seeded(wish, seed)) as stream:
            async for piece in stream:
                answers.take(piece)
                if answers.ended:
                    break
        return answers.ids

    def _stream(self, prompt: list[int], wish: Wish, streamer: TokenStreamer, told: torch.Tensor) -> list[list[int]]:
        """The same in the caller's thread, which is the streamer's."""
        answers = _Answers(wish)
        streamer.put(told.cpu())
        with self.relay.generate(self.model, prompt, **_seeded(wish, _drawn(wish, 0))) as stream:
            for piece in stream:
                for id in answers.take(piece):
                    streamer.put(torch.tensor([id]))
                if answers.ended:
                    break
        streamer.end()
        return answers.ids


class _Answers:
    """The ids of each sequence as far as its first end token."""

    def __init__(self, wish: Wish) -> None:
        self.ids: list[list[int]] = [[] for _ in range(wish.sequences)]
        self._open = set(range(wish.sequences))
        self._end_ids = wish.end_ids

    @property
    def ended(self) -> bool:
        return not self._open

    def take(self, piece: Piece) -> list[int]:
        """Those of the piece that belong to its sequence."""
        if piece.sample not in self._open:
            return []
        ends = [place for place, id in enumerate(piece.ids) if id in self._end_ids]
        taken = list(piece.ids[: ends[0] + 1] if ends else piece.ids)
        self.ids[piece.sample].extend(taken)
        if ends:
            self._open.discard(piece.sample)
        return taken


def _seeded(wish: Wish, seed: int | None) -> GenerateOptions:
    return {**wish.options, "samples": wish.sequences, "seed": seed}


def _drawn(wish: Wish, row: int) -> int | None:
    """A seed a row: the caller's, counted on, or one of torch's own generator, so that `manual_seed` holds."""
    if not wish.samples:
        return None
    return int(torch.randint(1 << 62, ()).item()) if wish.seed is None else wish.seed + row


class RemotePipeline:
    """Like transformers' pipeline for text generation; texts and chats become tokens on the node."""

    def __init__(self, model: RemoteCausalLM) -> None:
        self.task, self.model = "text-generation", model

    def __call__(
        self, prompts: Prompt | Sequence[Prompt], *, return_full_text: bool = True, **options: Any
    ) -> list[Any]:
        """`[{"generated_text": …}]`, one a returned sequence; for a list of prompts a list of these.

        Of a chat the text is the messages with the answer behind them, or the answer alone without
        `return_full_text`. Takes the options of `RemoteCausalLM.generate` but for those that count tokens of a prompt.
        """
        if "max_length" in options or "min_length" in options:
            raise Misuse("max_length counts the prompt's tokens, which only the node knows: give max_new_tokens")
        if "eos_token_id" in options:
            raise Misuse("eos_token_id cannot be honoured where the answer is text: give stop_strings")
        wish = wish_of({"max_new_tokens": 256, **options}, 0, self.model.end_ids)
        one = isinstance(prompts, str) or _is_chat(prompts)
        asked: list[Any] = [prompts] if one else list(prompts)
        told = self.model.relay.submit(self._ask_all(asked, wish))
        records = [
            [{"generated_text": _full(prompt, text) if return_full_text else text} for text in texts]
            for prompt, texts in zip(asked, told, strict=True)
        ]
        return records[0] if one else records

    async def _ask_all(self, prompts: list[Prompt], wish: Wish) -> list[tuple[str, ...]]:
        asked = (self._ask(prompt, wish, _drawn(wish, number)) for number, prompt in enumerate(prompts))
        return await asyncio.gather(*asked)

    async def _ask(self, prompt: Prompt, wish: Wish, seed: int | None) -> tuple[str, ...]:
        relay, raw = self.model.relay.asynchronous, isinstance(prompt, str)
        options: GenerateOptions = {
            **_seeded(wish, seed),
            "ignore_end": False,
            "raw": raw,
        }
        return (await relay.generate(self.model.model, prompt, **options).finish()).texts


def pipeline(task: str, model: RemoteCausalLM) -> RemotePipeline:
    """As transformers has it, for the one task that a node can do."""
    if task != "text-generation":
        raise Misuse(f"a node does text-generation, not {task}")
    return RemotePipeline(model)


def _is_chat(prompts: Any) -> bool:
    return bool(prompts) and isinstance(prompts[0], Mapping)


def _full(prompt: Prompt, text: str) -> Any:
    return prompt + text if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": text}]
