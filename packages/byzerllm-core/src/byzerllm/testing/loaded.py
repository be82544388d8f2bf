"""A backend that a test loads itself, and what it asks of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.requests import GenerateChunk, GenerateRequest, SamplingParams, TokenLogprob, Usage

T = TypeVar("T")
_ids = itertools.count()


@dataclass
class Answer:
    """A whole answer out of its chunks; `times` are seconds on the monotonic clock."""

    chunks: list[GenerateChunk]
    times: list[float]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [entry for chunk in self.chunks for entry in chunk.logprobs]

    @property
    def finish(self) -> str | None:
        return self.chunks[-1].finish_reason

    @property
    def usage(self) -> Usage:
        usage = self.chunks[-1].usage
        assert usage is not None
        return usage


class Loaded:
    """A backend on an event loop of its own, for tests that ask it one thing after the other.

    Args:
        spec: which backend.
        model_path: a local file or folder; None where none is needed.
        model_type: the `pretrained_model_type`.
        concurrency: requests that it may run at once.
        infer_params: as a deployment has them.

    Attributes:
        backend: the loaded backend.
        reports: what it said while it was loaded.

    Raises:
        ByzerLLMError: whatever loading raises.
    """

    def __init__(
        self,
        spec: BackendSpec,
        model_path: Path | None = None,
        *,
        model_type: str = "custom/auto",
        concurrency: int = 8,
        **infer_params: Any,
    ) -> None:
        self.runner = asyncio.Runner()
        self.reports: list[str] = []
        context = BackendContext(
            model="tested",
            model_path=model_path,
            model_type=model_type,
            parameters=spec.parameters.parse(infer_params, where="a test"),
            concurrency=concurrency,
            report=self.reports.append,
        )
        try:
            self.backend: Any = self.run(spec.load().create(context))
        except BaseException:
            self.runner.close()
            raise

    def run(self, work: Coroutine[Any, Any, T], limit: float = 120.0) -> T:
        """The result of a coroutine; TimeoutError after `limit` seconds."""
        return self.runner.run(asyncio.wait_for(work, limit))

    def close(self) -> None:
        """Close the backend and its loop."""
        self.run(self.backend.close())
        self.runner.close()

    def request(
        self,
        said: str = "",
        *,
        prompt: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        stream: bool = True,
        **sampling: Any,
    ) -> GenerateRequest:
        """A request at temperature 0 where nothing else is said."""
        if prompt is None and messages is None:
            messages = [{"role": "user", "content": said}]
        params = SamplingParams.parse({"temperature": 0, **sampling})
        return GenerateRequest(
            id=f"t{next(_ids)}", messages=messages, prompt=prompt, sampling=params, stream=stream
        )

    def chunks(self, request: GenerateRequest) -> aclosing[AsyncGenerator[GenerateChunk, None]]:
        return aclosing(self.backend.generate(request))

    async def gather(self, request: GenerateRequest) -> Answer:
        """The whole answer to a request."""
        answer = Answer([], [])
        async with self.chunks(request) as chunks:
            async for chunk in chunks:
                answer.chunks.append(chunk)
                answer.times.append(time.monotonic())
        return answer

    def ask(self, said: str = "", **options: Any) -> Answer:
        """The whole answer to a question; `options` are those of `request`."""
        return self.run(self.gather(self.request(said, **options)))
