"""The transformers backend: a folder is looked at, and the task that fits it is loaded."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncGenerator
from typing import Any, Self

from byzerllm.backend import Backend, BackendContext
from byzerllm.errors import NotInstalledError
from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    GenerateChunk,
    GenerateRequest,
    ImageRequest,
    ImageResult,
    ModelMeta,
    RerankRequest,
    RerankResult,
    SpeechRequest,
    TranscribeRequest,
    TranscribeResult,
)
from byzerllm_backend_transformers.families import TaskName, family_of
from byzerllm_backend_transformers.folder import ModelFolder
from byzerllm_backend_transformers.tasks import Loading, Task

_TASKS: dict[TaskName, str] = {
    "chat": "chat.task:Chat",
    "vision": "vision:Vision",
    "embedding": "embedding:Embedding",
    "rerank": "reranking:Reranking",
    "transcription": "transcription:Transcription",
    "speech": "speech:Speech",
    "image": "diffusion.task:Diffusion",
}
"""Module and class of each task; imported when a folder needs it."""

_EXTRAS = {"bitsandbytes": "quantization", "diffusers": "diffusion", "gguf": "gguf"}


class TransformersBackend(Backend):
    """One loaded model, whatever it does; what it cannot do raises `CapabilityError`."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        """Load the folder off the loop; cancelling gives up loading.

        Raises:
            ModelSourceError: no model's folder, or one that is not whole.
            ModelLoadError: the model does not fit the task, the platform or the memory.
            NotInstalledError: an extra is missing.
        """
        given_up = threading.Event()
        loading = asyncio.ensure_future(asyncio.to_thread(_load, context, given_up))
        try:
            return cls(await asyncio.shield(loading))
        except asyncio.CancelledError:
            given_up.set()
            loading.add_done_callback(_discard)
            raise

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        return self.task.generate(request)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        return await self.task.embed(request)

    async def rerank(self, request: RerankRequest) -> RerankResult:
        return await self.task.rerank(request)

    def speak(self, request: SpeechRequest) -> AsyncGenerator[GenerateChunk, None]:
        return self.task.speak(request)

    async def draw(self, request: ImageRequest) -> ImageResult:
        return await self.task.draw(request)

    async def transcribe(self, request: TranscribeRequest) -> TranscribeResult:
        return await self.task.transcribe(request)

    async def tokenize(self, text: str) -> list[int]:
        return await self.task.tokenize(text)

    async def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        return await self.task.apply_chat_template(messages)

    async def meta(self) -> ModelMeta:
        return await self.task.meta()

    async def health(self) -> None:
        await self.task.health()

    async def close(self) -> None:
        await self.task.close()


def _load(context: BackendContext, given_up: threading.Event) -> Task:
    folder = ModelFolder.read(context.model_path)
    family = family_of(context.model_type)
    module, _, name = _TASKS[folder.task(family)].partition(":")
    try:
        task = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise NotInstalledError(
            f"this model needs the package {error.name!r}; run: "
            f"pip install 'byzerllm-backend-transformers[{extra}]'"
        ) from error
    loaded: Task = task.load(
        Loading(context=context, folder=folder, family=family, given_up=given_up)
    )
    return loaded


def _discard(loading: asyncio.Future[Task]) -> None:
    """Free a model that was loaded after its caller had left."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().free()
