"""`/v1/embeddings`."""

from __future__ import annotations

import base64
import sys
from array import array

import msgspec
from starlette.responses import Response

from byzerllm.requests import EmbedRequest, EmbedResult
from byzerllm_server.api.chat import shown_model
from byzerllm_server.errors import HTTPError
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import openai as schema


async def embeddings(context: Context, body: schema.EmbeddingRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    texts = [body.input] if isinstance(body.input, str) else list(body.input)
    if not all(texts):
        empty = "input" if isinstance(body.input, str) else f"input[{texts.index('')}]"
        raise HTTPError(400, f"{empty}: an empty text has no vector", parameter=empty)
    request = EmbedRequest(id=call.id, texts=texts, dimensions=body.dimensions)
    result = await gateway.send(call, request)
    assert isinstance(result, EmbedResult)
    encoded = body.encoding_format == "base64"
    answer = schema.EmbeddingList(
        data=[
            schema.Embedding(index=index, embedding=_base64(vector) if encoded else vector)
            for index, vector in enumerate(result.vectors)
        ],
        model=shown_model(call, body.model),
        usage=schema.EmbeddingUsage(
            prompt_tokens=result.usage.prompt_tokens, total_tokens=result.usage.prompt_tokens
        ),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _base64(vector: list[float]) -> str:
    """Little-endian 32-bit floats, as OpenAI encodes them."""
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


OPERATIONS = [
    Operation(
        name="embeddings",
        method="POST",
        path="/v1/embeddings",
        summary="Turn texts into vectors",
        handler=embeddings,
        body=schema.EmbeddingRequest,
        answer=schema.EmbeddingList,
    )
]
