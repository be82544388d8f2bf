"""The one way from every API to a model: who may, which model, what it took."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from byzerllm import ByzerLLM
from byzerllm.errors import ByzerLLMError, listed
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    Request,
    Result,
    StreamRequest,
    Usage,
)
from byzerllm_server.calls import CURRENT, Call
from byzerllm_server.catalog import Catalog
from byzerllm_server.errors import HTTPError


class Gateway:
    """Calls models on behalf of HTTP requests and notes in the `Call` what became of them.

    Args:
        client: a client that no template and no default is set on.
        timeout: seconds that one request to a model may take.
    """

    def __init__(self, client: ByzerLLM, catalog: Catalog, *, timeout: float) -> None:
        self.client = client
        self.catalog = catalog
        self.timeout = timeout

    def open(self, call: Call, name: str) -> str:
        """The deployment that the caller means by `name`; noted in `call`.

        Raises:
            ModelNotFoundError: nothing of this name is served.
            HTTPError: the caller may not use it.
        """
        call.asked = name
        CURRENT.set(call)
        if not call.may_use(name):
            allowed = listed(call.principal.models or ())
            raise HTTPError(
                403,
                f"this key may not use the model {name!r}; it may use: {allowed}",
                code="model_not_allowed",
                parameter="model",
            )
        call.model = self.catalog.deployment(name)
        return call.model

    async def meta(self, call: Call) -> ModelMeta:
        """What the call's model is; cheap after the first time."""
        return await self.client.async_meta(call.model)

    async def send(self, call: Call, request: Request) -> Result:
        """One request to the call's model, and its result."""
        began = time.perf_counter()
        call.sent = call.sent or began
        fell_back = functools.partial(self._fell_back, call)
        try:
            result = await self.client.async_send(
                request, call.model, timeout=self.timeout, on_fallback=fell_back
            )
        except asyncio.CancelledError:
            _estimate(call, request, 0)
            raise
        self.note(call, result, time.perf_counter() - began)
        return result

    async def stream(
        self, call: Call, request: StreamRequest
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The chunks of one request to the call's model. Closing stops the generation."""
        call.sent = call.sent or time.perf_counter()
        fell_back = functools.partial(self._fell_back, call)
        chunks = self.client.async_stream(
            request, call.model, timeout=self.timeout, on_fallback=fell_back
        )
        tokens, finished = 0, False
        try:
            async with aclosing(chunks) as source:
                async for chunk in source:
                    if not call.first:
                        call.first = time.perf_counter()
                    tokens += len(chunk.token_ids) or 1
                    if chunk.finish_reason is not None:
                        finished = True
                        self.note(call, chunk)
                    yield chunk
        except BaseException as error:
            if not finished and (tokens or isinstance(error, asyncio.CancelledError)):
                _estimate(call, request, tokens)
            raise

    async def models(self) -> list[dict[str, Any]]:
        """What is deployed, as `ByzerLLM.models`."""
        return await asyncio.to_thread(self.client.models)

    def note(self, call: Call, ended: Any, seconds: float = 0.0) -> None:
        """Put the tokens and the time of a result, or of a stream's last chunk, into `call`;
        `seconds` stand for the time of results that have none."""
        call.answered = time.perf_counter()
        call.first = call.first or call.answered
        elapsed: float = getattr(ended, "elapsed", 0.0)
        taken = elapsed + getattr(ended, "queued", 0.0) if elapsed else seconds
        call.model_seconds = max(call.model_seconds, taken)
        usage: Usage | None = getattr(ended, "usage", None)
        if usage is None:
            return
        before = call.usage or Usage()
        call.usage = Usage(
            prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
            completion_tokens=before.completion_tokens + usage.completion_tokens,
        )
        first_token: float = getattr(ended, "first_token", 0.0)
        if first_token and usage.completion_tokens > 1:
            waited, tokens = call.decoding
            call.decoding = (
                waited + elapsed - first_token,
                tokens + usage.completion_tokens - 1,
            )

    def _fell_back(self, call: Call, failed: str, asked: str, error: ByzerLLMError) -> None:
        call.fallbacks += 1
        call.stood_in += ((failed, asked),)
        call.model = asked


def _estimate(call: Call, request: Request, completion_tokens: int) -> None:
    """Note the tokens of a chat or completion that was broken off, so that it is not free of
    charge: its chunks, and a token for four bytes of the question's text."""
    if not isinstance(request, GenerateRequest):
        return
    size = len((request.prompt or "").encode())
    for message in request.messages or ():
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = (part.get("text") for part in parts if isinstance(part, dict))
        size += sum(len(text.encode()) for text in texts if isinstance(text, str))
    before = call.usage or Usage()
    call.usage = Usage(
        prompt_tokens=before.prompt_tokens + math.ceil(size / 4),
        completion_tokens=before.completion_tokens + completion_tokens,
    )
