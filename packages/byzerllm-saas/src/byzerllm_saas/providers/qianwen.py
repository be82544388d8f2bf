"""Qwen's text models and text embeddings at DashScope.

Source: https://help.aliyun.com/zh/model-studio/qwen-api-via-dashscope
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from pydantic import Field

from byzerllm.backend import BackendSpec
from byzerllm.errors import ParameterError
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import EmbedRequest, EmbedResult, Usage
from byzerllm_saas.conversation import plain_text
from byzerllm_saas.dashscope_wire import (
    DASHSCOPE_EXTRA,
    DashScopeChat,
    DashScopeParameters,
    DashScopeUsage,
)

# Texts that one call for vectors may have.
_BATCHES = {"text-embedding-v1": 25, "text-embedding-v2": 25}
_BATCH = 10
_SEES = re.compile(r"(^|[-_.\d])(vl|qvq|ocr|omni)([-_.\d]|$)", re.IGNORECASE)


class QianwenParameters(DashScopeParameters):
    """What a deployment of one of Qwen's text models can be told."""

    model: str = Field("qwen-turbo", description="the vendor's name of the model")
    base_url: str = Field(
        "https://dashscope.aliyuncs.com/api/v1",
        description="address of the API, up to and including /api/v1",
    )


SPEC = BackendSpec(
    name="qianwen",
    path="byzerllm_saas.providers.qianwen:Qianwen",
    parameters=QianwenParameters,
    description="Qwen's text models and embeddings at DashScope",
    model_types=("saas/qianwen",),
    capabilities=frozenset({"chat", "embedding", "tools"}),
    extra_parameters=DASHSCOPE_EXTRA
    | {"enable_search", "parallel_tool_calls", "search_options", "translation_options"},
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[qianwen]'",
)


class _Vector(Struct):
    embedding: list[float]
    text_index: int = 0


class _Vectors(Struct):
    embeddings: list[_Vector]


class _Embedded(Struct):
    output: _Vectors
    usage: DashScopeUsage | None = None


class Qianwen(DashScopeChat):
    """One of Qwen's text models."""

    spec = SPEC
    address = "services/aigc/text-generation/generation"

    def model_name(self) -> str:
        model = super().model_name()
        if _SEES.search(model):
            raise ParameterError.invalid(
                "saas.model",
                f"{model!r} sees images and has another address; deploy it as saas/qianwen_vl",
                where="saas/qianwen",
            )
        return model

    def content(self, message: Mapping[str, Any], index: int) -> str:
        """Text alone."""
        return plain_text(self, message)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text, as many calls as the vendor's limit makes of it.

        `text_type` in `extra_request_params` is `document` or `query`.
        """
        return await self.in_batches(request, _BATCHES.get(self.model, _BATCH), self._embed)

    async def _embed(self, texts: Sequence[str], request: EmbedRequest) -> EmbedResult:
        parameters = dict(request.extra)
        if request.dimensions is not None:
            parameters["dimension"] = request.dimensions
        body = {"model": self.model, "input": {"texts": texts}, "parameters": parameters}
        url = self.url("services/embeddings/text-embedding/text-embedding")
        async with self.turn("embedding", request) as turn:
            answer = await self.http.send("POST", url, json=body, headers=self.headers(turn.key))
            self.check_error(answer)
            found: _Embedded = self.http.decode(answer.body, _Embedded)
            vectors = sorted(found.output.embeddings, key=lambda vector: vector.text_index)
            if len(vectors) != len(texts):
                raise self.errors.protocol(
                    f"{len(vectors)} vectors came for {len(texts)} texts", headers=answer.headers
                )
            usage = found.usage.plain() if found.usage else Usage()
            turn.used(usage)
            return EmbedResult(vectors=[vector.embedding for vector in vectors], usage=usage)


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
