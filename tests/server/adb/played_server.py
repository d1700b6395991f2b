"""An adb server that is played: one phone, `S1`, whose Ollama answers; each question may be answered otherwise.

`said[question] = bytes` (or a prefix of the question) takes the place of the good answer, a list those of the next
ones; HANG says nothing at all, CUT ends the connection. The real server is met in the other tests; this one does what
that never does on request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.adb.states import QUESTION

HANG, CUT = b"<hang>", b"<cut>"
LIST = "S1 device product:x model:Pixel_7 device:x transport_id:7\n"
FACTS = b"S1\nPixel 7\n14\n\ngs201\npanther\nMemTotal: 8000000 kB\n"
HTTP = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"version":"0.31.1"}'


def framed(text: str) -> bytes:
    return b"OKAY%04x" % len(text) + text.encode()


class PlayedServer:
    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.said: dict[str, bytes | list[bytes]] = {}
        self.forwards: dict[str, str] = {}  # local -> the line of the list
        self._ended = asyncio.Event()
        self._good = {
            "host:version": framed("0029"),
            "host:track-devices-l": framed(LIST),
            "host:devices-l": framed(LIST),
            "host:transport-id:7": b"OKAY",
            f"shell:{QUESTION}": b"OKAY" + FACTS,
            "shell:": b"OKAY",
            "tcp:11434": b"OKAY" + HTTP,
        }

    def count(self, question: str) -> int:
        return sum(one.startswith(question) for one in self.asked)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while size := await reader.read(4):
                question = (await reader.readexactly(int(size, 16))).decode()
                self.asked.append(question)
                answer = self._answer(question)
                if answer == HANG:
                    await self._ended.wait()
                if answer in (HANG, CUT):
                    return
                writer.write(answer)
                if question == "host:track-devices-l" and answer.startswith(b"OKAY"):
                    await self._ended.wait()
                if not question.startswith("host:transport-id"):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, question: str) -> bytes:
        for start, answer in self.said.items():
            if not question.startswith(start):
                continue
            if isinstance(answer, bytes):
                return answer
            if answer:
                return answer.pop(0)
        _, _, rest = question.partition(":forward:norebind:")
        if rest:
            local, remote = rest.split(";")
            self.forwards[local] = f"S1 {local} {remote}\n"
            return b"OKAYOKAY"
        _, _, local = question.partition(":killforward:")
        if local:
            self.forwards.pop(local, None)
            return b"OKAYOKAY"
        if question == "host:list-forward":
            return framed("".join(self.forwards.values()))
        return next(answer for start, answer in self._good.items() if question.startswith(start))

    def end(self) -> None:
        self._ended.set()


@asynccontextmanager
async def playing() -> AsyncIterator[PlayedServer]:
    played = PlayedServer()
    server = await asyncio.start_server(played.serve, "127.0.0.1", 0)
    played.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield played
        finally:
            played.end()
            for _ in range(10):  # until the last connection has ended
                await asyncio.sleep(0)
