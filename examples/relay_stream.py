"""An answer of a GPU node, token by token: `python examples/relay_stream.py HOST[:PORT] [MODEL]`.

Unplug the network for some seconds while it writes: it goes on behind the last token.
"""

from __future__ import annotations

import asyncio
import sys

from potluck import AsyncRelay, LoadProgress


def tell(progress: LoadProgress) -> None:
    print(f"{progress.phase} {progress.done:,} of {progress.total:,} bytes", file=sys.stderr)


async def main(node: str, model: str | None) -> None:
    async with AsyncRelay(node) as relay:
        name = model or (await relay.stats()).models[0].name
        await relay.load_model(name, on_progress=tell)
        async with relay.generate(name, "Tell me about rivers.", max_tokens=64, temperature=0.7) as stream:
            async for piece in stream:
                print(piece.text, end="", flush=True)
        usage, seconds = stream.answer.usage, stream.answer.output_seconds
        print(f"\n{usage.completion_tokens} tokens in {seconds:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
