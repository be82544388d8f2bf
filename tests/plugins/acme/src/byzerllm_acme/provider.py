"""Acme's hosted model: it answers backwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from byzerllm import Backend, BackendContext
from byzerllm.errors import DeployError, ParameterError
from byzerllm.messages import text_of
from byzerllm.requests import GenerateChunk, GenerateRequest, ModelMeta, Usage

TOKEN = 4
"""Characters of one of Acme's tokens."""


class AcmeProvider(Backend):
    """Streams the question from its end to its beginning, a token at a time."""

    def __init__(self, name: str) -> None:
        self._name = name

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        if context.parameters.api_key.get_secret_value().startswith("expired"):
            raise DeployError("Acme refuses this api_key: it has expired")
        return cls(context.parameters.model)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        question, sampling = self._question(request), request.sampling
        answer = question[::-1]
        for stop in sampling.stop:
            answer = answer.partition(stop)[0]
        tokens = [answer[start : start + TOKEN] for start in range(0, len(answer), TOKEN)]
        limit = sampling.max_tokens or len(tokens)
        for token in tokens[:limit]:
            await asyncio.sleep(0)
            yield GenerateChunk(text=token)
        yield GenerateChunk(
            finish_reason="length" if limit < len(tokens) else "stop",
            usage=Usage(
                prompt_tokens=-(-len(question) // TOKEN),
                completion_tokens=min(limit, len(tokens)),
            ),
        )

    @staticmethod
    def _question(request: GenerateRequest) -> str:
        if request.prompt is not None:
            return request.prompt
        if not request.messages:
            raise ParameterError("the conversation is empty; Acme needs one message")
        return text_of(request.messages[-1].get("content"))

    async def meta(self) -> ModelMeta:
        return ModelMeta(model_deploy_type="saas", backend="saas", model_name=self._name)
