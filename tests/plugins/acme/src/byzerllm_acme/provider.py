"""Acme's hosted model: it answers backwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Self

from byzerllm import Backend, BackendContext
from byzerllm.messages import text_of
from byzerllm.requests import GenerateChunk, GenerateRequest, ModelMeta, Usage


class AcmeProvider(Backend):
    """Streams the question from its end to its beginning, a few characters at a time."""

    def __init__(self, name: str) -> None:
        self._name = name

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        return cls(context.parameters.model)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        question = request.prompt or text_of((request.messages or [])[-1]["content"])
        answer = question[::-1]
        for start in range(0, len(answer), 4):
            yield GenerateChunk(text=answer[start : start + 4])
        size = len(answer)
        yield GenerateChunk(
            finish_reason="stop", usage=Usage(prompt_tokens=size, completion_tokens=size)
        )

    async def meta(self) -> ModelMeta:
        return ModelMeta(model_deploy_type="saas", backend="saas", model_name=self._name)
