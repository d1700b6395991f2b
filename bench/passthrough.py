"""The floor that the gateway is held against: FastAPI and aiohttp hand every request on and every byte back.

No models, no queue, no retry, no cache, no metrics. `UPSTREAMS` names the nodes. Start it with
`UPSTREAMS=http://127.0.0.1:11434 python -m uvicorn bench.passthrough:app --loop uvloop --http httptools`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def client(app: FastAPI) -> AsyncIterator[None]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as app.state.http:
        yield


app = FastAPI(lifespan=client)
upstreams = cycle(os.environ.get("UPSTREAMS", "http://127.0.0.1:11434").split(","))


@app.api_route("/{path:path}", methods=["GET", "POST"])
async def forward(path: str, request: Request) -> StreamingResponse:
    headers = {"content-type": request.headers.get("content-type", "application/json")}
    url = f"{next(upstreams)}/{path}"
    answer = await app.state.http.request(request.method, url, data=await request.body(), headers=headers)

    async def body() -> AsyncIterator[bytes]:
        async with answer:
            async for part in answer.content.iter_any():
                yield part

    return StreamingResponse(body(), answer.status, media_type=answer.content_type)
