"""Reads a request's body up to a limit: more is refused before it is kept."""

from __future__ import annotations

from starlette.requests import Request

from gpu_node.errors import RequestError


async def read_body(request: Request, limit: int) -> bytes:
    too_large = RequestError(f"the request body is larger than {limit} bytes", status=413)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)
