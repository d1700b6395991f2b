"""A relay client as a program, for a network namespace: finds a node, loads, generates, moves a tensor to it and back.

It says what it does, a word a line: "cut" asks for its line to be cut, "away" says that this was noticed. Its last line
is a JSON object of what it found.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys

from potluck import AsyncRelay
from transport.pauses import PausePolicy
from transport.session import SessionSettings

PROMPT = (1, 72, 101, 108, 108, 111)
TOKENS = 60
CUTS_AT = (5, 30)  # pieces of the answer
TENSOR_BYTES = 24 << 20  # two pieces, so that there is one to go on with
SETTINGS = SessionSettings(
    name="visitor", connect_seconds=2.0, ping_seconds=0.2, silent_pings=4,
    pauses=PausePolicy(first_seconds=0.02, longest_seconds=0.1),
)  # fmt: skip


class Visitor:
    def __init__(self, relay: AsyncRelay) -> None:
        self.relay = relay
        self.losses = 0
        self._links: list[object] = []

    async def watch(self) -> None:
        """Says when the line is lost."""
        before = None
        while True:
            now = self.relay._session.connected
            if before is not None and now is not before:
                self.losses += 1
                print("away", flush=True)
            before = now or before
            if now is None:
                before = None
            await asyncio.sleep(0.005)

    async def be_cut(self) -> None:
        losses = self.losses
        print("cut", flush=True)
        while self.losses == losses:  # noqa: ASYNC110 - it is the program outside that does it
            await asyncio.sleep(0.005)

    async def hear(self, model: str) -> list[int]:
        """A greedy answer over several cuts."""
        ids: list[int] = []
        async with self.relay.generate(
            model, PROMPT, temperature=0, repeat_penalty=1.0, max_tokens=TOKENS, ignore_end=True
        ) as stream:
            async for piece in stream:
                ids.extend(piece.ids)
                if len(ids) in CUTS_AT:
                    await self.be_cut()
        assert list(stream.answer.ids) == ids
        return ids

    async def carry(self) -> bool:
        """A tensor there and back, each way over a cut; whether it came back as it was."""
        data = os.urandom(TENSOR_BYTES)
        cuts: list[asyncio.Task[None]] = []

        def first_piece_is_over(_: int) -> None:
            if not cuts:
                cuts.append(asyncio.ensure_future(self.be_cut()))

        async with await self.relay.tensor(dtype="uint8", shape=(TENSOR_BYTES,)) as tensor:
            await tensor.put(data, checked=True, on_bytes=first_piece_is_over)
            await cuts.pop()
            into = bytearray(TENSOR_BYTES)
            await tensor.get(into, checked=True, on_bytes=first_piece_is_over)
            await cuts.pop()
        return hashlib.sha256(into).digest() == hashlib.sha256(data).digest()


async def main(seconds: float) -> None:
    [found] = await AsyncRelay.discover(seconds, enough=1)
    async with AsyncRelay(found, settings=SETTINGS) as relay:
        visitor = Visitor(relay)
        loaded = await relay.load_model(found.models[0])
        watching = asyncio.create_task(visitor.watch())
        ids = await visitor.hear(loaded.name)
        whole = await visitor.carry()
        logits = (await relay.run(loaded.name, PROMPT, last_only=True)).tolist()[0]
        watching.cancel()
        told = {"ids": ids, "tensor": whole, "losses": visitor.losses}
        told["likeliest"] = max(range(len(logits)), key=logits.__getitem__)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
