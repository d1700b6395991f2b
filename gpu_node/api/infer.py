"""`/api/infer`: token ids in, logits or hidden states out, as bytes. Nothing is sampled and no template is used.

The body of the answer is float32, little-endian, row by row; what it is stands in the headers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from gpu_node.api.body import read_body
from gpu_node.api.openai_fields import OpenAiBody
from gpu_node.api.replies import WatchedAnswer, send_whole
from gpu_node.api.schemas import parse
from gpu_node.api.service import Service
from gpu_node.api.terms import asker_of
from gpu_node.engine.sequence import Inference, InferenceRequest
from gpu_node.errors import ContextExceeded


class InferBody(OpenAiBody):
    ids: list[int] = Field(min_length=1)
    output: Literal["logits", "hidden"] = "logits"
    last_only: bool = False


class InferApi:
    def __init__(self, service: Service) -> None:
        self._service, self._residents = service, service.residents

    async def infer(self, request: Request) -> Response:
        body = parse(InferBody, await read_body(request, self._service.max_body_bytes))
        self._residents.find(body.model)
        asker = asker_of(request)
        wanted = InferenceRequest(tuple(body.ids), body.output, body.last_only, asker.caller, asker.salt)

        async def answer(send: Send) -> None:
            async with self._residents.hold(body.model, body.keep_alive_seconds) as host:
                if len(wanted.ids) > host.context_tokens:
                    raise ContextExceeded()  # beyond the positions that the model knows its numbers mean nothing
                found, name = await host.engine.infer(wanted), host.name
            await send_whole(send, binary(found, name, body.output))

        return WatchedAnswer(answer)


def binary(found: Inference, model: str, output: str) -> Response:
    rows, columns = found.shape
    headers = {
        "X-Potluck-Model": model,
        "X-Potluck-Output": output,
        "X-Potluck-Rows": str(rows),
        "X-Potluck-Columns": str(columns),
        "X-Potluck-Dtype": "float32",
        "X-Potluck-Byte-Order": "little",
        "Content-Type": "application/octet-stream",
    }
    return Response(found.data, headers=headers)
