"""`/v1/rerank` and `/v1/score`."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from byzerllm.requests import EmbedRequest, EmbedResult, RerankRequest, RerankResult, Usage
from byzerllm_server.api.chat import shown_model
from byzerllm_server.calls import new_id
from byzerllm_server.errors import HTTPError
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import rerank as schema
from byzerllm_server.schemas.openai import EmbeddingUsage

encode = msgspec.json.encode


async def rerank(context: Context, body: schema.RerankRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    texts = [
        document if isinstance(document, str) else document.text for document in body.documents
    ]
    request = RerankRequest(id=call.id, query=body.query, documents=texts)
    result = await gateway.send(call, request)
    assert isinstance(result, RerankResult)
    scores = _shown(result.scores, body.use_activation)
    order = sorted(range(len(texts)), key=scores.__getitem__, reverse=True)
    ranked = [
        schema.Ranked(index=index, relevance_score=scores[index]) for index in order[: body.top_n]
    ]
    if body.return_documents is not False:
        for item in ranked:
            item.document = schema.Document(text=texts[item.index])
    answer = schema.RerankAnswer(
        id=new_id("rerank-"),
        model=shown_model(call, body.model),
        results=ranked,
        usage=_usage(result.usage),
    )
    return Response(encode(answer), media_type="application/json")


async def score(context: Context, body: schema.ScoreRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    pairs = _pairs(body)
    if (await gateway.meta(call)).task == "embedding":
        scores, usage = await _cosines(context, pairs)
    else:
        result = await gateway.send(call, RerankRequest(id=call.id, pairs=pairs))
        assert isinstance(result, RerankResult)
        scores, usage = _shown(result.scores, body.use_activation), result.usage
    answer = schema.ScoreAnswer(
        id=new_id("score-"),
        created=int(time.time()),
        model=shown_model(call, body.model),
        data=[schema.Score(index=index, score=score) for index, score in enumerate(scores)],
        usage=_usage(usage),
    )
    return Response(encode(answer), media_type="application/json")


def _pairs(body: schema.ScoreRequest) -> list[tuple[str, str]]:
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise HTTPError(
            400,
            f"text_1 has {len(first)} texts and text_2 {len(second)}; they must be as many, or "
            "text_1 a single one",
            parameter="text_2",
        )
    return list(zip(first, second, strict=True))


async def _cosines(context: Context, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], Usage]:
    """By a model of vectors: it is asked for each text once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    request = EmbedRequest(id=context.call.id, texts=texts)
    result = await context.server.gateway.send(context.call, request)
    assert isinstance(result, EmbedResult)
    vectors = dict(zip(texts, result.vectors, strict=True))
    return [_cosine(vectors[one], vectors[other]) for one, other in pairs], result.usage


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / length if length else 0.0


def _shown(logits: list[float], activation: bool | None) -> list[float]:
    return logits if activation is False else [_sigmoid(logit) for logit in logits]


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


def _usage(usage: Usage) -> EmbeddingUsage:
    return EmbeddingUsage(prompt_tokens=usage.prompt_tokens, total_tokens=usage.prompt_tokens)


OPERATIONS = [
    *(
        Operation(
            name=name,
            method="POST",
            path=path,
            summary="Sort documents by what they have to do with a query",
            handler=rerank,
            body=schema.RerankRequest,
            answer=schema.RerankAnswer,
            tag="Reranking",
        )
        # vLLM's, Jina's and Cohere's paths.
        for name, path in (
            ("rerank", "/v1/rerank"),
            ("rerank_v2", "/v2/rerank"),
            ("rerank_bare", "/rerank"),
        )
    ),
    Operation(
        name="score",
        method="POST",
        path="/v1/score",
        summary="Compare texts",
        handler=score,
        body=schema.ScoreRequest,
        answer=schema.ScoreAnswer,
        tag="Reranking",
    ),
]
