"""`/tokenize`."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from byzerllm.messages import normalise
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    TokenizeRequest,
    TokenizeResult,
)
from byzerllm_server.errors import HTTPError
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import tokens as schema


async def tokenize(context: Context, body: schema.TokenizeRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    text = await _text(context, body)
    result = await gateway.send(call, TokenizeRequest(id=call.id, text=text))
    assert isinstance(result, TokenizeResult)
    meta = await gateway.meta(call)
    answer = schema.Tokens(
        count=len(result.token_ids), max_model_len=meta.max_model_len, tokens=result.token_ids
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _text(context: Context, body: schema.TokenizeRequest) -> str:
    if (body.prompt is None) == (body.messages is None):
        raise HTTPError(400, "send either prompt or messages", parameter="prompt")
    if body.prompt is not None:
        return body.prompt
    messages = normalise(context.raw["messages"], short_forms=False)
    request = ApplyTemplateRequest(id=context.call.id, messages=messages)
    result = await context.server.gateway.send(context.call, request)
    assert isinstance(result, ApplyTemplateResult)
    return result.text


OPERATIONS = [
    Operation(
        name="tokenize",
        method="POST",
        path="/tokenize",
        summary="The tokens of a text or a conversation",
        handler=tokenize,
        body=schema.TokenizeRequest,
        answer=schema.Tokens,
        tag="Tokens",
    )
]
